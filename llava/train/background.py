"""Writes a checkpoint while training goes on: a copy of the state in RAM, and one thread.

Input: tensors on any device, and functions that write. Output: the functions' files. The copy is
all that training waits for. Its buffers are kept for the next one, so a checkpoint costs as much
RAM as the state has bytes. Non-goals: which files (`saving.py`), how a folder becomes whole
(`checkpoint.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


class BackgroundWriter:
    """Runs one function at a time on a thread of its own."""

    def __init__(self) -> None:
        # at the end of the process Python waits for the thread
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._running: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Run a function; one that is still running is waited for first.

        Raises:
            Exception: What the one before raised.
        """
        self.wait()
        self._running = self._thread.submit(work)

    def wait(self) -> None:
        """Wait until nothing is running.

        Raises:
            Exception: What it raised.
        """
        running, self._running = self._running, None
        if running is not None:
            running.result()

    def check(self) -> None:
        """Without waiting, see how the last one went.

        Raises:
            Exception: What it raised.
        """
        if self._running is not None and self._running.done():
            self.wait()


class StateCopy:
    """Copies nested dicts and lists of tensors into CPU buffers that it keeps.

    What an earlier call returned is overwritten by the next call with the same name.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], Tensor] = {}

    def __call__(self, name: str, state: Any) -> Any:
        """Copy.

        Args:
            name: Tells several states apart.
            state: Dicts, lists, tuples, tensors and small values.

        Returns:
            The same structure; tensors that shared their memory (tied weights) share it again.
        """
        copied = self._copy(state, (name,), {})
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return copied

    def _copy(self, value: Any, place: tuple[Any, ...], seen: dict[Any, Tensor]) -> Any:
        if isinstance(value, Tensor):
            return self._copy_tensor(value.detach(), place, seen)
        if isinstance(value, dict):
            return {key: self._copy(entry, (*place, key), seen) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            copied = [self._copy(entry, (*place, i), seen) for i, entry in enumerate(value)]
            return copied if isinstance(value, list) else tuple(copied)
        return value

    def _copy_tensor(
        self, tensor: Tensor, place: tuple[Any, ...], seen: dict[Any, Tensor]
    ) -> Tensor:
        memory = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if tensor.numel() and memory in seen:
            return seen[memory]
        buffer = self._buffers.get(place)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            self._buffers[place] = buffer
        seen[memory] = buffer.copy_(tensor, non_blocking=True)
        return buffer
