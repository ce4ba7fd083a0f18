"""Compares two runs: per language, on average, and how sure the difference is.

In: the answers of two runs to the same questions. Out: differences with intervals, p-values that
are adjusted for the number of languages, a verdict each, and how many questions it would take to
tell. Scores are computed anew from the answers; no model is needed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import Console
from rich.table import Column, Table

from llava.errors import ConfigError, DataError
from lrm_ext.evaluate.results import (
    ENGLISH,
    ScoreReport,
    answer_files,
    open_result,
    stated_kind,
)
from lrm_ext.evaluate.statistics import (
    NUM_REPLICATES,
    Difference,
    detectable,
    difference,
    holm,
    mcnemar,
    num_needed,
    replicate,
)
from lrm_ext.languages import in_language_order, language_name
from lrm_ext.languages.grouping import MAX_ROWS, group_name, listed, worst_and_rest

log = logging.getLogger(__name__)
LEVEL: Final = 0.05
BETTER: Final = "better"
WORSE: Final = "worse"
UNCLEAR: Final = "not distinguishable"
_NUM_SHOWN: Final = 5


@dataclass(frozen=True)
class Comparison:
    """Two runs in one language, or on average.

    Attributes:
        lang: The language; `mean` for the average without English.
        mode: How answers were read.
        a: Score of the first.
        b: Score of the second.
        difference: Second less first.
        p_adjusted: p of the difference, adjusted for the languages of the benchmark (Holm).
        only_a: Questions that only the first gets right; None on average.
        only_b: Questions that only the second gets right.
        p_mcnemar: Exact p that both are right equally often.
        verdict: Of the second against the first.
        num_questions: On which it rests.
        num_units: Images, or questions with rotations, that were drawn.
        num_needed: Questions that it would take to tell this difference; None without one.
        detectable: The smallest difference that this many questions would tell.
    """

    lang: str
    mode: str
    a: float
    b: float
    difference: Difference
    p_adjusted: float
    only_a: int | None
    only_b: int | None
    p_mcnemar: float | None
    verdict: str
    num_questions: int
    num_units: int
    num_needed: int | None
    detectable: float


@dataclass(frozen=True)
class BenchmarkComparison:
    """Two runs on one benchmark.

    Attributes:
        name: The benchmark.
        headline: What its score is.
        languages: One comparison a language.
        mean: The average over languages without English; None if there are fewer than two, or
            they have different questions.
        only_in: Languages that only one run has, by run.
    """

    name: str
    headline: str
    languages: tuple[Comparison, ...]
    mean: Comparison | None
    only_in: dict[str, tuple[str, ...]]

    def to_json(self) -> dict[str, Any]:
        """Returns an object of plain values."""
        return asdict(self)


_Pair = tuple[ScoreReport, ScoreReport]


def compare_runs(
    a: Path,
    b: Path,
    *,
    benchmarks: Sequence[str] = (),
    languages: Sequence[str] = (),
    mode: str | None = None,
    seed: int = 0,
    num_replicates: int = NUM_REPLICATES,
) -> list[BenchmarkComparison]:
    """Compares two runs on everything that both have answered.

    Args:
        a: The first run.
        b: The second run, which the verdicts are about.
        benchmarks: Names; empty for all.
        languages: Codes; empty for all.
        mode: How to read answers; by default as each benchmark does.
        seed: Of the bootstrap.
        num_replicates: Of the bootstrap.

    Raises:
        ConfigError: The number of replicates cannot be.
        DataError: The runs have nothing in common, or answered different questions.
    """
    if num_replicates < 1:
        raise ConfigError(f"--replicates is {num_replicates}; expected 1 or more")
    files_a, files_b = answer_files(a), answer_files(b)

    def wanted(key: tuple[str, str]) -> bool:
        return (not benchmarks or key[0] in benchmarks) and (not languages or key[1] in languages)

    common = [key for key in files_a if key in files_b and wanted(key)]
    if not common:
        shown = ", ".join(f"{name} {lang}" for name, lang in list(files_a)[:_NUM_SHOWN])
        raise DataError(f"{a} and {b} have answered nothing in common; {a} has {shown}")
    alone = {
        str(a): [key for key in files_a if key not in files_b and wanted(key)],
        str(b): [key for key in files_b if key not in files_a and wanted(key)],
    }
    results: list[BenchmarkComparison] = []
    for name in dict.fromkeys(name for name, _ in common):
        langs = in_language_order(lang for benchmark, lang in common if benchmark == name)
        found = (
            _score_pair(name, lang, files_a[name, lang], files_b[name, lang], mode)
            for lang in langs
        )
        if not (pairs := [pair for pair in found if pair is not None]):
            continue
        only_in = {
            run: in_language_order(lang for benchmark, lang in keys if benchmark == name)
            for run, keys in alone.items()
        }
        results.append(_compare(name, pairs, only_in, seed, num_replicates))
    if not results:
        raise DataError("nothing to compare: no language has a file here; see --mode")
    return results


def _score_pair(name: str, lang: str, path_a: Path, path_b: Path, mode: str | None) -> _Pair | None:
    """Scores the answers of both runs to the same questions.

    Returns:
        None for a language without a file, unless a mode is named or a judge has judged.

    Raises:
        DataError: The questions or their expected answers differ.
    """
    kind, other = stated_kind(path_a), stated_kind(path_b)
    differ = kind.beside and other.beside and other is not kind
    if differ and kind.mode_for(lang, mode) in kind.beside:
        raise DataError(
            f"{path_a} and {path_b}: their questions name different rules of an owner, so they "
            "cannot be compared by one; compare them as local"
        )
    first, second = (open_result(path, name, lang, kind=kind) for path in (path_a, path_b))
    versions = (first.answered.version, second.answered.version)
    if all(versions) and versions[0] != versions[1]:
        raise DataError(
            f"{path_a} answers version {versions[0]}, {path_b} version {versions[1]}; compare "
            "answers to the same version"
        )
    golds_a, golds_b = (
        {item.question_id: (item.answer, item.text) for item in one.items}
        for one in (first, second)
    )
    if strangers := sorted(golds_a.keys() ^ golds_b.keys()):
        raise DataError(
            f"{path_a} and {path_b}: {len(strangers)} questions are answered in one of them only "
            f"({', '.join(strangers[:_NUM_SHOWN])}); answer the same questions in both"
        )
    if changed := [key for key in golds_a if golds_a[key] != golds_b[key]]:
        raise DataError(
            f"{path_a} and {path_b}: {len(changed)} questions have another wording or expected "
            f"answer ({', '.join(changed[:_NUM_SHOWN])}); they are of different versions"
        )
    if mode is None and not (first.is_comparable and second.is_comparable):
        log.warning(
            "%s: left out %s, which has no language file here: compare it by `--mode official`, "
            "where the set's owner has a rule, or by a judge", name, lang,
        )  # fmt: skip
        return None
    modes = [one.mode_for(mode) for one in (first, second)]
    if modes[0] != modes[1]:
        raise DataError(
            f"{path_a} is read as {modes[0]}, {path_b} as {modes[1]}; scores of different judges "
            "are not compared: judge both by one, or name one that both have with --mode"
        )
    return first.score(modes[0]), second.score(modes[1])


def _compare(
    name: str,
    pairs: Sequence[_Pair],
    only_in: dict[str, tuple[str, ...]],
    seed: int,
    num_replicates: int,
) -> BenchmarkComparison:
    drawn = _draw_differences(pairs, seed, num_replicates)
    found = [
        difference(second.headline - first.headline, drawn[first.lang]) for first, second in pairs
    ]
    adjusted = holm([one.p for one in found])
    languages = tuple(
        _language(*pair, one, p) for pair, one, p in zip(pairs, found, adjusted, strict=True)
    )
    mean = _mean(pairs, drawn, languages)
    return BenchmarkComparison(name, pairs[0][0].headline_name, languages, mean, only_in)


def _draw_differences(
    pairs: Sequence[_Pair], seed: int, num_replicates: int
) -> dict[str, NDArray[np.float64]]:
    """Returns the differences on each draw by language; the same images share their draws."""
    groups: dict[tuple[str, ...], list[_Pair]] = {}
    for pair in pairs:
        groups.setdefault(pair[0].units.units, []).append(pair)
    drawn: dict[str, NDArray[np.float64]] = {}
    for group in groups.values():
        systems = [report.units for first, second in group for report in (first, second)]
        scores = replicate(systems, seed, num_replicates)
        langs = [first.lang for first, _ in group]
        drawn |= zip(langs, scores[1::2] - scores[::2], strict=True)
    return drawn


def _language(first: ScoreReport, second: ScoreReport, found: Difference, p: float) -> Comparison:
    right_a, right_b = first.right_by_question, second.right_by_question
    only_a = sum(right_a[key] and not right_b[key] for key in right_a)
    only_b = sum(right_b[key] and not right_a[key] for key in right_a)
    has_right = all(v.value is None and v.answer_type != "caption" for v in first.verdicts)
    return _judged(
        lang=first.lang,
        mode=first.mode,
        a=first.headline,
        b=second.headline,
        difference=found,
        p_adjusted=p,
        only_a=only_a if has_right else None,
        only_b=only_b if has_right else None,
        p_mcnemar=mcnemar(only_a, only_b) if has_right else None,
        num_questions=len(right_a),
        num_units=len(first.units.units),
    )


def _mean(
    pairs: Sequence[_Pair],
    drawn: Mapping[str, NDArray[np.float64]],
    languages: Sequence[Comparison],
) -> Comparison | None:
    others = [one for one in languages if one.lang != ENGLISH]
    if len(others) < 2:
        return None
    if len({first.units.units for first, _ in pairs if first.lang != ENGLISH}) > 1:
        log.warning("the languages have different questions, so there is no average over them")
        return None
    a, b = (sum(getattr(one, side) for one in others) / len(others) for side in ("a", "b"))
    found = difference(b - a, np.mean([drawn[one.lang] for one in others], axis=0))
    return _judged(
        lang="mean",
        mode="/".join(dict.fromkeys(one.mode for one in others)),
        a=a,
        b=b,
        difference=found,
        p_adjusted=found.p,
        only_a=None,
        only_b=None,
        p_mcnemar=None,
        num_questions=others[0].num_questions,
        num_units=others[0].num_units,
    )


def _judged(**values: Any) -> Comparison:
    found: Difference = values["difference"]
    verdict = UNCLEAR
    if values["p_adjusted"] < LEVEL:
        verdict = BETTER if found.value > 0 else WORSE
    error, num = found.standard_error, values["num_questions"]
    return Comparison(
        **values,
        verdict=verdict,
        num_needed=num_needed(num, found.value, error),
        detectable=detectable(error),
    )


_STYLES: Final = {BETTER: "green", WORSE: "red", UNCLEAR: "dim"}
# in one line of 80 columns, so that a language is a line
_NARROW: Final = {BETTER: "better", WORSE: "worse", UNCLEAR: "unclear"}
_WIDE_COLUMNS: Final = 110


def print_comparison(
    results: list[BenchmarkComparison], a: Path, b: Path, console: Console, show_all: bool = False
) -> None:
    """Prints a table for each benchmark and what its columns mean.

    Args:
        results: One comparison a benchmark.
        a: The first run.
        b: The second run.
        console: Where they are printed.
        show_all: Show every language, also where there are more than `MAX_ROWS`.
    """
    for result in results:
        is_short = not show_all and len(result.languages) > MAX_ROWS
        console.print()
        console.print(comparison_table(result, console.width, is_short))
        if is_short:
            console.print(
                "script: number of further languages: their means, and lowest..highest B-A; "
                "--all shows every language",
                highlight=False,
            )
        for run, langs in result.only_in.items():
            if langs:
                console.print(f"only {run} has answers in {listed(langs)}", highlight=False)
        console.print(sentence(result, b), highlight=False)
    console.print(
        f"\nA: {a}, B: {b}. B-A with its 95 % interval by a paired bootstrap over images; p: of "
        "no difference, adjusted for the number of languages (Holm); McNemar: exact p on "
        "questions, not adjusted; needed: questions that would tell a difference of this size four "
        f"times in five{'' if console.width >= _WIDE_COLUMNS else f'; unclear: {UNCLEAR}'}.",
        highlight=False,
    )


def comparison_table(result: BenchmarkComparison, width: int, is_short: bool = False) -> Table:
    """Makes a table with one row a language, and the average.

    Args:
        result: The comparison.
        width: Columns of the terminal.
        is_short: Rows of the languages in which B-A is least alone, and of scripts for the rest.
    """
    padding, is_wide = ((0, 1), True) if width >= _WIDE_COLUMNS else (0, False)
    modes = dict.fromkeys(one.mode for one in result.languages)
    numbers = ("A", "B", "B-A", "95 %", "p", "McNemar", "asked", "needed")
    table = Table(
        Column("language", no_wrap=True),
        *(Column(head, justify="right", no_wrap=True) for head in numbers),
        Column("B is", no_wrap=is_wide),
        title=f"{result.name}: {result.headline}, read as {'/'.join(modes)}"
        + (f", least B-A of {len(result.languages)} languages" if is_short else ""),
        box=box.SIMPLE_HEAD,
        title_justify="left",
        show_edge=False,
        padding=padding,
    )
    by_lang = {one.lang: one for one in result.languages}
    if is_short:
        _add_short_rows(table, by_lang, is_wide)
    else:
        for lang, one in by_lang.items():
            table.add_row(language_name(lang), *_cells(one, is_wide))
    if result.mean:
        table.add_section()
        others = sum(one.lang != ENGLISH for one in result.languages)
        table.add_row(f"mean of {others}", *_cells(result.mean, is_wide))
    return table


def _add_short_rows(table: Table, by_lang: Mapping[str, Comparison], is_wide: bool) -> None:
    changes = {lang: one.difference.value for lang, one in by_lang.items() if lang != ENGLISH}
    worst, rest = worst_and_rest(changes)
    if ENGLISH in by_lang:
        table.add_row(language_name(ENGLISH), *_cells(by_lang[ENGLISH], is_wide))
        table.add_section()
    for lang in worst:
        table.add_row(language_name(lang), *_cells(by_lang[lang], is_wide))
    table.add_section()
    for langs in rest:
        found = [by_lang[lang] for lang in langs]
        cells = _cells(found[0], is_wide) if len(found) == 1 else _group_cells(found)
        table.add_row(group_name(langs), *cells)


def _group_cells(found: Sequence[Comparison]) -> list[str]:
    a, b = (np.mean([getattr(one, side) for one in found]) for side in ("a", "b"))
    changes = [one.difference.value for one in found]
    counts = {verdict: [one.verdict for one in found].count(verdict) for verdict in (BETTER, WORSE)}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items() if count)
    values = [f"{a:.1f}", f"{b:.1f}", f"[bold]{np.mean(changes):+.1f}[/]"]
    return [*values, f"{min(changes):+.1f}..{max(changes):+.1f}", *[""] * 4, told]


def _cells(one: Comparison, is_wide: bool) -> list[str]:
    found = one.difference
    return [
        f"{one.a:.1f}",
        f"{one.b:.1f}",
        f"[bold]{found.value:+.1f}[/]",
        f"{found.low:+.1f}..{found.high:+.1f}",
        f"{one.p_adjusted:.4f}",
        "-" if one.p_mcnemar is None else f"{one.p_mcnemar:.4f}",
        f"{one.num_questions:,}",
        "-" if one.num_needed is None else f"{one.num_needed:,}",
        f"[{_STYLES[one.verdict]}]{one.verdict if is_wide else _NARROW[one.verdict]}[/]",
    ]


def sentence(result: BenchmarkComparison, b: Path) -> str:
    """Returns the answer in a sentence."""
    verdicts = (BETTER, WORSE, UNCLEAR)
    groups = {v: [one.lang for one in result.languages if one.verdict == v] for v in verdicts}
    parts = [f"{verdict} in {listed(langs)}" for verdict, langs in groups.items() if langs]
    text = f"{result.name}: {b.name or b} is {'; '.join(parts)}"
    if result.mean:
        text += f"; on average it is {result.mean.verdict}"
    if groups[UNCLEAR]:
        largest = max(one.detectable for one in result.languages if one.verdict == UNCLEAR)
        if largest > 0:
            text += f". A difference of {largest:.1f} or more would have been told in any of them"
        else:
            # nothing differs on any image, so there is no spread to learn from either
            text += ". There both score the same on every image"
    return text + "."
