"""A tiny LLaVA with random weights, and a small benchmark to ask it."""

import io
import shutil

import pytest
from rich.console import Console
from toy_benchmark import MODELS, write_benchmark

from lrm_ext.evaluate.runner import EvalConfig


@pytest.fixture
def benchmark_dir(tmp_path):
    return write_benchmark(tmp_path / "toy")


@pytest.fixture
def model_dir(tmp_path):
    """A copy of the golden model in a folder of its own, the tower beside it."""
    shutil.copytree(MODELS / "tiny-clip", tmp_path / "tiny-clip")
    shutil.copytree(MODELS / "tiny-llava", tmp_path / "model")
    for path in (tmp_path / "model", *(tmp_path / "model").iterdir()):
        path.chmod(0o755)
    return tmp_path / "model"


@pytest.fixture
def config(model_dir, benchmark_dir):
    return EvalConfig(
        model_path=model_dir,
        benchmarks=("toy",),
        benchmark_dir=benchmark_dir,
        batch_size=4,
        max_new_tokens=8,
        device="cpu",
    )


@pytest.fixture
def console():
    return Console(file=io.StringIO(), width=80)
