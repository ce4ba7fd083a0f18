"""MME: two yes/no questions about each picture, in fourteen categories.

Scores of a category go up to 200: the share of right answers, and the share of pictures with both
answers right, each in percent. The paper's figure is perception, the sum over ten categories.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Final

import numpy as np

from llava.errors import DataError
from llava.eval.eval_mme import COGNITION as MME_COGNITION
from llava.eval.eval_mme import PERCEPTION as MME_PERCEPTION
from llava.eval.eval_mme import parse_answer as parse_mme_answer
from lrm_ext.benchmarks.items import Item
from lrm_ext.benchmarks.kind import LOCAL, Array, Kind, UnitCounts, gather, pair_up
from lrm_ext.benchmarks.prompts import short_answer_prompt
from lrm_ext.benchmarks.score import (
    Judgement,
    Reading,
    Verdict,
    gold_of,
    judge_locally,
    yes_no_language,
)

INSTRUCTION: Final = "Please answer yes or no."
POINTS_PER_CATEGORY: Final = 200
NUM_PER_IMAGE: Final = 2
CATEGORIES: Final = (*MME_PERCEPTION, *MME_COGNITION)
_LETTERS: Final = {"y": "yes", "n": "no"}
# What VLMEvalKit deletes or blanks; the asterisk and the colon are not among them.
_KIT_PUNCTUATION: Final = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER: Final = re.compile(r"\d,\d")
_STOP_OUTSIDE_NUMBER: Final = re.compile(r"(?<!\d)\.|\.(?!\d)")


def parse_lmms_eval(text: str) -> str:
    """Read `yes`, `no` or `other` as lmms-eval does."""
    text = text.lower().strip().replace(".", "")
    if len(text) == 1:
        return _LETTERS.get(text, "other")
    return parse_mme_answer(text)


def parse_vlmevalkit(text: str) -> str:
    """Read `yes`, `no` or `other` as VLMEvalKit does: a whole word, and not the other one.

    A mark that stands beside a blank anywhere in the text is deleted wherever it stands, and so is
    every mark where a number has a comma; other marks separate words.
    """
    text = text.lower()
    joins_all = _COMMA_IN_NUMBER.search(text) is not None
    table = {
        ord(mark): "" if joins_all or f"{mark} " in text or f" {mark}" in text else " "
        for mark in _KIT_PUNCTUATION
    }
    words = _STOP_OUTSIDE_NUMBER.sub("", text.translate(table)).split()
    if ("yes" in words) == ("no" in words):
        return "other"
    return "yes" if "yes" in words else "no"


def _judge(parse: Any) -> Any:
    def judge(item: Item, text: str, reading: Reading) -> Judgement:
        parsed = parse(text)
        correct = parsed == gold_of(item, reading.words)
        return Judgement(parsed, correct, yes_no_language(text, reading))

    return judge


def check(items: Sequence[Item], allow_missing: bool) -> int:
    """Demand two questions a picture, one with yes and one with no, in known categories.

    Returns:
        How many questions are missing; 0 unless they are allowed to be.

    Raises:
        DataError: A category is unknown, or a picture has other questions.
    """
    if unknown := sorted({item.category for item in items} - set(CATEGORIES)):
        raise DataError(
            f"mme: unknown category {', '.join(unknown)}; known: {', '.join(CATEGORIES)}"
        )
    pairs: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        pairs[item.unit].append(item)
    num_missing = 0
    for image, pair in pairs.items():
        if len(pair) < NUM_PER_IMAGE and allow_missing:
            num_missing += NUM_PER_IMAGE - len(pair)
        elif len(pair) != NUM_PER_IMAGE:
            raise DataError(
                f"mme: picture {image} has {len(pair)} questions, expected {NUM_PER_IMAGE}: "
                "one that expects yes and one that expects no"
            )
        elif len({item.answer.lower() for item in pair}) != NUM_PER_IMAGE:
            raise DataError(f"mme: both questions about picture {image} expect {pair[0].answer!r}")
    return num_missing


def count(items: Sequence[Item], verdicts: Sequence[Verdict], mode: str) -> UnitCounts:
    """Points and pictures by category of perception; pictures are drawn within a category."""
    rows: list[tuple[str, str, Mapping[int, float]]] = []
    present = {item.category for item in items}
    names: list[str] = [name for name in MME_PERCEPTION if name in present] or [
        name for name in MME_COGNITION if name in present
    ]
    for (category, image), right in _by_image(items, verdicts).items():
        if category in names:
            column = 2 * names.index(category)
            points = 100 * sum(right) / NUM_PER_IMAGE + 100 * _both(right)
            rows.append((image, category, {column: points, column + 1: 1.0}))
    return gather(rows, 2 * len(names), _sum_of_means)


def _sum_of_means(sums: Array) -> Array:
    """From (points, pictures) of each category to the sum of means."""
    result: Array = np.sum(sums[..., 0::2] / sums[..., 1::2], axis=-1)
    return result


def _by_image(
    items: Sequence[Item], verdicts: Sequence[Verdict]
) -> dict[tuple[str, str], list[bool]]:
    right: dict[tuple[str, str], list[bool]] = defaultdict(list)
    for item, verdict in pair_up(items, verdicts):
        right[item.category, item.unit].append(verdict.correct)
    return right


def _both(right: Sequence[bool]) -> bool:
    return len(right) == NUM_PER_IMAGE and all(right)


def details(items: Sequence[Item], verdicts: Sequence[Verdict], mode: str) -> dict[str, Any]:
    """Scores of the categories and the two sums, with their parts."""
    images: dict[str, list[list[bool]]] = defaultdict(list)
    for (category, _), right in _by_image(items, verdicts).items():
        images[category].append(right)
    parts: dict[str, dict[str, Any]] = {}
    for category in CATEGORIES:
        if category not in images:
            continue
        accuracy = fmean(100 * sum(right) / NUM_PER_IMAGE for right in images[category])
        plus = fmean(100.0 * _both(right) for right in images[category])
        of_category = [v for i, v in pair_up(items, verdicts) if i.category == category]
        parts[category] = {
            "score": accuracy + plus,
            "accuracy": accuracy,
            "accuracy_plus": plus,
            "num_images": len(images[category]),
            "num_other": sum(verdict.parsed == "other" for verdict in of_category),
        }
    scores = {category: part["score"] for category, part in parts.items()}
    return {
        "perception": sum(scores.get(name, 0.0) for name in MME_PERCEPTION),
        "cognition": sum(scores.get(name, 0.0) for name in MME_COGNITION),
        "per_category": scores,
        "categories": parts,
        "num_categories": len(parts),
        "num_categories_expected": len(CATEGORIES),
        "maximum_perception": POINTS_PER_CATEGORY * sum(name in parts for name in MME_PERCEPTION),
        "maximum_cognition": POINTS_PER_CATEGORY * sum(name in parts for name in MME_COGNITION),
        "yes_ratio": sum(verdict.parsed == "yes" for verdict in verdicts) / len(verdicts),
    }


def bare_question(text: str) -> str:
    """A question of MME's own files without its instruction; some have two blanks before it."""
    return " ".join(text.split("\n")[0].replace(INSTRUCTION, "").split())


MME: Final = Kind(
    name="mme",
    title="MME",
    headline="perception",
    maximum=POINTS_PER_CATEGORY * len(MME_PERCEPTION),
    answer_type="yesno",
    modes={
        "lmms-eval": _judge(parse_lmms_eval),
        "official": _judge(parse_mme_answer),
        "vlmevalkit": _judge(parse_vlmevalkit),
        LOCAL: judge_locally,
    },
    # LLaVA hands its answers to MME's own tool
    aliases={"llava": "official"},
    default_mode="lmms-eval",
    prompt=short_answer_prompt,
    check=check,
    count=count,
    details=details,
)
