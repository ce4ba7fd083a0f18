"""Writes a `PaperTable` down: for the terminal, and as Markdown, LaTeX, CSV and HTML.

Values that are missing are a dash with a number, and the reason is beneath under that number. CSV
has a line a value, unrounded, with the reason in a column of its own.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping
from typing import Final

from markupsafe import Markup, escape
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lrm_ext.report.page import environment
from lrm_ext.report.paper_tables import Block, PaperTable, TableRow
from lrm_ext.report.settings import Cell

PLUS_MINUS: Final = "\N{PLUS-MINUS SIGN}"
COUNTS_HEAD: Final = "answered"
CSV_HEADS: Final = (
    "table", "block", "column", "value", "spread", "runs", "answered", "questions", "published",
    "best", "reason",
)  # fmt: skip
_LATEX: Final = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    PLUS_MINUS: r"$\pm$", "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip


class _Numbered:
    """The reasons for missing values, in the order in which they are met."""

    def __init__(self, table: PaperTable) -> None:
        self._table = table
        self._numbers: dict[str, int] = {}
        self._where: dict[str, list[str]] = {}

    def text(self, block: Block, row: TableRow, column: int) -> tuple[str, bool]:
        """What a cell says, and whether it is the best of its column."""
        cell = row.cells[column]
        if cell is None:
            return "", False
        if cell.value is None:
            number = self._numbers.setdefault(cell.reason, len(self._numbers) + 1)
            place = f"{' / '.join(row.labels)} in {self._table.names[column]}"
            self._where.setdefault(cell.reason, []).append(place)
            return f"- [{number}]", False
        return cell_text(cell, self._table.digits), is_best(self._table, block, row, column)

    def notes(self) -> list[str]:
        """The table's notes, and the reasons."""
        reasons = [
            f"[{number}] missing: {reason} ({'; '.join(dict.fromkeys(self._where[reason]))})"
            for reason, number in self._numbers.items()
        ]
        return [*self._table.notes, *reasons]


def cell_text(cell: Cell, digits: int) -> str:
    """A value with its spread over seeds, where there are several."""
    if cell.value is None:
        return "-"
    spread = "" if cell.spread is None else f" {PLUS_MINUS} {cell.spread:.{digits}f}"
    return f"{cell.value:.{digits}f}{spread}"


def is_best(table: PaperTable, block: Block, row: TableRow, column: int) -> bool:
    """Whether a value is the largest of its column, as printed; equal ones all are."""
    cell, best = row.cells[column], block.best(column, table.digits)
    if cell is None or cell.value is None or best is None:
        return False
    return round(cell.value, table.digits) == best


def print_table(table: PaperTable, console: Console) -> None:
    """Print it; where it is too wide, with its columns as rows."""
    numbered = _Numbered(table)
    console.print(Text(table.title, style="bold"))
    for block in table.blocks:
        heads = (*table.labels, *table.columns, COUNTS_HEAD)
        lines = [_terminal_row(numbered, block, row, len(table.columns)) for row in block.rows]
        columns = zip(map(Text, heads), *lines, strict=True)
        width = sum(2 + max(text.cell_len for text in column) for column in columns)
        console.print()
        if width > console.width:
            console.print(_across(table, block, lines, console.width))
        else:
            shown = _empty_table(block, console.width, width)
            for place, head in enumerate(heads):
                is_label = place < len(table.labels)
                shown.add_column(head, justify="left" if is_label else "right", no_wrap=True)
            for line in lines:
                shown.add_row(*line)
            console.print(shown)
    console.print()
    for note in numbered.notes():
        console.print(Text(note))


def _terminal_row(numbered: _Numbered, block: Block, row: TableRow, num: int) -> list[Text]:
    texts = [numbered.text(block, row, i) for i in range(num)]
    cells = [Text(text, style="bold" if best else "") for text, best in texts]
    return [*map(Text, row.labels), *cells, Text(row.counts)]


def _empty_table(block: Block, width: int, needed: int) -> Table:
    padding = (0, 1) if needed <= width else (0, 0)
    return Table(
        title=Text(block.title), box=box.SIMPLE_HEAD, title_justify="left", show_edge=False,
        padding=padding,
    )  # fmt: skip


def _across(table: PaperTable, block: Block, lines: list[list[Text]], width: int) -> Table:
    """A column a row of the table, under its labels."""
    shown = _empty_table(block, width, 0)
    num = len(table.labels)
    shown.add_column(" / ".join(table.labels), no_wrap=True)
    for line in lines:
        head = "\n".join(text.plain for text in line[:num])
        shown.add_column(Text(head), justify="right", overflow="fold")
    heads = (*table.names, COUNTS_HEAD)
    for place, head in enumerate(heads, start=num):
        shown.add_row(head, *(line[place] for line in lines))
    return shown


def to_terminal(table: PaperTable, width: int = 160) -> str:
    """As plain text, as wide as given."""
    file = io.StringIO()
    print_table(table, Console(file=file, width=width, color_system=None))
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines()) + "\n"


def _escaped(
    table: PaperTable, escape: Callable[[str], str], bold: str
) -> tuple[list[str], list[tuple[str, list[list[str]]]], list[str]]:
    """Heads, the title and rows of each block, and notes, all escaped; the best values are bold."""
    numbered = _Numbered(table)
    blocks = []
    for block in table.blocks:
        rows = []
        for row in block.rows:
            texts = [numbered.text(block, row, i) for i in range(len(table.columns))]
            cells = [bold.format(escape(text)) if best else escape(text) for text, best in texts]
            rows.append([*map(escape, row.labels), *cells, escape(row.counts)])
        blocks.append((escape(block.title), rows))
    heads = [escape(head) for head in (*table.labels, *table.columns, COUNTS_HEAD)]
    return heads, blocks, [escape(note) for note in numbered.notes()]


def to_markdown(table: PaperTable) -> str:
    """As Markdown: a table a block."""
    heads, blocks, notes = _escaped(table, _markdown, "**{}**")
    rule = ["---"] * len(table.labels) + ["---:"] * (len(table.columns) + 1)
    lines = [f"**{_markdown(table.title)}**"]
    for title, rows in blocks:
        lines += ["", title, "", *(f"| {' | '.join(row)} |" for row in (heads, rule, *rows))]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]) + "\n"


def _markdown(text: str) -> str:
    for character in "\\|*_[]<>`":
        text = text.replace(character, "\\" + character)
    return " ".join(text.split())


def to_latex(table: PaperTable) -> str:
    """As LaTeX; needs the packages booktabs and, for wide tables, graphicx."""
    heads, blocks, notes = _escaped(table, latex_escape, r"\textbf{{{}}}")
    lines = [
        r"\begin{table*}",
        r"\centering",
        r"\resizebox{\textwidth}{!}{%",
        rf"\begin{{tabular}}{{{'l' * len(table.labels)}{'r' * (len(table.columns) + 1)}}}",
        r"\toprule",
        " & ".join(heads) + r" \\",
    ]
    for title, rows in blocks:
        lines += [r"\midrule", rf"\multicolumn{{{len(heads)}}}{{l}}{{{title}}} \\", r"\midrule"]
        lines += [" & ".join(row) + r" \\" for row in rows]
    lines += [
        r"\bottomrule",
        r"\end{tabular}}",
        rf"\caption{{{latex_escape(table.title)}. {' '.join(notes)}}}",
        rf"\label{{tab:lrm-{table.number}}}",
        r"\end{table*}",
    ]
    return "\n".join(lines) + "\n"


def latex_escape(text: str) -> str:
    """Text with every character that LaTeX reads as a command escaped."""
    return "".join(_LATEX.get(character, character) for character in " ".join(text.split()))


def to_csv(table: PaperTable) -> str:
    """As CSV: a line a value, not rounded."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow((*CSV_HEADS[:2], *table.labels, *CSV_HEADS[2:]))
    for block in table.blocks:
        for row in block.rows:
            for column, cell in enumerate(row.cells):
                if cell is not None:
                    best = is_best(table, block, row, column)
                    head = (table.number, block.title, *row.labels, table.columns[column])
                    writer.writerow((*head, *_csv_values(cell), "yes" if best else "no",
                                     cell.reason))  # fmt: skip
    return file.getvalue()


def _csv_values(cell: Cell) -> tuple[str | int, ...]:
    value, spread = ("" if v is None else repr(v) for v in (cell.value, cell.spread))
    if cell.published is not None:
        return (value, "", "", "", "", "yes")
    answered = sum(score.num_answered for score in cell.scores)
    questions = sum(score.num_questions for score in cell.scores)
    return (value, spread, len(cell.scores), answered, questions, "no")


def to_html(table: PaperTable) -> str:
    """As a page that needs nothing but itself."""
    heads, blocks, notes = _escaped(table, escape, Markup("<b>{}</b>"))
    return (
        environment()
        .get_template("table.html")
        .render(title=table.title, table=table, heads=heads, blocks=blocks, notes=notes)
    )


FORMATS: Final[Mapping[str, Callable[[PaperTable], str]]] = {
    "terminal": to_terminal,
    "markdown": to_markdown,
    "latex": to_latex,
    "csv": to_csv,
    "html": to_html,
}
