"""`lrm corpus report`: what became of a corpus in its languages, as one page.

In: an `Account`. Out: a page with what was kept and what was not and why, by whom it was made and
what that cost, how figures of quality are spread, and examples to read. Everything that comes from
the data is escaped; characters that would turn text around are shown by their number.
"""

from __future__ import annotations

import base64
import io
import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from llava.errors import ConfigError, DataError
from llava.images import open_image
from lrm_ext.analysis.corpus_account import (
    Account,
    LanguageAccount,
    RowExample,
    statuses_in_order,
)
from lrm_ext.analysis.corpus_charts import (
    STYLE,
    Part,
    Spread,
    parts_legend,
    spread_chart,
    stacked_bar,
)
from lrm_ext.analysis.page import render_page, section
from lrm_ext.corpus.store import STATUSES
from lrm_ext.translation.engines.base import Usage
from lrm_ext.translation.quality.base import get_thresholds

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
        _table(
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
        _table(["reason", *(found.name for found in languages)], rows),
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
    content = [_table(["language", "made by", "kept", "suspect", "rejected"], made, "wide")]
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
        content += ["<h3>Cost</h3>", _cost_note(account.cache), _table(head, rows, "wide")]
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
        _table([name, "rows"], [[key, f"{count:,}"] for key, count in counts.most_common()])
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
            + "".join(_example(example, found.lang, picture) for example in found.kept)
            + ("<h3>Not kept</h3>" if found.faulty else "")
            + "".join(_example(example, found.lang, picture) for example in found.faulty)
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


def _example(example: RowExample, lang: str, picture: Callable[[RowExample], str]) -> str:
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


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
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
