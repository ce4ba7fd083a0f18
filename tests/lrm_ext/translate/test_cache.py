"""Answers are kept, found fast, and safe from each other's runs and from a full disk."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from llava.errors import DataError
from lrm_ext.translate.cache import Cache, CachedAnswer, Keys
from lrm_ext.translate.engines.base import TextSegment, Usage


@dataclass(frozen=True)
class Engine:
    name: str = "e"
    version: str = "1"
    options: dict[str, Any] = field(default_factory=dict)


def key(text: str, engine: Any = None, target: str = "cs", **segment: Any) -> bytes:
    return Keys(engine or Engine(), "en", target).key(TextSegment(text, **segment))


def test_all_that_decides_a_translation_is_in_the_key() -> None:
    engine = Engine()
    keys = [
        key("a"),
        key("b"),
        key("a", target="hr"),
        key("a", replace(engine, name="f")),
        key("a", replace(engine, version="2")),
        key("a", replace(engine, options={"beams": 2})),
        key("a", context="q"),
        key("q", context="a"),
        key("a", terms=(("a", "b"),)),
        key("aq"),
        key("\ud800"),
    ]
    assert len(set(keys)) == len(keys)
    assert key("a") == key("a", Engine())


def test_what_is_put_is_found(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    cache = Cache(path)
    answers = {key(str(i)): CachedAnswer(f"t{i}", None) for i in range(1200)}
    answers[key("bad")] = CachedAnswer(None, "refused")
    cache.put(answers, Engine(), "cs", Usage(2, 10, 5, 0.5))
    cache.put({}, Engine(), "hr", Usage(1, 1, 1, 0.25))
    cache.close()
    cache = Cache(path)
    assert cache.get_many([*answers, key("unknown")]) == answers
    assert len(cache) == 1201
    assert cache.spent("e") == Usage(3, 11, 6, 0.75)
    assert cache.spent("e", "cs") == Usage(2, 10, 5, 0.5)
    assert cache.spent("f") == Usage()


def test_two_runs_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    faults: list[BaseException] = []

    def work(name: str) -> None:
        try:
            cache = Cache(path)
            for i in range(60):
                cache.put({key(f"{name}{i}"): CachedAnswer(name, None)}, Engine(), "cs", Usage(1))
                cache.get_many([key(f"{name}{i}")])
            cache.close()
        except BaseException as error:
            faults.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    cache = Cache(path)
    assert len(cache) == 240 and cache.spent("e").requests == 240


def test_many_runs_begin_with_a_new_cache_at_once(tmp_path: Path) -> None:
    """Each wants to be the one that makes it; SQLite refuses all but one for a moment."""
    faults: list[BaseException] = []
    start = threading.Barrier(6)

    def work() -> None:
        for i in range(50):
            start.wait(timeout=60)
            try:
                Cache(tmp_path / f"{i}.sqlite").close()
            except BaseException as error:
                faults.append(error)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []


def test_a_full_disk_is_said_and_costs_only_the_last_answers(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    cache = Cache(path)
    cache.put({key("first"): CachedAnswer("x", None)}, Engine(), "cs", Usage(1))
    cache.close()
    # no file may grow beyond 200 kB in that process
    code = f"""
import resource
from test_cache import *
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
cache = Cache({str(path)!r})
for i in range(1000):
    cache.put({{key(str(i)): CachedAnswer("x" * 5000, None)}}, Engine(), "cs", Usage(1))
"""
    process = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": f"{Path(__file__).parent}:{Path.cwd()}"},
        timeout=120,
    )
    assert process.returncode == 1
    assert "the translation cache cannot be written" in process.stderr
    assert "make room" in process.stderr
    cache = Cache(path)
    assert cache.spent("e").requests == len(cache) > 10
    assert cache.get_many([key("first")]) == {key("first"): CachedAnswer("x", None)}


def test_another_file_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("my notes, which are longer than a header of SQLite would be " * 10)
    with pytest.raises(DataError, match=r"notes\.txt: the translation cache cannot be opened"):
        Cache(path)
    assert path.read_text().startswith("my notes")


def test_another_version_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.sqlite"
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=99")
    with pytest.raises(DataError, match="cache version 99, this code reads 1"):
        Cache(path)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be opened"):
        Cache(tmp_path / "file" / "c.sqlite")


def test_of_two_answers_to_a_text_the_first_stays_and_the_second_is_counted(
    tmp_path: Path,
) -> None:
    first, second = Cache(tmp_path / "c.sqlite"), Cache(tmp_path / "c.sqlite")
    a, b = key("a"), key("b")
    assert first.put({a: CachedAnswer("x", None)}, Engine(), "cs", Usage()) == 0
    answers = {a: CachedAnswer("y", None), b: CachedAnswer("z", None)}
    assert second.put(answers, Engine(), "cs", Usage()) == 1
    assert first.get_many([a, b]) == {a: CachedAnswer("x", None), b: CachedAnswer("z", None)}
    first.close()
    second.close()
