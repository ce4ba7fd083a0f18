"""Reports what became of a corpus in its languages, as one page (`lrm corpus report`).

In: a corpus, and perhaps the cache of its translation. Out: an `Account`, and a page of it: what
was kept and what was not and why, by whom it was made and what that cost, how metrics of quality
are spread, and examples to read. Texts are read batch by batch, once for each language; what is
kept of them does not grow with the corpus. Everything that comes from the data is escaped;
characters that would turn text around are shown by their number.
"""

from __future__ import annotations

import io
import logging
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from llava.data.sample import Turn
from llava.errors import ConfigError, DataError
from llava.images import open_image
from lrm_ext.corpus.store import STATUSES, Corpus, CorpusText
from lrm_ext.corpus.summary import Summary, summarize
from lrm_ext.languages.registry import get_language
from lrm_ext.report.page import data_url, environment
from lrm_ext.translate.cache import Cache
from lrm_ext.translate.engines.base import Usage
from lrm_ext.translate.quality.base import get_thresholds
from lrm_ext.translate.runner import read_description, text_dir

log = logging.getLogger(__name__)

HUMAN = "people"
MAX_FIGURES = 50_000  # values of one figure that are kept to draw its distribution
MAX_SHOWN: Final = 700  # characters of a turn
THUMBNAIL_PX: Final = 128
_LABELS: Final = {
    "ok": "kept",
    "suspect": "suspect",
    "rejected": "rejected",
    "english only": "stay English by rule",
    "missing": "no text",
}
# what could turn the text around it, or steer what reads it; line breaks and tabs are harmless
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
_QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)


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
    text: CorpusText


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

    @property
    def num_texts(self) -> int:
        """Texts of any status."""
        return sum(self.statuses[status] for status in STATUSES)


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


@dataclass(frozen=True)
class Spread:
    """How a metric is spread over many rows.

    Attributes:
        label: Name of the row.
        quantiles: Values at 5, 25, 50, 75 and 95 percent.
        limit: What it must not exceed; None if there is no such thing.
    """

    label: str
    quantiles: tuple[float, ...]
    limit: float | None

    def in_words(self) -> str:
        """The whole row as a sentence."""
        low, quarter, middle, three, high = (f"{value:.3g}" for value in self.quantiles)
        limit = "" if self.limit is None else f"; limit {self.limit:.3g}"
        return (
            f"{self.label}: median {middle}, half between {quarter} and {three}, nine of ten "
            f"between {low} and {high}{limit}"
        )


def render_account(account: Account, *, command: str, with_pictures: bool = False) -> str:
    """Renders the page.

    Args:
        account: The numbers and examples.
        command: What makes the page again.
        with_pictures: Put small pictures beside the examples.
    """
    languages, summary = account.languages, account.summary
    names = [found.name for found in languages]
    title = f"Corpus {account.corpus.path.resolve().name}: English"
    title += f" and {', '.join(names)}" if len(names) < 4 else f" and {len(names)} languages"
    total = sum((found.statuses for found in languages), Counter[str]())
    spreads, constant = _spreads(languages)
    engine_rows = [
        [found.name, engine, *(f"{found.engines[engine, status]:,}" for status in STATUSES)]
        for found in languages
        for engine in sorted({engine for engine, _ in found.engines})
    ]
    return environment().get_template("corpus.html").render(
        title=title,
        summary=summary,
        languages=languages,
        total=total,
        num_texts=sum(total[status] for status in STATUSES),
        language_rows=[
            [found.name, *(f"{found.statuses[status]:,}" for status in _LABELS)]
            for found in languages
        ],
        reason_rows=_reason_rows(languages),
        engine_rows=engine_rows,
        cost_rows=_cost_rows(account),
        cache=account.cache,
        spreads=spreads,
        constant=constant,
        source_rows=_count_rows(summary.sources),
        task_rows=_count_rows(summary.tasks),
        thumbnails=_thumbnails(account) if with_pictures else {},
        command=command,
        fingerprint=account.corpus.fingerprint(),
        seed=account.seed,
        labels=_LABELS,
        people=HUMAN,
        commas="{:,}".format,
        statuses_in_order=statuses_in_order,
        visible=visible,
    )  # fmt: skip


def statuses_in_order(counts: Mapping[str, int]) -> dict[str, int]:
    """Counts by status in the order in which they are shown, those without any left out."""
    return {status: counts[status] for status in _LABELS if counts.get(status)}


def _count_rows(counts: Counter[str]) -> list[list[str]]:
    return [[key, f"{count:,}"] for key, count in counts.most_common()]


def _reason_rows(languages: Sequence[LanguageAccount]) -> list[list[str]]:
    """One row a reason, one column a language."""
    counts: Counter[tuple[str, str]] = Counter()
    for found in languages:
        for status, reasons in found.reasons.items():
            counts.update({(status, reason): count for reason, count in reasons.items()})
    return [
        [
            f"{status}: {reason}",
            *(f"{found.reasons.get(status, Counter())[reason]:,}" for found in languages),
        ]
        for (status, reason), _ in sorted(counts.items(), key=lambda c: (c[0][0], -c[1], c[0]))
    ]


def _cost_rows(account: Account) -> list[list[str]]:
    rows, total = [], Usage()
    for found in account.languages:
        for engine, licence in found.licences.items():
            usage = (found.usage or {}).get(engine)
            total += usage or Usage()
            rows.append([found.name, engine, licence, *_usage_cells(usage)])
    if rows and account.cache is not None:
        rows.append(["all", "", "", *_usage_cells(total)])
    return rows


def _usage_cells(usage: Usage | None) -> list[str]:
    if usage is None:
        return ["-"] * 4
    counts = (usage.requests, usage.input_tokens, usage.output_tokens)
    return [*(f"{count:,}" for count in counts), f"{usage.usd:,.4f}"]


def _spreads(
    languages: Sequence[LanguageAccount],
) -> tuple[list[tuple[str, list[Spread], float, float]], list[str]]:
    """Spreads by metric with the ends of their axis, and the metrics that hardly vary."""
    charts, constant = [], []
    for name in sorted({name for found in languages for name in found.figures}):
        spreads = [
            Spread(
                found.name,
                tuple(map(float, np.quantile(found.figures[name], _QUANTILES))),
                _limit(found.lang, name),
            )
            for found in languages
            if len(found.figures.get(name, ()))
        ]
        values = {value for spread in spreads for value in spread.quantiles}
        if len(values) == 1:
            constant.append(f"{name} ({values.pop():.3g})")
        elif spreads:
            values |= {spread.limit for spread in spreads if spread.limit is not None}
            charts.append((name, spreads, min(0.0, *values), max(values)))
    return charts, constant


def _limit(lang: str, name: str) -> float | None:
    try:
        return get_thresholds(lang).limits.get(name)
    except ConfigError:  # the language's file is elsewhere
        return None


def visible(text: str) -> str:
    """A text as it can be shown: not too long, and without characters that nobody would see."""
    cut = text[:MAX_SHOWN]
    shown = _UNSEEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", cut)
    return shown if cut == text else f"{shown} ... [{len(text):,} characters]"


def _thumbnails(account: Account) -> dict[str, str | None]:
    """Small pictures of the examples by name, as `data:` URLs; None for one that is gone."""
    made: dict[str, str | None] = {}
    examples = [e for found in account.languages for e in (*found.kept, *found.faulty)]
    for name, index in {e.image: e.index for e in examples if e.image is not None}.items():
        try:
            path = account.corpus.image_path(index)
            assert path is not None
            made[name] = _thumbnail(path)
        except DataError as error:
            log.warning("%s", error)
            made[name] = None
    return made


def _thumbnail(path: Path) -> str:
    image = open_image(path)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return data_url("image/jpeg", buffer.getvalue())
