"""What became of a corpus in its languages, as numbers and examples (`lrm corpus report`).

In: a corpus, and perhaps the cache of its translation. Out: an `Account`. Texts are read batch by
batch, once for each language; what is kept of them does not grow with the corpus.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llava.data.sample import Turn
from llava.errors import ConfigError
from lrm_ext.corpus.store import STATUSES, Corpus, Text
from lrm_ext.corpus.summary import Summary, summarize
from lrm_ext.languages.registry import get_language
from lrm_ext.translation.cache import Cache
from lrm_ext.translation.engines.base import Usage
from lrm_ext.translation.runner import read_description, text_dir

HUMAN = "people"
MAX_FIGURES = 50_000  # values of one figure that are kept to draw its distribution


@dataclass(frozen=True)
class RowExample:
    """A row in English and in another language.

    Attributes:
        index: Row number.
        id: The row's id.
        image: Path of the picture relative to the corpus' pictures; None without one.
        english: The English turns.
        text: The other text.
    """

    index: int
    id: str
    image: str | None
    english: tuple[Turn, ...]
    text: Text


@dataclass
class LanguageAccount:
    """What there is in one language.

    Attributes:
        lang: Its code.
        name: Its name; the code where no language file says it.
        statuses: Texts by status; and rows without a text: "english only" and "missing".
        reasons: For a status, texts by the first word of their reason.
        engines: Texts by engine and status; "people" made what no engine did.
        licences: Of each engine, where the translation says it.
        usage: What each engine has cost; None if no cache is there to tell.
        figures: Values by name of a figure of quality, of at most `MAX_FIGURES` rows evenly spread.
        kept: Examples of accepted texts, drawn at random.
        faulty: Examples of suspect and rejected ones, of every reason some.
    """

    lang: str
    name: str
    statuses: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, Counter[str]] = field(default_factory=dict)
    engines: Counter[tuple[str, str]] = field(default_factory=Counter)
    licences: dict[str, str] = field(default_factory=dict)
    usage: dict[str, Usage] | None = None
    figures: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    kept: list[RowExample] = field(default_factory=list)
    faulty: list[RowExample] = field(default_factory=list)


@dataclass
class Account:
    """What there is in a corpus.

    Attributes:
        corpus: The corpus.
        summary: Numbers of its rows.
        languages: Its languages but English.
        cache: The cache that costs are from; None if there is none.
        seed: What examples were drawn with.
    """

    corpus: Corpus
    summary: Summary
    languages: list[LanguageAccount]
    cache: Path | None
    seed: int


def take_account(
    corpus: Corpus, *, cache: Path | None = None, num_examples: int = 20, seed: int = 0
) -> Account:
    """Count everything, and draw examples.

    Args:
        corpus: A corpus.
        cache: The cache file of its translation, to tell what it cost; None if there is none.
        num_examples: Examples of accepted texts, and of others, in each language.
        seed: Of the draw.

    Raises:
        DataError: The corpus is damaged, or the cache is something else.
    """
    languages = [
        _take_language(corpus, lang, num_examples, random.Random(f"{seed} {lang}"))
        for lang in corpus.languages[1:]
    ]
    for found in languages:
        description = read_description(text_dir(corpus.path, found.lang)) or {}
        engines = description.get("engines", [])
        found.licences = {engine["name"]: engine["licence"] for engine in engines}
        if cache is not None and engines:
            found.usage = _usage(cache, found.lang, engines)
    return Account(corpus, summarize(corpus), languages, cache, seed)


def reason_word(reason: str | None) -> str:
    """The countable word that a reason begins with."""
    return (reason or "").partition(":")[0] or "no reason given"


def _take_language(
    corpus: Corpus, lang: str, num_examples: int, rng: random.Random
) -> LanguageAccount:
    found = LanguageAccount(lang, _name(lang))
    step = max(1, -(-len(corpus) // MAX_FIGURES))
    drawn = _Draw(num_examples, rng)
    figures: dict[str, list[npt.NDArray[np.float32]]] = {}
    first = 0
    for rows, texts in zip(corpus.row_batches(), corpus.text_batches(lang), strict=True):
        _count(found, rows, texts)
        for status, reason, index in _faults(texts, first):
            found.reasons.setdefault(status, Counter())[reason] += 1
            drawn.offer(f"{status} {reason}", index)
        if "quality" in texts.schema.names:
            some = texts.column("quality").take(pa.array(range(-first % step, len(texts), step)))
            for name, values in figures_of(some).items():
                figures.setdefault(name, []).append(values)
        first += len(rows)
    found.figures = {name: np.concatenate(parts) for name, parts in sorted(figures.items())}
    usable = corpus.usable_rows(lang)
    kept = sorted(rng.sample(range(len(usable)), min(num_examples, len(usable))))
    found.kept = [_example(corpus, lang, int(usable[place])) for place in kept]
    found.faulty = [_example(corpus, lang, index) for index in drawn.indices()]
    return found


def figures_of(column: pa.MapArray) -> dict[str, npt.NDArray[np.float32]]:
    """The values of each figure of a column of figures by name; rows without one are left out."""
    # not `.keys`: that has the entries of all rows, also of those that were sliced away
    entries = column.cast(pa.list_(pa.struct([("key", pa.string()), ("value", pa.float32())])))
    flat = entries.flatten()
    names, values = flat.field("key"), flat.field("value")
    return {
        name: values.filter(pc.equal(names, name)).drop_null().to_numpy(zero_copy_only=False)
        for name in pc.unique(names).to_pylist()
    }


def _name(lang: str) -> str:
    try:
        return get_language(lang).name
    except ConfigError:  # a corpus of a language whose file is elsewhere can be looked at
        return lang


def _count(found: LanguageAccount, rows: pa.RecordBatch, texts: pa.RecordBatch) -> None:
    is_there = texts.column("turns").is_valid()
    table = pa.Table.from_batches([texts.filter(is_there)]).select(["engine", "status"])
    for entry in table.group_by(["engine", "status"]).aggregate([([], "count_all")]).to_pylist():
        found.statuses[entry["status"]] += entry["count_all"]
        found.engines[entry["engine"] or HUMAN, entry["status"]] += entry["count_all"]
    without = rows.column("translatable").filter(pc.invert(is_there))
    num_missing = int(pc.sum(without).as_py() or 0)
    found.statuses["missing"] += num_missing
    found.statuses["english only"] += len(without) - num_missing


def _faults(texts: pa.RecordBatch, first: int) -> Iterator[tuple[str, str, int]]:
    """Status, reason and row number of the texts that were not accepted."""
    status = texts.column("status")
    places = pc.indices_nonzero(pc.fill_null(pc.not_equal(status, "ok"), False))
    columns = (status.take(places), texts.column("reason").take(places), places)
    for name, reason, place in zip(*(c.to_pylist() for c in columns), strict=True):
        yield name, reason_word(reason), first + place


class _Draw:
    """Draws rows at random from groups of unknown size; every group keeps some.

    Args:
        size: Rows to draw in all.
        rng: Decides.
    """

    def __init__(self, size: int, rng: random.Random) -> None:
        self._size = size
        self._rng = rng
        self._seen: Counter[str] = Counter()
        self._kept: dict[str, list[int]] = {}

    def offer(self, group: str, index: int) -> None:
        """Reservoir sampling: each row of a group is as likely to be kept."""
        self._seen[group] += 1
        kept = self._kept.setdefault(group, [])
        if len(kept) < self._size:
            kept.append(index)
        elif (place := self._rng.randrange(self._seen[group])) < self._size:
            kept[place] = index

    def indices(self) -> list[int]:
        """Row numbers in order, taken from the groups in turn, so that rare reasons are seen."""
        chosen: list[int] = []
        groups = [self._rng.sample(kept, len(kept)) for _, kept in sorted(self._kept.items())]
        for turn in range(self._size):
            chosen += [kept[turn] for kept in groups if turn < len(kept)]
        return sorted(chosen[: self._size])


def _example(corpus: Corpus, lang: str, index: int) -> RowExample:
    row, text = corpus.row(index), corpus.text(lang, index)
    assert text is not None
    return RowExample(index, row.id, row.image, row.turns, text)


def _usage(path: Path, lang: str, engines: list[Mapping[str, Any]]) -> dict[str, Usage]:
    cache = Cache(path)
    try:
        return {engine["name"]: cache.spent(engine["name"], lang) for engine in engines}
    finally:
        cache.close()


def statuses_in_order(counts: Mapping[str, int]) -> dict[str, int]:
    """Counts by status in the order in which they are shown, those without any left out."""
    return {s: counts[s] for s in (*STATUSES, "english only", "missing") if counts.get(s)}
