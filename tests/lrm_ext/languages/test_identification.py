"""Many texts at once are scored as one, and as py3langid scores them."""

from __future__ import annotations

import pytest
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from lrm_ext.emoji.conversations import caption_turns, question_turns
from lrm_ext.emoji.scenes import load_scenes
from lrm_ext.languages.identification import LetterScores

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
