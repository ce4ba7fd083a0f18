"""A mixture of up to 10^8 rows, against a materialised shuffle and torch's weighted sampler.

Usage: python tools/bench/mixture.py [--rows 1000000 100000000] [--json FILE]

The script makes a corpus on disk: one shard of 50,000 rows, linked as often as needed, so that
10^8 rows take little space. It has three languages: Czech has all rows, German every second,
Croatian every thousandth. "ours" is `Mixture.open`; "shuffle" is the approach of a data set that
knows its parts: `numpy`'s permutation of all samples, and a search for the part of each; "sampler"
is torch's `WeightedRandomSampler` over a `ConcatDataset`, which takes at most 2^24 samples and
draws with replacement, so its counts are approximate. Each runs in its own process on one core;
seconds are wall-clock time; memory is the peak of the process including all imports.

`open`: from nothing to the first draw. `draw`: from any index to row, language and instruction.
`same`: both give the same number of samples to each language; for ours the script also checks that
every index comes once (in blocks, over all of them), that 64 copies give the same order as one,
and that the drawn samples are texts of their row.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import pickle
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

_SHARD = 50_000
_EVERY = {"cs": 1, "de": 2, "hr": 1000}  # the rows that a language has
_NUM_DRAWS = 20_000
_MOST_CATEGORIES = 1 << 24


@dataclass(frozen=True)
class Measured:
    """The measurements of one side."""

    open_s: float
    open_mib: float
    draw_us: float
    slow_draw_us: float
    after_mib: float
    counts: dict[str, int]
    is_right: bool = True
    sample_us: float | None = None


def main() -> None:
    """Makes corpora, measures the sides on each, prints the results and optionally saves them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 100_000_000])
    parser.add_argument("--json", type=Path, help="also write the results to this file")
    arguments = parser.parse_args()
    found = []
    for num_rows in arguments.rows:
        if num_rows % _SHARD:
            parser.error(f"--rows {num_rows} is not a multiple of {_SHARD}")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "corpus"
            apart(make_corpus, path, num_rows)
            ours = apart(run_ours, path)
            is_right = ours.is_right and apart(run_check, path)
            shuffle = apart(run_shuffle, path)
            sampler = apart(run_sampler, path) if 2 * num_rows <= _MOST_CATEGORIES else None
        found += figures(num_rows, ours, is_right, "shuffle", shuffle)
        if sampler is not None:
            found += figures(num_rows, ours, is_right, "sampler", sampler)
    show(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")


def figures(
    num_rows: int, ours: Measured, is_right: bool, name: str, peer: Measured
) -> list[dict[str, Any]]:
    """Returns the entries of one size and peer."""
    # a sampler that draws at random cannot agree
    same = (is_right and ours.counts == peer.counts) if name == "shuffle" else None
    rows = [
        ("open", ours.open_s, peer.open_s, "s"),
        ("open, peak memory", ours.open_mib, peer.open_mib, "MiB"),
        (f"draw, mean of {_NUM_DRAWS:,}", ours.draw_us, peer.draw_us, "us"),
        ("draw, 99th percentile", ours.slow_draw_us, peer.slow_draw_us, "us"),
        ("after the draws, peak memory", ours.after_mib, peer.after_mib, "MiB"),
    ]
    if name == "shuffle":
        rows.append(("sample, with its texts", ours.sample_us, None, "us"))  # type: ignore[arg-type]
    return [
        {"name": f"{what}: {num_rows:,} rows, against {name}", "ours": mine, "peer": theirs,
         "ratio": theirs / mine if theirs else None, "unit": unit,
         "equal": same if theirs else None}
        for what, mine, theirs, unit in rows
    ]  # fmt: skip


def show(entries: list[dict[str, Any]]) -> None:
    """Prints the results as a table."""
    table = Table("measured", "ours", "peer", "times better", "same counts")
    for entry in entries:
        sides = [entry["ours"], entry["peer"]]
        shown = ["-" if side is None else _plain(side, entry["unit"]) for side in sides]
        ratio = "-" if entry["ratio"] is None else f"{entry['ratio']:,.2f}"
        same = {True: "yes", False: "NO", None: "-"}[entry["equal"]]
        table.add_row(entry["name"], *shown, ratio, same)
    Console(soft_wrap=True).print(table)


def _plain(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def make_corpus(path: Path, num_rows: int) -> None:
    """Writes one shard, and links it until there are `num_rows` rows."""
    import numpy as np

    from llava.data.sample import Turn
    from lrm_ext.corpus.store import CorpusRow, Meta, shard_name
    from lrm_ext.corpus.writer import CorpusWriter

    with CorpusWriter(path, list(_EVERY), rows_per_shard=_SHARD, rows_per_batch=2000) as writer:
        for i in range(_SHARD):
            said = {
                lang: (Turn("human", f"<image>\n{lang} question {i}?"), Turn("gpt", f"{lang} {i}"))
                for lang in ("en", *_EVERY)
                if i % _EVERY.get(lang, 1) == 0
            }
            writer.append(CorpusRow(f"r{i}", "a.jpg", None, None, True, said.pop("en")), said)
    for folder in (path / "rows", *(path / "text" / lang for lang in _EVERY)):
        for number in range(1, num_rows // _SHARD):
            os.link(folder / shard_name(0), folder / shard_name(number))
    counts = {}
    for lang, every in _EVERY.items():
        size = num_rows // every
        counts[lang] = {"ok": size, "suspect": 0, "rejected": 0, "usable": size}
        file = path / "text" / lang / "usable.u32"
        if every == 1:
            os.truncate(file, 4 * size)  # a sparse file: the list of all rows is not read
        else:
            np.arange(0, num_rows, every, dtype="<u4").tofile(file)
    Meta(num_rows, _SHARD, 2000, "images", counts).dump(path / "corpus.toml")


def apart(run: Callable[..., Any], *arguments: Any) -> Any:
    """Runs one side in a fresh process, so that its memory does not affect the other side.

    The process is spawned, because a forked child inherits the peak that Linux reports.
    """
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(run, arguments)


def run_ours(path: Path) -> Measured:
    """Opens a mixture and draws from it."""
    start = time.perf_counter()
    from lrm_ext.corpus.store import Corpus
    from lrm_ext.mixture import Mixture, MixtureSpec
    from lrm_ext.mixture.table import make_table

    mixture = Mixture.open(MixtureSpec(), Corpus.open(path))
    mixture.draw(0)
    open_s, open_mib = time.perf_counter() - start, _peak_mib()
    size = len(mixture)
    indices = _spread(size)
    draws, draw_us, slow_draw_us = _timed(lambda i: mixture.draw(i, epoch=1), indices)
    after_mib = _peak_mib()
    start = time.perf_counter()
    samples = [mixture.sample(i, epoch=1) for i in indices[:1000]]
    sample_us = 1e6 * (time.perf_counter() - start) / 1000
    is_right = all(
        f" question {draw.row % _SHARD}?" in sample.turns[0].text
        and sample.turns[0].text.split()[1] == ("en" if draw.direction == "from_en" else draw.lang)
        for draw, sample in zip(draws, samples, strict=False)
    )
    copies = [pickle.loads(pickle.dumps(mixture)) for _ in range(64)]
    is_right &= [copies[k % 64].draw(i, 1) for k, i in enumerate(indices[:6400])] == draws[:6400]
    counts: dict[str, int] = {}
    for row in make_table(mixture):
        counts[row.lang] = counts.get(row.lang, 0) + row.count
    return Measured(open_s, open_mib, draw_us, slow_draw_us, after_mib, counts, is_right, sample_us)


def run_check(path: Path) -> bool:
    """Returns whether every index of an epoch occurs exactly once."""
    import numpy as np

    from lrm_ext.corpus.store import Corpus
    from lrm_ext.mixture import Mixture, MixtureSpec

    order = Mixture.open(MixtureSpec(), Corpus.open(path)).layout(1).order
    seen = np.zeros(len(order), dtype=bool)
    for first in range(0, len(order), 1 << 20):
        seen[order.take(np.arange(first, min(first + (1 << 20), len(order))))] = True
    return bool(seen.all())


def _parts(path: Path) -> dict[str, int]:
    """Returns the samples of each language: the English rows, and as many shared by the others."""
    from lrm_ext.corpus.store import Meta

    num_rows = Meta.load(path).num_rows
    share, rest = divmod(num_rows, len(_EVERY))
    return {"en": num_rows} | {lang: share + (i < rest) for i, lang in enumerate(_EVERY)}


def run_shuffle(path: Path) -> Measured:
    """Shuffles all samples, then looks up each in the list of parts."""
    start = time.perf_counter()
    import numpy as np

    parts = _parts(path)
    ends = np.cumsum(list(parts.values()))
    rows = {lang: np.memmap(path / "text" / lang / "usable.u32", "<u4", "r") for lang in _EVERY}
    order = np.random.default_rng(0).permutation(ends[-1])
    names = list(parts)

    def draw(index: int) -> tuple[int, str]:
        position = int(order[index])
        part = int(np.searchsorted(ends, position, side="right"))
        if part == 0:
            return position, "en"
        own = position - int(ends[part - 1])
        numbers = rows[names[part]]
        return int(numbers[own % len(numbers)]), names[part]

    draw(0)
    open_s, open_mib = time.perf_counter() - start, _peak_mib()
    _, draw_us, slow_draw_us = _timed(draw, _spread(len(order)))
    return Measured(open_s, open_mib, draw_us, slow_draw_us, _peak_mib(), parts)


def run_sampler(path: Path) -> Measured:
    """Draws an epoch from torch's sampler, weighted by language."""
    start = time.perf_counter()
    import torch
    from torch.utils.data import ConcatDataset, WeightedRandomSampler

    parts = _parts(path)
    sizes = {"en": parts["en"]} | {lang: parts["en"] // every for lang, every in _EVERY.items()}
    joined: ConcatDataset[int] = ConcatDataset([range(size) for size in sizes.values()])  # type: ignore[misc]
    weights = torch.cat(
        [
            torch.full((size,), parts[lang] / size, dtype=torch.double)
            for lang, size in sizes.items()
        ]
    )
    generator = torch.Generator().manual_seed(0)
    order = list(
        WeightedRandomSampler(weights, sum(parts.values()), generator=generator)  # type: ignore[arg-type]
    )
    joined[order[0]]
    open_s, open_mib = time.perf_counter() - start, _peak_mib()
    _, draw_us, slow_draw_us = _timed(lambda i: joined[order[i]], _spread(len(order)))
    after_mib = _peak_mib()
    drawn = torch.bucketize(torch.tensor(order), torch.tensor(joined.cumulative_sizes), right=True)
    counts = dict(zip(sizes, torch.bincount(drawn).tolist(), strict=True))
    return Measured(open_s, open_mib, draw_us, slow_draw_us, after_mib, counts)


def _spread(size: int) -> list[int]:
    """Returns indices spread over an epoch."""
    return [i * 7919 * 104729 % size for i in range(_NUM_DRAWS)]


def _timed(draw: Callable[[int], Any], indices: list[int]) -> tuple[list[Any], float, float]:
    """Returns the draws, and the microseconds per draw: the mean and the 99th percentile."""
    found, times = [], []
    for index in indices:
        start = time.perf_counter_ns()
        found.append(draw(index))
        times.append(time.perf_counter_ns() - start)
    return found, sum(times) / len(times) / 1000, sorted(times)[len(times) * 99 // 100] / 1000


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
