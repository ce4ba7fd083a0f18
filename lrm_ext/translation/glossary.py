"""Words that a user wants translated in one way.

Input: a TOML file with one table a language, English on the left:

    [hr]
    "fire hydrant" = "hidrant"

Output: exact matches, which no engine is asked for, and the terms that occur in a text, which
engines that can read them get as a hint.
"""

from __future__ import annotations

import re
from functools import cached_property
from pathlib import Path

from llava.errors import ConfigError
from lrm_ext.languages._toml import load_toml


class Glossary:
    """The terms of one language.

    Args:
        terms: English and translation.
    """

    def __init__(self, terms: dict[str, str]) -> None:
        self.terms = terms
        self._lower = {english.lower(): text for english, text in terms.items()}

    @classmethod
    def load(cls, path: str | Path | None, target: str) -> Glossary:
        """Read the terms of a language; none if there is no file.

        Raises:
            ConfigError: The file is missing, not TOML, or holds something other than strings.
        """
        if path is None:
            return cls({})
        data = load_toml(path)
        for lang, table in data.items():
            if not isinstance(table, dict) or not all(
                isinstance(text, str) and text.strip() and term.strip()
                for term, text in table.items()
            ):
                raise ConfigError(
                    f'{path}: [{lang}] must hold lines of the form "english" = "translation".'
                )
        return cls(dict(data.get(target, {})))

    def exact(self, text: str) -> str | None:
        """The translation of a text that is a term; a first capital and a full stop are kept."""
        body = text.rstrip(".")
        found = self.terms.get(body) or self._lower.get(body.lower())
        if found is None:
            return None
        if body[:1].isupper():
            found = found[:1].upper() + found[1:]
        return found + text[len(body) :]

    def terms_in(self, text: str) -> tuple[tuple[str, str], ...]:
        """The terms that occur in a text as whole words, in the order of their first place."""
        if self._pattern is None:
            return ()
        names = dict.fromkeys(match[0].lower() for match in self._pattern.finditer(text))
        return tuple((name, self._lower[name]) for name in names)

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        if not self.terms:
            return None
        longest_first = sorted(self._lower, key=len, reverse=True)
        return re.compile(
            r"(?<!\w)(?:" + "|".join(map(re.escape, longest_first)) + r")(?!\w)", re.IGNORECASE
        )
