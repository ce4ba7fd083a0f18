"""Recipes of the base models of the `mini` preset (sizes, amounts, seeds), and a progress line.

One frozen dataclass a model; the resolved recipe is written beside the weights, so that
`lrm mini build-base` can say which numbers a committed file came from.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

log = logging.getLogger(__name__)

_LOG_EVERY_S = 20.0
_MEMORY = 0.98


@dataclasses.dataclass(frozen=True)
class TokenizerRecipe:
    """A SentencePiece BPE model with Llama's settings."""

    vocab_size: int = 4000
    num_sentences_per_language: int = 6000
    seed: int = 11


@dataclasses.dataclass(frozen=True)
class TowerRecipe:
    """A CLIP-shaped vision tower, trained contrastively on pictures and English captions."""

    image_size_px: int = 64
    patch_size_px: int = 16
    hidden_size: int = 160
    intermediate_size: int = 480
    num_layers: int = 4
    num_heads: int = 5
    text_hidden_size: int = 128
    projection_dim: int = 128
    num_scenes: int = 24_000
    batch_size: int = 128
    num_steps: int = 3000
    learning_rate: float = 2e-3
    seed: int = 12


@dataclasses.dataclass(frozen=True)
class LanguageModelRecipe:
    """A Llama-shaped model, trained on text that is English more than anything else."""

    hidden_size: int = 192
    intermediate_size: int = 512
    num_layers: int = 4
    num_heads: int = 6
    max_length_tokens: int = 1024
    english_share: float = 0.4
    batch_size: int = 12
    num_steps: int = 6000
    num_warmup_steps: int = 200
    # the learning rate falls over this share of the steps
    decay_share: float = 0.8
    learning_rate: float = 3e-3
    muon_learning_rate: float = 0.015
    muon_weight_decay: float = 0.1
    # see `answer_loss`
    embedding_noise: float = 0.3
    initializer_range: float = 0.05
    # queries and keys begin equal, times this: see `start_with_equal_queries_and_keys`
    query_key_scale: float = 1.2
    rope_theta: float = 1e5
    seed: int = 13


@dataclasses.dataclass(frozen=True)
class BaseRecipe:
    """All that `lrm mini build-base` makes."""

    tokenizer: TokenizerRecipe = TokenizerRecipe()
    tower: TowerRecipe = TowerRecipe()
    language_model: LanguageModelRecipe = LanguageModelRecipe()


class Progress:
    """A bar on a terminal, a line every 20 seconds elsewhere.

    Args:
        title: What is being made.
        total: Number of steps.
    """

    def __init__(self, title: str, total: int) -> None:
        self.title, self.total, self.step = title, total, 0
        self.means: dict[str, float] = {}
        self._started = self._logged = time.monotonic()
        console = Console(stderr=True)
        self._bar: RichProgress | None = None
        if console.is_terminal:
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[figures]}"),
                console=console,
            )

    def __enter__(self) -> Progress:
        """Show the bar."""
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task(self.title, total=self.total, figures="")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the bar and log the last figures."""
        if self._bar is not None:
            self._bar.stop()
        log.info("%s: %d steps, %s", self.title, self.step, self._figures())

    def advance(self, **figures: float) -> None:
        """Count one step and take its figures into the running means."""
        self.step += 1
        for name, value in figures.items():
            self.means[name] = _MEMORY * self.means.get(name, value) + (1 - _MEMORY) * value
        if self._bar is not None:
            self._bar.update(self._task, advance=1, figures=self._figures())
        elif time.monotonic() - self._logged > _LOG_EVERY_S:
            self._logged = time.monotonic()
            left = (self._logged - self._started) / self.step * (self.total - self.step)
            log.info(
                "%s: step %d of %d, %.0f s left, %s",
                self.title, self.step, self.total, left, self._figures(),
            )  # fmt: skip

    def _figures(self) -> str:
        return " ".join(f"{name} {value:.3f}" for name, value in self.means.items())
