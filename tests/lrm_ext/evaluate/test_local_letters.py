"""Option letters in ten languages: the local rules, and letters that are words or look alike."""

import pytest

from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.kind import Reading, judge_locally
from lrm_ext.evaluate.reading import answer_words, infer_local
from lrm_ext.languages.registry import PAPER_LANGUAGES, get_language

FRUIT = ["jablko", "hru\u0161ka", "ban\u00e1n", "zral\u00fd ban\u00e1n"]

TABLE = [
    ("cs", "B", "B"),
    ("cs", "b)", "B"),
    ("cs", "Odpověď je C", "C"),
    ("cs", "A. jablko", "A"),
    ("cs", "A je tam ovoce", None),
    ("cs", "B nebo C", None),
    ("cs", "Je to zralý banán", "D"),
    ("cs", "BANAN", "C"),
    ("fr", "L'option B.", "B"),
    ("fr", "L\u2019option B.", "B"),
    ("fr", "A", "A"),
    ("ru", "В", "B"),
    ("ru", "в", "B"),
    ("ru", "С.", "C"),
    ("ru", "Б", "B"),
    ("ru", "Ответ: Г", "D"),
    ("ru", "А или В", None),
    ("ru", "В центре фото", None),
    ("zh", "Ｂ", "B"),
    ("zh", "选（Ｃ）。", "C"),
    ("zh", "AB", None),
    ("zh", "答案是B", "B"),
    ("zh", "选项D正确", "D"),
    ("de", "E", None),
    ("de", "", None),
    # a letter needs a word boundary on both sides: other parsers read an A in each of these
    ("es", "Respuesta: B", "B"),
    ("it", "La risposta è C.", "C"),
    ("fr", "La réponse est C.", "C"),
    # a letter that is a word of the language
    ("fr", "Il y en A deux", None),
    ("en", "A picture of something", None),
    ("en", "The answer is A", "A"),
    ("it", "A) mela", "A"),
    ("ro", "Răspunsul este (A)", "A"),
    ("hr", "Odgovor je A.", "A"),
    ("de", "**B**", "B"),
    ("es", "\u00abC\u00bb", "C"),
    ("cs", "č", None),
    ("cs", "Ďábel", None),
    ("fr", "C'est la poire", None),
    ("en", "B12", None),
    ("en", "D'accord", None),
]


@pytest.mark.parametrize(("lang", "answer", "letter"), TABLE)
def test_letters(lang, answer, letter):
    language = get_language(lang)
    choice = infer_local(answer, FRUIT, language.local.word_letters, language.spaced)
    assert choice.letter == letter


NINE = [f"q{number}" for number in range(9)]


@pytest.mark.parametrize(
    ("lang", "answer", "letter"),
    [
        ("en", "I", "I"),
        ("en", "i.", "I"),
        ("en", "The answer is I", "I"),
        ("en", "I. q8", "I"),
        ("en", "I do not know", None),
        ("cs", "F", "F"),
        ("cs", "Odpověď je H.", "H"),
        ("cs", "I to je možné", None),
        ("it", "I", "I"),
        ("it", "I cani", None),
        ("zh", "答案是Ｇ", "G"),
        ("ru", "Ответ: Н", "H"),
        ("ru", "Е", "E"),
        ("ru", "Ж", "G"),
        ("de", "J", None),
        ("de", "F oder G", None),
    ],
)
def test_letters_of_nine_options(lang, answer, letter):
    language = get_language(lang)
    choice = infer_local(answer, NINE, language.local.word_letters, language.spaced)
    assert choice.letter == letter


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("F", "F"), ("(i)", "I"), ("It is B", "B"), ("I think B", "B"), ("It is F", None)],
)
def test_letters_where_the_options_are_unknown(answer, letter):
    """Further letters than E count only alone: in a sentence "I" is hardly ever an option."""
    assert infer_local(answer, [], get_language("en").local.word_letters).letter == letter


def test_cyrillic_letters_that_could_be_two_are_counted():
    language = get_language("ru")
    assert infer_local("В", FRUIT, language.local.word_letters).ambiguous
    assert infer_local("Ответ В", FRUIT, language.local.word_letters).ambiguous
    assert not infer_local("Б", FRUIT, language.local.word_letters).ambiguous


@pytest.mark.parametrize("lang", PAPER_LANGUAGES)
@pytest.mark.parametrize("letter", ["A", "B", "C", "D"])
@pytest.mark.parametrize(
    "form",
    ["{}", "{}.", "({})", "{})", "{}: x", "**{}**", "\uff08{}\uff09", "<b>{}</b>", "\\boxed{{{}}}",
     "'{}'", "1. {}", "\u200e{}"],
)  # fmt: skip
def test_every_letter_in_every_language(lang, letter, form):
    language = get_language(lang)
    options = ["qq", "ww", "ee", "rr"]
    choice = infer_local(form.format(letter), options, language.local.word_letters, language.spaced)
    assert choice.letter == letter


@pytest.mark.parametrize("lang", PAPER_LANGUAGES)
def test_nothing_is_undecided_never_a_guess(lang):
    language = get_language(lang)
    for answer in ("", "?", "...", "42", "\u3002", "A B C D"):
        found = infer_local(answer, FRUIT, language.local.word_letters, language.spaced)
        assert found.letter is None


def item(lang="cs", answer="C", options=("pes", "ko\u010dka", "ryba", "k\u016f\u0148")):
    return Item("1", "a.png", "?", "x", answer, lang, "letter", options=options)


def read(text, lang="cs", english=()):
    words = answer_words(lang)
    reading = Reading(words, get_language(lang).local.word_letters, english_options={"1": english})
    return judge_locally(item(lang), text, reading)


def test_options_of_one_character_are_no_letters():
    assert infer_local("3", ["1", "2", "3"], ["A"]).letter == "C"
    assert infer_local("狗。", ["猫", "狗"], ["A"], spaced=False).letter == "B"
    assert infer_local("13", ["1", "2", "3"], ["A"]).letter is None


def test_an_english_option_counts_by_content_and_as_english():
    english = ("a dog", "a cat", "a fish", "a horse")
    found = read("a fish", english=english)
    assert (found.parsed, found.correct, found.answer_lang) == ("C", True, "en")
    found = read("Ryba", english=english)
    assert (found.parsed, found.correct, found.answer_lang) == ("C", True, "cs")
    assert read("poisson", english=english).parsed == "other"


def test_language_of_an_answer_by_letter():
    assert read("C").answer_lang == "letter"
    assert read("Odpov\u011b\u010f je C").answer_lang == "letter", "too few words to tell"
    assert read("The correct answer to the question is C").answer_lang == "en"
    assert read("Spr\u00e1vn\u00e1 odpov\u011b\u010f na tuto ot\u00e1zku je C").answer_lang == "cs"
    assert read("Das kann man hier leider nicht sehen").answer_lang == "other"
    assert read("nev\u00edm to").answer_lang == "undecided"
