"""The kinds of benchmarks by name, and the two kinds without rules of their own.

Those two score further sets (`sets/*.toml`) and the built-in `scenes`: an answer is read in the
language of its question, by the rules for any language. A kind with rules of its own is one module;
it joins by its line in `KINDS`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any, Final

from llava.errors import ConfigError, DataError
from llava.eval.records import without_thinking
from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.kind import (
    LOCAL,
    MISSING,
    OFFICIAL,
    Array,
    Judge,
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
from lrm_ext.evaluate.metrics import CIDER, RULES, OwnerRule, bleu_and_rouge, chrf, cider
from lrm_ext.evaluate.mmbench import MMBENCH
from lrm_ext.evaluate.mme import MME
from lrm_ext.evaluate.pope import POPE
from lrm_ext.evaluate.reading import OTHER
from lrm_ext.evaluate.seed_bench import SEED_BENCH

log = logging.getLogger(__name__)
HALF: Final = 0.5  # of a graded answer that counts as right, question by question
_NO_RULE: Final = {
    OFFICIAL: "no rule of an owner is named (`official = ...` in the set's mapping file)"
}


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
    refused=_NO_RULE,
)


def _judge_caption(item: Item, text: str, reading: Reading, is_scored: bool = True) -> Judgement:
    """Says how much of a caption's character n-grams are those of the references, 0 to 1 (chrF).

    Args:
        item: The request.
        text: The caption.
        reading: The language of the request.
        is_scored: False to leave the value out.
    """
    text = final_answer(text)
    value = chrf(text, _golds(item)) if is_scored else None
    lang = language_of_prose(text, reading.lang) if text.strip() else OTHER
    return Judgement(text.strip(), False, lang, value=value)


def _golds(item: Item) -> tuple[str, ...]:
    return item.answers or (item.answer,)


def _count_values(items: Sequence[Item], verdicts: Sequence[Verdict], mode: str) -> UnitCounts:
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
    count=_count_values,
    details=_caption_details,
    refused=_NO_RULE,
)


@cache
def _by_owner(base_name: str, name: str) -> Kind:
    """Returns a kind with a mode `official`, which reads by an owner's rule in every language.

    Raises:
        ConfigError: There is no such rule for the kind.
    """
    base = KINDS[base_name]
    known = [one for one in RULES if (one == CIDER) == (base is CAPTIONS)]
    if base not in (ANSWERS, CAPTIONS) or name not in known:
        raise ConfigError(
            f"official = {name!r}: {base_name} has no such rule of an owner; choose from "
            f"{', '.join(known)} (for answers or captions)"
        )
    rule, count = RULES[name], base.count
    details: Callable[..., dict[str, Any]] = partial(_owner_details, rule=rule, base=base)
    judge: Judge = partial(_judge_by_owner, rule=rule, name=name)
    if base is CAPTIONS:
        count, details = _count_cider, _corpus_details
        judge = partial(_judge_caption, is_scored=False)
    elif rule.is_graded:
        count = _count_values

    def named(items: Sequence[Item], verdicts: Sequence[Verdict], mode: str) -> dict[str, Any]:
        return {"rule": name, **details(items, verdicts, mode)}

    own = {LOCAL: (base.count, base.details), OFFICIAL: (count, named)}
    return replace(
        base,
        modes={**base.modes, OFFICIAL: judge},
        headlines={OFFICIAL: rule.headline},
        beside=(OFFICIAL,),
        count=lambda items, verdicts, mode: own[mode][0](items, verdicts, mode),
        details=lambda items, verdicts, mode: own[mode][1](items, verdicts, mode),
        refused={},
    )


def _judge_by_owner(
    item: Item, text: str, reading: Reading, *, rule: OwnerRule, name: str
) -> Judgement:
    """Reads an answer by an owner's rule.

    Raises:
        DataError: The rule reads letters, and the question has no options, or they are not known.
    """
    text = without_thinking(text)
    lang = judge_locally(item, text, reading).answer_lang
    if rule.pick is not None and item.answer_type == "letter":
        if item.options:
            letter, guessed = rule.pick(text, item.lettered(), item.question_id)
            return Judgement(letter or OTHER, letter == item.answer, lang, guessed=guessed)
    elif rule.value is not None:
        value = float(rule.value(text, _golds(item)))
        return Judgement(text.strip(), value >= HALF, lang, value=value if rule.is_graded else None)
    raise DataError(
        f"question {item.question_id}: rule {name} of the set's owner reads letters of options, "
        "and none are known; name the questions with --data, or read open ones as local"
    )


def _owner_details(
    items: Sequence[Item], verdicts: Sequence[Verdict], mode: str, *, rule: OwnerRule, base: Kind
) -> dict[str, Any]:
    """Returns what owners report beside their score, and the seed if they guess."""
    found = base.details(items, verdicts, mode)
    if rule.value is not None:
        pairs = zip(items, verdicts, strict=True)
        found["exact_match"] = share(verdict.parsed in _golds(item) for item, verdict in pairs)
    if rule.has_overlap:
        found |= _overlap(items, verdicts)
    if rule.pick is not None:
        read = [v.correct for v in verdicts if not v.guessed and v.parsed not in (OTHER, MISSING)]
        found["accuracy_of_read"] = share(read) if read else None
        found["format_error_share"] = 1 - len(read) / len(verdicts)
    if rule.seed is not None:
        found["seed"] = rule.seed
    return found


def _overlap(items: Sequence[Item], verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Returns mean ROUGE-L and CIDEr as COCO has them; nothing without their package."""
    texts, references = _captions(items, verdicts)
    try:
        rouge = bleu_and_rouge(texts, references)["rouge_l"]
        return {"rouge_l": rouge, "cider": sum(cider(texts, references)) / len(texts)}
    except ConfigError as error:
        log.info("without ROUGE-L and CIDEr: %s", error)
        return {}


def _captions(
    items: Sequence[Item], verdicts: Sequence[Verdict]
) -> tuple[list[str], list[tuple[str, ...]]]:
    """Returns captions, empty where there is none, and the references of each."""
    texts = ["" if v.missing or v.refused else v.parsed for v in verdicts]
    return texts, [_golds(item) for item in items]


def _count_cider(items: Sequence[Item], verdicts: Sequence[Verdict], mode: str) -> UnitCounts:
    """Counts CIDEr; the frequencies of words are those of the whole set on every draw."""
    values = cider(*_captions(items, verdicts))
    rows = ((v.unit, "", {0: x, 1: 1.0}) for v, x in zip(verdicts, values, strict=True))
    return gather(rows, 2, _mean)


def _corpus_details(
    items: Sequence[Item], verdicts: Sequence[Verdict], mode: str
) -> dict[str, Any]:
    return bleu_and_rouge(*_captions(items, verdicts))


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
    """Returns a kind by its name, with an owner's rule after a colon; None if there is none.

    Raises:
        ConfigError: There is no such rule.

    Example:
        >>> list(find_kind("answers:substring").modes)
        ['local', 'official']
    """
    base, _, rule = name.partition(":")
    kind = KINDS.get(_ALIASES.get(base, base))
    return _by_owner(kind.name, rule) if kind is not None and rule else kind


def get_kind(name: str) -> Kind:
    """Returns a kind by its name.

    Raises:
        ConfigError: There is none of this name.
    """
    kind = find_kind(name)
    if kind is None:
        raise ConfigError(f"unknown benchmark {name!r}; choose from {', '.join(KINDS)}")
    return kind
