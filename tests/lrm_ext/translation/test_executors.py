"""Executors as the command line names them, and what workers share, without a cluster."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llava.errors import ConfigError
from lrm_ext.cli import app
from lrm_ext.translation.cache import Answer
from lrm_ext.translation.engines.base import Usage
from lrm_ext.translation.ray_executor import CacheActor, RayExecutor
from lrm_ext.translation.runner import Job

RECORD = {
    "id": "a",
    "conversations": [
        {"from": "human", "value": "What is there?"},
        {"from": "gpt", "value": "A dog."},
    ],
}
NAMED = ("mine", "1", {})


def translate(corpus: Path, *options: str) -> None:
    command = ["translate", str(corpus), "--to", "hr", "--engine", "memory", *options]
    result = CliRunner().invoke(app, command)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception


def test_without_ray_it_is_said_how_to_get_it(make_corpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    corpus = make_corpus([RECORD])
    with pytest.raises(ConfigError, match=r"needs Ray: pip install 'lrm-llava\[ray\]'"):
        translate(corpus, "--executor", "ray")
    translate(corpus)  # one process needs none, and takes over what was begun


def test_nothing_to_do_starts_no_cluster(tmp_path, monkeypatch):
    """As after a kill between the last part and the shards."""
    monkeypatch.setitem(sys.modules, "ray", None)
    job = Job(tmp_path, "hr", (), tmp_path / "c.sqlite")
    assert list(RayExecutor(2)(job, [])) == []


def test_options_that_do_not_fit(make_corpus):
    corpus = make_corpus([RECORD])
    with pytest.raises(ConfigError, match="unknown --executor 'spark'; choose from: process, ray"):
        translate(corpus, "--executor", "spark")
    with pytest.raises(ConfigError, match="are for --executor ray"):
        translate(corpus, "--num-workers", "2")


def test_a_text_is_asked_for_by_one_worker_at_a_time(tmp_path):
    cache = CacheActor(tmp_path / "c.sqlite")
    assert cache.claim([b"a", b"b"], worker=0) == {b"a", b"b"}
    assert cache.claim([b"b", b"c"], worker=1) == {b"c"}
    assert cache.look([b"b"]) == ({}, True)
    cache.put({b"b": Answer("x", None)}, NAMED, "cs", Usage(1, 2, 3, 0.5))
    assert cache.look([b"b"]) == ({b"b": Answer("x", None)}, False)
    # answered in the meantime: nobody's
    assert cache.claim([b"b"], worker=1) == set()
    # what the first asked in vain is the other's turn
    cache.release(0)
    assert cache.look([b"a"]) == ({}, False)
    assert cache.claim([b"a"], worker=1) == {b"a"}
    # a failure that is final is an answer, too
    cache.put({b"a": Answer(None, "refused")}, NAMED, "cs", Usage())
    assert cache.look([b"a", b"c"]) == ({b"a": Answer(None, "refused")}, True)
    assert cache.call("spent", "mine", "cs") == Usage(1, 2, 3, 0.5)
