"""Workers give the bytes that one process gives, whatever dies on the way, and ask no text twice.

A cluster of two CPUs is started on this machine; without Ray these tests are skipped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from llava.data.sample import Turn
from llava.errors import ConfigError, DataError
from lrm_ext.corpus.store import Corpus, CorpusRow
from lrm_ext.corpus.writer import CorpusWriter
from lrm_ext.translate.cache import Cache
from lrm_ext.translate.engines.base import EngineError, engines_of_other_packages
from lrm_ext.translate.ray_executor import RayWorkers
from lrm_ext.translate.runner import Job, PartStore, translate_corpus

ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'lrm-llava[ray]')")

NUM_ROWS, PER_BATCH = 60, 6  # ten parts
# another package's engine: slow, and it writes down what it is asked
ENGINE = """
import os, time
from dataclasses import dataclass
from lrm_ext.translate.engines.base import EngineError, EngineSpec, Outcome, Reply, Usage

@dataclass(frozen=True)
class Options:
    log: str
    wait_s: float = 0.0
    fails: bool = False

class Slow:
    name, version, context, mask_styles = "slow", "1", "none", ("word",)
    is_table = is_sentence_level = False
    options = {}

    def __init__(self, options):
        self._options = options

    def translate(self, segments):
        for i, segment in enumerate(segments):
            if self._options.fails:
                raise EngineError("slow: out of order")
            time.sleep(self._options.wait_s)
            with open(self._options.log, "a") as file:
                file.write(f"{os.getpid()} {segment.text!r}\\n")
            yield Reply((Outcome(i, f"[{segment.text}]"),), Usage(1, len(segment.text)))

    def close(self):
        pass

SPEC = EngineSpec("slow", "a test", "none", "free", Options,
                  lambda options, source, target, ledger: Slow(options), lambda: ("cs",))
"""
# as a user's program would start a run that is killed later
DRIVER = """
import sys
from pathlib import Path
import ray
from lrm_ext.translate.ray_executor import RayWorkers
from lrm_ext.translate.runner import Job, translate_corpus

folder, log, cache = sys.argv[1:]
job = Job(Path(folder), "cs", (("slow", {"log": log, "wait_s": "0.02"}),), Path(cache))
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20)
translate_corpus(job, RayWorkers(2))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with an installed package that offers the engine."""
    folder = tmp_path_factory.mktemp("site")
    (folder / "slow_engine.py").write_text(ENGINE, encoding="utf-8")
    info = folder / "slow_engine-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: slow-engine\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[lrm_llava.engines]\nslow = slow_engine:SPEC\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
        patch.setenv("PYTHONPATH", path)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        engines_of_other_packages.cache_clear()
        yield folder
    engines_of_other_packages.cache_clear()


@pytest.fixture(scope="module")
def cluster(package: Path) -> Iterator[None]:
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20,
        logging_level="ERROR",
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that there is something to do for several workers, more than once."""
    monkeypatch.setattr("lrm_ext.translate.ray_executor.BLOCK_SEGMENTS", 4)
    monkeypatch.setattr("lrm_ext.translate.ray_executor.ROWS_PER_WORKER", 2 * PER_BATCH)


def make_corpus(path: Path) -> Path:
    """Small parts; some texts occur in all of them."""
    with CorpusWriter(path, [], rows_per_batch=PER_BATCH, rows_per_shard=5 * PER_BATCH) as writer:
        for i in range(NUM_ROWS):
            question = "What is there on the table?" if i % 2 else f"What is item {'abcd'[i % 4]}?"
            turns = (
                Turn("human", question),
                Turn("gpt", f"There is a {'red blue green'.split()[i % 3]} thing, and thing {i}."),
                Turn("human", "Is there anything else of interest?"),
                Turn("gpt", "There is nothing else that I can see."),
            )
            writer.append(CorpusRow(str(i), None, None, None, i % 7 != 3, turns), {})
    return path


def job(corpus: Path, **options: str) -> Job:
    chosen = {"log": str(corpus.with_suffix(".log")), **options}
    return Job(corpus, "cs", (("slow", chosen),), corpus.with_suffix(".sqlite"))


def asked(corpus: Path) -> Counter[str]:
    """How often each text was asked."""
    lines = corpus.with_suffix(".log").read_text(encoding="utf-8").splitlines()
    return Counter(line.split(" ", 1)[1] for line in lines)


def content(corpus: Path) -> dict[str, bytes]:
    files = (path for path in corpus.rglob("*") if path.is_file() and path.suffix != ".lock")
    found = {str(path.relative_to(corpus)): path.read_bytes() for path in sorted(files)}
    return {name: data for name, data in found.items() if not name.startswith("text/.")}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, package: Path) -> dict[str, bytes]:
    """What one process makes of it, with another cache."""
    corpus = make_corpus(tmp_path_factory.mktemp("one") / "one")
    translate_corpus(job(corpus))
    return content(corpus)


def test_two_workers_give_the_same_bytes_and_ask_once(tmp_path, cluster, expected):
    corpus = make_corpus(tmp_path / "many")
    done: list[tuple[int, int]] = []
    # slow enough that both are at work at once
    result = translate_corpus(
        job(corpus, wait_s="0.02"), RayWorkers(2), lambda *counts: done.append(counts)
    )
    assert content(corpus) == expected
    assert done == [(n, 10) for n in range(11)]
    assert set(asked(corpus).values()) == {1}
    lines = corpus.with_suffix(".log").read_text(encoding="utf-8").splitlines()
    assert len({line.split(" ", 1)[0] for line in lines} - {str(os.getpid())}) == 2
    # "[...]" is no Czech: the checks say so
    assert Corpus.open(corpus).statuses("cs")["rejected"] == result.counts["rejected"] > 0
    cache = Cache(corpus.with_suffix(".sqlite"))
    assert cache.spent("slow", "cs") == result.usage
    assert result.usage.requests == sum(asked(corpus).values())
    cache.close()


def test_what_a_worker_raises_is_raised(tmp_path, cluster, expected):
    corpus = make_corpus(tmp_path / "c")
    with pytest.raises(EngineError, match="slow: out of order"):
        translate_corpus(job(corpus, fails="yes"), RayWorkers(2))
    # and what was missing is done by the next run
    translate_corpus(job(corpus), RayWorkers(1))
    assert content(corpus) == expected


def test_an_engine_that_asks_a_service_stays_here(tmp_path):
    class Service:
        is_table = False

    workers = RayWorkers(2)
    service = Service()
    assert workers.wrap(service, "openai", {}, "cs") is service  # type: ignore[arg-type]
    assert "actors" not in vars(workers)


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(tmp_path, cluster, expected):
    corpus = make_corpus(tmp_path / "c")
    killed: list[int] = []

    def progress(done: int, total: int) -> None:
        if done == 3 and not killed:
            below = psutil.Process().children(recursive=True)
            killed.append(min(p.pid for p in below if p.name().startswith("ray::Worker")))
            os.kill(killed[0], signal.SIGKILL)

    translate_corpus(job(corpus, wait_s="0.05"), RayWorkers(2), progress)
    assert killed and content(corpus) == expected
    # what was answered to the one that died, and perhaps not kept, may be asked once more
    assert max(asked(corpus).values()) <= 2


@pytest.mark.slow
def test_a_driver_that_is_killed_goes_on_where_it_was(tmp_path, package, expected):
    corpus = make_corpus(tmp_path / "c")
    parts = corpus / "text" / ".cs.work" / "parts"
    script = tmp_path / "driver.py"
    script.write_text(DRIVER, encoding="utf-8")
    files = (corpus, corpus.with_suffix(".log"), corpus.with_suffix(".sqlite"))
    command = [sys.executable, str(script), *map(str, files)]
    process = subprocess.Popen(command)
    deadline = time.monotonic() + 120
    while not (corpus.with_suffix(".log").exists() and sum(asked(corpus).values()) > 20):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert PartStore(Corpus.open(corpus), "cs", {}).missing()
    subprocess.run(command, check=True)
    assert content(corpus) == expected and parts.parent.exists() is False
    # two workers, each of which had one block under way
    assert sum(count - 1 for count in asked(corpus).values()) <= 2 * 256


def test_more_workers_than_fit_are_refused(tmp_path, cluster):
    corpus = make_corpus(tmp_path / "c")
    with pytest.raises(ConfigError, match=r"3 workers of one CPU and 0 GPUs each do not fit .*2 C"):
        translate_corpus(job(corpus), RayWorkers(3))
    with pytest.raises(ConfigError, match=r"1 workers of one CPU and 1 GPUs each do not fit"):
        translate_corpus(job(corpus), RayWorkers(None, gpus_per_worker=1))
    assert not corpus.with_suffix(".log").exists()


def test_a_full_disk_is_named(tmp_path, cluster):
    corpus = make_corpus(tmp_path / "c")

    def progress(done: int, total: int) -> None:
        parts = corpus / "text" / ".cs.work" / "parts"
        if done == 0:
            parts.rmdir()
            parts.write_text("in the way")

    with pytest.raises(DataError, match="cannot be written"):
        translate_corpus(job(corpus), RayWorkers(1), progress)
