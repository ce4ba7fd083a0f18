"""What the checks find of human translations damaged in eight ways, and what they call wrong."""

from __future__ import annotations

import functools

import pytest

from lrm_ext.corpus.sentences import built_in_pairs
from lrm_ext.languages.registry import ENGLISH, PAPER_LANGUAGES, list_languages
from lrm_ext.translate.quality import Checker, get_thresholds
from lrm_ext.translate.quality.base import DEFAULT_LIMITS
from tools.calibrate_quality import (
    DAMAGES,
    GRADED,
    Row,
    built_in_rows,
    calibrate,
    damaged,
    evaluate,
    measure_lengths,
)

OTHERS = PAPER_LANGUAGES[1:]
NUM_ROWS = 120


@functools.cache
def rows() -> tuple[Row, ...]:
    return tuple(built_in_rows(NUM_ROWS, OTHERS, seed=7))


@pytest.mark.parametrize("lang", OTHERS)
def test_damage_is_found_and_people_are_not_accused(lang: str) -> None:
    report = evaluate(rows(), lang)
    assert report.num_clean == NUM_ROWS
    # docs/translation-quality.md: 2 % and 95 % of a thousand rows are the aim
    assert report.false_alarms["any"] <= 2
    assert report.recall() >= 0.95
    for damage in DAMAGES:
        assert report.num_damaged[damage] >= 15
        # questions about other things share many words; little text is left to tell them by
        assert report.recall(damage) >= (0.7 if damage == "shuffled rows" else 0.95), damage
    # others may find these as well; they must do so by themselves
    assert report.recall("doubled", "repetition") >= 0.7
    assert report.recall("copied", "copy") + report.recall("copied", "script") >= 0.7
    assert report.recall("shuffled rows", "meaning") >= 0.3


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_done_again_in_the_same_way_and_differs(damage: str) -> None:
    found = damaged(damage, rows(), "hr", seed=3)
    assert found == damaged(damage, rows(), "hr", seed=3)
    assert found != damaged(damage, rows(), "hr", seed=4) or damage == "shuffled rows"
    whole = {row.english: row.texts["hr"] for row in rows()}
    for english, turns in found:
        assert turns != whole[english]
        assert len(turns) == len(english)
        if damage != "shuffled rows":
            differ = [a.text for a, b in zip(turns, whole[english], strict=True) if a != b]
            assert len(differ) == 1 and ("<image>" in differ[0]) <= (turns[0].text == differ[0])


def test_calibration_measures_what_is_there() -> None:
    half = rows()[:60]
    ratio, spread = measure_lengths(half, "hr")
    assert 0.7 < ratio < 1.0 and 0.3 < spread < 1.5
    thresholds = calibrate(half, "hr")
    assert (thresholds.length_ratio, thresholds.length_spread) == (ratio, spread)
    assert thresholds.foreign_words == get_thresholds("hr").foreign_words
    for check in DEFAULT_LIMITS:
        if check not in GRADED:
            assert thresholds.limits[check] == get_thresholds("hr").limits[check]
    report = evaluate(rows()[60:], "hr", thresholds)
    assert report.false_alarms["any"] <= 2 and report.recall() >= 0.95


def test_the_reports_shares() -> None:
    report = evaluate(rows()[:30], "hr")
    hits = sum(counts["any"] for counts in report.found.values())
    assert report.recall() == hits / report.num_damaged.total()
    report.false_alarms["any"] = 3
    assert report.false_alarm_rate() == 0.1
    assert report.precision() == hits / (hits + 3)


def test_sentences_of_every_language_are_accepted() -> None:
    """Captions, questions and requests of all languages that have a file."""
    codes = [code for code in list_languages() if code != ENGLISH]
    shares = {}
    for code, pairs in built_in_pairs(codes, num_scenes=12).items():
        checker = Checker(code)
        rejected = [pair for pair in pairs if checker.check_text(*pair).status == "rejected"]
        shares[code] = len(rejected) / len(pairs)
    assert not {code: share for code, share in shares.items() if share > 0.02}
