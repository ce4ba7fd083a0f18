"""Kinds of benchmarks without rules of their own: short answers, and captions.

They score the further sets (`sets/*.toml`) and the built-in `scenes`: an answer is read in the
language of its question, by the rules for any language.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np

from llava.errors import ConfigError
from lrm_ext.evaluate.items import Item, prompt_for
from lrm_ext.evaluate.kind import (
    LOCAL,
    Array,
    Judgement,
    Kind,
    Reading,
    UnitCounts,
    Verdict,
    by_category,
    count_accuracy,
    final_answer,
    gather,
    judge_locally,
    prose_language,
    share,
)


def check(items: Sequence[Item], allow_missing: bool) -> int:
    """Nothing ties these questions together."""
    return 0


def _answer_details(
    items: Sequence[Item], verdicts: Sequence[Verdict], mode: str
) -> dict[str, Any]:
    groups = by_category(items, verdicts)
    return {
        "accuracy": share(verdicts),
        "per_category": {name: share(group) for name, group in groups.items()},
        "num_per_category": {name: len(group) for name, group in groups.items()},
    }


ANSWERS: Final = Kind(
    name="answers",
    title="short answers",
    headline="accuracy",
    maximum=100.0,
    answer_type="text",
    modes={LOCAL: judge_locally},
    default_mode=LOCAL,
    prompt=prompt_for,
    check=check,
    count=count_accuracy,
    details=_answer_details,
)


def _judge_caption(item: Item, text: str, reading: Reading) -> Judgement:
    """How much of a caption's character n-grams are those of the references, 0 to 1 (chrF)."""
    text = final_answer(text)
    value = chrf(text, item.answers or (item.answer,))
    lang = prose_language(text, reading)
    return Judgement(text.strip(), False, lang, value=value)


def chrf(text: str, references: Sequence[str]) -> float:
    """ChrF of a text against the nearest of several references, 0 to 1.

    Raises:
        ConfigError: sacrebleu is not installed.
    """
    try:
        from sacrebleu import sentence_chrf
    except ImportError as error:
        raise ConfigError(
            "captions are scored with sacrebleu: pip install 'lrm-llava[translate]'"
        ) from error
    return float(sentence_chrf(text, list(references)).score) / 100


def _count_captions(items: Sequence[Item], verdicts: Sequence[Verdict], mode: str) -> UnitCounts:
    rows = [(v.unit, "", {0: v.value or 0.0, 1: 1.0}) for v in verdicts]
    return gather(rows, 2, _mean)


def _mean(sums: Array) -> Array:
    """From (sum, number) to the mean in percent."""
    result: Array = np.asarray(100.0 * sums[..., 0] / sums[..., 1])
    return result


def _caption_details(
    items: Sequence[Item], verdicts: Sequence[Verdict], mode: str
) -> dict[str, Any]:
    return {"chrf": sum(v.value or 0.0 for v in verdicts) / len(verdicts)}


CAPTIONS: Final = Kind(
    name="captions",
    title="captions",
    headline="mean chrF",
    maximum=100.0,
    answer_type="caption",
    modes={LOCAL: _judge_caption},
    default_mode=LOCAL,
    prompt=prompt_for,
    check=check,
    count=_count_captions,
    details=_caption_details,
)
