"""MMBench: multiple choice, each question asked once with every rotation of its options.

A question counts as right only if all its rotations are. The paper's figure is the share of such
questions, in percent. A row's index is base + k * 1,000,000 for rotation k; rotations turn in
either direction, so each row's own letter is the expected one. The rotations of a question are the
rows that the question file has: fewer than options where a last option such as "none of these"
stays in place.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

from llava.errors import DataError
from lrm_ext.benchmarks.items import LETTERS, Item, check_options
from lrm_ext.benchmarks.kind import (
    LOCAL,
    Kind,
    UnitCounts,
    gather,
    pair_up,
    percentage,
    refuse_golds,
    share,
)
from lrm_ext.benchmarks.letters import infer_by_text, infer_lmms_eval
from lrm_ext.benchmarks.parse import text_key
from lrm_ext.benchmarks.prompts import option_prompt
from lrm_ext.benchmarks.score import Judgement, Reading, Verdict, judge_locally
from lrm_ext.benchmarks.seed_bench import judge_vlmevalkit, judged_letter

log = logging.getLogger(__name__)

ROTATION: Final = 1_000_000


def base_of(item: Item) -> str:
    """The question that a row is a rotation of."""
    return item.group or str(int(item.question_id) % ROTATION)


def rotation_of(item: Item) -> int:
    """Which rotation a row is.

    Raises:
        DataError: Its index is no number.
    """
    if not item.question_id.isdecimal():
        raise DataError(f"mmbench: index {item.question_id!r} is no number")
    return int(item.question_id) // ROTATION


def _judge_lmms_eval(item: Item, text: str, reading: Reading) -> Judgement:
    letter = infer_lmms_eval(text) or infer_by_text(text, item.lettered())
    return judged_letter(item, text, reading, letter)


def check(items: Sequence[Item], allow_missing: bool) -> int:
    """Demand that the rotations of a question occur once each and expect the same text.

    Returns:
        0: a rotation that is asked for and not answered is among the items.

    Raises:
        DataError: A rotation is there twice, is one too many, or does not fit the others.
    """
    refuse_golds(items, LETTERS, "mmbench")
    for item in items:
        if item.options:
            check_options(item, f"mmbench: question {item.question_id}")
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[base_of(item)].append(item)
    equal = 0
    for base, rows in groups.items():
        _check_rotations(base, rows)
        golds = {text_key(row.lettered()[row.answer]) for row in rows if row.options and row.answer}
        if len(golds) > 1:
            raise DataError(
                f"mmbench: the rotations of question {base} expect different texts: "
                f"{', '.join(sorted(golds))}"
            )
        equal += any(len({*map(text_key, row.options)}) < len(row.options) for row in rows)
    if equal:
        log.warning("mmbench: %d questions have two options with the same text", equal)
    return 0


def _check_rotations(base: str, rows: Sequence[Item]) -> None:
    found = sorted(rotation_of(row) for row in rows)
    # the options may be unknown, or end sooner in a row where "None" is the last of them
    most = max(len(row.options) for row in rows) or found[-1] + 1
    if found[-1] >= most or len(set(found)) < len(found):
        raise DataError(
            f"mmbench: question {base} has the rotations {', '.join(map(str, found))}, expected "
            f"some of 0 to {most - 1}, each once"
        )


def skipped_rotations(items: Sequence[Item]) -> list[Item]:
    """Rotations that answers without the question file leave out: gaps below the highest one.

    Returns:
        For each gap, a copy of another rotation under the missing one's id.
    """
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[base_of(item)].append(item)
    skipped: list[Item] = []
    for rows in groups.values():
        found = {rotation_of(row) for row in rows}
        base = int(rows[0].question_id) % ROTATION
        skipped += [
            replace(rows[0], question_id=str(base + k * ROTATION))
            for k in range(max(found))
            if k not in found
        ]
    return skipped


def _groups(
    items: Sequence[Item], verdicts: Sequence[Verdict]
) -> dict[str, list[tuple[Item, Verdict]]]:
    groups: dict[str, list[tuple[Item, Verdict]]] = defaultdict(list)
    for item, verdict in pair_up(items, verdicts):
        groups[base_of(item)].append((item, verdict))
    return groups


def is_hit(rows: Sequence[tuple[Item, Verdict]]) -> bool:
    """Whether all rotations of a question are right."""
    return all(verdict.correct for _, verdict in rows)


def outcomes(items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, bool]:
    """Whether all rotations of each question are right."""
    return {base: is_hit(rows) for base, rows in _groups(items, verdicts).items()}


def count(items: Sequence[Item], verdicts: Sequence[Verdict], mode: str) -> UnitCounts:
    """Questions with all rotations right; those on the same picture are drawn as one."""
    groups = _groups(items, verdicts)
    rows = [
        (group[0][0].image_id or base, "", {0: float(is_hit(group)), 1: 1.0})
        for base, group in groups.items()
    ]
    return gather(rows, 2, percentage)


def details(items: Sequence[Item], verdicts: Sequence[Verdict], mode: str) -> dict[str, Any]:
    """Accuracy over questions with all rotations, over first rotations, and over all rows."""
    groups = _groups(items, verdicts)
    hits = {base: int(is_hit(rows)) for base, rows in groups.items()}
    first = [v for i, v in pair_up(items, verdicts) if rotation_of(i) == 0]
    per_category: dict[str, list[int]] = defaultdict(list)
    per_ability: dict[str, list[int]] = defaultdict(list)
    for base, rows in groups.items():
        item = min((item for item, _ in rows), key=rotation_of)
        per_category[item.category].append(hits[base])
        if item.supercategory:
            per_ability[item.supercategory].append(hits[base])
    return {
        "circular_accuracy": sum(hits.values()) / len(hits),
        "vanilla_accuracy": share(first) if first else None,
        "all_rows_accuracy": share(verdicts),
        "num_groups": len(groups),
        "circular_hits": hits,
        "per_category": {name: sum(h) / len(h) for name, h in per_category.items()},
        "num_per_category": {name: len(h) for name, h in per_category.items()},
        "per_ability": {name: sum(h) / len(h) for name, h in per_ability.items()},
        "num_without_options": sum(not item.options for item in items),
    }


MMBENCH: Final = Kind(
    name="mmbench",
    title="MMBench",
    headline="circular accuracy",
    maximum=100.0,
    answer_type="letter",
    modes={
        "lmms-eval": _judge_lmms_eval,
        "vlmevalkit": judge_vlmevalkit,
        LOCAL: judge_locally,
    },
    # the owner's server runs VLMEvalKit, and LLaVA hands its answers to the server
    aliases={"official": "vlmevalkit", "llava": "vlmevalkit"},
    default_mode="lmms-eval",
    prompt=option_prompt,
    check=check,
    skipped=skipped_rotations,
    count=count,
    details=details,
    outcomes=outcomes,
)
