"""MMBench: multiple choice, each question asked once with every rotation of its options.

A question counts as right only if all its rotations are. The paper's figure is the share of such
questions, in percent. A row's index is base + k * 1,000,000 for rotation k; rotations turn in
either direction, so each row's own letter is the expected one. The rotations of a question are the
rows that the question file has: fewer than options if a last option such as "none of these"
stays in place.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import takewhile
from pathlib import PurePosixPath
from typing import Any, Final

from llava.errors import DataError
from llava.eval.records import is_none
from lrm_ext.evaluate.items import LETTERS, Item
from lrm_ext.evaluate.kind import (
    LOCAL,
    Kind,
    UnitCounts,
    Verdict,
    gather,
    judge_by,
    judge_locally,
    percentage,
    share,
    shares_by,
)
from lrm_ext.evaluate.official import Files, Row, Source, cell
from lrm_ext.evaluate.reading import infer_by_text, infer_lmms_eval, infer_vlmevalkit, text_key

log = logging.getLogger(__name__)
ROTATION: Final = 1_000_000
MAX_REFERENCE_CHARS: Final = 64


def base_of(item: Item) -> str:
    """Returns the question that a row is a rotation of."""
    return item.group or str(int(item.question_id) % ROTATION)


def rotation_of(item: Item) -> int:
    """Returns which rotation a row is.

    Raises:
        DataError: Its index is no number.
    """
    if not item.question_id.isdecimal():
        raise DataError(f"mmbench: index {item.question_id!r} is no number")
    return int(item.question_id) // ROTATION


def _rotations(items: Iterable[Item]) -> Mapping[str, list[Item]]:
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[base_of(item)].append(item)
    return groups


def parse_lmms_eval(text: str, options: Mapping[str, str]) -> str | None:
    """Reads a letter, a letter with an affix, or the text of one option, as lmms-eval does."""
    return infer_lmms_eval(text) or infer_by_text(text, options)


def check(items: Sequence[Item], allow_missing: bool) -> int:
    """Demands that the rotations of a question occur once each and expect the same text.

    Returns:
        0: a rotation that is asked for and not answered is among the items.

    Raises:
        DataError: A rotation is there twice, is one too many, or does not fit the others.
    """
    num_equal = 0
    for base, rows in _rotations(items).items():
        found = sorted(rotation_of(row) for row in rows)
        # the options may be unknown, or end sooner in a row where "None" is the last of them
        most = max(len(row.options) for row in rows) or found[-1] + 1
        if found[-1] >= most or len(set(found)) < len(found):
            raise DataError(
                f"mmbench: question {base} has the rotations {', '.join(map(str, found))}, "
                f"expected some of 0 to {most - 1}, each once"
            )
        golds = {text_key(row.lettered()[row.answer]) for row in rows if row.options and row.answer}
        if len(golds) > 1:
            raise DataError(
                f"mmbench: the rotations of question {base} expect different texts: "
                f"{', '.join(sorted(golds))}"
            )
        num_equal += any(len({*map(text_key, row.options)}) < len(row.options) for row in rows)
    if num_equal:
        log.warning("mmbench: %d questions have two options with the same text", num_equal)
    return 0


def skipped_rotations(items: Sequence[Item]) -> list[Item]:
    """Returns rotations that answers without the question file leave out: gaps below the highest.

    For each gap there is a copy of another rotation under the missing one's id.
    """
    skipped: list[Item] = []
    for rows in _rotations(items).values():
        found = {rotation_of(row) for row in rows}
        base = int(rows[0].question_id) % ROTATION
        missing = (base + k * ROTATION for k in range(max(found)) if k not in found)
        skipped += [replace(rows[0], question_id=str(number)) for number in missing]
    return skipped


def outcomes(items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, bool]:
    """Returns whether all rotations of each question are right."""
    found: dict[str, bool] = {}
    for item, verdict in zip(items, verdicts, strict=True):
        found[base_of(item)] = found.get(base_of(item), True) and verdict.correct
    return found


def count(items: Sequence[Item], verdicts: Sequence[Verdict], mode: str) -> UnitCounts:
    """Counts questions with all rotations right; those on the same image are drawn as one."""
    first = {base: rows[0] for base, rows in _rotations(items).items()}
    rows = [
        (first[base].image_id or base, "", {0: float(hit), 1: 1.0})
        for base, hit in outcomes(items, verdicts).items()
    ]
    return gather(rows, 2, percentage)


def details(items: Sequence[Item], verdicts: Sequence[Verdict], mode: str) -> dict[str, Any]:
    """Returns accuracy over questions with all rotations, first rotations, and all rows."""
    hits = outcomes(items, verdicts)
    first = {base: min(rows, key=rotation_of) for base, rows in _rotations(items).items()}
    vanilla = [v.correct for i, v in zip(items, verdicts, strict=True) if rotation_of(i) == 0]
    abilities = [(i.supercategory, hits[base]) for base, i in first.items() if i.supercategory]
    return {
        "circular_accuracy": share(hits.values()),
        "vanilla_accuracy": share(vanilla) if vanilla else None,
        "all_rows_accuracy": share(v.correct for v in verdicts),
        "num_groups": len(hits),
        "circular_hits": {base: int(hit) for base, hit in hits.items()},
        **shares_by("category", ((item.category, hits[base]) for base, item in first.items())),
        "per_ability": shares_by("ability", abilities)["per_ability"],
        "num_without_options": sum(not item.options for item in items),
    }


def read_table(source: Source, rows: Iterable[Row]) -> list[Item]:
    """Reads the rows; the image of one may be that of another row, which it names by index."""
    items: list[Item] = []
    images: dict[str, str] = {}
    references: dict[str, str] = {}
    num_named_none, num_cut = 0, 0
    for where, row in rows:
        index = _index(row, where)
        cells = [text if isinstance(text := row.get(letter), str) else "" for letter in LETTERS]
        options = list(takewhile(str.strip, cells))
        while options and is_none(options[-1]):  # a word for an absent cell
            options.pop()
        num_named_none += any(map(is_none, options))
        num_cut += not all(map(is_none, cells[len(options) :]))
        image = row.get("image")
        if isinstance(image, str) and len(image) <= MAX_REFERENCE_CHARS and image.isdecimal():
            references[index] = image
        else:
            images[index] = source.store.put(image, where)
        items.append(_item(source, row, index, options, where))
    for index, other in references.items():
        if other not in images:
            raise DataError(
                f"{source.path}: row {index} takes the image of row {other}, which has none"
            )
        images[index] = images[other]
    if num_named_none:
        log.warning("%s: %d rows have an option that reads None", source.path, num_named_none)
    if num_cut:
        log.warning(
            "%s: %d rows have options after an empty one; they are left out, as LLaVA does",
            source.path, num_cut,
        )  # fmt: skip
    return [
        replace(item, image=image, image_id=PurePosixPath(image).stem)
        for item in items
        for image in (images[item.question_id],)
    ]


def _index(row: Mapping[str, Any], where: str) -> str:
    try:
        return str(int(row["index"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: index is {row.get('index')!r}; expected a number") from error


def _item(
    source: Source, row: Mapping[str, Any], index: str, options: Sequence[str], where: str
) -> Item:
    answer, hint, ability = (
        "" if is_none(str(value or "")) else str(value)
        for value in (
            row.get("answer"),
            row.get("hint"),
            row.get("l2-category") or row.get("L2-category"),
        )
    )
    return source.item(
        index,
        "",
        cell(row, "question", where),
        answer.strip(),
        "letter",
        options,
        hint,
        category=str(row.get("category") or "all"),
        group=str(int(index) % ROTATION),
        supercategory=ability,
    )


MMBENCH: Final = Kind(
    name="mmbench",
    title="MMBench",
    headline="circular accuracy",
    maximum=100.0,
    answer_type="letter",
    modes={
        "lmms-eval": partial(judge_by, parse_lmms_eval),
        "vlmevalkit": partial(judge_by, infer_vlmevalkit),
        LOCAL: judge_locally,
    },
    # the owner's server runs VLMEvalKit, and LLaVA hands its answers to the server
    aliases={"official": "vlmevalkit", "llava": "vlmevalkit"},
    default_mode="lmms-eval",
    golds=LETTERS,
    check_together=check,
    skipped=skipped_rotations,
    count=count,
    details=details,
    outcomes=outcomes,
    files=Files(read_table),
)
