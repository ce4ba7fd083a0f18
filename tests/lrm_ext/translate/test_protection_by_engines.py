"""What must not change comes back whatever an engine does to it, or the row is rejected."""

from __future__ import annotations

import codecs
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from fake_chat import LETTER, PROMPT
from fake_engine import FakeEngine

from llava.data.sample import Turn
from lrm_ext.corpus.store import CorpusRow, CorpusText
from lrm_ext.languages.registry import PAPER_LANGUAGES, get_language
from lrm_ext.translate.cache import Cache
from lrm_ext.translate.protect import STYLES, find_spans
from lrm_ext.translate.segment import Translated, Unit, build_text, plan_row
from lrm_ext.translate.translator import Translator


@pytest.fixture
def translator(tmp_path: Path) -> Callable[..., Translator]:
    return lambda *engines: Translator(engines, Cache(tmp_path / "cache.sqlite"), "hr")


def said(text: str) -> str:
    """A translation that can be told from the text: words of small letters in rot13."""
    return re.sub(
        r"(?<![A-Za-z0-9_/.\\])[a-z]{2,}(?![A-Za-z(])", lambda m: codecs.encode(m[0], "rot13"), text
    )


_OF_STYLE = {
    style: re.compile(r"\d+".join(map(re.escape, form.format("\0").split("\0"))))
    for style, form in STYLES.items()
}


def has_placeholder(text: str) -> bool:
    return any(pattern.search(text) for pattern in _OF_STYLE.values())


# What must survive, each with words around it.
TEXTS = {
    "number": "There are 3 of 1,000.5 left at 10:30 with -5 degrees",
    "coordinates": "The dog is at [0.1, 0.22, 0.33, 0.4] and (12, 5) here",
    "option": "The right one is option C or (B) there",
    "quote": 'The sign says "STOP, go back" and the shirt “Go 5” too',
    "url": "Look at https://a.b/c?d=1 or write to me@b.org today",
    "code": "Call `print(1)` before `x` is used",
    "latex": r"The formula $x^2 + 1$ or \(a\) with \frac{1}{2} holds",
    "markup": "A <b>big</b> dog &amp; a **small** one in [this](http://a.b) text",
    "token": "The plane B2 weighs 5kg with X-1 on it",
}
# What engines do to placeholders.
MANGLED = {
    "lost": lambda m: "",
    "doubled": lambda m: f"{m[0]} {m[0]}",
    "renumbered": lambda m: re.sub(r"\d+", lambda n: str(int(n[0]) + 1), m[0]),
    "spelled": lambda m: re.sub(r"\d+", "zero", m[0]),
    "other marks": lambda m: re.sub(r"\W|_", "#", m[0]).replace("Q", "K").replace("x", "z"),
    "half": lambda m: m[0][: len(m[0]) // 2],
    "added": lambda m: f"{m[0]} {re.sub(chr(92) + 'd+', '7', m[0])}",
}


def mangler(how: str, spared: str = "") -> Callable[[str], str]:
    """An engine that spoils all placeholders but those of one style."""

    def answer(text: str) -> str:
        for style, pattern in _OF_STYLE.items():
            if style != spared:
                text = pattern.sub(MANGLED[how], text)
        return said(text)

    return answer


def parts_of(text: str) -> list[str]:
    return [text[s.start : s.end] for s in find_spans(text, any_quotation=True)]


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("how", MANGLED)
def test_what_is_protected_survives_every_way_of_spoiling(
    translator: Callable[..., Translator], kind: str, how: str
) -> None:
    unit, engine = Unit(TEXTS[kind]), FakeEngine(mangler(how))
    work = translator(engine)
    result = work.translate([unit])[unit]
    assert result.text == said_around(unit.text) or result.text == said(unit.text)
    assert parts_of(str(result.text)) == parts_of(unit.text)
    if has_placeholder(engine.asked[0].text):
        assert work.counts["fake: cut"] == 1


def said_around(text: str) -> str:
    """The same with the protected parts as they are."""
    pieces, end = [], 0
    for span in find_spans(text):
        pieces += said(text[end : span.start]), text[span.start : span.end]
        end = span.end
    return "".join([*pieces, said(text[end:])])


@pytest.mark.parametrize("style", STYLES)
def test_each_style_is_tried_until_one_is_kept(
    translator: Callable[..., Translator], style: str
) -> None:
    unit, engine = Unit(TEXTS["quote"]), FakeEngine(mangler("lost", spared=style))
    work = translator(engine)
    assert work.translate([unit])[unit].text == said_around(unit.text)
    way = "visible" if style == "brackets" else style  # what is hidden in sight is in brackets
    assert work.counts[f"fake: {way}"] == 1 and not work.counts["fake: cut"]


def test_the_ways_come_in_this_order(translator: Callable[..., Translator]) -> None:
    engine = FakeEngine(mangler("lost"), mask_styles=("angle", "word"))
    translator(engine).translate([Unit('It says "STOP" here')])
    asked = [segment.text for segment in engine.asked]
    # brackets, angle, word, then the pieces around
    assert asked == [
        "It says [[0]] here",
        "It says ⟦0⟧ here",
        "It says XQ0QX here",
        "It says",
        "here",
    ]


def test_numbers_in_sight_that_change_are_hidden(translator: Callable[..., Translator]) -> None:
    def answer(text: str) -> str:
        return said(text.replace("102", "103"))

    unit, engine = Unit("There are 102 people"), FakeEngine(answer)
    work = translator(engine)
    assert work.translate([unit])[unit].text == said_around(unit.text)
    assert work.counts["fake: brackets"] == 1


@pytest.mark.parametrize(
    ("answer", "fault"),
    [
        (lambda text: said(text) + " 7", "too much 7"),
        (lambda text: said(text) + "\n<image>", "too much <image>"),
        (lambda text: "### USER: " + said(text), "too much ###"),
    ],
)
def test_what_cannot_be_mended_is_rejected(
    translator: Callable[..., Translator], answer: Callable[[str], str], fault: str
) -> None:
    unit = Unit("There are 3 people")
    result = translator(FakeEngine(answer)).translate([unit])[unit]
    assert (
        result.text is None and result.reason.startswith("protected: ") and fault in result.reason
    )


def test_then_the_next_engine_is_tried(translator: Callable[..., Translator]) -> None:
    bad, good = FakeEngine(lambda text: said(text) + " 7", "bad"), FakeEngine(said, "good")
    unit = Unit("There are 3 people")
    result = translator(bad, good).translate([unit])[unit]
    assert result == Translated(said(unit.text), "good 1", "")


TURN = "\n".join(
    [
        "<image>",
        "# Look at this",
        "- a red car (12, 5)",
        "- see https://a.b/c",
        "| thing | 3 |",
        "```",
        "print('not words')",
        "```",
        "Which one is it?",
        "A. the dog",
        "B. 5",
        "C. C",
        LETTER,
    ]
)


def translate_row(
    engine: FakeEngine, work: Translator, *turns: str, lang: str = "hr"
) -> CorpusText:
    roles = ("human", "gpt") * len(turns)
    pairs = tuple(Turn(role, text) for role, text in zip(roles, turns, strict=False))
    row = CorpusRow("1", "a.png", "s", None, True, pairs)
    plan = plan_row(row, lang)
    return build_text(plan, work.translate(plan.units))


@pytest.mark.parametrize("how", MANGLED)
def test_lines_lists_tables_and_code_stay(translator: Callable[..., Translator], how: str) -> None:
    engine = FakeEngine(mangler(how))
    text = translate_row(engine, translator(engine), TURN, "B")
    assert text.status == "ok", text.reason
    ours, theirs = TURN.split("\n"), text.turns[0].text.split("\n")
    assert len(ours) == len(theirs)
    assert [theirs[i] for i in (0, 5, 6, 7, 10, 11)] == [ours[i] for i in (0, 5, 6, 7, 10, 11)]
    assert theirs[-1] == get_language("hr").option_letter and text.turns[1].text == "B"
    for i in (1, 2, 3, 4, 8, 9):
        assert theirs[i] != ours[i] and parts_of(theirs[i]) == parts_of(ours[i])
        assert theirs[i].split(" ")[0] == ours[i].split(" ")[0] or i == 8
    assert not any(token in s.text for s in engine.asked for token in ("<image>", "print", "|"))


@pytest.mark.parametrize("lang", PAPER_LANGUAGES[1:])
def test_requests_and_fixed_answers_are_the_same_everywhere_and_cost_nothing(
    tmp_path: Path, lang: str
) -> None:
    engine, language = FakeEngine(said), get_language(lang)
    work = Translator([engine], Cache(tmp_path / "cache.sqlite"), lang)
    for turn in (PROMPT, f"<image>\nIs it red?\n{PROMPT}", f"Is it red? {PROMPT}"):
        for answer, expected in (("Yes", language.yes), ("No", language.no)):
            text = translate_row(engine, work, turn, answer, lang=lang)
            assert text.turns[0].text.endswith(language.short_answer)
            assert text.turns[1].text == expected
    for turn, answer in ((f"Which?\nA. a cat\nB. a dog\n{LETTER}", "B"), ("How many?", "12")):
        assert translate_row(engine, work, turn, answer, lang=lang).turns[1].text == answer
    asked = {segment.text for segment in engine.asked}
    assert asked == {"Is it red?", "Which?", "a cat", "a dog", "How many?"}


def test_short_answers_are_translated_with_their_question(
    translator: Callable[..., Translator],
) -> None:
    engine = FakeEngine(said, context="native")
    translate_row(engine, translator(engine), "<image>\nWhat colour is the wall?", "orange")
    assert [(s.text, s.context) for s in engine.asked] == [
        ("What colour is the wall?", ""),
        ("orange", "What colour is the wall?"),
    ]


def test_an_engine_without_context_is_sent_question_and_answer(
    translator: Callable[..., Translator],
) -> None:
    table = {
        "What colour is the wall?": "Koje je boje zid?",
        "What colour is the wall? orange.": "Koje je boje zid? Narančast.",
        "What colour is the roof?": "Koje je boje krov?",
        "What colour is the roof? red.": "Krov je crven.",
        "red": "crveno",
    }
    engine = FakeEngine(table.get, context="joined")
    work = translator(engine)
    text = translate_row(engine, work, "What colour is the wall?", "orange")
    assert text.turns[1].text == "Narančast" and work.counts["fake: with its question"] == 1
    # where the two cannot be told apart, the answer is asked for alone
    assert translate_row(engine, work, "What colour is the roof?", "red").turns[1].text == "crveno"


def test_options_that_became_the_same_are_rejected(translator: Callable[..., Translator]) -> None:
    table = {"Which?": "Koje?", "a cup": "šalica", "a mug": "šalica"}
    engine = FakeEngine(table.get)
    text = translate_row(engine, translator(engine), "Which?\nA. a cup\nB. a mug", "A")
    assert (text.status, text.reason) == (
        "rejected",
        "options: 'a cup' and 'a mug' are both 'šalica'",
    )


def test_text_in_the_picture_is_copied(translator: Callable[..., Translator]) -> None:
    engine = FakeEngine(said)
    turn = "What is written on it?\nReference OCR token: NO, WAY OUT"
    text = translate_row(engine, translator(engine), turn, '"NO WAY OUT"')
    assert text.turns[0].text.endswith(": NO, WAY OUT") and text.turns[1].text == '"NO WAY OUT"'
    assert [segment.text for segment in engine.asked] == ["What is written on it?"]
