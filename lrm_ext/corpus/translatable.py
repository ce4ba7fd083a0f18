"""Which rows stay English: rules from a file, applied to whole batches.

Input: a TOML file of rules and batches of rows. Output: the batches with their column
`translatable`, and an account of what each rule caught.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from llava.errors import ConfigError
from lrm_ext.corpus.columns import Flags, Turns, to_flags
from lrm_ext.corpus.layout import ROW_SCHEMA
from lrm_ext.languages._toml import load_toml

RULES_FILE = Path(__file__).with_name("translatable.toml")
FIELDS = ("source", "task", "question", "answer")
_MAX_EXAMPLES = 3


@dataclass(frozen=True)
class Rule:
    """One reason for a row to stay English."""

    name: str
    field: str
    pattern: str


@dataclass
class Rules:
    """All of them, and what they have caught.

    Attributes:
        rules: In the order of the file.
        caught: Rows by rule; a row that two rules match counts in both.
        examples: The first few rows of each rule: id and beginning of the question.
        num_english: Rows that stay English.
    """

    rules: tuple[Rule, ...]
    caught: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    num_english: int = 0

    def __post_init__(self) -> None:
        """Prepare one pattern a field, which matches what any of its rules matches."""
        patterns: dict[str, list[str]] = {}
        for rule in self.rules:
            patterns.setdefault(rule.field, []).append(f"(?:{rule.pattern})")
        self._together = {name: "|".join(parts) for name, parts in patterns.items()}

    @classmethod
    def load(cls, path: Path = RULES_FILE) -> Rules:
        """Read a file of rules.

        Raises:
            ConfigError: The file is missing, not TOML, or a rule is not as it must be.
        """
        data = load_toml(path)
        rules = []
        for number, raw in enumerate(data.get("rules", ()), start=1):
            where = f"{path}: rule {number}"
            if not isinstance(raw, dict) or set(raw) != {"name", "field", "pattern"}:
                raise ConfigError(f"{where} is {raw!r}, expected name, field and pattern.")
            if raw["field"] not in FIELDS:
                raise ConfigError(
                    f"{where}: field is {raw['field']!r}; choose from: {', '.join(FIELDS)}."
                )
            _check_pattern(raw["pattern"], where)
            rules.append(Rule(raw["name"], raw["field"], raw["pattern"]))
        return cls(tuple(rules))

    def apply(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """Mark the rows of a batch (`ROW_SCHEMA`) that stay English."""
        stays = np.zeros(len(batch), dtype=bool)
        for name, any_of in self._together.items():
            stays |= _matches(batch, name, any_of)
        if not stays.any():
            return batch
        caught = batch.filter(pa.array(stays))
        for rule in self.rules:
            self._note(rule, caught, _matches(caught, rule.field, rule.pattern))
        self.num_english += len(caught)
        column = pa.array(~stays & batch.column("translatable").to_numpy(zero_copy_only=False))
        index = ROW_SCHEMA.get_field_index("translatable")
        return batch.set_column(index, ROW_SCHEMA.field(index), column)

    def _note(self, rule: Rule, batch: pa.RecordBatch, found: Flags) -> None:
        if not found.any():
            return
        self.caught[rule.name] += int(found.sum())
        kept = self.examples.setdefault(rule.name, [])
        for i in np.flatnonzero(found)[: _MAX_EXAMPLES - len(kept)]:
            row: dict[str, Any] = batch.slice(int(i), 1).to_pylist()[0]
            kept.append(f"{row['id']}: {row['turns'][0]['text']!r:.100}")


def _matches(batch: pa.RecordBatch, name: str, pattern: str) -> Flags:
    """Rows of which a field matches."""
    if name in ("source", "task"):
        return to_flags(pc.match_substring_regex(batch.column(name), pattern))
    turns = Turns.of(batch.column("turns"))
    of_role = turns.of_role("human" if name == "question" else "gpt")
    texts = turns.texts.filter(pa.array(of_role))
    flags = np.zeros(len(of_role), dtype=bool)
    flags[of_role] = to_flags(pc.match_substring_regex(texts, pattern))
    return turns.any(flags)


def _check_pattern(pattern: Any, where: str) -> None:
    try:
        re.compile(pattern)
        pc.match_substring_regex(pa.array([""]), pattern)
    except (re.error, pa.ArrowInvalid, TypeError) as error:
        raise ConfigError(f"{where}: pattern {pattern!r} is not usable: {error}") from error
