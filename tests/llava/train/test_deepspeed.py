"""Two processes under ZeRO-3 learn what one process learns, on CPUs."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from llava.model.projector_file import read_tensors

pytest.importorskip("deepspeed")
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]


@pytest.fixture
def mixed_data(tiny_data, tmp_path):
    """In the first step the second rank gets text only, in the second step nearly."""
    records = json.loads((tiny_data / "data.json").read_text())
    with_image = [record for record in records if "image" in record]
    text_only = [record for record in records if "image" not in record]
    order = [*with_image[:2], *text_only[:2], with_image[2], *text_only[2:], with_image[3]]
    path = tmp_path / "mixed.json"
    path.write_text(json.dumps(order))
    return path


@pytest.fixture
def projector(tmp_path):
    """The same start for both: ZeRO-3 draws other random numbers while it loads a model."""
    torch.manual_seed(0)
    shapes = {"0.weight": (32, 32), "0.bias": (32,), "2.weight": (32, 32), "2.bias": (32,)}
    state = {f"model.mm_projector.{k}": 0.1 * torch.randn(v) for k, v in shapes.items()}
    torch.save(state, tmp_path / "start.bin")
    return tmp_path / "start.bin"


def launch(num_ranks, flags):
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


@pytest.mark.parametrize("stage", ["finetune", "pretrain"])
@pytest.mark.timeout(600)
def test_zero_3_agrees_with_one_process(flags, mixed_data, projector, tmp_path, stage):
    settings = {
        "data_path": mixed_data,
        "pretrain_mm_mlp_adapter": projector,
        "train_sampling_strategy": "sequential",
        "learning_rate": 1e-3,
        "max_steps": 4,
        "save_steps": 2,
        "tune_mm_mlp_adapter": stage == "pretrain",
        "bf16": False,
    }
    one, two = tmp_path / "one", tmp_path / "two"
    launch(1, flags(output_dir=one, per_device_train_batch_size=4, **settings))
    zero_3 = {"deepspeed": ROOT / "scripts" / "zero3.json", "per_device_train_batch_size": 2}
    launch(2, flags(output_dir=two, **zero_3, **settings))
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
    name = "mm_projector.bin"
    left, right = read_tensors(one / name), read_tensors(two / name)
    if stage == "finetune":
        left, right = (load_file(folder / "model.safetensors") for folder in (one, two))
    assert left.keys() == right.keys()
    for key, value in left.items():
        assert torch.allclose(value, right[key], atol=1e-4), key

    # a killed run of two ranks goes on
    for path in two.iterdir():
        if path.is_file():
            path.unlink()
    (two / "checkpoint-4").rename(tmp_path / "gone")
    launch(2, flags(output_dir=two, **zero_3, **settings))
    again = read_tensors(two / name)
    assert all(torch.equal(value, again[key]) for key, value in read_tensors_of(right).items())


def read_tensors_of(weights):
    return {key: value for key, value in weights.items() if "mm_projector" in key}
