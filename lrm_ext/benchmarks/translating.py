"""An imported benchmark into other languages, with the engines and checks of the corpus.

Input: a benchmark folder with English questions. Output: a folder that `lrm eval` asks, with
`translation/<lang>.json` (how it was made, counts), `translation/<lang>.jsonl` (what became of each
question) and a review list. Answers of engines are in the cache: after an interruption the same
command goes on from there and gives the same bytes. A question without a good translation is an
error, unless the user wants it in English; then it is counted as that.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from llava.errors import ConfigError, DataError
from llava.files import write_atomically
from lrm_ext.benchmarks.corrections import Correction, Matched, match, write_table
from lrm_ext.benchmarks.folder import DESCRIPTION_FILE, read_description
from lrm_ext.benchmarks.importing import OpenQuestions, version_of, write_folder
from lrm_ext.benchmarks.items import Item, read_items
from lrm_ext.benchmarks.kind import Kind
from lrm_ext.benchmarks.kinds import get_kind
from lrm_ext.benchmarks.plain import ANSWERS
from lrm_ext.benchmarks.prompts import LLAVA
from lrm_ext.benchmarks.registry import Benchmark
from lrm_ext.benchmarks.translated import Parts, fields_of, put_together, take_apart
from lrm_ext.corpus.store import ENGLISH, Text
from lrm_ext.translation.engines.base import AheadEngine, Usage
from lrm_ext.translation.runner import Job, build_translator, describe_engines
from lrm_ext.translation.segment import build_texts

log = logging.getLogger(__name__)

TRANSLATION_DIR: Final = "translation"
REVIEW_COLUMNS: Final = (
    "lang", "question_id", "field", "english", "translation", "why", "correction",
)  # fmt: skip
IN_ENGLISH: Final = "in English"
# So many questions are asked for at once, and then shown as done.
_CHUNK: Final = 256


@dataclass(frozen=True)
class Outcome:
    """What became of a question.

    Attributes:
        parts: The question taken apart.
        text: Its texts in the language, with status and reason.
        num_corrected: How many of its texts people wrote.
    """

    parts: Parts
    text: Text
    num_corrected: int


@dataclass(frozen=True)
class Translation:
    """A benchmark in one language, not written yet.

    Attributes:
        lang: The language.
        outcomes: Of each question.
        made_by: Engines, checks and glossary, for people and for comparing.
        stale: Corrections that were not applied, and why.
        work: What happened to texts.
        usage: What it cost.
    """

    lang: str
    outcomes: tuple[Outcome, ...]
    made_by: dict[str, Any]
    stale: tuple[str, ...]
    work: Counter[str]
    usage: Usage

    @property
    def counts(self) -> Counter[str]:
        """Questions by status, and by status and reason."""
        counts: Counter[str] = Counter()
        for outcome in self.outcomes:
            counts[outcome.text.status] += 1
            counts["corrected"] += outcome.num_corrected > 0
            for reason in (outcome.text.reason or "").split("; "):
                if reason:
                    counts[f"{outcome.text.status}: {reason.partition(':')[0]}"] += 1
        return counts

    @property
    def rejected(self) -> tuple[Outcome, ...]:
        """Those without a good translation."""
        return tuple(o for o in self.outcomes if o.text.status == "rejected")


def kind_of_folder(benchmark: Benchmark) -> Kind:
    """Whose rules score a benchmark folder; short answers where it does not say."""
    return ANSWERS if benchmark.kind is None else get_kind(benchmark.kind)


def translate_items(
    items: Sequence[Item],
    kind: Kind,
    job: Job,
    corrections: Iterable[Correction] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Translation:
    """Translate questions.

    Args:
        items: The questions in English.
        kind: Whose rules score them.
        job: Language, engines, checks; its corpus says nothing here.
        corrections: What people wrote, in any language; it wins.
        progress: Called with the numbers of questions done and in all.

    Raises:
        ConfigError: An unknown language or engine, or English.
        DataError: A correction contradicts another one, or the cache cannot be used.
        EngineError: An engine cannot go on. Run again to go on from there.
    """
    if job.target == ENGLISH:
        raise ConfigError("the questions are English; choose another language to translate into")
    matched: Matched = match(corrections, items, job.target)
    parts = [take_apart(item, kind, job.target, matched.texts) for item in items]
    checker = job.checker()
    check = checker.check_rows if checker else None
    translator = build_translator(job)
    try:
        ahead = (e.rows_ahead for e in translator.engines if isinstance(e, AheadEngine))
        size = max(_CHUNK, *ahead, 0)
        outcomes: list[Outcome] = []
        for start in range(0, len(parts), size):
            some = parts[start : start + size]
            done = translator.translate(unit for one in some for unit in one.plan.units)
            texts = build_texts([one.plan for one in some], done, check)
            for one, text in zip(some, texts, strict=True):
                num = sum(field.key in matched.texts for field in one.fields)
                outcomes.append(Outcome(one, text, num))
            progress(len(outcomes), len(parts))
        made_by = describe_engines(job, translator)
        return Translation(
            job.target, tuple(outcomes), made_by, matched.stale, translator.counts, translator.usage
        )
    finally:
        translator.close()


@dataclass(frozen=True)
class Target:
    """Where a translated benchmark is written.

    Attributes:
        out: The folder.
        source: The benchmark that is translated.
        english: Its questions.
        with_english: Questions without a good translation are asked in English.
        replaces: Make a language anew that is there and was made otherwise.
    """

    out: Path
    source: Benchmark
    english: tuple[Item, ...]
    with_english: bool = False
    replaces: bool = False

    @property
    def kind(self) -> Kind:
        """Whose rules score it."""
        return kind_of_folder(self.source)

    @property
    def version(self) -> str:
        """What the English questions are called."""
        return version_of(Path(self._source_name), self.english)

    @property
    def _source_name(self) -> str:
        if (self.source.folder / DESCRIPTION_FILE).is_file():
            described = read_description(self.source.folder)
            return str(described["files"].get(ENGLISH, {}).get("source") or self.source.name)
        return self.source.name

    def write(self, lang: str, items: tuple[Item, ...], **notes: Any) -> OpenQuestions:
        """Write one language of the folder."""
        return write_folder(
            self.out,
            self.kind.name,
            lang,
            items,
            self.source.image_root,
            Path(self._source_name),
            self.source.prompt or LLAVA,
            notes,
        )


def open_target(
    source: Benchmark, out: Path, languages: Sequence[str], with_english: bool, replaces: bool
) -> Target:
    """Read the English questions and check that a folder may be written.

    Raises:
        DataError: There are no English questions, or the folder has other ones, or a language that
            was not made by this command.
    """
    target = Target(out, source, tuple(source.read(ENGLISH)), with_english, replaces)
    old = out / f"{ENGLISH}.jsonl"
    if old.is_file() and tuple(read_items(old, ENGLISH)) != target.english:
        others = {path.stem for path in out.glob("*.jsonl")} - {ENGLISH, *languages}
        if not replaces or others:
            raise DataError(
                f"{out}: its English questions are not those of {source.folder}; choose another "
                "folder, or translate all of its languages anew with --replace "
                f"(it has {', '.join(sorted(p.stem for p in out.glob('*.jsonl')))})"
            )
        for path in out.glob("*.jsonl"):
            path.unlink()
        (out / DESCRIPTION_FILE).unlink(missing_ok=True)
    for lang in languages:
        made = (out / TRANSLATION_DIR / f"{lang}.json").is_file()
        if (out / f"{lang}.jsonl").is_file() and not made and not replaces:
            raise DataError(
                f"{out}: has questions in {lang} that people wrote or imported; to replace them "
                "use --replace"
            )
    if not (out / f"{ENGLISH}.jsonl").is_file():
        target.write(ENGLISH, target.english)
    return target


def write_translation(target: Target, translation: Translation) -> OpenQuestions:
    """Write one language: questions, what became of each, and the review list.

    Raises:
        DataError: Questions have no good translation, and English is not wanted; the review list
            is written nevertheless.
    """
    lang, folder = translation.lang, target.out / TRANSLATION_DIR
    review = folder / f"{lang}.review.tsv"
    write_table(review, REVIEW_COLUMNS, review_rows(translation))
    rejected = translation.rejected
    if rejected and not target.with_english:
        reasons = Counter((o.text.reason or "").partition(":")[0] for o in rejected)
        listed = ", ".join(f"{reason} {n}" for reason, n in reasons.most_common())
        raise DataError(
            f"{target.source.name} in {lang}: {len(rejected)} of {len(translation.outcomes)} "
            f"questions have no good translation ({listed}); nothing was written but {review}: "
            "fill in its column `correction` and give it as --corrections, name a further "
            "--engine, or ask these questions in English, counted, with --with-english"
        )
    items: list[Item] = []
    lines: list[str] = []
    counts = translation.counts
    for outcome in translation.outcomes:
        english = outcome.parts.item
        item, num = replace(english, lang=lang), 0
        if outcome.text.status != "rejected":
            item, num = put_together(outcome.parts, outcome.text, lang)
        counts["options told apart"] += num
        items.append(item)
        lines.append(json.dumps(_record(outcome), ensure_ascii=False) + "\n")
    notes = {"num_in_english": len(rejected)} if rejected else {}
    written = target.write(lang, tuple(items), **notes)
    write_atomically(folder / f"{lang}.jsonl", "".join(lines))
    made = {
        "english": target.version,
        **translation.made_by,
        "counts": {name: n for name, n in sorted(counts.items()) if n},
        IN_ENGLISH: len(rejected),
        "corrections not applied": list(translation.stale),
    }
    write_atomically(folder / f"{lang}.json", json.dumps(made, indent=1, ensure_ascii=False))
    return written


def _record(outcome: Outcome) -> dict[str, Any]:
    texts = json.dumps([field.text for field in outcome.parts.fields])
    record = {
        "question_id": outcome.parts.item.question_id,
        "status": outcome.text.status,
        "engine": outcome.text.engine,
        "reason": outcome.text.reason,
        "corrected": outcome.num_corrected,
        "quality": outcome.text.quality,
        "source": hashlib.sha256(texts.encode()).hexdigest()[:16],
    }
    return {key: value for key, value in record.items() if value is not None}


def review_rows(translation: Translation) -> list[dict[str, str]]:
    """Texts of questions that did not pass, each once, with an empty column to fill in."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for outcome in translation.outcomes:
        if outcome.text.status == "ok":
            continue
        names = {field.name for field in fields_of(outcome.parts.item)}
        for field, turn in zip(outcome.parts.fields, outcome.text.turns, strict=True):
            if field.name in names and field.key not in rows:
                rows[field.key] = {
                    "lang": translation.lang,
                    "question_id": outcome.parts.item.question_id,
                    "field": field.name,
                    "english": field.text,
                    "translation": turn.text,
                    "why": f"{outcome.text.status}: {outcome.text.reason or ''}",
                    "correction": "",
                }
    return list(rows.values())
