"""Does a translator's work: fills in what `lrm languages add` leaves to do."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llava.files import load_toml
from lrm_ext.languages.registry import PENDING


def leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def fill(draft: Path, finished: Path) -> None:
    """Line by line: what is marked gets its value from a finished file, and nothing else."""
    values = dict(leaves(load_toml(finished)))
    table, filled = "", []
    for line in draft.read_text(encoding="utf-8").splitlines():
        if match := re.fullmatch(r"\[([\w.]+)\]", line):
            table = match[1] + "."
        match = re.match(r"(\w+) = ", line)
        if match and PENDING in line:
            value = values.get(table + match[1])
            # a string or a list of strings in JSON is TOML, too
            line = f"{match[1]} = {'{}' if value is None else json.dumps(value)}"
        filled.append(line)
    draft.write_text("\n".join(filled), encoding="utf-8")
