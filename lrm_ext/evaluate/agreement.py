"""Measures how far two engines agree on a benchmark: Table 2 of the LRM-LLaVA paper.

The same questions in the same language twice give corpus BLEU and chrF of the first against the
second over distinct English texts (hints, questions, options, free answers), per language and on
average without English, and the texts on which they disagree most, as a review list. This is
agreement, not correctness. BLEU is not symmetric: the first is the hypothesis.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Final, NamedTuple

from llava.errors import ConfigError, DataError
from llava.eval.records import read_json_lines
from lrm_ext.corpus.store import ENGLISH
from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.registry import Benchmark
from lrm_ext.evaluate.translating import (
    TRANSLATION_DIR,
    Translation,
    fields_of,
    kind_of_folder,
)
from lrm_ext.languages.registry import get_language
from lrm_ext.translate.segment import UNIT, frame

REVIEW_COLUMNS: Final = (
    "lang", "question_id", "field", "english", "translation", "other", "chrf", "correction",
)  # fmt: skip
# sacrebleu's tokenizers by script; texts in other scripts without blanks are cut into characters.
_TOKENIZERS: Final = {"Hans": "zh", "Hant": "zh"}


class Pair(NamedTuple):
    """A text in one language by two engines.

    Attributes:
        question_id: The first question that has it.
        field: Which of its texts.
        english: What it is in English.
        translation: By the engine that is compared.
        other: By the engine that it is compared with.
    """

    question_id: str
    field: str
    english: str
    translation: str
    other: str


@dataclass(frozen=True)
class LanguagePairs:
    """The texts that are compared in one language.

    Attributes:
        pairs: Distinct English texts in both translations.
        num_left_out: Questions that one of both asks in English, which would be no agreement.
    """

    pairs: tuple[Pair, ...]
    num_left_out: int


class Agreement(NamedTuple):
    """The agreement of two engines in one language, in percent.

    Attributes:
        bleu: Corpus BLEU.
        chrf: Corpus chrF.
        num_texts: Distinct texts that were compared.
        num_left_out: See `LanguagePairs`.
        signature: Of BLEU: the version and settings that made the figure.
    """

    bleu: float
    chrf: float
    num_texts: int
    num_left_out: int
    signature: str


def pairs_of_folders(first: Benchmark, second: Benchmark, lang: str) -> LanguagePairs:
    """Pairs the texts of two benchmark folders in one language.

    Raises:
        DataError: They have not the same English questions, or one has not the language.
    """
    english, other = first.read(ENGLISH), second.read(ENGLISH)
    texts, others = ([(i.question_id, fields_of(i)) for i in items] for items in (english, other))
    if texts != others:
        raise DataError(
            f"{first.folder} and {second.folder} have different English questions; translate the "
            "same version of the benchmark twice"
        )
    unusable = _in_english(first, lang) | _in_english(second, lang)
    return _pairs(english, first.read(lang), second.read(lang), unusable)


def pairs_of_translations(first: Translation, second: Translation) -> LanguagePairs:
    """Pairs the texts of two translations that are at hand."""
    texts: dict[str, Pair] = {}
    unusable = {o.item.question_id for o in (*first.rejected, *second.rejected)}
    for ours, theirs in zip(first.outcomes, second.outcomes, strict=True):
        key = ours.item.question_id
        if key in unusable:
            continue
        for (source, mine), (_, other) in zip(ours.reviewed(), theirs.reviewed(), strict=True):
            if _says_something(source.text):
                texts.setdefault(source.text, Pair(key, source.name, source.text, mine, other))
    return LanguagePairs(tuple(texts.values()), len(unusable))


def _in_english(benchmark: Benchmark, lang: str) -> set[str]:
    path = benchmark.folder / TRANSLATION_DIR / f"{lang}.jsonl"
    rows = (row for _, row in read_json_lines(path)) if path.is_file() else ()
    return {str(row["question_id"]) for row in rows if row.get("status") == "rejected"}


def _pairs(
    english: Iterable[Item], first: Iterable[Item], second: Iterable[Item], unusable: set[str]
) -> LanguagePairs:
    ours = {item.question_id: item for item in first}
    theirs = {item.question_id: item for item in second}
    texts: dict[str, Pair] = {}
    for item in english:
        key = item.question_id
        if key not in ours or key not in theirs:
            raise DataError(f"question {key} is in English and not in both translations")
        columns = [fields_of(one) for one in (item, ours[key], theirs[key])]
        for source, mine, other in zip(*columns, strict=False) if key not in unusable else ():
            if _says_something(source.text):
                pair = Pair(key, source.name, source.text, mine.text, other.text)
                texts.setdefault(source.text, pair)
    return LanguagePairs(tuple(texts.values()), len(unusable))


def _says_something(text: str) -> bool:
    """Tells whether it has words: letters, numbers and code are copied by every engine."""
    return len(text.strip()) > 1 and any(piece.kind == UNIT for piece in frame(text))


def _metrics() -> tuple[Any, Any]:
    """Returns the classes of BLEU and chrF.

    Raises:
        ConfigError: sacrebleu is not installed.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise ConfigError(
            "two engines are compared with sacrebleu: pip install 'lrm-llava[translate]'"
        ) from error
    return BLEU, CHRF


def measure(found: LanguagePairs, lang: str) -> Agreement:
    """Measures BLEU and chrF of the first translation against the second.

    Raises:
        ConfigError: sacrebleu is not installed.
        DataError: There is nothing to compare.
    """
    bleu_class, chrf_class = _metrics()
    if not found.pairs:
        raise DataError(
            f"nothing to compare in {lang}: all {found.num_left_out} questions are asked in "
            "English by one of both"
        )
    language = get_language(lang)
    usual = "13a" if language.spaced else "char"
    bleu = bleu_class(tokenize=_TOKENIZERS.get(language.script, usual))
    texts = [p.translation for p in found.pairs], [[p.other for p in found.pairs]]
    scores = bleu.corpus_score(*texts).score, chrf_class().corpus_score(*texts).score
    return Agreement(*scores, len(found.pairs), found.num_left_out, str(bleu.get_signature()))


def disagreements(found: LanguagePairs, lang: str, limit: int) -> list[dict[str, str]]:
    """Returns the texts on which both disagree most, by chrF, with an empty column to fill in.

    Raises:
        ConfigError: sacrebleu is not installed.
    """
    chrf = _metrics()[1]()
    scored = [(chrf.sentence_score(p.translation, [p.other]).score, p) for p in found.pairs]
    scored.sort(key=lambda one: (one[0], one[1].question_id, one[1].field))
    return [
        {"lang": lang, **pair._asdict(), "chrf": f"{score:.1f}", "correction": ""}
        for score, pair in scored[:limit]
        if pair.translation != pair.other
    ]


def summary(
    benchmark: Benchmark, by_lang: Mapping[str, Agreement], names: tuple[str, str]
) -> dict[str, Any]:
    """Returns the agreement as JSON: per language, and the mean without English."""
    return {
        "benchmark": benchmark.name,
        "kind": kind_of_folder(benchmark).name,
        "hypothesis": names[0],
        "reference": names[1],
        "languages": {lang: found._asdict() for lang, found in by_lang.items()},
        "mean": {
            "bleu": fmean(found.bleu for found in by_lang.values()),
            "chrf": fmean(found.chrf for found in by_lang.values()),
            "num_languages": len(by_lang),
        },
    }


def shared_languages(first: Benchmark, second: Benchmark, wanted: Sequence[str]) -> tuple[str, ...]:
    """Returns the languages to compare: those asked for, else all that both have.

    Raises:
        ConfigError: There is none.
    """
    both = set(first.languages()) & set(second.languages()) - {ENGLISH}
    langs = tuple(wanted) or tuple(sorted(both))
    if not langs or ENGLISH in langs:
        raise ConfigError(
            f"no language to compare: {first.folder} has {', '.join(first.languages())}, "
            f"{second.folder} has {', '.join(second.languages())}; English is the source"
        )
    return langs


def engines_of(folder: Path, lang: str) -> str:
    """Names who translated a folder's language; the folder itself if it does not say."""
    path = folder / TRANSLATION_DIR / f"{lang}.json"
    made = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    names = (f"{e['name']} {e['version']}".strip() for e in made.get("engines", []))
    return ", ".join(names) or str(folder)
