"""The answers of a run, read once for other people's formats.

Input: a run's folder. Output: one `ExportedResult` for each benchmark and language, in file order,
with the questions of the benchmark's folder where that is given. A file that does not answer all
questions of its benchmark is refused: other tools would score it as if it were whole.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llava.errors import DataError
from llava.eval.records import read_json_lines
from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.registry import get_benchmark
from lrm_ext.evaluate.results import RunResult, answer_files, asked_benchmark, open_result

_NUM_SHOWN = 5


@dataclass(frozen=True)
class ExportedResult:
    """The answers to one benchmark in one language.

    Attributes:
        result: Questions, answers and verdicts.
        model: Name of the model.
        written: When the file was last written, UTC: exports of the same file have the same name.
        is_in_order: Whether the items are all questions of the benchmark in its order.
    """

    result: RunResult
    model: str
    written: datetime.datetime
    is_in_order: bool

    @property
    def key(self) -> tuple[str, str]:
        """Kind and language."""
        return self.result.kind.name, self.result.lang


def read_run(
    run: Path,
    benchmarks: Sequence[str] = (),
    languages: Sequence[str] = (),
    benchmark_dir: Path | None = None,
) -> Iterator[ExportedResult]:
    """Read what a run answered.

    Args:
        run: The model's folder, or that of its results.
        benchmarks: Names; empty for all.
        languages: Codes; empty for all.
        benchmark_dir: The benchmarks' folders: with them, questions are complete and in order. By
            default the folder that `lrm eval` was given, if it is there and has the same questions.

    Raises:
        DataError: Nothing fits, a file is damaged, of another version, or lacks answers.
    """
    files = answer_files(run)
    chosen = {
        (name, lang): path
        for (name, lang), path in files.items()
        if (not benchmarks or name in benchmarks) and (not languages or lang in languages)
    }
    if not chosen:
        there = ", ".join(f"{name} {lang}" for name, lang in files)
        raise DataError(f"{run}: no answers to export; it has {there or 'none'}")
    for (name, lang), path in chosen.items():
        yield _read(name, lang, path, benchmark_dir)


def _read(name: str, lang: str, path: Path, benchmark_dir: Path | None) -> ExportedResult:
    items, version = None, ""
    if benchmark_dir is not None:
        benchmark = get_benchmark(name, benchmark_dir)
        items, version = benchmark.read(lang), benchmark.versions.get(lang, "")
    result = open_result(path, name, lang, items=items, version=version)
    if items is None and (items := _asked(path, name, lang, result.items)):
        result = open_result(path, name, lang, items=items, version=result.answered.version)
    if missing := [i.question_id for i in result.items if i.question_id not in result.texts]:
        raise DataError(
            f"{path}: {len(missing)} of {len(result.items)} questions have no answer "
            f"({', '.join(missing[:_NUM_SHOWN])}); `lrm eval` goes on where it stopped"
        )
    _, first = next(read_json_lines(path))
    written = datetime.datetime.fromtimestamp(int(path.stat().st_mtime), datetime.timezone.utc)
    model = str(first.get("model_id") or "model")
    return ExportedResult(result, model, written, is_in_order=items is not None)


def _asked(path: Path, name: str, lang: str, answered: Sequence[Item]) -> list[Item] | None:
    """The benchmark's questions in its order, if they are those of a file of answers, and all."""
    benchmark = asked_benchmark(path.parent, name)
    if benchmark is None or not benchmark.path(lang).is_file():
        return None
    items = benchmark.read(lang)
    texts = {item.question_id: item.text for item in items}
    return items if texts == {item.question_id: item.text for item in answered} else None
