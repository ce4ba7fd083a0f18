"""Several processes answer together, and their files are those of one."""

import dataclasses
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from toy_benchmark import FakeAnswerer

from lrm_ext.evaluate.runner import EvalRanks, gather_parts, run_evaluation


@dataclasses.dataclass(frozen=True)
class Together(EvalRanks):
    """A rank in a thread."""

    all_here: threading.Barrier | None = None

    def barrier(self):
        self.all_here.wait(timeout=60)


def files(config):
    return {
        path.relative_to(config.predictions_dir).as_posix(): path.read_bytes()
        for path in config.predictions_dir.glob("**/*.jsonl")
    }


def run(config):
    run_evaluation(config, FakeAnswerer)


def run_together(config, world_size):
    """Run ranks side by side; return what each was asked."""
    answerers = [FakeAnswerer() for _ in range(world_size)]
    all_here = threading.Barrier(world_size)

    def run_rank(rank):
        ranks = Together(rank, world_size, all_here=all_here)
        run_evaluation(config, lambda: answerers[rank], ranks)

    with ThreadPoolExecutor(world_size) as pool:
        list(pool.map(run_rank, range(world_size)))
    return [[r for batch in answerer.batches for r in batch] for answerer in answerers]


@pytest.mark.parametrize("world_size", [2, 3, 5])
def test_many_give_the_bytes_of_one(config, world_size):
    alone = dataclasses.replace(config, out_dir=config.model_path / "alone")
    run(alone)
    run_together(dataclasses.replace(config, batch_size=2), world_size)
    assert files(config) == files(alone)


def test_each_asks_its_share(config):
    config = dataclasses.replace(config, batch_size=1, blind=False, languages=("hr",))
    asked = run_together(config, 2)
    assert sorted(map(len, asked)) == [4, 5]
    assert not set(asked[0]) & set(asked[1])


def test_what_a_killed_run_left_is_used(config):
    config = dataclasses.replace(config, blind=False, languages=("hr",), batch_size=1)
    alone = dataclasses.replace(config, out_dir=config.model_path / "alone")
    run(alone)
    run(dataclasses.replace(config, limit=1))
    done = files(alone)["toy.hr.jsonl"].splitlines(keepends=True)
    part = config.predictions_dir / "parts" / "toy.hr.1.jsonl"
    part.parent.mkdir()
    part.write_bytes(b"".join(done[6:8]) + b'{"key": "half')
    missing = len(
        set(done) - {*files(config)["toy.hr.jsonl"].splitlines(keepends=True), *done[6:8]}
    )
    asked = run_together(config, 2)
    assert sum(map(len, asked)) == missing
    assert files(config) == files(alone)


def test_parts_are_put_together_once(config):
    run(config)
    before = files(config)
    folder = config.predictions_dir
    (folder / "parts").mkdir()
    (folder / "parts" / "toy.hr.1.jsonl").write_bytes(before["toy.hr.jsonl"])
    gather_parts(folder)
    assert files(config) == before


@pytest.mark.distributed
def test_two_processes(config, tmp_path):
    common = ["-m", "lrm_ext.cli", "eval", "--model", str(config.model_path), "--no-table"]
    common += ["--benchmarks", "toy", "--benchmark-dir", str(config.benchmark_dir)]
    common += ["--device", "cpu", "--max-new-tokens", "8", "--batch-size", "2", "--out"]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    for before, out in (([], "one"), (launch, "two")):
        command = [sys.executable, *before, *common, str(tmp_path / out)]
        subprocess.run(command, check=True, env=env, timeout=300)
    one, two = (
        {p.name: p.read_bytes() for p in (tmp_path / out / "predictions").glob("**/*.jsonl")}
        for out in ("one", "two")
    )
    assert one == two and len(one) == 4
