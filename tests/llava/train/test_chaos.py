"""kill -9 at random moments: the same command goes on by itself and ends with the same weights.

`pytest -m chaos` kills twenty times for each stage; by default it is twice for one of them. The
processes are forked from one that has imported everything, so that a kill seldom falls into
imports.
"""

import functools
import json
import multiprocessing
import os
import random
import signal
import sys
import time

import pytest
import torch
from safetensors.torch import load_file

from llava.model.multimodal_projector.builder import read_tensors
from llava.train.checkpoint import problem_of
from llava.train.metrics import read_metrics

SETTINGS = {"max_steps": 12, "save_steps": 1, "save_total_limit": 3, "warmup_steps": 3}
STAGES = {"projector": {"tune_mm_mlp_adapter": True}, "whole": {"group_by_modality_length": True}}


def train_here(args, log_path):
    """Run in a process of its own: one training, with its output in a file."""
    from llava.train.train import main

    with open(log_path, "a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    torch.set_num_threads(1)
    sys.argv = ["train", *args]
    sys.exit(main())


@pytest.fixture(scope="module")
def forks():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["llava.train.train", "llava.model.builder"])
    imports = context.Process(target=len, args=((),))  # ends when all is imported
    imports.start()
    imports.join()
    return context


def start(forks, args, folder):
    process = forks.Process(target=train_here, args=(args, folder.with_suffix(".log")))
    process.start()
    return process


def finish(process, folder):
    process.join(240)
    assert process.exitcode == 0, folder.with_suffix(".log").read_text()[-3000:]


def final_weights(folder, stage):
    if stage == "projector":
        return read_tensors(folder / "mm_projector.bin")
    return load_file(folder / "model.safetensors")


def last_losses(folder):
    """The loss of each step, of the last attempt that made it; all attempts must agree."""
    found = {}
    for line in read_metrics(folder / "metrics.jsonl"):
        if "loss" in line:
            assert found.setdefault(line["step"], line["loss"]) == line["loss"], line
    return found


def kill_and_go_on(forks, make_args, folder, stage, num_kills, seed):
    """Kill trainings at random moments until so many were hit.

    Returns:
        How many kills fell into the writing of a checkpoint.
    """
    rng = random.Random(seed)
    straight = folder / "straight"
    straight.parent.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    finish(start(forks, make_args(output_dir=straight), straight), straight)
    duration = time.monotonic() - began
    expected, losses = final_weights(straight, stage), last_losses(straight)
    kills = in_save = run = 0
    while kills < num_kills:
        killed = folder / f"run{run}"
        began = time.monotonic()
        process = start(forks, make_args(output_dir=killed), killed)
        process.join(rng.uniform(0.2, 1.0) * duration)
        if process.exitcode is not None:  # the machine is faster now: kill sooner
            duration = min(duration, time.monotonic() - began)
        else:
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            kills += 1
            in_save += (killed / "tmp-saving").exists()
            if kills < num_kills:
                continue
            process = start(forks, make_args(output_dir=killed), killed)
        finish(process, killed)
        found = final_weights(killed, stage)
        assert found.keys() == expected.keys()
        assert all(torch.equal(value, found[name]) for name, value in expected.items())
        assert last_losses(killed) == losses
        assert problem_of(killed) is None
        assert not (killed / "tmp-saving").exists()
        run += 1
    return in_save


def test_two_kills(forks, make_flags, tmp_path):
    make = functools.partial(make_flags, **{**SETTINGS, "max_steps": 5}, **STAGES["whole"])
    kill_and_go_on(forks, make, tmp_path, "whole", num_kills=2, seed=0)


@pytest.mark.chaos
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("stage", STAGES)
def test_twenty_kills(forks, make_flags, tmp_path, stage, record_property):
    make = functools.partial(make_flags, **SETTINGS, **STAGES[stage])
    in_save = kill_and_go_on(forks, make, tmp_path, stage, num_kills=20, seed=1)
    record_property("kills while a checkpoint was written", in_save)
    (tmp_path / "kills.json").write_text(json.dumps({"in a save": in_save}))
