"""Yes and no in other languages: what English parsers make of them, and what is right."""

import pytest

from lrm_ext.emoji.conversations import caption
from lrm_ext.emoji.scenes import load_scenes
from lrm_ext.evaluate import mme, pope
from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.kind import Reading, fidelity, language_of_prose
from lrm_ext.evaluate.kinds import get_kind
from lrm_ext.evaluate.reading import answer_words
from lrm_ext.evaluate.scoring import score_benchmark
from lrm_ext.languages.identification import identify
from lrm_ext.languages.registry import PAPER_LANGUAGES, get_language


def question(number, answer, lang, category="existence"):
    return Item(
        str(number), f"{number // 2}.png", f"q{number}", category, answer, lang, "yesno",
        image_id=f"{category}/{number // 2}",
    )  # fmt: skip


@pytest.mark.parametrize("lang", PAPER_LANGUAGES)
def test_a_perfect_model_is_perfect_in_every_language_and_in_english_words(lang):
    language = get_language(lang)
    items = [question(n, ("Yes", "No")[n % 2], lang) for n in range(8)]
    for yes, no in ((language.yes, language.no), ("Yes.", "No.")):
        texts = {item.question_id: (yes if item.answer == "Yes" else no) for item in items}
        report = score_benchmark(get_kind("mme"), items, texts, lang=lang, mode="local")
        assert report.headline == 200
        wanted = 1.0 if yes == language.yes or lang == "en" else None
        if wanted is not None:
            assert report.fidelity["share"] == wanted
    popes = [
        Item(str(n), f"{n}.png", "q", "random", ("yes", "no")[n % 2], lang, "yesno")
        for n in range(8)
    ]
    texts = {i.question_id: (language.yes if i.answer == "yes" else language.no) for i in popes}
    report = score_benchmark(get_kind("pope"), popes, texts, lang=lang, mode="local")
    assert (report.headline, report.fidelity["share"]) == (100, 1)
    assert report.counts["default_yes"] == 0


def test_english_parsers_turn_other_languages_into_constants():
    assert mme.parse_lmms_eval("Ano") == "no", "Czech yes"
    for answer in ("Ano", "Ne", "Nein", "Non", "Nu", "Нет", "否"):
        assert pope.parse_official(answer) == "yes"


@pytest.mark.parametrize(
    ("lang", "answer", "label"),
    [("cs", "Ano", "yes"), ("cs", "Ne", "no"), ("de", "Nein", "no"), ("fr", "Non", "no"),
     ("ro", "Nu", "no"), ("ru", "Нет", "no"), ("zh", "否", "no"), ("hr", "da", "yes")],
)  # fmt: skip
def test_the_local_rule_reads_them_right(lang, answer, label):
    for kind, category in (("mme", "existence"), ("pope", "random")):
        judge = get_kind(kind).modes["local"]
        item = question(0, label, lang, category)
        found = judge(item, answer, Reading(answer_words(lang)))
        assert (found.parsed, found.correct, found.answer_lang) == (label, True, lang)


def test_wrong_language_counts_by_content_and_apart():
    items = [question(n, ("Yes", "No")[n % 2], "cs") for n in range(4)]
    texts = {"0": "Yes", "1": "Ne", "2": "Ano, je.", "3": "Yes"}
    report = score_benchmark(get_kind("mme"), items, texts, lang="cs")
    assert [v.correct for v in report.verdicts] == [True, True, True, False]
    assert report.fidelity == {"share": 0.5, "in_language": 2, "decided": 4, "undecided": 0}
    assert report.counts["answer_lang"] == {"en": 2, "cs": 2}


def test_prose_is_identified_from_four_words_on():
    assert language_of_prose("Na obrázku není žádný pes", "cs") == "cs"
    assert language_of_prose("There is a dog in the picture", "cs") == "en"
    assert language_of_prose("Es gibt hier keinen Hund", "cs") == "other"
    assert language_of_prose("je tam pes", "cs") == "undecided"
    assert language_of_prose("1 2 3 4 5", "cs") == "undecided"
    assert language_of_prose("图中有一只狗在跑", "zh") == "zh"
    assert fidelity(["cs", "en", "letter", "undecided", "missing"], "cs") == (1, 2)


@pytest.mark.parametrize(("lang", "sibling"), [("ms", "id"), ("no", "da"), ("sr", "bg")])
def test_an_answer_that_is_taken_for_a_sibling_counts_as_ones_own(lang, sibling):
    captions = [caption(scene, lang, 0)[1] for scene in load_scenes(40)]
    assert sibling in map(identify, captions)
    assert {language_of_prose(text, lang) for text in captions} == {lang}


def test_serbian_in_latin_is_not_croatian():
    said = "Na slici se vidi mačka pored psa"
    assert identify(said) == "hr" and language_of_prose(said, "sr") == "sr"


def test_default_yes_and_prose_answers_of_pope():
    item = question(0, "yes", "fr", "random")
    judge = get_kind("pope").modes["local"]
    found = judge(item, "Nous voyons un grand chien", Reading(answer_words("fr")))
    assert (found.parsed, found.by_default, found.answer_lang) == ("yes", True, "fr")
    found = judge(item, "Sí", Reading(answer_words("de")))
    assert (found.parsed, found.by_default, found.answer_lang) == ("yes", True, "other")


def test_where_an_answer_counts_in_pope():
    assert pope.cell_of("yes", "unparsed", "local") == "fn"
    assert pope.cell_of("no", "unparsed", "local") == "fp"
    assert pope.cell_of("no", "unparsed", "lmms-eval") is None
    assert pope.cell_of("no", "unparsed", "vlmevalkit") == "tn"
    assert pope.cell_of("no", "missing", "lmms-eval") == "fp"
