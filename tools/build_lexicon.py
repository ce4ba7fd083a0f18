"""Builds the lexicons of the check `meaning` from Unicode CLDR's names and keywords of emoji.

    apt-get install unicode-cldr-core
    python tools/build_lexicon.py            # writes lrm_ext/translate/quality/data/*.json
    python tools/build_lexicon.py --lang sk  # adds a language

Names are aligned with names and keywords with keywords (IBM model 1), which also finds words that
occur only within several names, such as colours. `--check` writes nothing and compares.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from lrm_ext.languages.registry import PAPER_LANGUAGES, get_language
from lrm_ext.translate.quality.content_checks import DATA_DIR, english_key, stem

#!/usr/bin/env python3


ANNOTATIONS_DIR = Path("/usr/share/unicode/cldr/common/annotations")
# Function words in names, which carry no meaning by themselves.
STOP = frozenset(
    "a an and at by for from in is it no not of off on or out over the to up with".split()
)
_WORD = re.compile(r"[^\W\d_]+")


def main() -> int:
    """Writes or compares; returns 1 if a file differs."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--annotations", type=Path, default=ANNOTATIONS_DIR)
    parser.add_argument("--lang", action="append", help="code of a language; default: the paper's")
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    args = parser.parse_args()
    if not (args.annotations / "en.xml").is_file():
        sys.exit(f"{args.annotations}/en.xml is missing: apt-get install unicode-cldr-core")
    english = read_annotations(args.annotations / "en.xml")
    differ = 0
    for lang in args.lang or [code for code in PAPER_LANGUAGES if code != "en"]:
        other = read_annotations(args.annotations / f"{lang}.xml")
        lexicon = learn_lexicon(bag_pairs(english, other, get_language(lang).spaced), stop=STOP)
        lines = [
            f"{json.dumps(word)}: {json.dumps(translations, ensure_ascii=False)}"
            for word, translations in lexicon.items()
        ]
        text = "{\n" + ",\n".join(lines) + "\n}\n"
        path = DATA_DIR / f"{lang}.json"
        if args.check:
            same = path.is_file() and path.read_text(encoding="utf-8") == text
            differ += not same
        else:
            DATA_DIR.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        sys.stdout.write(
            f"{path.name}: {len(lexicon)} words, {len(text.encode()) / 1024:.0f} KiB\n"
        )
    return 1 if differ else 0


def read_annotations(path: Path) -> dict[str, tuple[str, list[str]]]:
    """Returns names and keywords by emoji."""
    names: dict[str, str] = {}
    keywords: dict[str, list[str]] = {}
    for element in ET.parse(path).getroot().iter("annotation"):
        character, text = element.get("cp") or "", element.text or ""
        if "↑" in text:  # "as in the parent language"
            continue
        if element.get("type") == "tts":
            names[character] = text
        else:
            keywords[character] = [word.strip() for word in text.split("|")]
    return {c: (name, keywords.get(c, [])) for c, name in names.items()}


def bag_pairs(
    english: dict[str, tuple[str, list[str]]],
    other: dict[str, tuple[str, list[str]]],
    is_spaced: bool,
) -> list[tuple[Bag, Bag]]:
    """Returns pairs of English words and the other language's stems with the same meaning."""
    pairs: list[tuple[Bag, Bag]] = []
    for character in english.keys() & other.keys():
        (name, keywords), (other_name, other_keywords) = english[character], other[character]
        pairs.append((english_bag([name]), bag([other_name], is_spaced)))
        if keywords and other_keywords:
            pairs.append((english_bag(keywords), bag(other_keywords, is_spaced)))
    # sets have no order, and sums of floats depend on the order
    return sorted((a, b) for a, b in pairs if a and b)


def english_bag(texts: list[str]) -> Bag:
    """Returns the keys of the English words of some texts."""
    found = (english_key(word) for text in texts for word in _WORD.findall(text.casefold()))
    return sorted({word for word in found if word not in STOP and len(word) > 1})


def bag(texts: list[str], is_spaced: bool) -> Bag:
    """Returns the stems of some texts' words; in languages without blanks, characters and pairs."""
    found: set[str] = set()
    for text in texts:
        for word in _WORD.findall(text.casefold()):
            if is_spaced:
                found.add(stem(word))
            elif not word.isascii():
                found.update(word[i : i + size] for size in (1, 2) for i in range(len(word)))
    return sorted(found)


NUM_ROUNDS = 6
_NOTHING = ""  # a word may be aligned with no word

Bag = Sequence[str]
Table = dict[str, dict[str, float]]


def translation_table(pairs: Sequence[tuple[Bag, Bag]], num_rounds: int = NUM_ROUNDS) -> Table:
    """Estimates the probability of each word of the second side, given one of the first.

    Args:
        pairs: Bags of words that mean about the same.
        num_rounds: Rounds of expectation maximisation.

    Returns:
        For each word of the first side, probabilities of words of the second.
    """
    table: Table = defaultdict(dict)
    for first, second in pairs:
        for word in (_NOTHING, *first):
            table[word].update(dict.fromkeys(second, 1.0))
    for _ in range(num_rounds):
        counts: Table = defaultdict(lambda: defaultdict(float))
        for first, second in pairs:
            for other in second:
                shares = {word: table[word][other] for word in (_NOTHING, *first)}
                total = sum(shares.values())
                for word, share in shares.items():
                    counts[word][other] += share / total
        table = {}
        for word, found in counts.items():
            total = sum(found.values())
            table[word] = {other: count / total for other, count in found.items()}
    return table


def learn_lexicon(
    pairs: Sequence[tuple[Bag, Bag]],
    min_score: float = 0.03,
    max_translations: int = 4,
    stop: Iterable[str] = (),
) -> dict[str, list[str]]:
    """Finds the words that translate each other.

    Args:
        pairs: Bags of words that mean about the same, English first.
        min_score: Smallest product of the probabilities of both directions.
        max_translations: Largest number of translations per word, the best first.
        stop: English words to leave out.

    Returns:
        English words and their translations.
    """
    forth = translation_table(pairs)
    back = translation_table([(second, first) for first, second in pairs])
    left_out = {_NOTHING, *stop}
    lexicon: dict[str, list[str]] = {}
    for word in sorted(set(forth) - left_out):
        scores = Counter(
            {
                other: share * back.get(other, {}).get(word, 0.0)
                for other, share in forth[word].items()
            }
        )
        # equal scores in alphabetical order, so that every build gives the same lexicon
        best = sorted(scores.items(), key=lambda item: (-item[1], item[0]))[:max_translations]
        kept = [other for other, score in best if score >= min_score]
        if kept:
            lexicon[word] = kept
    return lexicon


if __name__ == "__main__":
    sys.exit(main())
