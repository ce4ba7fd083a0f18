"""How time and memory grow: with rows, languages, samples in a pack, clients and ranks.

Usage: python tools/bench/scaling.py [--only rows languages pack clients ranks]
                                     [--figure docs/images/scaling.png] [--json FILE]

Each curve is measured at several sizes; its exponent is the slope of the least-squares line through
the logarithms of size and cost: 0 means that the cost stays the same, 1 that it grows as the size
does. "ours" is the exponent, "peer" the one that the design promises, "equal" whether the measured
one is at most 0.15 above it. There is no other program in this benchmark. Every size runs in a
process of its own, on one thread a process.

* rows: opening a mixture and drawing samples, from a corpus of one shard that is linked as often as
  needed (`mixture.py`); importing LLaVA JSON (`corpus.py`).
* languages: opening a mixture of so many languages and drawing samples from it.
* pack: a training step of so many samples in one row, of the mini shape of `_pair.py`.
* clients: so many clients that ask a worker at the same time, two questions each (`serving.py`).
* ranks: a training step on one and two processes (gloo), with equally many samples on each, in
  wall-clock time; two ranks need two free cores.

Needs: playground/models/mini/llm, from `bash scripts/quickstart.sh --smoke`.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from _sides import MemoryMeter, apart, entry, finish, parser_of
from corpus import make_file
from corpus import run_ours as import_file
from mixture import make_corpus
from mixture import run_ours as open_mixture
from serving import Server, Turn, build_parser, make_checkpoint, make_questions, run_server

ROWS = (50_000, 500_000, 5_000_000, 50_000_000, 100_000_000)
RECORDS = (10_000, 30_000, 100_000, 300_000)
LANGUAGES = (1, 2, 5, 10, 25, 49)
SAMPLES = (1, 2, 4, 8, 16, 32)
CLIENTS = (1, 2, 4, 8, 16, 32, 64)
RANKS = (1, 2)
NUM_ROWS_A_LANGUAGE = 2_000
NUM_DRAWS = 2_000
NUM_STEPS, NUM_WARM_UP = 8, 2
SAMPLES_A_RANK = 16
TOLERANCE = 0.15


@dataclass(frozen=True)
class Curve:
    """A cost at several sizes.

    Attributes:
        axis: What grows.
        name: What is measured.
        unit: Unit of the cost.
        promised: The largest exponent that the design allows.
        points: Size and cost.
    """

    axis: str
    name: str
    unit: str
    promised: float
    points: list[tuple[int, float]]

    @property
    def exponent(self) -> float:
        """Slope of the line through the logarithms of size and cost."""
        sizes, costs = np.log(np.array(self.points, dtype=float)).T
        return float(np.polyfit(sizes, costs, 1)[0])


def main() -> None:
    """Measures the chosen curves, prints their exponents, and draws them."""
    parser = parser_of(__doc__)
    parser.add_argument("--only", nargs="+", choices=CURVES, default=list(CURVES))
    parser.add_argument("--figure", type=Path, help="also draw the curves to this file")
    parser.add_argument("--rank-job", type=Path, help=_hidden())
    arguments = parser.parse_args()
    if arguments.rank_job is not None:
        return rank_job(arguments.rank_job)
    curves = [curve for axis in arguments.only for curve in CURVES[axis]()]
    if arguments.figure is not None:
        draw(curves, arguments.figure)
    finish([line for curve in curves for line in entries_of(curve)], arguments.json)


def _hidden() -> str:
    import argparse

    return argparse.SUPPRESS


def entries_of(curve: Curve) -> list[dict[str, Any]]:
    """Returns the cost at the smallest and the largest size, and the exponent."""
    holds = curve.exponent <= curve.promised + TOLERANCE
    ends = [
        entry(f"{curve.name}: {size:,} {curve.axis}", cost, None, curve.unit, None)
        for size, cost in (curve.points[0], curve.points[-1])
    ]
    exponent = entry(f"{curve.name}: exponent", curve.exponent, curve.promised, "", holds)
    return [*ends, exponent | {"ratio": None}]


def draw(curves: Sequence[Curve], path: Path) -> None:
    """Draws a panel for each curve, both axes logarithmic."""
    from matplotlib.figure import Figure

    columns = 4
    rows = -(-len(curves) // columns)
    figure = Figure(figsize=(3.1 * columns, 2.6 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[len(curves) :]:
        panel.set_axis_off()
    for panel, curve in zip(panels, curves, strict=False):
        sizes, costs = zip(*curve.points, strict=True)
        panel.loglog(sizes, costs, "o-", color="#0072B2")
        # as much room for a cost that stays the same as for one that grows tenfold
        middle = float(np.sqrt(min(costs) * max(costs)))
        panel.set_ylim(min(min(costs) * 0.8, middle / 4), max(max(costs) * 1.25, middle * 4))
        panel.set_title(f"{curve.name}\nexponent {curve.exponent:.2f}", fontsize=9)
        panel.set_xlabel(curve.axis, fontsize=8)
        panel.set_ylabel(curve.unit, fontsize=8)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
    figure.savefig(path, dpi=110)


def over_rows() -> list[Curve]:
    """Measures a mixture of ever larger corpora, and the import."""
    opened, imported = [], []
    for num_rows in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "corpus"
            make_corpus(path, num_rows)
            opened.append((num_rows, apart(open_mixture, path, for_memory=True)))
    for num_records in RECORDS:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "records.json"
            make_file(path, num_records)
            imported.append((num_records, apart(import_file, path, for_memory=True)))
    return [
        Curve("rows", "open a mixture", "s", 0, [(n, each.open_s) for n, each in opened]),
        Curve("rows", "draw a sample", "us", 0, [(n, each.draw_us) for n, each in opened]),
        Curve("rows", "draw: memory", "MiB", 0, [(n, each.after_mib) for n, each in opened]),
        Curve("records", "import JSON", "s", 1, [(n, each.seconds) for n, each in imported]),
        Curve(
            "records", "import: memory", "MiB", 0, [(n, found.peak_mib) for n, found in imported]
        ),
    ]


def over_languages() -> list[Curve]:
    """Measures a mixture of ever more languages."""
    found = [(number, apart(run_languages, number, for_memory=True)) for number in LANGUAGES]
    return [
        Curve("languages", name, unit, promised, [(n, times[at]) for n, times in found])
        for at, (name, unit, promised) in enumerate(
            (("open a mixture", "s", 1), ("sample with its text", "us", 0))
        )
    ]


def run_languages(number: int) -> tuple[float, float]:
    """Returns seconds to open a mixture of some languages, and microseconds to draw a sample."""
    from llava.data.sample import Turn
    from lrm_ext.corpus.store import ENGLISH, Corpus, CorpusRow
    from lrm_ext.corpus.writer import CorpusWriter
    from lrm_ext.languages import list_languages
    from lrm_ext.mixture import Mixture, MixtureSpec

    others = [lang for lang in list_languages() if lang != ENGLISH][:number]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "corpus"
        with CorpusWriter(path, others) as writer:
            for i in range(NUM_ROWS_A_LANGUAGE):
                said = {
                    lang: (Turn("human", f"<image>\n{lang} {i}?"), Turn("gpt", f"{lang} {i}"))
                    for lang in (ENGLISH, *others)
                }
                row = CorpusRow(f"r{i}", "a.jpg", None, None, True, said.pop(ENGLISH))
                writer.append(row, said)
        start = time.process_time()
        mixture = Mixture.open(MixtureSpec(), Corpus.open(path))
        mixture.sample(0)
        opened = time.process_time() - start
        start = time.process_time()
        for i in range(NUM_DRAWS):
            mixture.sample(i * 7919 % len(mixture), epoch=1)
        return opened, 1e6 * (time.process_time() - start) / NUM_DRAWS


def over_samples() -> list[Curve]:
    """Measures a training step of ever more samples in one row."""
    found = [(number, apart(run_steps, number, for_memory=True)) for number in SAMPLES]
    return [
        Curve("samples", "packed step", "s", 1, [(n, each[0]) for n, each in found]),
        Curve("samples", "packed step: memory", "MiB", 1, [(n, each[1]) for n, each in found]),
    ]


def run_steps(num_samples: int) -> tuple[float, float]:
    """Returns processor seconds of a training step, and by how many MiB memory grew."""
    with tempfile.TemporaryDirectory() as folder:
        trainer, clock = make_clocked(Path(folder), num_samples, time.process_time)
        meter = MemoryMeter()
        trainer.train()
        return clock(), meter.growth_mib()


def make_clocked(
    folder: Path, num_samples: int, now: Callable[[], float], **changes: Any
) -> tuple[Any, Callable[[], float]]:
    """Returns a trainer of the mini shape, and what gives the median of its steps in seconds."""
    from _pair import SHAPES
    from resume import make_trainer
    from transformers import TrainerCallback

    times: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            times.append(now())

    trainer = make_trainer(
        SHAPES["mini"], folder, NUM_STEPS, num_samples, save_strategy="no", disable_tqdm=True,
        **changes,
    )  # fmt: skip
    trainer.add_callback(Clock())
    return trainer, lambda: statistics.median(np.diff(times[NUM_WARM_UP - 1 :]).tolist())


def over_clients() -> list[Curve]:
    """Measures a worker that ever more clients ask at the same time."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = make_checkpoint(folder / "llava-mini")
        arguments = build_parser().parse_args(["--clients", str(max(CLIENTS))])
        with run_server("ours", model, folder / "hf", folder, arguments) as server:
            turns = asyncio.run(ask(server))
    first = [(n, statistics.median(each.first_s for each in turn.answers)) for n, turn in turns]
    return [
        Curve("clients", "all answers", "s", 1, [(n, turn.seconds) for n, turn in turns]),
        Curve("clients", "first token", "s", 1, first),
    ]


async def ask(server: Server) -> list[tuple[int, Turn]]:
    """Lets ever more clients ask, two questions each."""
    await server.wait()
    await server.turn(make_questions(2, 1, 8, seed=1))  # loads what is loaded once
    return [(n, await server.turn(make_questions(n, 2, 64, seed=2))) for n in CLIENTS]


def over_ranks() -> list[Curve]:
    """Measures a training step on ever more processes."""
    points = []
    for number in RANKS:
        with tempfile.TemporaryDirectory() as folder:
            launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(number)]
            subprocess.run(
                [sys.executable, *launcher, __file__, "--rank-job", folder],
                check=True,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdout=subprocess.DEVNULL,
            )
            points.append((number, float((Path(folder) / "seconds").read_text())))
    return [Curve("ranks", "step, as many samples on each", "s", 0, points)]


def rank_job(folder: Path) -> None:
    """Runs as one rank; the first one writes the seconds of a step."""
    import torch

    rank = os.environ["RANK"]
    trainer, clock = make_clocked(
        folder / rank, SAMPLES_A_RANK, time.perf_counter, ddp_backend="gloo"
    )
    trainer.train()
    if rank == "0":
        (folder / "seconds").write_text(str(clock()))
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


CURVES: dict[str, Callable[[], list[Curve]]] = {
    "rows": over_rows,
    "languages": over_languages,
    "pack": over_samples,
    "clients": over_clients,
    "ranks": over_ranks,
}


if __name__ == "__main__":
    main()
