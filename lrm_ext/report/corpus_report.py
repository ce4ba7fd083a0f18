"""Reports what became of a corpus in its languages, as one page (`lrm corpus report`).

In: a corpus, and perhaps the cache of its translation. Out: its `CorpusStats`, and a page of them:
what was kept and what was not and why, by whom it was made and what that cost, how metrics of
quality are spread, and examples to read. Texts are read batch by batch, once for each language; of
what is kept of them only row numbers grow with the corpus. Everything that comes from the data is
escaped; characters that would turn text around are shown by their number.
"""

from __future__ import annotations

import io
import logging
import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import regex
from PIL import Image

from llava.errors import ConfigError, DataError
from llava.images import open_image
from lrm_ext.corpus.store import STATUSES, Corpus, CorpusRow, CorpusText
from lrm_ext.corpus.summary import Summary, summarize
from lrm_ext.languages.grouping import MAX_ROWS, headed_groups, search_words
from lrm_ext.languages.registry import language_name
from lrm_ext.report.render import data_url, render
from lrm_ext.translate.cache import Cache
from lrm_ext.translate.engines.base import Usage
from lrm_ext.translate.quality.base import get_thresholds
from lrm_ext.translate.runner import read_description, text_dir

log = logging.getLogger(__name__)

HUMAN: Final = "people"
MAX_FIGURES: Final = 50_000  # values of one figure that are kept to draw its distribution
MAX_SHOWN: Final = 700  # letters of a turn, each with its marks
_SHOWN: Final = regex.compile(rf"\X{{0,{MAX_SHOWN}}}")
THUMBNAIL_PX: Final = 128
_LABELS: Final = {
    "ok": "kept",
    "suspect": "suspect",
    "rejected": "rejected",
    "english only": "stay English by rule",
    "missing": "no text",
}
# what could turn the text around it, or steer what reads it; line breaks and tabs are harmless
_UNSEEN: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]"
)
_QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
_NONE: Final = np.empty(0, np.float32)
# name of the row, values at 5, 25, 50, 75 and 95 percent, and their limit where there is one
_Spread = tuple[str, list[float], float | None]


@dataclass(frozen=True)
class RowExample:
    """A row in English and in another language.

    Attributes:
        index: Row number.
        row: The row in English.
        text: The other text.
    """

    index: int
    row: CorpusRow
    text: CorpusText


@dataclass
class LanguageStats:
    """The numbers and examples of one language.

    Attributes:
        lang: Its code.
        name: Its name; the code where no language file says it.
        statuses: Texts by status; and rows without a text: "english only" and "missing".
        reasons: Texts by status and the first word of their reason.
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
    reasons: Counter[tuple[str, str]] = field(default_factory=Counter)
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
class CorpusStats:
    """The numbers and examples of a corpus.

    Attributes:
        corpus: The corpus.
        summary: Numbers of its rows.
        languages: Its languages but English.
        cache: The cache that costs are from; None if there is none.
        seed: What examples were drawn with.
    """

    corpus: Corpus
    summary: Summary
    languages: list[LanguageStats]
    cache: Path | None
    seed: int


def corpus_stats(
    corpus: Corpus, *, cache: Path | None = None, num_examples: int = 20, seed: int = 0
) -> CorpusStats:
    """Counts everything, and draws examples.

    Args:
        corpus: A corpus.
        cache: The cache file of its translation, to tell what it cost; None if there is none.
        num_examples: Examples of accepted texts, and of others, in each language.
        seed: Of the draw.

    Raises:
        DataError: The corpus is damaged, or the cache is something else.
    """
    languages = [
        _language_stats(corpus, lang, num_examples, random.Random(f"{seed} {lang}"))
        for lang in corpus.languages[1:]
    ]
    for found in languages:
        description = read_description(text_dir(corpus.path, found.lang)) or {}
        engines = description.get("engines", [])
        found.licences = {engine["name"]: engine["licence"] for engine in engines}
        if cache is not None and engines:
            with closing(Cache(cache)) as opened:
                found.usage = {name: opened.spent(name, found.lang) for name in found.licences}
    return CorpusStats(corpus, summarize(corpus), languages, cache, seed)


def _language_stats(
    corpus: Corpus, lang: str, num_examples: int, rng: random.Random
) -> LanguageStats:
    found = LanguageStats(lang, language_name(lang))
    step = max(1, -(-len(corpus) // MAX_FIGURES))
    faulty: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    figures: defaultdict[str, list[npt.NDArray[np.float32]]] = defaultdict(list)
    first = 0
    for rows, texts in zip(corpus.row_batches(), corpus.text_batches(lang), strict=True):
        _count(found, rows, texts)
        for group, place in _faults(texts):
            faulty[group].append(first + place)
        if "quality" in texts.schema.names:
            some = texts.column("quality").take(pa.array(range(-first % step, len(texts), step)))
            for name, values in figures_of(some).items():
                figures[name].append(values)
        first += len(rows)
    found.figures = {name: np.concatenate(parts) for name, parts in sorted(figures.items())}
    found.reasons = Counter({group: len(numbers) for group, numbers in faulty.items()})
    usable = corpus.usable_rows(lang)
    kept = sorted(rng.sample(range(len(usable)), min(num_examples, len(usable))))
    found.kept = [_example(corpus, lang, int(usable[place])) for place in kept]
    # from the reasons in turn, so that rare ones are seen
    drawn = [rng.sample(n, min(len(n), num_examples)) for _, n in sorted(faulty.items())]
    chosen = [index for turn in zip_longest(*drawn) for index in turn if index is not None]
    found.faulty = [_example(corpus, lang, index) for index in sorted(chosen[:num_examples])]
    return found


def figures_of(column: pa.MapArray) -> dict[str, npt.NDArray[np.float32]]:
    """Returns the values of each metric in a column by name; rows without it are left out."""
    # not `.keys`: that has the entries of all rows, also of those that were sliced away
    entries = column.cast(pa.list_(pa.struct([("key", pa.string()), ("value", pa.float32())])))
    flat = entries.flatten()
    names, values = flat.field("key"), flat.field("value")
    return {
        name: values.filter(pc.equal(names, name)).drop_null().to_numpy(zero_copy_only=False)
        for name in pc.unique(names).to_pylist()
    }


def _count(found: LanguageStats, rows: pa.RecordBatch, texts: pa.RecordBatch) -> None:
    is_there = texts.column("turns").is_valid()
    table = pa.Table.from_batches([texts.filter(is_there)]).select(["engine", "status"])
    for entry in table.group_by(["engine", "status"]).aggregate([([], "count_all")]).to_pylist():
        found.statuses[entry["status"]] += entry["count_all"]
        found.engines[entry["engine"] or HUMAN, entry["status"]] += entry["count_all"]
    without = rows.column("translatable").filter(pc.invert(is_there))
    num_missing = int(pc.sum(without).as_py() or 0)
    found.statuses["missing"] += num_missing
    found.statuses["english only"] += len(without) - num_missing


def _faults(texts: pa.RecordBatch) -> Iterator[tuple[tuple[str, str], int]]:
    """Yields the texts of a batch that were not accepted: status and word of the reason, place."""
    is_faulty = pc.fill_null(pc.not_equal(texts.column("status"), "ok"), False)
    places = pc.indices_nonzero(is_faulty)
    for text, place in zip(
        texts.select(["status", "reason"]).take(places).to_pylist(), places.to_pylist(), strict=True
    ):
        word = (text["reason"] or "").partition(":")[0] or "no reason given"
        yield (text["status"], word), place


def _example(corpus: Corpus, lang: str, index: int) -> RowExample:
    text = corpus.text(lang, index)
    assert text is not None
    return RowExample(index, corpus.row(index), text)


def render_corpus(stats: CorpusStats, *, command: str, with_images: bool = False) -> str:
    """Renders the page.

    Args:
        stats: The numbers and examples.
        command: What makes the page again.
        with_images: Put small images beside the examples.
    """
    groups = _groups(stats.languages)
    languages = [found for _, group in groups for found in group]
    is_many = len(languages) > MAX_ROWS
    names = [found.name for found in languages]
    title = f"Corpus {stats.corpus.path.resolve().name}: English"
    title += f" and {', '.join(names)}" if len(names) < 4 else f" and {len(names)} languages"
    total = sum((found.statuses for found in languages), Counter[str]())
    spreads, constant = _spreads(languages)
    return render(
        "corpus.html",
        title=title,
        stats=stats,
        summary=stats.summary,
        languages=languages,
        groups=groups,
        find={one.name: search_words(one.lang, one.name) for one in languages if is_many},
        total=total,
        num_texts=sum(total[status] for status in STATUSES),
        language_rows=[
            [found.name, *(f"{found.statuses[status]:,}" for status in _LABELS)]
            for found in languages
        ],
        engine_rows=[
            [found.name, engine, *(f"{found.engines[engine, status]:,}" for status in STATUSES)]
            for found in languages
            for engine in sorted({engine for engine, _ in found.engines})
        ],
        count_tables={
            name: [[key, f"{count:,}"] for key, count in counts.most_common()]
            for name, counts in (("source", stats.summary.sources), ("task", stats.summary.tasks))
        },
        reason_rows=_reason_rows(languages),
        cost_rows=_cost_rows(stats),
        spreads=spreads,
        constant=constant,
        thumbnails=_thumbnails(stats) if with_images else {},
        command=command,
        fingerprint=stats.corpus.fingerprint(),
        labels=_LABELS,
        people=HUMAN,
        commas="{:,}".format,
        visible=visible,
    )


def _groups(languages: Sequence[LanguageStats]) -> list[tuple[str, list[LanguageStats]]]:
    """Returns headings and languages: many by script, those first of which least was kept."""
    if len(languages) <= MAX_ROWS:
        return [("", list(languages))]
    by_lang = {found.lang: found for found in languages}
    kept = {
        lang: found.statuses["ok"] / found.num_texts if found.num_texts else 1.0
        for lang, found in by_lang.items()
    }
    return [(title, [by_lang[lang] for lang in langs]) for title, langs in headed_groups(kept)]


def _reason_rows(languages: Sequence[LanguageStats]) -> list[list[str]]:
    """Returns heads and a row a reason with a column a language; of many, a row a language.

    It is empty without a reason.
    """
    total = sum((found.reasons for found in languages), Counter[tuple[str, str]]())
    rows = [["reason", *(found.name for found in languages)]] + [
        [f"{status}: {reason}", *(f"{found.reasons[status, reason]:,}" for found in languages)]
        for (status, reason), _ in sorted(total.items(), key=lambda c: (c[0][0], -c[1], c[0]))
    ]
    if len(languages) > MAX_ROWS:
        rows = [list(column) for column in zip(*rows, strict=True)]
        rows[0][0] = "language"
    return rows if total else []


def _cost_rows(stats: CorpusStats) -> list[list[str]]:
    rows, total = [], Usage()
    for found in stats.languages:
        for engine, licence in found.licences.items():
            usage = None if found.usage is None else found.usage[engine]
            total += usage or Usage()
            rows.append([found.name, engine, licence, *_usage_cells(usage)])
    if rows and stats.cache is not None:
        rows.append(["all", "", "", *_usage_cells(total)])
    return rows


def _usage_cells(usage: Usage | None) -> list[str]:
    if usage is None:
        return ["-"] * 4
    counts = (usage.requests, usage.input_tokens, usage.output_tokens)
    return [*(f"{count:,}" for count in counts), f"{usage.usd:,.4f}"]


def _spreads(
    languages: Sequence[LanguageStats],
) -> tuple[list[tuple[str, list[_Spread], float, float]], list[str]]:
    """Returns spreads by metric with the ends of their axis, and the metrics that hardly vary."""
    charts, constant = [], []
    for name in sorted({name for found in languages for name in found.figures}):
        spreads: list[_Spread] = [
            (found.name, np.quantile(measured, _QUANTILES).tolist(), _limit(found.lang, name))
            for found in languages
            if len(measured := found.figures.get(name, _NONE))
        ]
        values = {value for _, quantiles, _ in spreads for value in quantiles}
        if len(values) == 1:
            constant.append(f"{name} ({values.pop():.3g})")
        elif spreads:
            values |= {limit for *_, limit in spreads if limit is not None}
            charts.append((name, spreads, min(0.0, *values), max(values)))
    return charts, constant


def _limit(lang: str, name: str) -> float | None:
    try:
        return get_thresholds(lang).limits.get(name)
    except ConfigError:  # the language's file is elsewhere
        return None


def visible(text: str) -> str:
    """Makes a text fit to be shown: not too long, and without characters that nobody would see."""
    cut = _SHOWN.match(text)[0]
    shown = _UNSEEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", cut)
    return shown if cut == text else f"{shown} ... [{len(text):,} characters]"


def _thumbnails(stats: CorpusStats) -> dict[str, str | None]:
    """Returns small images of the examples by name, as `data:` URLs; None for one that is gone."""
    examples = [e for found in stats.languages for e in (*found.kept, *found.faulty)]
    return {
        name: _thumbnail(stats.corpus, e.index, place)
        for e in examples
        for place, name in enumerate(e.row.images)
    }


def _thumbnail(corpus: Corpus, index: int, place: int) -> str | None:
    try:
        image = open_image(corpus.image_paths(index)[place])
    except DataError as error:
        log.warning("%s", error)
        return None
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return data_url("image/jpeg", buffer.getvalue())
