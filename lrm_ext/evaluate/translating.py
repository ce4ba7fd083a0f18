"""An imported benchmark into other languages, with the engines and checks of the corpus.

Input: a benchmark folder with English questions. Output: a folder that `lrm eval` asks, with
`translation/<lang>.json` (how it was made, counts), `translation/<lang>.jsonl` (what became of each
question) and a review list. Answers of engines are in the cache: after an interruption the same
command goes on from there and gives the same bytes. A question without a good translation is an
error, unless the user wants it in English; then it is counted as that.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.sample import Turn
from llava.errors import ConfigError, DataError
from llava.files import write_atomically
from lrm_ext.corpus.store import ENGLISH, CorpusRow, CorpusText
from lrm_ext.evaluate.importing import OpenQuestions, version_of, write_folder
from lrm_ext.evaluate.items import LLAVA, Item, prompt_for, read_items
from lrm_ext.evaluate.kind import Kind
from lrm_ext.evaluate.kinds import DESCRIPTION_FILE, get_kind, read_description
from lrm_ext.evaluate.plain import ANSWERS
from lrm_ext.evaluate.registry import Benchmark
from lrm_ext.languages.registry import Language, answer_request, get_language
from lrm_ext.translate.engines.base import AheadEngine, Usage
from lrm_ext.translate.runner import Job, build_translator, describe_engines
from lrm_ext.translate.segment import Given, RowPlan, build_texts, plan_row

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
    text: CorpusText
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


HINT: Final = "hint"
QUESTION: Final = "question"
TEXT: Final = "text"
_ASKED: Final = (HINT, QUESTION, TEXT)
# Of these an expected answer is text in the language; of the others it is a letter, yes or no.
_FREE: Final = ("text", "caption")

# From question, hint, options and language to what the model is asked.
Prompt = Callable[[str, str, Sequence[str], Language], str]


class Field(NamedTuple):
    """One text of a question.

    Attributes:
        name: hint, question, text, "option A", ..., "answer 1", ...
        text: What it is in English.
        asked: The question that it belongs to; empty for the question itself.
    """

    name: str
    text: str
    asked: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """What is translated once: rotations of a question share it."""
        return self.text, self.asked


@dataclass(frozen=True)
class Parts:
    """A question taken apart.

    Attributes:
        item: The question in English.
        fields: Its texts, each a turn of `plan`.
        plan: What the translator is given.
        prompt: How the prompt is made; None where it is none of ours, so that all of it is
            translated as `text`.
    """

    item: Item
    fields: tuple[Field, ...]
    plan: RowPlan
    prompt: Prompt | None


def take_apart(
    item: Item, kind: Kind, target: str, corrections: Mapping[tuple[str, str], str]
) -> Parts:
    """Take a question apart.

    Args:
        item: The question in English.
        kind: Its benchmark's rules.
        target: Code of the language to translate into.
        corrections: What people wrote, by `Field.key`: no engine is asked for it.
    """
    prompt = _prompt_of(item, kind)
    fields = fields_of(item)
    if prompt is None and item.question:
        fields = (*fields, Field(TEXT, item.text))
    turns = tuple(Turn("human" if f.name in _ASKED else "gpt", f.text) for f in fields)
    row = CorpusRow(item.question_id, None, None, item.category, True, turns)
    plan = plan_row(row, target)
    parts = tuple(
        (Given(corrections[field.key]),) if field.key in corrections else turn
        for field, turn in zip(fields, plan.turns, strict=True)
    )
    return Parts(item, fields, plan._replace(turns=parts), prompt)


def fields_of(item: Item) -> tuple[Field, ...]:
    """The texts of a question that are translated: those that people review, too."""
    question = item.question or item.text
    fields = [Field(HINT, item.hint)] if item.hint else []
    fields.append(Field(QUESTION, question))
    fields += [
        Field(f"option {letter}", text, question) for letter, text in item.lettered().items()
    ]
    if item.answer_type in _FREE and not item.answer_lang:
        texts = dict.fromkeys((item.answer, *item.answers))
        fields += [Field(f"answer {i}", text, question) for i, text in enumerate(texts, 1)]
    return tuple(fields)


def _prompt_of(item: Item, kind: Kind) -> Prompt | None:
    """How the prompt was made, found by making it again in English."""
    english = get_language(ENGLISH)
    answered_in_english: tuple[Prompt, ...] = (_in_english,) if item.answer_lang == ENGLISH else ()
    for make in (_plain, *answered_in_english, kind.prompt, prompt_for, _with_hint):
        if make(item.question or item.text, item.hint, item.options, english) == item.text:
            return make
    return None


def _plain(question: str, hint: str, options: Sequence[str], language: Language) -> str:
    return f"{hint}\n{question}" if hint else question


def _with_hint(question: str, hint: str, options: Sequence[str], language: Language) -> str:
    return f"{_plain(question, hint, options, language)}\n{language.short_answer}"


def _in_english(question: str, hint: str, options: Sequence[str], language: Language) -> str:
    """Of a set whose answers are English in every language; there, English needs no request."""
    request = "" if language.code == ENGLISH else f"{answer_request(language.code, ENGLISH)}\n"
    return f"{_plain(question, hint, options, language)}\n{request}{language.short_answer}"


def put_together(parts: Parts, text: CorpusText, target: str) -> tuple[Item, int]:
    """The question in the language.

    Args:
        parts: The question taken apart.
        text: What became of the plan.
        target: Code of the language.

    Returns:
        The question, and how many of its options got their English behind them because they were
        the same as another one.

    Raises:
        DataError: A text holds an image token.
    """
    item, language = parts.item, get_language(target)
    values: dict[str, str] = {}
    for field, turn in zip(parts.fields, text.turns, strict=True):
        values[field.name] = turn.text
        if DEFAULT_IMAGE_TOKEN in values[field.name]:
            raise DataError(
                f"question {item.question_id}: {field.name} holds {DEFAULT_IMAGE_TOKEN} in "
                f"{target}; the picture is named by `image` alone. Correct it"
            )
    names = [f"option {letter}" for letter in item.lettered()]
    options, num_doubled = _told_apart([values[name] for name in names], item.options)
    asked = values.get(TEXT) or values[QUESTION]
    if parts.prompt is not None:
        asked = parts.prompt(values[QUESTION], values.get(HINT, ""), options, language)
    free = {f.text: values[f.name] for f in parts.fields if f.name.startswith("answer ")}
    made = replace(
        item,
        text=asked,
        lang=target,
        options=options,
        question=values[QUESTION] if item.question else "",
        hint=values.get(HINT, ""),
        answer=free.get(item.answer, item.answer),
        answers=tuple(free.get(answer, answer) for answer in item.answers),
    )
    return made, num_doubled


def _told_apart(texts: Sequence[str], english: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """Options that are the same in the language, and were not in English, get that behind them."""
    groups: dict[str, set[str]] = {}
    for text, source in zip(texts, english, strict=True):
        groups.setdefault(text.strip().casefold(), set()).add(source.strip().casefold())
    told: list[str] = []
    num = 0
    for text, source in zip(texts, english, strict=True):
        is_same = len(groups[text.strip().casefold()]) > 1
        told.append(f"{text} ({source})" if is_same else text)
        num += is_same
    return tuple(told), num


CORRECTIONS_FILE: Final = "corrections.tsv"
COLUMNS: Final = ("lang", "question_id", "field", "english", "correction")
_DELIMITERS: Final = ("\t", ";", ",")


class Correction(NamedTuple):
    """What somebody wrote.

    Attributes:
        lang: Language that it is in.
        question_id: The question.
        field: Which of its texts.
        english: That text when it was corrected.
        correction: What it must be in the language.
    """

    lang: str
    question_id: str
    field: str
    english: str
    correction: str


def read_corrections(path: Path) -> list[Correction]:
    """Read the filled rows of a review list, or a file of corrections.

    Raises:
        DataError: It cannot be read, lacks a column, or corrects one text in two ways.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: corrections cannot be read: {error}") from error
    head = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=head.count)
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    if missing := [name for name in COLUMNS if name not in (rows.fieldnames or ())]:
        raise DataError(
            f"{path}: no column {', '.join(missing)}; expected {', '.join(COLUMNS)} in the first "
            "line, with tabs, commas or semicolons between them"
        )
    found: dict[tuple[str, ...], Correction] = {}
    for row in rows:
        one = Correction(*((row[name] or "").strip() for name in COLUMNS))
        if not one.correction:
            continue
        where = f"{path}:{rows.line_num}: question {one.question_id}, {one.field}"
        if DEFAULT_IMAGE_TOKEN in one.correction:
            raise DataError(f"{where}: the correction holds {DEFAULT_IMAGE_TOKEN}; take it out")
        if found.setdefault(one[:3], one) != one:
            raise DataError(f"{where}: it is corrected twice, differently; keep one of the rows")
    return list(found.values())


def merge(old: Iterable[Correction], new: Iterable[Correction]) -> list[Correction]:
    """All corrections, sorted; a new one replaces the old one of the same text."""
    merged = {one[:3]: one for one in (*old, *new)}
    return [merged[key] for key in sorted(merged)]


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Write a table with tabs, as a spreadsheet reads it."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, file.getvalue())


def write_corrections(path: Path, corrections: Iterable[Correction]) -> None:
    """Write a file of corrections."""
    write_table(path, COLUMNS, (one._asdict() for one in corrections))


class Matched(NamedTuple):
    """Corrections of one language beside the questions.

    Attributes:
        texts: Those that hold, by `Field.key`.
        stale: Those whose English is another by now, or whose question is gone, and why.
    """

    texts: Mapping[tuple[str, str], str]
    stale: tuple[str, ...]


def match(corrections: Iterable[Correction], items: Iterable[Item], lang: str) -> Matched:
    """Find the texts that corrections are for.

    Rotations of a question have the same texts: what is corrected in one of them is so in all.

    Args:
        corrections: Of any languages.
        items: The questions in English.
        lang: The language to translate into.

    Raises:
        DataError: The same text, asked in the same question, is corrected in two ways.
    """
    ours = [one for one in corrections if one.lang == lang]
    wanted = {one.question_id for one in ours}
    fields: dict[tuple[str, str], Field] = {
        (item.question_id, field.name): field
        for item in items
        if item.question_id in wanted
        for field in fields_of(item)
    }
    texts: dict[tuple[str, str], str] = {}
    stale: list[str] = []
    for one in ours:
        field = fields.get((one.question_id, one.field))
        if field is None:
            stale.append(f"{one.question_id}, {one.field}: there is no such text any more")
        elif " ".join(field.text.split()) != " ".join(one.english.split()):
            stale.append(
                f"{one.question_id}, {one.field}: corrected when it was {one.english!r}, now it "
                f"is {field.text!r}"
            )
        elif texts.setdefault(field.key, one.correction) != one.correction:
            raise DataError(
                f"question {one.question_id}, {one.field}: {field.text!r} is corrected in "
                f"{lang} both as {texts[field.key]!r} and as {one.correction!r}; rotations of a "
                "question share their texts, so keep one"
            )
    return Matched(texts, tuple(stale))
