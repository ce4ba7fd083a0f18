"""Bad losses stop a run or are left out and counted; signals save and end it."""

import os
import signal

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from llava.errors import ConfigError, UserError
from llava.train.arguments import parse_arguments
from llava.train.llava_trainer import STOPPED_EXIT_CODE, RunStoppedError
from llava.train.metrics import read_metrics
from llava.train.train import main


@pytest.fixture
def spoil(monkeypatch):
    """Multiply the loss of some steps (counted from 0): `spoil({3: float("nan")})`."""
    plain = Trainer.compute_loss

    def use(factors):
        def spoilt(self, *args, **kwargs):
            return plain(self, *args, **kwargs) * factors.get(self.state.global_step, 1.0)

        monkeypatch.setattr(Trainer, "compute_loss", spoilt)

    return use


SEQUENTIAL = {"train_sampling_strategy": "sequential", "save_steps": 100}


def test_the_samples_are_named(flags, run_train, spoil):
    spoil({1: float("inf")})
    with pytest.raises(UserError, match=r"loss is inf in step 2, samples s4, s5, s6, s7\."):
        run_train(flags(**SEQUENTIAL))


def test_a_bad_step_is_left_out_and_counted(flags, run_train, spoil, tmp_path, caplog):
    spoil({1: float("nan")})
    skip = {**SEQUENTIAL, "max_skipped_steps": 1, "lr_scheduler_type": "constant"}
    run_train(flags(max_steps=2, **skip))
    assert "step 2 is left out: the loss is not finite, samples s4, s5" in caplog.text
    assert "1 steps were left out" in caplog.text
    lines = read_metrics(tmp_path / "out" / "metrics.jsonl")
    assert lines[-1]["skipped_steps"] == 1
    one = tmp_path / "one"
    run_train(flags(max_steps=1, output_dir=one, **skip))
    left, right = (
        load_file(tmp_path / "out" / "model.safetensors"),
        load_file(one / "model.safetensors"),
    )
    assert all(torch.equal(value, right[name]) for name, value in left.items())


def test_too_many_bad_steps_end_the_run(flags, run_train, spoil):
    spoil({1: float("nan"), 3: float("nan")})
    with pytest.raises(UserError, match=r"step 4: the loss is not finite.*Bad steps so far: 2"):
        run_train(flags(**SEQUENTIAL, max_skipped_steps=1))


def test_a_gradient_that_is_not_finite_ends_the_run(flags, run_train, monkeypatch):
    plain = Trainer._clip_grad_norm
    monkeypatch.setattr(Trainer, "_clip_grad_norm", lambda *a: plain(*a) * float("inf"))
    with pytest.raises(UserError, match=r"step 1: the gradient's norm is inf"):
        run_train(flags(**SEQUENTIAL))


def test_a_spike_is_found(flags, run_train, spoil, caplog, tmp_path):
    spoil({17: 50.0})
    spiky = {"learning_rate": 1e-6, "max_steps": 18, **SEQUENTIAL}
    run_train(flags(**spiky))
    assert "left out" not in caplog.text
    said = r"step 18: the loss is .* times the median of the last 17 steps.*samples s"
    with pytest.raises(UserError, match=said):
        run_train(
            flags(**spiky, loss_spike_factor=4, output_dir=tmp_path / "watched"),
        )


def test_what_spikes_are_measured_against_is_in_the_checkpoint(flags, run_train, tmp_path, spoil):
    settings = {"learning_rate": 1e-6, "loss_spike_factor": 4, "save_steps": 17}
    settings["lr_scheduler_type"] = "constant"  # the length may change then
    run_train(flags(max_steps=17, **settings))
    spoil({17: 50.0})
    with pytest.raises(UserError, match="median of the last 17 steps"):
        run_train(flags(max_steps=18, **settings))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_skipped_steps": -1}, "expected 0 or more"),
        ({"loss_spike_factor": 0.5}, "expected 0 or more than 1"),
        ({"compile_layers": True, "torch_compile": True}, "--compile_layers"),
        ({"max_skipped_steps": 1, "fp16": True, "bf16": None, "use_cpu": None}, "--fp16"),
    ],
)
def test_settings_that_make_no_sense(flags, changes, said):
    with pytest.raises(ConfigError, match=said):
        parse_arguments(args=flags(**changes))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1"])
def test_a_signal_saves_and_ends(flags, run_train, tmp_path, monkeypatch, name):
    settings = {"max_steps": 6, "save_steps": 100}
    run_train(flags(output_dir=tmp_path / "straight", **settings))
    plain = Trainer.compute_loss

    def signalled(self, *args, **kwargs):
        if self.state.global_step == 2:
            os.kill(os.getpid(), getattr(signal, name))
        return plain(self, *args, **kwargs)

    handler = signal.getsignal(getattr(signal, name))
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "compute_loss", signalled)
        with pytest.raises(RunStoppedError, match=rf"{name} .* after step 3; .*checkpoint-3"):
            run_train(flags(**settings))
    assert signal.getsignal(getattr(signal, name)) == handler
    assert not (tmp_path / "out" / "model.safetensors").exists()
    run_train(flags(**settings))
    left, right = (load_file(tmp_path / n / "model.safetensors") for n in ("straight", "out"))
    assert all(torch.equal(value, right[key]) for key, value in left.items())


def test_exit_code_after_a_signal(caplog):
    def stopped():
        raise RunStoppedError("SIGTERM stopped the run")

    assert main(stopped) == STOPPED_EXIT_CODE == 75
    assert "SIGTERM stopped the run" in caplog.text


def test_out_of_memory_says_what_to_lower(flags, run_train, monkeypatch):
    def full(self, *args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(Trainer, "compute_loss", full)
    said = (
        r"out of memory in step 1, with 4 samples of \d+ to \d+ tokens, \d+ in all \(\d+ with "
        r"padding\), and 4 images of 16 positions each: CUDA out of memory. Tried to allocate "
        r"2.00 GiB.\nWhat helps: --per_device_train_batch_size 2 --gradient_accumulation_steps 2 "
        r".*--activation_checkpointing True.*--packing True.*--model_max_length is 256"
    )
    with pytest.raises(UserError, match=said):
        run_train(flags())


def test_another_runtime_error_is_left_alone(flags, run_train, monkeypatch):
    def broken(self, *args, **kwargs):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Trainer, "compute_loss", broken)
    with pytest.raises(RuntimeError, match="^shapes do not match$"):
        run_train(flags())
