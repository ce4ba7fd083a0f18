"""Two processes log what one process logs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava.train.metrics import METRICS_FILE, read_metrics

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[3]


def last(folder, key):
    return [line for line in read_metrics(folder / METRICS_FILE) if key in line][-1]


def test_two_ranks_log_what_one_logs(run_lrm, tmp_path, monkeypatch):
    settings = {
        "length_window": 0,
        "max_steps": 2,
        "group_steps": 2,
        "learning_rate": 1e-3,
        "eval_share": 0.4,
        "eval_strategy": "steps",
        "eval_steps": 2,
        # twelve samples: no rank has to repeat one
        "per_device_eval_batch_size": 3,
    }
    alone = run_lrm(output_dir=tmp_path / "a", **settings)
    # the command line of the run above, on two ranks with half the samples each
    words = sys.argv[1:]
    for name, value in (("output_dir", tmp_path / "b"), ("per_device_train_batch_size", 2)):
        words[words.index(f"--{name}") + 1] = str(value)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command = [*launcher, "--standalone", "-m", "lrm_ext.training.train", *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    for key in ("loss/hr", "eval_loss/hr"):
        one, two = last(alone, key), last(tmp_path / "b", key)
        names = [name for name in one if "/" in name or name in ("eval_loss", "accuracy")]
        assert [name for name in two if "/" in name or name in ("eval_loss", "accuracy")] == names
        assert {n: two[n] for n in names} == pytest.approx({n: one[n] for n in names}, abs=1e-4)
    assert 0 < last(tmp_path / "b", "loss")["tokens_per_second"]
