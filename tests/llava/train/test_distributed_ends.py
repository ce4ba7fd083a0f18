"""How two ranks end together: one dies, one gets a signal or a bad loss, or both are killed."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file

from llava.train.metrics import read_metrics

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[3]
MARK = "LRM_TEST_OF"  # in the environment of the processes that a test starts
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
NUM_STEPS = 8
SETTINGS = {
    "train_sampling_strategy": "sequential",
    "per_device_train_batch_size": 2,
    "learning_rate": 1e-3,
    "max_steps": NUM_STEPS,
    "save_steps": 2,
    "ddp_timeout": 120,
}

# something happens to the second rank in its fifth step
PROGRAM = """
import os, signal, sys
from transformers import Trainer
from llava.train.train import main
plain = Trainer.compute_loss
def compute_loss(self, *args, **kwargs):
    loss = plain(self, *args, **kwargs)
    if self.args.process_index == 1 and self.state.global_step == 4 and self.model.training:
        {happens}
    return loss
Trainer.compute_loss = compute_loss
sys.exit(main())
"""


@pytest.fixture
def start_two(make_flags, tmp_path):
    """Start two ranks, `start_two("pass")`; returns the launcher's process."""
    started = []

    def start(happens="pass", **changes):
        program = tmp_path / "program.py"
        program.write_text(PROGRAM.format(happens=happens))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port"]
        flags = make_flags(**{**SETTINGS, "output_dir": tmp_path / "out", **changes})
        process = subprocess.Popen(
            [sys.executable, *launcher, str(port), str(program), *flags],
            cwd=ROOT,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "PYTHONPATH": str(ROOT),
                MARK: str(tmp_path),
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    kill_all(tmp_path)
    for process in started:
        process.wait()


def kill_all(mark):
    """Kill the launcher and the ranks, which have sessions of their own."""
    for environ in Path("/proc").glob("[0-9]*/environ"):
        try:
            is_ours = f"{MARK}={mark}\0".encode() in environ.read_bytes()
        except OSError:
            continue
        if is_ours:
            os.kill(int(environ.parent.name), signal.SIGKILL)


@pytest.fixture
def run_two(start_two):
    """Train on two ranks; returns the exit code and what was said."""

    def run(happens="pass", **changes):
        process = start_two(happens, **changes)
        _, said = process.communicate(timeout=150)
        return process.returncode, said

    return run


def losses(folder):
    """Loss by step; attempts that made the same step again must agree to 1e-5."""
    found = {}
    for line in read_metrics(folder / "metrics.jsonl"):
        if "loss" in line:
            before = found.setdefault(line["step"], line["loss"])
            assert before == pytest.approx(line["loss"], abs=1e-5)
    return found


def test_a_bad_loss_on_one_rank_ends_the_other_with_its_reason(run_two):
    code, said = run_two("loss = loss * float('nan')")
    assert code != 0
    assert "the loss is nan in step 5" in said
    assert "another process of this run ended" in said
    # torchrun's summary
    assert re.search(r"Root Cause.*the loss is nan in step 5", said, re.DOTALL)


def test_a_rank_that_is_killed_ends_the_other(start_two):
    process = start_two("os.kill(os.getpid(), signal.SIGKILL)")
    _, said = process.communicate(timeout=150)
    assert process.returncode != 0
    assert "another process of this run ended" in said
    assert re.search(r"exitcode\s*: -9", said)


def test_a_signal_to_one_rank_saves_and_ends_both(run_two, tmp_path):
    run_two(output_dir=tmp_path / "straight")
    code, said = run_two("os.kill(os.getpid(), signal.SIGTERM)")
    assert code != 0
    assert "stopped the run after step 5; the same command goes on from" in said
    assert (tmp_path / "out" / "checkpoint-5" / "COMPLETE").is_file()
    code, said = run_two()
    assert code == 0, said[-3000:]
    assert "going on from" in said
    check_same(tmp_path)


def test_a_bad_step_is_left_out_by_both(run_two, tmp_path):
    code, said = run_two("loss = loss * float('nan')", max_skipped_steps=1)
    assert code == 0, said[-3000:]
    assert "step 5 is left out" in said
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert all(value.isfinite().all() for value in weights.values())


def test_both_are_killed_at_random_moments(start_two, run_two, tmp_path):
    run_two(output_dir=tmp_path / "straight")
    rng = random.Random(0)
    for _ in range(2):
        process = start_two()
        before = len(read_metrics(tmp_path / "out" / "metrics.jsonl"))
        while process.poll() is None and before == len(
            read_metrics(tmp_path / "out" / "metrics.jsonl")
        ):
            time.sleep(0.05)
        time.sleep(rng.uniform(0, 0.5))
        kill_all(tmp_path)
        process.wait()
    code, said = run_two()
    assert code == 0, said[-3000:]
    check_same(tmp_path)


def check_same(folder):
    left, right = losses(folder / "straight"), losses(folder / "out")
    assert list(left) == list(range(1, NUM_STEPS + 1))
    assert right == pytest.approx(left, abs=1e-5)
    state = json.loads((folder / "out" / "trainer_state.json").read_text())
    assert state["global_step"] == NUM_STEPS
