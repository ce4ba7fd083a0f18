"""Makes the paper's four tables from answers, with the figures that the paper publishes beneath.

In: settings (`settings.py`), or for Table 2 the figures of two translations. Out: a `PaperTable`,
and its text for the terminal, as Markdown, LaTeX, CSV or HTML. Published rows are in blocks of
their own: they were not measured here, and nothing here competes with them for the best value.
Values that are missing are a dash with a number, and the reason is beneath under that number. CSV
has a line a value, unrounded, with the reason in a column of its own.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final

import markupsafe
import rich.markup
from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from llava.errors import ConfigError, DataError
from llava.files import load_toml
from lrm_ext.evaluate.kinds import KINDS, find_kind
from lrm_ext.evaluate.results import ENGLISH
from lrm_ext.languages import get_language, in_language_order, language_name, list_languages
from lrm_ext.languages.grouping import MAX_ROWS, listed
from lrm_ext.report.render import render
from lrm_ext.report.settings import (
    Cell,
    Score,
    ScoredBenchmark,
    Setting,
    mean_cell,
    score_settings,
)

PUBLISHED_DIR: Final = "published"
AVERAGE: Final = "Avg"
PUBLISHED: Final = "published"
PLUS_MINUS: Final = "\N{PLUS-MINUS SIGN}"
COUNTS_HEAD: Final = "answered"
CSV_HEADS: Final = (
    "table", "block", "column", "value", "spread", "runs", "answered", "questions", "published",
    "best", "reason",
)  # fmt: skip
_TITLES: Final = {
    1: "Table 1: models on multilingual benchmarks",
    2: "Table 2: agreement of two translations of each benchmark",
    3: "Table 3: what each task instruction contributes",
    4: "Table 4: language models with and without the task instructions",
}
_LATEX: Final = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    PLUS_MINUS: r"$\pm$", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip


@dataclass(frozen=True)
class TableRow:
    """One line of a table.

    Attributes:
        labels: One a label column.
        cells: One a column; None where the table has nothing to say.
        counts: How many of how many, or that it was published.
    """

    labels: tuple[str, ...]
    cells: tuple[Cell | None, ...]
    counts: str


@dataclass(frozen=True)
class Block:
    """Rows that are about the same benchmark.

    Attributes:
        title: Which, and what its score is.
        rows: The lines.
        has_best: Whether a larger value is better than a smaller one of the same column.
    """

    title: str
    rows: tuple[TableRow, ...]
    has_best: bool = True

    def best(self, column: int, digits: int) -> float | None:
        """Returns the largest value of a column as printed; None if there is nothing to compare."""
        cells = [row.cells[column] for row in self.rows]
        values = [cell.value for cell in cells if cell is not None and cell.value is not None]
        return max(round(v, digits) for v in values) if self.has_best and len(values) > 1 else None

    def is_best(self, row: TableRow, column: int, digits: int) -> bool:
        """Tells whether a value is the largest of its column, as printed; equal ones all are."""
        cell = row.cells[column]
        if cell is None or cell.value is None:
            return False
        return round(cell.value, digits) == self.best(column, digits)


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper.

    Attributes:
        number: As in the paper.
        labels: Heads of the label columns.
        columns: Heads of the other columns.
        names: The same in words.
        blocks: Its parts.
        notes: What a reader must know.
        digits: After the point.
    """

    number: int
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    names: tuple[str, ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]
    digits: int = 1

    @property
    def title(self) -> str:
        """Its title."""
        return _TITLES[self.number]


def published() -> dict[str, Any]:
    """Returns the figures that the paper publishes, by table."""
    with as_file(files("lrm_ext.report").joinpath(PUBLISHED_DIR, "paper.toml")) as path:
        return load_toml(path)


def models_table(
    settings: Sequence[Setting],
    benchmarks: Sequence[str] = (),
    languages: Sequence[str] = (),
    with_published: bool = True,
) -> PaperTable:
    """Makes Table 1: a block a benchmark, a row a setting, a column a language.

    Without settings it holds the published figures alone.

    Raises:
        ConfigError: A benchmark is not one of the paper's, and there are no settings.
        DataError: See `score_settings`.
    """
    data = published()
    scored = score_settings(settings, benchmarks, languages) if settings else []
    kinds = [one.kind.name for one in scored]
    if not settings:
        named = [find_kind(name) for name in benchmarks] or [KINDS[name] for name in data["table1"]]
        kinds = [kind.name for kind in named if kind is not None and kind.name in data["table1"]]
        if len(kinds) < len(benchmarks) or not with_published:
            raise ConfigError("nothing to show; name runs, or benchmarks that the paper has")
    langs = tuple(languages) or in_language_order(
        {lang for one in scored for lang in one.languages} or data["languages"]
    )
    blocks: list[Block] = []
    for place, kind in enumerate(kinds):
        if scored:
            one = scored[place]
            blocks.append(_measured(one, f"{one.name}: {one.kind.headline}", langs, 1))
        last_of_kind = kind not in kinds[place + 1 :]
        if with_published and last_of_kind and kind in data["table1"]:
            blocks.append(_published_models(kind, langs, data))
    return PaperTable(
        1, ("Model",), (*map(_label, langs), AVERAGE),
        (*map(language_name, langs), "mean without English"), tuple(blocks),
        _notes(settings, blocks),
    )  # fmt: skip


def _measured(one: ScoredBenchmark, title: str, langs: Sequence[str], number: int) -> Block:
    """Makes a row a setting: some languages, and the mean of all but English."""
    nothing = Cell((Score(None, reason="no run was asked"),))
    rows = []
    for label, by_lang in one.cells.items():
        cells = (*(by_lang.get(lang, nothing) for lang in langs), one.mean(label))
        scores = [score for cell in by_lang.values() for score in cell.scores]
        answered, asked = (
            sum(getattr(score, name) for score in scores)
            for name in ("num_answered", "num_questions")
        )
        rows.append(TableRow(_labels(number, label), cells, f"{answered:,} of {asked:,}"))
    return Block(title, tuple(rows))


def _published_models(kind: str, langs: Sequence[str], data: Mapping[str, Any]) -> Block:
    rows = []
    for name, values in data["table1"][kind].items():
        by_lang = dict(zip(data["languages"], _cells(values), strict=True))
        others = [cell for lang, cell in by_lang.items() if lang != ENGLISH]
        mean = mean_cell(others) if set(langs) == set(by_lang) else None
        rows.append(TableRow((name,), (*map(by_lang.get, langs), mean), PUBLISHED))
    title = f"{_published_title(KINDS[kind].title)}; {AVERAGE} computed from it"
    return Block(title, tuple(rows))


def _cells(values: Iterable[float]) -> tuple[Cell, ...]:
    return tuple(Cell((Score(value),)) for value in values)


def _published_title(title: str) -> str:
    return f"Multilingual {title}, as published in the paper (not measured here)"


def agreement_table(paths: Sequence[Path], with_published: bool = True) -> PaperTable:
    """Makes Table 2: BLEU and chrF of two translations, a row a benchmark, a column a language.

    Args:
        paths: Files of figures, as `lrm benchmark agreement --json` prints them: `benchmark`,
            `hypothesis`, `reference`, `languages` with `bleu` and `chrf` of each, `mean`.
        with_published: Whether the paper's averages are added.

    Raises:
        DataError: A file is not such a file.
    """
    reports = [_read_agreement(path) for path in paths]
    langs = in_language_order({lang for report in reports for lang in report["languages"]})
    blocks = [
        Block(name, tuple(_agreement_row(one, key, langs) for one in reports), has_best=False)
        for key, name in (("bleu", "BLEU"), ("chrf", "chrF"))
        if reports
    ]
    if with_published:
        rows = tuple(
            TableRow((KINDS[kind].title,), (*[None] * len(langs), *_cells([value])), PUBLISHED)
            for kind, value in published()["table2"].items()
        )
        title = "BLEU of Google Translate and GPT-4o, as published (not measured here)"
        blocks.insert(1, Block(title, rows, has_best=False))
    pairs = [f"{r['benchmark']}: {r['hypothesis']} against {r['reference']}." for r in reports]
    notes = (*pairs, "Agreement of two translations, not their correctness.")
    return PaperTable(
        2, ("Benchmark",), (*map(_label, langs), AVERAGE),
        (*map(language_name, langs), "mean of the languages"), tuple(blocks),
        (*notes, *_notes((), blocks)[1:]), digits=2,
    )  # fmt: skip


def _agreement_row(report: Mapping[str, Any], key: str, langs: Sequence[str]) -> TableRow:
    found = report["languages"]
    nothing = Score(None, reason="not translated twice")
    scores = [Score(float(found[lang][key])) if lang in found else nothing for lang in langs]
    cells = [Cell((score,)) for score in scores]
    num_texts, num_left_out = (
        sum(one.get(name, 0) for one in found.values()) for name in ("num_texts", "num_left_out")
    )
    counts = f"{num_texts:,} texts"
    counts += f", {num_left_out:,} questions left out" if num_left_out else ""
    return TableRow((str(report["benchmark"]),), (*cells, mean_cell(cells)), counts)


def _read_agreement(path: Path) -> dict[str, Any]:
    wanted = "expected the JSON of `lrm benchmark agreement A B --json`"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        for figures in report["languages"].values():
            float(figures["bleu"]), float(figures["chrf"])
        return {"hypothesis": "first", "reference": "second", "benchmark": path.stem, **report}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: {wanted}, found {error!r}") from error


def summary_table(
    number: int,
    settings: Sequence[Setting],
    benchmarks: Sequence[str] = (),
    languages: Sequence[str] = (),
    with_published: bool = True,
) -> PaperTable:
    """Makes Tables 3 and 4: English and the mean of the others, a block a benchmark.

    Args:
        number: 3 (labels are methods) or 4 (labels are `language model/method`).
        settings: See `score_settings`.
        benchmarks: Names; empty for all.
        languages: Codes; empty for all.
        with_published: Whether the paper's figures are added.

    Raises:
        ConfigError: A label of Table 4 does not name a language model and a method.
        DataError: See `score_settings`.
    """
    blocks: list[Block] = []
    for one in score_settings(settings, benchmarks, languages) if settings else ():
        names = ", ".join(map(language_name, one.others)) or "none"
        title = f"{one.name}: {one.kind.headline}; {AVERAGE} over {len(one.others)}: {names}"
        blocks.append(_measured(one, title, (ENGLISH,), number))
    if with_published:
        rows = tuple(
            TableRow(_labels(number, label), _cells(values), PUBLISHED)
            for label, values in published()[f"table{number}"].items()
        )
        blocks.append(Block(_published_title("MMBench"), rows))
    heads = ("Method",) if number == 3 else ("Language model", "Method")
    return PaperTable(
        number, heads, ("En", AVERAGE), ("English", "mean without English"), tuple(blocks),
        _notes(settings, blocks),
    )  # fmt: skip


def _labels(number: int, label: str) -> tuple[str, ...]:
    if number != 4:
        return (label,)
    model, slash, method = label.partition("/")
    if not slash or not model.strip() or not method.strip():
        raise ConfigError(f"{label!r}: Table 4 needs labels as in 'Vicuna-7B/with=RUN'")
    return model.strip(), method.strip()


def _notes(settings: Sequence[Setting], blocks: Sequence[Block]) -> tuple[str, ...]:
    notes = [f"{AVERAGE}: mean over the languages without English."]
    if any(block.has_best and len(block.rows) > 1 for block in blocks):
        notes[0] += " The best values of each block are bold."
    several = [f"{one.label} ({len(one.runs)})" for one in settings if len(one.runs) > 1]
    if several:
        notes.append(
            "Mean and standard deviation over runs with different seeds: "
            f"{', '.join(several)}; their questions are counted once a run."
        )
    if any(row.counts == PUBLISHED for block in blocks for row in block.rows):
        notes.append(f"Published rows: {published()['source']}; not measured with this project.")
    return tuple(notes)


def _label(lang: str) -> str:
    return get_language(lang).paper_label if lang in list_languages() else lang


# title, heads and rows of each block, and notes: the texts of a table in some format
_Texts = tuple[list[tuple[str, list[str], list[list[str]]]], list[str]]


def _texts(table: PaperTable, escape: Callable[[str], str], bold: str) -> _Texts:
    """Returns the texts of a table in a format; missing values get the number of their reason.

    If it has more than `MAX_ROWS` columns, they are the rows: no page is that wide.

    Args:
        table: The table.
        escape: Makes text of the format.
        bold: A pattern for the best values, with `{}` for the value.
    """
    reasons: dict[str, list[str]] = {}

    def text_of(block: Block, row: TableRow, column: int) -> str:
        cell = row.cells[column]
        if cell is None:
            return ""
        if cell.value is None:
            place = f"{' / '.join(row.labels)} in {table.names[column]}"
            reasons.setdefault(cell.reason, []).append(place)
            return escape(f"- [{[*reasons].index(cell.reason) + 1}]")
        spread = "" if cell.spread is None else f" {PLUS_MINUS} {cell.spread:.{table.digits}f}"
        text = escape(f"{cell.value:.{table.digits}f}{spread}")
        return bold.format(text) if block.is_best(row, column, table.digits) else text

    heads = [*map(escape, (*table.labels, *table.columns, COUNTS_HEAD))]
    num_labels = len(table.labels)
    blocks = []
    for block in table.blocks:
        rows = []
        for row in block.rows:
            cells = [text_of(block, row, column) for column in range(len(table.columns))]
            rows.append([*map(escape, row.labels), *cells, escape(row.counts)])
        own_heads = heads
        if _is_tall(table):
            labels = [row.labels for row in block.rows]
            own_heads = [*map(escape, map(" / ".join, (table.labels, *labels)))]
            names = map(escape, (*table.names, COUNTS_HEAD))
            columns = zip(*(row[num_labels:] for row in rows), strict=True)
            rows = [[name, *column] for name, column in zip(names, columns, strict=True)]
        blocks.append((escape(block.title), own_heads, rows))
    notes = [
        f"[{number}] missing: {reason} ({listed(dict.fromkeys(places), '; ')})"
        for number, (reason, places) in enumerate(reasons.items(), 1)
    ]
    return blocks, [*map(escape, (*table.notes, *notes))]


def _is_tall(table: PaperTable) -> bool:
    return len(table.columns) > MAX_ROWS


def _num_labels(table: PaperTable) -> int:
    """Returns how many columns are words, as its texts have them."""
    return 1 if _is_tall(table) else len(table.labels)


def print_table(table: PaperTable, console: Console) -> None:
    """Prints a table; one that is too wide with its columns as rows."""
    blocks, notes = _texts(table, rich.markup.escape, "[bold]{}[/]")
    console.print(Text(table.title, style="bold"))
    for title, heads, rows in blocks:
        cells = [[Text.from_markup(text) for text in row] for row in (heads, *rows)]
        columns = zip(*cells, strict=True)
        fits = console.width >= sum(2 + max(cell.cell_len for cell in col) for col in columns)
        num_labels = _num_labels(table)
        if not fits and not _is_tall(table):
            # a column a row of the table, under its labels
            lines = [[Text("\n").join(row[:num_labels]), *row[num_labels:]] for row in cells[1:]]
            names = map(Text, (" / ".join(table.labels), *table.names, COUNTS_HEAD))
            cells = [list(line) for line in zip(names, *lines, strict=True)]
            num_labels = 1
        shown = Table(
            title=title, box=box.SIMPLE_HEAD, title_justify="left", show_edge=False, padding=(0, 1)
        )
        for place, head in enumerate(cells[0]):
            if place < num_labels:
                shown.add_column(head, no_wrap=True)
            else:
                look: dict[str, Any] = {"no_wrap": True} if fits else {"overflow": "fold"}
                shown.add_column(head, justify="right", **look)
        for line in cells[1:]:
            shown.add_row(*line)
        console.print()
        console.print(shown)
    console.print()
    for note in notes:
        console.print(note, highlight=False)


def to_terminal(table: PaperTable, width: int = 160) -> str:
    """Returns a table as plain text, as wide as given."""
    file = io.StringIO()
    print_table(table, Console(file=file, width=width, color_system=None))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def to_markdown(table: PaperTable) -> str:
    """Returns a table as Markdown: a table a block."""
    blocks, notes = _texts(table, _markdown, "**{}**")
    num_labels = _num_labels(table)
    lines = [f"**{_markdown(table.title)}**"]
    for title, heads, rows in blocks:
        rule = ["---"] * num_labels + ["---:"] * (len(heads) - num_labels)
        lines += ["", title, "", *(f"| {' | '.join(row)} |" for row in (heads, rule, *rows))]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"


def _markdown(text: str) -> str:
    return " ".join(re.sub(r"[\\|*_\[\]<>`]", r"\\\g<0>", text).split())


def to_latex(table: PaperTable) -> str:
    """Returns a table as LaTeX; needs the packages booktabs and, for wide tables, graphicx."""
    blocks, notes = _texts(table, latex_escape, r"\textbf{{{}}}")
    num_labels, width = _num_labels(table), max(len(heads) for _, heads, _ in blocks)
    lines = [
        r"\begin{table*}",
        r"\centering",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{{'l' * num_labels}{'r' * (width - num_labels)}}}",
        r"\toprule",
    ]
    lines += [] if _is_tall(table) else [" & ".join(blocks[0][1]) + r" \\"]
    for title, heads, rows in blocks:
        head = rf"\multicolumn{{{width}}}{{l}}{{{title}}} \\"
        shown = [heads, *rows] if _is_tall(table) else rows
        lines += [] if lines[-1] == r"\toprule" else [r"\midrule"]
        lines += [head, r"\midrule", *(" & ".join(row) + r" \\" for row in shown)]
    lines += [
        r"\bottomrule",
        r"\end{tabular}}",
        rf"\caption{{{latex_escape(table.title)}. {' '.join(notes)}}}",
        rf"\label{{tab:lrm-{table.number}}}",
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def latex_escape(text: str) -> str:
    """Escapes every character that LaTeX reads as a command."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def to_csv(table: PaperTable) -> str:
    """Returns a table as CSV: a line a value, not rounded."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow((*CSV_HEADS[:2], *table.labels, *CSV_HEADS[2:]))
    for block in table.blocks:
        for row in block.rows:
            for column, cell in enumerate(row.cells):
                if cell is None:
                    continue
                values = ["" if v is None else repr(v) for v in (cell.value, cell.spread)]
                counts: tuple[object, ...] = ("", "", "", "yes")
                if row.counts != PUBLISHED:
                    answered = sum(score.num_answered for score in cell.scores)
                    questions = sum(score.num_questions for score in cell.scores)
                    counts = (len(cell.scores), answered, questions, "no")
                best = "yes" if block.is_best(row, column, table.digits) else "no"
                head = (table.number, block.title, *row.labels, table.columns[column])
                writer.writerow((*head, *values, *counts, best, cell.reason))
    return file.getvalue()


def to_html(table: PaperTable) -> str:
    """Returns a table as a page that needs nothing but itself."""
    blocks, notes = _texts(table, markupsafe.escape, Markup("<b>{}</b>"))
    return render("table.html", table=table, title=table.title, blocks=blocks, notes=notes,
                  is_tall=_is_tall(table), num_labels=_num_labels(table))  # fmt: skip


FORMATS: Final[Mapping[str, Callable[[PaperTable], str]]] = {
    "terminal": to_terminal,
    "markdown": to_markdown,
    "latex": to_latex,
    "csv": to_csv,
    "html": to_html,
}
