"""Makes Figure 4 of the paper: images, questions, the answers of several models, their meaning.

In: runs that answered the same questions. Out: a figure and a page. Question ids are given or
drawn, first among the questions on which the answers differ; how many those are is said. English
comes from a table (the engine `memory`, and the benchmark's own questions and answers): what is not
in it is said to be without a translation, never guessed.
"""

from __future__ import annotations

import logging
import mimetypes
import textwrap
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import regex
from matplotlib.figure import Figure

from llava.errors import ConfigError, DataError
from llava.images import open_image
from lrm_ext.evaluate.glossing import gloss
from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.official import join_images
from lrm_ext.evaluate.reading import text_key
from lrm_ext.evaluate.registry import Benchmark, get_benchmark
from lrm_ext.evaluate.results import (
    ENGLISH,
    RunResult,
    answer_files,
    asked_benchmark,
    open_result,
    predictions_dir,
)
from lrm_ext.languages import in_language_order, language_name
from lrm_ext.languages.fonts import is_shaped, plot_families
from lrm_ext.languages.registry import text_direction
from lrm_ext.mixture.order import Permutation
from lrm_ext.report.render import data_url, printable, render
from lrm_ext.report.settings import Setting

log = logging.getLogger(__name__)

NO_ENGLISH: Final = "no translation in the table"
_ISOLATE, _END_OF_ISOLATE = "\u2068", "\u2069"
_COLUMNS: Final = 66
_PRIVATE_USE: Final = 0xF0000  # characters that stand for letters with marks
_LINE_INCHES: Final = 0.2
_MARKS: Final = {True: ("right", "#0072B2"), False: ("wrong", "#D55E00")}
_GREY: Final = "#444444"


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
    """The answer of one model; `label` names it."""

    label: str
    said: Said
    correct: bool


@dataclass(frozen=True)
class Shown:
    """One question with its images and answers."""

    question_id: str
    lang: str
    images: tuple[Path, ...]
    question: Said
    expected: Said
    answers: tuple[ModelAnswer, ...]


@dataclass(frozen=True)
class Examples:
    """The questions of the figure.

    Attributes:
        shown: The questions.
        caption: How they were chosen.
    """

    shown: tuple[Shown, ...]
    caption: str


def choose_examples(
    settings: Sequence[Setting],
    benchmark_dir: Path | None = None,
    *,
    benchmarks: Sequence[str] = (),
    languages: Sequence[str] = (),
    ids: Sequence[str] = (),
    num: int = 3,
    seed: int = 0,
    table: str | None = None,
) -> Examples:
    """Chooses the questions.

    Args:
        settings: One run each.
        benchmark_dir: Where the benchmark is, unless it is built in.
        benchmarks: One name; empty for the only one that all runs answered.
        languages: Codes; empty for the first but English.
        ids: Question ids; empty to draw them.
        num: How many are drawn in each language.
        seed: Of the draw.
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
    common = set.intersection(*map(set, files.values()))
    name = _benchmark_name({name for name, _ in common}, benchmarks)
    there = in_language_order(lang for one, lang in common if one == name)
    langs = languages or sorted(there, key=lambda lang: lang == ENGLISH)[:1]
    if lacking := [lang for lang in langs if lang not in there]:
        raise ConfigError(f"not every run has answers to {name} in {', '.join(lacking)}")
    benchmark = None
    if benchmark_dir is None:
        benchmark = asked_benchmark(predictions_dir(settings[0].runs[0]), name)
    benchmark = benchmark or get_benchmark(name, benchmark_dir)
    path = next((f[name, ENGLISH] for f in files.values() if (name, ENGLISH) in f), None)
    english = _by_key(open_result(path, name, ENGLISH)) if path else {}
    shown: list[Shown] = []
    captions: list[str] = []
    for lang in langs:
        results = {label: open_result(f[name, lang], name, lang) for label, f in files.items()}
        right = {
            label: {verdict.key: verdict.correct for verdict in one.verdicts()}
            for label, one in results.items()
        }
        chosen, caption = _choose(results, right, lang, ids, num, seed)
        shown += _shown(chosen, results, right, lang, benchmark, english, table)
        captions.append(caption)
    return Examples(tuple(shown), " ".join(captions))


def _by_key(result: RunResult) -> dict[str, Item]:
    return {item.question_id: item for item in result.items}


def _shown(
    keys: Sequence[str],
    results: Mapping[str, RunResult],
    right: Mapping[str, Mapping[str, bool]],
    lang: str,
    benchmark: Benchmark,
    english: Mapping[str, Item],
    table: str | None,
) -> Iterator[Shown]:
    """Yields questions with their answers; says questions (by their id) and answers in English."""
    own = _by_key(next(iter(results.values())))
    ways: defaultdict[str, set[str]] = defaultdict(set)
    for key, item in own.items():
        if key in english and item.answer_type in ("yesno", "text"):
            ways[text_key(item.answer)].add(english[key].answer)
    # what is said in two ways in English is ambiguous
    known = {key: min(w) for key, w in ways.items() if len(set(map(text_key, w))) == 1}

    def said(text: str) -> Said:
        shown = printable(text).strip()
        if lang == ENGLISH:
            return Said(shown, shown)
        return Said(shown, known.get(text_key(shown)) or gloss(shown, lang, table=table) or None)

    for key in keys:
        item = own[key]
        meant = item if lang == ENGLISH else english.get(key)
        question = Said(item.text, meant.text if meant else None)
        answers = tuple(
            ModelAnswer(label, said(one.texts[key]), right[label][key])
            for label, one in results.items()
        )
        images = tuple(map(benchmark.image_path, item.images))
        yield Shown(key, lang, images, question, said(item.answer), answers)


def _benchmark_name(there: set[str], wanted: Sequence[str]) -> str:
    names = ", ".join(sorted(there))
    if len(wanted) > 1 or (not wanted and len(there) != 1):
        raise ConfigError(
            "figure 4 is about one benchmark; choose with --benchmarks: "
            f"{names or 'the runs have none in common'}"
        )
    if wanted and wanted[0] not in there:
        raise ConfigError(f"not every run has answers to {wanted[0]}; all have {names}")
    return (*wanted, *there)[0]


def _choose(
    results: Mapping[str, RunResult],
    right: Mapping[str, Mapping[str, bool]],
    lang: str,
    ids: Sequence[str],
    num: int,
    seed: int,
) -> tuple[list[str], str]:
    """Returns the ids to show, and how they were chosen.

    Raises:
        DataError: An id is unknown, or no question is answered by all runs.
    """
    everywhere = set.intersection(*(set(one.texts) for one in results.values()))
    if ids:
        if unknown := [key for key in ids if key not in everywhere]:
            raise DataError(f"{lang}: not every run has answered {', '.join(unknown)}")
        return list(ids), f"{lang}: questions chosen by hand."
    keys = sorted(everywhere)
    if not keys:
        raise DataError(f"{lang}: the runs have answered no question in common")
    drawn = [keys[place] for place in Permutation(len(keys), (seed, 2))]
    differing = [k for k in drawn if len({one.get(k) for one in right.values()}) > 1]
    chosen = list(dict.fromkeys((*differing, *drawn)))[:num]
    caption = f"{lang}: {len(chosen)} drawn (seed {seed})"
    if len(results) > 1:
        caption += (
            f", those first on which one model is right and another is not "
            f"({len(differing):,} of {len(keys):,} questions)"
        )
    return chosen, caption + "."


def examples_figure(examples: Examples) -> Figure:
    """Draws images on the left, questions and answers on the right."""
    said = [
        said.text
        for shown in examples.shown
        for said in (shown.question, shown.expected, *(answer.said for answer in shown.answers))
    ]
    if missing := plot_families(said)[1]:
        log.warning("%s: the figure says so in place of such a text. The page shows it with the "
                    "reader's own fonts", missing)  # fmt: skip
    blocks = [_lines(shown) for shown in examples.shown]
    heights = [max(2.0, _LINE_INCHES * (len(lines) + 1)) for lines in blocks]
    caption = textwrap.wrap(examples.caption, 135)
    foot = 0.2 + _LINE_INCHES * len(caption)
    top = total = sum(heights) + foot
    figure = Figure(figsize=(9.2, total))
    for shown, lines, height in zip(examples.shown, blocks, heights, strict=True):
        bottom = top - height
        axes = figure.add_axes((0.01, (bottom + 0.08) / total, 0.22, (height - 0.16) / total))
        axes.imshow(join_images([open_image(path) for path in shown.images]))
        axes.set_anchor("N")
        axes.set_axis_off()
        for number, (text, look) in enumerate(lines):
            y = (top - 0.1 - _LINE_INCHES * number) / total
            figure.text(0.25, y, text, va="top", **{"fontsize": 10, **look})
        top = bottom
    for number, line in enumerate(caption):
        y = (foot - 0.1 - _LINE_INCHES * number) / total
        figure.text(0.01, y, line, va="top", fontsize=8, color=_GREY)
    return figure


def _lines(shown: Shown) -> list[tuple[str, dict[str, Any]]]:
    """Returns lines of text with their looks."""
    lang = shown.lang
    question = drawable(shown.question.text, lang)
    texts: list[tuple[str, dict[str, Any]]] = [
        (f"{language_name(lang)}: {question}", {"fontsize": 11.5})
    ]
    if lang != ENGLISH:
        texts.append((f"({_english(shown.question)})", {"color": _GREY}))
    for answer in shown.answers:
        word, colour = _MARKS[answer.correct]
        said = drawable(answer.said.text, lang) or "(nothing)"
        texts.append((f"{answer.label} ({word}): {said}", {"color": colour}))
        if lang != ENGLISH and answer.said.text:
            texts.append((f"    ({_english(answer.said)})", {"color": _GREY}))
    expected = drawable(shown.expected.text, lang)
    expected += "" if lang == ENGLISH else f" ({_english(shown.expected)})"
    texts.append((f"Expected: {expected}", {}))
    return [(line, look) for text, look in texts for line in wrap(text)]


def wrap(text: str) -> list[str]:
    """Breaks a text into lines that fit the figure; a wide letter (Chinese) counts twice.

    A letter with marks (Thai, Hindi) counts once and is never taken apart.
    """
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    marked = dict.fromkeys(letter for letter in regex.findall(r"\X", text) if len(letter) > 1)
    stands_for = {letter: chr(_PRIVATE_USE + i) for i, letter in enumerate(marked)}
    text = regex.sub(r"\X", lambda letter: stands_for.get(letter[0], letter[0]), text)
    width = _COLUMNS * len(text) // max(1, len(text) + wide)
    indent = text[: len(text) - len(text.lstrip())]
    lines = textwrap.wrap(text, width, subsequent_indent=indent) or [""]
    back = str.maketrans({short: letter for letter, short in stands_for.items()})
    return [line.translate(back) for line in lines]


def _english(said: Said) -> str:
    return f"English: {said.english}" if said.english is not None else NO_ENGLISH


def drawable(text: str, lang: str) -> str:
    """Returns the text, or a remark in its place if no font here has its letters."""
    if plot_families([text])[1]:
        return "[no font here has its letters]"
    if not is_shaped(text):
        return "[matplotlib 3.11 or later is needed for its letters]"
    # after the name of a language or model, the text keeps its own order
    return f"{_ISOLATE}{text}{_END_OF_ISOLATE}" if text_direction(lang) == "rtl" else text


def examples_page(examples: Examples) -> str:
    """Renders the same as a page that needs nothing but itself."""
    return render(
        "examples.html",
        title="The same questions to several models",
        caption=examples.caption,
        shown=[(one, [(p.name, _image_url(p)) for p in one.images]) for one in examples.shown],
        english=_english,
        language_name=language_name,
    )


def _image_url(path: Path) -> str:
    open_image(path)  # refuses what is no image
    kind = mimetypes.guess_type(path.name)[0] or "image/png"
    return data_url(kind, path.read_bytes())
