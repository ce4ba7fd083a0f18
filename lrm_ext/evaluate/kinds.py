"""The kinds of benchmarks by name, and the two kinds without rules of their own.

Those two score further sets (`sets/*.toml`) and the built-in `scenes`: an answer is read in the
language of its question, by the rules for any language. A kind with rules of its own is one module;
it joins by its line in `KINDS`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from llava.errors import ConfigError
from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.kind import (
    LOCAL,
    Array,
    Judgement,
    Kind,
    Reading,
    UnitCounts,
    Verdict,
    count_accuracy,
    final_answer,
    gather,
    judge_locally,
    language_of_prose,
    share,
    shares_by,
)
from lrm_ext.evaluate.mmbench import MMBENCH
from lrm_ext.evaluate.mme import MME
from lrm_ext.evaluate.pope import POPE
from lrm_ext.evaluate.reading import OTHER
from lrm_ext.evaluate.seed_bench import SEED_BENCH


def _answer_details(
    items: Sequence[Item], verdicts: Sequence[Verdict], mode: str
) -> dict[str, Any]:
    return {
        "accuracy": share(v.correct for v in verdicts),
        **shares_by("category", ((v.category, v.correct) for v in verdicts)),
    }


ANSWERS: Final = Kind(
    name="answers",
    title="short answers",
    headline="accuracy",
    maximum=100.0,
    answer_type="text",
    modes={LOCAL: judge_locally},
    default_mode=LOCAL,
    count=count_accuracy,
    details=_answer_details,
)


def _judge_caption(item: Item, text: str, reading: Reading) -> Judgement:
    """Says how much of a caption's character n-grams are those of the references, 0 to 1 (chrF)."""
    text = final_answer(text)
    value = chrf(text, item.answers or (item.answer,))
    lang = language_of_prose(text, reading.lang) if text.strip() else OTHER
    return Judgement(text.strip(), False, lang, value=value)


def chrf(text: str, references: Sequence[str]) -> float:
    """Returns chrF of a text against the nearest of several references, 0 to 1.

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
    return gather(((v.unit, "", {0: v.value or 0.0, 1: 1.0}) for v in verdicts), 2, _mean)


def _mean(sums: Array) -> Array:
    """Turns (sum, number) into the mean in percent; no share, whose interval would be Wilson's."""
    return 100.0 * sums[..., 0] / sums[..., 1]


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
    count=_count_captions,
    details=_caption_details,
)

KINDS: Final = {
    "mme": MME,
    "pope": POPE,
    "seed_bench": SEED_BENCH,
    "mmbench": MMBENCH,
    "answers": ANSWERS,
    "captions": CAPTIONS,
}
PAPER: Final = tuple(name for name, kind in KINDS.items() if kind.files is not None)
_ALIASES: Final = {"seed": "seed_bench", "seed-bench": "seed_bench", "seedbench": "seed_bench"}


def find_kind(name: str) -> Kind | None:
    """Returns a kind by its name; None if there is none of this name."""
    return KINDS.get(_ALIASES.get(name, name))


def get_kind(name: str) -> Kind:
    """Returns a kind by its name.

    Raises:
        ConfigError: There is none of this name.
    """
    kind = find_kind(name)
    if kind is None:
        raise ConfigError(f"unknown benchmark {name!r}; choose from {', '.join(KINDS)}")
    return kind
