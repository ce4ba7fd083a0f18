"""What translation must not touch is found, and comes back to the character or not at all."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lrm_ext.translate.protect import (
    STYLES,
    damaged_parts,
    find_spans,
    mask,
    restore,
    split,
)


def found(text: str) -> list[tuple[str, str]]:
    return [(text[s.start : s.end], s.kind) for s in find_spans(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A man walks his dog.", []),
        ("No", []),
        ("I see a T-shirt, the dogs' bowl, an X-ray.", []),
        ("<image>", [("<image>", "image")]),
        ("10:30, 1,000.5 and -5%", [("10:30", "number"), ("1,000.5", "number"), ("-5", "number")]),
        ("rows 3-5", [("3", "number"), ("5", "number")]),
        ("只猫3只", [("3", "number")]),
        ("[0.1, 0.22, .3, 1]", [("[0.1, 0.22, .3, 1]", "box")]),
        ("at (12, 5) now", [("(12, 5)", "box")]),
        ("A. cat B. dog", [("A", "option"), ("B", "option")]),
        ("option A or (C)", [("A", "option"), ("(C)", "option")]),
        ("vitamin C.", [("C", "option")]),
        ('"STOP" and “Go”', [('"STOP"', "quote"), ("“Go”", "quote")]),
        ("one of the “gas giants” and a ginger 'root'", []),
        ("a “Fuji” apple of 3 kg", [("3", "number")]),
        ("the “B2 house” on it", [("“B2 house”", "quote")]),
        ("a shirt with “dream big” on it", [("“dream big”", "quote")]),
        ("a “Stop” sign", [("“Stop”", "quote")]),
        ("It says “a”, “b” and “c”.", [(x, "quote") for x in ("“a”", "“b”", "“c”")]),
        ("the “king of fruits” on a plate", []),
        ("“open late”.", [("“open late”", "quote")]),
        ("a “my_var” and an “iPhone”", [("“my_var”", "quote"), ("“iPhone”", "quote")]),
        ("says 'Don't feed' here", [("'Don't feed'", "quote")]),
        ("Don't! It's Jane's.", []),
        ("at https://a.b/c?d=1.", [("https://a.b/c?d=1", "url")]),
        ("mail a.b@c.org", [("a.b@c.org", "url")]),
        ("$x^2+1$ of $5 and $10", [("$x^2+1$", "latex"), ("5", "number"), ("10", "number")]),
        (r"\frac{1}{2} or \(a\)", [(r"\frac{1}{2}", "latex"), (r"\(a\)", "latex")]),
        (r"\begin{align} a \end{align}", [(r"\begin{align} a \end{align}", "latex")]),
        ("`x = 1` and ```\ny\n```", [("`x = 1`", "code"), ("```\ny\n```", "code")]),
        (
            "a <b>bold</b> &amp; **c**",
            [(x, "markup") for x in ("<b>", "</b>", "&amp;", "**", "**")],
        ),
        ("see [this](http://a.b)", [("[", "markup"), ("](http://a.b)", "markup")]),
        ("the 1st in the 1990s", [("1st", "ordinal"), ("1990s", "ordinal")]),
        ("B2 and 5kg", [("B2", "token"), ("5kg", "token")]),
    ],
)
def test_parts_that_must_survive(text: str, expected: list[tuple[str, str]]) -> None:
    assert found(text) == expected


TRICKY = 'See "5 km" at [0.1, 0.2], $x^2$, B2, option C, 7 <b>cats</b> on the 1st.'


@pytest.mark.parametrize("style", ["visible", *STYLES])
def test_restoring_gives_the_same_text(style: str) -> None:
    masked = mask(TRICKY, style)
    assert masked is not None and '"5 km"' not in masked.text and "1st" in masked.text
    assert ("option C, 7" in masked.text) == (style == "visible")
    assert restore(masked, masked.text) == TRICKY


@pytest.mark.parametrize("style", STYLES)
def test_placeholders_with_blanks_and_other_case_are_read(style: str) -> None:
    masked = mask("It says “Go” twice", style)
    assert masked is not None
    answer = masked.text.upper().replace("0", " 0 ")
    assert restore(masked, answer) == "IT SAYS “Go” TWICE"


@pytest.mark.parametrize(
    "answer", ["Piše.", "Piše [[0]] [[0]] [[1]].", "Piše [[0]].", "Piše [[0]] [[1]] [[2]]."]
)
def test_lost_doubled_or_invented_placeholders_are_noticed(answer: str) -> None:
    masked = mask('It says "a" "b".', "brackets")
    assert masked is not None
    assert restore(masked, answer) is None


def test_text_that_looks_like_a_placeholder_needs_another_style() -> None:
    text = 'It says "a" [[1]].'
    assert mask(text, "visible") is None
    masked = mask(text, "angle")
    assert masked is not None and restore(masked, masked.text) == text


@pytest.mark.parametrize(
    ("source", "target", "faults"),
    [
        ("3 cats", "3 mačke", []),
        ("3 cats", "tri mačke", ["missing 3"]),
        ("three cats", "3 mačke", ["too much 3"]),
        ("3.5 kg", "3,5 kg", ["missing 3.5", "too much 3,5"]),
        ("5 of 15", "15 od 15", ["missing 5", "too much 15"]),
        ('the "STOP" sign', "znak STANI", ['missing "STOP"']),
        ("the 1st", "primero", []),
        ("the 1st", "1.", []),
        ("3 cats", "3只猫", []),
        ("3 cats, option B", "３只猫，选项Ｂ", []),
        ("3 cats", "٣ قطط", []),
        ("a cat", "«mačka» K.", []),
        ("option C", "opcija D", ["missing C"]),
    ],
)
def test_damage_is_named(source: str, target: str, faults: list[str]) -> None:
    assert damaged_parts(source, target) == faults


def test_split_keeps_words_apart_from_what_is_protected() -> None:
    pieces = split('The sign says "STOP", 2 times.')
    assert "".join(piece for piece, _ in pieces) == 'The sign says "STOP", 2 times.'
    assert [piece for piece, is_protected in pieces if not is_protected] == [
        "The sign says",
        "times",
    ]


_ALPHABET = "aB3 .,'\"`$\\{}[]()<>/_*&#;:@-“”«»„‘’1č只\n"


@settings(deadline=None, max_examples=200)
@given(st.text(_ALPHABET, max_size=60))
def test_any_text_survives(text: str) -> None:
    spans = find_spans(text)
    assert all(a.end <= b.start for a, b in zip(spans, spans[1:], strict=False))
    assert all(s.start < s.end for s in spans)
    assert "".join(piece for piece, _ in split(text)) == text
    assert damaged_parts(text, text) == []
    for style in ("visible", *STYLES):
        masked = mask(text, style)
        assert masked is None or restore(masked, masked.text) == text


@pytest.mark.parametrize(
    "unit",
    ["'a ", "$a", "\\begin{a}", "\\(", "[1,", "`", "<a ", "“", "A. ", "1.", "www.", "a@", "a"],
)
def test_time_grows_with_the_length_of_hostile_text(unit: str) -> None:
    """Four times the text takes about four times the time; backtracking would take sixteen."""

    def seconds(length: int) -> float:
        start = time.process_time()
        find_spans("1" + unit * (length // len(unit)))
        return time.process_time() - start

    assert seconds(100_000) < 10 * seconds(25_000) + 0.5
