"""Translates an imported benchmark, with the engines and checks of the corpus.

A benchmark folder with English questions becomes a folder that `lrm eval` asks, with
`translation/<lang>.json` (how it was made, counts), `translation/<lang>.jsonl` (what became of each
question) and a review list. Answers of engines are in the cache: after an interruption the same
command goes on from there and gives the same bytes. A question without a good translation is an
error, unless the user wants it in English; then it is counted as that.

Two translations of the same questions give corpus BLEU and chrF of the first against the second
over distinct English texts (hints, questions, options, free answers), per language and on average
without English, as in Table 2 of the LRM-LLaVA paper, and the texts on which they disagree most, as
a review list. This is agreement, not correctness. BLEU is not symmetric: the first is the
hypothesis.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, Final, NamedTuple

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.sample import Turn
from llava.errors import ConfigError, DataError
from llava.eval.records import read_json_lines
from llava.files import write_atomically
from lrm_ext.corpus.store import ENGLISH, CorpusRow, CorpusText
from lrm_ext.evaluate.items import LLAVA, Item, Prompt, bare_prompt, llava_prompt, read_items
from lrm_ext.evaluate.kind import Kind
from lrm_ext.evaluate.kinds import ANSWERS, get_kind
from lrm_ext.evaluate.registry import (
    DESCRIPTION_FILE,
    Benchmark,
    read_description,
    version_of,
    write_folder,
)
from lrm_ext.languages.registry import get_language
from lrm_ext.translate.runner import Job, build_translator, describe_engines
from lrm_ext.translate.segment import UNIT, Given, RowPlan, build_texts, frame, plan_row

TRANSLATION_DIR: Final = "translation"
REVIEW_COLUMNS: Final = (
    "lang", "question_id", "field", "english", "translation", "why", "correction",
)  # fmt: skip
IN_ENGLISH: Final = "in English"
# Number of questions that are asked for at once, and then shown as done.
_CHUNK: Final = 256
HINT: Final = "hint"
QUESTION: Final = "question"
TEXT: Final = "text"
_ASKED: Final = (HINT, QUESTION, TEXT)
# Of these an expected answer is text in the language; of the others it is a letter, yes or no.
_FREE: Final = ("text", "caption")


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
        """The key of a translation: rotations of a question share it."""
        return self.text, self.asked


@dataclass(frozen=True)
class ItemOutcome:
    """The translation of a question, good or not.

    Attributes:
        item: The question in English.
        fields: Its texts, each a turn of `text`.
        text: Its texts in the language, with status and reason.
        num_corrected: How many of them people wrote.
    """

    item: Item
    fields: tuple[Field, ...]
    text: CorpusText
    num_corrected: int

    @property
    def is_rejected(self) -> bool:
        """Whether it has no good translation."""
        return self.text.status == "rejected"

    def reviewed(self) -> Iterator[tuple[Field, str]]:
        """Yields the texts that people review, in English and in the language."""
        turns = zip(self.fields, self.text.turns, strict=True)
        return ((field, turn.text) for field, turn in turns if field.name != TEXT)


@dataclass(frozen=True)
class Translation:
    """A benchmark in one language, not written yet.

    Attributes:
        lang: The language.
        outcomes: One for each question.
        made_by: Engines, checks and glossary, for people and for comparing.
        stale: Corrections that were not applied, and why.
    """

    lang: str
    outcomes: tuple[ItemOutcome, ...]
    made_by: dict[str, Any]
    stale: tuple[str, ...]

    @property
    def counts(self) -> Counter[str]:
        """Questions by status, and by status and reason."""
        counts: Counter[str] = Counter()
        for outcome in self.outcomes:
            status, reasons = outcome.text.status, (outcome.text.reason or "").split("; ")
            counts[status] += 1
            counts["corrected"] += outcome.num_corrected > 0
            counts.update(f"{status}: {r.partition(':')[0]}" for r in reasons if r)
        return counts

    @property
    def rejected(self) -> tuple[ItemOutcome, ...]:
        """Questions without a good translation."""
        return tuple(outcome for outcome in self.outcomes if outcome.is_rejected)


def kind_of_folder(benchmark: Benchmark) -> Kind:
    """Returns whose rules score a benchmark folder; short answers if it does not say."""
    return ANSWERS if benchmark.kind is None else get_kind(benchmark.kind)


def translate_items(
    items: Sequence[Item],
    job: Job,
    corrections: Iterable[Correction] = (),
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Translation:
    """Translates questions.

    Args:
        items: The questions in English.
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
    corrected, stale = match(corrections, items, job.target)
    plans = []
    for item in items:
        fields = fields_of(item)
        if item.question and _prompt_of(item) is None:
            fields = (*fields, Field(TEXT, item.text))
        plans.append((item, fields, _plan(item, fields, job.target, corrected)))
    checker = job.checker()
    check = checker.check_rows if checker else None
    outcomes: list[ItemOutcome] = []
    with closing(build_translator(job)) as translator:
        size = max(_CHUNK, translator.rows_ahead)
        for start in range(0, len(plans), size):
            some = plans[start : start + size]
            done = translator.translate(unit for _, _, plan in some for unit in plan.units)
            texts = build_texts([plan for _, _, plan in some], done, check)
            outcomes += (
                ItemOutcome(item, fields, text, sum(field.key in corrected for field in fields))
                for (item, fields, _), text in zip(some, texts, strict=True)
            )
            progress(len(outcomes), len(plans))
        made_by = describe_engines(job, translator)
    return Translation(job.target, tuple(outcomes), made_by, tuple(stale))


def _plan(
    item: Item, fields: Iterable[Field], target: str, corrections: Mapping[tuple[str, str], str]
) -> RowPlan:
    """Splits a question into the texts to translate; no engine is asked for what people wrote."""
    turns = tuple(Turn("human" if f.name in _ASKED else "gpt", f.text) for f in fields)
    plan = plan_row(CorpusRow(item.question_id, None, None, item.category, True, turns), target)
    parts = (
        (Given(corrections[field.key]),) if field.key in corrections else turn
        for field, turn in zip(fields, plan.turns, strict=True)
    )
    return plan._replace(turns=tuple(parts))


@dataclass(frozen=True)
class Target:
    """The folder that a translated benchmark is written to.

    Attributes:
        out: The folder.
        source: The benchmark that is translated.
        english: Its questions.
        with_english: Questions without a good translation are asked in English.
    """

    out: Path
    source: Benchmark
    english: tuple[Item, ...]
    with_english: bool = False

    @property
    def made_from(self) -> Path:
        """The file that the English questions were made from; it names their version."""
        name = ""
        if (self.source.folder / DESCRIPTION_FILE).is_file():
            english = read_description(self.source.folder)["files"].get(ENGLISH, {})
            name = str(english.get("source") or "")
        return Path(name or self.source.name)

    def write(self, lang: str, items: Sequence[Item], **notes: Any) -> str:
        """Writes one language of the folder; returns the version of its questions."""
        kind, source = kind_of_folder(self.source).name, self.source
        return write_folder(
            self.out, kind, lang, items, source.image_root, self.made_from,
            source.prompt or LLAVA, notes,
        )  # fmt: skip


def open_target(
    source: Benchmark, out: Path, languages: Sequence[str], with_english: bool, replaces: bool
) -> Target:
    """Reads the English questions and checks that a folder may be written.

    Args:
        source: The benchmark.
        out: The folder.
        languages: What it is translated into.
        with_english: Questions without a good translation are asked in English.
        replaces: Make a language anew that is there and was made otherwise.

    Raises:
        DataError: There are no English questions, or the folder has other ones, or a language that
            was not made by this command.
    """
    target = Target(out, source, tuple(source.read(ENGLISH)), with_english)
    old = out / f"{ENGLISH}.jsonl"
    if old.is_file() and tuple(read_items(old, ENGLISH)) != target.english:
        there = {path.stem: path for path in sorted(out.glob("*.jsonl"))}
        if not replaces or there.keys() - {ENGLISH, *languages}:
            raise DataError(
                f"{out}: its English questions are not those of {source.folder}; choose another "
                "folder, or translate all of its languages anew with --replace "
                f"(it has {', '.join(there)})"
            )
        for path in (*there.values(), out / DESCRIPTION_FILE):
            path.unlink(missing_ok=True)
    for lang in languages:
        made = (out / TRANSLATION_DIR / f"{lang}.json").is_file()
        if (out / f"{lang}.jsonl").is_file() and not made and not replaces:
            raise DataError(
                f"{out}: has questions in {lang} that people wrote or imported; to replace them "
                "use --replace"
            )
    if not old.is_file():
        target.write(ENGLISH, target.english)
    return target


def write_translation(target: Target, translation: Translation) -> str:
    """Writes one language: questions, what became of each, and the review list.

    Returns:
        The version of the questions.

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
    made = [put_together(outcome, lang) for outcome in translation.outcomes]
    notes = {"num_in_english": len(rejected)} if rejected else {}
    version = target.write(lang, [item for item, _ in made], **notes)
    lines = (json.dumps(_record(o), ensure_ascii=False) + "\n" for o in translation.outcomes)
    write_atomically(folder / f"{lang}.jsonl", "".join(lines))
    counts = translation.counts + Counter({"options told apart": sum(num for _, num in made)})
    description = {
        "english": version_of(target.made_from, target.english),
        **translation.made_by,
        "counts": dict(sorted(counts.items())),
        IN_ENGLISH: len(rejected),
        "corrections not applied": list(translation.stale),
    }
    write_atomically(folder / f"{lang}.json", json.dumps(description, indent=1, ensure_ascii=False))
    return version


def _record(outcome: ItemOutcome) -> dict[str, Any]:
    texts = json.dumps([field.text for field in outcome.fields])
    record = {
        "question_id": outcome.item.question_id,
        "status": outcome.text.status,
        "engine": outcome.text.engine,
        "reason": outcome.text.reason,
        "corrected": outcome.num_corrected,
        "quality": outcome.text.quality,
        "source": hashlib.sha256(texts.encode()).hexdigest()[:16],
    }
    return {key: value for key, value in record.items() if value is not None}


def translation_records(benchmark: Benchmark, lang: str) -> list[dict[str, Any]]:
    """Reads what became of each question; empty for a language that was not translated."""
    path = benchmark.folder / TRANSLATION_DIR / f"{lang}.jsonl"
    return [record for _, record in read_json_lines(path)] if path.is_file() else []


def review_rows(translation: Translation) -> list[dict[str, str]]:
    """Returns texts of questions that did not pass, each once, with an empty column to fill in."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for outcome in translation.outcomes:
        for field, text in outcome.reviewed() if outcome.text.status != "ok" else ():
            row = {
                "lang": translation.lang,
                "question_id": outcome.item.question_id,
                "field": field.name,
                "english": field.text,
                "translation": text,
                "why": f"{outcome.text.status}: {outcome.text.reason or ''}",
                "correction": "",
            }
            rows.setdefault(field.key, row)
    return list(rows.values())


def fields_of(item: Item) -> tuple[Field, ...]:
    """Returns the texts of a question that are translated: those that people review, too."""
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


def _prompt_of(item: Item) -> Prompt | None:
    """Returns how the prompt was made, found by making it again in English."""
    parts = (item.question or item.text, item.hint, item.options, get_language(ENGLISH))
    ours: tuple[Prompt, ...] = (bare_prompt, partial(llava_prompt, answer_lang=item.answer_lang))
    return next((make for make in ours if make(*parts) == item.text), None)


def put_together(outcome: ItemOutcome, target: str) -> tuple[Item, int]:
    """Makes the question in the language, or in English if its translation was rejected.

    Args:
        outcome: What became of it.
        target: Code of the language.

    Returns:
        The question, and how many of its options got their English behind them because they were
        the same as another one.

    Raises:
        DataError: A text holds an image token.
    """
    item = outcome.item
    if outcome.is_rejected:
        return replace(item, lang=target), 0
    turns = zip(outcome.fields, outcome.text.turns, strict=True)
    values = {field.name: turn.text for field, turn in turns}
    for name, text in values.items():
        if DEFAULT_IMAGE_TOKEN in text:
            raise DataError(
                f"question {item.question_id}: {name} holds {DEFAULT_IMAGE_TOKEN} in {target}; "
                "only `image` names the image. Correct it"
            )
    texts = [values[f"option {letter}"] for letter in item.lettered()]
    options, num_doubled = _told_apart(texts, item.options)
    asked = values.get(TEXT) or values[QUESTION]
    if (prompt := _prompt_of(item)) is not None:
        asked = prompt(values[QUESTION], values.get(HINT, ""), options, get_language(target))
    free = {f.text: values[f.name] for f in outcome.fields if f.name.startswith("answer ")}
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
    """Adds the English to options that are the same in the language, and were not in English."""
    groups: dict[str, set[str]] = {}
    for text, source in zip(texts, english, strict=True):
        groups.setdefault(text.strip().casefold(), set()).add(source.strip().casefold())
    same = [len(groups[text.strip().casefold()]) > 1 for text in texts]
    told = [f"{t} ({e})" if s else t for t, e, s in zip(texts, english, same, strict=True)]
    return tuple(told), sum(same)


CORRECTIONS_FILE: Final = "corrections.tsv"
_DELIMITERS: Final = ("\t", ";", ",")


class Correction(NamedTuple):
    """A translation that a person wrote.

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
    """Reads the filled rows of a review list, or a file of corrections.

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
    columns = Correction._fields
    if missing := [name for name in columns if name not in (rows.fieldnames or ())]:
        raise DataError(
            f"{path}: no column {', '.join(missing)}; expected {', '.join(columns)} in the first "
            "line, with tabs, commas or semicolons between them"
        )
    found: dict[tuple[str, ...], Correction] = {}
    for row in rows:
        one = Correction(*((row[name] or "").strip() for name in columns))
        if not one.correction:
            continue
        where = f"{path}:{rows.line_num}: question {one.question_id}, {one.field}"
        if DEFAULT_IMAGE_TOKEN in one.correction:
            raise DataError(f"{where}: the correction holds {DEFAULT_IMAGE_TOKEN}; take it out")
        if found.setdefault(one[:3], one) != one:
            raise DataError(f"{where}: it is corrected twice, differently; keep one of the rows")
    return list(found.values())


def keep_corrections(folder: Path, given: Sequence[Path]) -> list[Correction]:
    """Returns the corrections that a folder keeps, with given files added to them and kept.

    Raises:
        DataError: See `read_corrections`.
    """
    path = folder / CORRECTIONS_FILE
    kept = [path] if path.is_file() else []
    known = {one[:3]: one for file in (*kept, *given) for one in read_corrections(file)}
    corrections = [known[key] for key in sorted(known)] if given else list(known.values())
    if given:
        write_table(path, Correction._fields, (one._asdict() for one in corrections))
    return corrections


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    """Writes a table with tabs, as a spreadsheet reads it."""
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, file.getvalue())


def match(
    corrections: Iterable[Correction], items: Iterable[Item], lang: str
) -> tuple[dict[tuple[str, str], str], list[str]]:
    """Finds the texts that corrections are for.

    Rotations of a question have the same texts: what is corrected in one of them is so in all.

    Args:
        corrections: Of any languages.
        items: The questions in English.
        lang: The language to translate into.

    Returns:
        Corrections that hold, by `Field.key`; those whose English is another by now, or whose
        question is gone, and why.

    Raises:
        DataError: The same text, asked in the same question, is corrected in two ways.
    """
    ours = [one for one in corrections if one.lang == lang]
    wanted = {one.question_id for one in ours}
    asked = [item for item in items if item.question_id in wanted]
    fields = {(item.question_id, field.name): field for item in asked for field in fields_of(item)}
    texts: dict[tuple[str, str], str] = {}
    stale: list[str] = []
    for one in ours:
        field, name = fields.get((one.question_id, one.field)), f"{one.question_id}, {one.field}"
        if field is None:
            stale.append(f"{name}: there is no such text any more")
        elif field.text.split() != one.english.split():
            stale.append(f"{name}: corrected when it was {one.english!r}, now it is {field.text!r}")
        elif texts.setdefault(field.key, one.correction) != one.correction:
            raise DataError(
                f"question {name}: {field.text!r} is corrected in {lang} both as "
                f"{texts[field.key]!r} and as {one.correction!r}; rotations of a question share "
                "their texts, so keep one"
            )
    return texts, stale


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


DISAGREEMENT_COLUMNS: Final = ("lang", *Pair._fields, "chrf", "correction")


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
    folders = (first, second)
    texts, others = (
        [(item.question_id, fields_of(item)) for item in folder.read(ENGLISH)] for folder in folders
    )
    if texts != others:
        raise DataError(
            f"{first.folder} and {second.folder} have different English questions; translate the "
            "same version of the benchmark twice"
        )
    unusable = {
        str(record["question_id"])
        for folder in folders
        for record in translation_records(folder, lang)
        if record.get("status") == "rejected"
    }
    ours, theirs = ({i.question_id: i for i in folder.read(lang)} for folder in folders)
    if lacking := [key for key, _ in texts if key not in ours or key not in theirs]:
        raise DataError(f"question {lacking[0]} is in English and not in both translations")
    found = (
        (key, source, mine.text, their.text)
        for key, fields in texts
        for source, mine, their in zip(
            fields, fields_of(ours[key]), fields_of(theirs[key]), strict=False
        )
    )
    return _pairs(found, unusable)


def pairs_of_translations(first: Translation, second: Translation) -> LanguagePairs:
    """Pairs the texts of two translations that are at hand."""
    found = (
        (ours.item.question_id, source, mine, their)
        for ours, theirs in zip(first.outcomes, second.outcomes, strict=True)
        for (source, mine), (_, their) in zip(ours.reviewed(), theirs.reviewed(), strict=True)
    )
    return _pairs(found, {o.item.question_id for o in (*first.rejected, *second.rejected)})


def _pairs(found: Iterable[tuple[str, Field, str, str]], unusable: set[str]) -> LanguagePairs:
    """Keeps each English text once, if it has words.

    Args:
        found: Question, English text, and that text in both translations.
        unusable: Questions that are left out.
    """
    texts: dict[str, Pair] = {}
    for key, source, mine, other in found:
        if key not in unusable and _says_something(source.text):
            texts.setdefault(source.text, Pair(key, source.name, source.text, mine, other))
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
