"""Measures a training run, per group of samples and per machine, and displays the metrics.

Input: batches, which may name the groups of their samples (`groups`, a sequence of names for each
sample) and their `units`, such as the characters of their answers. Output: further entries in what
the trainer logs, and so in `metrics.jsonl`, on the terminal and wherever `--report_to` says. No
extra forward pass is needed; sums stay on the device, and the host waits for it only when something
is logged. This module does not know what a group means.

`<output_dir>/metrics.jsonl` has one JSON object per line, from all attempts of a run:
`{"attempt": .., "step": .., "time": .., "loss": .., ...}`. Unlike the history in
`trainer_state.json`, it includes the steps that an attempt made after its last checkpoint, so an
interrupted run can be compared with itself. `lrm plot-run` draws it.

The first process displays its progress on stderr: a bar and a table on a terminal, otherwise plain
lines every ten seconds.

Legend: B samples of a batch, T their positions, N supervised positions, G groups.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import gather_object
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column, Table
from rich.text import Text
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.errors import ConfigError
from llava.files import METRICS_FILE, read_metrics
from llava.model.loss import token_loss_hook
from llava.model.tiles import is_tiled
from llava.train.flops import (
    LanguageModelShape,
    ModelShape,
    TowerShape,
    TowersShape,
    peak_tflops_of,
    what_is_trained,
)

log = logging.getLogger(__name__)

# keys are (quantity, group)
Sums = Counter[tuple[str, str]]
# the group that every sample belongs to
EVERYTHING = ""
# pending micro-batches are read at the latest after this many
_MAX_PENDING = 256


class GroupSums:
    """Sums quantities over the samples of each group, since the sums were last taken.

    Values stay on the device until they are read, so the host does not wait for the device in every
    micro-batch.
    """

    def __init__(self) -> None:
        self._sums: Sums = Counter()
        self._pending: list[tuple[Sequence[str], Tensor, Sequence[Sequence[str]]]] = []

    def add(self, quantities: Mapping[str, Tensor], groups: Sequence[Sequence[str]]) -> None:
        """Adds a micro-batch.

        Args:
            quantities: Tensors [B] by name.
            groups: The names of each sample's groups.
        """
        values = torch.stack([value.float() for value in quantities.values()], dim=1)
        self._pending.append((tuple(quantities), values, groups))
        if len(self._pending) == _MAX_PENDING:
            self._read()

    def take(self) -> Sums:
        """Returns the sums and starts again from zero."""
        self._read()
        taken, self._sums = self._sums, Counter()
        return taken

    def _read(self) -> None:
        if not self._pending:
            return
        # the only wait for the device
        numbers = iter(torch.cat([values.flatten() for _, values, _ in self._pending]).tolist())
        for quantities, _, groups in self._pending:
            for names in groups:
                for quantity in quantities:
                    number = next(numbers)
                    for name in names:
                        self._sums[quantity, name] += number
        self._pending = []


def token_quantities(labels: Tensor, losses: Tensor, is_right: Tensor) -> dict[str, Tensor]:
    """Sums losses, correct tokens and tokens over the supervised positions of each sample.

    Args:
        labels: [B, T], not shifted.
        losses: [N], one per supervised position, sample after sample.
        is_right: [N] bool.

    Returns:
        `loss`, `correct`, `tokens` and `misfits`; the last is not 0 if the losses do not match the
        labels, which happens when samples are truncated inside the model.
    """
    ends = (labels[:, 1:] != IGNORE_INDEX).sum(dim=1).cumsum(0)
    number = torch.arange(len(losses), device=losses.device)
    sample = torch.searchsorted(ends, number, right=True).clamp(max=len(labels) - 1)
    values = torch.stack([losses, is_right.to(losses.dtype), torch.ones_like(losses)], dim=1)
    sums = values.new_zeros(len(labels), 3).index_add_(0, sample, values)
    misfits = (ends[-1] != len(losses)).expand(len(labels))
    return dict(zip(("loss", "correct", "tokens"), sums.unbind(1), strict=True), misfits=misfits)


def position_quantities(
    inputs: Mapping[str, Any],
    num_image_tokens: int,
    image_positions: Sequence[tuple[int, int]] | None = None,
) -> dict[str, Tensor]:
    """Counts real and padded positions, and what the number of operations is computed from.

    Args:
        inputs: `input_ids` [B, T] with image sentinels, `labels`, perhaps `attention_mask`, and
            `packing` if the samples form one row.
        num_image_tokens: Positions that an image takes.
        image_positions: Positions of the images of each sample, and their tiles, where images are
            cut into tiles; a tile then counts as an image.
    """
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    images = (ids == IMAGE_TOKEN_INDEX).sum(dim=1)
    own = torch.ones_like(ids) if mask is None else mask.bool()
    further = images * (num_image_tokens - 1)
    if image_positions is not None:
        counts = torch.tensor(image_positions).to(ids.device, non_blocking=True)
        further, images = counts[:, 0] - images, counts[:, 1]
    lengths = (own.sum(dim=1) + further).float()
    return {
        "real": lengths,
        "padded": lengths if inputs.get("packing") else lengths.max().expand_as(lengths),
        "squared": lengths**2,
        "supervised": (inputs["labels"][:, 1:] != IGNORE_INDEX).sum(dim=1),
        "images": images,
    }


def group_metrics(sums: Sums, prefix: str = "") -> dict[str, float]:
    """Computes mean losses, accuracies and tokens: `loss/hr`, `accuracy/hr`, `tokens/hr`, ...

    Args:
        sums: Sums of the `token_quantities` and of `per_<unit>`.
        prefix: Put before the names, such as `eval_`.
    """
    units = sorted({quantity for quantity, _ in sums if quantity.startswith("per_")})
    metrics: dict[str, float] = {}
    for name in sorted({group for _, group in sums} - {EVERYTHING}):
        if tokens := sums["tokens", name]:
            metrics |= {
                f"{prefix}loss/{name}": sums["loss", name] / tokens,
                f"{prefix}accuracy/{name}": sums["correct", name] / tokens,
                f"{prefix}tokens/{name}": tokens,
            }
            metrics |= {
                f"{prefix}loss_{unit}/{name}": sums["loss", name] / amount
                for unit in units
                if (amount := sums[unit, name])
            }
    return metrics


# entries that are taken out of a batch before the model sees it
BATCH_NOTES = ("groups", "units", "sample_ids", "image_positions")
ExtraLoss = Callable[[nn.Module, Mapping[str, Any]], Tensor]


class WatchedTrainer(Trainer):
    """transformers' trainer with more metrics.

    Args:
        *args: See `Trainer`.
        extra_loss: Computes a term that is added to the loss, from the model and the batch's
            entries that begin with `extra_`.
        extra_evaluation: Computes further validation metrics from the model; all ranks call it.
        **kwargs: See `Trainer`.
    """

    def __init__(
        self,
        *args: Any,
        extra_loss: ExtraLoss | None = None,
        extra_evaluation: Callable[[nn.Module], dict[str, float]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._extra_loss, self._extra_evaluation = extra_loss, extra_evaluation
        self._shape = shape_of(self.model)
        ratio = getattr(getattr(self.model, "config", None), "image_aspect_ratio", None)
        # tiles are counted where images are cut
        self._counts_images = not is_tiled(ratio)
        # by `model.training`
        self._sums = {True: GroupSums(), False: GroupSums()}
        self._since: float | None = None  # set by the first batch
        self._waited_s = 0.0
        # sums since the metrics of groups were last logged, and the step of that
        self._group_sums: Sums = Counter()
        self._last_groups = 0

    # --- measuring ---

    def get_batch_samples(self, epoch_iterator: Any, *args: Any, **kwargs: Any) -> Any:
        """Works as in `Trainer` and measures how long it waits for data."""
        if self._since is None:
            self._since = time.monotonic()
        return super().get_batch_samples(self._timed(epoch_iterator), *args, **kwargs)

    def _timed(self, iterator: Iterator[Any]) -> Iterator[Any]:
        while True:
            start = time.monotonic()
            batch = next(iterator, None)
            self._waited_s += time.monotonic() - start
            if batch is None:
                return
            yield batch

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Works as in `Trainer` and measures the batch and its token losses.

        Args:
            model: The model, perhaps wrapped.
            inputs: The batch; `groups`, `units` and entries that begin with `extra_` are removed.
            return_outputs: Return the outputs as well.
            num_items_in_batch: Supervised tokens of the optimizer step.
        """
        notes = {name: inputs.pop(name, None) for name in BATCH_NOTES}
        extra = {name: inputs.pop(name) for name in [*inputs] if name.startswith("extra_")}
        tokens: list[tuple[Tensor, Tensor]] = []
        if not model.training:
            # the logits are not used
            inputs.setdefault("logits_to_keep", 1)
        with token_loss_hook(lambda losses, is_right: tokens.append((losses, is_right))):
            result = super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        self._measure(model.training, inputs, notes, tokens)
        if self._extra_loss is None or not model.training:
            return result
        term = self._extra_loss(self.accelerator.unwrap_model(model), extra)
        seen = term.detach().reshape(1)
        self._sums[True].add({"extra": seen, "extras": torch.ones_like(seen)}, [[EVERYTHING]])
        # Trainer divides by the number of micro-batches only if the loss is a mean
        if num_items_in_batch is not None and self.model_accepts_loss_kwargs:
            term = term / self.args.gradient_accumulation_steps
        return (result[0] + term, result[1]) if return_outputs else result + term

    def _measure(
        self,
        training: bool,
        inputs: Mapping[str, Any],
        notes: Mapping[str, Any],
        tokens: list[tuple[Tensor, Tensor]],
    ) -> None:
        labels = inputs.get("labels")
        if labels is None or "input_ids" not in inputs:
            return
        quantities: dict[str, Tensor] = {}
        counts = notes["image_positions"]
        if training and self._shape is not None and (self._counts_images or counts):
            quantities = position_quantities(inputs, self._shape.num_image_tokens, counts)
        if tokens:
            losses, is_right = (torch.cat(chunks) for chunks in zip(*tokens, strict=True))
            quantities |= token_quantities(labels, losses, is_right)
            for unit, amounts in (notes["units"] or {}).items():
                amount = torch.tensor(amounts, dtype=torch.float32)
                quantities[f"per_{unit}"] = amount.to(labels.device, non_blocking=True)
        if quantities:
            groups = notes["groups"] or [()] * len(labels)
            self._sums[training].add(quantities, [(EVERYTHING, *names) for names in groups])

    # --- logging ---

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Works as in `Trainer` and adds the metrics of the steps since the last entry."""
        if "loss" in logs:
            logs = {**logs, **self._new_metrics()}
        super().log(logs, *args, **kwargs)

    def _new_metrics(self) -> dict[str, float]:
        """Returns the metrics of all ranks since the last log entry; all ranks must call it."""
        now = time.monotonic()
        seconds = now - (self._since or now)
        self._since = now
        ranks = gather_object([(self._sums[True].take(), self._waited_s)])
        self._waited_s = 0.0
        sums = _total(sums for sums, _ in ranks)
        self._group_sums.update(sums)
        step, metrics = self.state.global_step, memory_metrics(self.args.device)
        every = getattr(self.args, "group_steps", 1)
        if step - self._last_groups >= every or step >= self.state.max_steps:
            metrics |= self._token_metrics(self._group_sums)
            self._group_sums, self._last_groups = Counter(), step
        if sums["real", EVERYTHING] and seconds > 0:
            metrics |= {
                "tokens_per_second": sums["real", EVERYTHING] / seconds,
                "padding_share": 1 - sums["real", EVERYTHING] / sums["padded", EVERYTHING],
                "data_wait_share": min(1.0, max(waited for _, waited in ranks) / seconds),
                **self._speed(sums, seconds * len(ranks)),
            }
        if num_extra := sums["extras", EVERYTHING]:
            metrics["extra_loss"] = sums["extra", EVERYTHING] / num_extra
        return metrics

    def _token_metrics(self, sums: Sums, prefix: str = "") -> dict[str, float]:
        """Returns the metrics of all samples, and of groups if their losses can be told apart."""
        metrics = {}
        if sums["misfits", EVERYTHING]:
            log.warning(
                "no metrics per group: samples were truncated inside the model, so their losses "
                "cannot be told apart; raise --model_max_length"
            )
        else:
            metrics = group_metrics(sums, prefix)
        if tokens := sums["tokens", EVERYTHING]:
            metrics[f"{prefix}accuracy"] = sums["correct", EVERYTHING] / tokens
            if prefix:
                metrics[f"{prefix}loss"] = sums["loss", EVERYTHING] / tokens
        return metrics

    def _speed(self, sums: Sums, device_seconds: float) -> dict[str, float]:
        """Returns the operations per second of a device, and their share of its peak if known."""
        assert self._shape is not None
        rank = getattr(self.args, "lora_r", 0) if getattr(self.args, "lora_enable", False) else 0
        trained, tower_tuning = what_is_trained(
            getattr(self.args, "mm_tunable_parts", None),
            getattr(self.args, "mm_vision_tower_last_layers", None),
            getattr(self.args, "tune_mm_mlp_adapter", False),
            rank,
        )
        real, supervised, images, squared = (
            sums[name, EVERYTHING] for name in ("real", "supervised", "images", "squared")
        )
        flops = self._shape.sample_flops(
            real,
            supervised,
            trained,
            num_images=images,
            tower_runs=not getattr(self.train_dataset, "has_features", False),
            lora_rank=rank,
            tower_tuning=tower_tuning,
        )
        # attention grows with the square of each sample's length, not of their sum
        attention = flops.attention * squared / real**2
        speed = (flops.total - flops.attention + attention) / device_seconds / 1e12
        peak, device = getattr(self.args, "peak_tflops", None), self.args.device
        if peak is None and device.type == "cuda":
            peak = peak_tflops_of(torch.cuda.get_device_name(device))
        return {"tflops_per_device": speed, **({} if peak is None else {"mfu": speed / peak})}

    # --- validation ---

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Works as in `Trainer`, but the loss is a mean over tokens, in all and for each group."""
        start = time.monotonic()
        prefix = kwargs.get("metric_key_prefix", "eval")
        self._sums[False].take()  # left by a validation that did not finish
        result = super().evaluation_loop(*args, **kwargs)
        sums = _total(gather_object([self._sums[False].take()]))
        result.metrics.update(self._token_metrics(sums, f"{prefix}_"))
        if self._extra_evaluation is not None:
            found = self._extra_evaluation(self.accelerator.unwrap_model(self.model))
            result.metrics.update({f"{prefix}_{name}": value for name, value in found.items()})
        if self._since is not None:  # validation does not count as training time
            self._since += time.monotonic() - start
        return result


def _total(ranks: Iterable[Sums]) -> Sums:
    total: Sums = Counter()
    for sums in ranks:
        total.update(sums)
    return total


def shape_of(model: Any) -> ModelShape | None:
    """Returns the sizes of a model in training; None if its architecture is unknown."""
    config = getattr(model, "config", None)
    if config is None:
        return None
    tower = getattr(model, "get_vision_tower", lambda: None)()
    try:
        language_model = LanguageModelShape.from_config(config.to_dict(), "the model")
        if tower is None:
            return ModelShape(language_model, None)
        select = int(config.mm_vision_select_layer)
        parts = [_tower_shape(part, select) for part in getattr(tower, "towers", (tower,))]
        shape = parts[0] if len(parts) == 1 else TowersShape(tuple(parts))
    except (ConfigError, AttributeError):
        return None
    return ModelShape(language_model, shape) if shape.num_patches == tower.num_patches else None


def _tower_shape(tower: Any, select_layer: int) -> TowerShape:
    shape = TowerShape.from_config(tower.config.to_dict(), "the tower", select_layer)
    return dataclasses.replace(shape, image_size_px=tower.input_size)


def memory_metrics(device: torch.device) -> dict[str, float]:
    """Returns the peak of allocated and reserved GPU memory, or of a CPU process, in GiB."""
    if device.type == "cuda":
        return {
            "memory_gib": torch.cuda.max_memory_allocated(device) / 2**30,
            "memory_reserved_gib": torch.cuda.max_memory_reserved(device) / 2**30,
        }
    # Linux counts kilobytes, macOS bytes
    unit = 1 if sys.platform == "darwin" else 1024
    return {"memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30}


class MetricsLog(TrainerCallback):
    """Appends the trainer's metrics to the metrics file of its run, in the first process."""

    _attempt = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begins an attempt; its first line says after which step."""
        path = Path(args.output_dir) / METRICS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        if state.global_step == 0:
            path.unlink(missing_ok=True)  # a run that starts anew keeps nothing of an older one
        self._attempt = 1 + max((int(line["attempt"]) for line in read_metrics(path)), default=0)
        is_cut = path.is_file() and not path.read_bytes().endswith(b"\n")
        self._append(args, state, {}, "\n" if is_cut else "")  # a kill may have cut the last line

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Appends one line."""
        if logs:
            self._append(args, state, logs)

    def _append(self, args: Any, state: Any, logs: dict[str, Any], before: str = "") -> None:
        head = {"attempt": self._attempt, "step": state.global_step, "time": time.time()}
        with (Path(args.output_dir) / METRICS_FILE).open("a", encoding="utf-8") as file:
            file.write(f"{before}{json.dumps({**head, **logs})}\n")


LINE_INTERVAL_S = 10.0
# groups that are shown one by one; of more, the worst are
MAX_GROUPS = 16
NUM_WORST = 5
# metrics of the machine and their formats, in the order of display
_MACHINE = {
    "tokens_per_second": "{:,.0f} tokens/s",
    "padding_share": "padding {:.0%}",
    "mfu": "MFU {:.1%}",
    "memory_gib": "{:.1f} GiB",
    "data_wait_share": "waiting for data {:.0%}",
    "grad_norm": "gradient {:.2g}",
    "eval_loss": "validation loss {:.4f}",
}
# metrics of a group: headings and formats
_COLUMNS = {
    "loss": ("loss", "{:.3f}"),
    "accuracy": ("right", "{:.1%}"),
    "tokens": ("tokens", "{:,.0f}"),
    "eval_loss": ("validation", "{:.3f}"),
}


class ProgressCallback(TrainerCallback):
    """Displays the progress of a training run, in the first process.

    Args:
        stage: Name of the run.
        console: Where it is displayed; stderr by default.
    """

    def __init__(self, stage: str | None = None, console: Console | None = None) -> None:
        self.stage = stage or "training"
        self.console = console or Console(stderr=True)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[summary]}"),
            console=self.console,
        )
        self._live: Live | None = None
        self._seen: dict[str, float] = {}
        self._first_step = 0
        self._started = self._shown = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Shows the bar, or prints the first line."""
        self._first_step = state.global_step
        self._started = self._shown = time.monotonic()
        if not self.console.is_terminal:
            self._print(f"step {state.global_step} of {state.max_steps}")
            return
        self._task = self._bar.add_task(
            self.stage, total=state.max_steps, completed=state.global_step, summary=""
        )
        self._live = Live(console=self.console, get_renderable=self._view, refresh_per_second=4)
        self._live.start()

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Remembers the metrics."""
        self._seen |= {k: v for k, v in (logs or {}).items() if isinstance(v, int | float)}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Moves the bar, or prints lines if the last ones are old."""
        now, summary = time.monotonic(), self._summary(args, state)
        if self._live is not None:
            self._bar.update(self._task, completed=state.global_step, summary=summary)
        elif now - self._shown >= LINE_INTERVAL_S:
            self._shown = now
            a_step = (now - self._started) / (state.global_step - self._first_step)
            left = timedelta(seconds=round(a_step * (state.max_steps - state.global_step)))
            self._print(f"step {state.global_step} of {state.max_steps}, {summary}, {left} left")
            if machine := self._machine():
                self._print(machine)
            if names := self._groups():
                self._print(self._losses(names))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Removes the bar and prints the result."""
        self.close()
        took = timedelta(seconds=round(time.monotonic() - self._started))
        self._print(f"{state.global_step} steps, {self._summary(args, state)}, {took}")

    def close(self) -> None:
        """Removes the bar, also of a run that stops early."""
        if self._live is not None:
            self._live.stop()
        self._live = None

    def _summary(self, args: Any, state: Any) -> str:
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        seconds = max(time.monotonic() - self._started, 1e-9)
        rate = (state.global_step - self._first_step) * batch / seconds
        loss = f"loss {self._seen['loss']:.4f}, " if "loss" in self._seen else ""
        return f"{loss}{rate:.1f} samples/s"

    def _view(self) -> Group:
        """Renders the bar, the metrics of the machine and those of the groups."""
        shown: list[Any] = [self._bar]
        if machine := self._machine():
            shown.append(Text(machine, style="dim", no_wrap=True, overflow="ellipsis"))
        if names := self._groups():
            shown.append(self._table(names))
        return Group(*shown)

    def _machine(self) -> str:
        seen = self._seen
        return ", ".join(form.format(seen[name]) for name, form in _MACHINE.items() if name in seen)

    def _groups(self) -> list[str]:
        """Returns the names of the groups that are not part of another."""
        names = [key.removeprefix("loss/") for key in self._seen if key.startswith("loss/")]
        return sorted(name for name in names if "/" not in name)

    def _worst(self, names: Sequence[str], number: int) -> list[str]:
        return sorted(names, key=lambda name: -self._seen[f"loss/{name}"])[:number]

    def _losses(self, names: Sequence[str]) -> str:
        """Says the loss of each group; of many groups that of the worst and the mean."""
        is_many = len(names) > MAX_GROUPS
        shown = self._worst(names, NUM_WORST) if is_many else names
        losses = ", ".join(f"{name} {self._seen[f'loss/{name}']:.3f}" for name in shown)
        if not is_many:
            return f"loss of {losses}"
        mean = fmean(self._seen[f"loss/{name}"] for name in names)
        return (
            f"loss of {len(names)} groups: worst {losses}; mean {mean:.3f}; all in {METRICS_FILE}"
        )

    def _table(self, names: Sequence[str]) -> Table:
        """Renders the metrics of groups, without columns that would be empty.

        Of many groups the worst have rows, and a last row has the means of all.
        """
        seen = self._seen
        shown = [key for key in _COLUMNS if any(f"{key}/{name}" in seen for name in names)]
        heads = [Column(_COLUMNS[key][0], justify="right") for key in shown]
        table = Table("group", *heads, box=None, pad_edge=False)
        is_many = len(names) > MAX_GROUPS
        for name in self._worst(names, MAX_GROUPS - 1) if is_many else names:
            found = [(_COLUMNS[key][1], seen.get(f"{key}/{name}")) for key in shown]
            table.add_row(name, *("" if v is None else form.format(v) for form, v in found))
        if is_many:
            values = [[seen[k] for n in names if (k := f"{key}/{n}") in seen] for key in shown]
            means = (_COLUMNS[k][1].format(fmean(v)) for k, v in zip(shown, values, strict=True))
            table.add_row(f"mean of {len(names)}", *means)
        return table

    def _print(self, text: str) -> None:
        self.console.print(f"{self.stage}: {text}", highlight=False, soft_wrap=True)
