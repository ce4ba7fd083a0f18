"""Engine `memory`: a table of human translations; a text that is not in it stays untranslated.

The table holds the CLDR names of what the built-in images show, and your own translations (a TSV
file of English, tab, translation; or a corpus with human texts). Only exact matches count.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from llava.errors import ConfigError
from lrm_ext.corpus.store import ENGLISH, Corpus
from lrm_ext.languages.registry import list_languages
from lrm_ext.translate.cache import Cache
from lrm_ext.translate.engines.base import (
    EngineSpec,
    Outcome,
    Reply,
    TextSegment,
    TranslationEngine,
)


@dataclass(frozen=True)
class MemoryOptions:
    """Options of the engine.

    Attributes:
        table: A TSV file, or a corpus whose texts are human translations; `{lang}` stands for the
            language's code. By default only the CLDR names are used.
    """

    table: str | None = None


class MemoryEngine(TranslationEngine):
    """Looks segments up in a table."""

    name = "memory"
    version = "cldr"
    context = "none"
    is_table = True

    def __init__(self, options: MemoryOptions, source: str, target: str, ledger: Cache) -> None:
        table = options.table
        self._path = None if table is None else Path(table.replace("{lang}", target))
        self._target = target
        self.options = {"table": _digest(self._path)}

    @cached_property
    def _memory(self) -> dict[str, str]:
        return known_translations(self._target, self._path)

    def translate(self, segments: Sequence[TextSegment]) -> Iterator[Reply]:
        """Looks segments up; see `TranslationEngine.translate`."""
        found = [self._memory.get(segment.text) for segment in segments]
        outcomes = [Outcome(i, t, None if t else "not in the table") for i, t in enumerate(found)]
        yield Reply(tuple(outcomes))


def known_translations(target: str, table: Path | None = None) -> dict[str, str]:
    """Returns all translations into a language, by their English.

    Args:
        target: Code of the language.
        table: Read in addition to the CLDR names; see `MemoryOptions`.

    Raises:
        ConfigError: The table cannot be read or contradicts itself.
    """
    return _names(target) | (_read(table, target) if table else {})


def _names(target: str) -> dict[str, str]:
    """Returns the CLDR names of things in the built-in images, in lower case and capitalised."""
    from lrm_ext.emoji.scenes import load_concepts

    memory: dict[str, str] = {}
    for concept in load_concepts():
        english, other = concept.names.get(ENGLISH), concept.names.get(target)
        if english and other:
            memory[english] = other
            memory[english[:1].upper() + english[1:]] = other[:1].upper() + other[1:]
    return memory


def _read(path: Path, target: str) -> dict[str, str]:
    if path.is_dir():
        return _read_corpus(Corpus.open(path), target)
    memory: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the table of translations cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        english, tab, other = line.partition("\t")
        if not line.strip():
            continue
        if not tab or not english.strip() or not other.strip() or "\t" in other:
            raise ConfigError(
                f"{path}:{number}: found {line[:60]!r}, expected English, a tab, the translation."
            )
        if memory.setdefault(english.strip(), other.strip()) != other.strip():
            raise ConfigError(
                f"{path}:{number}: {english!r} was {memory[english.strip()]!r} before and is "
                f"{other!r} here; delete one."
            )
    return memory


def _read_corpus(corpus: Corpus, target: str) -> dict[str, str]:
    """Reads a corpus line by line; omits lines with two translations, which depend on context."""
    memory: dict[str, str] = {}
    ambiguous: set[str] = set()
    for i in range(len(corpus)):
        turns = corpus.turns(target, i)
        if turns is None:
            continue
        for english, other in zip(corpus.row(i).turns, turns, strict=True):
            ours, theirs = english.text.split("\n"), other.text.split("\n")
            if len(ours) != len(theirs):
                continue
            for line, translated in zip(ours, theirs, strict=True):
                if memory.setdefault(line, translated) != translated:
                    ambiguous.add(line)
    return {line: text for line, text in memory.items() if line not in ambiguous}


def _digest(path: Path | None) -> str | None:
    """Returns a digest of the table."""
    if path is None:
        return None
    files = sorted(path.rglob("*.arrow")) if path.is_dir() else [path]
    digest = hashlib.sha256()
    try:
        for file in files:
            digest.update(file.name.encode())
            digest.update(file.read_bytes())
    except OSError as error:
        raise ConfigError(f"{path}: the table of translations cannot be read: {error}") from error
    return digest.hexdigest()[:16]


SPEC = EngineSpec(
    name="memory",
    summary="a table of human translations: CLDR names, and your own",
    licence="Unicode (CLDR); your table's own",
    cost="free",
    options=MemoryOptions,
    build=MemoryEngine,
    languages=lambda: tuple(lang for lang in list_languages() if lang != ENGLISH),
)
