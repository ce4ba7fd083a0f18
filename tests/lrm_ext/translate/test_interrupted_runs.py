"""Runs that are killed, run beside each other, or meet a full disk: the same bytes, paid for once.

The command is run as a user runs it, in processes of its own that get SIGKILL.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from fake_chat import Answer, ChatService
from scene_texts import scene_records

from llava.data.sample import Turn
from llava.errors import DataError
from lrm_ext.corpus.store import Corpus, CorpusRow, Meta
from lrm_ext.corpus.writer import CorpusWriter
from lrm_ext.translate.cache import Cache, Keys
from lrm_ext.translate.engines.apertium import SPEC as APERTIUM
from lrm_ext.translate.engines.base import EngineError, TextSegment
from lrm_ext.translate.engines.openai import OpenAIEngine, OpenAIOptions
from lrm_ext.translate.runner import Job, translate_corpus

REPOSITORY = Path(__file__).parents[3]
NUM_ROWS, PER_BATCH = 120, 12  # ten parts

needs_apertium = pytest.mark.skipif(
    any(
        not Path(f"/usr/share/apertium/modes/{mode}.mode").is_file()
        for mode in ("eng-spa", "eng-hbs_HR")
    ),
    reason=f"Apertium or its pairs are not installed: {APERTIUM.install}",
)


@pytest.fixture
def service(serve: Callable[[ChatService], ChatService]) -> ChatService:
    return serve(ChatService({}))


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    """What a test started; what it leaves is killed."""
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def make_corpus(path: Path, num_rows: int = NUM_ROWS, per_batch: int = PER_BATCH) -> Path:
    """Built-in conversations in small parts."""
    with CorpusWriter(path, [], rows_per_batch=per_batch, rows_per_shard=2 * per_batch) as writer:
        for record in scene_records(NUM_ROWS // 6)[:num_rows]:
            turns = tuple(Turn(t["from"], t["value"]) for t in record["conversations"])
            writer.append(CorpusRow(record["id"], record["image"], None, None, True, turns), {})
    return path


def start(
    processes: list[subprocess.Popen[str]], corpus: Path, languages: str, *options: str
) -> subprocess.Popen[str]:
    """Start `lrm translate` as a user does; in a group of its own, with whatever it starts."""
    command = [sys.executable, "-m", "lrm_ext.cli", "translate", str(corpus), "--to", languages]
    process = subprocess.Popen(
        [*command, *options],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    processes.append(process)
    return process


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate(timeout=240)
    assert process.returncode == 0, said
    return said


def kill_when(process: subprocess.Popen[str], is_time: Callable[[], bool]) -> bool:
    """Kill as soon as it is time; whether the process was still at work."""
    while process.poll() is None:
        if is_time():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return process.returncode == -signal.SIGKILL
        time.sleep(0.01)
    return False


def files(corpus: Path, languages: Sequence[str]) -> dict[str, bytes]:
    """All that a translation leaves behind."""
    paths = [p for lang in languages for p in (corpus / "text" / lang).rglob("*") if p.is_file()]
    assert len(paths) >= 4 * len(languages)
    assert not [path for path in (corpus / "text").iterdir() if path.name.endswith(".work")]
    return {str(p.relative_to(corpus)): p.read_bytes() for p in (*paths, corpus / "corpus.toml")}


@needs_apertium
def test_apertium_killed_at_several_moments(
    tmp_path: Path, processes: list[subprocess.Popen[str]]
) -> None:
    corpus = make_corpus(tmp_path / "corpus", 60, 20)
    whole = tmp_path / "whole"
    shutil.copytree(corpus, whole)
    options = ("--engine", "memory,apertium", "--no-check", "--cache")
    said = finish(start(processes, whole, "es,hr", *options, str(tmp_path / "whole.sqlite")))
    assert "apertium: asked" in said
    moments: Sequence[Callable[[], bool]] = (
        lambda: (corpus / "text/.es.work").exists(),
        lambda: num_parts(corpus, "es") >= 1,
        lambda: num_parts(corpus, "hr") >= 2,
    )
    kills = 0
    for is_time in moments:
        process = start(processes, corpus, "es,hr", *options, str(tmp_path / "cache.sqlite"))
        kills += kill_when(process, is_time)
    finish(start(processes, corpus, "es,hr", *options, str(tmp_path / "cache.sqlite")))
    assert kills == 3
    assert files(corpus, ("es", "hr")) == files(whole, ("es", "hr"))
    # and what it costs is what it costs a run that nobody disturbs
    asked = [Cache(tmp_path / f"{name}.sqlite") for name in ("cache", "whole")]
    assert len(asked[0]) == len(asked[1])
    assert all(Meta.load(corpus).counts[lang]["ok"] for lang in ("es", "hr"))


def num_parts(corpus: Path, lang: str) -> int:
    return len(list((corpus / f"text/.{lang}.work/parts").glob("*.arrow")))


def chat_options(service: ChatService, cache: Path, **options: object) -> list[str]:
    settings = {"base_url": service.url, "model": "m", "concurrency": 2}
    texts = [f"--option={name}={value}" for name, value in {**settings, **options}.items()]
    return ["--engine", "openai", "--no-check", "--cache", str(cache), *texts]


def known_texts(service: ChatService, cache: Path, target: str) -> set[tuple[str, str]]:
    """What has been asked for and is in the cache: text and context."""
    engine = OpenAIEngine(OpenAIOptions("m", service.url), "en", target, Cache(cache))
    keys = Keys(engine, "en", target)
    asked = asked_texts(service.bodies)
    found = Cache(cache).get_many([keys.key(TextSegment(*pair)) for pair in asked])
    return {pair for pair in asked if keys.key(TextSegment(*pair)) in found}


def asked_texts(bodies: Sequence[Mapping[str, object]]) -> list[tuple[str, str]]:
    segments = [
        segment
        for body in bodies
        for segment in json.loads(body["messages"][1]["content"])["segments"]
    ]
    return [(segment["text"], segment.get("context", "")) for segment in segments]


def test_a_chat_service_is_never_asked_again_for_what_it_answered(
    tmp_path: Path, service: ChatService, processes: list[subprocess.Popen[str]]
) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    whole = tmp_path / "whole"
    shutil.copytree(corpus, whole)
    finish(start(processes, whole, "hr", *chat_options(service, tmp_path / "whole.sqlite")))
    expected = asked_texts(service.bodies)
    assert len(expected) == len(set(expected)) > 100
    service.bodies.clear()
    service.wait_s = 0.02
    options = chat_options(service, tmp_path / "cache.sqlite")
    kills = 0
    for moment in (1, 4, 9, 15):
        before = known_texts(service, tmp_path / "cache.sqlite", "hr") if kills else set()
        start_at = len(service.bodies)
        process = start(processes, corpus, "hr", *options)
        kills += kill_when(process, lambda: len(service.bodies) >= moment)  # noqa: B023
        assert before.isdisjoint(asked_texts(service.bodies[start_at:]))
    before = known_texts(service, tmp_path / "cache.sqlite", "hr")
    start_at = len(service.bodies)
    finish(start(processes, corpus, "hr", *options))
    assert before.isdisjoint(asked_texts(service.bodies[start_at:]))
    assert kills == 4
    assert files(corpus, ["hr"]) == files(whole, ["hr"])
    asked = asked_texts(service.bodies)
    assert set(asked) == set(expected)
    # all that can be lost is what was under way: two requests of eight
    assert len(asked) - len(expected) <= kills * 2 * 8


def test_two_runs_at_once_on_one_cache_say_what_both_asked(
    tmp_path: Path, service: ChatService, processes: list[subprocess.Popen[str]]
) -> None:
    service.wait_s = 0.02
    corpora = [make_corpus(tmp_path / name) for name in ("one", "two")]
    options = chat_options(service, tmp_path / "cache.sqlite")
    runs = [start(processes, corpus, "hr", *options) for corpus in corpora]
    said = [finish(run) for run in runs]
    assert files(corpora[0], ["hr"]) == files(corpora[1], ["hr"])
    asked = asked_texts(service.bodies)
    twice = sum(count - 1 for count in Counter(asked).values())
    counted = [re.search(r"asked by another run, too (\d+)", text) for text in said]
    assert sum(int(found[1]) for found in counted if found) == twice
    # and never again
    start_at = len(service.bodies)
    third = make_corpus(tmp_path / "three")
    finish(start(processes, third, "hr", *options))
    assert len(service.bodies) == start_at and files(third, ["hr"]) == files(corpora[0], ["hr"])


def test_two_runs_on_one_corpus_take_turns(
    tmp_path: Path, service: ChatService, processes: list[subprocess.Popen[str]]
) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    service.wait_s = 0.05
    options = chat_options(service, tmp_path / "cache.sqlite")
    first = start(processes, corpus, "hr", *options)
    while not (corpus / "text/.hr.work").exists():
        time.sleep(0.02)
    second = start(processes, corpus, "hr", *options)
    said, _ = second.communicate(timeout=120)
    assert second.returncode != 0 and "another run is at work" in said
    finish(first)


def run(corpus: Path, service: ChatService, cache: Path, **options: str) -> object:
    settings = {"base_url": service.url, "model": "m", "timeout_s": "5"}
    return translate_corpus(
        Job(corpus, "hr", (("openai", {**settings, **options}),), cache, checks=False)
    )


def test_a_full_disk_loses_nothing(
    tmp_path: Path, service: ChatService, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills up while parts, the cache or the final files are written."""
    corpus = make_corpus(tmp_path / "corpus")
    whole = tmp_path / "whole"
    shutil.copytree(corpus, whole)
    run(whole, service, tmp_path / "whole.sqlite")
    expected = len(asked_texts(service.bodies))
    service.bodies.clear()
    real = os.fsync
    for number in (2, 5, 9, 12, 13):
        calls = 0

        def full(descriptor: int, number: int = number) -> None:
            nonlocal calls
            calls += 1
            if calls == number:
                raise OSError(28, "No space left on device")
            real(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        try:
            run(corpus, service, tmp_path / "cache.sqlite")
        except DataError as error:
            assert "No space left" in str(error) and "make room and run again" in str(error)
        monkeypatch.undo()
    run(corpus, service, tmp_path / "cache.sqlite")
    assert files(corpus, ["hr"]) == files(whole, ["hr"])
    assert len(asked_texts(service.bodies)) == expected


def test_a_budget_ends_a_run_and_more_money_finishes_it(
    tmp_path: Path, service: ChatService
) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    ended = 0
    for budget in (1_000, 3_000, 10**9):
        try:
            run(corpus, service, tmp_path / "cache.sqlite", budget_tokens=str(budget))
        except EngineError as error:
            ended += 1
            assert "larger budget" in str(error)
    assert ended == 2
    asked = asked_texts(service.bodies)
    assert len(asked) == len(set(asked))
    assert Meta.load(corpus).counts["hr"]["ok"] == NUM_ROWS


def test_trouble_of_every_kind_gives_the_same_bytes(tmp_path: Path, service: ChatService) -> None:
    corpus = make_corpus(tmp_path / "corpus")
    whole = tmp_path / "whole"
    shutil.copytree(corpus, whole)
    run(whole, service, tmp_path / "whole.sqlite")
    page = Answer(200, b"<html>gateway</html>", {"content-type": "text/html"})
    busy = Answer(429, b"slow down", {"retry-after": "0.05"})

    def trouble(number: int, segments: list[dict[str, object]]) -> Answer | None:
        kind = number % 8
        if kind == 1:
            return Answer(wait_s=0.6)
        if kind == 2:
            return page
        if kind == 3:
            return busy
        if kind == 4:
            return Answer(hangs_up=True)
        if kind == 5:
            return service.good(segments[::-1])
        if kind == 6 and len(segments) > 1:
            return service.good(segments[: len(segments) // 2])
        return None

    service.behave = trouble
    run(corpus, service, tmp_path / "cache.sqlite", timeout_s="0.4")
    assert files(corpus, ["hr"]) == files(whole, ["hr"])


def test_a_refusal_is_counted_and_the_row_stays_english(
    tmp_path: Path, service: ChatService
) -> None:
    from fake_chat import chat_answer

    corpus = make_corpus(tmp_path / "corpus")
    english = Corpus.open(corpus)
    bad = max((english.row(i).turns[-1].text for i in range(NUM_ROWS)), key=len)

    def refuse(number: int, segments: list[dict[str, object]]) -> Answer | None:
        is_bad = any(segment["text"] == bad for segment in segments)
        return chat_answer("", refusal="I cannot.") if is_bad else None

    service.behave = refuse
    result = run(corpus, service, tmp_path / "cache.sqlite")
    counts = Meta.load(corpus).counts["hr"]
    assert 0 < counts["rejected"] < NUM_ROWS and counts["ok"] + counts["rejected"] == NUM_ROWS
    assert result.counts["rejected: engine"] == counts["rejected"]  # type: ignore[attr-defined]


def test_very_long_answers_and_marks_of_direction(
    make_corpus: Callable[..., Path], tmp_path: Path, service: ChatService
) -> None:
    long = " ".join(f"Sentence {i} is about a dog." for i in range(3_700))
    assert len(long) > 100_000
    marked = "The \u202ered\u202c dog\u200f is there."
    records = [
        {
            "id": name,
            "conversations": [
                {"from": "human", "value": "What is there?"},
                {"from": "gpt", "value": text},
            ],
        }
        for name, text in (("long", long), ("marked", marked), ("short", "A dog is there."))
    ]
    corpus = make_corpus(records, "long")
    run(corpus, service, tmp_path / "cache.sqlite")
    texts = [Corpus.open(corpus).turns("hr", i) for i in range(3)]
    assert texts[0] is not None and texts[0][1].text == f"[{long}]"
    assert texts[1] is not None and texts[1][1].text == f"[{marked}]"
    assert Meta.load(corpus).counts["hr"]["ok"] == 3
