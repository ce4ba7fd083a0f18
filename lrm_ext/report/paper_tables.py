"""Makes the paper's four tables from answers, with the figures that the paper publishes beneath.

In: settings (`settings.py`), or for Table 2 the figures of two translations. Out: a `PaperTable`,
which `tables.py` writes. Published rows are in blocks of their own: they were not measured here,
and nothing here competes with them for the best value.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from llava.errors import ConfigError, DataError
from llava.files import load_toml
from lrm_ext.evaluate.kinds import KINDS, find_kind
from lrm_ext.evaluate.results import ENGLISH
from lrm_ext.languages import get_language, in_language_order, language_name, list_languages
from lrm_ext.report.settings import (
    Cell,
    Score,
    ScoredBenchmark,
    Setting,
    mean_cell,
    score_settings,
    seed_notes,
)
from lrm_ext.report.tables import PUBLISHED, Block, PaperTable, TableRow

AVERAGE: Final = "Avg"
_TITLES: Final = {
    1: "Table 1: models on multilingual benchmarks",
    2: "Table 2: agreement of two translations of each benchmark",
    3: "Table 3: what each task instruction contributes",
    4: "Table 4: language models with and without the task instructions",
}


def published() -> dict[str, Any]:
    """Returns the figures that the paper publishes, by table."""
    return load_toml(Path(__file__).parent / "published" / "paper.toml")


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
            blocks.append(_measured(one, one.title, langs, 1))
        last_of_kind = kind not in kinds[place + 1 :]
        if with_published and last_of_kind and kind in data["table1"]:
            blocks.append(_published_models(kind, langs, data))
    return PaperTable(
        "1", _TITLES[1], ("Model",), (*map(_label, langs), AVERAGE),
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
        "2", _TITLES[2], ("Benchmark",), (*map(_label, langs), AVERAGE),
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
        title = f"{one.title}; {AVERAGE} over {len(one.others)}: {names}"
        blocks.append(_measured(one, title, (ENGLISH,), number))
    if with_published:
        rows = tuple(
            TableRow(_labels(number, label), _cells(values), PUBLISHED)
            for label, values in published()[f"table{number}"].items()
        )
        blocks.append(Block(_published_title("MMBench"), rows))
    heads = ("Method",) if number == 3 else ("Language model", "Method")
    return PaperTable(
        str(number), _TITLES[number], heads, ("En", AVERAGE), ("English", "mean without English"),
        tuple(blocks), _notes(settings, blocks),
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
    notes += seed_notes(settings)
    if any(row.counts == PUBLISHED for block in blocks for row in block.rows):
        notes.append(f"Published rows: {published()['source']}; not measured with this project.")
    return tuple(notes)


def _label(lang: str) -> str:
    return get_language(lang).paper_label if lang in list_languages() else lang
