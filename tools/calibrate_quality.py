"""Measures the accuracy of the translation checks, and writes limits into the language files.

Usage: python tools/calibrate_quality.py [--lang hr,cs|all] [--write] [--captions DIR] [--markdown]

Human translations are damaged in eight ways (wrong language, cut, doubled, copied, number changed,
option lost, shuffled rows, mojibake). Lengths and limits are measured on one half of the rows and
reported on the other, which shows other scenes. The rows are those of the built-in corpus;
--captions adds those of Debian's tuxpaint-stamps-default, whose language is less uniform:

    apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default*.deb stamps
    python tools/calibrate_quality.py --captions stamps/usr/share/tuxpaint/stamps --write

or those of a file of your own, which are all reported on (no limits are measured on them):

    python tools/calibrate_quality.py --captions tests/lrm_ext/translate/quality/captions.toml

Only the measured numbers of those captions are kept. Without --calibrate or --write the limits are
those of the language files.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import msgspec
import numpy as np
from rich.console import Console
from rich.table import Table

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.sample import Turn
from llava.errors import ConfigError, DataError
from llava.files import load_toml
from lrm_ext.emoji.conversations import (
    IMAGE_PREFIX,
    caption_turns,
    content_question,
    counting_question,
    question_turns,
    render_question,
)
from lrm_ext.emoji.scenes import Scene, concept_ids, concepts_by_id, get_vocabulary
from lrm_ext.languages.registry import (
    DATA_DIR,
    ENGLISH,
    PAPER_LANGUAGES,
    get_language,
    list_languages,
)
from lrm_ext.translate.quality import CHECKS, Checker
from lrm_ext.translate.quality.base import DEFAULT_LIMITS, RowVerdict, Thresholds, get_thresholds
from lrm_ext.translate.quality.form_checks import deviation

_CODES = {"zh_CN": "zh", "zh_TW": "zh-Hant", "sr@latin": "sr-Latn", "nb": "no", "tl": "fil"}
# Captions in near languages must not pass for ours; long ones are easier to tell apart.
_NEAR = {"cs": ("sk",), "hr": ("sr-Latn",), "ru": ("uk", "bg"), "es": ("pt",), "zh": ("zh-Hant",)}
_LONG = 6


def main() -> None:
    """Measures, prints and optionally writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1000, help="rows per kind of damage")
    parser.add_argument("--lang", help="comma-separated codes, or all; default: the paper's")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--captions", type=Path, metavar="PATH", help="folder of tuxpaint's stamps, or a .toml file"
    )
    parser.add_argument("--calibrate", action="store_true", help="measure new limits")
    parser.add_argument("--write", action="store_true", help="write new limits to language files")
    parser.add_argument("--markdown", action="store_true", help="print tables in Markdown")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    args = parser.parse_args()
    spoken = [lang for lang in list_languages() if lang != ENGLISH and _is_built_in(lang)]
    languages = tuple(spoken if args.lang == "all" else args.lang.split(",") if args.lang else ())
    languages = languages or PAPER_LANGUAGES[1:]
    if unknown := sorted(set(languages) - set(spoken)):
        parser.error(f"--lang {','.join(unknown)}: the built-in corpus has {', '.join(spoken)}")
    known = tuple(dict.fromkeys((*PAPER_LANGUAGES[1:], *languages)))
    every = built_in_rows(2 * args.rows, known, args.seed)
    captions = list(caption_rows(args.captions)) if args.captions else []
    random.Random(args.seed).shuffle(captions)
    reports: dict[str, dict[str, Report]] = {"built-in": {}, "captions": {}}
    near: dict[str, dict[str, dict[str, float]]] = {}
    for lang in languages:
        rows = [row for row in every if lang in row.texts]
        half_rows = len(rows) // 2
        free = [_among(row, known) for row in captions if lang in row.texts]
        half = len(free) // 2 if args.captions and args.captions.is_dir() else 0
        thresholds = get_thresholds(lang)
        if args.calibrate or args.write:
            thresholds = calibrate(rows[:half_rows] + free[:half], lang, args.seed)
        if args.write:
            write_thresholds(DATA_DIR / f"{lang}.toml", thresholds)
        reports["built-in"][lang] = evaluate(rows[half_rows:], lang, thresholds, args.seed)
        if free:
            reports["captions"][lang] = evaluate(free[half:], lang, thresholds, args.seed)
            near[lang] = near_languages(captions, lang, thresholds)
    console = Console(soft_wrap=True) if args.markdown else Console()
    for name, found in reports.items():
        if found:
            show(by_damage(name, found), console, args.markdown)
            show(by_check(name, found), console, args.markdown)
    for lang, shares in near.items():
        for other, share in shares.items():
            console.print(
                f"{other} taken for {lang}: found {share['all']:.0%}, of captions of {_LONG} words "
                f"and more {share['long']:.0%}"
            )
    if args.json:
        data = {name: {lang: figures(r) for lang, r in f.items()} for name, f in reports.items()}
        args.json.write_text(json.dumps({**data, "near": near}, indent=2) + "\n", encoding="utf-8")


def by_damage(name: str, reports: dict[str, Report]) -> list[list[str]]:
    """Returns a table: false alarms and recall of each kind of damage, by language."""
    table = [[name, "false alarms", "rejected", "found", *DAMAGES]]
    for lang, report in reports.items():
        shares = [_percent(report.recall(damage)) for damage in DAMAGES]
        alarms = f"{report.false_alarm_rate():.1%} of {report.num_clean}"
        rejected = _percent(report.false_alarm_rate("rejected"))
        table.append([lang, alarms, rejected, _percent(report.recall()), *shares])
    return table


def by_check(name: str, reports: dict[str, Report]) -> list[list[str]]:
    """Returns a table: precision and recall of each check, over all languages."""
    table = [[name, "false alarms", "precision", *(f"finds {d}" for d in DAMAGES)]]
    for check in CHECKS:
        total = Report()
        for report in reports.values():
            total.num_clean += report.num_clean
            total.false_alarms += report.false_alarms
            total.num_damaged += report.num_damaged
            for damage, counts in report.found.items():
                total.found.setdefault(damage, type(counts)()).update(counts)
        shares = [_percent(total.recall(damage, check)) for damage in DAMAGES]
        alarms = f"{total.false_alarm_rate(check):.2%}"
        table.append([check, alarms, _percent(total.precision(check)), *shares])
    return table


def figures(report: Report) -> dict[str, Any]:
    """Returns a report as plain values."""
    return {
        "clean": report.num_clean,
        "false alarms": dict(report.false_alarms),
        "damaged": dict(report.num_damaged),
        "found": {damage: dict(counts) for damage, counts in report.found.items()},
    }


def show(table: list[list[str]], console: Console, is_markdown: bool) -> None:
    """Prints a table; the first row is its head."""
    if is_markdown:
        lines = [table[0], ["---"] * len(table[0]), *table[1:]]
        for line in lines:
            console.print(f"| {' | '.join(line)} |", highlight=False, markup=False)
        console.print()
        return
    shown = Table(*table[0])
    for line in table[1:]:
        shown.add_row(*line)
    console.print(shown)


def caption_rows(folder: Path) -> Iterator[Row]:
    """Reads captions in many languages from a .toml file or a folder.

    The .toml file has a table `[[caption]]` for each caption, by language code. The folder has a
    file for each caption: English first, then lines `code.utf8=text`.

    Raises:
        DataError: There are no captions.
    """
    if folder.is_file():
        for caption in load_toml(folder)["caption"]:
            texts = {lang: (Turn("gpt", text),) for lang, text in caption.items()}
            yield Row(texts.pop(ENGLISH), texts, "free caption")
        return
    seen: set[str] = set()
    for path in sorted(folder.rglob("*.txt")):
        english, *lines = path.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
        if len(english.split()) < 2 or english in seen:
            continue
        seen.add(english)
        texts = {}
        for line in lines:
            key, _, text = line.partition("=")
            code = key.partition(".")[0]
            if text.strip():
                texts[_CODES.get(code, code)] = (Turn("gpt", text.strip()),)
        yield Row((Turn("gpt", english.strip()),), texts, "free caption")
    if not seen:
        raise DataError(f"{folder} has no captions; expected tuxpaint's folder of stamps.")


def near_languages(
    rows: list[Row], lang: str, thresholds: Thresholds
) -> dict[str, dict[str, float]]:
    """Returns the share of captions in near languages that does not pass for `lang`."""
    checker = Checker(lang, thresholds)
    result = {}
    for other in _NEAR.get(lang, ()):
        found = [
            (checker.check_turns(row.english, row.texts[other]).ok, row.english[0].text)
            for row in rows
            if other in row.texts
        ]
        if not found:
            continue
        longer = [ok for ok, text in found if len(text.split()) >= _LONG]
        result[other] = {
            "all": 1 - sum(ok for ok, _ in found) / len(found),
            "long": 1 - sum(longer) / len(longer),
        }
    return result


def write_thresholds(path: Path, thresholds: Thresholds) -> None:
    """Replaces the measured values in the [quality] section of a language file."""
    text = path.read_text(encoding="utf-8")
    match = re.search(r"^\[quality\]\n(?:(?!\[).*\n)*?(?=\n|\[|\Z)", text, re.MULTILINE)
    if match is None:
        raise DataError(f"{path}: no [quality] section; add an empty one.")
    kept = re.sub(r"^(?:length_\w+|limits) = .*\n", "", match[0], flags=re.MULTILINE)
    limits = ", ".join(f"{check} = {thresholds.limits[check]:g}" for check in GRADED)
    measured = (
        f"length_ratio = {thresholds.length_ratio:g}\n"
        f"length_spread = {thresholds.length_spread:g}\n"
        f"limits = {{ {limits} }}\n"
    )
    path.write_text(text[: match.start()] + kept + measured + text[match.end() :], encoding="utf-8")


def _among(row: Row, languages: tuple[str, ...]) -> Row:
    return row._replace(texts={k: turns for k, turns in row.texts.items() if k in languages})


def _percent(share: float) -> str:
    return "-" if share != share else f"{share:.1%}"


# Checks with a numeric limit, and the damage that each is meant to find.
GRADED: Mapping[str, str] = {
    "copy": "copied",
    "language": "wrong language",
    "repetition": "doubled",
    "length": "cut",
    "meaning": "shuffled rows",
}
# Largest share of human translations that one of the several checks may reject.
FALSE_ALARMS = 0.004
# A limit lies midway between the clean and the damaged values if there is a gap between them.
MISSED = 0.1


@dataclass
class Report:
    """The verdicts of the checks on rows.

    Attributes:
        num_clean: Number of undamaged rows.
        false_alarms: Number of undamaged rows that each check flags; "any" for one check or more,
            "rejected" for rows that are rejected rather than suspect.
        num_damaged: Number of damaged rows, by kind of damage.
        found: Number of damaged rows that each check flags, by kind of damage; "any" for one check
            or more.
    """

    num_clean: int = 0
    false_alarms: Counter[str] = field(default_factory=Counter)
    num_damaged: Counter[str] = field(default_factory=Counter)
    found: dict[str, Counter[str]] = field(default_factory=dict)

    def recall(self, damage: str | None = None, check: str = "any") -> float:
        """Returns the share of damaged rows that are found; of one kind, or of all rows."""
        kinds = [damage] if damage else list(self.found)
        total = sum(self.num_damaged[kind] for kind in kinds)
        return sum(self.found[kind][check] for kind in kinds) / total if total else float("nan")

    def false_alarm_rate(self, check: str = "any") -> float:
        """Returns the share of undamaged rows that are flagged."""
        return self.false_alarms[check] / self.num_clean

    def precision(self, check: str = "any") -> float:
        """Returns the share of damaged rows among those that are flagged."""
        hits = sum(counts[check] for counts in self.found.values())
        total = hits + self.false_alarms[check]
        return hits / total if total else float("nan")


class _Values(NamedTuple):
    clean: list[Mapping[str, float]]
    damaged: dict[str, list[Mapping[str, float]]]


def measure_lengths(rows: Sequence[Row], lang: str) -> tuple[float, float]:
    """Measures the characters of a translation per English character, and their spread.

    Returns:
        Ratio, and standard deviation for a text of one character.
    """
    sizes: dict[str, list[tuple[int, int]]] = {}
    for row in rows:
        for english, text in zip(row.english, row.texts[lang], strict=True):
            if len(english.text.split()) > 1:
                size = len(english.text.strip()), len(text.text.strip())
                sizes.setdefault(row.kind, []).append(size)
    # by kind: otherwise the kind with the most sentences would decide alone
    ratios = [float(np.divide(*np.sum(some, axis=0)[::-1])) for some in sizes.values()]
    ratio = float(np.mean(ratios))
    squares = [
        np.mean([deviation(a, b, ratio, 1.0) ** 2 for a, b in some]) for some in sizes.values()
    ]
    return round(ratio, 2), round(float(np.sqrt(np.mean(squares))), 2)


def calibrate(rows: Sequence[Row], lang: str, seed: int = 0) -> Thresholds:
    """Measures lengths and limits.

    Args:
        rows: Rows that people translated.
        lang: Code of the language.
        seed: Seed of the choice of damaged texts and of the damage.

    Returns:
        The language's thresholds with the measured values.
    """
    ratio, spread = measure_lengths(rows, lang)
    thresholds = msgspec.structs.replace(
        get_thresholds(lang), length_ratio=ratio, length_spread=spread
    )
    checker = Checker(lang, thresholds)
    clean = [verdict.values for verdict in _verdicts(checker, _pairs(rows, lang))]
    limits: dict[str, float] = {}
    for check, damage in GRADED.items():
        good = [figures[check] for figures in clean if check in figures]
        if not good:
            continue
        bad = [
            verdict.values[check]
            for verdict in _verdicts(checker, damaged(damage, rows, lang, seed))
            if check in verdict.values
        ]
        limit = float(np.quantile(good, 1 - FALSE_ALARMS, method="higher"))
        least = float(np.quantile(bad, MISSED)) if bad else 0.0
        # if the damage does not affect the value, the limit can only be loosened
        limit = (limit + least) / 2 if least > limit else max(limit, DEFAULT_LIMITS[check])
        limits[check] = math.ceil(limit * 100) / 100
    return thresholds.with_limits(limits)


def evaluate(
    rows: Sequence[Row], lang: str, thresholds: Thresholds | None = None, seed: int = 0
) -> Report:
    """Damages rows and counts the rows that the checks find.

    Args:
        rows: Rows that people translated.
        lang: Code of the language.
        thresholds: Limits of the checks; default: the language's own.
        seed: Seed of the choice of damaged texts and of the damage.
    """
    checker = Checker(lang, thresholds)
    report = Report(num_clean=len(rows))
    for verdict in _verdicts(checker, _pairs(rows, lang)):
        report.false_alarms.update(_named(verdict))
    for damage in DAMAGES:
        verdicts = _verdicts(checker, damaged(damage, rows, lang, seed))
        report.num_damaged[damage] = len(verdicts)
        report.found[damage] = Counter()
        for verdict in verdicts:
            report.found[damage].update(_named(verdict))
    return report


def built_in_rows(num_rows: int, languages: Sequence[str], seed: int = 0) -> list[Row]:
    """Returns rows of the built-in corpus, each of its own scene, of all kinds.

    Args:
        num_rows: Number of rows.
        languages: Codes of the languages other than English.
        seed: Seed of the choice of scenes.

    Raises:
        DataError: The built-in corpus is missing, or has fewer scenes.
    """
    from lrm_ext.emoji.scenes import load_scenes

    scenes = random.Random(seed).sample(load_scenes(), num_rows)
    kinds = [KINDS[i % len(KINDS)] for i in range(num_rows)]
    return [scene_row(scene, kind, languages) for scene, kind in zip(scenes, kinds, strict=True)]


def _pairs(rows: Sequence[Row], lang: str) -> list[tuple[Turns, Turns]]:
    return [(row.english, row.texts[lang]) for row in rows]


def _verdicts(checker: Checker, pairs: Sequence[tuple[Turns, Turns]]) -> list[RowVerdict]:
    return [checker.check_turns(english, turns) for english, turns in pairs]


def _named(verdict: RowVerdict) -> list[str]:
    names = [finding.check for finding in verdict.findings]
    status = ["rejected"] if verdict.status == "rejected" else []
    return ["any", *status, *names] if names else []


Turns = tuple[Turn, ...]

MIN_WORDS = 4
"""Turns with fewer words get no damage that would not be an error: "Foto" is German and Czech."""
_NUMBER = re.compile(r"(?<!\w)\d+(?!\w)")
_OPTION = re.compile(r"^[A-H]\. ", re.MULTILINE)
_ENDS = ".!?。！？"


class Row(NamedTuple):
    """A row with human translations.

    Attributes:
        english: Its English turns.
        texts: Its turns in other languages.
        kind: Kind of the row; rows of a kind have equally many turns, with similar questions.
    """

    english: Turns
    texts: Mapping[str, Turns]
    kind: str


class Place(NamedTuple):
    """The place of a damage.

    Attributes:
        row: The row.
        lang: Its language.
        other: Another row of the same kind.
        rng: Generator for the choice of damaged texts and of the damage.
    """

    row: Row
    lang: str
    other: Row
    rng: random.Random


Damage = Callable[[Place], Turns | None]


def wrong_language(place: Place) -> Turns | None:
    """Replaces a sentence by one in another of the languages."""
    others = [lang for lang in place.row.texts if lang != place.lang]
    if not others:
        return None
    return _with_turn_of(place, place.row.texts[place.rng.choice(others)])


def copied(place: Place) -> Turns | None:
    """Replaces a sentence by its English original."""
    return _with_turn_of(place, place.row.english)


def cut(place: Place) -> Turns | None:
    """Cuts a sentence off after a third to two thirds of its length."""

    def cut_text(text: str) -> str:
        is_spaced = get_language(place.lang).spaced
        words = text.split(" ") if is_spaced else list(text)
        num_kept = max(1, int(len(words) * place.rng.uniform(1 / 3, 2 / 3)))
        return (" " if is_spaced else "").join(words[:num_kept])

    return _change(place, lambda i, text: cut_text(text) if _is_long(place, i) else None)


def doubled(place: Place) -> Turns | None:
    """Repeats a whole text."""
    glue = " " if get_language(place.lang).spaced else ""
    return _change(place, lambda i, text: f"{text}{glue}{text}" if text.strip(_ENDS) else None)


def number_changed(place: Place) -> Turns | None:
    """Replaces a number by another one."""

    def change(text: str) -> str | None:
        found = list(_NUMBER.finditer(text))
        if not found:
            return None
        match = place.rng.choice(found)
        other = int(match[0]) + place.rng.randint(1, 9)
        return f"{text[: match.start()]}{other}{text[match.end() :]}"

    return _change(place, lambda i, text: change(text))


def option_lost(place: Place) -> Turns | None:
    """Removes the letter of an answer option, or the option itself."""

    def change(text: str) -> str | None:
        lines = text.split("\n")
        options = [i for i, line in enumerate(lines) if _OPTION.match(line)]
        if not options:
            return None
        at = place.rng.choice(options)
        lines[at : at + 1] = [lines[at][3:]] if place.rng.random() < 0.5 else []
        return "\n".join(lines)

    return _change(place, lambda i, text: change(text))


def shuffled(place: Place) -> Turns | None:
    """Replaces the translation by that of another row."""
    turns = place.other.texts[place.lang]
    return turns if turns != place.row.texts[place.lang] else None


def mojibake(place: Place) -> Turns | None:
    """Decodes UTF-8 with a wrong encoding."""
    encoding = place.rng.choice(("cp1252", "latin-1"))

    def change(text: str) -> str | None:
        return text.encode().decode(encoding, errors="replace") if not text.isascii() else None

    return _change(place, lambda i, text: change(text))


DAMAGES: Mapping[str, Damage] = MappingProxyType(
    {
        "wrong language": wrong_language,
        "cut": cut,
        "doubled": doubled,
        "copied": copied,
        "number changed": number_changed,
        "option lost": option_lost,
        "shuffled rows": shuffled,
        "mojibake": mojibake,
    }
)


def damaged(name: str, rows: Sequence[Row], lang: str, seed: int = 0) -> list[tuple[Turns, Turns]]:
    """Does one kind of damage to all rows that allow it.

    Args:
        name: One of `DAMAGES`.
        rows: Rows that people translated.
        lang: The language whose texts are damaged.
        seed: Seed of the choice of damaged texts and of the damage.

    Returns:
        English turns and damaged turns.
    """
    by_kind: dict[str, list[Row]] = {}
    for row in rows:
        by_kind.setdefault(row.kind, []).append(row)
    result: list[tuple[Turns, Turns]] = []
    for kind, some in by_kind.items():
        for i, row in enumerate(some):
            rng = random.Random(f"{seed}/{name}/{lang}/{kind}/{i}")
            turns = DAMAGES[name](Place(row, lang, some[(i + 1) % len(some)], rng))
            if turns is not None:
                result.append((row.english, turns))
    return result


def _change(place: Place, change: Callable[[int, str], str | None]) -> Turns | None:
    """Changes the first turn that can be changed; `<image>` and its line end stay."""
    turns = list(place.row.texts[place.lang])
    for i in place.rng.sample(range(len(turns)), len(turns)):
        head, token, text = turns[i].text.rpartition(f"{DEFAULT_IMAGE_TOKEN}\n")
        changed = change(i, text)
        if changed is not None and changed != text:
            turns[i] = replace(turns[i], text=head + token + changed)
            return tuple(turns)
    return None


def _with_turn_of(place: Place, others: Turns) -> Turns | None:
    def change(index: int, text: str) -> str | None:
        if not _is_long(place, index):
            return None
        return others[index].text.rpartition(f"{DEFAULT_IMAGE_TOKEN}\n")[2]

    return _change(place, change)


def _is_long(place: Place, index: int) -> bool:
    text = place.row.english[index].text.rpartition(f"{DEFAULT_IMAGE_TOKEN}\n")[2]
    return len(text.split()) >= MIN_WORDS


_LETTERS = "ABCD"


def scene_row(scene: Scene, kind: str, languages: Sequence[str]) -> Row:
    """Returns a scene as a row, without languages that lack a name of a thing in it.

    Args:
        scene: The scene.
        kind: One of `KINDS`.
        languages: Codes of the languages other than English.
    """
    make = _MAKERS[kind]
    texts: dict[str, Turns] = {}
    for lang in languages:
        with suppress(KeyError):
            texts[lang] = make(scene, lang)
    return Row(make(scene, ENGLISH), texts, kind)


def _is_built_in(lang: str) -> bool:
    with suppress(ConfigError):
        return bool(get_vocabulary(lang))
    return False


def option_turns(scene: Scene, lang: str) -> Turns:
    """Returns turns about the objects shown, with four options, and about their number."""
    rng = random.Random(f"options/{scene.id}")
    asked, counted = content_question(scene, rng), counting_question(scene, rng)
    names = {concept: concepts_by_id()[concept].names for concept in concept_ids()}
    question, answer = render_question(asked, scene, lang)
    # by the English name, so that every language lists the same objects
    right = render_question(asked, scene, ENGLISH)[1]
    wrong = [name for name in names.values() if name[ENGLISH] != right]
    options = [name[lang] for name in rng.sample(wrong, len(_LETTERS) - 1)]
    place = rng.randrange(len(_LETTERS))
    options.insert(place, answer)
    listed = [f"{letter}. {name}" for letter, name in zip(_LETTERS, options, strict=True)]
    count, number = render_question(counted, scene, lang)
    return (
        Turn("human", IMAGE_PREFIX + "\n".join([question, *listed])),
        Turn("gpt", _LETTERS[place]),
        Turn("human", count),
        Turn("gpt", number),
    )


_MAKERS: dict[str, Callable[[Scene, str], Turns]] = {
    "questions": question_turns,
    "caption": caption_turns,
    "options": option_turns,
}
KINDS = tuple(_MAKERS)


if __name__ == "__main__":
    main()
