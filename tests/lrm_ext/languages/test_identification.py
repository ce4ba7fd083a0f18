"""Many texts at once are scored as one, and as py3langid scores them."""

from __future__ import annotations

import pytest
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from llava.files import load_toml
from lrm_ext.emoji.conversations import caption_turns, question_turns
from lrm_ext.emoji.scenes import load_scenes
from lrm_ext.languages import identification, list_languages
from lrm_ext.languages.identification import LetterScores, identify, log_scores
from lrm_ext.languages.registry import PAPER_LANGUAGES
from tools.identify_languages import ANSWERS, length_of

# Languages whose short sentences even people may take for one another.
ALIKE = {"id": ("ms",), "ms": ("id",), "da": ("no",), "no": ("da",), "sr": ("hr",)}
CODES = ["cs", "en", "fr", "hr", "ru", "sr", "zh"]  # "sr" is there in two scripts


@pytest.fixture(scope="module")
def identifier() -> LanguageIdentifier:
    found = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=False)
    found.set_languages(CODES)
    return found


@pytest.fixture(scope="module")
def texts() -> list[str]:
    turns = [
        turn.text.lower()
        for scene in load_scenes(limit=40)[:40]
        for lang in ("hr", "zh", "ru", "cs", "fr")
        for turn in (*question_turns(scene, lang)[:4], *caption_turns(scene, lang))
    ]
    return [*dict.fromkeys(turns), "x" * 900, "e\u0301te\u0301", "\ud800 cut", ""]


def test_scores_are_those_of_py3langid(identifier: LanguageIdentifier, texts: list[str]) -> None:
    found = LetterScores(identifier).score(texts)
    num_told = 0
    for text, scores in zip(texts, found, strict=True):
        expected = dict(identifier.rank(text))
        if min(expected.values()) < -1e30:  # it found nothing, and says so in its own way
            assert set(scores.values()) == {0.0}
        else:
            assert scores == pytest.approx(expected, abs=1e-3)
            num_told += 1
    assert num_told > 300 and set(found[0]) == set(CODES)


def test_a_score_does_not_depend_on_the_batch(
    identifier: LanguageIdentifier, texts: list[str]
) -> None:
    scorer = LetterScores(identifier)
    together = scorer.score(texts)
    assert together == [scorer.score([text])[0] for text in texts]
    assert together[::-1] == scorer.score(texts[::-1])
    assert scorer.score(["", ""]) == [dict.fromkeys(scorer.labels, 0.0)] * 2


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("没有", "zh"), ("Нет, на фото нет собаки.", "ru"), ("Ne, na slici nema psa.", "hr"),
        ("Ano.", "cs"), ("There is no dog.", "en"), ("", ""), ("42 %", ""), ("สุนัข", ""),
    ],
)  # fmt: skip
def test_a_language_is_told_by_script_words_and_letters(text: str, code: str) -> None:
    assert identify(text, PAPER_LANGUAGES) == code


def test_a_language_is_told_among_those_that_are_asked_for() -> None:
    assert identify("Sí, hay un perro.", ("hr", "es")) == "es"
    assert identify("Да", ("ru",)) == "ru"
    assert identify("Да", ("hr", "cs")) == ""


def test_a_language_that_the_identifier_does_not_know_is_told_by_its_words(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spoken = "vaka nai na tapoa".split()
    monkeypatch.setattr(identification, "list_languages", lambda: ("en", "hr", "qaa"))
    monkeypatch.setattr(identification, "_scripts", lambda code: frozenset({"Latn"}))
    monkeypatch.setattr(
        identification, "_words_of_file", lambda code: {*spoken} if code == "qaa" else {"the"}
    )
    assert identify("Nai na vaka") == "qaa"
    assert identify("Where is the dog?") == "en"
    assert "qaa" not in log_scores(("Nai na vaka",))


def test_most_answers_and_sentences_of_each_language_are_told() -> None:
    """The whole table is in docs/languages.md; here are languages with a file of answers."""
    codes = [code for code in list_languages() if (ANSWERS / f"{code}.toml").is_file()]
    for code in codes:
        said = load_toml(ANSWERS / f"{code}.toml")
        texts = [text for key in ("yes", "no", "other") for text in said[key]]
        long = [text for text in texts if length_of(text, code) == "long"]
        told = [text for text in long if identify(text) in (code, *ALIKE.get(code, ()))]
        assert len(told) >= 0.7 * len(long), (code, sorted({*long} - {*told}))
