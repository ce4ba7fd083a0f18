"""The chat engine against a service on this machine that does what services do at night."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from fake_chat import Answer, ChatService, NoLedger, chat_answer

from llava.errors import ConfigError
from lrm_ext.translate.engines.base import (
    BudgetError,
    EngineError,
    Outcome,
    TextSegment,
    Usage,
    build_engine,
)
from lrm_ext.translate.engines.openai import OpenAIEngine, OpenAIOptions, messages, read_answer

TEXTS = [f"text {chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(40)]
TABLE = {text: text.upper() for text in TEXTS}
Serve = Callable[[ChatService], ChatService]


@pytest.fixture
def service(serve: Serve) -> ChatService:
    return serve(ChatService(TABLE))


def run(service: ChatService, texts: list[str] = TEXTS, **options: Any) -> dict[str, Outcome]:
    """Translate, and check that every segment has exactly one outcome."""
    outcomes: dict[str, Outcome] = {}
    for outcome in iterate(service, texts, **options):
        assert texts[outcome.index] not in outcomes
        outcomes[texts[outcome.index]] = outcome
    assert set(outcomes) == set(texts)
    return outcomes


def iterate(service: ChatService, texts: list[str], **options: Any):
    engine = make(service, **options)
    for reply in engine.translate([TextSegment(text) for text in texts]):
        yield from reply.outcomes


def make(service: ChatService, ledger: Any = None, **options: Any) -> OpenAIEngine:
    settings = {"timeout_s": 5.0, "concurrency": 4, **options}
    chosen = OpenAIOptions("m", service.url, **settings)
    return OpenAIEngine(chosen, "en", "cs", ledger or NoLedger())


def all_good(outcomes: dict[str, Outcome]) -> bool:
    return all(o.text == text.upper() and o.error is None for text, o in outcomes.items())


def test_asks_for_several_at_once_and_each_once(service: ChatService) -> None:
    service.wait_s = 0.05
    assert all_good(run(service))
    assert len(service.requests) == 5 and max(map(len, service.requests)) == 8
    assert set(service.answered.values()) == {1}
    assert 1 < service.most_under_way <= 4


def test_asks_for_no_more_before_answers_are_kept(service: ChatService) -> None:
    replies = make(service, concurrency=2).translate([TextSegment(text) for text in TEXTS])
    texts = [TEXTS[o.index] for o in next(replies).outcomes]
    time.sleep(0.3)  # a caller who writes slowly, and may be killed while it does
    assert len(service.requests) <= 2
    texts += [TEXTS[o.index] for reply in replies for o in reply.outcomes]
    assert sorted(texts) == sorted(TEXTS) and len(service.requests) == 5


def test_the_request_says_what_is_needed(
    service: ChatService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_KEY", "secret")
    engine = make(service, key_variable="MY_KEY", style="Be formal.", json="json_schema")
    segment = TextSegment("red", "What color is it?", (("red", "červená"),))
    list(engine.translate([segment]))
    (body,) = service.bodies
    assert service.headers[0]["authorization"] == "Bearer secret"
    assert body["model"] == "m" and body["temperature"] == 0
    assert body["response_format"]["json_schema"]["strict"] is True
    system, user = (m["content"] for m in body["messages"])
    assert "Czech" in system and "Be formal." in system
    assert json.loads(user) == {
        "segments": [
            {"id": 1, "text": "red", "context": "What color is it?", "terms": {"red": "červená"}}
        ]
    }


def test_half_an_answer_is_kept_and_the_rest_asked_again(service: ChatService) -> None:
    def half(number: int, segments: list[dict[str, Any]]) -> Answer | None:
        if len(segments) == 1:
            return None
        kept = segments[: len(segments) // 2]
        with service.lock:
            service.answered.update(s["text"] for s in kept)
        return service.good(kept)

    service.behave = half
    assert all_good(run(service))
    assert set(service.answered.values()) == {1}


def test_thoughts_are_not_translations(service: ChatService) -> None:
    def think(number: int, segments: list[dict[str, Any]]) -> Answer:
        draft = json.dumps({"translations": [{"id": s["id"], "text": "?"} for s in segments]})
        found = [{"id": s["id"], "text": s["text"].upper()} for s in segments]
        told = json.dumps({"translations": found})
        opening = "<think>\n" if number % 2 else ""
        return chat_answer(f"{opening}{draft}\n</think>\n\n```json\n{told}\n```")

    service.behave = think
    assert all_good(run(service)) and len(service.requests) == 5


def test_thoughts_without_an_answer_are_useless(service: ChatService) -> None:
    draft = '<think>{"translations": [{"id": 1, "text": "?"}]}'
    service.behave = lambda number, segments: chat_answer(draft)
    (outcome,) = run(service, TEXTS[:1]).values()
    assert outcome.text is None and outcome.error == "useless answer: ''"


def test_order_does_not_matter(service: ChatService) -> None:
    service.behave = lambda number, segments: service.good(segments[::-1])
    assert all_good(run(service))


def test_one_refusal_costs_only_its_segment(service: ChatService) -> None:
    def refuse(number: int, segments: list[dict[str, Any]]) -> Answer | None:
        if any(s["text"] == TEXTS[13] for s in segments):
            return chat_answer("", refusal="I cannot help with that.")
        return None

    service.behave = refuse
    outcomes = run(service)
    refused = outcomes.pop(TEXTS[13])
    assert refused.text is None and refused.is_final
    assert refused.error == "refused: I cannot help with that."
    assert all_good(outcomes)


@pytest.mark.parametrize(
    "content",
    [
        "I'd be glad to help! Here is",
        "{}",
        "[1, 2]",
        '{"translations": [{"id": 9, "text": "x"}]}',
        "",
    ],
)
def test_useless_answers_end_after_a_few(service: ChatService, content: str) -> None:
    service.behave = lambda number, segments: chat_answer(content)
    outcomes = run(service, TEXTS[:2])
    assert all(o.text is None and o.is_final for o in outcomes.values())
    assert all(str(o.error).startswith("useless answer") for o in outcomes.values())
    assert len(service.requests) == 1 + 2 * 3


BAD = {
    "html": Answer(200, b"<html>gateway</html>", {"content-type": "text/html"}),
    "html error": Answer(502, b"<html>bad gateway</html>", {"content-type": "text/html"}),
    "error": Answer(500, b'{"error": "oops"}'),
    "too many": Answer(429, b"slow down", {"retry-after": "0.2"}),
    "too many until": Answer(429, b"", {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "hangs up": Answer(hangs_up=True),
    "times out": Answer(wait_s=1.0),
    "not an object": Answer(200, b"[]"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_passes_is_tried_again(service: ChatService, kind: str) -> None:
    service.behave = lambda number, segments: BAD[kind] if number in (0, 2, 3) else None
    assert all_good(run(service, TEXTS[:16], timeout_s=0.5))
    assert set(service.answered.values()) == {1}


def test_waits_as_long_as_it_is_asked_to(service: ChatService) -> None:
    service.behave = lambda number, segments: BAD["too many"] if number == 0 else None
    start = time.monotonic()
    run(service, TEXTS[:8])
    assert time.monotonic() - start >= 0.2


def test_a_segment_that_breaks_the_service_is_found(service: ChatService) -> None:
    def poisoned(number: int, segments: list[dict[str, Any]]) -> Answer | None:
        return BAD["error"] if any(s["text"] == TEXTS[5] for s in segments) else None

    service.behave = poisoned
    service.wait_s = 0.02  # so that others are answered meanwhile
    outcomes = run(service, max_tries=2, concurrency=8, segments_per_request=4)
    broken = outcomes.pop(TEXTS[5])
    assert broken.text is None and not broken.is_final and "HTTP 500" in str(broken.error)
    assert all_good(outcomes)


@pytest.mark.parametrize(("fault", "is_final"), [("context too long", True), ("no", False)])
@pytest.mark.parametrize("place", [0, 20])
def test_a_request_that_is_not_accepted_is_halved(
    service: ChatService, fault: str, is_final: bool, place: int
) -> None:
    """Even if it is the first of all."""

    def refuse(number: int, segments: list[dict[str, Any]]) -> Answer | None:
        is_bad = any(s["text"] == TEXTS[place] for s in segments)
        return Answer(400, fault.encode()) if is_bad else None

    service.behave = refuse
    outcomes = run(service, concurrency=1)
    refused = outcomes.pop(TEXTS[place])
    assert refused.is_final == is_final and str(refused.error).startswith("refused: HTTP 400")
    assert all_good(outcomes)


def test_a_service_that_takes_no_temperature(service: ChatService) -> None:
    def newer(number: int, segments: list[dict[str, Any]]) -> Answer | None:
        fault = b'{"error": {"param": "temperature", "code": "unsupported_value"}}'
        return Answer(400, fault) if "temperature" in service.bodies[number] else None

    service.behave = newer
    engine = make(service)
    for _ in range(2):  # it is remembered from one batch to the next
        list(engine.translate([TextSegment(text) for text in TEXTS]))
    assert sum("temperature" in body for body in service.bodies) == 1


def test_a_service_that_refuses_everything_is_given_up(service: ChatService) -> None:
    service.behave = lambda number, segments: Answer(400, b"no")
    with pytest.raises(EngineError, match="first 20 requests are not accepted: HTTP 400.*'no'"):
        run(service)
    assert 20 <= len(service.requests) < 24


def test_a_dead_service_ends_the_run_but_keeps_what_was_answered(service: ChatService) -> None:
    service.behave = lambda number, segments: BAD["error"] if number >= 2 else None
    found: list[Outcome] = []
    with pytest.raises(EngineError, match="does not answer: HTTP 500.*run again"):
        for outcome in iterate(service, TEXTS, concurrency=1, max_tries=2):
            found.append(outcome)
    assert len(found) == 16


@pytest.mark.parametrize(
    ("status", "body", "message"),
    [
        (401, b"no", "key is refused"),
        (404, b"no", "no such model"),
        (429, b'{"error": {"code": "insufficient_quota"}}', "no money left"),
        (400, b"unknown field", "first request is not accepted.*unknown field"),
        (
            400,
            b'{"error": {"message": "no", "param": "response_format"}}',
            "first request is not accepted.*response_format",
        ),
        (422, b'{"detail": [{"type": "extra_forbidden"}]}', "first request is not accepted"),
        (402, b"no", "no money left"),
        (403, b"no", "access is refused"),
    ],
)
def test_what_will_not_pass_is_said_at_once(
    service: ChatService, monkeypatch: pytest.MonkeyPatch, status: int, body: bytes, message: str
) -> None:
    monkeypatch.setenv("MY_KEY", "secret-key")
    service.behave = lambda number, segments: Answer(status, body)
    with pytest.raises(EngineError, match=message) as caught:
        list(iterate(service, TEXTS, concurrency=1, key_variable="MY_KEY"))
    assert len(service.requests) == 1
    assert "secret-key" not in str(caught.value)


def test_nobody_there(quick_retries: None) -> None:
    service = ChatService({})
    service.url = "http://127.0.0.1:9/v1"
    with pytest.raises(EngineError, match="does not answer: Connect"):
        list(iterate(service, TEXTS, max_tries=2))


class Ledger(NoLedger):
    def __init__(self, usage: Usage) -> None:
        self.usage = usage

    def spent(self, engine: str, target: str | None = None) -> Usage:
        return self.usage


def test_the_budget_holds_over_runs(service: ChatService) -> None:
    ledger = Ledger(Usage())
    todo = list(TEXTS)
    for budget in (900, 900, 3000):  # a request costs 120 tokens and is estimated higher
        engine = make(service, ledger, budget_tokens=budget, concurrency=2)
        done: set[str] = set()
        try:
            for reply in engine.translate([TextSegment(text) for text in todo]):
                ledger.usage += reply.usage
                done.update(todo[outcome.index] for outcome in reply.outcomes)
        except BudgetError as error:
            assert "900 tokens is spent" in str(error) and "larger budget" in str(error)
            assert 0 < ledger.usage.input_tokens + ledger.usage.output_tokens <= 900
        todo = [text for text in todo if text not in done]
    assert todo == []
    assert set(service.answered.values()) == {1}


def test_money_needs_prices_and_is_counted(service: ChatService) -> None:
    with pytest.raises(ConfigError, match="needs prices"):
        OpenAIOptions("m", budget_usd=1.0)
    prices = {"usd_per_million_input": 1000.0, "usd_per_million_output": 2000.0}
    engine = make(service, budget_usd=10.0, **prices)
    replies = list(engine.translate([TextSegment(text) for text in TEXTS]))
    assert sum(reply.usage.usd for reply in replies) == pytest.approx(5 * (0.1 + 0.04))
    engine = make(service, Ledger(Usage(usd=9.9)), budget_usd=10.0, **prices)
    with pytest.raises(BudgetError, match="10 USD"):
        list(engine.translate([TextSegment(text) for text in TEXTS]))


def test_rate_limit(service: ChatService) -> None:
    start = time.monotonic()
    run(service, segments_per_request=4, requests_per_minute=600.0)
    assert 0.85 < time.monotonic() - start


def test_an_abandoned_batch_stops_asking(service: ChatService) -> None:
    service.wait_s = 0.05
    engine = make(service, concurrency=1, segments_per_request=1)
    replies = engine.translate([TextSegment(text) for text in TEXTS])
    next(replies)
    replies.close()
    asked = len(service.requests)
    time.sleep(0.2)
    assert asked == len(service.requests) < 5


def test_a_key_is_needed_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    engine = OpenAIEngine(OpenAIOptions("m"), "en", "cs", NoLedger())
    with pytest.raises(EngineError, match="OPENAI_API_KEY"):
        list(engine.translate([TextSegment("a")]))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"translations": [{"id": 1, "text": "a"}, {"id": "2", "text": "b"}]}', {0: "a", 1: "b"}),
        ('```json\n[{"id": 2, "text": "b"}]\n```', {1: "b"}),
        ('[{"id": 1, "text": "a"}, {"id": 1, "text": "c"}, {"id": 2, "text": "b"}]', {1: "b"}),
        ('[{"id": 1, "text": " "}, {"id": 3, "text": "x"}, {"text": "y"}, 4]', {}),
        ("a", {}),
        ('Here it is:\n```json\n[{"id": 2, "text": "b"}]\n```\nDone.', {1: "b"}),
        ('Keep [[1]]. {"translations": [{"id": 1, "text": "a [[1]]"}]} It is {1}.', {0: "a [[1]]"}),
        (
            'Draft: {"translations": [{"id": 1, "text": "x"}]}\n'
            'Final: {"translations": [{"id": 1, "text": "a"}]}',
            {0: "a"},
        ),
        ('{"segments": [{"id": 1, "text": "asked"}]} {"translations": [{"id": 1, "te', {}),
        ("[" * 2000, {}),
    ],
)
def test_only_what_is_clear_is_believed(content: str, expected: dict[int, str]) -> None:
    assert read_answer(content, 2) == expected


def test_rules_name_languages_from_the_registry() -> None:
    system = messages([TextSegment("a")], "en", "zh")[0]["content"]
    assert "from English into Chinese" in system and "Hans" in system


def test_the_only_model_of_a_service_is_taken(service: ChatService) -> None:
    def build(url: str) -> Any:
        options = {"base_url": url, "timeout_s": "5"}
        return build_engine("openai", options, "cs", NoLedger())

    engine = build(service.url + "/")
    assert engine.version == "m" and engine.options == make(service).options
    service.models = ["a", "b"]
    with pytest.raises(ConfigError, match=r"2 models, expected one; .*--model NAME: a, b$"):
        build(service.url)
    with pytest.raises(EngineError, match="does not say which model it has.*--model NAME"):
        build("http://127.0.0.1:9")
    with pytest.raises(ConfigError, match="needs --model NAME, and --base-url"):
        build_engine("openai", {}, "cs", NoLedger())
