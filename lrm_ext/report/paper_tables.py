"""The paper's four tables, from answers, with the figures that the paper publishes beneath.

In: settings (`settings.py`), or for Table 2 the figures of two translations. Out: a `PaperTable`,
which `table_formats.py` writes down. Published rows are in blocks of their own: they were not
measured here, and nothing here competes with them for the best value.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Final

from llava.errors import ConfigError, DataError
from lrm_ext.evaluate.kinds import KINDS, find_kind
from lrm_ext.evaluate.results import ENGLISH
from lrm_ext.languages import get_language, list_languages
from lrm_ext.languages._toml import load_toml
from lrm_ext.report.settings import (
    Cell,
    Score,
    ScoredBenchmark,
    Setting,
    language_name,
    mean_cell,
    ordered_languages,
    score_settings,
)

PUBLISHED_FILE: Final = "paper.toml"
AVERAGE: Final = "Avg"
_TITLES: Final = {
    1: "Table 1: models on multilingual benchmarks",
    2: "Table 2: agreement of two translations of each benchmark",
    3: "Table 3: what each task instruction contributes",
    4: "Table 4: language models with and without the task instructions",
}
PUBLISHED: Final = "published"


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
        """The largest value of a column as it is printed; None if there is nothing to compare."""
        cells = [row.cells[column] for row in self.rows]
        values = [cell.value for cell in cells if cell is not None and cell.value is not None]
        return max(round(v, digits) for v in values) if self.has_best and len(values) > 1 else None


@dataclass(frozen=True)
class PaperTable:
    """A table of the paper.

    Attributes:
        number: As in the paper.
        title: What it shows.
        labels: Heads of the label columns.
        columns: Heads of the other columns.
        names: The same in words.
        blocks: Its parts.
        notes: What a reader must know.
        digits: After the point.
    """

    number: int
    title: str
    labels: tuple[str, ...]
    columns: tuple[str, ...]
    names: tuple[str, ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]
    digits: int = 1


def published() -> dict[str, Any]:
    """The figures that the paper publishes, by table."""
    with as_file(files("lrm_ext.report").joinpath(PUBLISHED_FILE)) as path:
        return load_toml(path)


def models_table(
    settings: Sequence[Setting],
    benchmarks: Sequence[str] = (),
    languages: Sequence[str] = (),
    with_published: bool = True,
) -> PaperTable:
    """Table 1: a block a benchmark, a row a setting, a column a language.

    Without settings it holds the published figures alone.

    Raises:
        ConfigError: A benchmark is not one of the paper's, and there are no settings.
        DataError: See `score_settings`.
    """
    data = published()
    scored = score_settings(settings, benchmarks, languages) if settings else []
    kinds = [one.kind for one in scored]
    if not settings:
        names = [find_kind(name) for name in benchmarks] or [KINDS[name] for name in data["table1"]]
        kinds = [kind.name for kind in names if kind is not None and kind.name in data["table1"]]
        if len(kinds) < len(benchmarks) or not with_published:
            raise ConfigError("nothing to show; name runs, or benchmarks that the paper has")
    langs = tuple(languages) or ordered_languages(
        {lang for one in scored for lang in one.languages} or set(data["languages"])
    )
    blocks: list[Block] = []
    for place, kind in enumerate(kinds):
        if scored:
            blocks.append(_measured(scored[place], settings, langs))
        last_of_kind = kind not in kinds[place + 1 :]
        if with_published and last_of_kind and kind in data["table1"]:
            blocks.append(_published_models(kind, langs, data))
    return PaperTable(
        1, _TITLES[1], ("Model",), (*map(_label, langs), AVERAGE),
        (*map(language_name, langs), "mean without English"), tuple(blocks),
        _notes(settings, blocks),
    )  # fmt: skip


def _measured(one: ScoredBenchmark, settings: Sequence[Setting], langs: Sequence[str]) -> Block:
    nothing = Cell((Score(None, reason="no run was asked"),))
    rows = []
    for setting in settings:
        cells = [one.cells[setting.label].get(lang, nothing) for lang in langs]
        mean = one.mean(setting.label)
        rows.append(TableRow((setting.label,), (*cells, mean), _counts(cells)))
    return Block(f"{one.name}: {one.unit}", tuple(rows))


def _published_models(kind: str, langs: Sequence[str], data: Mapping[str, Any]) -> Block:
    rows = []
    for name, values in data["table1"][kind].items():
        by_lang = dict(zip(data["languages"], values, strict=True))
        cells = [Cell(published=by_lang[lang]) if lang in by_lang else None for lang in langs]
        others = [Cell(published=v) for lang, v in by_lang.items() if lang != ENGLISH]
        mean = mean_cell(others) if set(langs) == set(by_lang) else None
        rows.append(TableRow((name,), (*cells, mean), PUBLISHED))
    title = f"{_published_title(KINDS[kind].title)}; {AVERAGE} computed from it"
    return Block(title, tuple(rows))


def _published_title(title: str) -> str:
    return f"Multilingual {title}, as published in the paper (not measured here)"


def agreement_table(paths: Sequence[Path], with_published: bool = True) -> PaperTable:
    """Table 2: BLEU and chrF of two translations, a row a benchmark, a column a language.

    Args:
        paths: Files of figures, as `lrm benchmark agreement --json` prints them: `benchmark`,
            `hypothesis`, `reference`, `languages` with `bleu` and `chrf` of each, `mean`.
        with_published: Whether the paper's averages are added.

    Raises:
        DataError: A file is not such a file.
    """
    reports = [_read_agreement(path) for path in paths]
    data = published()
    langs = ordered_languages({lang for report in reports for lang in report["languages"]})
    blocks = []
    for key, name in (("bleu", "BLEU"), ("chrf", "chrF")):
        rows = tuple(_agreement_row(report, key, langs) for report in reports)
        blocks += [Block(name, rows, has_best=False)] if rows else []
        if key == "bleu" and with_published:
            blanks = (None,) * len(langs)
            rows = tuple(
                TableRow((KINDS[kind].title,), (*blanks, Cell(published=value)), PUBLISHED)
                for kind, value in data["table2"].items()
            )
            title = "BLEU of Google Translate and GPT-4o, as published (not measured here)"
            blocks.append(Block(title, rows, has_best=False))
    pairs = [f"{r['benchmark']}: {r['hypothesis']} against {r['reference']}." for r in reports]
    notes = (*pairs, "Agreement of two translations, not their correctness.")
    return PaperTable(
        2, _TITLES[2], ("Benchmark",), (*map(_label, langs), AVERAGE),
        (*map(language_name, langs), "mean of the languages"), tuple(blocks),
        (*notes, *_notes((), blocks)[1:]), digits=2,
    )  # fmt: skip


def _agreement_row(report: Mapping[str, Any], key: str, langs: Sequence[str]) -> TableRow:
    found = report["languages"]
    cells = [
        Cell((Score(float(found[lang][key])),))
        if lang in found
        else Cell((Score(None, reason="not translated twice"),))
        for lang in langs
    ]
    num_texts = sum(one.get("num_texts", 0) for one in found.values())
    left_out = sum(one.get("num_left_out", 0) for one in found.values())
    counts = f"{num_texts:,} texts" + (f", {left_out:,} questions left out" if left_out else "")
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
    """Tables 3 and 4: English and the mean of the others, a block a benchmark.

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
    scored = score_settings(settings, benchmarks, languages) if settings else []
    blocks: list[Block] = []
    for one in scored:
        rows = []
        for setting in settings:
            cells = one.cells[setting.label]
            english = cells.get(ENGLISH, Cell((Score(None, reason="not asked"),)))
            row = (english, one.mean(setting.label))
            labels = _labels(number, setting.label)
            rows.append(TableRow(labels, row, _counts(list(cells.values()))))
        names = ", ".join(map(language_name, one.others)) or "none"
        title = f"{one.name}: {one.unit}; {AVERAGE} over {len(one.others)}: {names}"
        blocks.append(Block(title, tuple(rows)))
    if with_published:
        rows = [
            TableRow(_labels(number, label), tuple(Cell(published=v) for v in values), PUBLISHED)
            for label, values in published()[f"table{number}"].items()
        ]
        blocks.append(Block(_published_title("MMBench"), tuple(rows)))
    heads = ("Method",) if number == 3 else ("Language model", "Method")
    return PaperTable(
        number, _TITLES[number], heads, ("En", AVERAGE), ("English", "mean without English"),
        tuple(blocks), _notes(settings, blocks),
    )  # fmt: skip


def _labels(number: int, label: str) -> tuple[str, ...]:
    if number == 3:
        return (label,)
    model, slash, method = label.partition("/")
    if not slash or not model.strip() or not method.strip():
        raise ConfigError(f"{label!r}: Table 4 needs labels as in 'Vicuna-7B/with=RUN'")
    return model.strip(), method.strip()


def _counts(cells: Sequence[Cell]) -> str:
    """How many questions are answered of how many, over languages and seeds."""
    scores = [score for cell in cells for score in cell.scores]
    answered = sum(score.num_answered for score in scores)
    return f"{answered:,} of {sum(score.num_questions for score in scores):,}"


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
