"""Reads the cells of published tables: texts, lists in text, nested values, absent images.

The same thing is written in many ways: no image is None, the word "None" or `nan`; a list is text,
as Python, NumPy or JSON print it; a whole number is a float where others of its column are absent.
"""

from __future__ import annotations

import ast
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import DataError
from llava.eval.records import is_none

# A text in quotes inside a printed list, and the colon of a key behind it, or the comma, which
# NumPy does not print.
_QUOTED: Final = re.compile(r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")(?:(\s*:)|\s*,?)""", re.DOTALL)
_ARRAY: Final = re.compile(r"array\((\[.*\])(?:,\s*dtype=[^)]*)?\)", re.DOTALL)
_IN_BRACES: Final = re.compile(r"\{([^{}]+)\}")
_IMAGE_NUMBER: Final = re.compile(r"<image (\d+)>")


def value_at(row: Mapping[str, Any], path: str) -> Any:
    """Returns a value of a row, None if it is not there.

    Args:
        row: Cells by column.
        path: A column; keys and numbers in lists joined by dots; or a pattern with columns in
            braces, which is None if one of them is.
    """
    if "{" in path:
        if any(row.get(name) is None for name in _IN_BRACES.findall(path)):
            return None
        return _IN_BRACES.sub(lambda match: str(row[match[1]]), path)
    value: Any = row
    for key in [path] if path in row else path.split("."):
        if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, Mapping) and key in value:
            value = value[key]
        else:
            return None
    return None if isinstance(value, float) and math.isnan(value) else value


def cell_text(value: Any) -> str:
    """Returns a cell as text: "" for None and `nan`, and lines for a list."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value).strip()


def is_absent(cell: Any) -> bool:
    """Tells whether a cell holds nothing: None, `nan`, "", "None", an image without its bytes."""
    if isinstance(cell, Mapping):
        return cell.keys() <= {"bytes", "path"} and all(map(is_absent, cell.values()))
    return is_none(cell) if isinstance(cell, str) else cell in (None, b"") or cell_text(cell) == ""


def as_list(
    value: Any, where: str, kinds: type | tuple[type, ...] = (str, int, float)
) -> list[Any]:
    """Returns a list, also one that a table holds as text, as JSON, Python or NumPy print it.

    Their texts may have line ends in them, and NumPy's no commas between them.

    Args:
        value: The cell.
        where: For messages: the place, and what the list is of.
        kinds: What its members must be.

    Raises:
        DataError: It is no such list.
    """
    found = _parse(value.strip()) if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(member, kinds) for member in found):
        raise DataError(f"{where} are no list: {str(value)[:80]!r}")
    return found


def _parse(text: str) -> Any:
    """Evaluates a list in text; None if it is none."""
    try:
        return json.loads(text)
    except ValueError:
        array = _ARRAY.fullmatch(text)
        printed = _QUOTED.sub(
            lambda m: m[1].replace("\n", "\\n").replace("\r", "\\r") + (m[2] or ","),
            array[1] if array else text,
        )
    try:
        return ast.literal_eval(printed)
    except (ValueError, SyntaxError):
        return None


def place_images(
    numbered: Mapping[int, Any], texts: Sequence[str], where: str
) -> tuple[list[Any], list[str]]:
    """Puts several images where the texts name them by number, else where `<image>` stands.

    An image that is named twice is shown twice. One that is not named is shown first, before the
    texts.

    Args:
        numbered: Cells with images by number.
        texts: The parts of a prompt, in its order; the first one gets what is shown before.
        where: For messages.

    Returns:
        The cells in the order in which they are shown, and the texts.

    Raises:
        DataError: A number has no image.
    """
    cells: list[Any] = []

    def place(mark: re.Match[str]) -> str:
        number = int(mark[1])
        if number not in numbered:
            there = ", ".join(map(str, numbered))
            raise DataError(f"{where}: the text names {mark[0]}, but there are images {there}")
        cells.append(numbered[number])
        return DEFAULT_IMAGE_TOKEN

    named = {int(n) for text in texts for n in _IMAGE_NUMBER.findall(text)}
    if not named:
        return list(numbered.values()), list(texts)
    first, *rest = (_IMAGE_NUMBER.sub(place, text) for text in texts)
    unnamed = [cell for number, cell in numbered.items() if number not in named]
    lines = [*[DEFAULT_IMAGE_TOKEN] * len(unnamed), *filter(None, [first])]
    return unnamed + cells, ["\n".join(lines), *rest]
