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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, Final

from llava.errors import DataError
from llava.eval.records import is_none
from lrm_ext.evaluate.items import LETTERS, Item, check_options, option_prompt
from lrm_ext.evaluate.kind import (
    LOCAL,
    Judgement,
    Kind,
    Reading,
    UnitCounts,
    Verdict,
    gather,
    judge_locally,
    pair_up,
    percentage,
    refuse_golds,
    share,
)
from lrm_ext.evaluate.official import Questions, Source, cell, read_rows
from lrm_ext.evaluate.reading import infer_by_text, infer_lmms_eval, text_key
from lrm_ext.evaluate.seed_bench import judge_vlmevalkit, judged_letter

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


MAX_REFERENCE_CHARS: Final = 64
_ABILITY: Final = ("l2-category", "L2-category")


def read(source: Source) -> Questions:
    """Read MMBench.

    Raises:
        DataError: A row is not as it must be.
    """
    items: list[Item] = []
    images: dict[str, str] = {}
    waiting: list[tuple[int, str]] = []
    num_named_none, num_cut = 0, 0
    for where, row in read_rows(source.path):
        index = _index(row, where)
        options, named_none = options_of(row)
        num_named_none += named_none
        num_cut += any(not is_none(text) for text in _option_cells(row)[len(options) :])
        picture = row.get("image")
        if isinstance(picture, str) and len(picture) <= MAX_REFERENCE_CHARS and picture.isdecimal():
            waiting.append((len(items), picture))
            image = ""
        else:
            image = images[index] = source.store.put(picture, where)
        items.append(_item(source, row, index, options, image, where))
    for place, reference in waiting:
        if reference not in images:
            raise DataError(
                f"{source.path}: row {items[place].question_id} takes the picture of row "
                f"{reference}, which has none"
            )
        items[place] = _with_image(items[place], images[reference])
    if num_named_none:
        log.warning("%s: %d rows have an option that reads None", source.path, num_named_none)
    if num_cut:
        log.warning(
            "%s: %d rows have options after an empty one; they are left out, as LLaVA does",
            source.path, num_cut,
        )  # fmt: skip
    return Questions(tuple(items))


def _index(row: Mapping[str, Any], where: str) -> str:
    try:
        return str(int(row["index"]))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{where}: index is {row.get('index')!r}; expected a number") from error


def options_of(row: Mapping[str, Any]) -> tuple[list[str], bool]:
    """The option texts of a row, and whether one of them is the word for an absent cell."""
    texts = _option_cells(row)
    options: list[str] = []
    named_none = False
    for number, text in enumerate(texts):
        if is_none(text):
            if not text.strip() or all(is_none(later) for later in texts[number + 1 :]):
                break
            named_none = True
        options.append(text)
    return options, named_none


def _option_cells(row: Mapping[str, Any]) -> list[str]:
    cells = [row.get(letter) for letter in LETTERS]
    return [value if isinstance(value, str) else "" for value in cells]


def _item(
    source: Source,
    row: Mapping[str, Any],
    index: str,
    options: Sequence[str],
    image: str,
    where: str,
) -> Item:
    answer = row.get("answer")
    answer = "" if answer is None or is_none(str(answer)) else str(answer).strip()
    if len(options) < 2 or (answer and answer not in LETTERS[: len(options)]):
        raise DataError(
            f"{where}: row {index}: the answer is {answer!r} among {len(options)} options; "
            "expected two options or more, and the letter of one"
        )
    hint = row.get("hint")
    hint = "" if hint is None or is_none(str(hint)) else str(hint)
    question = cell(row, "question", where)
    ability = next((str(row[name]) for name in _ABILITY if row.get(name)), "")
    return Item(
        question_id=index,
        image=image,
        text=source.prompt(question, hint, options),
        category=str(row.get("category") or "all"),
        answer=answer,
        lang=source.lang,
        answer_type="letter",
        options=tuple(options),
        question=question,
        hint=hint,
        group=str(int(index) % ROTATION),
        image_id=PurePosixPath(image).stem,
        source_id=index,
        supercategory="" if is_none(ability) else ability,
    )


def _with_image(item: Item, image: str) -> Item:
    return replace(item, image=image, image_id=PurePosixPath(image).stem)


MMBENCH: Final = Kind(
    name="mmbench",
    read=read,
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
