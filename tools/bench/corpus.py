"""Import of LLaVA JSON into a corpus, against json.load and dataclasses: time and memory.

Usage: python tools/bench/corpus.py [--rows 10000 100000] [--json FILE]

Records are generated, shaped like LLaVA-1.5's mix: one to nine rounds of an English question and
answer, one record in sixteen without an image. "peer" is `json.load`, then a frozen dataclass for
each record and turn, all kept in memory: the usual approach of a data set class, without checking
or writing anything. "ours" is `lrm corpus import`: it checks each record, applies the rules on
which texts stay English and writes the corpus to disk. Each side runs in its own process, on one
core. Seconds are processor time, including the kernel's, without the import of modules: pyarrow's
first array imports pandas if it is installed, some 0.3 s that a short import pays once. Both
sides compute a checksum of the data that they read; the checksums must agree.

`translation.py` measures how many rows a second are protected and checked.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import resource
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_BLOCK = 10_000  # records that differ in more than their names; after these they repeat
_ROUNDS = (1, 1, 1, 1, 3, 3, 5, 5, 7, 9)
_WORDS = (
    "the a of in on is are and with to what who where which how many picture image man woman dog "
    "table street building people standing holding large small red white behind near front side "
    "background scene appears suggests atmosphere because several visible number text shown"
).split()


@dataclass(frozen=True)
class PeerTurn:
    """A turn as a data set class usually holds it."""

    role: str
    text: str


@dataclass(frozen=True)
class PeerRecord:
    """A record as a data set class usually holds it."""

    id: str
    image: str | None
    turns: tuple[PeerTurn, ...]


@dataclass(frozen=True)
class Measured:
    """The measurements of one side."""

    seconds: float
    peak_mib: float
    num_rows: int
    checksum: int


def main() -> None:
    """Makes files, measures both sides on each, prints the results and optionally saves them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument(
        "--no-peer-above",
        type=int,
        default=1_000_000,
        metavar="ROWS",
        help="larger files are only imported: the peer needs some 4 GiB for a million records",
    )
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    found = []
    for num_rows in arguments.rows:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "records.json"
            make_file(path, num_rows)
            size = path.stat().st_size
            ours = apart(run_ours, path)
            peer = apart(run_peer, path) if num_rows <= arguments.no_peer_above else None
        found += figures(num_rows, size, ours, peer)
    show(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def figures(
    num_rows: int, size: int, ours: Measured, peer: Measured | None
) -> list[dict[str, Any]]:
    """Returns the entries of one file: rows a second, and memory."""
    equal = peer and (ours.num_rows, ours.checksum) == (peer.num_rows, peer.checksum)
    assert ours.num_rows == num_rows
    name = f"{num_rows:,} records, {size / 2**20:,.0f} MiB"
    speed = [num_rows / side.seconds if side else None for side in (ours, peer)]
    memory = [side.peak_mib if side else None for side in (ours, peer)]
    entries = []
    for what, (mine, theirs), unit, is_better_low in (
        ("import", speed, "rows/s", False),
        ("import, peak memory", memory, "MiB", True),
    ):
        ratio = None
        if mine and theirs:
            ratio = theirs / mine if is_better_low else mine / theirs
        entries.append(
            {"name": f"{what}: {name}", "ours": mine, "peer": theirs, "ratio": ratio,
             "unit": unit, "equal": equal}
        )  # fmt: skip
    return entries


def show(entries: list[dict[str, Any]]) -> None:
    """Prints the results as a table."""
    table = Table("measured", "ours", "json.load + dataclasses", "times better", "same content")
    for entry in entries:
        sides = [entry["ours"], entry["peer"]]
        shown = ["-" if side is None else f"{side:,.0f} {entry['unit']}" for side in sides]
        ratio = "-" if entry["ratio"] is None else f"{entry['ratio']:.1f}"
        same = {True: "yes", False: "NO", None: "-"}[entry["equal"]]
        table.add_row(entry["name"], *shown, ratio, same)
    Console(soft_wrap=True).print(table)


def make_file(path: Path, num_rows: int) -> None:
    """Writes a JSON array of LLaVA records."""
    rng = random.Random(0)
    block = [json.dumps(_record(rng))[1:] for _ in range(min(num_rows, _BLOCK))]
    with path.open("w", encoding="utf-8") as file:
        for number in range(num_rows):
            file.write("," if number else "[")
            file.write(f'{{"id": "{number:012d}", {block[number % _BLOCK]}')
        file.write("]")


def _record(rng: random.Random) -> dict[str, Any]:
    is_text_only = rng.random() < 1 / 16
    conversations = []
    for round_number in range(rng.choice(_ROUNDS)):
        start = "<image>\n" if round_number == 0 and not is_text_only else ""
        conversations.append({"from": "human", "value": f"{start}{_sentence(rng, 4, 14)}?"})
        conversations.append({"from": "gpt", "value": f"{_sentence(rng, 1, 40)}."})
    image = {} if is_text_only else {"image": f"coco/train2017/{rng.randrange(10**6):012d}.jpg"}
    return {**image, "conversations": conversations}


def _sentence(rng: random.Random, shortest: int, longest: int) -> str:
    return " ".join(rng.choices(_WORDS, k=rng.randint(shortest, longest))).capitalize()


def apart(run: Callable[[Path], Measured], path: Path) -> Measured:
    """Runs one side in a fresh process, so that its memory does not affect the other side."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(run, (path,))


def run_ours(path: Path) -> Measured:
    """Imports a file."""
    import pyarrow as pa

    from lrm_ext.corpus.formats import FORMATS
    from lrm_ext.corpus.importing import ImportSource, import_corpus
    from lrm_ext.corpus.store import Corpus

    pa.set_cpu_count(1)
    pa.array([""])  # imports pandas if it is installed
    out = path.with_name("corpus")
    start = time.process_time()
    import_corpus([ImportSource(FORMATS["llava"], path, "bench")], out, images=path.parent)
    seconds, peak_mib = time.process_time() - start, _peak_mib()
    corpus = Corpus.open(out)

    def texts() -> Iterator[str]:
        for batch in corpus.row_batches():
            yield from batch.column("id").to_pylist()
            yield from batch.column("turns").flatten().field("text").to_pylist()

    return Measured(seconds, peak_mib, len(corpus), _checksum(texts()))


def run_peer(path: Path) -> Measured:
    """Loads a whole file and makes dataclasses of it."""
    start = time.process_time()
    with path.open(encoding="utf-8") as file:
        records = [
            PeerRecord(
                raw["id"],
                raw.get("image"),
                tuple(PeerTurn(turn["from"], turn["value"]) for turn in raw["conversations"]),
            )
            for raw in json.load(file)
        ]
    seconds, peak_mib = time.process_time() - start, _peak_mib()

    def texts() -> Iterator[str]:  # in the order of a corpus' batches
        for first in range(0, len(records), 2048):
            batch = records[first : first + 2048]
            yield from (record.id for record in batch)
            yield from (turn.text for record in batch for turn in record.turns)

    return Measured(seconds, peak_mib, len(records), _checksum(texts()))


def _checksum(texts: Iterator[str]) -> int:
    found = 0
    for text in texts:
        found = zlib.crc32(text.encode() + b"\0", found)
    return found


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
