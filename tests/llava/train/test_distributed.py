"""Two processes learn what one process learns, on CPUs: DDP, ZeRO-2, ZeRO-3, offload, FSDP2."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava.model.builder import load_pretrained_model
from llava.model.projector_file import read_tensors

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[3]
NUM_STEPS = 20

FSDP = {"fsdp": "full_shard", "fsdp_config": ROOT / "scripts" / "fsdp2.json"}
MODES = {
    "ddp": {},
    "zero2": {"deepspeed": ROOT / "scripts" / "zero2.json"},
    "zero3": {"deepspeed": ROOT / "scripts" / "zero3.json"},
    "fsdp2": FSDP,
}


@pytest.fixture(scope="module")
def mixed_data(tiny_data, tmp_path_factory):
    """By turns two samples with pictures and two without: the second rank sees text only."""
    records = json.loads((tiny_data / "data.json").read_text())
    with_image = [record for record in records if "image" in record]
    text_only = [record for record in records if "image" not in record]
    order = []
    for start in range(0, len(with_image), 2):
        order += [*with_image[start : start + 2], *(text_only * 4)[start : start + 2]]
    path = tmp_path_factory.mktemp("mixed") / "mixed.json"
    path.write_text(json.dumps(order))
    return path


@pytest.fixture(scope="module")
def projector(tmp_path_factory):
    """The same start for all: ZeRO-3 draws other random numbers while it loads a model."""
    torch.manual_seed(0)
    shapes = {"0.weight": (32, 32), "0.bias": (32,), "2.weight": (32, 32), "2.bias": (32,)}
    state = {f"model.mm_projector.{k}": 0.1 * torch.randn(v) for k, v in shapes.items()}
    path = tmp_path_factory.mktemp("start") / "start.bin"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def settings(mixed_data, projector):
    """Flags that all runs have in common: four samples a step."""
    return {
        "data_path": mixed_data,
        "pretrain_mm_mlp_adapter": projector,
        "train_sampling_strategy": "sequential",
        "learning_rate": 1e-3,
        "max_steps": NUM_STEPS,
        "save_steps": 10,
        "bf16": False,
    }


@pytest.fixture(scope="module")
def one_process(make_flags, settings, tmp_path_factory):
    """Folder of a run by one process: `one_process()`, or `one_process(lora_enable=True, ...)`."""
    runs = {}

    def run(**stage):
        key = json.dumps(stage, sort_keys=True)
        if key not in runs:
            runs[key] = tmp_path_factory.mktemp("one")
            launch(
                1,
                make_flags(
                    **settings, **stage, output_dir=runs[key], per_device_train_batch_size=4
                ),
            )
        return runs[key]

    return run


def launch(num_ranks, flags):
    """Train in processes of their own; returns what they wrote to standard error."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable]
    if num_ranks > 1:
        command += ["-m", "torch.distributed.run", "--nproc_per_node", str(num_ranks)]
        command += ["--master_port", str(port)]
    done = subprocess.run(
        [*command, "-m", "llava.train.train", *flags],
        cwd=ROOT,
        env={**os.environ, "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )
    assert done.returncode == 0, done.stderr[-4000:]


def losses(folder):
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry]


def answer(folder):
    """Sixteen tokens that a saved model writes, in one process."""
    tokenizer, model, _, _ = load_pretrained_model(str(folder), None, "llava", device="cpu")
    ids = tokenizer("USER: Which colour is it? ASSISTANT:", return_tensors="pt").input_ids
    return model.generate(ids, do_sample=False, max_new_tokens=16)[0].tolist()


@pytest.mark.parametrize("mode", MODES)
def test_two_ranks_learn_what_one_process_learns(mode, one_process, make_flags, settings, tmp_path):
    if "deepspeed" in MODES[mode]:
        pytest.importorskip("deepspeed")
    one = one_process()
    flags = make_flags(
        **settings, **MODES[mode], output_dir=tmp_path, per_device_train_batch_size=2
    )
    launch(2, flags)
    assert len(losses(tmp_path)) == NUM_STEPS
    assert losses(tmp_path) == pytest.approx(losses(one), abs=1e-4)
    left, right = (load_file(folder / "model.safetensors") for folder in (one, tmp_path))
    if mode == "fsdp2":  # hides the frozen tower, as in LLaVA: the checkpoint only names it
        left = {key: value for key, value in left.items() if "vision_tower" not in key}
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert torch.allclose(value, right[key], atol=1e-4), key
    assert answer(tmp_path) == answer(one)

    # a run that was killed after its first checkpoint goes on
    for path in tmp_path.iterdir():
        if path.is_file():
            path.unlink()
    (tmp_path / f"checkpoint-{NUM_STEPS}").rename(tmp_path / "gone")
    launch(2, flags)
    again = load_file(tmp_path / "model.safetensors")
    for key, value in right.items():
        assert torch.allclose(value, again[key], atol=1e-5), key


@pytest.mark.parametrize("mode", ["ddp", "zero3", "fsdp2"])
def test_the_projector_stage_saves_the_projector(mode, one_process, make_flags, settings, tmp_path):
    if "deepspeed" in MODES[mode]:
        pytest.importorskip("deepspeed")
    stage = {"tune_mm_mlp_adapter": True}
    one = read_tensors(one_process(**stage) / "mm_projector.bin")
    launch(
        2,
        make_flags(
            **settings, **stage, **MODES[mode], output_dir=tmp_path, per_device_train_batch_size=2
        ),
    )
    two = read_tensors(tmp_path / "mm_projector.bin")
    assert one.keys() == two.keys() and not (tmp_path / "model.safetensors").exists()
    for key, value in one.items():
        assert torch.allclose(value, two[key], atol=1e-4), key


@pytest.mark.parametrize("mode", ["ddp", "zero3"])
def test_lora_saves_adapters_and_the_projector(mode, one_process, make_flags, settings, tmp_path):
    pytest.importorskip("peft")
    if "deepspeed" in MODES[mode]:
        pytest.importorskip("deepspeed")
    # adapters begin at random, and ZeRO-3 draws other numbers: their product begins at zero
    stage = {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "lora_dropout": 0.0}
    one = one_process(**stage)
    launch(
        2,
        make_flags(
            **settings, **stage, **MODES[mode], output_dir=tmp_path, per_device_train_batch_size=2
        ),
    )
    assert losses(tmp_path)[0] == pytest.approx(losses(one)[0], abs=1e-4)
    for name in ("adapter_model.safetensors", "non_lora_trainables.bin"):
        before, after = read_tensors(one / name), read_tensors(tmp_path / name)
        assert before.keys() == after.keys()
        assert all(before[key].shape == after[key].shape for key in before)


def test_accumulated_steps_are_larger_batches(one_process, make_flags, settings, tmp_path):
    launch(
        2,
        make_flags(
            **settings,
            output_dir=tmp_path,
            per_device_train_batch_size=1,
            gradient_accumulation_steps=2,
        ),
    )
    assert losses(tmp_path) == pytest.approx(losses(one_process()), abs=1e-4)
