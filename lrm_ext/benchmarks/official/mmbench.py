"""MMBench's files: TSV or Parquet, all rotations of each question (EVAL_SPEC 5).

A row's picture may be given as the index of another row. Options end at the first absent cell; the
word "None" among other options is an option.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, Final

from llava.errors import DataError
from llava.eval.records import is_none
from lrm_ext.benchmarks.items import LETTERS, Item
from lrm_ext.benchmarks.mmbench import ROTATION
from lrm_ext.benchmarks.official.source import Questions, Source, cell
from lrm_ext.benchmarks.tables import read_rows

log = logging.getLogger(__name__)

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
