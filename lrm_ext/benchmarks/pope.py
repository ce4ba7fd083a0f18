"""POPE: is there such a thing in the picture? Three ways of choosing things that are not there.

The paper's figure is the mean of the three F1s, in percent; "yes" is positive.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

import numpy as np

from llava.errors import DataError
from llava.eval.eval_pope import PopeScore
from llava.eval.eval_pope import parse_answer as parse_pope_answer
from lrm_ext.benchmarks.items import Item
from lrm_ext.benchmarks.kind import LOCAL, Array, Kind, UnitCounts, by_category, gather, pair_up
from lrm_ext.benchmarks.mme import parse_vlmevalkit
from lrm_ext.benchmarks.prompts import short_answer_prompt
from lrm_ext.benchmarks.score import (
    MISSING,
    Judgement,
    Reading,
    Verdict,
    gold_of,
    judge_locally,
    yes_no_language,
)

log = logging.getLogger(__name__)

CATEGORIES: Final = ("random", "popular", "adversarial")
# Questions that are not marked with a category are one set of their own.
UNNAMED: Final = "all"
UNPARSED: Final = "unparsed"
LMMS_EVAL: Final = "lmms-eval"
VLMEVALKIT: Final = "vlmevalkit"


def parse_lmms_eval(text: str) -> str:
    """Read `yes` or `no` as lmms-eval does: nothing else may be said."""
    text = text.strip().lower()
    return text if text in ("yes", "no") else UNPARSED


def _parse_vlmevalkit(text: str) -> str:
    parsed = parse_vlmevalkit(text)
    return UNPARSED if parsed == "other" else parsed


def _judge(parse: Callable[[str], str]) -> Callable[[Item, str, Reading], Judgement]:
    def judge(item: Item, text: str, reading: Reading) -> Judgement:
        parsed = parse(text)
        correct = parsed == gold_of(item, reading.words)
        return Judgement(parsed, correct, yes_no_language(text, reading))

    return judge


def _judge_locally(item: Item, text: str, reading: Reading) -> Judgement:
    return judge_locally(item, text, reading, "pope")


def cell_of(gold: str, parsed: str, mode: str) -> str | None:
    """Where an answer counts: `tp`, `fp`, `tn` or `fn`, or nowhere.

    An answer that says neither counts as the wrong one. lmms-eval leaves it out of precision and
    recall, VLMEvalKit takes it for a no; in accuracy it is wrong everywhere. A question without an
    answer is wrong in every mode.
    """
    if parsed == UNPARSED and mode == LMMS_EVAL:
        return None
    if parsed == UNPARSED and mode == VLMEVALKIT:
        parsed = "no"
    elif parsed in (UNPARSED, MISSING):
        parsed = "no" if gold == "yes" else "yes"
    if gold == "yes":
        return "tp" if parsed == "yes" else "fn"
    return "fp" if parsed == "yes" else "tn"


def check(items: Sequence[Item], allow_missing: bool) -> int:
    """Demand the three categories, or none at all.

    Raises:
        DataError: A category is unknown.
    """
    present = {item.category for item in items}
    if present != {UNNAMED} and (unknown := sorted(present - set(CATEGORIES))):
        raise DataError(
            f"pope: unknown category {', '.join(unknown)}; known: {', '.join(CATEGORIES)}"
        )
    return 0


def _rows(items: Sequence[Item], verdicts: Sequence[Verdict], mode: str) -> list[Any]:
    names = [name for name in (*CATEGORIES, UNNAMED) if any(i.category == name for i in items)]
    columns = ("tp", "fp", "fn")
    rows: list[tuple[str, str, Mapping[int, float]]] = []
    for item, verdict in pair_up(items, verdicts):
        cell = cell_of(verdict.gold, verdict.parsed, mode)
        amounts = {}
        if cell in columns:
            amounts = {3 * names.index(item.category) + columns.index(cell): 1.0}
        rows.append((verdict.unit, "", amounts))
    return [rows, 3 * len(names)]


def count(items: Sequence[Item], verdicts: Sequence[Verdict], mode: str) -> UnitCounts:
    """True and false yes and false no by category; pictures are drawn for all at once."""
    rows, num_columns = _rows(items, verdicts, mode)
    return gather(rows, num_columns, _mean_f1)


def _mean_f1(sums: Array) -> Array:
    """From (true yes, false yes, false no) of each category to the mean F1 in percent."""
    true_yes, false_yes, false_no = sums[..., 0::3], sums[..., 1::3], sums[..., 2::3]
    whole = 2 * true_yes + false_yes + false_no
    f1 = np.divide(2 * true_yes, whole, out=np.zeros_like(whole), where=true_yes > 0)
    result: Array = 100.0 * f1.mean(axis=-1)
    return result


def score_category(verdicts: Sequence[Verdict], mode: str) -> dict[str, Any]:
    """Counts and rates of some questions."""
    cells = Counter(cell_of(v.gold, v.parsed, mode) for v in verdicts)
    counted = PopeScore(*(cells[name] for name in ("tp", "fp", "tn", "fn")))
    if not counted.tp:
        log.warning("pope: no object was recognised; rates without a denominator are 0")
    num = len(verdicts)
    rates = {
        **{name.upper(): value for name, value in asdict(counted).items()},
        "accuracy": sum(verdict.correct for verdict in verdicts) / num,
        "precision": counted.precision,
        "recall": counted.recall,
        "f1": counted.f1,
        "yes_ratio": sum(verdict.parsed == "yes" for verdict in verdicts) / num,
        "num_questions": num,
    }
    if mode == LMMS_EVAL:
        # what lmms-eval prints as the share of yes is that of the expected answers
        rates["yes_ratio_gt"] = sum(verdict.gold == "yes" for verdict in verdicts) / num
    return rates


def details(items: Sequence[Item], verdicts: Sequence[Verdict], mode: str) -> dict[str, Any]:
    """Rates of each category, of all questions together, and the mean F1."""
    groups = by_category(items, verdicts)
    names = [name for name in (*CATEGORIES, UNNAMED) if name in groups]
    parts = {name: score_category(groups[name], mode) for name in names}
    pooled = score_category(verdicts, mode)
    return {
        **(parts[names[0]] if len(names) == 1 else {}),
        "mean_f1": sum(part["f1"] for part in parts.values()) / len(parts),
        "per_category": {name: part["f1"] for name, part in parts.items()},
        "categories": parts,
        "num_categories": len(parts),
        "num_categories_expected": len(CATEGORIES),
        "pooled": pooled,
    }


POPE: Final = Kind(
    name="pope",
    title="POPE",
    headline="mean F1",
    maximum=100.0,
    answer_type="yesno",
    modes={
        "llava": _judge(parse_pope_answer),
        LMMS_EVAL: _judge(parse_lmms_eval),
        VLMEVALKIT: _judge(_parse_vlmevalkit),
        LOCAL: _judge_locally,
    },
    aliases={"official": "llava"},
    default_mode="llava",
    prompt=short_answer_prompt,
    check=check,
    count=count,
    details=details,
)
