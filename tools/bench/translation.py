"""Protection and checks of translations, and the cache, against the plain method; rows a second.

Usage: python tools/bench/translation.py [--rows 20000] [--lookups 200000] [--json FILE]

A row is a question and an answer about an image, in English and in a human translation, from the
built-in corpus; every second row asks for a caption, every fourth text contains a quotation and a
number. In "no text twice" a name makes every text unique, so that no result can be reused; in "as
they are" texts repeat as they do in the corpus. "ours" splits a row, masks the protected parts,
restores them in the translation, looks for damage, joins the row and runs all checks, as `lrm
translate` does around an engine. "peer" is the usual script: py3langid's `classify` on each turn
and a ratio of lengths; nothing is protected. Both return the human texts ("equal").

Cache: half of the segments are present. "ours" looks up a batch at once, "peer" runs one query per
segment. Each side runs on one core; seconds are processor time.
"""

from __future__ import annotations

import argparse
import json
import random
import sqlite3
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from llava.data.sample import Turn
from lrm_ext.corpus.store import CorpusRow, CorpusText
from lrm_ext.emoji.conversations import IMAGE_PREFIX, caption_turns, question_turns
from lrm_ext.emoji.scenes import load_scenes
from lrm_ext.languages.registry import ENGLISH, get_language
from lrm_ext.translate.cache import Cache, CachedAnswer, Keys
from lrm_ext.translate.engines.base import TextSegment, Usage, build_engine
from lrm_ext.translate.protect import damaged_parts, mask, restore
from lrm_ext.translate.quality import Checker
from lrm_ext.translate.runner import collecting_rarely
from lrm_ext.translate.segment import Translated, Unit, build_texts, plan_row

_BATCH = 2048  # rows per part; segments per lookup
_LETTERS = "abdegiklmnoprstuv"


class Case(NamedTuple):
    """A row, the answers of an engine for its lines, and the expected result."""

    row: CorpusRow
    answers: dict[str, str]
    target: tuple[str, ...]


def main() -> None:
    """Measures, prints the results and optionally saves them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--lookups", type=int, default=200_000)
    parser.add_argument("--lang", default="hr,zh")
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    entries = []
    for lang in arguments.lang.split(","):
        for name, is_unique in (("no text twice", True), ("as they are", False)):
            cases = make_cases(arguments.rows, lang, is_unique)
            entries.append(bench_rows(f"protect and check, {lang}, {name}", cases, lang))
    entries.append(bench_cache(arguments.lookups))
    show(entries)
    if arguments.json:
        arguments.json.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")


def make_cases(num_rows: int, lang: str, is_unique: bool) -> list[Case]:
    """Returns rows with the answers of an engine that translates as people did."""
    rng = random.Random(0)
    scenes = load_scenes()
    cases = []
    for i in range(num_rows):
        turns_of = caption_turns if i % 2 else question_turns
        scene = scenes[i % len(scenes)]
        english, other = turns_of(scene, ENGLISH)[:2], turns_of(scene, lang)[:2]
        sources, targets, answers = [], [], {}
        for k, (ours, theirs) in enumerate(zip(english, other, strict=True)):
            source, target = (t.text.removeprefix(IMAGE_PREFIX) for t in (ours, theirs))
            if is_unique and " " in source:
                name = "".join(rng.choices(_LETTERS, k=8)).capitalize()
                source, target = f"{name}: {source}", f"{name}: {target}"
            answer = target
            if (i + k) % 4 == 3 and " " in source:
                part = f'"{rng.choice(("STOP", "EXIT", "OPEN"))}", {rng.randrange(100)}'
                source, answer = f"{part} {source}", f"[[0]]{part[6:]} {target}"
                target = f"{part} {target}"
            answers[source] = answer
            head, tail = (IMAGE_PREFIX, "") if k == 0 else ("", "")
            if i % 2 == 0 and k == 0:
                tail = "\n" + get_language(ENGLISH).short_answer
                target += "\n" + get_language(lang).short_answer
            sources.append(Turn(ours.role, head + source + tail))
            targets.append(head + target)
        row = CorpusRow(str(i), "x.png", "bench", None, True, tuple(sources))
        cases.append(Case(row, answers, tuple(targets)))
    return cases


def bench_rows(name: str, cases: Sequence[Case], lang: str) -> dict[str, Any]:
    """Returns the entry of one kind of rows."""
    run_ours(cases[:200], lang), run_peer(cases[:200], lang)  # triggers one-time loading
    start = time.process_time()
    texts = run_ours(cases, lang)
    ours = len(cases) / (time.process_time() - start)
    start = time.process_time()
    run_peer(cases, lang)
    peer = len(cases) / (time.process_time() - start)
    accepted = sum(text.status == "ok" for text in texts)
    equal = all(
        tuple(turn.text for turn in text.turns) == case.target
        for text, case in zip(texts, cases, strict=True)
    )
    return {
        "name": name, "ours": ours, "peer": peer, "ratio": ours / peer, "unit": "rows/s",
        "equal": equal, "accepted": accepted / len(cases),
    }  # fmt: skip


@collecting_rarely()
def run_ours(cases: Sequence[Case], lang: str) -> list[CorpusText]:
    """Does all the work of `lrm translate` around an engine."""
    checker = Checker(lang)
    texts = []
    for start in range(0, len(cases), _BATCH):
        some = cases[start : start + _BATCH]
        plans = [plan_row(case.row, lang) for case in some]
        translations: dict[Unit, Translated] = {}
        for plan, case in zip(plans, some, strict=True):
            for unit in plan.units:
                if unit not in translations:
                    translations[unit] = _translated(unit, case.answers[unit.text])
        texts += build_texts(plans, translations, checker.check_rows)
    return texts


def _translated(unit: Unit, answer: str) -> Translated:
    masked = mask(unit.text)
    text = restore(masked, answer) if masked else None
    if text is None or damaged_parts(unit.text, text):
        return Translated(None, "bench", "protected")
    return Translated(text, "bench")


def run_peer(cases: Sequence[Case], lang: str) -> int:
    """Checks each turn's language and length, the plain method."""
    import py3langid

    good = 0
    for case in cases:
        for turn, target in zip(case.row.turns, case.target, strict=True):
            found, _ = py3langid.classify(target)
            good += found == lang and 0.3 < len(target) / len(turn.text) < 3
    return good


def bench_cache(num_lookups: int) -> dict[str, Any]:
    """Returns the entry of the cache."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cache.sqlite"
        cache = Cache(path)
        engine = build_engine("memory", {}, "hr", cache)
        keys = Keys(engine, ENGLISH, "hr")
        segments = [TextSegment(f"Is there a cat in picture {i}?") for i in range(num_lookups)]
        for start in range(0, num_lookups, _BATCH):
            some = segments[start : start + _BATCH : 2]
            answers = {keys.key(s): CachedAnswer(f"Ima li mačke? {s.text}", None) for s in some}
            cache.put(answers, engine, "hr", Usage())
        random.Random(0).shuffle(segments)
        clock = time.process_time()
        ours: dict[bytes, CachedAnswer] = {}
        for start in range(0, num_lookups, _BATCH):
            ours |= cache.get_many([keys.key(s) for s in segments[start : start + _BATCH]])
        ours_s = time.process_time() - clock
        cache.close()
        database = sqlite3.connect(path)
        clock = time.process_time()
        peer: dict[bytes, CachedAnswer] = {}
        for segment in segments:
            key = keys.key(segment)
            query = "SELECT text, error FROM answers WHERE key = ?"
            if found := database.execute(query, (key,)).fetchone():
                peer[key] = CachedAnswer(*found)
        peer_s = time.process_time() - clock
        database.close()
    return {
        "name": f"cache, {num_lookups:,} segments", "ours": num_lookups / ours_s,
        "peer": num_lookups / peer_s, "ratio": peer_s / ours_s, "unit": "look-ups/s",
        "equal": ours == peer and len(ours) == (num_lookups + 1) // 2,
    }  # fmt: skip


def show(entries: list[dict[str, Any]]) -> None:
    """Prints the results as a table."""
    table = Table("measured", "ours", "the plain way", "times faster", "equal", "accepted")
    for entry in entries:
        sides = [f"{entry[side]:,.0f} {entry['unit']}" for side in ("ours", "peer")]
        equal = "yes" if entry["equal"] else "NO"
        accepted = f"{entry['accepted']:.1%}" if "accepted" in entry else "-"
        table.add_row(entry["name"], *sides, f"{entry['ratio']:.1f}", equal, accepted)
    Console(soft_wrap=True).print(table)


if __name__ == "__main__":
    main()
