"""Runs the checks over a text or a row and puts their figures together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType

from llava.data.sample import Turn
from lrm_ext.translation.quality.answer import check_answer
from lrm_ext.translation.quality.copying import check_copy
from lrm_ext.translation.quality.language_id import check_language
from lrm_ext.translation.quality.length import check_ending, check_length
from lrm_ext.translation.quality.mojibake import check_mojibake
from lrm_ext.translation.quality.near import check_near
from lrm_ext.translation.quality.pair import Pair
from lrm_ext.translation.quality.protected import check_numbers, check_protected
from lrm_ext.translation.quality.repetition import check_repetition
from lrm_ext.translation.quality.script import check_script
from lrm_ext.translation.quality.structure import check_order, check_structure
from lrm_ext.translation.quality.thresholds import Thresholds, get_thresholds
from lrm_ext.translation.quality.verdict import Finding, Measured, Verdict

Check = Callable[[Pair, Thresholds], Measured | None]

# In this order; the first that fails names a row's fault in tables.
CHECKS: Mapping[str, Check] = MappingProxyType(
    {
        "structure": check_structure,
        "mojibake": check_mojibake,
        "script": check_script,
        "copy": check_copy,
        "language": check_language,
        "near": check_near,
        "protected": check_protected,
        "numbers": check_numbers,
        "answer": check_answer,
        "repetition": check_repetition,
        "length": check_length,
        "ending": check_ending,
    }
)
# Turns are short; these see more in all turns of a row together.
_OF_ROWS = ("language", "near", "length")


def check_text(
    source: str,
    target: str,
    source_lang: str,
    target_lang: str,
    *,
    thresholds: Thresholds | None = None,
) -> Verdict:
    """Check one text.

    Args:
        source: The text.
        target: Its translation.
        source_lang: Code of the text's language.
        target_lang: Code of the translation's language.
        thresholds: What passes; the language's own if left out.

    Raises:
        ConfigError: A language is unknown, or what a check needs is not installed.
    """
    limits = thresholds or get_thresholds(target_lang)
    pair = Pair(source, target, source_lang, target_lang)
    return _verdict(_measure(pair, limits, CHECKS), limits)


def check_turns(
    source_turns: Sequence[Turn],
    target_turns: Sequence[Turn],
    source_lang: str,
    target_lang: str,
    *,
    thresholds: Thresholds | None = None,
) -> Verdict:
    """Check one row: every turn, and all turns together.

    Args:
        source_turns: The row's turns.
        target_turns: Their translations.
        source_lang: Code of the row's language.
        target_lang: Code of the translation's language.
        thresholds: What passes; the language's own if left out.

    Raises:
        ConfigError: A language is unknown, or what a check needs is not installed.
    """
    limits = thresholds or get_thresholds(target_lang)
    worst = {"structure": check_order(source_turns, target_turns)}
    texts = [(s.text, t.text) for s, t in zip(source_turns, target_turns, strict=False)]
    for source, target in texts:
        pair = Pair(source, target, source_lang, target_lang)
        _keep_worst(worst, _measure(pair, limits, CHECKS))
    if len(texts) > 1:
        sources, targets = zip(*texts, strict=True)
        pair = Pair("\n".join(sources), "\n".join(targets), source_lang, target_lang)
        _keep_worst(worst, _measure(pair, limits, _OF_ROWS))
    return _verdict(worst, limits)


def _measure(pair: Pair, thresholds: Thresholds, names: Iterable[str]) -> dict[str, Measured]:
    found = ((name, CHECKS[name](pair, thresholds)) for name in names)
    return {name: measured for name, measured in found if measured is not None}


def _keep_worst(worst: dict[str, Measured], found: Mapping[str, Measured]) -> None:
    for name, measured in found.items():
        if name not in worst or measured.value > worst[name].value:
            worst[name] = measured


def _verdict(measured: Mapping[str, Measured], thresholds: Thresholds) -> Verdict:
    findings = tuple(
        Finding(name, measured[name].value, thresholds.limits[name], measured[name].message)
        for name in CHECKS
        if name in measured and measured[name].value > thresholds.limits[name]
    )
    return Verdict(findings, {name: round(float(m.value), 4) for name, m in measured.items()})
