"""What a run can be watched by: figures per group of samples, and how well the machine is used.

Input: the batches, which may say what groups their samples belong to (`groups`, a sequence of names
for each sample, and `units`, such as the characters of their answers). Output: more entries in what
the trainer logs, and so in `metrics.jsonl`, on the terminal, and wherever `--report_to` says. It
needs no forward pass of its own, and waits for the device only when something is logged.
"""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from transformers import Trainer

from llava.errors import ConfigError
from llava.model.loss import watch_tokens
from llava.train.flops import (
    ADAPTERS,
    ALL,
    PROJECTOR,
    LanguageModelShape,
    ModelShape,
    TowerShape,
    peak_tflops_of,
)
from llava.train.tallies import BatchTally, GroupSums, GroupTally

log = logging.getLogger(__name__)

# taken out of a batch before the model sees it
BATCH_NOTES = ("groups", "units", "sample_ids")
# the group of all samples
EVERYTHING = ""
ExtraLoss = Callable[[nn.Module, Mapping[str, Any]], Tensor]


class WatchedTrainer(Trainer):
    """transformers' trainer, which logs more.

    Args:
        *args: As for `Trainer`.
        extra_loss: A term that is added to the loss, made of the model and the batch's entries
            that begin with `extra_`; None for none.
        extra_evaluation: Further figures of a validation, made of the model; all ranks call it.
        **kwargs: As for `Trainer`.
    """

    def __init__(
        self,
        *args: Any,
        extra_loss: ExtraLoss | None = None,
        extra_evaluation: Callable[[nn.Module], dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._extra_loss = extra_loss
        self._extra_evaluation = extra_evaluation
        self._extra_sum: Tensor | None = None
        self._num_extra = 0
        self._tallies = {True: GroupTally(), False: GroupTally()}
        self._batches = BatchTally()
        self._shape = shape_of(self.model)
        self._waited_s = 0.0
        self._since: float | None = None  # the first batch
        self._last_groups = 0
        self._groups = GroupSums()

    # --- watching ---

    def get_batch_samples(self, epoch_iterator: Any, *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`; measures how long the data is waited for."""
        if self._since is None:
            self._since = time.monotonic()
        return super().get_batch_samples(self._timed(epoch_iterator), *args, **kwargs)

    def _timed(self, iterator: Iterator[Any]) -> Iterator[Any]:
        while True:
            start = time.monotonic()
            try:
                batch = next(iterator)
            except StopIteration:
                return
            self._waited_s += time.monotonic() - start
            yield batch

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """As in `Trainer`; tallies the batch and its token losses.

        Args:
            model: The model, perhaps wrapped.
            inputs: The batch; `groups`, `units` and what begins with `extra_` are taken out.
            return_outputs: Return the outputs as well.
            num_items_in_batch: Supervised tokens of the optimizer step.
        """
        notes = {name: inputs.pop(name, None) for name in BATCH_NOTES}
        extra = {name: inputs.pop(name) for name in [*inputs] if name.startswith("extra_")}
        tokens: list[tuple[Tensor, Tensor]] = []
        if not model.training:
            # logits of all positions are not looked at
            inputs.setdefault("logits_to_keep", 1)
        with watch_tokens(lambda losses, is_right: tokens.append((losses, is_right))):
            result = super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        self._tally(model.training, inputs, notes, tokens)
        if self._extra_loss is None or not model.training:
            return result
        term = self._scaled_extra(model, extra, num_items_in_batch)
        return (result[0] + term, result[1]) if return_outputs else result + term

    def _tally(
        self,
        training: bool,
        inputs: Mapping[str, Any],
        notes: Mapping[str, Any],
        tokens: list[tuple[Tensor, Tensor]],
    ) -> None:
        labels = inputs.get("labels")
        if labels is None or "input_ids" not in inputs:
            return
        if training and self._shape is not None:
            packing = bool(inputs.get("packing", False))
            self._batches.add(inputs, self._shape.num_image_tokens, packing)
        if not tokens:
            return
        losses, is_right = (torch.cat(parts) for parts in zip(*tokens, strict=True))
        groups = notes["groups"] or [()] * len(labels)
        everything = [(EVERYTHING, *names) for names in groups]
        self._tallies[training].add(labels, losses, is_right, everything, notes["units"] or {})

    def _scaled_extra(self, model: nn.Module, extra: Mapping[str, Any], num_items: Any) -> Tensor:
        """The extra term, so that the accumulated micro-batches add up to its mean."""
        assert self._extra_loss is not None
        term = self._extra_loss(self.accelerator.unwrap_model(model), extra)
        seen = term.detach()
        self._extra_sum = seen if self._extra_sum is None else self._extra_sum + seen
        self._num_extra += 1
        # Trainer divides by the accumulated micro-batches only where the loss is a mean
        is_sum = num_items is not None and self.model_accepts_loss_kwargs
        return term / self.args.gradient_accumulation_steps if is_sum else term

    # --- logging ---

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """As in `Trainer`; with the figures of the steps since the last time."""
        if "loss" in logs:
            logs = {**logs, **self._figures()}
        super().log(logs, *args, **kwargs)

    def _figures(self) -> dict[str, float]:
        """Figures of all ranks since the last log entry; all ranks must ask."""
        now = time.monotonic()
        seconds = 0.0 if self._since is None else now - self._since
        self._since = now
        waited, self._waited_s = self._waited_s, 0.0
        own = (self._tallies[True].take(), self._batches.take(), waited)
        ranks = gather_object([own])
        self._groups = sum((groups for groups, _, _ in ranks), self._groups)
        figures = self._token_figures()
        batches = {name: sum(rank[1][name] for rank in ranks) for name in BatchTally.NAMES}
        if batches["real"] and seconds > 0:
            figures["tokens_per_second"] = batches["real"] / seconds
            figures["padding_share"] = 1 - batches["real"] / batches["padded"]
            figures |= self._speed(batches, seconds, len(ranks))
            figures["data_wait_share"] = min(1.0, max(rank[2] for rank in ranks) / seconds)
        figures |= memory_figures(self.args.device)
        if self._extra_sum is not None:
            figures["extra_loss"] = self._extra_sum.item() / self._num_extra
            self._extra_sum, self._num_extra = None, 0
        return figures

    def _token_figures(self) -> dict[str, float]:
        """Accuracy of the entry, and the groups' figures where it is time for them."""
        step, every = self.state.global_step, getattr(self.args, "group_steps", 1)
        is_last = step >= self.state.max_steps
        if step - self._last_groups < every and not is_last:
            return {}
        groups, self._groups, self._last_groups = self._groups, GroupSums(), step
        return self._read(groups, "")

    def _read(self, groups: GroupSums, prefix: str) -> dict[str, float]:
        loss, correct, tokens = groups.total()
        if groups.num_misfits:
            log.warning(
                "no figures per group: in %d micro-batches samples were cut inside the model, so "
                "that its losses cannot be told apart; raise --model_max_length",
                groups.num_misfits,
            )
            groups = GroupSums()
        named = {name: sums for name, sums in groups.sums.items() if name != EVERYTHING}
        figures = GroupSums(named, groups.units).figures(prefix)
        if tokens:
            figures[f"{prefix}accuracy"] = correct / tokens
            if prefix:
                figures[f"{prefix}loss"] = loss / tokens
        return figures

    def _speed(self, batches: Mapping[str, float], seconds: float, ranks: int) -> dict[str, float]:
        """Operations a second of a device, and their share of its peak where that is known."""
        if self._shape is None:
            return {}
        flops = self._shape.sample_flops(
            batches["real"],
            batches["supervised"],
            self._trained,
            num_images=batches["images"],
            tower_runs=not self._reads_features,
            lora_rank=getattr(self.args, "lora_r", 0),
        )
        # attention goes with the square of each sample's length, not of their sum
        attention = flops.attention * batches["squared"] / batches["real"] ** 2
        speed = (flops.total - flops.attention + attention) / seconds / ranks / 1e12
        figures = {"tflops_per_device": speed}
        peak = getattr(self.args, "peak_tflops", None) or _peak(self.args.device)
        if peak is not None:
            figures["mfu"] = speed / peak
        return figures

    @property
    def _trained(self) -> str:
        if getattr(self.args, "tune_mm_mlp_adapter", False):
            return PROJECTOR
        return ADAPTERS if getattr(self.args, "lora_enable", False) else ALL

    @property
    def _reads_features(self) -> bool:
        return getattr(self.train_dataset, "has_features", False)

    # --- validation ---

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """As in `Trainer`; the loss is a mean over tokens, and there is one for each group."""
        start = time.monotonic()
        prefix = kwargs.get("metric_key_prefix", "eval")
        self._tallies[False].take()  # of a validation that did not end
        result = super().evaluation_loop(*args, **kwargs)
        ranks = gather_object([self._tallies[False].take()])
        groups = sum(ranks, GroupSums())
        result.metrics.update(self._read(groups, f"{prefix}_"))
        if self._extra_evaluation is not None:
            found = self._extra_evaluation(self.accelerator.unwrap_model(self.model))
            result.metrics.update({f"{prefix}_{name}": value for name, value in found.items()})
        if self._since is not None:  # validation is no training time
            self._since += time.monotonic() - start
        return result


def shape_of(model: Any) -> ModelShape | None:
    """The sizes of a model that is trained; None where they are not of a known kind.

    Pictures in tiles take a number of positions that differs from picture to picture, so there are
    no figures that count positions.
    """
    config = getattr(model, "config", None)
    if config is None or getattr(config, "image_aspect_ratio", None) == "anyres":
        return None
    try:
        language_model = LanguageModelShape.from_config(config.to_dict(), "the model")
        find_tower = getattr(model, "get_vision_tower", None)
        tower = find_tower() if find_tower is not None else None
        if tower is None:
            return ModelShape(language_model, None)
        select = int(config.mm_vision_select_layer)
        shape = TowerShape.from_config(tower.config.to_dict(), "the tower", select)
    except (ConfigError, AttributeError):
        return None
    return ModelShape(language_model, shape) if shape.num_patches == tower.num_patches else None


def memory_figures(device: torch.device) -> dict[str, float]:
    """Most memory that was allocated and reserved on a GPU so far, or a CPU process's most, GiB."""
    if device.type == "cuda":
        return {
            "memory_gib": torch.cuda.max_memory_allocated(device) / 2**30,
            "memory_reserved_gib": torch.cuda.max_memory_reserved(device) / 2**30,
        }
    # kilobytes, but bytes on macOS
    unit = 1 if sys.platform == "darwin" else 1024
    return {"memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}


def _peak(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    return peak_tflops_of(torch.cuda.get_device_name(device))
