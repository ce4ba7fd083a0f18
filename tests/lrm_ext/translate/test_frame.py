"""A turn is taken apart so that only words reach an engine, and what repeats is looked up."""

from __future__ import annotations

import pytest
from fake_chat import LETTER, PROMPT
from hypothesis import given, settings
from hypothesis import strategies as st

from lrm_ext.languages.registry import PAPER_LANGUAGES, get_language
from lrm_ext.translate.segment import (
    COPY,
    FIXED,
    UNIT,
    fixed_text,
    frame,
    question_among,
    sentences,
)


def units(text: str) -> list[str]:
    return [piece.text for piece in frame(text) if piece.kind == UNIT]


def fixed(text: str) -> list[str]:
    return [piece.text for piece in frame(text) if piece.kind == FIXED]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<image>\nWhat color is it?", ["What color is it?"]),
        ("What color is it?\n<image>", ["What color is it?"]),
        ("1. A red car\n2) a dog\n- **cat**\n# Title", ["A red car", "a dog", "**cat**", "Title"]),
        ("A. cat\n(B) dog\nC: 5\nD. E", ["cat", "dog"]),
        ("| a dog | 3 |\n|---|---|\n| two cats | B |", ["a dog", "two cats"]),
        ("Look:\n```python\nprint('a')\n```\ndone", ["Look:", "done"]),
        ("So\n$$\nx = 1\n$$\nholds", ["So", "holds"]),
        ("[0.1, 0.2, 0.3, 0.4]", []),
        ("3\n10:30\nB\nA\n3.5%\n$x^2$\nhttps://a.b/c", []),
        ('"STOP"', []),
        ("1st", ["1st"]),
        ("  a cat \r\n a dog\u2028x y", ["a cat", "a dog", "x y"]),
        ("", []),
        ("\n\n", []),
    ],
)
def test_units_are_words(text: str, expected: list[str]) -> None:
    assert units(text) == expected
    assert "".join(piece.text for piece in frame(text)) == text


def test_requests_are_looked_up_not_translated() -> None:
    text = f"<image>\nWhat is it?\n{PROMPT}"
    assert units(text) == ["What is it?"] and fixed(text) == [PROMPT]
    text = f"Is it red? {PROMPT}"
    assert units(text) == ["Is it red?"] and fixed(text) == [PROMPT]
    assert fixed(f"A. cat\nB. dog\n{LETTER}") == [LETTER]
    assert fixed("Yes") == ["Yes"] and fixed("no.") == ["no."]


def test_a_request_with_a_colon_is_followed_by_what_it_asks_about() -> None:
    ask = "Please provide a short description for this region:"
    pieces = frame(f"{ask} [0.1, 0.2, 0.3, 0.4].")
    assert [(p.text, p.kind) for p in pieces] == [
        (ask, FIXED),
        (" ", COPY),
        ("[0.1, 0.2, 0.3, 0.4].", COPY),
    ]
    ask = "Please provide the bounding box coordinate of the region this sentence describes:"
    assert units(f"{ask} a red car") == ["a red car"]


def test_text_seen_in_the_picture_is_copied() -> None:
    assert units("Reference OCR token: STOP, way out") == []


@pytest.mark.parametrize("lang", PAPER_LANGUAGES[1:])
def test_fixed_texts_in_every_language(lang: str) -> None:
    language = get_language(lang)
    assert fixed_text("Yes", lang) == language.yes
    assert fixed_text("no", lang) == language.no[:1].lower() + language.no[1:]
    stop = "." if language.spaced else "。"
    assert fixed_text("Yes.", lang) == language.yes + stop
    assert fixed_text(PROMPT, lang) == language.short_answer
    assert fixed_text(LETTER, lang) == language.option_letter
    assert fixed_text("A red car", lang) is None
    english = get_language("en")
    for key, text in english.fixed_prompts.items():
        found = fixed_text(text, lang)
        assert found == language.fixed_prompts[key] != text
        assert found.endswith((":", "：")) == text.endswith(":")
    assert language.fixed_prompts.keys() == english.fixed_prompts.keys()
    assert language.fixed_answers.keys() == english.fixed_answers.keys()
    # the request names the very answer that is given
    assert language.fixed_answers["unanswerable"] in language.fixed_prompts["unanswerable"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<image>\nWhat color is it?\n" + PROMPT, "What color is it?"),
        ("Which one?\nA. cat\nB. dog\n" + LETTER, "Which one?"),
        ("Hint: look.\nIs it red?\nUse one word.", "Is it red?"),
        ("Describe it.", "Describe it."),
        ("<image>", ""),
    ],
)
def test_the_question_of_a_turn(text: str, expected: str) -> None:
    assert question_among(frame(text)) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three?", ["One. ", "Two! ", "Three?"]),
        ("Mr. Smith and Dr. No went. They left.", ["Mr. Smith and Dr. No went. ", "They left."]),
        ("J. R. Ewing sat. He left.", ["J. R. Ewing sat. ", "He left."]),
        ("It is 3.5 m high. Really.", ["It is 3.5 m high. ", "Really."]),
        ('It says "Go. Now." He went.', ['It says "Go. Now." ', "He went."]),
        ("e.g. A dog. i.e. B.", ["e.g. A dog. i.e. B."]),
        ("no end", ["no end"]),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert sentences(text) == expected


@settings(deadline=None, max_examples=200)
@given(st.text("aB3 .,?!'\"`$\\|#-<>image:()[]č只\n\r\u2028\u200f", max_size=80))
def test_pieces_give_the_text_again(text: str) -> None:
    pieces = frame(text)
    assert "".join(piece.text for piece in pieces) == text
    assert all("\n" not in piece.text for piece in pieces if piece.kind == UNIT)
    assert "".join(sentences(text)) == text
