"""Scores answers by the rules of the benchmarks' owners, odd ones included.

Pure functions of texts: nothing is normalised that an owner does not normalise, and what an owner
guesses is guessed, with a seed. The rules are taken from what the owners publish of them, and
checked on the cases of `tests/golden/eval/owners.toml`, not against the owners' programs. What
reads answers without a guess, in any language, is in `reading.py`.
"""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

import regex

from llava.errors import ConfigError
from llava.eval.m4c_evaluator import (
    EvalAIAnswerProcessor,
    STVQAANLSEvaluator,
    TextVQAAccuracyEvaluator,
)
from lrm_ext.evaluate.reading import infer_vlmevalkit

SEED: Final = 42  # of guesses
NEAR: Final = 0.7
_MMMU_STRIPPED: Final = ",.!?;:'"
_MMMU_MOST_WORDS: Final = 5
_IN_BRACKETS: Final = re.compile(r"\(([A-H])\)|\A\s*([A-H])(?:[.):]|\s*\Z)")
_CHOICE: Final = re.compile(r'"choice"\s*:\s*"?([A-Z])\b|<answer>\W*([A-Z])\W*</answer>', re.I)
_ONLY_LETTER: Final = re.compile(r"\W*([A-Z])\W*")
_NUMBER: Final = re.compile(r"\d+")
_DECIMAL: Final = re.compile(r"-?\d[\d,]*(?:\.\d+)?")
# What is written without spaces is cut into characters with their marks; in anything else a word is
# a run of letters and digits, with apostrophes and hyphens inside.
_TOKEN: Final = regex.compile(
    r"(?=[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])(?=\w)\X"
    r"|[\p{L}\p{M}\p{N}]+(?:['\u2019\-][\p{L}\p{M}\p{N}]+|[.,]\p{N}+)*"
)


def contains(text: str, golds: Sequence[str], deleted: str = "") -> bool:
    """Tells whether an expected answer is somewhere in an answer, also inside of a word.

    xGQA in PangeaBench (Pangea's lmms-eval): both in lower case and stripped. MTVQA (its own
    script) deletes full stops from both.

    Example:
        >>> contains("10 dogs", ["1"])
        True
    """
    said, *wanted = (one.lower().strip().replace(deleted, "") for one in (text, *golds))
    return any(gold in said for gold in wanted)


def says_true_or_false(text: str, golds: Sequence[str]) -> bool:
    """Tells whether an answer has true, or false, in it.

    MaRVL in PangeaBench (Pangea's lmms-eval): every "yes" in the answer becomes "true" and every
    "no" "false", also inside of words; then the expected one is looked for.

    Example:
        >>> says_true_or_false("I now see", ["no"])
        True
    """
    said = text.lower().replace("yes", "true").replace("no", "false")
    return contains(said, [{"yes": "true", "no": "false"}.get(gold, gold) for gold in golds])


def equals(text: str, golds: Sequence[str]) -> bool:
    """Tells whether an answer is an expected one, letter by letter (lmms-eval's exact match)."""
    return text.strip() in golds


def equals_in_lower_case(text: str, golds: Sequence[str]) -> bool:
    """Tells whether an answer is an expected one in any case.

    WorldCuisines has several names of a dish. Centurio's exact match does not say what it does with
    case; it is left out of account here, because models write "Yes" for "yes".
    """
    return text.strip().lower() in [gold.strip().lower() for gold in golds]


def has_number_or_text(text: str, golds: Sequence[str]) -> bool:
    """Tells whether an answer has an expected number, or an expected text in any case.

    MMMU, open questions: numbers, as far as two places, and phrases of conclusion are looked for.
    How those are found is not stated in words; here the whole answer is one. A text of one letter
    must be a word of its own.

    Example:
        >>> has_number_or_text("So it is 1,000 N.", ["1000.00"])
        True
    """
    said = text.lower()
    numbers, words = set(map(_to_places, _DECIMAL.findall(said))), said.split()
    for gold in (one.strip().lower() for one in golds):
        is_number = _DECIMAL.fullmatch(gold)
        found = _to_places(gold) in numbers if is_number else gold in said
        if found and (is_number or len(gold) > 1 or gold in words):
            return True
    return False


def _to_places(number: str) -> float:
    return round(float(number.replace(",", "")), 2)


def begins_with(text: str, golds: Sequence[str]) -> bool:
    """Tells whether an answer begins with an expected one (Centurio's relaxed match of letters).

    Example:
        >>> begins_with("Apple", ["A"])
        True
    """
    return text.strip().startswith(tuple(golds))


def begins_or_ends_with(text: str, golds: Sequence[str]) -> bool:
    """Tells whether an answer begins or ends with an expected one, also within a word.

    MaXM in PangeaBench (relaxed accuracy), with the normalisation of the VQA challenge.
    """
    said, *wanted = map(EvalAIAnswerProcessor(), (text, *golds))
    return any(said.startswith(gold) or said.endswith(gold) for gold in wanted)


def vqa_accuracy(text: str, golds: Sequence[str]) -> float:
    """Returns the accuracy of the VQA challenge with ten references, 0 to 1.

    Raises:
        DataError: There are not ten references.
    """
    scores = TextVQAAccuracyEvaluator().score_answers(golds)
    return scores.get(EvalAIAnswerProcessor()(text), 0.0)


def anls(text: str, golds: Sequence[str]) -> float:
    """Returns the normalised Levenshtein similarity to the nearest reference, 0 or 0.5 to 1.

    ST-VQA and DocVQA: below a half it is 0.
    """
    return max(STVQAANLSEvaluator().get_anls(text, gold) for gold in golds)


class Pick(NamedTuple):
    """The letter that an answer is taken for, None if it is a format error."""

    letter: str | None
    guessed: bool = False


def guess(letters: Sequence[str], key: str, seed: int = SEED) -> str:
    """Returns a letter that depends on seed and question alone, not on the order of questions.

    Owners draw one letter after the other, so their guesses change with the order; each is as
    likely here as there.
    """
    digest = hashlib.sha256(f"{seed}\n{key}".encode()).digest()
    return letters[int.from_bytes(digest[:8], "big") % len(letters)]


def pick_m3exam(text: str, options: Mapping[str, str], key: str, seed: int = SEED) -> Pick:
    """Reads a letter as PangeaBench does for M3Exam.

    In this order: a letter A to H in round brackets, or one at the beginning with an affix or alone
    (the owner's pattern is not stated in words, so this is ours); the first of the capitals A to D,
    also inside of a word; the option that is nearest to the answer, if more than 0.7 of both agree;
    a guess.

    Args:
        text: The answer.
        options: Texts by letter.
        key: The question's id, which a guess depends on.
        seed: Of guesses.
    """
    if found := _IN_BRACKETS.search(text):
        return Pick(found[1] or found[2])
    if first := re.search("[A-D]", text):
        return Pick(first[0])
    ratios = {
        letter: difflib.SequenceMatcher(None, text.lower(), option.lower()).ratio()
        for letter, option in options.items()
    }
    nearest = max(ratios, key=ratios.__getitem__)
    if ratios[nearest] > NEAR:
        return Pick(nearest)
    return Pick(guess(list(options), key, seed), guessed=True)


def pick_mmmu(text: str, options: Mapping[str, str], key: str, seed: int = SEED) -> Pick:
    """Reads a letter as MMMU does (also xMMMU in PangeaBench, and JMMMU).

    In this order: letters in round brackets, letters before a space, letters before a full stop,
    both of the latter also at the end of a word; options whose text is in an answer of more than
    five words; a guess. Of several the last counts.

    Args:
        text: The answer.
        options: Texts by letter.
        key: The question's id, which a guess depends on.
        seed: Of guesses.
    """
    for mark in _MMMU_STRIPPED:
        text = text.strip(mark)
    said = f" {text} "
    # how a letter is found, and how the last of several is
    for form, last in (("({})", "({})"), ("{} ", " {} "), ("{}.", " {} ")):
        if found := [letter for letter in options if form.format(letter) in said]:
            return Pick(max(found, key=lambda letter: said.rfind(last.format(letter))))
    places = {letter: said.lower().rfind(option.lower()) for letter, option in options.items()}
    if len(said.split()) > _MMMU_MOST_WORDS and max(places.values()) >= 0:
        return Pick(max(places, key=places.__getitem__))
    return Pick(guess(list(options), key, seed), guessed=True)


def pick_kaleidoscope(text: str, options: Mapping[str, str], key: str = "") -> Pick:
    """Reads the `choice` of a JSON object, or the letter in ANSWER tags, as Kaleidoscope does.

    A letter that is the whole answer is read, too, because questions ask for that here; anything
    else is a format error.
    """
    found = _CHOICE.search(text) or _ONLY_LETTER.fullmatch(text)
    letter = next(filter(None, found.groups())).upper() if found else None
    return Pick(letter if letter in options else None)


def pick_worldcuisines(text: str, options: Mapping[str, str], key: str = "") -> Pick:
    """Reads the first number, 1 for the first option, as WorldCuisines does.

    A letter that is the whole answer is read, too, because questions ask for that here.
    """
    if found := _NUMBER.search(text):
        return Pick(dict(enumerate(options, start=1)).get(int(found[0])))
    only = _ONLY_LETTER.fullmatch(text)
    return Pick(only[1] if only and only[1] in options else None)


def pick_vlmevalkit(text: str, options: Mapping[str, str], key: str = "") -> Pick:
    """Reads a letter as VLMEvalKit does without a judge (MMMB)."""
    return Pick(infer_vlmevalkit(text, options))


@dataclass(frozen=True)
class OwnerRule:
    """An owner's rule, by which mode `official` reads the answers to a set.

    Attributes:
        headline: What its score is.
        value: Scores a free answer against the expected ones, 0 to 1; None if the rule reads
            letters only.
        pick: Reads the letter of an option, from answer, options and the question's id; None to
            compare the answer with the letter by `value`.
        is_graded: Whether `value` is more than right or wrong.
        has_overlap: Whether the owner reports ROUGE-L and CIDEr beside it.
        seed: Of guesses; None if it guesses nothing.
    """

    headline: str = "accuracy"
    value: Callable[[str, Sequence[str]], float] | None = None
    pick: Callable[[str, Mapping[str, str], str], Pick] | None = None
    is_graded: bool = False
    has_overlap: bool = False
    seed: int | None = None


CIDER: Final = "cider"
RULES: Final[Mapping[str, OwnerRule]] = {
    "substring": OwnerRule(value=contains),
    "mtvqa": OwnerRule(value=partial(contains, deleted=".")),
    "marvl": OwnerRule(value=says_true_or_false),
    "exact": OwnerRule(value=equals),
    "relaxed": OwnerRule("relaxed accuracy", value=begins_or_ends_with, has_overlap=True),
    "vqa": OwnerRule("VQA accuracy", value=vqa_accuracy, is_graded=True),
    "centurio-exact": OwnerRule(value=equals_in_lower_case),
    "centurio-letter": OwnerRule(value=begins_with),
    "anls": OwnerRule("ANLS", value=anls, is_graded=True),
    "m3exam": OwnerRule(pick=pick_m3exam, seed=SEED),
    "mmmu": OwnerRule(value=has_number_or_text, pick=pick_mmmu, seed=SEED),
    "kaleidoscope": OwnerRule(pick=pick_kaleidoscope),
    "worldcuisines": OwnerRule(value=equals_in_lower_case, pick=pick_worldcuisines),
    "vlmevalkit": OwnerRule(pick=pick_vlmevalkit),
    CIDER: OwnerRule("CIDEr", is_graded=True),
}
"""By the name that a mapping file gives as `official`; `cider` scores captions, together."""


def caption_tokens(text: str) -> list[str]:
    """Cuts a caption into words in lower case, without punctuation, for CIDEr, BLEU and ROUGE-L.

    Chinese, Japanese, Thai, Lao, Khmer and Burmese are cut into characters with their marks.

    Example:
        >>> caption_tokens("A dog's 2.5 m away.")
        ['a', "dog's", '2.5', 'm', 'away']
    """
    return list(_TOKEN.findall(text.lower()))


def cider(texts: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """Returns CIDEr-D of each caption, 0 to 10; document frequencies are of all references.

    Raises:
        ConfigError: pycocoevalcap is not installed.
    """
    _, scores = _scorers()[0]().compute_score(*_tokenised(texts, references))
    return [float(score) for score in scores]


def bleu_and_rouge(texts: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Returns corpus BLEU-1 to BLEU-4 and mean ROUGE-L as COCO has them, 0 to 1.

    Raises:
        ConfigError: pycocoevalcap is not installed.
    """
    tokenised = _tokenised(texts, references)
    _, bleu_class, rouge_class = _scorers()
    bleus, _ = bleu_class(4).compute_score(*tokenised, verbose=0)
    rouge, _ = rouge_class().compute_score(*tokenised)
    return {
        **{f"bleu_{n}": float(bleu) for n, bleu in enumerate(bleus, start=1)},
        "rouge_l": float(rouge),
    }


def _tokenised(
    texts: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Returns references and captions by number, tokens joined by spaces, as COCO's tools do."""

    def joined(captions: Sequence[str]) -> list[str]:
        return [" ".join(caption_tokens(caption)) for caption in captions]

    return dict(enumerate(map(joined, references))), {n: joined([t]) for n, t in enumerate(texts)}


def _scorers() -> tuple[Any, Any, Any]:
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge
    except ImportError as error:
        raise ConfigError(
            "CIDEr, BLEU and ROUGE-L of captions need pycocoevalcap (no Java): pip install "
            "'lrm-llava[captions]'"
        ) from error
    return Cider, Bleu, Rouge


def chrf(text: str, references: Sequence[str]) -> float:
    """Returns chrF of a text against the nearest of several references, 0 to 1.

    Raises:
        ConfigError: sacrebleu is not installed.
    """
    try:
        from sacrebleu import sentence_chrf
    except ImportError as error:
        raise ConfigError(
            "captions are scored with sacrebleu: pip install 'lrm-llava[captions]'"
        ) from error
    return float(sentence_chrf(text, list(references)).score) / 100
