from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llava.data.sample import Sample, Turn
from llava.errors import ConfigError, DataError
from lrm_ext.corpus.store import CorpusRow
from lrm_ext.instructions import ParsedReply, get_instruction, list_instructions
from lrm_ext.instructions.registry import insert_instruction, split_human_text
from lrm_ext.languages.registry import PAPER_LANGUAGES, get_language

OTHERS = PAPER_LANGUAGES[1:]
SHORT = get_language("en").short_answer
CS_SHORT = get_language("cs").short_answer


def make_row(*texts: str) -> CorpusRow:
    turns = tuple(Turn("human" if i % 2 == 0 else "gpt", t) for i, t in enumerate(texts))
    return CorpusRow("r1", "1.jpg", "unit", "vqa", True, turns)


ROW = make_row(f"<image>\nIs there a duck?\n{SHORT}", "Yes", "And a dog?", "No")
CZECH = make_row(f"<image>\nJe tam kachna?\n{CS_SHORT}", "Ano", "A pes?", "Ne").turns


def texts(sample: Sample) -> list[str]:
    return [turn.text for turn in sample.turns]


def test_mvqa_leaves_the_text_alone() -> None:
    sample = get_instruction("mvqa").format(ROW, CZECH, "cs")
    assert sample.turns == CZECH
    assert (sample.id, sample.lang, sample.instruction) == ("r1@cs.mvqa", "cs", "mvqa")
    assert (sample.image, sample.task, sample.source) == ("1.jpg", "vqa", "unit")


def test_english_row_is_plain() -> None:
    sample = get_instruction("mvqa").format(ROW, None, "en")
    assert sample.turns == ROW.turns
    assert (sample.id, sample.lang) == ("r1", "en")


def test_epvqa_asks_before_the_format_prompt_and_answers_in_two_marked_parts() -> None:
    sample = get_instruction("epvqa").format(ROW, CZECH, "cs")
    ask = get_language("cs").epvqa_instruction
    assert texts(sample) == [
        f"<image>\nJe tam kachna?\n{ask}\n{CS_SHORT}",
        "English: Is there a duck?\nOdpov\u011b\u010f: Ano",
        f"A pes?\n{ask}",
        "English: And a dog?\nOdpov\u011b\u010f: Ne",
    ]
    assert sample.lang == "cs"


def test_bvqa_names_the_answer_language_in_the_questions_language() -> None:
    bvqa = get_instruction("bvqa")
    to_en = bvqa.format(ROW, CZECH, "cs", "to_en")
    assert texts(to_en) == [
        f"<image>\nJe tam kachna?\nOdpov\u011bzte anglicky.\n{CS_SHORT}",
        "Yes",
        "A pes?\nOdpov\u011bzte anglicky.",
        "No",
    ]
    assert (to_en.lang, to_en.id) == ("en", "r1@cs.bvqa.to_en")
    from_en = bvqa.format(ROW, CZECH, "cs", "from_en")
    assert texts(from_en) == [
        f"<image>\nIs there a duck?\nAnswer in Czech.\n{SHORT}",
        "Ano",
        "And a dog?\nAnswer in Czech.",
        "Ne",
    ]
    assert (from_en.lang, from_en.id) == ("cs", "r1@cs.bvqa.from_en")


def test_caption_row_keeps_its_question() -> None:
    row = make_row("<image>\nDescribe the picture.", "A duck.")
    local = make_row("<image>\nPopi\u0161te obr\u00e1zek.", "Kachna.").turns
    assert texts(get_instruction("mvqa").format(row, local, "cs"))[0] == local[0].text


def test_supervision_comes_from_the_answer() -> None:
    turns = (CZECH[0], Turn("gpt", "Ano", supervised=False), *CZECH[2:])
    for name in ("mvqa", "epvqa"):
        sample = get_instruction(name).format(ROW, turns, "cs")
        assert [t.supervised for t in sample.turns] == [True, False, True, True]
    to_en = get_instruction("bvqa").format(ROW, turns, "cs", "to_en")
    assert all(t.supervised for t in to_en.turns)


@pytest.mark.parametrize("lang", OTHERS)
@pytest.mark.parametrize("name", ["mvqa", "epvqa", "bvqa"])
def test_every_language_and_direction_makes_a_valid_sample(lang: str, name: str) -> None:
    language = get_language(lang)
    row = make_row(f"<image>\nDuck?\n{SHORT}", "Yes")
    local = (Turn("human", f"<image>\nX?\n{language.short_answer}"), Turn("gpt", language.yes))
    instruction = get_instruction(name)
    for direction in instruction.directions or (None,):
        sample = instruction.format(row, local, lang, direction)
        assert Sample.from_record(sample.to_record(), "test:1") == sample
        asking = get_language("en") if direction == "from_en" else language
        assert sample.turns[0].text.endswith("\n" + asking.short_answer)
        parsed = instruction.parse(sample.turns[1].text, lang)
        assert parsed.well_formed
        assert parsed.answer == ("Yes" if direction == "to_en" else language.yes)
        assert parsed.translation == ("Duck?" if name == "epvqa" else None)
        assert instruction.ask(local[0].text, lang, "to_en" if name == "bvqa" else None)


line = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1).map(str.strip)
lines = st.lists(line.filter(bool), min_size=1, max_size=3).map("\n".join)


@settings(max_examples=60, deadline=None)
@given(question=lines, answer=lines, lang=st.sampled_from(OTHERS))
def test_epvqa_reply_comes_back_in_its_parts(question: str, answer: str, lang: str) -> None:
    row = make_row("<image>\n" + question, answer)
    epvqa = get_instruction("epvqa")
    reply = epvqa.format(row, row.turns, lang).turns[1].text
    assert epvqa.parse(reply, lang) == ParsedReply(answer, question)


@settings(max_examples=60, deadline=None)
@given(
    question=lines,
    prompt=st.sampled_from(["", SHORT]),
    head=st.sampled_from(["", "<image>\n", "<image>"]),
    tail=st.sampled_from(["", "\n<image>"]),
)
def test_a_turn_is_put_together_as_it_was(question: str, prompt: str, head: str, tail: str) -> None:
    text = head + question + ("\n" + prompt if prompt else "") + tail
    parts = split_human_text(text, [SHORT])
    assert str(parts) == text
    inserted = insert_instruction(text, "In Czech.", [SHORT])
    assert (
        inserted.replace("In Czech.\n", "", 1) == text
        or inserted.replace("\nIn Czech.", "", 1) == text
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<image>\nQ?", "<image>\nQ?\nI."),
        ("Q?\n<image>", "Q?\nI.\n<image>"),
        (f"Q?\n{SHORT}\n<image>", f"Q?\nI.\n{SHORT}\n<image>"),
        (f"Q? {SHORT}", f"Q? {SHORT}\nI."),  # not a line of its own: left alone
        (SHORT, f"{SHORT}\nI."),  # nothing else is asked
        ("<image>", "<image>I."),
        (f"A?\nB?\n{SHORT}", f"A?\nB?\nI.\n{SHORT}"),
    ],
)
def test_place_of_the_instruction(text: str, expected: str) -> None:
    assert insert_instruction(text, "I.", [SHORT]) == expected


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        ("English: A duck?\nOdpov\u011b\u010f: Ano", ParsedReply("Ano", "A duck?")),
        (" English: A duck?\n\nOdpov\u011b\u010f:Ano \n", ParsedReply("Ano", "A duck?")),
        ("Ano", ParsedReply("Ano", None, False, "no translation")),
        ("Odpov\u011b\u010f: Ano", ParsedReply("Ano", None, False, "no translation")),
        ("English: A duck? Ano", ParsedReply("", "A duck? Ano", False, "no answer marker")),
        ("English: A duck?\nOdpov\u011b\u010f:", ParsedReply("", "A duck?", False, "empty answer")),
        ("English:\nOdpov\u011b\u010f: Ne", ParsedReply("Ne", None, False, "empty translation")),
        ("English: A\nAntwort: Ja", ParsedReply("", "A\nAntwort: Ja", False, "no answer marker")),
        ("  ", ParsedReply("", None, False, "empty reply")),
    ],
)
def test_malformed_replies_are_reported_not_guessed(reply: str, expected: ParsedReply) -> None:
    assert get_instruction("epvqa").parse(reply, "cs") == expected


def test_unknown_instruction_lists_the_choices() -> None:
    assert list_instructions() == ("mvqa", "epvqa", "bvqa")
    with pytest.raises(ConfigError, match=r"'xvqa'.*mvqa, epvqa, bvqa"):
        get_instruction("xvqa")


def test_wrong_language_or_direction() -> None:
    with pytest.raises(ConfigError, match="lang is 'en'"):
        get_instruction("epvqa").format(ROW, None, "en")
    with pytest.raises(ConfigError, match="to_en, from_en"):
        get_instruction("bvqa").format(ROW, CZECH, "cs")
    with pytest.raises(ConfigError, match="none"):
        get_instruction("mvqa").ask("Q", "cs", "to_en")
    with pytest.raises(ConfigError, match="'xx'"):
        get_instruction("mvqa").parse("Q", "xx")


def test_missing_or_short_text_names_the_row() -> None:
    with pytest.raises(DataError, match=r"'r1'.*'cs'.*found none"):
        get_instruction("mvqa").format(ROW, None, "cs")
    with pytest.raises(DataError, match=r"'r1'.*found 2 turns"):
        get_instruction("mvqa").format(ROW, CZECH[:2], "cs")


def test_question_that_cannot_be_taken_apart_again_is_refused() -> None:
    row = make_row("<image>\nSay\nAntwort: this", "Yes")
    with pytest.raises(DataError, match="'r1'.*'Antwort:'"):
        get_instruction("epvqa").format(row, row.turns, "de")
    with pytest.raises(DataError, match="'r1'.*asks nothing"):
        get_instruction("epvqa").format(make_row("<image>\n", "Yes"), ROW.turns[:2], "de")
