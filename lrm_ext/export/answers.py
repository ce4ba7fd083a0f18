"""The answers of a run, read once for other people's formats.

Input: a run's folder. Output: one `Answers` for each benchmark and language, in file order, with
the questions of the benchmark's folder where that is given. A file that does not answer all
questions of its benchmark is refused: other tools would score it as if it were whole.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llava.errors import DataError
from llava.eval.records import read_json_lines
from lrm_ext.benchmarks.items import Item
from lrm_ext.benchmarks.kind import Kind
from lrm_ext.benchmarks.registry import get_benchmark
from lrm_ext.evaluation.compare import answer_files
from lrm_ext.evaluation.predictions import asked_benchmark, read_answered, stated_kind

_NUM_SHOWN = 5


@dataclass(frozen=True)
class Answers:
    """The answers to one benchmark in one language.

    Attributes:
        benchmark: Its name.
        lang: The language.
        kind: Whose rules score it.
        version: Of the questions, where it is known.
        model: Name of the model.
        items: The questions.
        texts: Answers by question id.
        written: When the file was last written, UTC: exports of the same file have the same name.
        is_in_order: Whether `items` are all questions of the benchmark in its order.
    """

    benchmark: str
    lang: str
    kind: Kind
    version: str
    model: str
    items: tuple[Item, ...]
    texts: Mapping[str, str]
    written: datetime.datetime
    is_in_order: bool = False


def read_run(
    run: Path,
    benchmarks: Sequence[str] = (),
    languages: Sequence[str] = (),
    benchmark_dir: Path | None = None,
) -> Iterator[Answers]:
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


def _read(name: str, lang: str, path: Path, benchmark_dir: Path | None) -> Answers:
    kind = stated_kind(path)
    items, version = None, ""
    if benchmark_dir is not None:
        benchmark = get_benchmark(name, benchmark_dir)
        items, version = benchmark.read(lang), benchmark.versions.get(lang, "")
    answered = read_answered(path, kind, lang=lang, items=items, version=version)
    if items is None and (items := _asked(path, name, lang, answered.items)):
        answered = replace(answered, items=tuple(items))
    if missing := [i.question_id for i in answered.items if i.question_id not in answered.texts]:
        raise DataError(
            f"{path}: {len(missing)} of {len(answered.items)} questions have no answer "
            f"({', '.join(missing[:_NUM_SHOWN])}); `lrm eval` goes on where it stopped"
        )
    _, first = next(read_json_lines(path))
    written = datetime.datetime.fromtimestamp(int(path.stat().st_mtime), datetime.timezone.utc)
    return Answers(
        name,
        lang,
        kind,
        answered.version,
        str(first.get("model_id") or "model"),
        tuple(answered.items),
        answered.texts,
        written,
        is_in_order=items is not None,
    )


def _asked(path: Path, name: str, lang: str, answered: Sequence[Item]) -> list[Item] | None:
    """The benchmark's questions in its order, if they are those of a file of answers, and all."""
    benchmark = asked_benchmark(path.parent, name)
    if benchmark is None or not benchmark.path(lang).is_file():
        return None
    items = benchmark.read(lang)
    texts = {item.question_id: item.text for item in items}
    return items if texts == {item.question_id: item.text for item in answered} else None
