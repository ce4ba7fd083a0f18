"""Opens, scores and stores the result of a run on one benchmark in one language.

An answer is judged once for each mode that is reported. `lrm eval` stores the verdicts in
`scores.jsonl` beside the folder of answers; each line names the state of answers and rules that it
was made from, so that nobody takes it for a verdict on other answers. Comparison, tables, plots,
the page of answers and exports open the result here: they take the stored verdicts, and only what
has none is judged. Scores are counted from verdicts, each figure beside its denominator.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import msgspec

import lrm_ext
from llava.errors import ConfigError, DataError, UserError
from llava.eval.records import read_json, read_json_lines
from llava.files import write_atomically
from lrm_ext.evaluate.items import LETTERS, Item, stated_gold
from lrm_ext.evaluate.kind import (
    JUDGE,
    LOCAL,
    MISSING,
    UNDECIDED,
    UNDECIDED_REPLY,
    UNPARSED,
    Kind,
    Reading,
    UnitCounts,
    Verdict,
    fidelity,
    judge_answers,
    judged_kind,
    percentage,
    text_answers,
)
from lrm_ext.evaluate.kinds import find_kind, get_kind
from lrm_ext.evaluate.predictions import RUN_FILE, prediction_path, texts_by_key
from lrm_ext.evaluate.reading import answer_words, parse_yes_no
from lrm_ext.evaluate.registry import BENCHMARKS, FREE_KINDS, Benchmark, get_benchmark, open_folder
from lrm_ext.evaluate.statistics import NUM_REPLICATES, bootstrap_interval, wilson_interval
from lrm_ext.languages import any_language

log = logging.getLogger(__name__)

PREDICTIONS_DIR: Final = "predictions"
SCORES_FILE: Final = "scores.jsonl"
JUDGES_DIR: Final = Path(__file__).parent / "judges"
# Raise it when a change of the code makes other verdicts: stored ones are judged again.
RULES_VERSION: Final = 1
ENGLISH: Final = "en"
NUM_SHOWN: Final = 5
_BLIND: Final = ".blind.jsonl"
_DIGEST_CHARS: Final = 16
_ANSWER_TYPE: Final = re.compile("/(yesno|text|letter|caption)/")
_StoredKey = tuple[str, str, bool, str]


@dataclass(frozen=True)
class Answered:
    """Questions and their answers.

    Attributes:
        items: The questions.
        texts: Answers by question id.
        lang: Their language.
        version: Of the questions, where the file says it.
        prompt_id: Which prompt the questions were asked with, where the file says it.
        cut_keys: Questions whose answer reached the length limit.
        num_twice: Answers that are in the file twice and equal.
    """

    items: tuple[Item, ...]
    texts: Mapping[str, str]
    lang: str
    version: str = ""
    prompt_id: str = ""
    cut_keys: Collection[str] = ()
    num_twice: int = 0


@dataclass(frozen=True)
class ScoreReport:
    """The score of one benchmark in one language.

    Attributes:
        benchmark: Name.
        kind: Whose rules it follows.
        version: Of the questions, as far as it is known.
        lang: Language of the questions.
        mode: How answers were read.
        headline: The figure of the paper's tables, in its unit.
        headline_name: What it is.
        details: All other figures.
        counts: How many questions, answers, and answers of each doubtful sort.
        fidelity: Share of answers in the language of the question, and of how many.
        verdicts: On each question.
        units: The counts behind the headline.
        right_by_question: Whether each question is right; with rotations, whether all of them are.
        prompt_id: Which prompt the questions were asked with, as far as it is known.
    """

    benchmark: str
    kind: str
    version: str
    lang: str
    mode: str
    headline: float
    headline_name: str
    details: Mapping[str, Any]
    counts: Mapping[str, Any]
    fidelity: Mapping[str, Any]
    verdicts: tuple[Verdict, ...]
    units: UnitCounts
    right_by_question: Mapping[str, bool]
    prompt_id: str = ""

    def interval(self, seed: int = 0) -> dict[str, Any]:
        """Returns the 95 % interval of the headline, in its unit, and how it was found.

        A share of questions gets Wilson's, anything else the bootstrap's.

        Args:
            seed: Of the bootstrap.
        """
        if self.units.combine is percentage:
            right, total = (round(value) for value in self.units.counts.sum(axis=0))
            low, high = wilson_interval(right, total)
            return {"low": 100 * low, "high": 100 * high, "method": "wilson", "n": total}
        low, high = bootstrap_interval(self.units, seed)
        return {
            "low": low,
            "high": high,
            "method": "bootstrap",
            "n": len(self.units.units),
            "replicates": NUM_REPLICATES,
            "seed": seed,
        }

    def to_json(self) -> dict[str, Any]:
        """Returns the report as one flat object."""
        return {
            "benchmark": self.benchmark,
            "kind": self.kind,
            "version": self.version,
            "prompt_id": self.prompt_id,
            "lang": self.lang,
            "mode": self.mode,
            "headline": self.headline,
            "headline_name": self.headline_name,
            **self.details,
            "counts": dict(self.counts),
            "fidelity": dict(self.fidelity),
        }


@dataclass(eq=False)
class RunResult:
    """The answers of a run to one benchmark in one language, and the verdicts on them.

    Attributes:
        benchmark: Name.
        kind: Whose rules it follows.
        answered: Questions and answers.
        make_reading: Says what the answers are read by; called only if there is one to judge.
        blind: Answers without the image; None if not every question has one.
        excused: Questions without an answer that are wrong, not an error: any, or these.
        known: Verdicts by mode and whether the image was withheld.
    """

    benchmark: str
    kind: Kind
    answered: Answered
    make_reading: Callable[[], Reading]
    blind: Mapping[str, str] | None = None
    excused: bool | Collection[str] = False
    known: dict[tuple[str, bool], tuple[Verdict, ...]] = field(default_factory=dict)

    @property
    def lang(self) -> str:
        """The language of the questions."""
        return self.answered.lang

    @property
    def items(self) -> tuple[Item, ...]:
        """The questions."""
        return self.answered.items

    @property
    def texts(self) -> Mapping[str, str]:
        """Answers by question id."""
        return self.answered.texts

    def verdicts(self, mode: str | None = None, blind: bool = False) -> tuple[Verdict, ...]:
        """Returns one verdict a question, in their order; judges on the first call for a mode.

        Args:
            mode: How to read answers; see `mode_for`.
            blind: Take the answers without the image, which must be there.

        Raises:
            ConfigError: The mode or language is unknown.
            DataError: A question has no answer, or no expected one; or no judge was asked.
        """
        mode = self.mode_for(mode)
        if (mode, blind) not in self.known:
            if mode.startswith(JUDGE):
                raise DataError(
                    f"{self.benchmark} {self.lang}: no verdicts of {mode} on these answers; there "
                    f"are those of {', '.join(self.judges()) or 'no judge'}; `lrm benchmark judge` "
                    "makes them"
                )
            texts = self.blind if blind else self.texts
            assert texts is not None, "there are no answers without the image"
            judge, reading = self.kind.modes[mode], self.make_reading()
            verdicts = judge_answers(self.items, texts, reading, judge, self.excused)
            self.known[mode, blind] = tuple(verdicts)
        return self.known[mode, blind]

    def judges(self) -> tuple[str, ...]:
        """Returns the modes of judges that decided on any of the answers, the first one first."""
        return tuple(
            mode
            for (mode, _), verdicts in self.known.items()
            if mode.startswith(JUDGE)
            and not all(v.parsed.startswith(UNDECIDED_REPLY) for v in verdicts)
        )

    def mode_for(self, wanted: str | None = None) -> str:
        """Returns the mode in which the answers are read.

        Args:
            wanted: What the user asked for; by default the first judge's if there is one, else the
                kind's own for English and `local` for other languages.

        Raises:
            ConfigError: There is no such mode, or it needs more than texts.
        """
        return self.kind.mode_for(self.lang, wanted or next(iter(self.judges()), None))

    @property
    def usual_mode(self) -> str:
        """The mode of its shares: `local`, or `mode_for` where that does not read the language.

        Raises:
            ConfigError: Nothing reads the answers.
        """
        return LOCAL if self.kind.reads_locally(self.lang) else self.mode_for()

    def is_read(self) -> bool:
        """Tells whether anything reads the answers, and logs why not."""
        try:
            return bool(self.usual_mode)
        except ConfigError as error:
            log.warning("%s %s: no score: %s", self.benchmark, self.lang, error)
            return False

    @property
    def is_comparable(self) -> bool:
        """Whether its reading by default stands beside other languages': `local` or a judge's."""
        return bool(self.judges()) or self.kind.reads_locally(self.lang)

    def rules(self, mode: str | None = None) -> Kind:
        """Returns the rules by which the verdicts of a mode are counted."""
        mode = self.mode_for(mode)
        return judged_kind(self.kind, mode) if mode.startswith(JUDGE) else self.kind

    def units(self, mode: str, blind: bool = False) -> UnitCounts:
        """Returns the counts behind the headline of a mode; see `verdicts`."""
        return self.rules(mode).count(self.items, self.verdicts(mode, blind), mode)

    def score(self, mode: str | None = None) -> ScoreReport:
        """Counts the verdicts of a mode.

        Raises:
            ConfigError: The mode or language is unknown.
            DataError: The questions are not as the benchmark needs them, or one has no answer.
        """
        items, lang, mode = self.items, self.lang, self.mode_for(mode)
        kind = self.rules(mode)
        num_missing = kind.check(items, bool(self.excused))
        verdicts, units = self.verdicts(mode), self.units(mode)
        return ScoreReport(
            benchmark=self.benchmark,
            kind=kind.name,
            version=self.answered.version,
            lang=lang,
            mode=mode,
            headline=units.score(),
            headline_name=kind.headlines.get(mode, kind.headline),
            details=kind.details(items, verdicts, mode),
            counts=count_answers(verdicts, num_missing, self.answered.cut_keys),
            fidelity=count_fidelity(verdicts, items[0].answer_lang or lang),
            verdicts=verdicts,
            units=units,
            right_by_question=kind.right_by_question(items, verdicts),
        )

    def take_stored(self, path: Path) -> None:
        """Takes the verdicts that `lrm eval` stored on these very answers.

        Args:
            path: The file of answers.
        """
        for (name, lang, blind, mode), by_state in _stored(
            path.parent.parent / SCORES_FILE
        ).items():
            is_known = mode in self.kind.modes or mode.startswith(JUDGE)
            if (name, lang) != (self.benchmark, self.lang) or not is_known:
                continue
            if mode in self.kind.beside:  # the set may name another rule since
                continue
            answers = path.with_name(path.stem + _BLIND) if blind else path
            found = by_state.get(state_of(answers, lang, mode), {})
            if all(item.question_id in found for item in self.items):
                self.known[mode, blind] = tuple(found[item.question_id] for item in self.items)


def state_of(answers: Path, lang: str, mode: str) -> str:
    """Returns a digest of what verdicts on a file of answers depend on: the answers and the rules.

    Args:
        answers: The file.
        lang: The language of the questions.
        mode: How the answers are read; of a judge's, the rubric is one of the rules.

    Returns:
        "" if there is no such file.
    """
    if not answers.is_file():
        return ""
    words = [repr(any_language(one).local) for one in (lang, ENGLISH)]
    rules = hashlib.sha256("\n".join([str(RULES_VERSION), lrm_ext.__version__, *words]).encode())
    if mode.startswith(JUDGE):
        rubric = JUDGES_DIR / f"{mode.split(':')[1]}.toml"
        rules.update(rubric.read_bytes() if rubric.is_file() else b"")
    rules.update(answers.read_bytes())
    return rules.hexdigest()[:_DIGEST_CHARS]


def _stored(path: Path) -> Mapping[_StoredKey, Mapping[str, Mapping[str, Verdict]]]:
    """Reads stored verdicts by benchmark, language, blindness, mode, then state and question."""
    try:
        stat = path.stat()
    except OSError:
        return {}
    return _read_stored(path, (stat.st_mtime_ns, stat.st_size))


@lru_cache(maxsize=2)
def _read_stored(
    path: Path, state: tuple[int, int]
) -> Mapping[_StoredKey, Mapping[str, Mapping[str, Verdict]]]:
    found: defaultdict[_StoredKey, defaultdict[str, dict[str, Verdict]]]
    found = defaultdict(lambda: defaultdict(dict))
    try:
        for _, line in read_json_lines(path):
            key = (line["benchmark"], line["lang"], line["blind"], line["mode"])
            found[key][line["state"]][line["key"]] = msgspec.convert(line, Verdict)
    except (DataError, KeyError, TypeError, msgspec.ValidationError) as error:
        log.info("%s: stored by another version, so answers are judged again (%r)", path, error)
        return {}
    return found


def num_judged(run: Path, benchmark: str, lang: str) -> int:
    """Returns how many questions `lrm eval` judged last time, answered or not."""
    stored = _stored(predictions_dir(run).parent / SCORES_FILE)
    return max(
        (
            len(verdicts)
            for key, by_state in stored.items()
            for verdicts in by_state.values()
            if key[:2] == (benchmark, lang)
        ),
        default=0,
    )


def store_results(folder: Path, results: Sequence[RunResult]) -> None:
    """Writes `scores.jsonl`: every verdict of these results, and those of others that still hold.

    Args:
        folder: The folder of results, which holds the folder of answers.
        results: In the order of the file.
    """
    path = folder / SCORES_FILE
    lines: list[str] = []
    for result in results:
        for (mode, blind), verdicts in result.known.items():
            key = (result.benchmark, result.lang, blind, mode)
            lines += _score_lines(verdicts, key, _state_in(folder, key))
    written = {(result.benchmark, result.lang) for result in results}
    for key, by_state in _stored(path).items():
        state = _state_in(folder, key)
        if key[:2] not in written and state in by_state:
            lines += _score_lines(by_state[state].values(), key, state)
    write_atomically(path, "".join(lines))


def _state_in(folder: Path, key: _StoredKey) -> str:
    name, lang, blind, mode = key
    return state_of(prediction_path(folder / PREDICTIONS_DIR, name, lang, blind), lang, mode)


def _score_lines(verdicts: Iterable[Verdict], key: _StoredKey, state: str) -> list[str]:
    where = {**dict(zip(("benchmark", "lang", "blind", "mode"), key, strict=True)), "state": state}
    return [json.dumps({**asdict(v), **where}, ensure_ascii=False) + "\n" for v in verdicts]


def predictions_dir(run: Path) -> Path:
    """Returns the folder of answers of a run, named by its model, results or answers.

    Raises:
        DataError: There is none.
    """
    for folder in (run / PREDICTIONS_DIR, run / "eval" / PREDICTIONS_DIR, run):
        if folder.is_dir() and any(folder.glob("*.jsonl")):
            return folder
    raise DataError(
        f"{run}: no answers in it; expected the folder of a model that `lrm eval` has asked, or "
        "its results (--out)"
    )


def asked_benchmark(folder: Path, name: str) -> Benchmark | None:
    """Opens the benchmark that a run was asked: by `run.json`, else a built-in one.

    Args:
        folder: The folder of predictions.
        name: The benchmark's name.

    Returns:
        None if neither is there. Its questions may have changed since.
    """
    try:
        place = Path(read_json(folder / RUN_FILE, dict)["folders"][name])
    except (DataError, KeyError, TypeError):
        return get_benchmark(name) if name in BENCHMARKS else None
    return open_folder(name, place) if place.is_dir() else None


def answer_files(run: Path) -> dict[tuple[str, str], Path]:
    """Returns the files of answers by benchmark and language, without those of blind runs."""
    files: dict[tuple[str, str], Path] = {}
    for path in sorted(predictions_dir(run).glob("*.jsonl")):
        parts = path.name.removesuffix(".jsonl").rsplit(".", 1)
        if not path.name.endswith(_BLIND) and len(parts) == 2:
            files[parts[0], parts[1]] = path
    return files


def open_result(
    path: Path,
    benchmark: str,
    lang: str,
    *,
    kind: Kind | None = None,
    items: Sequence[Item] | None = None,
    version: str = "",
) -> RunResult:
    """Opens the result of a run, with stored verdicts if they are of these answers and rules.

    Answers without stored verdicts are read as `lrm eval` reads them if the run names its benchmark
    and that is at hand, else by what the answers say themselves.

    Args:
        path: The file of answers.
        benchmark: The benchmark that they are filed under.
        lang: The language.
        kind: Whose rules score them; by default what the file names.
        items: The questions; None to take them from the file itself.
        version: Of `items`.

    Raises:
        DataError: See `read_answered`.
    """
    kind = kind or stated_kind(path)
    answered = read_answered(path, kind, lang=lang, items=items, version=version)
    result = RunResult(
        benchmark, kind, answered, lambda: _reading_at_hand(path, benchmark, answered)
    )
    result.take_stored(path)
    return result


def open_answers_alone(path: Path, benchmark: str, lang: str) -> RunResult:
    """Opens a result by its file of answers alone, without stored verdicts or other questions."""
    kind = stated_kind(path)
    answered = read_answered(path, kind, lang=lang)
    return RunResult(benchmark, kind, answered, lambda: reading_of(lang, answered.items))


def _reading_at_hand(path: Path, name: str, answered: Answered) -> Reading:
    """Returns how to read answers, by the benchmark that the run was asked if it is at hand."""
    lang = answered.lang
    if (path.parent / RUN_FILE).is_file():
        try:
            benchmark = asked_benchmark(path.parent, name)
            if benchmark is not None and benchmark.path(lang).is_file():
                english = benchmark.read(ENGLISH) if benchmark.path(ENGLISH).is_file() else ()
                return reading_of(lang, benchmark.read(lang), english)
        except UserError as error:
            log.warning("%s: read by the answers alone: %s", path, error)
    return reading_of(lang, answered.items)


def reading_of(lang: str, items: Sequence[Item], english: Sequence[Item] = ()) -> Reading:
    """Returns what answers in a language are read by.

    Args:
        lang: The language of the questions.
        items: All questions in it, which its short answers are known from.
        english: The same questions in English, where they are at hand.

    Raises:
        ConfigError: There is no such language.
    """
    return Reading(
        words=answer_words(lang),
        word_letters=any_language(lang).local.word_letters,
        native=text_answers(items),
        english=text_answers(english),
        english_options={item.question_id: item.options for item in english if item.options},
    )


def count_answers(
    verdicts: Sequence[Verdict], num_missing: int = 0, cut_keys: Collection[str] = ()
) -> dict[str, Any]:
    """Counts questions and answers, and answers of each doubtful sort.

    Args:
        verdicts: On every question that is known.
        num_missing: Questions that are not even known, but must exist.
        cut_keys: Questions whose answer reached the length limit.
    """
    missing = sum(verdict.missing for verdict in verdicts)
    refused = sum(verdict.refused for verdict in verdicts)
    guessed = sum(verdict.guessed for verdict in verdicts)
    return {
        "questions": len(verdicts) + num_missing,
        "answered": len(verdicts) - missing - refused,
        "missing": missing + num_missing,
        # only models behind a service have any
        **({"refused": refused} if refused else {}),
        "empty": sum(verdict.empty for verdict in verdicts),
        "cut": sum(verdict.key in cut_keys for verdict in verdicts),
        "unparsed": sum(
            verdict.parsed in UNPARSED or verdict.parsed.startswith(UNDECIDED_REPLY)
            for verdict in verdicts
        ),
        "default_yes": sum(verdict.by_default for verdict in verdicts),
        "ambiguous_cyrillic": sum(verdict.ambiguous for verdict in verdicts),
        # only owners' rules guess
        **({"guessed": guessed} if guessed else {}),
        "answer_lang": dict(
            Counter(v.answer_lang for v in verdicts if v.answer_lang != MISSING).most_common()
        ),
    }


def count_fidelity(verdicts: Sequence[Verdict], lang: str) -> dict[str, Any]:
    """Returns the share of answers in the language of the question, right or wrong."""
    langs = [verdict.answer_lang for verdict in verdicts]
    own, decided = fidelity(langs, lang)
    return {
        "share": own / decided if decided else None,
        "in_language": own,
        "decided": decided,
        "undecided": langs.count(UNDECIDED),
    }


def read_answered(
    path: Path,
    kind: Kind,
    *,
    lang: str | None = None,
    items: Sequence[Item] | None = None,
    last_wins: bool = False,
    version: str = "",
) -> Answered:
    """Reads answers and the questions that they answer.

    Args:
        path: The file.
        kind: The benchmark.
        lang: Language of the questions, where the file does not say it.
        items: The questions; None to take them from the file itself.
        last_wins: Of several answers to a question the last counts, as in LLaVA's scripts.
        version: Of `items`.

    Raises:
        DataError: A line is not as it must be, is of another benchmark, version or language, has
            no question, or answers one a second time differently.
    """
    records = list(read_json_lines(path))
    if not records:
        raise DataError(f"{path}: no answers in it")
    found_lang = _one_of(records, "lang", path) or lang or "en"
    if lang is not None and found_lang != lang:
        raise DataError(f"{path}: the answers are to questions in {found_lang}, not in {lang}")
    found_version = _one_of(records, "version", path)
    if version and found_version and version != found_version:
        raise DataError(
            f"{path}: the answers are to version {found_version} of {kind.name}, the questions are "
            f"of version {version}"
        )
    for where, record in records:
        stated = record.get("kind") or record.get("benchmark")
        other = find_kind(stated) if isinstance(stated, str) else None
        if other is not None and other.name != kind.name:
            raise DataError(f"{where}: an answer to {stated}, expected {kind.name}")
    keys = _own_keys(records, kind) if items is None else _joined_keys(records, kind, items)
    texts = texts_by_key(path, keys, records, "take the last (--on-duplicate last)", last_wins)
    if items is None:
        first: dict[str, tuple[str, Mapping[str, Any]]] = {}
        for key, found in zip(keys, records, strict=True):
            first.setdefault(key, found)
        items = [_item(key, where, r, kind, found_lang) for key, (where, r) in first.items()]
        items += kind.skipped(items)
    pairs = zip(keys, records, strict=True)
    return Answered(
        items=tuple(items),
        texts=texts,
        lang=found_lang,
        version=version or found_version,
        prompt_id=_prompt_id(records, path),
        cut_keys=frozenset(k for k, (_, r) in pairs if r.get("finish_reason") == "length"),
        num_twice=len(keys) - len(texts),
    )


def stated_kind(path: Path) -> Kind:
    """Returns the kind that the first line of a file of answers names, else short answers.

    Raises:
        DataError: The file is empty or its first line is damaged.
    """
    first = next(read_json_lines(path), None)
    if first is None:
        raise DataError(f"{path}: no answers in it")
    stated = first[1].get("kind") or first[1].get("benchmark")
    return (find_kind(stated) if isinstance(stated, str) else None) or get_kind("answers")


def _one_of(records: Sequence[tuple[str, Mapping[str, Any]]], field: str, path: Path) -> str:
    """Returns the value that all lines give a field; "" if none has it."""
    values = Counter(str(record[field]) for _, record in records if record.get(field))
    if len(values) > 1:
        shown = ", ".join(f"{value} ({number} lines)" for value, number in values.items())
        raise DataError(f"{path}: the lines are of several values of {field}: {shown}; split it")
    return next(iter(values), "")


def _prompt_id(records: Sequence[tuple[str, Mapping[str, Any]]], path: Path) -> str:
    """Returns the prompt of all lines; `*` in place of the answer's type where there are several.

    Yes/no questions among free ones are asked in the same style.
    """
    stated = {str(record["prompt_id"]) for _, record in records if record.get("prompt_id")}
    styles = {_ANSWER_TYPE.sub("/*/", one) for one in stated}
    return styles.pop() if len(stated) > len(styles) == 1 else _one_of(records, "prompt_id", path)


def _own_keys(records: Sequence[tuple[str, Mapping[str, Any]]], kind: Kind) -> list[str]:
    """Returns the ids of the questions, from the answers alone."""
    named: list[tuple[str, Mapping[str, Any]]] = []
    for where, record in records:
        key = record.get("key", record.get("question_id", record.get("index")))
        if not isinstance(key, (str, int)) or isinstance(key, bool):
            raise DataError(f"{where}: no question_id; expected a text or a number")
        named.append((str(key), record))
    return kind.keys_of(named)


def _joined_keys(
    records: Sequence[tuple[str, Mapping[str, Any]]], kind: Kind, items: Sequence[Item]
) -> list[str]:
    """Returns the ids of the questions that were answered, looked up in the benchmark."""
    known = {item.question_id for item in items}
    sources = Counter(item.source_id for item in items if item.source_id)
    by_source = {i.source_id: i.question_id for i in items if sources[i.source_id] == 1}
    by_wording: dict[tuple[str, str] | None, str]
    by_wording = {(item.image_id, item.question): item.question_id for item in items}
    keys: list[str] = []
    strangers: list[str] = []
    for where, record in records:
        own = str(record.get("key", record.get("question_id", record.get("index", ""))))
        key = own if own in known else by_source.get(own, "")
        key = key or by_wording.get(kind.wording_of(own, record), "")
        if not key:
            strangers.append(f"{own} ({where})")
        keys.append(key)
    if strangers:
        raise DataError(
            f"{len(strangers)} answers have no question in the benchmark: "
            f"{', '.join(strangers[:NUM_SHOWN])}: they are of another version or language"
        )
    return keys


def _item(key: str, where: str, record: Mapping[str, Any], kind: Kind, lang: str) -> Item:
    """Returns the question as its answer describes it.

    Raises:
        DataError: It does not say what was expected.
    """
    gold = stated_gold(record)
    # of open questions a judge may compare the answers of two runs
    is_open = gold == "" and kind.name in FREE_KINDS
    if not isinstance(gold, str) or not (gold.strip() or is_open):
        raise DataError(
            f"{where}: question {key}: no expected answer (gold) beside the answer; name the "
            "benchmark's own files with --data"
        )
    category = record.get("category", record.get("data_type"))
    # [] is no image, and an answer without this field does not tell its own
    answer_type, image = record.get("answer_type"), record.get("image")
    if not answer_type:
        parsed = parse_yes_no(gold, answer_words(lang)).label if kind.name == "answers" else ""
        answer_type = "yesno" if parsed in ("yes", "no") else kind.answer_type
    item = Item(
        question_id=key,
        image=tuple(map(str, image)) if isinstance(image, list) else str(image or ""),
        text=str(record.get("prompt") or ""),
        category=str(category) if category else "",
        answer=gold.strip(),
        lang=lang,
        answer_type=str(answer_type),
        options=_options(record, where),
        answers=tuple(record.get("golds") or ()),
        group=str(record.get("group") or ""),
        image_id=str(record.get("image_id") or ""),
        source_id=str(record.get("question_id", "")),
        supercategory=str(record.get("supercategory") or record.get("l2-category") or ""),
        answer_lang=str(record.get("answer_lang") or ""),
    )
    return kind.complete(item)


def _options(record: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Returns the option texts, which are given as a list, an object or columns."""
    given = record.get("options")
    if isinstance(given, Mapping):
        return tuple(str(given[letter]) for letter in LETTERS if given.get(letter))
    if isinstance(given, list):
        if not all(isinstance(text, str) for text in given):
            raise DataError(f"{where}: options is {given!r}; expected a list of texts")
        return tuple(given)
    columns = [record[letter] for letter in LETTERS if isinstance(record.get(letter), str)]
    return tuple(text for text in columns if text.strip())
