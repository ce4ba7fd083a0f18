"""Several processes that answer together, as `torchrun` starts them: one for each GPU.

In: the environment. Out: which batches are whose, files to write to, and one file in the end. The
processes never talk about answers: each appends to files of its own, which the first puts together
when all are done, and at the start, should an earlier run have been cut short.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Final, TypeVar

import torch

from lrm_ext.evaluation.predictions import add_lines, cut_unfinished_line, read_lines

PARTS_DIR: Final = "parts"
# the slowest process may have the longest questions
_PATIENCE: Final = timedelta(hours=12)

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among those that answer together.

    Attributes:
        rank: Its number.
        world_size: How many there are.
        local_rank: Its number on this machine, which is that of its GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> Ranks:
        """As `torchrun` says; without it this process is alone."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        rank, world_size, local_rank = (int(os.environ.get(name, "0")) for name in names)
        return cls(rank, max(world_size, 1), local_rank)

    @property
    def is_first(self) -> bool:
        """Whether this process reads and writes for all."""
        return self.rank == 0

    def device(self, asked: str | None) -> str | None:
        """The device of this process: that which is asked for, with the number of its GPU."""
        if self.world_size == 1 or asked not in (None, "cuda") or not torch.cuda.is_available():
            return asked
        return f"cuda:{self.local_rank}"

    def barrier(self) -> None:
        """Wait for all."""
        if self.world_size == 1:
            return
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
        torch.distributed.barrier()

    def share(self, batches: Sequence[T]) -> list[T]:
        """The batches that this process asks; they come longest first, so by turns is even."""
        return list(islice(batches, self.rank, None, self.world_size))

    def path(self, path: Path) -> Path:
        """Where this process writes answers that belong into a file."""
        if self.world_size == 1:
            return path
        return path.parent / PARTS_DIR / f"{path.stem}.{self.rank}.jsonl"


def gather_parts(folder: Path) -> None:
    """Put what processes wrote for themselves into the files where it belongs.

    Args:
        folder: The folder of predictions. Killed at any moment, the next call finishes the work.
    """
    for part in sorted((folder / PARTS_DIR).glob("*.jsonl")):
        cut_unfinished_line(part)
        name = part.stem.rpartition(".")[0]
        add_lines(folder / f"{name}.jsonl", read_lines(part))
        part.unlink()
