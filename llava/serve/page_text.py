"""What the page says, in one language or in several.

In: texts by name (`page_text.json` has the English ones; another package may bring more languages)
and what a browser says of its languages. Out: the text to show.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from llava.errors import UserError

ENGLISH = "en"
_ENGLISH_TEXTS: Mapping[str, str] = MappingProxyType(
    json.loads((Path(__file__).parent / "page_text.json").read_text(encoding="utf-8"))
)


class PageError(UserError):
    """Something that the user must change; `key` names the text that says what."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


@dataclass(frozen=True)
class PageText:
    """The page's texts in one language.

    Attributes:
        code: Its code, as browsers write it.
        name: Its own name.
        texts: Texts by name; those that are not there stay English.
    """

    code: str = ENGLISH
    name: str = "English"
    texts: Mapping[str, str] = field(default_factory=lambda: _ENGLISH_TEXTS)

    def say(self, key: str, **values: object) -> str:
        """Return a text, with the values that it names put in."""
        text = self.texts.get(key) or _ENGLISH_TEXTS[key]
        return text.format(**values) if values else text


ENGLISH_TEXT = PageText()


def preferred_language(accept_language: str, codes: Iterable[str]) -> str:
    """Choose a language as the browser's `Accept-Language` orders them.

    Args:
        accept_language: The header, such as `hr-HR,hr;q=0.9,en;q=0.8`; "" chooses the first code.
        codes: The languages that there are.

    Returns:
        The code that fits best: the tag itself, else its language without region or script.
    """
    known = list(codes)
    by_tag = {code.lower(): code for code in known}
    wanted = []
    for place, part in enumerate(accept_language.split(",")):
        tag, _, parameter = part.strip().lower().partition(";")
        try:
            quality = float(parameter.strip().removeprefix("q=") or 1)
        except ValueError:
            continue
        if quality > 0:
            wanted.append((-quality, place, tag.strip()))
    for _, _, tag in sorted(wanted):
        while tag:
            if tag in by_tag:
                return by_tag[tag]
            tag = tag.rpartition("-")[0]
    return ENGLISH if ENGLISH in known else known[0]
