"""Measures what the checks of translations find, and writes limits into the language files.

Usage: python tools/calibrate_quality.py [--lang hr,cs] [--write] [--captions DIR] [--markdown]

Human translations are damaged in eight ways (wrong language, cut, doubled, copied, number changed,
option lost, shuffled rows, mojibake). Lengths and limits are measured on one half of the rows and
reported on the other, which shows other scenes. The rows are those of the built-in corpus; with
--captions those of Debian's tuxpaint-stamps-default, too, which people wrote more freely:

    apt-get download tuxpaint-stamps-default && dpkg -x tuxpaint-stamps-default*.deb stamps
    python tools/calibrate_quality.py --captions stamps/usr/share/tuxpaint/stamps --write

or of a file of your own, all of which is reported on (no limits are measured on it):

    python tools/calibrate_quality.py --captions tests/lrm_ext/translation/quality/captions.toml

Nothing of those captions is kept but the few numbers. Without --calibrate or --write the limits are
those of the language files.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from llava.data.sample import Turn
from llava.errors import DataError
from lrm_ext.corpus.emoji.scenes import LANGUAGES
from lrm_ext.languages._toml import load_toml
from lrm_ext.languages.registry import DATA_DIR, ENGLISH
from lrm_ext.translation.quality.calibrating import (
    GRADED,
    Report,
    built_in_rows,
    calibrate,
    evaluate,
)
from lrm_ext.translation.quality.checking import CHECKS, Checker
from lrm_ext.translation.quality.damage import DAMAGES, Row
from lrm_ext.translation.quality.thresholds import Thresholds, get_thresholds

_CODES = {"zh_CN": "zh", "zh_TW": "zh-Hant", "sr@latin": "sr-Latn"}
# Captions in other languages that must not pass for ours; there is more to see in long ones.
_NEAR = {"cs": ("sk",), "hr": ("sr-Latn",), "ru": ("uk", "bg"), "es": ("pt",), "zh": ("zh-Hant",)}
_LONG = 6


def main() -> None:
    """Measure, print, and perhaps write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1000, help="damaged in each of eight ways")
    parser.add_argument("--lang", help="codes, with commas; all of the built-in corpus by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--captions", type=Path, metavar="PATH", help="folder of tuxpaint's stamps, or a .toml file"
    )
    parser.add_argument("--calibrate", action="store_true", help="measure limits anew")
    parser.add_argument("--write", action="store_true", help="and write them to the language files")
    parser.add_argument("--markdown", action="store_true", help="print tables for a document")
    parser.add_argument("--json", type=Path, help="write the figures here, too")
    args = parser.parse_args()
    known = LANGUAGES[1:]
    languages = tuple(args.lang.split(",")) if args.lang else known
    if unknown := sorted(set(languages) - set(known)):
        parser.error(f"--lang {','.join(unknown)}: the built-in corpus has {', '.join(known)}")
    rows = built_in_rows(2 * args.rows, known, args.seed)
    captions = list(caption_rows(args.captions)) if args.captions else []
    random.Random(args.seed).shuffle(captions)
    reports: dict[str, dict[str, Report]] = {"built-in": {}, "captions": {}}
    near: dict[str, dict[str, dict[str, float]]] = {}
    for lang in languages:
        free = [_among(row, known) for row in captions if lang in row.texts]
        half = len(free) // 2 if args.captions and args.captions.is_dir() else 0
        thresholds = get_thresholds(lang)
        if args.calibrate or args.write:
            thresholds = calibrate(rows[: args.rows] + free[:half], lang, args.seed)
        if args.write:
            write_thresholds(DATA_DIR / f"{lang}.toml", thresholds)
        others = rows[args.rows :]
        reports["built-in"][lang] = evaluate(others, lang, thresholds, args.seed)
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
    """A table: false alarms and what is found of each kind of damage, by language."""
    table = [[name, "false alarms", "rejected", "found", *DAMAGES]]
    for lang, report in reports.items():
        shares = [_percent(report.recall(damage)) for damage in DAMAGES]
        alarms = f"{report.false_alarm_rate():.1%} of {report.num_clean}"
        rejected = _percent(report.false_alarm_rate("rejected"))
        table.append([lang, alarms, rejected, _percent(report.recall()), *shares])
    return table


def by_check(name: str, reports: dict[str, Report]) -> list[list[str]]:
    """A table: precision and recall of each check, over all languages."""
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
    """A report as plain values."""
    return {
        "clean": report.num_clean,
        "false alarms": dict(report.false_alarms),
        "damaged": dict(report.num_damaged),
        "found": {damage: dict(counts) for damage, counts in report.found.items()},
    }


def show(table: list[list[str]], console: Console, is_markdown: bool) -> None:
    """Print a table; the first row is its head."""
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
    """Captions in many languages: a .toml file with a table `[[caption]]` each, by language code.

    Or a folder: one file each, English first, `code.utf8=text`.

    Raises:
        DataError: There are none.
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
    """How much of the captions in near languages does not pass for `lang`."""
    checker = Checker(ENGLISH, lang, thresholds)
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
    """Replace what was measured in the [quality] section of a language file, or add it."""
    text = path.read_text(encoding="utf-8")
    match = re.search(r"^\[quality\]\n(?:(?!\[).*\n)*?(?=\n|\[|\Z)", text, re.MULTILINE)
    if match is None:
        raise DataError(f"{path}: no [quality] section; add an empty one where it shall stand.")
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


if __name__ == "__main__":
    main()
