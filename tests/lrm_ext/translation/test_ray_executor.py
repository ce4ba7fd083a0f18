"""Several workers give the bytes that one gives, whatever dies on the way, and ask no text twice.

A cluster of two CPUs is started on this machine; without Ray these tests are skipped.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from fake_chat import Answer, ChatService

from llava.data.sample import Turn
from llava.errors import ConfigError, DataError
from lrm_ext.corpus.store import Corpus, CorpusRow, CorpusWriter
from lrm_ext.translation.cache import Cache
from lrm_ext.translation.engines.base import EngineError
from lrm_ext.translation.parts import PartStore
from lrm_ext.translation.ray_executor import RayExecutor
from lrm_ext.translation.runner import Job, translate_corpus

ray = pytest.importorskip("ray", reason="Ray is not installed (pip install 'lrm-llava[ray]')")

NUM_ROWS, PER_BATCH = 60, 6  # ten parts
# as a user's program would start a run that is killed later
DRIVER = """
import json, sys
from pathlib import Path
import ray
from lrm_ext.translation.ray_executor import RayExecutor
from lrm_ext.translation.runner import Job, translate_corpus

folder, url, cache = sys.argv[1:]
options = json.loads(%r) | {"base_url": url}
job = Job(Path(folder), "cs", (("openai", options),), Path(cache))
ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20)
translate_corpus(job, RayExecutor(2))
"""
OPTIONS = {"model": "m", "timeout_s": "5"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    ray.init(
        address="local", num_cpus=2, include_dashboard=False, object_store_memory=100 << 20,
        logging_level="ERROR",
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture
def service(serve: Callable[[ChatService], ChatService]) -> ChatService:
    return serve(ChatService({}))


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


def job(corpus: Path, service: ChatService, **options: str) -> Job:
    chosen = {**OPTIONS, "base_url": service.url, **options}
    return Job(corpus, "cs", (("openai", chosen),), corpus.with_suffix(".sqlite"))


def content(corpus: Path) -> dict[str, bytes]:
    files = (path for path in corpus.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(corpus)): path.read_bytes() for path in sorted(files)}


def by_one(tmp_path: Path, service: ChatService) -> dict[str, bytes]:
    """What one process makes of it, with another cache."""
    corpus = make_corpus(tmp_path / "one")
    translate_corpus(job(corpus, service))
    found = {name: data for name, data in content(corpus).items() if not name.startswith("text/.")}
    service.answered.clear()
    return found


def same(corpus: Path, expected: dict[str, bytes]) -> bool:
    found = content(corpus)
    return {name: found[name] for name in found if not name.startswith("text/.")} == expected


def test_two_workers_give_the_same_bytes_and_ask_once(tmp_path, cluster, service):
    expected = by_one(tmp_path, service)
    service.wait_s = 0.05  # so that both are at work at once
    corpus = make_corpus(tmp_path / "many")
    done: list[tuple[int, int]] = []
    result = translate_corpus(
        job(corpus, service), RayExecutor(2), lambda *counts: done.append(counts)
    )
    assert same(corpus, expected)
    assert done == [(n, 10) for n in range(11)]
    assert set(service.answered.values()) == {1}
    assert service.most_under_way > 1
    assert result.usage.requests > 0
    # "[...]" is no Czech: that the checks say so shows that workers run them
    assert Corpus.open(corpus).statuses("cs")["rejected"] == result.counts["rejected"] > 0
    # the ledger of the shared file is complete
    cache = Cache(corpus.with_suffix(".sqlite"))
    assert cache.spent("openai", "cs") == result.usage
    cache.close()


def test_what_a_worker_raises_is_raised(tmp_path, cluster, service):
    corpus = make_corpus(tmp_path / "c")
    service.behave = lambda number, segments: Answer(401, b'{"error": "no such key"}')
    with pytest.raises(EngineError, match="401"):
        translate_corpus(job(corpus, service), RayExecutor(2))
    # and what was missing is done by the next run
    service.behave = lambda number, segments: None
    translate_corpus(job(corpus, service), RayExecutor(1))
    assert sum(Corpus.open(corpus).statuses("cs").values()) > 0


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced(tmp_path, cluster, service):
    expected = by_one(tmp_path, service)
    corpus = make_corpus(tmp_path / "c")
    service.wait_s = 0.1
    killed: list[int] = []

    def progress(done: int, total: int) -> None:
        if done == 3 and not killed:
            pids = workers()
            os.kill(pids[0], signal.SIGKILL)
            killed.append(pids[0])

    translate_corpus(job(corpus, service), RayExecutor(2), progress)
    assert killed and same(corpus, expected)
    # what was answered to the one that died, and perhaps not kept, may be asked once more
    assert max(service.answered.values()) <= 2


@pytest.mark.slow
def test_a_driver_that_is_killed_goes_on_where_it_was(tmp_path, service):
    expected = by_one(tmp_path, service)
    corpus = make_corpus(tmp_path / "c")
    parts = corpus / "text" / ".cs.work" / "parts"
    script = tmp_path / "driver.py"
    script.write_text(DRIVER % json.dumps(OPTIONS), encoding="utf-8")
    command = [sys.executable, script, corpus, service.url, corpus.with_suffix(".sqlite")]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    service.wait_s = 0.1
    for wanted in (2, 5):
        process = subprocess.Popen(list(map(str, command)), env=environment)
        deadline = time.monotonic() + 120
        while len(list(parts.glob("*.arrow"))) < wanted:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.kill()
        process.wait()
    kept = {path.name: path.stat().st_mtime_ns for path in parts.glob("*.arrow")}
    assert 5 <= len(kept) < 10
    store = PartStore(Corpus.open(corpus), "cs", {})
    assert len(store.missing()) == 10 - len(kept)
    subprocess.run(list(map(str, command)), env=environment, check=True)
    assert same(corpus, expected)
    # twice killed, with two workers each that had one request of theirs under way
    assert sum(count - 1 for count in service.answered.values()) <= 2 * 2 * 8


def workers() -> list[int]:
    """Process numbers of the workers of this test's cluster."""
    below = psutil.Process().children(recursive=True)
    return sorted(p.pid for p in below if p.name().startswith("ray::Worker"))


def test_more_workers_than_fit_are_refused(tmp_path, cluster, service):
    corpus = make_corpus(tmp_path / "c")
    with pytest.raises(ConfigError, match=r"3 workers of one CPU and 0 GPUs each do not fit .*2 C"):
        translate_corpus(job(corpus, service), RayExecutor(3))
    with pytest.raises(ConfigError, match=r"1 workers of one CPU and 1 GPUs each do not fit"):
        translate_corpus(job(corpus, service), RayExecutor(None, gpus_per_worker=1))
    assert not service.requests


def test_a_full_disk_is_named(tmp_path, cluster, service, monkeypatch):
    """A worker that cannot write its part says so to the user."""
    corpus = make_corpus(tmp_path / "c")

    def progress(done: int, total: int) -> None:
        parts = corpus / "text" / ".cs.work" / "parts"
        if done == 0:
            parts.rmdir()
            parts.write_text("in the way")

    with pytest.raises(DataError, match="cannot be written"):
        translate_corpus(job(corpus, service), RayExecutor(1), progress)
