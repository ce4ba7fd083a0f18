"""Looks for what is wrong with a corpus, or only looks wrong.

Input: an open corpus. Output: findings by kind, with examples: errors, which training or
translation would trip over, and remarks, which a person should know of.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.sample import ROLES, Turn
from llava.errors import DataError
from llava.image_file import open_image
from lrm_ext.corpus.layout import ENGLISH, CorpusRow
from lrm_ext.corpus.store import Corpus

MAX_EXAMPLES = 5
LONG_ANSWER = 20_000  # characters; LLaVA's context holds about 8,000
# what a text should not hold, though it can be stored
_MARKS = re.compile("[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]")

ERRORS = {
    "no turns": "a row without turns",
    "roles": "turns that do not alternate, beginning with human",
    "empty turn": "a turn without text",
    "placeholder": "<image> where there is no picture, or not just one where there is",
    "outside": "a picture path that leaves the image root",
    "missing picture": "a picture that is not there",
    "broken picture": "a picture that cannot be opened",
    "shape": "an accepted text whose turns or placeholders are not those of the row",
    "wrong count": "counts in corpus.toml that are not those of the texts",
}
REMARKS = {
    "duplicate id": "an id that an earlier row has",
    "same picture, same question": "two rows that ask the same of a picture and are answered "
    "otherwise",
    "direction mark": "a right-to-left or left-to-right mark",
    "control character": "a control character, or the mark of a character that was lost",
    "long answer": f"an answer of more than {LONG_ANSWER:,} characters",
    "ends with a question": "a conversation whose last turn is not learnt from",
}


@dataclass
class Findings:
    """What was found.

    Attributes:
        counts: Rows by kind of finding; the kinds are those of `ERRORS` and `REMARKS`.
        examples: The first rows of each kind.
        num_rows: Rows looked at.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    num_rows: int = 0

    @property
    def num_errors(self) -> int:
        """Findings that are errors."""
        return sum(count for kind, count in self.counts.items() if kind in ERRORS)

    def add(self, kind: str, where: str) -> None:
        """Count a finding."""
        assert kind in ERRORS or kind in REMARKS
        self.counts[kind] += 1
        kept = self.examples.setdefault(kind, [])
        if len(kept) < MAX_EXAMPLES:
            kept.append(where)


def validate(
    corpus: Corpus,
    *,
    with_pictures: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Findings:
    """Look at every row and text.

    Args:
        corpus: What to look at.
        with_pictures: Open each picture, too.
        progress: Called with rows done and in all.

    Raises:
        DataError: A file of the corpus is damaged, so that its rows cannot be read.
    """
    findings = Findings()
    ids = np.empty(len(corpus), dtype=np.uint64)
    asked = np.empty((len(corpus), 2), dtype=np.uint64)
    statuses: dict[str, Counter[str]] = {lang: Counter() for lang in corpus.languages}
    known: dict[Path, str | None] = {}
    for index in range(len(corpus)):
        row = corpus.row(index)
        where = f"row {index} ({row.id})"
        ids[index] = _hash(row.id)
        question = row.turns[0].text if row.turns else ""
        asked[index] = _hash(f"{row.image}\n{question}"), _hash(str(row.turns))
        for kind in {*_of_row(row), *_of_picture(corpus, index, row, with_pictures, known)}:
            findings.add(kind, where)
        _check_texts(corpus, index, row, findings, statuses)
        if index % 1000 == 999 or index + 1 == len(corpus):
            progress(index + 1, len(corpus))
    findings.num_rows = len(corpus)
    _repeated(corpus, ids, asked, findings)
    for lang, counts in statuses.items():
        if lang != ENGLISH and Counter(corpus.statuses(lang)) != counts:
            stated = dict(corpus.statuses(lang))
            findings.add("wrong count", f"{lang}: stated {stated}, found {dict(counts)}")
    return findings


def _of_row(row: CorpusRow) -> Iterator[str]:
    if not row.turns:
        yield "no turns"
        return
    if any(turn.role != ROLES[i % 2] for i, turn in enumerate(row.turns)):
        yield "roles"
    if any(not turn.text.strip() for turn in row.turns):
        yield "empty turn"
    holders = [turn for turn in row.turns if DEFAULT_IMAGE_TOKEN in turn.text]
    if len(holders) != (row.image is not None) or any(t.role != "human" for t in holders):
        yield "placeholder"
    if len(row.turns) % 2:
        yield "ends with a question"
    yield from _of_texts(row.turns)


def _of_texts(turns: tuple[Turn, ...]) -> Iterator[str]:
    for turn in turns:
        if _MARKS.search(turn.text):
            yield "direction mark"
        if _CONTROL.search(turn.text):
            yield "control character"
        if turn.role == "gpt" and len(turn.text) > LONG_ANSWER:
            yield "long answer"


def _of_picture(
    corpus: Corpus, index: int, row: CorpusRow, opens: bool, known: dict[Path, str | None]
) -> Iterator[str]:
    if row.image is None:
        return
    try:
        path = corpus.image_path(index)
    except DataError:
        yield "outside"
        return
    if path is None or not opens:
        return
    if path not in known:
        known[path] = _problem(path)
    if (problem := known[path]) is not None:
        yield problem


def _problem(path: Path) -> str | None:
    if not path.is_file():
        return "missing picture"
    try:
        open_image(path).close()
    except DataError:
        return "broken picture"
    return None


def _check_texts(
    corpus: Corpus,
    index: int,
    row: CorpusRow,
    findings: Findings,
    statuses: dict[str, Counter[str]],
) -> None:
    for lang in corpus.languages:
        if lang == ENGLISH or (text := corpus.text(lang, index)) is None:
            continue
        statuses[lang][text.status] += 1
        where = f"row {index} ({row.id}), {lang}"
        for kind in set(_of_texts(text.turns)):
            findings.add(kind, where)
        if text.status == "ok" and _shape(text.turns) != _shape(row.turns):
            findings.add("shape", where)


def _repeated(corpus: Corpus, ids: np.ndarray, asked: np.ndarray, findings: Findings) -> None:
    _, first = np.unique(ids, return_index=True)
    for index in np.setdiff1d(np.arange(len(ids)), first).tolist():
        findings.add("duplicate id", f"row {index} ({corpus.row(index).id})")
    order = np.lexsort((np.arange(len(asked)), asked[:, 0]))
    same = asked[order[1:], 0] == asked[order[:-1], 0]
    other = asked[order[1:], 1] != asked[order[:-1], 1]
    for position in np.flatnonzero(same & other).tolist():
        left, right = int(order[position]), int(order[position + 1])
        if corpus.row(right).image is not None:
            findings.add("same picture, same question", f"rows {left} and {right}")


def _shape(turns: tuple[Turn, ...]) -> list[tuple[str, int]]:
    return [(turn.role, turn.text.count(DEFAULT_IMAGE_TOKEN)) for turn in turns]


def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
