"""Batch mode of the chat engine: jobs survive the run that made them, and nothing is paid twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_batches import BatchService
from fake_chat import Answer, ChatService, chat_answer

from llava.data.sample import Turn
from llava.errors import DataError
from lrm_ext.corpus.store import Corpus, CorpusRow
from lrm_ext.corpus.writer import CorpusWriter
from lrm_ext.translate.cache import Cache, Keys
from lrm_ext.translate.cache import CachedAnswer as Kept
from lrm_ext.translate.engines.base import BudgetError, EngineError, Outcome, TextSegment, Usage
from lrm_ext.translate.engines.openai import OpenAIEngine, OpenAIOptions
from lrm_ext.translate.runner import Job, Result, translate_corpus

TEXTS = [f"text {chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(40)]
TABLE = {text: text.upper() for text in TEXTS}


@pytest.fixture
def service(serve: Callable[[ChatService], ChatService]) -> BatchService:
    service = BatchService(TABLE)
    serve(service)
    return service


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Cache]:
    cache = Cache(tmp_path / "cache.sqlite")
    yield cache
    cache.close()


def make(service: BatchService, cache: Cache, **options: Any) -> OpenAIEngine:
    settings = {"batch": True, "batch_fewest": 5, "poll_s": 0.01, **options}
    return OpenAIEngine(OpenAIOptions("m", service.url, **settings), "en", "cs", cache)


def run(engine: OpenAIEngine, cache: Cache, texts: Sequence[str] = TEXTS) -> dict[str, Outcome]:
    """Translate what the cache does not have, and keep answers as the translator does."""
    keys = Keys(engine, "en", "cs")
    known = cache.get_many([keys.key(TextSegment(text)) for text in texts])
    asked = [TextSegment(text) for text in texts if keys.key(TextSegment(text)) not in known]
    found: dict[str, Outcome] = {}
    for reply in engine.translate(asked):
        fresh: dict[bytes, Kept] = {}
        for outcome in reply.outcomes:
            assert asked[outcome.index].text not in found
            found[asked[outcome.index].text] = outcome
            if outcome.is_final:
                fresh[keys.key(asked[outcome.index])] = Kept(outcome.text, outcome.error)
        cache.put(fresh, engine, "cs", reply.usage)
    return found


def test_one_job_brings_all(service: BatchService, cache: Cache) -> None:
    outcomes = run(make(service, cache), cache)
    assert {text: o.text for text, o in outcomes.items()} == TABLE
    assert len(service.jobs) == 1 and service.jobs["job-0"]["looks"] == service.looks
    assert set(service.answered.values()) == {1}
    assert cache.spent("openai") == Usage(5, 500, 100, 0.0)
    assert cache.notes("openai") == {}
    assert run(make(service, cache), cache) == {}


def test_more_requests_than_a_job_takes_make_several(service: BatchService, cache: Cache) -> None:
    assert len(run(make(service, cache, batch_requests=2), cache)) == 40
    assert len(service.jobs) == 3 and set(service.answered.values()) == {1}


@pytest.mark.parametrize("moment", ["noted", "made", "in work", "answered", "kept"])
def test_a_run_that_was_killed_finds_its_job(
    service: BatchService, cache: Cache, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Killed: what follows the moment does not happen, not even the clearing up."""

    class Killed(BaseException):
        pass

    engine = make(service, cache)
    calls: list[str] = []

    def stop_at(name: str, number: int, before: bool) -> None:
        real = getattr(Cache, name)

        def wrapped(self: Cache, *args: Any) -> Any:
            calls.append(name)
            if before and calls.count(name) == number:
                raise Killed
            result = real(self, *args)
            if calls.count(name) == number:
                raise Killed
            return result

        monkeypatch.setattr(Cache, name, wrapped)

    if moment == "noted":
        stop_at("note", 1, before=False)
    elif moment == "made":
        stop_at("note", 2, before=True)
    elif moment == "in work":
        stop_at("note", 2, before=False)
    elif moment == "answered":
        stop_at("put", 1, before=True)
    else:
        stop_at("put", 1, before=False)
    with pytest.raises(Killed):
        run(engine, cache)
    monkeypatch.undo()
    outcomes = run(make(service, cache), cache)
    assert len(outcomes) == (0 if moment == "kept" else 40)
    run(make(service, cache), cache, [*TEXTS, *(f"new {i}" for i in range(9))])
    assert set(service.answered.values()) == {1}
    assert cache.spent("openai") == Usage(7, 700, 140, 0.0)
    assert len(cache) == 49 and cache.notes("openai") == {}


def test_what_another_run_asked_for_is_kept_too(service: BatchService, cache: Cache) -> None:
    service.looks = 10**9
    with pytest.raises(KeyboardInterrupt):
        run_until_waiting(make(service, cache), cache)
    service.looks = 1
    # another part of the corpus comes first now
    others = [f"other {i}" for i in range(6)]
    assert set(run(make(service, cache), cache, [*others, *TEXTS[:4]])) == {*others, *TEXTS[:4]}
    assert run(make(service, cache), cache) == {}
    assert set(service.answered.values()) == {1}
    assert cache.spent("openai") == Usage(6, 600, 120, 0.0)


def run_until_waiting(engine: OpenAIEngine, cache: Cache) -> None:
    with pytest.MonkeyPatch.context() as patch:

        def interrupt(seconds: float) -> None:
            raise KeyboardInterrupt

        clock = SimpleNamespace(sleep=interrupt)
        patch.setattr("lrm_ext.translate.engines.openai.time", clock)
        run(engine, cache)


def test_a_lost_answer_does_not_make_a_second_job(service: BatchService, cache: Cache) -> None:
    service.loses_answer = True
    assert len(run(make(service, cache), cache)) == 40
    assert len(service.jobs) == 1 and set(service.answered.values()) == {1}


def test_a_page_in_place_of_the_file_is_not_believed(service: BatchService, cache: Cache) -> None:
    service.spoils_file = True
    assert len(run(make(service, cache), cache)) == 40
    assert set(service.answered.values()) == {1}


def test_what_a_job_leaves_is_asked_again(service: BatchService, cache: Cache) -> None:
    """Half of it is not answered in time, then half of that; the small rest is asked directly."""
    service.status, service.keep = "expired", 0.5
    outcomes = run(make(service, cache, segments_per_request=2, batch_fewest=12), cache)
    assert {text: o.text for text, o in outcomes.items()} == TABLE
    assert set(service.answered.values()) == {1}
    assert len(service.jobs) == 2
    assert cache.spent("openai").requests == 20


def test_half_answers_and_refusals(service: BatchService, cache: Cache) -> None:
    def behave(number: int, segments: list[dict[str, Any]]) -> Answer | None:
        if any(s["text"] == TEXTS[3] for s in segments):
            return chat_answer("", refusal="no")
        return service.good(segments[:1]) if len(segments) == 8 else None

    service.behave = behave
    outcomes = run(make(service, cache), cache)
    refused = outcomes.pop(TEXTS[3])
    assert refused.error == "refused: no" and refused.is_final
    assert {text: o.text for text, o in outcomes.items()} == {
        text: TABLE[text] for text in TEXTS if text != TEXTS[3]
    }


def test_the_next_job_is_asked_as_the_service_takes_it(service: BatchService, cache: Cache) -> None:
    def newer(number: int, segments: list[dict[str, Any]]) -> Answer | None:
        if "temperature" not in service.bodies[number]:
            return None
        return Answer(400, b'{"error": {"message": "not supported", "param": "temperature"}}')

    service.behave = newer
    outcomes = run(make(service, cache), cache)
    assert {text: o.text for text, o in outcomes.items()} == TABLE
    assert len(service.jobs) == 2 and len(service.requests) == 10


def test_a_failed_job_is_said_and_forgotten(service: BatchService, cache: Cache) -> None:
    service.status = "failed"
    with pytest.raises(EngineError, match="job-0 failed: .*enqueued token limit"):
        run(make(service, cache), cache)
    service.status = "completed"
    assert len(run(make(service, cache), cache)) == 40


def test_a_job_that_the_service_forgot(service: BatchService, cache: Cache) -> None:
    service.looks = 10**9
    with pytest.raises(KeyboardInterrupt):
        run_until_waiting(make(service, cache), cache)
    service.jobs.clear()
    service.looks = 1
    assert len(run(make(service, cache), cache)) == 40
    assert cache.notes("openai") == {}


def test_the_budget_counts_jobs_under_way(service: BatchService, cache: Cache) -> None:
    one = make(service, cache)
    cost = one.estimate([TextSegment(text) for text in TEXTS[:8]])
    tokens = cost.input_tokens + cost.output_tokens
    engine = make(service, cache, budget_tokens=3 * tokens)
    found: dict[str, Outcome] = {}
    with pytest.raises(BudgetError, match="budget of"):
        found = run(engine, cache)
    assert found == {} and len(cache) == 24
    service.looks = 10**9
    with pytest.raises(KeyboardInterrupt):
        run_until_waiting(make(service, cache), cache)
    service.looks = 1
    with pytest.raises(BudgetError):
        run(make(service, cache, budget_tokens=360 + tokens), cache, [*TEXTS, "new", *"abcde"])
    assert len(cache) == 40  # the job was paid before the budget was set, and is not lost


def test_a_service_without_batch_mode(
    serve: Callable[[ChatService], ChatService], cache: Cache
) -> None:
    service = BatchService(TABLE)
    serve(service)
    service._POST_files = lambda name, data: Answer(405, b"no")  # type: ignore[method-assign]
    with pytest.raises(EngineError, match="does not do what batch mode needs: HTTP 405"):
        run(make(service, cache), cache)


def test_a_full_disk_loses_no_job(
    service: BatchService, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Cache, *args: Any) -> None:
        raise DataError("disk is full")

    monkeypatch.setattr(Cache, "put", full)
    with pytest.raises(DataError, match="full"):
        run(make(service, cache), cache)
    monkeypatch.undo()
    assert len(run(make(service, cache), cache)) == 40
    assert len(service.jobs) == 1


def test_a_corpus_of_many_parts_takes_few_jobs(service: BatchService, tmp_path: Path) -> None:
    """And gives the texts and costs the requests of a run without batch mode."""

    def translate(name: str, **options: str) -> tuple[Corpus, Result]:
        folder = tmp_path / name
        with CorpusWriter(folder, [], rows_per_batch=5, rows_per_shard=10) as writer:
            for i in range(40):
                turns = (Turn("human", f"What is thing {i} made of?"), Turn("gpt", f"Of wood {i}."))
                writer.append(CorpusRow(str(i), None, None, None, True, turns), {})
        settings = {"base_url": service.url, "model": "m", "poll_s": "0.01", **options}
        job = Job(folder, "cs", (("openai", settings),), tmp_path / f"{name}.db", checks=False)
        result = translate_corpus(job)
        return Corpus.open(folder), result

    ours, result = translate("ours", batch="true", batch_fewest="5", batch_rows="1000")
    assert len(service.jobs) == 1 and len(service.requests) == 10
    theirs, other = translate("theirs")
    assert [ours.turns("cs", i) for i in range(40)] == [theirs.turns("cs", i) for i in range(40)]
    assert result.counts == other.counts and result.counts["ok"] == 40
    assert result.work["openai: asked"] == other.work["openai: asked"] == 80
    assert result.usage.output_tokens == 10 * 20 and result.work["units"] == other.work["units"]
