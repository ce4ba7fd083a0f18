"""Captions as people translate them pass; with another number or text in the image they do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llava.data.sample import Turn
from llava.files import load_toml
from lrm_ext.translate.quality import Checker
from lrm_ext.translate.quality.content_checks import spelled_numbers
from tools.calibrate_quality import Row, evaluate

CAPTIONS: list[dict[str, Any]] = load_toml(Path(__file__).with_name("captions.toml"))["caption"]
LANGUAGES = [key for key in CAPTIONS[0] if key not in ("en", "wrong")]
# The least share of damaged captions that is found.
FOUND = {"wrong language": 0.95, "cut": 1.0, "doubled": 0.95, "copied": 1.0, "number changed": 1.0}


def test_there_are_captions_in_each_language() -> None:
    assert len(LANGUAGES) == 9 and len(CAPTIONS) >= 25
    for caption in CAPTIONS:
        assert caption.keys() - {"wrong"} == {"en", *LANGUAGES}
    assert sum("wrong" in caption for caption in CAPTIONS) >= 15


@pytest.mark.parametrize("lang", LANGUAGES)
def test_what_people_write_is_not_rejected(lang: str) -> None:
    checker = Checker(lang)
    verdicts = {c[lang]: checker.check_text(c["en"], c[lang]) for c in CAPTIONS}
    faults = {text: v.reasons for text, v in verdicts.items() if v.status == "rejected"}
    assert faults == {}


@pytest.mark.parametrize("lang", LANGUAGES)
def test_another_number_or_other_text_in_the_image_is_found(lang: str) -> None:
    checker = Checker(lang)
    for caption in CAPTIONS:
        if "wrong" in caption:
            verdict = checker.check_text(caption["wrong"], caption[lang])
            found = {finding.check for finding in verdict.findings}
            assert found & {"numbers", "protected"}, (caption["wrong"], caption[lang])


@pytest.mark.parametrize("lang", LANGUAGES)
def test_damage_is_found(lang: str) -> None:
    rows = [
        Row(
            (Turn("gpt", caption["en"]),),
            {other: (Turn("gpt", caption[other]),) for other in LANGUAGES},
            "caption",
        )
        for caption in CAPTIONS
    ]
    report = evaluate(rows, lang)
    for damage, share in FOUND.items():
        if damage == "number changed" and not report.num_damaged[damage]:
            continue  # no blanks around digits in Chinese
        assert report.recall(damage) >= share, damage


@pytest.mark.parametrize(
    ("lang", "text", "numbers"),
    [
        ("en", "World War II, twenty-one dogs, a two-door car", {2: 2, 21: 1}),
        ("en", "three hundred and five", {305: 1}),
        ("hr", "deveti, devetog, dvadeset i pet", {9: 2, 25: 1}),
        ("hr", "stol, dvorac i troje", {3: 1, 2: 1}),
        ("cs", "jednadvacet, dvacet jedna", {21: 2}),
        ("de", "einundzwanzig Zweige, dreihundert Hunde", {21: 1, 300: 1}),
        ("fr", "quatre-vingt-douze, dix-sept, le XIXe siècle", {92: 1, 17: 1, 19: 1}),
        ("it", "ventuno, il vento, trecento, nessuno", {21: 1, 300: 1}),
        ("es", "treinta y dos de todos, siglo XX", {32: 1, 20: 1}),
        ("ro", "secolul al XIX-lea, al doilea", {19: 1, 2: 1}),
        ("ru", "двадцать пять тысяч, девятой", {25000: 1, 9: 1}),
        ("zh", "二十五分，五百日元，第九颗，三个十字架", {25: 1, 500: 1, 9: 1, 3: 1, 10: 1}),
    ],
)
def test_numbers_in_words_are_read(lang: str, text: str, numbers: dict[int, int]) -> None:
    assert dict(spelled_numbers(text, lang)) == numbers
