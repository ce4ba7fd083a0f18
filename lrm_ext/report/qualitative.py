"""Figure 4 of the paper: pictures, questions, the answers of several models, and what they mean.

In: runs that answered the same questions. Out: a picture and a page. Question ids are given or
drawn, first among the questions on which the answers differ; how many those are is said. English
comes from a table (the engine `memory`, and the benchmark's own questions and answers): what is not
in it is said to be without a translation, never guessed.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from llava.errors import ConfigError, DataError
from lrm_ext.evaluate.glossing import Glosses
from lrm_ext.evaluate.predictions import asked_benchmark
from lrm_ext.evaluate.reading import text_key
from lrm_ext.evaluate.registry import Benchmark, get_benchmark
from lrm_ext.evaluate.results import (
    ENGLISH,
    RunResult,
    answer_files,
    open_result,
    predictions_dir,
)
from lrm_ext.languages import list_languages
from lrm_ext.mixture.order import Permutation
from lrm_ext.report.settings import Setting
from lrm_ext.report.tables import printable

log = logging.getLogger(__name__)

NO_ENGLISH: Final = "no translation in the table"


@dataclass(frozen=True)
class Choice:
    """Which questions are shown.

    Attributes:
        benchmarks: One name; empty for the only one that all runs answered.
        languages: Codes; empty for the first but English.
        ids: Question ids; empty to draw them.
        num: How many are drawn in each language.
        seed: Of the draw.
    """

    benchmarks: tuple[str, ...]
    languages: tuple[str, ...]
    ids: tuple[str, ...]
    num: int
    seed: int


@dataclass(frozen=True)
class Said:
    """A text and what it means.

    Attributes:
        text: As it stands.
        english: In English; None if the table has no translation.
    """

    text: str
    english: str | None


@dataclass(frozen=True)
class ModelAnswer:
    """What one model said; `label` names it."""

    label: str
    said: Said
    correct: bool


@dataclass(frozen=True)
class Shown:
    """One question with its picture and answers."""

    question_id: str
    lang: str
    picture: Path
    question: Said
    expected: Said
    answers: tuple[ModelAnswer, ...]


@dataclass(frozen=True)
class Examples:
    """What the figure shows.

    Attributes:
        shown: The questions.
        caption: How they were chosen.
    """

    shown: tuple[Shown, ...]
    caption: str


def choose_examples(
    settings: Sequence[Setting],
    choice: Choice,
    benchmark_dir: Path | None = None,
    table: str | None = None,
) -> Examples:
    """Choose the questions.

    Args:
        settings: One run each.
        choice: Which questions.
        benchmark_dir: Where the benchmark is, unless it is built in.
        table: Of the engine `memory`.

    Raises:
        ConfigError: The choice fits no benchmark or language of the runs.
        DataError: A question is unknown, or the runs answered different ones.
    """
    if any(len(setting.runs) > 1 for setting in settings):
        raise ConfigError("figure 4 shows one run of each label")
    files = {setting.label: answer_files(setting.runs[0]) for setting in settings}
    if len(files) < len(settings):
        raise ConfigError("two runs have the same label; give LABEL=RUN")
    common = set.intersection(*(set(found) for found in files.values()))
    name = _benchmark_name(common, choice.benchmarks)
    langs = choice.languages or _first_language(common, name)
    if lacking := [lang for lang in langs if (name, lang) not in common]:
        raise ConfigError(f"not every run has answers to {name} in {', '.join(lacking)}")
    benchmark = None
    if benchmark_dir is None:
        benchmark = asked_benchmark(predictions_dir(settings[0].runs[0]), name)
    benchmark = benchmark or get_benchmark(name, benchmark_dir)
    english = next((f[name, ENGLISH] for f in files.values() if (name, ENGLISH) in f), None)
    shown: list[Shown] = []
    captions: list[str] = []
    for lang in langs:
        answered = {
            label: open_result(found[name, lang], name, lang) for label, found in files.items()
        }
        in_english = open_result(english, name, ENGLISH) if english else None
        first = next(iter(answered.values()))
        some, caption = _shown_in(
            lang, answered, choice, benchmark, _Meanings(first, in_english, lang, table)
        )
        shown += some
        captions.append(caption)
    return Examples(tuple(shown), " ".join(captions))


def _shown_in(
    lang: str,
    answered: Mapping[str, RunResult],
    choice: Choice,
    benchmark: Benchmark,
    meanings: _Meanings,
) -> tuple[list[Shown], str]:
    """The questions of one language with all answers, and how they were chosen."""
    right = {
        label: {verdict.key: verdict.correct for verdict in one.verdicts()}
        for label, one in answered.items()
    }
    ids, caption = _choose(answered, right, choice, lang)
    items = {item.question_id: item for item in next(iter(answered.values())).items}
    shown: list[Shown] = []
    for key in ids:
        item = items[key]
        answers = (
            ModelAnswer(label, meanings.of_answer(one.texts[key]), right[label][key])
            for label, one in answered.items()
        )
        shown.append(
            Shown(
                key, lang, benchmark.image_path(item.image), meanings.of_question(key),
                meanings.of_answer(item.answer), tuple(answers),
            )
        )  # fmt: skip
    return shown, caption


def _benchmark_name(common: set[tuple[str, str]], wanted: Sequence[str]) -> str:
    there = sorted({name for name, _ in common})
    if len(wanted) > 1 or (not wanted and len(there) != 1):
        raise ConfigError(
            "figure 4 is about one benchmark; choose with --benchmarks: "
            f"{', '.join(there) or 'the runs have none in common'}"
        )
    if wanted and wanted[0] not in there:
        raise ConfigError(f"not every run has answers to {wanted[0]}; all have {', '.join(there)}")
    return wanted[0] if wanted else there[0]


def _first_language(common: set[tuple[str, str]], name: str) -> tuple[str, ...]:
    langs = [lang for lang in list_languages() if (name, lang) in common]
    return tuple(sorted(langs, key=lambda lang: lang == ENGLISH)[:1])


def _choose(
    answered: Mapping[str, RunResult],
    right: Mapping[str, Mapping[str, bool]],
    choice: Choice,
    lang: str,
) -> tuple[list[str], str]:
    """Ids to show, and how they were chosen.

    Raises:
        DataError: An id is unknown, or no question is answered by all runs.
    """
    everywhere = set.intersection(*(set(one.texts) for one in answered.values()))
    if choice.ids:
        if unknown := [key for key in choice.ids if key not in everywhere]:
            raise DataError(f"{lang}: not every run has answered {', '.join(unknown)}")
        return list(choice.ids), f"{lang}: questions chosen by hand."
    keys = sorted(everywhere)
    if not keys:
        raise DataError(f"{lang}: the runs have answered no question in common")
    drawn = [keys[place] for place in Permutation(len(keys), (choice.seed, 2))]
    differing = [k for k in drawn if len({one.get(k) for one in right.values()}) > 1]
    chosen = differing[: choice.num]
    chosen += [key for key in drawn if key not in chosen][: choice.num - len(chosen)]
    caption = f"{lang}: {len(chosen)} drawn (seed {choice.seed})"
    if len(answered) > 1:
        caption += (
            f", those first on which one model is right and another is not "
            f"({len(differing):,} of {len(keys):,} questions)"
        )
    return chosen, caption + "."


class _Meanings:
    """English of questions (by their id) and of answers (by a table)."""

    def __init__(
        self, own: RunResult, english: RunResult | None, lang: str, table: str | None
    ) -> None:
        self._lang = lang
        self._questions = {item.question_id: item.text for item in own.items}
        self._english = {item.question_id: item for item in english.items} if english else {}
        self._glosses = Glosses(table)
        self._table: dict[str, str] = {}
        if lang != ENGLISH:
            pairs = {
                (item.answer, self._english[item.question_id].answer)
                for item in own.items
                if item.question_id in self._english and item.answer_type in ("yesno", "text")
            }
            self._table = _unambiguous(pairs)

    def of_question(self, key: str) -> Said:
        text = self._questions[key]
        if self._lang == ENGLISH:
            return Said(text, text)
        return Said(text, self._english[key].text if key in self._english else None)

    def of_answer(self, text: str) -> Said:
        shown = printable(text).strip()
        if self._lang == ENGLISH:
            return Said(shown, shown)
        known = self._table.get(text_key(shown))
        return Said(shown, known or self._glosses.of(shown, self._lang) or None)


def _unambiguous(pairs: set[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, set[str]] = {}
    for other, english in pairs:
        found.setdefault(text_key(other), set()).add(english)
    folded = {key: {text_key(one) for one in ways} for key, ways in found.items()}
    return {key: min(ways) for key, ways in found.items() if len(folded[key]) == 1}
