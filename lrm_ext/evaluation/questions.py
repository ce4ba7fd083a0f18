"""What an evaluation asks: the questions of each benchmark and language, their pictures checked.

In: an `EvalConfig`. Out: `QuestionSet`s. Every picture is opened once, before a model is loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from llava.errors import DataError
from llava.images import open_image
from lrm_ext.benchmarks.items import Item, limit_items
from lrm_ext.benchmarks.registry import Benchmark, get_benchmark
from lrm_ext.evaluation.backend import sha256_of
from lrm_ext.evaluation.predictions import prediction_path
from lrm_ext.languages import list_languages

if TYPE_CHECKING:
    from lrm_ext.evaluation.runner import EvalConfig

log = logging.getLogger(__name__)

NUM_SHOWN_IMAGES: Final = 20


@dataclass(frozen=True)
class QuestionSet:
    """The questions of one benchmark in one language.

    Attributes:
        benchmark: Where they are from.
        lang: Their language.
        items: Those to ask, in file order.
        keys: The ids of all questions in the file, asked or not.
        sha256: Of the file.
        unasked: Questions whose picture is missing: not asked, and wrong.
        is_ranked: Their options are ranked by likelihood.
    """

    benchmark: Benchmark
    lang: str
    items: tuple[Item, ...]
    keys: frozenset[str] = field(repr=False)
    sha256: str
    unasked: frozenset[str] = frozenset()
    is_ranked: bool = False

    def path(self, folder: Path, blind: bool) -> Path:
        """Where its answers are."""
        return prediction_path(folder, self.benchmark.name, self.lang, blind)


def load_questions(config: EvalConfig) -> list[QuestionSet]:
    """Read the questions that a configuration asks for.

    Raises:
        ConfigError: A name is unknown.
        DataError: A file or line is wrong, or a picture is missing or no picture.
    """
    config.validate()
    sets: list[QuestionSet] = []
    for name in config.names():
        benchmark = get_benchmark(name, config.benchmark_dir)
        languages = config.languages or tuple(
            lang for lang in list_languages() if lang in benchmark.languages()
        )
        if not languages:
            raise DataError(f"benchmark {name}: no <lang>.jsonl in {benchmark.folder}")
        for lang in languages:
            items = benchmark.read(lang)
            keys = frozenset(item.question_id for item in items)
            chosen = tuple(limit_items(items, config.limit))
            sets.append(
                QuestionSet(benchmark, lang, chosen, keys, sha256_of([benchmark.path(lang)]))
            )
    bad = find_bad_images(sets)
    if bad and not config.skip_missing_images:
        raise DataError(f"{len(bad)} pictures are missing or cannot be read:{_shown(bad)}")
    if bad:
        sets = [_without(qs, frozenset(bad)) for qs in sets]
        log.warning(
            "%d pictures are missing or cannot be read, so %d questions are not asked and count "
            "as wrong:%s", len(bad), sum(len(qs.unasked) for qs in sets), _shown(bad),
        )  # fmt: skip
    return sets


def find_bad_images(sets: Sequence[QuestionSet]) -> list[Path]:
    """Paths of pictures that are missing or cannot be read, sorted."""
    paths = {qs.benchmark.image_path(item.image) for qs in sets for item in qs.items}
    return [path for path in sorted(paths) if not _is_picture(path)]


def _is_picture(path: Path) -> bool:
    try:
        open_image(path)
    except DataError:
        return False
    return True


def _without(qs: QuestionSet, bad: frozenset[Path]) -> QuestionSet:
    unasked = (i.question_id for i in qs.items if qs.benchmark.image_path(i.image) in bad)
    return replace(qs, unasked=frozenset(unasked))


def _shown(bad: Sequence[Path]) -> str:
    more = len(bad) - NUM_SHOWN_IMAGES
    lines = "".join(f"\n  {path}" for path in bad[:NUM_SHOWN_IMAGES])
    return lines + (f"\n  ... and {more} more" if more > 0 else "")
