"""Reports what became of a corpus in its languages, as one page (`lrm corpus report`).

In: a corpus, and perhaps the cache of its translation. Out: an `Account`, and a page of it: what
was kept and what was not and why, by whom it was made and what that cost, how metrics of quality
are spread, and examples to read. Texts are read batch by batch, once for each language; what is
kept of them does not grow with the corpus. Everything that comes from the data is escaped;
characters that would turn text around are shown by their number.
"""

from __future__ import annotations

import base64
import io
import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from llava.data.sample import Turn
from llava.errors import ConfigError, DataError
from llava.image_file import open_image
from lrm_ext.analysis.page import render_page, section
from lrm_ext.corpus.describing import Summary, summarize
from lrm_ext.corpus.layout import STATUSES, Text
from lrm_ext.corpus.store import Corpus
from lrm_ext.languages.registry import get_language
from lrm_ext.translation.cache import Cache
from lrm_ext.translation.engines.base import Usage
from lrm_ext.translation.parts import read_description, text_dir
from lrm_ext.translation.quality.thresholds import get_thresholds

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


ROW_HEIGHT_PX: Final = 20
STYLE: Final = """
.stack { display: flex; height: 14px; border-radius: .2rem; overflow: hidden; background: var(--card); }
.stack i, .legend i { display: block; height: 100%; flex: none; }
.legend i { width: 1.6rem; height: 12px; }
.ok { background: var(--bar); }
.suspect { background: repeating-linear-gradient(45deg, var(--bar-other) 0 3px, var(--page) 3px 6px); }
.rejected { background: var(--bad); background-image: radial-gradient(var(--page) 1px, transparent 1.2px); background-size: 5px 5px; }
.english-only { background: var(--rule); }
.missing { background: repeating-linear-gradient(90deg, var(--soft) 0 1px, var(--card) 1px 5px); }
.spread { stroke: var(--bar); stroke-width: 2; }
.middle { fill: var(--bar-other); stroke: var(--bar); stroke-width: 1; }
.median { stroke: var(--ink); stroke-width: 2.5; }
.limit { stroke: var(--bad); stroke-width: 1.5; stroke-dasharray: 3 2; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: .5rem 2rem; }
@media print { .stack i, .legend i { print-color-adjust: exact; -webkit-print-color-adjust: exact; } }
"""  # noqa: E501 - a rule a line


@dataclass(frozen=True)
class Part:
    """One part of a bar.

    Attributes:
        kind: CSS class, which decides how it looks.
        label: What it is, in words.
        count: How many.
    """

    kind: str
    label: str
    count: int


def stacked_bar(label: str, parts: Sequence[Part], number: str) -> str:
    """One row: a name, its parts of a whole, and a number at the end."""
    total = sum(part.count for part in parts) or 1
    words = ", ".join(f"{part.count:,} {part.label}" for part in parts)
    pieces = "".join(
        f'<i class="{part.kind}" style="width:{100 * part.count / total:.3f}%"></i>'
        for part in parts
    )
    said = escape(f"{label}: {words}")
    return (
        f'<div class="label">{escape(label)}</div>'
        f'<div class="stack" role="img" aria-label="{said}" title="{said}">{pieces}</div>'
        f'<div class="number">{escape(number)}</div>'
    )


def parts_legend(labels: Mapping[str, str]) -> str:
    """What the parts of stacked bars mean, by their CSS class."""
    items = "".join(
        f'<li><i class="{kind}"></i>{escape(label)}</li>' for kind, label in labels.items()
    )
    return f'<ul class="legend">{items}</ul>'


@dataclass(frozen=True)
class Spread:
    """How a figure is spread over many rows.

    Attributes:
        label: Name of the row.
        quantiles: Values at 5, 25, 50, 75 and 95 percent.
        limit: What it must not exceed; None if there is no such thing.
    """

    label: str
    quantiles: tuple[float, float, float, float, float]
    limit: float | None = None

    def in_words(self) -> str:
        """The whole row as a sentence."""
        low, quarter, middle, three, high = (f"{value:.3g}" for value in self.quantiles)
        limit = "" if self.limit is None else f"; limit {self.limit:.3g}"
        return (
            f"{self.label}: median {middle}, half between {quarter} and {three}, nine of ten "
            f"between {low} and {high}{limit}"
        )


def spread_chart(spreads: Sequence[Spread]) -> str:
    """Rows over a common axis: a line from 5 to 95 percent, a box for the middle half."""
    values = [v for spread in spreads for v in (*spread.quantiles, spread.limit) if v is not None]
    low, high = min(0.0, *values), max(values)
    span = (high - low) or 1.0
    rows = "".join(_spread_row(spread, low, span) for spread in spreads)
    ends = "".join(
        f'<text x="{at}" y="13" text-anchor="{anchor}">{value:.3g}</text>'
        for at, anchor, value in (("0", "start", low), ("100%", "end", high))
    )
    axis = f'<div></div><svg class="plot" height="16" aria-hidden="true">{ends}</svg><div></div>'
    return f'<div class="chart">{rows}{axis}</div>'


def _spread_row(spread: Spread, low: float, span: float) -> str:
    def at(value: float) -> str:
        return f"{100 * (value - low) / span:.2f}%"

    five, quarter, middle, three, ninety_five = spread.quantiles
    y = ROW_HEIGHT_PX // 2
    width = f"{100 * (three - quarter) / span:.2f}%"
    marks = [
        f'<line class="spread" x1="{at(five)}" x2="{at(ninety_five)}" y1="{y}" y2="{y}"/>',
        f'<rect class="middle" x="{at(quarter)}" y="{y - 5}" width="{width}" height="10"/>',
        f'<line class="median" x1="{at(middle)}" x2="{at(middle)}" y1="{y - 7}" y2="{y + 7}"/>',
    ]
    if spread.limit is not None:
        x = at(spread.limit)
        marks.append(f'<line class="limit" x1="{x}" x2="{x}" y1="0" y2="{ROW_HEIGHT_PX}"/>')
    words = escape(spread.in_words())
    return (
        f'<div class="label">{escape(spread.label)}</div>'
        f'<svg class="plot" height="{ROW_HEIGHT_PX}" role="img" aria-label="{words}">'
        f"<title>{words}</title>{''.join(marks)}</svg>"
        f'<div class="number">{middle:.3g}</div>'
    )


log = logging.getLogger(__name__)

MAX_SHOWN: Final = 700  # characters of a turn
THUMBNAIL_PX: Final = 128
_LABELS: Final = {
    "ok": "kept",
    "suspect": "suspect",
    "rejected": "rejected",
    "english-only": "stay English by rule",
    "missing": "no text",
}
# what could turn the text around it, or steer what reads it; line breaks and tabs are harmless
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
_QUANTILES: Final = (0.05, 0.25, 0.5, 0.75, 0.95)
_STYLE: Final = (
    STYLE
    + """
.chart + .scroll, .scroll + .scroll { margin-top: 1.2rem; }
table.wide td:nth-child(2), table.wide th:nth-child(2) { text-align: left; }
tr.sum td { font-weight: 600; }
details { margin: .6rem 0; border-top: 1px solid var(--rule); padding-top: .5rem; }
summary { cursor: pointer; font-weight: 600; padding: .2rem 0; }
.row { background: var(--card); border-radius: .5rem; padding: .8rem 1rem; margin: .7rem 0; }
.row header { font-size: .8125rem; color: var(--soft); overflow-wrap: anywhere; }
.row header b { color: var(--ink); }
.row .why { color: var(--bad); }
.row .said { display: flex; gap: 1rem; align-items: flex-start; }
.row .turns { flex: 1; min-width: 0; }
.row img { max-width: 8rem; margin-top: .6rem; border-radius: .3rem; }
.turn { display: grid; grid-template-columns: 1fr 1fr; gap: .2rem 1.2rem; margin-top: .5rem; }
.turn p { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate; }
.turn.answer { font-weight: 600; }
.turn .english { color: var(--soft); }
@media (max-width: 34rem) { .turn { grid-template-columns: 1fr; } .row img { max-width: 5rem; } }
"""
)


def render_account(account: Account, *, command: str, with_pictures: bool = False) -> str:
    """Render the page.

    Args:
        account: The numbers and examples.
        command: What makes the page again.
        with_pictures: Put small pictures beside the examples.
    """
    names = [found.name for found in account.languages]
    title = f"Corpus {account.corpus.path.resolve().name}: English"
    title += f" and {', '.join(names)}" if len(names) < 4 else f" and {len(names)} languages"
    picture = _thumbnails(account) if with_pictures else lambda example: ""
    return render_page(
        title,
        _lead(account),
        _languages_section(account),
        _reasons_section(account.languages),
        _engines_section(account),
        _figures_section(account.languages),
        _rows_section(account),
        _examples_section(account, picture),
        _method_section(account, command),
        style=_STYLE,
    )


def _lead(account: Account) -> str:
    summary = account.summary
    text = (
        f"<b>{summary.num_rows:,}</b> rows in English with {summary.num_pictures:,} pictures; "
        f"{summary.num_text_only:,} rows are text only."
    )
    total: Counter[str] = Counter()
    for found in account.languages:
        total.update(found.statuses)
    texts = sum(total[status] for status in STATUSES)
    if texts:
        text += (
            f" Of {texts:,} texts in other languages <b>{100 * total['ok'] / texts:.1f}&nbsp;%"
            f"</b> are kept; {total['suspect']:,} are suspect, {total['rejected']:,} rejected."
        )
    return text


def _languages_section(account: Account) -> str:
    if not account.languages:
        return section("By language", "<p>There is no text in another language yet.</p>")
    bars, seen = [], set()
    for found in account.languages:
        counts = statuses_in_order(found.statuses)
        parts = [
            Part(kind, _LABELS[kind], count)
            for status, count in counts.items()
            for kind in [status.replace(" ", "-")]
        ]
        seen |= {part.kind for part in parts}
        texts = sum(found.statuses[status] for status in STATUSES)
        kept = f"{100 * found.statuses['ok'] / texts:.1f}" if texts else "-"
        bars.append(stacked_bar(found.name, parts, kept))
    labels = {kind: label for kind, label in _LABELS.items() if kind in seen}
    return section(
        "By language",
        '<p class="soft">All rows; the number is the share of the texts that were kept, in '
        "percent. Only kept texts are ever trained on.</p>",
        parts_legend(labels),
        f'<div class="chart">{"".join(bars)}</div>',
        _html_table(
            ["language", *_LABELS.values()],
            [
                [found.name, *(f"{found.statuses[k.replace('-', ' ')]:,}" for k in _LABELS)]
                for found in account.languages
            ],
        ),
    )


def _reasons_section(languages: Sequence[LanguageAccount]) -> str:
    """One row a reason, one column a language."""
    counts: Counter[tuple[str, str]] = Counter()
    for found in languages:
        for status, reasons in found.reasons.items():
            counts.update({(status, reason): count for reason, count in reasons.items()})
    if not counts:
        return ""
    rows = [
        [
            f"{status}: {reason}",
            *(f"{found.reasons.get(status, Counter())[reason]:,}" for found in languages),
        ]
        for (status, reason), _ in sorted(counts.items(), key=lambda c: (c[0][0], -c[1], c[0]))
    ]
    return section(
        "Why texts were not kept",
        '<p class="soft">By the first reason of each text, so that columns add up. Of such a row '
        "the English text is there to train on.</p>",
        _html_table(["reason", *(found.name for found in languages)], rows),
    )


def _engines_section(account: Account) -> str:
    made = [
        [
            found.name,
            engine,
            *(f"{found.engines[engine, status]:,}" for status in STATUSES),
        ]
        for found in account.languages
        for engine in sorted({engine for engine, _ in found.engines})
    ]
    if not made:
        return ""
    content = [_html_table(["language", "made by", "kept", "suspect", "rejected"], made, "wide")]
    rows, total = [], Usage()
    for found in account.languages:
        for engine, licence in found.licences.items():
            usage = (found.usage or {}).get(engine)
            total += usage or Usage()
            rows.append([found.name, engine, licence, *_usage_cells(usage)])
    if rows:
        if account.cache is not None:
            rows.append(["all", "", "", *_usage_cells(total)])
        head = ["language", "engine", "licence", "requests", "tokens in", "tokens out", "USD"]
        content += ["<h3>Cost</h3>", _cost_note(account.cache), _html_table(head, rows, "wide")]
    return section("Who made the texts, and for how much", *content)


def _cost_note(cache: Path | None) -> str:
    if cache is None:
        text = (
            "No cache of the translation was found, so what it cost is not known; --cache names it."
        )
    else:
        text = (
            f"As {cache.name} has noted it with every answer, all runs together; other corpora "
            "that were translated with this cache by the same engine are counted in. Engines that "
            "bill characters have those in place of tokens; what runs on one's own machine has "
            "no price."
        )
    return f'<p class="soft">{escape(text)}</p>'


def _usage_cells(usage: Usage | None) -> list[str]:
    if usage is None:
        return ["-"] * 4
    return [
        f"{usage.requests:,}",
        f"{usage.input_tokens:,}",
        f"{usage.output_tokens:,}",
        f"{usage.usd:,.4f}",
    ]


def _figures_section(languages: Sequence[LanguageAccount]) -> str:
    names = sorted({name for found in languages for name in found.figures})
    charts, constant = [], []
    for name in names:
        spreads = [
            Spread(
                found.name,
                tuple(float(q) for q in np.quantile(found.figures[name], _QUANTILES)),  # type: ignore[arg-type]
                _limit(found.lang, name),
            )
            for found in languages
            if len(found.figures.get(name, ()))
        ]
        values = {value for spread in spreads for value in spread.quantiles}
        if len(values) == 1:
            constant.append(f"{name} ({values.pop():.3g})")
        elif spreads:
            charts.append(f"<div><h3>{escape(name)}</h3>{spread_chart(spreads)}</div>")
    if not charts and not constant:
        return ""
    note = (
        f'<p class="soft">The same in at least nine of ten rows: {escape(", ".join(constant))}.</p>'
        if constant
        else ""
    )
    return section(
        "Figures of quality",
        '<p class="soft">Of the worst turn of each row: the middle half of the rows (box), nine '
        "of ten (line) and the median (stroke, and the number). A dashed line is the limit of a "
        "check, beyond which a text is not kept; of checks smaller is better.</p>",
        f'<div class="figures">{"".join(charts)}</div>',
        note,
    )


def _limit(lang: str, name: str) -> float | None:
    try:
        return get_thresholds(lang).limits.get(name)
    except ConfigError:  # the language's file is elsewhere
        return None


def _rows_section(account: Account) -> str:
    summary = account.summary
    tables = [
        _html_table([name, "rows"], [[key, f"{count:,}"] for key, count in counts.most_common()])
        for name, counts in (("source", summary.sources), ("task", summary.tasks))
    ]
    return section(
        "The rows",
        f"<p>{summary.num_turns:,} turns, {summary.num_characters:,} characters of English. "
        f"Rows that stay English by rule: {summary.num_english_only:,}.</p>",
        *tables,
    )


def _examples_section(account: Account, picture: Callable[[RowExample], str]) -> str:
    parts = []
    for found in account.languages:
        faulty = f", {len(found.faulty)} not" if found.faulty else ""
        parts.append(
            f"<details><summary>{escape(found.name)}: {len(found.kept)} kept{faulty}</summary>"
            + "".join(_example_html(example, found.lang, picture) for example in found.kept)
            + ("<h3>Not kept</h3>" if found.faulty else "")
            + "".join(_example_html(example, found.lang, picture) for example in found.faulty)
            + "</details>"
        )
    if not parts:
        return ""
    return section(
        "Examples",
        '<p class="soft">Drawn at random: of the kept texts any, of the others some of every '
        "reason.</p>",
        *parts,
    )


def _example_html(example: RowExample, lang: str, picture: Callable[[RowExample], str]) -> str:
    text = example.text
    status = _LABELS[text.status]
    about = f"row {example.index}, {visible(example.id)}, {visible(text.engine or 'people')}"
    why = f'<div class="why">{escape(visible(text.reason))}</div>' if text.reason else ""
    turns = []
    for number in range(max(len(example.english), len(text.turns))):
        said = [
            visible(turns_[number].text) if number < len(turns_) else "(no turn)"
            for turns_ in (example.english, text.turns)
        ]
        kind = "turn answer" if number % 2 else "turn"
        turns.append(
            f'<div class="{kind}"><p class="english" lang="en">{escape(said[0])}</p>'
            f'<p lang="{escape(lang)}" dir="auto">{escape(said[1])}</p></div>'
        )
    return (
        f'<div class="row"><header><b>{status}</b> {escape(about)}{why}</header>'
        f'<div class="said"><div class="turns">{"".join(turns)}</div>{picture(example)}</div></div>'
    )


def visible(text: str) -> str:
    """A text as it can be shown: not too long, and without characters that nobody would see."""
    cut = text[:MAX_SHOWN]
    shown = _UNSEEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", cut)
    return shown if cut == text else f"{shown} ... [{len(text):,} characters]"


def _thumbnails(account: Account) -> Callable[[RowExample], str]:
    """What makes a small picture of a row; each is opened once."""
    made: dict[str, str] = {}

    def picture(example: RowExample) -> str:
        if example.image is None:
            return ""
        if example.image not in made:
            try:
                path = account.corpus.image_path(example.index)
                assert path is not None
                made[example.image] = _thumbnail(path, example.image)
            except DataError as error:
                log.warning("%s", error)
                made[example.image] = (
                    f'<p class="soft">no picture: {escape(visible(example.image))}</p>'
                )
        return made[example.image]

    return picture


def _thumbnail(path: Path, name: str) -> str:
    image = open_image(path)
    image.thumbnail((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return f'<img src="data:image/jpeg;base64,{data}" alt="{escape(visible(name))}">'


def _method_section(account: Account, command: str) -> str:
    return section(
        "How this was made",
        f"<pre>{escape(command)}</pre>",
        f'<p class="soft">Corpus {account.corpus.fingerprint()}, seed {account.seed}: the same '
        "corpus gives the same page.</p>",
    )


def _html_table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table whose cells are text; a first cell "all" marks the sums."""
    heads = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    body = "".join(
        ('<tr class="sum">' if row[0] == "all" else "<tr>")
        + "".join(f"<td>{escape(visible(cell))}</td>" for cell in row)
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )
