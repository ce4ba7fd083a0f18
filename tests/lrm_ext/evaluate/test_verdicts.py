import pytest

from llava.errors import DataError
from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.kind import Reading, judge_answers, text_answers
from lrm_ext.evaluate.reading import answer_words


def yes_no(question_id, answer):
    return Item(question_id, "a.png", "?", "existence", answer, "hr", "yesno")


def naming(question_id, answer, lang="hr"):
    return Item(question_id, "a.png", "?", "naming", answer, lang, "text")


ITEMS = [yes_no("1", "Da"), yes_no("2", "Ne"), naming("3", "mačka"), naming("4", "pas")]
ENGLISH = text_answers([naming("3", "cat", "en"), naming("4", "dog", "en")])


def score(texts):
    return judge_answers(
        ITEMS, texts, Reading(answer_words("hr"), (), text_answers(ITEMS), ENGLISH)
    )


def test_content_decides_and_language_is_reported_apart():
    verdicts = score({"1": "Yes", "2": "Ne.", "3": "cat", "4": "mačka"})
    assert [v.correct for v in verdicts] == [True, True, False, False]
    assert [v.answer_lang for v in verdicts] == ["en", "hr", "en", "hr"]
    assert [v.gold for v in verdicts] == ["yes", "no", "macka", "pas"]


def test_empty_and_undecided_answers_are_wrong():
    verdicts = score({"1": "", "2": "možda", "3": "", "4": "Pas"})
    assert [v.correct for v in verdicts] == [False, False, False, True]
    assert [v.empty for v in verdicts] == [True, False, True, False]
    assert verdicts[1].parsed == "other"


def test_a_question_without_answer_is_an_error():
    with pytest.raises(DataError, match=r"1 of 4 questions .* \(4"):
        score({"1": "Da", "2": "Da", "3": "mačka"})


def test_an_expected_answer_that_says_neither_is_an_error():
    with pytest.raises(DataError, match="'Oui' is neither yes nor no"):
        judge_answers([yes_no("1", "Oui")], {"1": "Da"}, Reading(answer_words("hr")))


@pytest.mark.parametrize(
    "text",
    [
        "<think>Da? Ne.</think>\nDa",
        "Ne. Ne!</think>Da",
        "Ne znam. <answer>Da</answer>",
        "<ANSWER>Ne</ANSWER> ili <answer>\nDa",
    ],
)
def test_what_is_thought_before_an_answer_is_not_read(text):
    assert score({"1": text, "2": "Ne", "3": "mačka", "4": "pas"})[0].correct


def test_tags_around_a_letter_and_a_word():
    options = Item("1", "a.png", "?", "c", "B", "en", "letter", options=("red", "green"))
    english = Reading(answer_words("en"))
    (letter,) = judge_answers([options], {"1": "A? <answer>B</answer>"}, english)
    croatian = Reading(answer_words("hr"))
    (word,) = judge_answers([naming("3", "mačka")], {"3": "<answer>mačka</answer>"}, croatian)
    assert letter.correct and word.correct
