"""Makes tables in the protocols of other papers: their published rows, and runs beside them.

In: published figures (`published/*.toml`) and settings (`settings.py`). Out: a `PaperTable`. A run
fills a cell if it was asked the set of its column in all languages that the source averages, and if
its answers are read by the owner's rules (`official`). What only the local rules have read is in a
block that says so: it is not comparable.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Final, Literal

import msgspec

from llava.errors import ConfigError
from llava.eval.records import read_json
from llava.files import load_toml
from lrm_ext.evaluate.kind import LOCAL, OFFICIAL
from lrm_ext.evaluate.report import REPORT_FILE
from lrm_ext.evaluate.results import ENGLISH, answer_files, predictions_dir
from lrm_ext.report.settings import (
    NOT_ASKED,
    Cell,
    Score,
    ScoredBenchmark,
    Setting,
    mean_cell,
    score_settings,
    seed_notes,
)
from lrm_ext.report.tables import PUBLISHED, Block, PaperTable, TableRow

PUBLISHED_DIR: Final = Path(__file__).parent / "published"
PROTOCOLS: Final = ("pangea", "centurio", "kaleidoscope", "mmmb")
TABLES: Final = (*map(str, range(1, 5)), *PROTOCOLS)


class PublishedColumn(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A column of published figures, and what fills it for a run.

    Attributes:
        head: Its head.
        name: The same in words; its head if empty.
        set: The benchmark that a run is asked.
        languages: Those that are averaged, by part of the table; none for all but English. Other
            parts have no figure.
        mean_of: Heads of the columns that this one is the mean of, in every part.
        figure: Of a run's result: its headline, or fidelity.
        metric: What the headline must be.
        not_filled: Why no run fills it; "" if a run may.
    """

    head: str
    name: str = ""
    set: str = ""
    languages: dict[str, list[str]] = {}
    mean_of: list[str] = []
    figure: Literal["score", "fidelity"] = "score"
    metric: str = "accuracy"
    not_filled: str = ""


class PublishedRows(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows of one source.

    Attributes:
        source: Where the figures are printed.
        protocol: How they were measured.
        figures: By part and model one for each column that has the part; NaN where there is none.
    """

    source: str
    protocol: str
    figures: dict[str, dict[str, list[float]]]


class PublishedTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Published figures of one protocol.

    Attributes:
        title: Of the table.
        notes: What a reader must know.
        parts: Titles of the parts.
        columns: Its columns.
        published: Its rows, by source.
    """

    title: str
    notes: list[str]
    parts: dict[str, str]
    columns: list[PublishedColumn]
    published: list[PublishedRows]


def published_table(name: str) -> PublishedTable:
    """Returns the published figures of one of `PROTOCOLS`."""
    return load_toml(PUBLISHED_DIR / f"{name}.toml", PublishedTable)


def check_table(name: str, runs: Sequence[str]) -> None:
    """Checks the name of a table.

    Args:
        name: As on the command line.
        runs: What is after it, which may be the name of a second protocol.

    Raises:
        ConfigError: There is no such table, or several protocols are asked for.
    """
    protocols = [one for one in (*name.split(","), *runs) if one in PROTOCOLS]
    if {"pangea", "centurio"} <= {*protocols}:
        raise ConfigError(
            "Pangea and Centurio ask the same sets by other prompts and read answers by other "
            "rules (Pangea-7B has 79.0 on MaRVL in one and 70.5 in the other), so their figures "
            "are never in one table: `lrm table pangea RUN`, then `lrm table centurio RUN`"
        )
    if len(protocols) > 1:
        raise ConfigError(f"one table at a time; found {', '.join(protocols)}")
    if name not in TABLES:
        raise ConfigError(f"there is no table {name!r}; choose from {', '.join(TABLES)}")


def protocol_table(
    name: str, settings: Sequence[Setting], with_published: bool = True
) -> PaperTable:
    """Makes the table of a protocol: published rows, and beside them runs scored by its rules.

    What only the local rules have read is in blocks of its own.

    Args:
        name: One of `PROTOCOLS`.
        settings: See `score_settings`.
        with_published: Whether the published rows are added.

    Raises:
        DataError: See `score_settings`.
    """
    table = published_table(name)
    blocks: list[Block] = []
    read: list[ScoredBenchmark] = []
    notes = [*table.notes]
    for part, title in table.parts.items():
        scored = [_score_column(column, part, settings) for column in table.columns]
        beside, apart = (
            [_own_row(table, part, setting, scored, mode) for setting in settings]
            for mode in (OFFICIAL, LOCAL)
        )
        read += [
            found[OFFICIAL]
            for column, found in zip(table.columns, scored, strict=True)
            if OFFICIAL in found and column.metric == "accuracy"
        ]
        published_rows = _published_rows(table, part) if with_published else []
        said = f"{title}; read as `{OFFICIAL}`" if settings else title
        blocks.append(Block(said, (*beside, *published_rows), has_best=False))
        if apart := [row for row in apart if any(c and c.value is not None for c in row.cells)]:
            said = f"{title}; read as `{LOCAL}`, not by the protocol's rules: not comparable"
            blocks.append(Block(said, tuple(apart), has_best=False))
            notes += _metric_notes(table, apart)
        notes += _filled_notes(title, beside)
    if settings:
        notes.append("The prompts and answer lengths of runs are not compared with the protocol's.")
    notes += [*seed_notes(settings), *_tier_notes(settings, read)]
    for rows in table.published if with_published else ():
        models = dict.fromkeys(
            model for part in table.parts for model in rows.figures.get(part, ())
        )
        notes.append(
            f"Published ({', '.join(models)}): {rows.source}. Protocol: {rows.protocol}. Not "
            "measured with this project."
        )
    heads = tuple(column.head for column in table.columns)
    return PaperTable(
        name, table.title, ("Model",), heads,
        tuple(column.name or column.head for column in table.columns), tuple(blocks), tuple(notes),
    )  # fmt: skip


def _tier_notes(settings: Sequence[Setting], read: Sequence[ScoredBenchmark]) -> list[str]:
    """Gives the mean of each setting in each tier of resources, over languages, then over sets."""
    tiers, notes = load_toml(PUBLISHED_DIR / "tiers.toml"), list[str]()
    for setting in settings:
        values: dict[str, dict[str, float]] = {}
        for one in read:
            for lang, cell in one.cells[setting.label].items():
                if cell.value is not None:
                    values.setdefault(lang, {})[one.name] = cell.value
        means = {lang: fmean(by_set.values()) for lang, by_set in values.items()}
        known = {tier: [lang for lang in langs if lang in means] for tier, langs in tiers.items()}
        said = [
            f"{tier} {fmean(means[lang] for lang in langs):.1f} ({' '.join(langs)})"
            for tier, langs in known.items()
            if langs
        ]
        if said:
            notes.append(
                f"{setting.label} by tier of resources, of what is read as `{OFFICIAL}` with "
                f"accuracy, means of languages over their sets: {', '.join(said)}. How Centurio "
                "weighs sets and languages is not verified: not comparable with its tiers."
            )
    return notes


def _filled_notes(title: str, rows: Sequence[TableRow]) -> list[str]:
    """Says how many cells of a part each run fills."""
    cells = {row.labels[0]: [cell for cell in row.cells if cell is not None] for row in rows}
    return [
        f"{label} fills {sum(cell.value is not None for cell in own)} of {len(own)} cells: {title}."
        for label, own in cells.items()
    ]


def _metric_notes(table: PublishedTable, rows: Sequence[TableRow]) -> list[str]:
    """Names the columns in which `local` gives another metric than the source."""
    cells = [pair for row in rows for pair in zip(table.columns, row.cells, strict=True)]
    found = {
        column.head: cell.scores[0].metric
        for column, cell in cells
        if cell is not None and cell.scores[0].metric not in ("", column.metric)
    }
    return [f"Where `{LOCAL}` reads, {head} is {metric}." for head, metric in found.items()]


def _score_column(
    column: PublishedColumn, part: str, settings: Sequence[Setting]
) -> dict[str, ScoredBenchmark]:
    """Scores all runs on the set of a column, by `local` and where it can be by its owner's rules.

    Returns:
        By mode; empty if no run was asked.
    """
    runs = [run for setting in settings for run in setting.runs]
    asked = {lang for run in runs for name, lang in answer_files(run) if name == column.set}
    if part not in column.languages or not asked:
        return {}
    wanted = [column.set], column.languages[part] or sorted(asked - {ENGLISH})
    (found,) = score_settings(settings, *wanted, LOCAL)
    scored = {LOCAL: found}
    if OFFICIAL in (*found.kind.modes, *found.kind.aliases):
        (scored[OFFICIAL],) = score_settings(settings, *wanted, OFFICIAL)
    return scored


def _own_row(
    table: PublishedTable,
    part: str,
    setting: Setting,
    scored: Sequence[Mapping[str, ScoredBenchmark]],
    mode: str,
) -> TableRow:
    """Makes the row of a setting, with the results of a mode."""
    cells = [
        _own_cell(column, part, setting, found, mode)
        for column, found in zip(table.columns, scored, strict=True)
    ]
    # a set may be in several columns
    asked = {
        (column.set, lang): found[mode].cells[setting.label][lang]
        for column, found, cell in zip(table.columns, scored, cells, strict=True)
        if cell is not None and cell.value is not None
        for lang in found[mode].languages
    }
    by_head = {column.head: cell for column, cell in zip(table.columns, cells, strict=True)}
    for place, column in enumerate(table.columns):
        if column.mean_of and mode == OFFICIAL:
            parts = [cell for head in column.mean_of if (cell := by_head[head]) is not None]
            missing = sum(cell.value is None for cell in parts)
            reason = f"{missing} of {len(parts)} columns missing"
            cells[place] = _missing(reason) if missing else mean_cell(parts)
    scores = [score for cell in asked.values() for score in cell.scores]
    counts = f"{sum(s.num_answered for s in scores):,} of {sum(s.num_questions for s in scores):,}"
    return TableRow((setting.label,), tuple(cells), counts if scores else "")


def _own_cell(
    column: PublishedColumn,
    part: str,
    setting: Setting,
    scored: Mapping[str, ScoredBenchmark],
    mode: str,
) -> Cell | None:
    """Returns the result of a setting: by the protocol's rules, or what only `local` has read."""
    if part not in column.languages:
        return None
    found = {key: one.cells[setting.label] for key, one in scored.items()}
    if all(cell.reason == NOT_ASKED for cell in found.get(LOCAL, {}).values()):
        reason = "not run" if column.set else column.not_filled
        return _missing(reason) if mode == OFFICIAL else None
    reason = column.not_filled or _limit_of(setting)
    if OFFICIAL not in found:
        reason = f"read by `{LOCAL}` only: the set has no reading `{OFFICIAL}` here"
    official = _missing(reason) if reason else _average(column, found[OFFICIAL])
    metric = official.scores[0].metric
    if official.value is not None and metric != column.metric:
        official = _missing(f"our reading gives {metric}, the source {column.metric}")
    if mode == OFFICIAL:
        return official
    return _average(column, found[LOCAL]) if official.value is None else None


def _average(column: PublishedColumn, by_lang: Mapping[str, Cell]) -> Cell:
    """Returns the mean over languages, all of which must have a value; its reason names them."""
    if column.figure == "fidelity":
        by_lang = {lang: Cell(tuple(map(_fidelity, cell.scores))) for lang, cell in by_lang.items()}
    missing: dict[str, list[str]] = {}
    for lang, cell in by_lang.items():
        if cell.value is None:
            missing.setdefault(cell.reason, []).append(lang)
    if missing:
        return _missing("; ".join(f"{why}: {', '.join(where)}" for why, where in missing.items()))
    return mean_cell([*by_lang.values()])


def _fidelity(score: Score) -> Score:
    share = score.fidelity
    return replace(score, value=None if share is None else 100 * share, metric="fidelity")


def _limit_of(setting: Setting) -> str:
    """Says that runs were asked only some of the questions; "" unless their report does."""
    for run in setting.runs:
        path = predictions_dir(run).parent / REPORT_FILE
        if path.is_file() and (limit := read_json(path, dict).get("limit")):
            return f"only some of the questions: --limit {limit}"
    return ""


def _missing(reason: str) -> Cell:
    return Cell((Score(None, reason=reason),))


def _published_rows(table: PublishedTable, part: str) -> list[TableRow]:
    """Makes a row a model; means that the source does not give are computed from its figures."""
    columns = [column for column in table.columns if part in column.languages or column.mean_of]
    made: list[TableRow] = []
    for rows in table.published:
        for model, given in rows.figures.get(part, {}).items():
            values = dict(zip((column.head for column in columns), given, strict=True))
            for column in columns:
                if math.isnan(values[column.head]) and column.mean_of:
                    parts = [values[head] for head in column.mean_of]
                    values[column.head] = sum(parts) / len(parts)
            shown = [values.get(column.head, math.nan) for column in table.columns]
            cells = [None if math.isnan(value) else Cell((Score(value),)) for value in shown]
            made.append(TableRow((model,), tuple(cells), PUBLISHED))
    return made
