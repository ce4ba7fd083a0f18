"""What a training on a mixture logs: metrics per language and instruction, and of the machine."""

import json
import math

import pytest

from llava.train.metrics import METRICS_FILE, read_metrics


def entries(folder, key):
    return [line for line in read_metrics(folder / METRICS_FILE) if key in line]


def test_metrics_per_language_and_instruction(run_lrm):
    out = run_lrm(max_steps=6, group_steps=3)
    logged = entries(out, "loss/hr")
    assert [line["step"] for line in logged] == [3, 6]
    names = {key.removeprefix("loss/") for line in logged for key in line if "loss/" in key}
    assert {"en", "hr", "zh", "mvqa", "epvqa", "bvqa", "hr/mvqa"} <= names
    for line in logged:
        languages = [key for key in line if key in ("tokens/en", "tokens/hr", "tokens/zh")]
        tokens = sum(line[key] for key in languages)
        mean = sum(line[k.replace("tokens", "loss")] * line[k] for k in languages) / tokens
        steps = [e["loss"] for e in entries(out, "loss") if line["step"] - 3 < e["step"]]
        # those are means over tokens of a step, so near the mean over tokens of three
        assert min(steps[:3]) <= mean <= max(steps[:3])
        assert 0 <= line["accuracy/hr"] <= 1
        # the words have more bytes than characters
        assert line["loss_per_byte/zh"] < line["loss_per_character/zh"]


def test_metrics_are_the_same_however_a_step_is_dealt(run_lrm, tmp_path):
    settings = {"max_steps": 2, "group_steps": 2, "length_window": 0, "learning_rate": 1e-3}
    whole = entries(run_lrm(output_dir=tmp_path / "a", **settings), "loss/hr")[-1]
    dealt = entries(
        run_lrm(
            output_dir=tmp_path / "b",
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            **settings,
        ),
        "loss/hr",
    )[-1]
    packed = entries(run_lrm(output_dir=tmp_path / "c", packing=True, **settings), "loss/hr")[-1]
    names = [key for key in whole if "/" in key]
    assert names and [key for key in dealt if "/" in key] == names
    for other in (dealt, packed):
        assert {k: other[k] for k in names} == pytest.approx({k: whole[k] for k in names}, abs=1e-4)


def test_metrics_of_the_machine(run_lrm):
    out = run_lrm(max_steps=3, peak_tflops=0.1)
    for line in entries(out, "loss"):
        assert line["tokens_per_second"] > 0
        assert 0 <= line["padding_share"] < 1
        assert line["mfu"] == pytest.approx(line["tflops_per_device"] / 0.1)
        assert 0 <= line["data_wait_share"] <= 1
        assert line["memory_gib"] > 0
        assert math.isfinite(line["grad_norm"])


def test_packing_has_no_padding(run_lrm):
    out = run_lrm(max_steps=2, packing=True)
    assert all(line["padding_share"] == 0 for line in entries(out, "loss"))


def test_watching_does_not_change_what_is_learnt(run_lrm, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    from llava.train.metrics import WatchedTrainer

    seen = load_file(run_lrm(output_dir=tmp_path / "a", max_steps=3) / "model.safetensors")
    monkeypatch.setattr(WatchedTrainer, "_measure", lambda *args: None)
    unseen = load_file(run_lrm(output_dir=tmp_path / "b", max_steps=3) / "model.safetensors")
    assert all((value == unseen[name]).all() for name, value in seen.items())


def test_tensorboard_has_the_metrics(run_lrm, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_lrm(max_steps=2, group_steps=1, report_to="tensorboard", logging_dir=tmp_path / "board")
    events = EventAccumulator(str(tmp_path / "board"))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert {"train/loss", "train/loss/hr", "train/accuracy/mvqa", "train/padding_share"} <= {*tags}


def test_wandb_gets_the_metrics(run_lrm, monkeypatch):
    """W&B takes what transformers' callback hands it; nothing is sent."""
    from transformers.integrations import WandbCallback, integration_utils

    handed = []
    monkeypatch.setattr(integration_utils, "is_wandb_available", lambda: True)
    monkeypatch.setattr(WandbCallback, "__init__", lambda self: None)
    monkeypatch.setattr(WandbCallback, "setup", lambda self, *args, **kwargs: None)
    for event in ("on_train_begin", "on_train_end", "on_save", "on_predict"):
        monkeypatch.setattr(WandbCallback, event, lambda self, *args, **kwargs: None)

    def on_log(self, args, state, control, model=None, logs=None, **kwargs):
        handed.append(json.loads(json.dumps(logs)))

    monkeypatch.setattr(WandbCallback, "on_log", on_log)
    run_lrm(max_steps=1, report_to="wandb")
    assert "loss/hr" in handed[0] or "loss/en" in handed[0]
    assert "tokens_per_second" in handed[0]
