"""Apertium, really run; without it these tests are skipped."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_chat import NoLedger

from lrm_ext.translate.engines import apertium
from lrm_ext.translate.engines.apertium import SPEC
from lrm_ext.translate.engines.base import EngineError, Outcome, TextSegment, build_engine

pytestmark = pytest.mark.skipif(
    not Path("/usr/share/apertium/modes/eng-spa.mode").is_file(),
    reason=f"Apertium or its pairs are not installed: {SPEC.install}",
)


def translate(lang: str, texts: list[str], **options: str) -> list[Outcome]:
    engine = build_engine("apertium", options, lang, NoLedger())
    outcomes = [
        o for reply in engine.translate([TextSegment(t) for t in texts]) for o in reply.outcomes
    ]
    assert [o.index for o in outcomes] == list(range(len(texts)))
    return outcomes


@pytest.mark.parametrize(
    ("lang", "expected"),
    [("es", "La casa es grande."), ("hr", "The dom i velik.")],  # as it is: no training data
)
def test_translates(lang: str, expected: str) -> None:
    if not Path("/usr/share/apertium/modes/eng-hbs_HR.mode").is_file():
        pytest.skip(f"the pair is not installed: {SPEC.install}")
    (outcome,) = translate(lang, ["The house is big."])
    assert outcome.text == expected


@pytest.mark.parametrize("lang", ["fr", "it"])
def test_by_way_of_spanish(lang: str) -> None:
    modes = {"fr": "es-fr", "it": "spa-ita"}
    if not Path(f"/usr/share/apertium/modes/{modes[lang]}.mode").is_file():
        pytest.skip(f"the pair is not installed: {SPEC.install}")
    (outcome,) = translate(lang, ["The house is big."])
    assert outcome.text in {"La maison est grande.", "La casa è grande."}


def test_no_segment_sees_its_neighbours() -> None:
    texts = ["A red car", "is", "The dog sleeps.", "[[0]] is ^here$ @ <b>", "What color is it?"]
    together = [outcome.text for outcome in translate("es", texts)]
    assert together == [translate("es", [text])[0].text for text in texts]


def test_empty_texts_and_odd_characters_are_answered() -> None:
    empty, odd, long = translate("es", [" ", "a\0b ⟦0⟧ \u202e", "red " * 5_000])
    assert empty.text is None and empty.error == "empty answer"
    assert odd.text is not None and "⟦0⟧" in odd.text
    assert long.text is not None and len(long.text) > 10_000


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(apertium, "_MODES", tmp_path)
    with pytest.raises(EngineError, match="lacks eng-spa.*apt-get install"):
        translate("es", ["a"])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EngineError, match="not installed: apt-get install"):
        translate("es", ["a"])
