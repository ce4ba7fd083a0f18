"""The engines on DeepL's and Google's official clients, against servers on this machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from fake_chat import Answer, ChatService, NoLedger

from llava.errors import ConfigError
from lrm_ext.translate.engines.base import (
    BudgetError,
    EngineError,
    Outcome,
    TextSegment,
    TranslationEngine,
    Usage,
    build_engine,
)

TEXTS = [f"text {chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(120)]
NUM_CHARACTERS = sum(map(len, TEXTS))


class BilledService(ChatService):
    """Both protocols; the behaviour sees segments as `{"text": ...}`."""

    def __init__(self, kind: str) -> None:
        super().__init__({text: text.upper() for text in TEXTS})
        self.kind = kind
        self.paths: list[str] = []

    def request(self, method: str, path: str, data: bytes, headers: dict[str, str]) -> Answer:
        body = json.loads(data)
        segments = [{"text": t} for t in body["text" if self.kind == "deepl" else "contents"]]
        with self.lock:
            number = len(self.requests)
            self.requests.append([s["text"] for s in segments])
            self.bodies.append(body)
            self.headers.append(headers)
            self.paths.append(path)
        answer = self.behave(number, segments)
        if answer is None:
            with self.lock:
                self.answered.update(s["text"] for s in segments)
        return answer or self.good(segments)

    def good(self, segments: list[dict[str, Any]]) -> Answer:
        texts = [self.translation(s["text"]) for s in segments]
        if self.kind == "deepl":
            found = [
                {"detected_source_language": "EN", "text": t, "billed_characters": len(t)}
                for t in texts
            ]
        else:
            found = [{"translatedText": t} for t in texts]
        body = json.dumps({"translations": found}).encode()
        return Answer(200, body, {"content-type": "application/json"})


@pytest.fixture(params=["deepl", "google"])
def service(
    request: pytest.FixtureRequest,
    serve: Callable[[ChatService], ChatService],
    monkeypatch: pytest.MonkeyPatch,
) -> BilledService:
    pytest.importorskip({"deepl": "deepl", "google": "google.cloud.translate_v3"}[request.param])
    monkeypatch.setenv("DEEPL_AUTH_KEY", "secret-key")
    monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "mine")
    service = BilledService(request.param)
    serve(service)
    return service


class Ledger(NoLedger):
    def __init__(self, usage: Usage) -> None:
        self.usage = usage

    def spent(self, engine: str, target: str | None = None) -> Usage:
        return self.usage


def make(
    service: BilledService, ledger: Any = None, target: str = "zh", **options: Any
) -> TranslationEngine:
    address = service.url.removesuffix("/v1")
    where = {"server_url": address} if service.kind == "deepl" else {"endpoint": address}
    settings = {"timeout_s": 2, "first_wait_s": 0.01, "concurrency": 4, **where, **options}
    texts = {name: str(value) for name, value in settings.items()}
    return build_engine(service.kind, texts, target, ledger or NoLedger())


def run(engine: TranslationEngine, texts: Sequence[str] = TEXTS) -> dict[str, Outcome]:
    """Translate, and check that every segment has exactly one outcome."""
    found: dict[str, Outcome] = {}
    for reply in engine.translate([TextSegment(text) for text in texts]):
        for outcome in reply.outcomes:
            assert texts[outcome.index] not in found
            found[texts[outcome.index]] = outcome
    assert set(found) == set(texts)
    return found


def all_good(found: dict[str, Outcome]) -> bool:
    return all(o.text == text.upper() and o.error is None for text, o in found.items())


def test_what_is_sent(service: BilledService) -> None:
    assert all_good(run(make(service)))
    body = service.bodies[0]
    if service.kind == "deepl":
        assert (body["source_lang"], body["target_lang"]) == ("EN", "ZH-HANS")
        assert service.headers[0]["authorization"] == "DeepL-Auth-Key secret-key"
        assert sorted(map(len, service.requests)) == [20, 50, 50]
    else:
        assert (body["sourceLanguageCode"], body["targetLanguageCode"]) == ("en", "zh-CN")
        assert body["mimeType"] == "text/plain"
        assert service.paths == ["/v3/projects/mine/locations/global:translateText"] or (
            service.paths[0].startswith("/v3/projects/mine/locations/global:translateText?")
        )
        assert "authorization" not in service.headers[0]


def test_characters_and_money_are_counted(service: BilledService) -> None:
    engine = make(service, usd_per_million_characters=1000)
    usages = [reply.usage for reply in engine.translate([TextSegment(text) for text in TEXTS])]
    total = sum(usages, Usage())
    assert total.input_tokens == total.output_tokens == NUM_CHARACTERS
    assert total.usd == pytest.approx(NUM_CHARACTERS / 1000)
    assert total.requests == len(service.requests)
    free = make(service)
    assert sum((r.usage for r in free.translate([TextSegment("a")])), Usage()).usd == 0


def test_the_budget_holds_over_runs(service: BilledService) -> None:
    texts = [text + "x" * 9_000 for text in TEXTS[:9]]  # three go into a request
    ledger = Ledger(Usage())
    done: set[str] = set()
    for budget in (30_000, 30_000, 60_000, 100_000):
        engine = make(service, ledger, budget_characters=budget, concurrency=2)
        todo = [text for text in texts if text not in done]
        try:
            for reply in engine.translate([TextSegment(text) for text in todo]):
                ledger.usage += reply.usage
                done.update(todo[o.index] for o in reply.outcomes)
        except BudgetError as error:
            assert f"{budget:,} characters is spent" in str(error)
            assert 0 < ledger.usage.input_tokens <= budget
    assert done == set(texts) and set(service.answered.values()) == {1}
    with pytest.raises(ConfigError, match="needs a price"):
        make(service, budget_usd=1.0)
    with pytest.raises(BudgetError, match="0.1 USD"):
        run(make(service, budget_usd=0.1, usd_per_million_characters=1000))


BAD = {
    "html": Answer(200, b"<html>gateway</html>", {"content-type": "text/html"}),
    "html error": Answer(502, b"<html>bad gateway</html>", {"content-type": "text/html"}),
    "too many": Answer(429, b"{}", {"retry-after": "0.1"}),
    "hangs up": Answer(hangs_up=True),
    "times out": Answer(wait_s=1.0),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_passes_is_tried_again(service: BilledService, kind: str) -> None:
    service.behave = lambda number, segments: BAD[kind] if number in (0, 2) else None
    assert all_good(run(make(service, timeout_s=0.5)))
    assert set(service.answered.values()) == {1}


def test_half_an_answer_is_not_believed(service: BilledService) -> None:
    """There are no ids: which answer is missing cannot be seen."""

    def half(number: int, segments: list[dict[str, Any]]) -> Answer | None:
        return service.good(segments[: len(segments) // 2]) if len(segments) > 5 else None

    service.behave = half
    assert all_good(run(make(service)))


def test_a_text_at_fault_is_found(service: BilledService) -> None:
    def refuse(number: int, segments: list[dict[str, Any]]) -> Answer | None:
        is_bad = any(s["text"] == TEXTS[-1] for s in segments) and number > 0
        return Answer(400, b'{"message": "bad text"}') if is_bad else None

    service.behave = refuse
    texts = [text + "x" * 9_000 for text in TEXTS[:6]] + [TEXTS[-1]]
    found = run(make(service, concurrency=1), texts)
    bad = found.pop(TEXTS[-1])
    assert bad.text is None and not bad.is_final and "refused" in str(bad.error)
    assert all(outcome.text for outcome in found.values())


@pytest.mark.parametrize(
    ("status", "message"), [(403, "refused"), (404, "no such"), (400, "not accepted")]
)
def test_what_will_not_pass_is_said_at_once(
    service: BilledService, status: int, message: str
) -> None:
    service.behave = lambda number, segments: Answer(status, b'{"message": "no"}')
    with pytest.raises(EngineError, match=message) as caught:
        run(make(service, concurrency=1))
    assert len(service.requests) == 1 and "secret-key" not in str(caught.value)


def test_credentials_that_cannot_be_read_end_the_run(
    service: BilledService, monkeypatch: pytest.MonkeyPatch
) -> None:
    if service.kind != "google":
        pytest.skip("Google's own errors")
    from google.auth.exceptions import MalformedError
    from google.cloud.translate_v3 import TranslationServiceClient

    tries: list[object] = []

    def refuse(*args: object, **settings: object) -> None:
        tries.append(settings)
        raise MalformedError("no key in the file")

    assert issubclass(MalformedError, ValueError)  # which a page in place of JSON raises as well
    monkeypatch.setattr(TranslationServiceClient, "translate_text", refuse)
    with pytest.raises(EngineError, match="credentials are refused: no key in the file"):
        run(make(service, concurrency=1))
    assert len(tries) == 1


def test_no_characters_left(service: BilledService) -> None:
    if service.kind != "deepl":
        pytest.skip("DeepL's own status")
    service.behave = lambda number, segments: Answer(456, b"{}")
    with pytest.raises(EngineError, match="used up"):
        run(make(service))


def test_a_dead_service_ends_the_run_but_keeps_what_was_answered(service: BilledService) -> None:
    service.behave = lambda number, segments: BAD["html error"] if number >= 1 else None
    texts = [text + "x" * 9_000 for text in TEXTS[:30]]
    found: list[Outcome] = []
    with pytest.raises(EngineError, match="does not answer.*run again"):
        for reply in make(service, concurrency=1, max_tries=2).translate(
            [TextSegment(text) for text in texts]
        ):
            found += reply.outcomes
    assert len(found) == 3


def test_what_is_missing_is_named(service: BilledService, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEEPL_AUTH_KEY")
    monkeypatch.delenv("GOOGLE_CLOUD_PROJECT")
    with pytest.raises(EngineError, match="DEEPL_AUTH_KEY|GOOGLE_CLOUD_PROJECT"):
        run(make(service))
    if service.kind == "google":
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "mine")
        monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/key.json")
        engine = build_engine("google", {}, "cs", NoLedger())
        with pytest.raises(EngineError, match="no credentials"):
            run(engine)


def test_the_question_of_a_short_answer(service: BilledService) -> None:
    segments = [
        TextSegment("red", "What color is it?"),
        TextSegment("left", "Where?"),
        TextSegment("a b c d"),
    ]
    engine = make(service)
    list(engine.translate(segments))
    if service.kind == "deepl":
        asked = {tuple(body["text"]): body.get("context") for body in service.bodies}
        assert asked == {
            ("red",): "What color is it?",
            ("left",): "Where?",
            ("a b c d",): None,
        }
    else:
        assert engine.context == "joined"
