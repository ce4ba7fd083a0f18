"""How far two engines agree on a benchmark: Table 2 of the LRM-LLaVA paper.

Input: the same questions in the same language twice. Output: corpus BLEU and chrF of the first
against the second over distinct English texts (hints, questions, options, free answers), per
language and on average without English, and the texts on which they disagree most, as a review
list. It measures agreement, not correctness. BLEU is not symmetric: the first is the hypothesis.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from llava.errors import ConfigError, DataError
from llava.eval.records import read_json_lines
from lrm_ext.corpus.store import ENGLISH
from lrm_ext.evaluate.items import Item
from lrm_ext.evaluate.registry import Benchmark
from lrm_ext.evaluate.translating import TRANSLATION_DIR, Translation, fields_of, kind_of_folder
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
        first: By the engine that is compared.
        second: By the engine that it is compared with.
    """

    question_id: str
    field: str
    english: str
    first: str
    second: str


@dataclass(frozen=True)
class LanguagePairs:
    """What is compared in one language.

    Attributes:
        pairs: Distinct English texts in both translations.
        num_left_out: Questions that one of both asks in English, which would be no agreement.
    """

    pairs: tuple[Pair, ...]
    num_left_out: int


class Agreement(NamedTuple):
    """Figures of one language, as percentages.

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
    """The texts of two benchmark folders in one language.

    Raises:
        DataError: They have not the same English questions, or one has not the language.
    """
    english = first.read(ENGLISH)
    if [_texts(item) for item in english] != [_texts(item) for item in second.read(ENGLISH)]:
        raise DataError(
            f"{first.folder} and {second.folder} have different English questions; translate the "
            "same version of the benchmark twice"
        )
    unusable = _in_english(first, lang) | _in_english(second, lang)
    return _pairs(english, first.read(lang), second.read(lang), unusable)


def pairs_of_translations(first: Translation, second: Translation) -> LanguagePairs:
    """The same of two translations that are at hand."""
    texts: dict[str, Pair] = {}
    unusable: set[str] = set()
    for ours, theirs in zip(first.outcomes, second.outcomes, strict=True):
        item = ours.parts.item
        if "rejected" in (ours.text.status, theirs.text.status):
            unusable.add(item.question_id)
            continue
        names = {field.name for field in fields_of(item)}
        rows = zip(ours.parts.fields, ours.text.turns, theirs.text.turns, strict=True)
        for field, mine, other in rows:
            if field.name in names and _says_something(field.text):
                pair = Pair(item.question_id, field.name, field.text, mine.text, other.text)
                texts.setdefault(field.text, pair)
    return LanguagePairs(tuple(texts.values()), len(unusable))


def _texts(item: Item) -> tuple[Any, ...]:
    return (item.question_id, *((field.name, field.text) for field in fields_of(item)))


def _in_english(benchmark: Benchmark, lang: str) -> set[str]:
    path = benchmark.folder / TRANSLATION_DIR / f"{lang}.jsonl"
    if not path.is_file():
        return set()
    rows = (row for _, row in read_json_lines(path))
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
        if key in unusable:
            continue
        columns = [fields_of(one) for one in (item, ours[key], theirs[key])]
        for source, mine, other in zip(*columns, strict=False):
            if _says_something(source.text):
                pair = Pair(key, source.name, source.text, mine.text, other.text)
                texts.setdefault(source.text, pair)
    return LanguagePairs(tuple(texts.values()), len(unusable))


def _says_something(text: str) -> bool:
    """Whether it has words: letters, numbers and code are copied by every engine."""
    return len(text.strip()) > 1 and any(piece.kind == UNIT for piece in frame(text))


def measure(found: LanguagePairs, lang: str) -> Agreement:
    """BLEU and chrF of the first translation against the second.

    Raises:
        ConfigError: sacrebleu is not installed.
        DataError: There is nothing to compare.
    """
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise ConfigError(
            "two engines are compared with sacrebleu: pip install 'lrm-llava[translate]'"
        ) from error
    if not found.pairs:
        raise DataError(
            f"nothing to compare in {lang}: all {found.num_left_out} questions are asked in "
            "English by one of both"
        )
    language = get_language(lang)
    usual = "13a" if language.spaced else "char"
    bleu = BLEU(tokenize=_TOKENIZERS.get(language.script, usual))
    ours = [pair.first for pair in found.pairs]
    theirs = [[pair.second for pair in found.pairs]]
    score = bleu.corpus_score(ours, theirs).score
    chrf = CHRF().corpus_score(ours, theirs).score
    signature = str(bleu.get_signature())
    return Agreement(score, chrf, len(found.pairs), found.num_left_out, signature)


def disagreements(found: LanguagePairs, lang: str, limit: int) -> list[dict[str, str]]:
    """The texts on which both disagree most, by chrF, with an empty column to fill in.

    Raises:
        ConfigError: sacrebleu is not installed.
    """
    try:
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise ConfigError(
            "two engines are compared with sacrebleu: pip install 'lrm-llava[translate]'"
        ) from error
    chrf = CHRF()
    scored = [(chrf.sentence_score(p.first, [p.second]).score, p) for p in found.pairs]
    scored.sort(key=lambda one: (one[0], one[1].question_id, one[1].field))
    return [
        {
            "lang": lang,
            "question_id": pair.question_id,
            "field": pair.field,
            "english": pair.english,
            "translation": pair.first,
            "other": pair.second,
            "chrf": f"{score:.1f}",
            "correction": "",
        }
        for score, pair in scored[:limit]
        if pair.first != pair.second
    ]


def summary(
    benchmark: Benchmark, by_lang: Mapping[str, Agreement], names: tuple[str, str]
) -> dict[str, Any]:
    """The figures as JSON: per language, and the mean without English."""
    languages = {lang: found._asdict() for lang, found in by_lang.items()}
    values = list(by_lang.values())
    return {
        "benchmark": benchmark.name,
        "kind": kind_of_folder(benchmark).name,
        "hypothesis": names[0],
        "reference": names[1],
        "languages": languages,
        "mean": {
            "bleu": sum(v.bleu for v in values) / len(values),
            "chrf": sum(v.chrf for v in values) / len(values),
            "num_languages": len(values),
        },
    }


def shared_languages(first: Benchmark, second: Benchmark, wanted: Sequence[str]) -> tuple[str, ...]:
    """The languages to compare: those asked for, else all that both have.

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
    """Who translated a folder's language, for people; the folder itself where it does not say."""
    import json

    path = folder / TRANSLATION_DIR / f"{lang}.json"
    if not path.is_file():
        return str(folder)
    engines = json.loads(path.read_text(encoding="utf-8")).get("engines", [])
    return ", ".join(f"{e['name']} {e['version']}".strip() for e in engines) or str(folder)
