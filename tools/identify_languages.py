"""Measures how well languages are identified: recall and precision in each, by length of text.

Usage: python tools/identify_languages.py [--languages hr,sw] [--markdown]

Each text is told apart among all languages that have a file (`identify`). The texts are captions
and questions about scenes of the built-in corpus, and the answers of
tests/lrm_ext/languages/answers. The requests of the language files are left out, because languages
are told by the words of these files, too. Those that py3langid does not know are marked by * in the
table; the corpus lacks two of them, which have answers only. Texts of fewer than four words, or six
letters where no blanks separate words, are short.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from llava.files import load_toml
from lrm_ext.corpus.sentences import built_in_pairs
from lrm_ext.evaluate.kind import MIN_LETTERS_UNSPACED, MIN_WORDS
from lrm_ext.languages.identification import identify, log_scores
from lrm_ext.languages.registry import get_language, list_languages
from lrm_ext.translate.quality.base import words
from tools.calibrate_quality import show

ANSWERS = Path(__file__).parents[1] / "tests" / "lrm_ext" / "languages" / "answers"
LENGTHS = ("short", "long")


@dataclass
class Counts:
    """What texts of one language were taken for, and which texts were taken for it.

    Attributes:
        taken_for: Number of its texts by the language that was told.
        wrong: Number of texts of other languages that were taken for it.
    """

    taken_for: Counter[str] = field(default_factory=Counter)
    wrong: int = 0

    def recall(self, lang: str) -> float:
        """Returns the share of its texts that are told as its own."""
        total = self.taken_for.total()
        return self.taken_for[lang] / total if total else float("nan")

    def precision(self, lang: str) -> float:
        """Returns the share of its own among the texts that are told as its own."""
        total = self.taken_for[lang] + self.wrong
        return self.taken_for[lang] / total if total else float("nan")


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--languages", help="comma-separated codes; default: all that have a file")
    parser.add_argument("--markdown", action="store_true", help="print the table in Markdown")
    args = parser.parse_args()
    codes = tuple(args.languages.split(",")) if args.languages else list_languages()
    show(table(measure(codes)), Console(soft_wrap=args.markdown), args.markdown)


def measure(codes: Sequence[str]) -> dict[str, dict[str, Counts]]:
    """Counts what the texts of some languages are taken for, by length, then by language."""
    counts = {length: {code: Counts() for code in codes} for length in LENGTHS}
    for code in codes:
        for text in texts_of(code):
            told = identify(text, codes)
            of_length = counts[length_of(text, code)]
            of_length[code].taken_for[told] += 1
            if told and told != code:
                of_length[told].wrong += 1
    return counts


def texts_of(code: str) -> Iterator[str]:
    """Yields the texts of a language, each once."""
    requests = {text for _, text in built_in_pairs((code,), num_scenes=0)[code]}
    scenes = [text for _, text in built_in_pairs((code,))[code] if text not in requests]
    answers = ANSWERS / f"{code}.toml"
    table = load_toml(answers) if answers.is_file() else {}
    said = [answer for key in ("yes", "no", "other") for answer in table.get(key, ())]
    yield from dict.fromkeys(text for text in (*scenes, *said) if words(text, code))


def length_of(text: str, code: str) -> str:
    """Returns `short` or `long`."""
    least = MIN_WORDS if get_language(code).spaced else MIN_LETTERS_UNSPACED
    return "long" if len(words(text, code)) >= least else "short"


def table(counts: dict[str, dict[str, Counts]]) -> list[list[str]]:
    """Returns the table, its head first, and the shares of all texts at its end."""
    names = ("texts", "recall", "precision", "taken for")
    lines = [["language", *(f"{length}: {name}" for length in LENGTHS for name in names)]]
    for code in counts["long"]:
        line = [code if code in log_scores(("a",)) else f"{code} *"]
        for length in LENGTHS:
            one = counts[length][code]
            others = [(other, num) for other, num in one.taken_for.most_common(4) if other != code]
            named = ", ".join(f"{other or 'none'} {num}" for other, num in others[:3])
            shares = map(_percent, (one.recall(code), one.precision(code)))
            line += [str(one.taken_for.total()), *shares, named]
        lines.append(line)
    last = ["all"]
    for length in LENGTHS:
        own = sum(one.taken_for[code] for code, one in counts[length].items())
        total = sum(one.taken_for.total() for one in counts[length].values())
        told = own + sum(one.wrong for one in counts[length].values())
        last += [str(total), _percent(own / max(total, 1)), _percent(own / max(told, 1)), ""]
    return [*lines, last]


def _percent(share: float) -> str:
    return "-" if share != share else f"{share:.0%}"


if __name__ == "__main__":
    main()
