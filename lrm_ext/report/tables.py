"""Holds a table of scores, and writes it for the terminal, as Markdown, LaTeX, CSV or HTML.

Values that are missing are a dash with a number, and the reason is beneath under that number. CSV
has a line a value, unrounded, with the reason in a column of its own.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import markupsafe
import rich.markup
from markupsafe import Markup
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lrm_ext.languages.grouping import MAX_ROWS, listed
from lrm_ext.report.render import render

if TYPE_CHECKING:
    from lrm_ext.report.settings import Cell

PUBLISHED: Final = "published"
PLUS_MINUS: Final = "\N{PLUS-MINUS SIGN}"
COUNTS_HEAD: Final = "answered"
_NARROW_HEAD: Final = 5
CSV_HEADS: Final = (
    "table", "block", "column", "value", "spread", "runs", "answered", "questions", "published",
    "best", "reason",
)  # fmt: skip
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
    """A table.

    Attributes:
        name: Its number in the paper, or the protocol of its figures.
        title: What it is about.
        labels: Heads of the label columns.
        columns: Heads of the other columns.
        names: The same in words.
        blocks: Its parts.
        notes: What a reader must know.
        digits: After the point.
    """

    name: str
    title: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    names: tuple[str, ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]
    digits: int = 1


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
            # in a narrow column of its own, so that notes have to say it
            counts = "" if _is_tall(table) and row.counts == PUBLISHED else row.counts
            rows.append([*map(escape, row.labels), *cells, escape(counts)])
        own_heads = heads
        if _is_tall(table):
            labels = [row.labels for row in block.rows]
            own_heads = [*map(escape, map(" / ".join, (table.labels, *labels)))]
            names = map(escape, (*table.names, COUNTS_HEAD))
            columns = zip(*(row[num_labels:] for row in rows), strict=True)
            rows = [[name, *column] for name, column in zip(names, columns, strict=True)]
            rows = [row for row in rows if any(row[1:])]
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
    """Prints a table; one that is too wide with its columns as rows, and in parts if it must be."""
    blocks, notes = _texts(table, rich.markup.escape, "[bold]{}[/]")
    console.print(Text(table.title, style="bold"))
    for title, heads, rows in blocks:
        cells = [[Text.from_markup(text) for text in row] for row in (heads, *rows)]
        columns = zip(*cells, strict=True)
        # a space on either side, and one between columns
        widths = [3 + max(cell.cell_len for cell in column) for column in columns]
        fits = console.width >= sum(widths) - 1
        num_labels = _num_labels(table)
        if not fits and not _is_tall(table):
            # a column a row of the table, under its labels
            lines = [[Text("\n").join(row[:num_labels]), *row[num_labels:]] for row in cells[1:]]
            names = map(Text, (" / ".join(table.labels), *table.names, COUNTS_HEAD))
            cells = [list(line) for line in zip(names, *lines, strict=True)]
            cells[-1] = [Text() if text.plain == PUBLISHED else text for text in cells[-1]]
            cells = [line for line in cells if any(text.plain for text in line[1:])]
            num_labels = 1
        console.print()
        console.print(Text.from_markup(title, style="italic"))
        for number, group in enumerate(_column_groups(cells, num_labels, console.width)):
            shown = Table(box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1))
            for place, width in group.items():
                justify: Any = "left" if place < num_labels else "right"
                shown.add_column(cells[0][place], justify=justify, width=width, overflow="fold")
            for line in cells[1:]:
                shown.add_row(*(line[place] for place in group))
            if number:
                console.print()
            console.print(shown)
    console.print()
    for note in notes:
        console.print(note, highlight=False)


def _column_groups(
    cells: Sequence[Sequence[Text]], num_labels: int, width: int
) -> list[dict[int, int]]:
    """Divides columns among as many tables as it takes; heads are folded, values are not.

    Args:
        cells: By row, heads first.
        num_labels: Columns that every table has.
        width: Of the terminal.

    Returns:
        The columns of each table, with their widths.
    """
    columns = [[*column] for column in zip(*cells, strict=True)]
    heads = [max(map(len, column[0].plain.split("\n"))) for column in columns]
    bodies = [max((cell.cell_len for cell in column[1:]), default=1) for column in columns]
    labels = {place: max(heads[place], bodies[place]) for place in range(num_labels)}
    groups: list[dict[int, int]] = []
    room = 0
    for place in range(num_labels, len(columns)):
        needed = max(bodies[place], min(heads[place], _NARROW_HEAD))
        if needed + 3 > room or not groups:
            groups.append(dict(labels))
            room = width + 1 - sum(3 + one for one in labels.values())
        groups[-1][place] = needed
        room -= needed + 3
    for group in groups:
        slack = width + 1 - sum(3 + one for one in group.values())
        while slack > 0 and (tight := [one for one in group if group[one] < heads[one]]):
            for place in tight[:slack]:
                group[place] += 1
            slack -= len(tight[:slack])
    return groups


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
        rf"\label{{tab:lrm-{table.name}}}",
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
                head = (table.name, block.title, *row.labels, table.columns[column])
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
