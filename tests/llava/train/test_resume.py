"""A run that was killed goes on and ends where it would have ended."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava.errors import CheckpointError
from llava.model.multimodal_projector.builder import read_tensors
from llava.train import checkpoint
from llava.train.checkpoint import find_last_checkpoint, problem_of
from llava.train.llava_trainer import LLaVATrainer
from llava.train.train import default_data_module

ROOT = Path(__file__).parents[3]

# saves, then dies in the middle of writing the next checkpoint
DIES_WHILE_SAVING = """
import os, signal, sys
from llava.train import checkpoint
from llava.train.train import train
seal = checkpoint._seal
def die(folder):
    if folder.name == "checkpoint-4":
        (folder / "trainer_state.json").write_text("{")
        os.kill(os.getpid(), signal.SIGKILL)
    seal(folder)
checkpoint._seal = die
train()
"""


def kill_while_saving(flags):
    done = subprocess.run(
        [sys.executable, "-c", DIES_WHILE_SAVING, *flags],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def same(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def test_killed_run_ends_with_the_same_weights(flags, run_train, tmp_path):
    settings = {"max_steps": 6, "save_steps": 2, "group_by_modality_length": True}
    run_train(flags(output_dir=tmp_path / "straight", **settings))
    killed = tmp_path / "killed"
    kill_while_saving(flags(output_dir=killed, **settings))
    assert find_last_checkpoint(killed) == killed / "checkpoint-2"
    run_train(flags(output_dir=killed, **settings))
    weights = [load_file(tmp_path / n / "model.safetensors") for n in ("straight", "killed")]
    assert same(*weights)
    assert problem_of(killed) is None


def test_in_the_background_the_same_is_saved(flags, run_train, tmp_path):
    for name, in_background in (("background", True), ("waits", False)):
        run_train(flags(output_dir=tmp_path / name, async_save=in_background))
    folders = [tmp_path / name / "checkpoint-4" for name in ("background", "waits")]
    names = [{path.name for path in folder.iterdir()} for folder in folders]
    assert names[0] == names[1]
    assert same(*(load_file(folder / "model.safetensors") for folder in folders))
    states = [torch.load(folder / "optimizer.pt")["state"] for folder in folders]
    assert all(same(state, states[1][key]) for key, state in states[0].items())


def test_a_flipped_byte_costs_one_checkpoint(flags, run_train, tmp_path, caplog):
    settings = {"max_steps": 6, "save_steps": 2, "lr_scheduler_type": "constant"}
    run_train(flags(output_dir=tmp_path / "straight", **settings))
    run_train(flags(**{**settings, "max_steps": 4}))
    path = tmp_path / "out" / "checkpoint-4" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    run_train(flags(**settings))
    assert "checkpoint-4 is not used: model.safetensors is damaged" in caplog.text
    assert f"going on from {tmp_path / 'out' / 'checkpoint-2'}" in caplog.text
    weights = [load_file(tmp_path / n / "model.safetensors") for n in ("straight", "out")]
    assert same(*weights)


def test_a_full_disk_in_the_background_ends_the_run(flags, run_train, tmp_path, monkeypatch):
    def full(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "_seal", full)
    with pytest.raises(CheckpointError, match="disk is full"):
        run_train(flags())


def test_the_best_checkpoint_stays(flags, run_train, tmp_path, monkeypatch):
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: 4.0}

    def module(context):
        data = default_data_module(context)
        return {**data, "eval_dataset": data["train_dataset"]}

    def evaluate(self, *args, **kwargs):
        return {"eval_loss": losses[self.state.global_step]}

    monkeypatch.setattr(LLaVATrainer, "evaluate", evaluate)
    settings = {"save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "save_total_limit": 2}
    run_train(flags(**settings), data_module=module)
    kept = {path.name for path in (tmp_path / "out").glob("checkpoint-*")}
    assert kept == {"checkpoint-2", "checkpoint-4"}
    state = json.loads((tmp_path / "out" / "trainer_state.json").read_text())
    assert state["best_model_checkpoint"] == str(tmp_path / "out" / "checkpoint-2")


def test_stage_1_resumes(flags, run_train, tmp_path):
    settings = {"max_steps": 6, "save_steps": 2, "tune_mm_mlp_adapter": True}
    run_train(flags(output_dir=tmp_path / "straight", **settings))
    killed = tmp_path / "killed"
    kill_while_saving(flags(output_dir=killed, **settings))
    run_train(flags(output_dir=killed, **settings))
    weights = [read_tensors(tmp_path / n / "mm_projector.bin") for n in ("straight", "killed")]
    assert same(*weights)


def test_lora_resumes(flags, run_train, tmp_path):
    settings = {"max_steps": 4, "save_steps": 2, "lora_enable": True, "lora_dropout": 0.0}
    settings |= {"lora_r": 4, "mm_projector_lr": 1e-3}
    run_train(flags(output_dir=tmp_path / "a", **settings))
    adapter = load_file(tmp_path / "a" / "adapter_model.safetensors")
    assert not any("vision_tower" in name or "mm_projector" in name for name in adapter)
    others = read_tensors(tmp_path / "a" / "non_lora_trainables.bin")
    assert {name.split("mm_projector")[0] for name in others} == {"base_model.model.model."}
    last = tmp_path / "a" / "checkpoint-2"
    assert {"non_lora_trainables.bin", "config.json"} <= {path.name for path in last.iterdir()}

    (tmp_path / "b").mkdir()
    last.rename(tmp_path / "b" / "checkpoint-2")
    run_train(flags(output_dir=tmp_path / "b", **settings))
    assert same(adapter, load_file(tmp_path / "b" / "adapter_model.safetensors"))
    assert same(others, read_tensors(tmp_path / "b" / "non_lora_trainables.bin"))


def test_finished_run_takes_no_further_step(flags, run_train, tmp_path):
    args = flags(max_steps=2, save_steps=2)
    run_train(args)
    before = load_file(tmp_path / "out" / "model.safetensors")
    run_train(args)
    assert same(before, load_file(tmp_path / "out" / "model.safetensors"))


def test_another_run_is_refused(flags, run_train, tmp_path, caplog):
    run_train(flags(max_steps=1, save_steps=1))
    changed = {"max_steps": 2, "save_steps": 5, "per_device_train_batch_size": 2, "seed": 1}
    said = (
        r"checkpoint-1 is of a run with other settings: samples in a step was 4, is 2, seed was 42,"
        r" is 1.*--gradient_accumulation_steps 2 gives 4 samples a step again"
    )
    with pytest.raises(CheckpointError, match=said):
        run_train(flags(**changed))
    run_train(flags(**changed, allow_changed_run=True))
    assert "--allow_changed_run was given" in caplog.text


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 2e-2}, "--learning_rate was 0.01, is 0.02"),
        ({"lr_scheduler_type": "cosine"}, "--lr_scheduler_type was linear, is cosine"),
        ({"max_steps": 3}, "--max_steps was 2, is 3"),
        (
            {"max_steps": None, "num_train_epochs": 2},
            r"--max_steps was 2, is unset, --num_train_epochs was unset, is 2\.0",
        ),
        ({"version": "llava_v1"}, "--version was v1, is llava_v1"),
        ({"lora_enable": True}, "--lora_enable was False, is True"),
    ],
)
@pytest.mark.parametrize("keeps_checkpoints", [True, False])
def test_other_settings_are_refused_and_the_result_stays(
    changes, named, keeps_checkpoints, flags, run_train, tmp_path
):
    out = tmp_path / "out"
    settings = {"max_steps": 2, "save_steps": 1 if keeps_checkpoints else 50}
    settings |= {"save_strategy": "steps" if keeps_checkpoints else "no"}
    run_train(flags(**settings))
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=named):
        run_train(flags(**{**settings, **changes}))
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert problem_of(out) is None


def test_another_starting_projector_is_refused_but_may_move(flags, run_train, tmp_path):
    for name, seed in (("a", 1), ("b", 2)):
        run_train(flags(output_dir=tmp_path / name, tune_mm_mlp_adapter=True, seed=seed))
    settings = {"max_steps": 2, "save_steps": 1}
    run_train(flags(**settings, pretrain_mm_mlp_adapter=tmp_path / "a" / "mm_projector.bin"))
    with pytest.raises(
        CheckpointError, match=r"--pretrain_mm_mlp_adapter was mm_projector\.bin \("
    ):
        run_train(flags(**settings, pretrain_mm_mlp_adapter=tmp_path / "b" / "mm_projector.bin"))
    (tmp_path / "a").rename(tmp_path / "elsewhere")
    moved = tmp_path / "elsewhere" / "mm_projector.bin"
    run_train(flags(**settings, pretrain_mm_mlp_adapter=moved))


def test_a_run_with_other_settings_is_overwritten_if_asked(flags, run_train, tmp_path, caplog):
    settings = {"save_steps": 2, "save_total_limit": 9}
    run_train(flags(**settings, max_steps=6))
    changed = {**settings, "max_steps": 4, "learning_rate": 2e-2, "overwrite_output_dir": True}
    run_train(flags(**changed))
    assert "--learning_rate was 0.01, is 0.02" in caplog.text
    out = tmp_path / "out"
    assert {path.name for path in out.glob("checkpoint-*")} == {"checkpoint-2", "checkpoint-4"}
    run_train(flags(**{**changed, "output_dir": tmp_path / "straight"}))
    assert same(
        *(load_file(folder / "model.safetensors") for folder in (out, tmp_path / "straight"))
    )
    # the same command goes on: what was killed once need not begin anew
    caplog.clear()
    run_train(flags(**changed))
    assert f"going on from {out / 'checkpoint-4'}" in caplog.text


def test_a_checkpoint_of_an_older_version_goes_on(flags, run_train, tmp_path, caplog):
    run_train(flags(max_steps=2, save_steps=2))
    checkpoint_dir = tmp_path / "out" / "checkpoint-2"
    path = checkpoint_dir / "run_identity.json"
    identity = json.loads(path.read_text())
    del identity["settings"]
    path.write_text(json.dumps(identity))
    (checkpoint_dir / checkpoint.COMPLETE_FILE).unlink()
    checkpoint._seal(checkpoint_dir)
    run_train(flags(max_steps=2, save_steps=2, learning_rate=1.0))
    assert "going on from" in caplog.text


def test_the_same_step_by_other_micro_batches_goes_on(flags, run_train, tmp_path):
    settings = {"max_steps": 4, "save_steps": 2, "logging_steps": 1}
    run_train(flags(output_dir=tmp_path / "a", **settings))
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "checkpoint-2").rename(tmp_path / "b" / "checkpoint-2")
    deal = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    run_train(flags(output_dir=tmp_path / "b", **settings, **deal))
    left, right = (load_file(tmp_path / name / "model.safetensors") for name in "ab")
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, atol=1e-5, rtol=1e-4)


def test_a_named_checkpoint_must_be_whole(flags, run_train, tmp_path):
    (tmp_path / "checkpoint-7").mkdir()
    with pytest.raises(CheckpointError, match=r"checkpoint-7: it has no COMPLETE"):
        run_train(flags(resume_from_checkpoint=tmp_path / "checkpoint-7"))


def test_interrupt_keeps_the_checkpoint_and_says_so(
    flags, run_train, tmp_path, monkeypatch, caplog
):
    step = LLaVATrainer.training_step

    def interrupted(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(LLaVATrainer, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_train(flags())
    assert "stopped in step 4" in caplog.text
    assert "checkpoint-2" in caplog.text
    assert not (tmp_path / "out" / "COMPLETE").exists()
