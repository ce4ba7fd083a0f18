"""Eight ways in which a translation goes wrong, done to translations that people made.

Input: rows in English and other languages. Output: a row with one fault of a kind, or None where
the row cannot have it. By this it is measured what the checks find (`calibrating.py`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.sample import Turn
from lrm_ext.languages.registry import get_language

Turns = tuple[Turn, ...]

MIN_WORDS = 4
"""Shorter turns are left alone where a fault would hardly be one: "Foto" is German and Czech."""
_NUMBER = re.compile(r"(?<!\w)\d+(?!\w)")
_OPTION = re.compile(r"^[A-H]\. ", re.MULTILINE)
_ENDS = ".!?。！？"


class Row(NamedTuple):
    """A row that people translated.

    Attributes:
        english: Its English turns.
        texts: Its turns in other languages.
        kind: Rows of one kind have as many turns, with questions of the same sorts.
    """

    english: Turns
    texts: Mapping[str, Turns]
    kind: str


class Place(NamedTuple):
    """Where damage is done.

    Attributes:
        row: The row.
        lang: Its language.
        other: Another row of the same kind.
        rng: Decides what is damaged and how.
    """

    row: Row
    lang: str
    other: Row
    rng: random.Random


Damage = Callable[[Place], Turns | None]


def wrong_language(place: Place) -> Turns | None:
    """A sentence in another of the languages."""
    others = [lang for lang in place.row.texts if lang != place.lang]
    if not others:
        return None
    return _with_turn_of(place, place.row.texts[place.rng.choice(others)])


def copied(place: Place) -> Turns | None:
    """A sentence that is still English."""
    return _with_turn_of(place, place.row.english)


def cut(place: Place) -> Turns | None:
    """A sentence that ends after a third to two thirds of it."""

    def cut_text(text: str) -> str:
        is_spaced = get_language(place.lang).spaced
        words = text.split(" ") if is_spaced else list(text)
        num_kept = max(1, int(len(words) * place.rng.uniform(1 / 3, 2 / 3)))
        return (" " if is_spaced else "").join(words[:num_kept])

    return _change(place, lambda i, text: cut_text(text) if _is_long(place, i) else None)


def doubled(place: Place) -> Turns | None:
    """A text that says all twice."""
    glue = " " if get_language(place.lang).spaced else ""
    return _change(place, lambda i, text: f"{text}{glue}{text}" if text.strip(_ENDS) else None)


def number_changed(place: Place) -> Turns | None:
    """Another number."""

    def change(text: str) -> str | None:
        found = list(_NUMBER.finditer(text))
        if not found:
            return None
        match = place.rng.choice(found)
        other = int(match[0]) + place.rng.randint(1, 9)
        return f"{text[: match.start()]}{other}{text[match.end() :]}"

    return _change(place, lambda i, text: change(text))


def option_lost(place: Place) -> Turns | None:
    """An answer option without its letter, or none at all."""

    def change(text: str) -> str | None:
        lines = text.split("\n")
        options = [i for i, line in enumerate(lines) if _OPTION.match(line)]
        if not options:
            return None
        at = place.rng.choice(options)
        lines[at : at + 1] = [lines[at][3:]] if place.rng.random() < 0.5 else []
        return "\n".join(lines)

    return _change(place, lambda i, text: change(text))


def shuffled(place: Place) -> Turns | None:
    """The translation of another row."""
    turns = place.other.texts[place.lang]
    return turns if turns != place.row.texts[place.lang] else None


def mojibake(place: Place) -> Turns | None:
    """UTF-8 that was decoded as something else."""
    encoding = place.rng.choice(("cp1252", "latin-1"))

    def change(text: str) -> str | None:
        return text.encode().decode(encoding, errors="replace") if not text.isascii() else None

    return _change(place, lambda i, text: change(text))


DAMAGES: Mapping[str, Damage] = MappingProxyType(
    {
        "wrong language": wrong_language,
        "cut": cut,
        "doubled": doubled,
        "copied": copied,
        "number changed": number_changed,
        "option lost": option_lost,
        "shuffled rows": shuffled,
        "mojibake": mojibake,
    }
)


def damaged(name: str, rows: Sequence[Row], lang: str, seed: int = 0) -> list[tuple[Turns, Turns]]:
    """Do one kind of damage to all rows that can have it.

    Args:
        name: One of `DAMAGES`.
        rows: Rows that people translated.
        lang: The language whose texts are damaged.
        seed: Decides what is damaged and how.

    Returns:
        English turns and damaged turns.
    """
    by_kind: dict[str, list[Row]] = {}
    for row in rows:
        by_kind.setdefault(row.kind, []).append(row)
    result: list[tuple[Turns, Turns]] = []
    for kind, some in by_kind.items():
        for i, row in enumerate(some):
            rng = random.Random(f"{seed}/{name}/{lang}/{kind}/{i}")
            turns = DAMAGES[name](Place(row, lang, some[(i + 1) % len(some)], rng))
            if turns is not None:
                result.append((row.english, turns))
    return result


def _change(place: Place, change: Callable[[int, str], str | None]) -> Turns | None:
    """Change one turn, whichever comes first that can be; `<image>` and its line end stay."""
    turns = list(place.row.texts[place.lang])
    for i in place.rng.sample(range(len(turns)), len(turns)):
        head, token, text = turns[i].text.rpartition(f"{DEFAULT_IMAGE_TOKEN}\n")
        changed = change(i, text)
        if changed is not None and changed != text:
            turns[i] = replace(turns[i], text=head + token + changed)
            return tuple(turns)
    return None


def _with_turn_of(place: Place, others: Turns) -> Turns | None:
    def change(index: int, text: str) -> str | None:
        if not _is_long(place, index):
            return None
        return others[index].text.rpartition(f"{DEFAULT_IMAGE_TOKEN}\n")[2]

    return _change(place, change)


def _is_long(place: Place, index: int) -> bool:
    text = place.row.english[index].text.rpartition(f"{DEFAULT_IMAGE_TOKEN}\n")[2]
    return len(text.split()) >= MIN_WORDS
