"""`lrm translate` checks what engines made, keeps figures, and never drops a row in silence."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_engine import FakeEngine
from scene_texts import scene_records, scene_table
from typer.testing import CliRunner

from llava.errors import ConfigError
from lrm_ext.cli import app
from lrm_ext.corpus.exporting import export_llava
from lrm_ext.corpus.store import Corpus
from lrm_ext.translate import runner
from lrm_ext.translate.runner import Job, translate_corpus

QUESTION = "What is the man holding in his left hand?"
GOOD = {
    QUESTION: "Što muškarac drži u lijevoj ruci?",
    "A long loaf of fresh white bread.": "Dugu štrucu svježeg bijelog kruha.",
}
Translate = Callable[..., tuple[Any, Corpus]]


@pytest.fixture
def translate(make_corpus: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Translate:
    """Translate records with fake engines: `translate(records, engine, ..., **job)`."""
    folders: dict[str, Path] = {}

    def run(records: list[dict[str, Any]], *engines: FakeEngine, **job: Any) -> Any:
        by_name = {engine.name: engine for engine in engines}
        monkeypatch.setattr(runner, "build_engine", lambda name, *_: by_name[name])
        monkeypatch.setattr(runner, "get_spec", lambda name: SimpleNamespace(licence="none"))
        key = json.dumps(records)
        path = folders.setdefault(key, None) or make_corpus(records, f"corpus{len(folders)}")
        folders[key] = path
        names = tuple((name, {}) for name in by_name)
        job = {"target": "hr", "cache": path.with_suffix(".sqlite"), **job}
        result = translate_corpus(Job(corpus=path, engines=names, **job))
        return result, Corpus.open(path)

    return run


def record(answer: str = "A long loaf of fresh white bread.", **more: Any) -> dict[str, Any]:
    turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": answer}]
    return {"id": "1", "conversations": turns, **more}


@pytest.mark.parametrize("lang", ["hr", "zh"])
def test_what_people_wrote_passes_and_has_figures(translate: Translate, lang: str) -> None:
    records = scene_records(30)
    result, corpus = translate(records, FakeEngine(scene_table(lang, 30).get), target=lang)
    assert (result.counts["ok"], result.counts["rejected"]) == (len(records), 0)
    texts = [corpus.text(lang, i) for i in range(len(corpus))]
    figures = [text.quality for text in texts if text and text.quality]
    assert len(figures) == len(records)
    assert all({"structure", "length", "repetition"} <= set(found) for found in figures)
    assert any("meaning" in found for found in figures)


@pytest.mark.parametrize(
    ("answer", "status", "reason"),
    [
        ("A long loaf of fresh white bread.", "rejected", "copy"),
        ("Un largo pan blanco y recién hecho en el horno.", "rejected", "language"),
        ("Dugu štrucu. Dugu štrucu. Dugu štrucu. Dugu štrucu.", "rejected", "repetition"),
        ("Дугу штруцу свјежег бијелог круха.", "rejected", "script"),
        ("Dugu Å¡trucu svjeÅ¾eg bijelog kruha.", "rejected", "mojibake"),
        ("Dugu štrucu", "suspect", "ending"),
        ("Dugu štrucu svježeg belog hleba.", "suspect", "near"),
        ("Velika siva mačka na zelenom krovu.", "suspect", "meaning"),
    ],
)
def test_what_is_wrong_is_kept_with_its_reason(
    translate: Translate, answer: str, status: str, reason: str
) -> None:
    table = {**GOOD, "A long loaf of fresh white bread.": answer}
    limits = {"meaning": 0.6}  # one sentence has few words that are known
    result, corpus = translate([record()], FakeEngine(table.get), limits=limits)
    text = corpus.text("hr", 0)
    assert text is not None and text.quality
    assert (text.status, text.turns[1].text) == (status, answer)
    assert reason in str(text.reason)
    assert result.counts[status] == 1 and result.counts["usable"] == 0


def test_a_finished_job_is_not_done_again(translate: Translate) -> None:
    engine = FakeEngine(GOOD.get)
    first, _ = translate([record()], engine)
    again, _ = translate([record()], engine)
    assert again.counts == first.counts and not again.work


def test_the_next_engine_is_tried_where_a_check_fails(translate: Translate) -> None:
    lazy = FakeEngine(lambda text: text if text.startswith("A ") else GOOD[text], "lazy")
    careful = FakeEngine(GOOD.get, "careful")
    result, corpus = translate([record()], lazy, careful)
    text = corpus.text("hr", 0)
    assert result.counts["ok"] == 1 and text is not None
    assert text.engine == "careful 1 + lazy 1"
    assert [segment.text for segment in careful.asked] == ["A long loaf of fresh white bread."]


def test_the_best_there_is_stays_if_no_engine_does_better(translate: Translate) -> None:
    lazy = FakeEngine(lambda text: text if text.startswith("A ") else GOOD[text], "lazy")
    dumb = FakeEngine(lambda text: None, "dumb")
    _, corpus = translate([record()], lazy, dumb)
    text = corpus.text("hr", 0)
    assert text is not None and text.status == "rejected" and "copy" in str(text.reason)


def test_without_checks_nothing_is_judged(translate: Translate) -> None:
    result, corpus = translate([record()], FakeEngine(lambda text: text), checks=False)
    text = corpus.text("hr", 0)
    assert text is not None and (text.status, text.quality) == ("ok", None)


def test_limits_can_be_set_and_belong_to_the_job(translate: Translate) -> None:
    table = {**GOOD, "A long loaf of fresh white bread.": "Dugu štrucu svježeg bijelog kruha"}
    engine = FakeEngine(table.get)
    assert translate([record()], engine)[0].counts["suspect"] == 1
    with pytest.raises(ConfigError, match="--replace"):
        translate([record()], engine, limits={"ending": 1.0})
    num_asked = len(engine.asked)
    again = translate([record()], engine, limits={"ending": 1.0}, replaces=True)[0]
    assert again.counts["ok"] == 1 and len(engine.asked) == num_asked
    with pytest.raises(ConfigError, match="no check is called lenght"):
        translate([record()], engine, limits={"lenght": 1.0})


def test_text_that_is_seen_in_the_picture_is_no_copy(translate: Translate) -> None:
    seen = record("The Great Gatsby", task="ocr")
    assert translate([seen], FakeEngine(GOOD.get))[0].counts["ok"] == 1


def test_a_request_that_is_looked_up_does_not_hide_an_english_question(
    translate: Translate,
) -> None:
    turns = [
        {
            "from": "human",
            "value": f"{QUESTION}\nAnswer the question using a single word or phrase.",
        },
        {"from": "gpt", "value": "No"},
    ]
    result, corpus = translate([{"id": "1", "conversations": turns}], FakeEngine(lambda text: text))
    text = corpus.text("hr", 0)
    assert text is not None and "Odgovorite" in text.turns[0].text
    assert result.counts["rejected"] == 1


def test_rejected_rows_are_left_out_or_english_and_always_counted(
    translate: Translate, tmp_path: Path
) -> None:
    records = [record(), {**record("It is bread, as far as I see."), "id": "2"}]
    _, corpus = translate(records, FakeEngine(GOOD.get))
    out = tmp_path / "out.json"
    found = export_llava(corpus, "hr", out)
    assert found.num_records == 1
    assert found.not_accepted == {"rejected": 1}
    found = export_llava(corpus, "hr", out, with_english=True)
    assert found.num_records == 2
    written = json.loads(out.read_text(encoding="utf-8"))
    assert [r.get("lang") for r in written] == ["hr", None]
    assert written[1]["conversations"] == records[1]["conversations"]
    command = ["corpus", "export", str(corpus.path), "--lang", "hr", "--out", str(out)]
    shown = CliRunner().invoke(app, command).output
    assert "1 records; rows without accepted text in hr are left out: 1 rejected" in shown


def test_the_command_line_refuses_what_is_no_limit(make_corpus: Callable[..., Path]) -> None:
    command = ["translate", str(make_corpus([record()])), "--to", "hr", "--engine", "memory"]
    result = CliRunner().invoke(app, [*command, "--limit", "length=long"])
    assert isinstance(result.exception, ConfigError)
    assert "--limit length=long: expected check=number" in str(result.exception)
