"""Finds errors and oddities in a corpus.

Input: an open corpus, or a dataset before it is imported. Output: findings by kind, with examples:
errors, which training or translation would fail on, and remarks, which a person should know.
Comparing rows takes 24 bytes of memory a row.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.data.sample import MAX_IMAGES, DropPolicy, SampleError
from lrm_ext.corpus.columns import Flags, Turns, row_faults, to_flags
from lrm_ext.corpus.importing import NUM_THREADS, ImageFolder, ImportSource, row_batches
from lrm_ext.corpus.store import Corpus, batch_images
from lrm_ext.corpus.writer import CorpusWriter

MAX_EXAMPLES = 5
LONG_ANSWER = 20_000  # characters; LLaVA's context of 2,048 tokens holds about 8,000 of English
# What a text should not contain, although it can be stored (RE2).
_MARKS = "[\u200e\u200f\u202a-\u202e\u2066-\u2069]"
_CONTROL = "[\x01-\x08\x0b\x0c\x0e-\x1f\x7f\ufffd]|\\x00"

# Records that cannot become rows; they occur in a dataset, not in a corpus.
UNUSABLE = {
    "structure": "a record with an invalid structure, or without turns",
    "no_answer": "a record with a question only",
    "turn_order": "turns that do not alternate, beginning with human",
    "unknown_role": "a turn that is neither human nor gpt",
    "empty_turn": "a turn without text",
    "too_many_images": f"a record with more than {MAX_IMAGES} images",
    "video": "a record with a video",
    "audio": "a record with audio",
    "system_prompt": "a record with a system prompt of its own",
    "image_mismatch": "<image> without an image, or not one <image> for each image",
    "outside_root": "an image path outside the image folder",
    "other_language": "a record in another language than English",
    "invalid_utf8": "a byte that is not UTF-8",
    "half_character": "half of a surrogate pair",
    "embedded_picture": "an image that is embedded in the file",
}
ERRORS = {
    **UNUSABLE,
    "no turns": "a row without turns",
    "missing_picture": "an image that does not exist",
    "broken_picture": "an image that cannot be opened",
    "too_many_pixels": "an image that would take gigabytes to decode",
    "shape": "an accepted text whose turns or placeholders differ from those of the row",
    "wrong count": "counts of texts that differ from corpus.toml or usable.u32",
}
REMARKS = {
    "duplicate id": "an id that an earlier row has",
    "repeated row": "a row with the image and text of an earlier one",
    "same image, same question": "two rows with the same image and question, but different answers",
    "direction mark": "a right-to-left or left-to-right mark",
    "control character": "a control character, or a replacement character",
    "long answer": f"an answer of more than {LONG_ANSWER:,} characters",
    "ends with a question": "a conversation whose last turn is not trained on",
}


@dataclass
class Findings:
    """The findings in a corpus.

    Attributes:
        counts: Number of rows by kind of finding; the kinds are the keys of `ERRORS` and `REMARKS`.
        examples: The first rows of each kind.
        num_rows: Number of rows that were checked.
    """

    counts: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)
    num_rows: int = 0

    @property
    def num_errors(self) -> int:
        """Number of findings that are errors."""
        return sum(count for kind, count in self.counts.items() if kind not in REMARKS)

    def add(self, kind: str, where: str, count: int = 1) -> None:
        """Counts one finding, or `count` findings of which the first is at `where`."""
        self.counts[kind] += count
        kept = self.examples.setdefault(kind, [])
        if len(kept) < MAX_EXAMPLES:
            kept.append(where)


class _Collector(DropPolicy):
    """Turns records that cannot be used into findings; never raises."""

    def __init__(self, findings: Findings) -> None:
        super().__init__()
        self._findings = findings

    def drop(self, error: SampleError) -> None:
        self._findings.add(error.reason, str(error))


def validate_source(source: ImportSource, images: Path, **options: object) -> Findings:
    """Checks a dataset as if it were imported, using a temporary corpus.

    Args:
        source: The dataset.
        images: Image folder.
        **options: See `validate`.

    Raises:
        DataError: The dataset cannot be read any further; the error names file and line.
    """
    findings = Findings()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus"
        with CorpusWriter(path, (), image_root=str(images.resolve())) as writer:
            for batch in row_batches(source, ImageFolder(images), _Collector(findings)):
                writer.append_rows(batch)
        return validate(Corpus.open(path), findings=findings, **options)  # type: ignore[arg-type]


def validate(
    corpus: Corpus,
    *,
    verify_images: bool = False,
    progress: Callable[[int, int], None] = lambda done, total: None,
    findings: Findings | None = None,
) -> Findings:
    """Checks every row and text.

    Args:
        corpus: The corpus.
        verify_images: Also open every image.
        progress: Called with the number of rows done and of all rows; each language is another
            pass.
        findings: Findings to add to.

    Raises:
        DataError: A file of the corpus is damaged, so that its rows cannot be read.
    """
    findings = Findings() if findings is None else findings
    hashes = np.empty((3, len(corpus)), dtype=np.int64)
    languages = corpus.languages[1:]
    total = len(corpus) * (1 + len(languages))
    first = 0
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        folder = ImageFolder(corpus.image_root, pool if verify_images else None)
        for batch in corpus.row_batches():
            here = slice(first, first + len(batch))
            _note(findings, _of_rows(batch, folder), batch, first)
            hashes[:, here] = _hashes(batch)
            first = here.stop
            progress(first, total)
    _repeated(corpus, hashes, findings)
    for number, lang in enumerate(languages, start=1):
        done = number * len(corpus)
        _check_language(corpus, lang, findings, lambda n, done=done: progress(done + n, total))  # type: ignore[misc]
    findings.num_rows = len(corpus)
    return findings


def _note(
    findings: Findings,
    found: Mapping[str, Flags],
    batch: pa.RecordBatch,
    first: int,
    lang: str = "",
) -> None:
    for kind, flags in found.items():
        for i in np.flatnonzero(flags).tolist():
            name = batch.column("id")[i].as_py() if findings.counts[kind] < MAX_EXAMPLES else ""
            findings.add(kind, f"row {first + i} ({name}){lang}")


def _of_rows(batch: pa.RecordBatch, images: ImageFolder) -> dict[str, Flags]:
    turns = Turns.of(batch.column("turns"))
    found = row_faults(batch, turns)
    found["ends with a question"] = turns.sizes % 2 == 1
    found |= _of_texts(turns)
    for i, problem in enumerate(images.problems(batch_images(batch))):
        if problem is not None:
            flags = found.setdefault(problem.reason, np.zeros(len(batch), dtype=bool))
            flags[i] = True
    return found


def _of_texts(turns: Turns) -> dict[str, Flags]:
    is_long = to_flags(pc.greater(pc.utf8_length(turns.texts), LONG_ANSWER))
    return {
        "direction mark": turns.any(turns.matching(_MARKS)),
        "control character": turns.any(turns.matching(_CONTROL)),
        "long answer": turns.any(is_long & turns.of_role("gpt")),
    }


def _hashes(batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
    """Hashes the id, the images with the first question, and the whole of each row."""
    found = np.empty((3, len(batch)), dtype=np.int64)
    texts = pa.ListArray.from_arrays(
        pa.array(batch.column("turns").offsets), batch.column("turns").values.field("text")
    )
    columns = (batch.column("id").to_pylist(), batch_images(batch), texts.to_pylist())
    for i, (name, images, said) in enumerate(zip(*columns, strict=True)):
        found[:, i] = hash(name), hash((images, *said[:1])), hash((images, *said))
    return found


def _repeated(corpus: Corpus, hashes: npt.NDArray[np.int64], findings: Findings) -> None:
    """Compares rows with each other; equal 64-bit hashes count as equal."""
    ids, asked, said = hashes
    order = np.argsort(ids, kind="stable")
    repeats = np.flatnonzero(ids[order[1:]] == ids[order[:-1]])
    _note_pairs(corpus, findings, "duplicate id", order, repeats)
    # the first row in place of the hash, which Python seeds anew in each process
    _, first, places = np.unique(said, return_index=True, return_inverse=True)
    said = first[places]
    order = np.lexsort((said, asked))  # stable: of equal ones the earlier row comes first
    same_question = asked[order[1:]] == asked[order[:-1]]
    same = said[order[1:]] == said[order[:-1]]
    _note_pairs(corpus, findings, "repeated row", order, np.flatnonzero(same_question & same))
    otherwise = np.flatnonzero(same_question & ~same)
    has_image = np.array([bool(corpus.row(int(order[i])).images) for i in otherwise], bool)
    _note_pairs(corpus, findings, "same image, same question", order, otherwise[has_image])


def _note_pairs(
    corpus: Corpus,
    findings: Findings,
    kind: str,
    order: npt.NDArray[np.int64],
    positions: npt.NDArray[np.int64],
) -> None:
    """Counts neighbours in `order`; the first ones in the corpus become examples."""
    pairs = np.sort(np.stack([order[positions], order[positions + 1]]), axis=0)
    pairs = pairs[:, np.argsort(pairs[1], kind="stable")]
    for left, right in pairs[:, :MAX_EXAMPLES].T.tolist():
        names = dict.fromkeys((corpus.row(left).id, corpus.row(right).id))
        findings.add(kind, f"rows {left} and {right} ({', '.join(names)})")
    if pairs.shape[1] > MAX_EXAMPLES:
        findings.add(kind, "", pairs.shape[1] - MAX_EXAMPLES)


def _check_language(
    corpus: Corpus, lang: str, findings: Findings, progress: Callable[[int], None]
) -> None:
    """Checks the texts in a language, and their counts."""
    statuses: Counter[str] = Counter()
    usable = [np.zeros(0, dtype=np.int64)]
    first = 0
    for rows, texts in zip(corpus.row_batches(), corpus.text_batches(lang), strict=True):
        status = texts.column("status")
        statuses.update(status.drop_null().to_pylist())
        turns = Turns.of(texts.column("turns"))
        is_ok = to_flags(pc.equal(status, "ok"))
        found = {**_of_texts(turns), "shape": is_ok & _differ(turns, rows)}
        _note(findings, found, rows, first, f", {lang}")
        usable.append(first + np.flatnonzero(is_ok & to_flags(rows.column("translatable"))))
        first += len(rows)
        progress(first)
    if Counter(corpus.statuses(lang)) != statuses:
        stated = corpus.statuses(lang)
        findings.add("wrong count", f"{lang}: corpus.toml has {stated}, found {dict(statuses)}")
    if not np.array_equal(corpus.usable_rows(lang), np.concatenate(usable)):
        findings.add("wrong count", f"{lang}: usable.u32 does not list the rows that are usable")


def _differ(texts: Turns, rows: pa.RecordBatch) -> Flags:
    """Tells which texts differ from their row in roles or placeholders."""
    turns = Turns.of(rows.column("turns"))
    differ = texts.sizes != turns.sizes
    # without the rows of different length, turns of text and row line up
    ours, theirs = (np.repeat(~differ, side.sizes) for side in (texts, turns))
    is_other = np.zeros(len(ours), dtype=bool)
    is_other[ours] = _shapes(texts)[ours] != _shapes(turns)[theirs]
    return differ | texts.any(is_other)


def _shapes(turns: Turns) -> npt.NDArray[np.object_]:
    """Returns the role and the number of images of each turn."""
    num_images = pc.cast(pc.count_substring(turns.texts, DEFAULT_IMAGE_TOKEN), pa.string())
    shapes = pc.binary_join_element_wise(turns.roles, num_images, " ")
    return shapes.to_numpy(zero_copy_only=False)
