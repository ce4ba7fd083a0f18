"""SEED-Bench, the part with pictures: multiple choice in nine dimensions.

The paper's figure is the accuracy over all questions, in percent. Names of dimensions come from the
file itself, because two of them were swapped in an earlier release.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from lrm_ext.benchmarks.items import LETTERS, Item
from lrm_ext.benchmarks.kind import (
    LOCAL,
    Kind,
    by_category,
    count_accuracy,
    refuse_golds,
    share,
)
from lrm_ext.benchmarks.letters import infer_vlmevalkit
from lrm_ext.benchmarks.prompts import option_prompt
from lrm_ext.benchmarks.score import Judgement, Reading, Verdict, judge_locally

NUM_OPTIONS: Final = 4


def _judge_lmms_eval(item: Item, text: str, reading: Reading) -> Judgement:
    first = text.strip()[:1].upper()
    return judged_letter(item, text, reading, first if first in LETTERS[:NUM_OPTIONS] else None)


def _judge_llava(item: Item, text: str, reading: Reading) -> Judgement:
    return judged_letter(item, text, reading, text if text in LETTERS[:NUM_OPTIONS] else None)


def judge_vlmevalkit(item: Item, text: str, reading: Reading) -> Judgement:
    """VLMEvalKit's exact matching, without a judge."""
    options = item.lettered() or dict.fromkeys(LETTERS[:NUM_OPTIONS], "\0")
    return judged_letter(item, text, reading, infer_vlmevalkit(text, options))


def judged_letter(item: Item, text: str, reading: Reading, letter: str | None) -> Judgement:
    """A letter that one of the English rules read."""
    lang = judge_locally(item, text, reading).answer_lang
    return Judgement(letter or "other", letter == item.answer, lang)


def check(items: Sequence[Item], allow_missing: bool) -> int:
    """Demand that every expected answer is one of the four letters.

    Raises:
        DataError: One is not.
    """
    refuse_golds(items, LETTERS[:NUM_OPTIONS], "seed_bench")
    return 0


def details(items: Sequence[Item], verdicts: Sequence[Verdict], mode: str) -> dict[str, Any]:
    """Accuracy over all questions and by dimension, as proportions."""
    groups = by_category(items, verdicts)
    return {
        "all": share(verdicts),
        "per_dimension": {name: share(group) for name, group in groups.items()},
        "num_per_dimension": {name: len(group) for name, group in groups.items()},
    }


SEED_BENCH: Final = Kind(
    name="seed_bench",
    title="SEED-Bench (image)",
    headline="accuracy",
    maximum=100.0,
    answer_type="letter",
    modes={
        "lmms-eval": _judge_lmms_eval,
        "llava": _judge_llava,
        "vlmevalkit": judge_vlmevalkit,
        LOCAL: judge_locally,
    },
    default_mode="lmms-eval",
    refused={
        "official": "the owner's tool reads no text, it ranks the options by their likelihood; "
        "ask with `lrm eval --rank mean`, and read those answers by lmms-eval or llava"
    },
    prompt=option_prompt,
    check=check,
    count=count_accuracy,
    details=details,
)
