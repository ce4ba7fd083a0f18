"""Computes accuracies of TextVQA, ST-VQA and TextCaps, with the VQA challenge's normalisation.

In: `[{"pred_answer": str, "gt_answers": [str, ...]}, ...]`. Out: one mean. The classes have the
names that LLaVA's users import. No files, no models.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Final

from llava.errors import ConfigError, DataError

_ONE_APOSTROPHE = (
    "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's "
    "how'd how'll how's I'm I've isn't it'd it'll ma'am mightn't might've mustn't must've needn't "
    "not've o'clock oughtn't shan't should've shouldn't somebody'll somebody's someone'd "
    "someone'll someone's something'd something'll that's there'd there're there's they'd they'll "
    "they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd "
    "where's where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all "
    "you'd you'll you're you've"
)
_TWO_APOSTROPHES = (
    "couldn't've hadn't've he'd've I'd've it'd've mightn't've she'd've shouldn't've somebody'd've "
    "someone'd've something'd've there'd've they'd've we'd've who'd've wouldn't've y'all'll "
    "you'd've"
)


CONTRACTIONS: Final[dict[str, str]] = {
    **{word.replace("'", ""): word for word in _ONE_APOSTROPHE.split()},
    # without the first apostrophe, and without the last
    **{word.replace("'", "", 1): word for word in _TWO_APOSTROPHES.split()},
    **{"".join(word.rsplit("'", 1)): word for word in _TWO_APOSTROPHES.split()},
    "let's": "let's",
    "she's": "she's",
    "somebody'd": "somebodyd",
    "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've",
}
"""Spelling with one apostrophe missing -> the contraction."""


Entries = Sequence[Mapping[str, Any]]

NUM_REFERENCES: Final = 10
ANLS_THRESHOLD: Final = 0.5

_NUMBERS: Final = {
    word: str(number)
    for number, word in enumerate("zero one two three four five six seven eight nine ten".split())
} | {"none": "0"}
_ARTICLES: Final = frozenset(("a", "an", "the"))
_MARKS: Final = ';/[]"{}()=+\\_-><@`,?!'
_PERIOD: Final = re.compile(r"\.(?!\d)")
_DIGIT_COMMA: Final = re.compile(r"(?<=\d),+(?=\d)")


class EvalAIAnswerProcessor:
    """Brings an answer into the form in which the VQA challenge compares answers."""

    def __call__(self, item: str) -> str:
        """Normalises an answer.

        Example:
            >>> EvalAIAnswerProcessor()("The two dogs.")
            '2 dogs'
        """
        text = self.word_tokenize(item).replace("\n", " ").replace("\t", " ").strip()
        return self.process_digit_article(self.process_punctuation(text))

    def word_tokenize(self, word: str) -> str:
        """Lower-cases a word, drops commas and question marks, and splits off a possessive."""
        return word.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()

    def process_punctuation(self, in_text: str) -> str:
        """Deletes or blanks out punctuation, and deletes periods that no digit follows."""
        text = in_text
        has_digit_comma = _DIGIT_COMMA.search(in_text) is not None
        for mark in _MARKS:
            # both tests use the original text, not the one with marks deleted
            beside_space = mark + " " in in_text or " " + mark in in_text
            text = text.replace(mark, "" if beside_space or has_digit_comma else " ")
        return _PERIOD.sub("", text)

    def process_digit_article(self, in_text: str) -> str:
        """Writes numbers up to ten as digits, drops articles, restores contractions."""
        words = [_NUMBERS.get(word, word) for word in in_text.lower().split()]
        kept = (word for word in words if word not in _ARTICLES)
        return " ".join(CONTRACTIONS.get(word, word) for word in kept)


class TextVQAAccuracyEvaluator:
    """The VQA challenge's accuracy with ten references."""

    def __init__(self) -> None:
        self.answer_processor = EvalAIAnswerProcessor()

    def score_answers(self, references: Sequence[str]) -> dict[str, float]:
        """Returns the score of each answer that is among the references; others score 0.

        An answer is right if three of nine references give it; each reference is left out in turn.

        Raises:
            DataError: There are not ten references.
        """
        if len(references) != NUM_REFERENCES:
            raise DataError(f"{len(references)} reference answers; expected {NUM_REFERENCES}")
        answers = [self.answer_processor(reference) for reference in references]
        return {
            answer: fmean(
                min(1.0, (answers.count(answer) - (left_out == answer)) / 3) for left_out in answers
            )
            for answer in set(answers)
        }

    def eval_pred_list(self, pred_list: Entries) -> float:
        """Mean accuracy, 0 to 1.

        Raises:
            DataError: There are no answers, or not ten references to one.
        """
        return _mean(
            self.score_answers(entry["gt_answers"]).get(
                self.answer_processor(entry["pred_answer"]), 0.0
            )
            for entry in pred_list
        )


class STVQAAccuracyEvaluator:
    """Exact match with any reference, both normalised."""

    def __init__(self) -> None:
        self.answer_processor = EvalAIAnswerProcessor()

    def eval_pred_list(self, pred_list: Entries) -> float:
        """Share of answers that match, 0 to 1.

        Raises:
            DataError: There are no answers.
        """
        process = self.answer_processor
        return _mean(
            float(process(entry["pred_answer"]) in map(process, entry["gt_answers"]))
            for entry in pred_list
        )


class STVQAANLSEvaluator:
    """Average normalised Levenshtein similarity (ANLS)."""

    def get_anls(self, s1: str, s2: str) -> float:
        """Similarity of two answers, 0 where less than half of the characters agree."""
        s1, s2 = s1.lower().strip(), s2.lower().strip()
        longest = max(len(s1), len(s2))
        similarity = 1.0 if longest == 0 else 1 - edit_distance(s1, s2) / longest
        return similarity if similarity >= ANLS_THRESHOLD else 0.0

    def eval_pred_list(self, pred_list: Entries) -> float:
        """Mean over the answers of the best reference, 0 to 1.

        Raises:
            DataError: There are no answers.
        """
        return _mean(
            max(self.get_anls(entry["pred_answer"], answer) for answer in entry["gt_answers"])
            for entry in pred_list
        )


class TextCapsBleu4Evaluator:
    """BLEU-4 of captions, by pycocoevalcap.

    Raises:
        ConfigError: `pycocoevalcap` is not installed.
    """

    def __init__(self) -> None:
        try:
            from pycocoevalcap.bleu.bleu import Bleu
            from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
        except ImportError as error:
            raise ConfigError(
                "BLEU-4 of TextCaps needs pycocoevalcap (and Java): pip install pycocoevalcap"
            ) from error
        self.tokenizer = PTBTokenizer()
        self.scorer = Bleu(4)

    def eval_pred_list(self, pred_list: Entries) -> float:
        """Corpus BLEU-4, 0 to 1."""
        references = {
            i: [{"caption": caption} for caption in entry["gt_answers"]]
            for i, entry in enumerate(pred_list)
        }
        captions = {i: [{"caption": entry["pred_answer"]}] for i, entry in enumerate(pred_list)}
        scores, _ = self.scorer.compute_score(
            self.tokenizer.tokenize(references), self.tokenizer.tokenize(captions)
        )
        return float(scores[3])


def edit_distance(s1: Sequence[str], s2: Sequence[str]) -> int:
    """Levenshtein distance in characters, or in whatever the sequences consist of."""
    row = list(range(len(s2) + 1))
    for i, char in enumerate(s1, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(s2, 1):
            best = min(row[j] + 1, row[j - 1] + 1, diagonal + (char != other))
            diagonal, row[j] = row[j], best
    return row[-1]


def _mean(values: Any) -> float:
    """Mean of the answers' scores.

    Raises:
        DataError: There is no answer.
    """
    scores = list(values)
    if not scores:
        raise DataError("there are no answers to score")
    return fmean(scores)
