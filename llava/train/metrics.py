"""What a run is watched by: metrics per group of samples and of the machine, and their display.

Input: the batches, which may say what groups their samples belong to (`groups`, a sequence of names
for each sample, and `units`, such as the characters of their answers). Output: more entries in what
the trainer logs, and so in `metrics.jsonl`, on the terminal, and wherever `--report_to` says. It
needs no forward pass of its own; sums are kept on the device, and the host waits for it only when
something is logged. What a group means is not known here.

`<output_dir>/metrics.jsonl` has one JSON object a line, of all attempts of a run: `{"attempt": ..,
"step": .., "time": .., "loss": .., ...}`. Unlike the history in `trainer_state.json` it also holds
the steps that an attempt made after its last checkpoint, so that an interrupted run can be compared
with itself. `lrm plot-run` shows it.

The display is on stderr of the first process: a bar and a table on a terminal, lines every ten
seconds elsewhere.

Legend: B samples of a batch, T their positions, N supervised positions, G groups.
"""

from __future__ import annotations

import json
import logging
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.errors import ConfigError
from llava.model.loss import token_loss_hook
from llava.train.flops import (
    ADAPTERS,
    ALL,
    PROJECTOR,
    LanguageModelShape,
    ModelShape,
    TowerShape,
    peak_tflops_of,
)
from llava.utils import duration

log = logging.getLogger(__name__)

# columns of the sums of groups
_LOSS, _CORRECT, _TOKENS = range(3)


class GroupTally:
    """Token losses, right tokens and tokens of each group."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}
        self._sums = torch.zeros(0, 3)
        self._units: dict[str, Counter[str]] = {}
        self._num_misfits = torch.zeros(())

    def add(
        self,
        labels: Tensor,
        losses: Tensor,
        is_right: Tensor,
        groups: Sequence[Sequence[str]],
        units: Mapping[str, Sequence[float]],
    ) -> None:
        """Add a micro-batch.

        Args:
            labels: [B, T], not shifted.
            losses: [N] of its supervised positions, sample after sample.
            is_right: [N] bool.
            groups: The names of each sample's groups.
            units: By name, how many of a unit (such as characters) each sample's answers have.
        """
        counts = (labels[:, 1:] != IGNORE_INDEX).sum(dim=1)
        ends = counts.cumsum(0)
        number = torch.arange(len(losses), device=losses.device)
        sample = torch.searchsorted(ends, number, right=True).clamp(max=len(labels) - 1)
        values = torch.stack([losses, is_right.to(losses.dtype), torch.ones_like(losses)], dim=1)
        by_sample = values.new_zeros(len(labels), 3).index_add_(0, sample, values)
        places = [(row, self._place(name)) for row, names in enumerate(groups) for name in names]
        self._grow(losses.device)
        # not blocking: the host must not wait for the device in every micro-batch
        pairs = torch.tensor(places, dtype=torch.long).reshape(-1, 2).T.contiguous()
        rows, columns = pairs.to(losses.device, non_blocking=True)
        self._sums.index_add_(0, columns, by_sample[rows].to(self._sums.dtype))
        self._num_misfits += ends[-1] != len(losses)
        for unit, amounts in units.items():
            counter = self._units.setdefault(unit, Counter())
            for names, amount in zip(groups, amounts, strict=True):
                counter.update(dict.fromkeys(names, amount))

    def _place(self, name: str) -> int:
        return self._index.setdefault(name, len(self._index))

    def _grow(self, device: torch.device) -> None:
        missing = len(self._index) - len(self._sums)
        self._sums = self._sums.to(device)
        self._num_misfits = self._num_misfits.to(device)
        if missing:
            self._sums = torch.cat([self._sums, self._sums.new_zeros(missing, 3)])

    def take(self) -> GroupSums:
        """The sums since the last time, which begin anew."""
        values = self._sums.double().tolist()
        sums = {name: tuple(values[place]) for name, place in self._index.items()}
        units = {unit: dict(counter) for unit, counter in self._units.items()}
        taken = GroupSums(sums, units, int(self._num_misfits))
        self._sums, self._units = torch.zeros_like(self._sums), {}
        self._num_misfits = torch.zeros_like(self._num_misfits)
        return taken


@dataclass
class GroupSums:
    """Sums of groups, of one rank or of all.

    Attributes:
        sums: By group: sum of token losses, right tokens, tokens.
        units: By unit and group: how many.
        num_misfits: Micro-batches whose losses were not those of their labels, which happens where
            samples are cut inside the model.
    """

    sums: dict[str, tuple[float, ...]] = field(default_factory=dict)
    units: dict[str, dict[str, float]] = field(default_factory=dict)
    num_misfits: int = 0

    def __add__(self, other: GroupSums) -> GroupSums:
        names = dict.fromkeys((*self.sums, *other.sums))
        none = (0.0, 0.0, 0.0)
        sums = {
            name: tuple(
                a + b
                for a, b in zip(self.sums.get(name, none), other.sums.get(name, none), strict=True)
            )
            for name in names
        }
        units = {
            unit: dict(Counter(self.units.get(unit, {})) + Counter(other.units.get(unit, {})))
            for unit in dict.fromkeys((*self.units, *other.units))
        }
        return GroupSums(sums, units, self.num_misfits + other.num_misfits)

    def metrics(self, prefix: str = "") -> dict[str, float]:
        """Mean losses, accuracies and tokens: `loss/hr`, `accuracy/hr`, `tokens/hr`, ...

        Args:
            prefix: Before the names, such as `eval_`.
        """
        metrics: dict[str, float] = {}
        for name, (loss, num_correct, num_tokens) in sorted(self.sums.items()):
            if not num_tokens:
                continue
            metrics[f"{prefix}loss/{name}"] = loss / num_tokens
            metrics[f"{prefix}accuracy/{name}"] = num_correct / num_tokens
            metrics[f"{prefix}tokens/{name}"] = num_tokens
            for unit, amounts in self.units.items():
                if amounts.get(name):
                    metrics[f"{prefix}loss_per_{unit}/{name}"] = loss / amounts[name]
        return metrics

    def total(self) -> tuple[float, float, float]:
        """Sum of losses, right tokens and tokens over the whole group (empty name)."""
        loss, correct, tokens = self.sums.get("", (0.0, 0.0, 0.0))
        return loss, correct, tokens


class BatchTally:
    """Real positions, padding and what operations are counted from."""

    NAMES = ("real", "padded", "squared", "supervised", "images")

    def __init__(self) -> None:
        self._sums = torch.zeros(len(self.NAMES))

    def add(self, inputs: Mapping[str, Tensor], num_image_tokens: int, packing: bool) -> None:
        """Add a micro-batch.

        Args:
            inputs: `input_ids` [B, T] with image sentinels, `labels`, perhaps `attention_mask`.
            num_image_tokens: Positions that a picture takes.
            packing: The samples lie one after the other, without padding.
        """
        ids, mask = inputs["input_ids"], inputs.get("attention_mask")
        is_image = ids == IMAGE_TOKEN_INDEX
        own = torch.ones_like(is_image) if mask is None else mask.bool()
        lengths = own.sum(dim=1) + is_image.sum(dim=1) * (num_image_tokens - 1)
        lengths = lengths.float()
        padded = lengths.sum() if packing else lengths.max() * len(lengths)
        supervised = (inputs["labels"][:, 1:] != IGNORE_INDEX).sum()
        values = (lengths.sum(), padded, (lengths**2).sum(), supervised, is_image.sum())
        added = torch.stack([value.float() for value in values])
        self._sums = self._sums.to(added.device) + added

    def take(self) -> dict[str, float]:
        """The sums since the last time, which begin anew."""
        values = self._sums.tolist()
        self._sums = torch.zeros_like(self._sums)
        return dict(zip(self.NAMES, values, strict=True))


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
        extra_evaluation: Further metrics of a validation, made of the model; all ranks call it.
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
        with token_loss_hook(lambda losses, is_right: tokens.append((losses, is_right))):
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
        """As in `Trainer`; with the metrics of the steps since the last time."""
        if "loss" in logs:
            logs = {**logs, **self._new_metrics()}
        super().log(logs, *args, **kwargs)

    def _new_metrics(self) -> dict[str, float]:
        """Figures of all ranks since the last log entry; all ranks must ask."""
        now = time.monotonic()
        seconds = 0.0 if self._since is None else now - self._since
        self._since = now
        waited, self._waited_s = self._waited_s, 0.0
        own = (self._tallies[True].take(), self._batches.take(), waited)
        ranks = gather_object([own])
        self._groups = sum((groups for groups, _, _ in ranks), self._groups)
        metrics = self._token_metrics()
        batches = {name: sum(rank[1][name] for rank in ranks) for name in BatchTally.NAMES}
        if batches["real"] and seconds > 0:
            metrics["tokens_per_second"] = batches["real"] / seconds
            metrics["padding_share"] = 1 - batches["real"] / batches["padded"]
            metrics |= self._speed(batches, seconds, len(ranks))
            metrics["data_wait_share"] = min(1.0, max(rank[2] for rank in ranks) / seconds)
        metrics |= memory_metrics(self.args.device)
        if self._extra_sum is not None:
            metrics["extra_loss"] = self._extra_sum.item() / self._num_extra
            self._extra_sum, self._num_extra = None, 0
        return metrics

    def _token_metrics(self) -> dict[str, float]:
        """Accuracy of the entry, and the groups' metrics where it is time for them."""
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
                "no metrics per group: in %d micro-batches samples were cut inside the model, so "
                "that its losses cannot be told apart; raise --model_max_length",
                groups.num_misfits,
            )
            groups = GroupSums()
        named = {name: sums for name, sums in groups.sums.items() if name != EVERYTHING}
        metrics = GroupSums(named, groups.units).metrics(prefix)
        if tokens:
            metrics[f"{prefix}accuracy"] = correct / tokens
            if prefix:
                metrics[f"{prefix}loss"] = loss / tokens
        return metrics

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
        metrics = {"tflops_per_device": speed}
        peak = getattr(self.args, "peak_tflops", None) or _peak(self.args.device)
        if peak is not None:
            metrics["mfu"] = speed / peak
        return metrics

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
    no metrics that count positions.
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


def memory_metrics(device: torch.device) -> dict[str, float]:
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


METRICS_FILE = "metrics.jsonl"


class MetricsLog(TrainerCallback):
    """Appends the trainer's metrics to the metrics file of its run."""

    def __init__(self) -> None:
        self._attempt = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin another attempt, whose first line says after which step."""
        if not state.is_world_process_zero:
            return
        path = Path(args.output_dir) / METRICS_FILE
        path.parent.mkdir(parents=True, exist_ok=True)
        if state.global_step == 0:
            path.unlink(missing_ok=True)  # nothing of an older run is kept, so neither are these
        else:
            _end_line(path)
        self._attempt = 1 + max((int(line["attempt"]) for line in read_metrics(path)), default=0)
        _append(path, {"attempt": self._attempt, "step": state.global_step, "time": time.time()})

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Append one line."""
        if state.is_world_process_zero and logs:
            head = {"attempt": self._attempt, "step": state.global_step, "time": time.time()}
            _append(Path(args.output_dir) / METRICS_FILE, {**head, **logs})


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Read a metrics file.

    Args:
        path: A file that need not exist.

    Returns:
        Its lines; one that a killed process did not finish is left out.
    """
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def _append(path: Path, record: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def _end_line(path: Path) -> None:
    """Keep what follows off a line that a killed process did not finish."""
    if path.is_file() and not path.read_bytes().endswith(b"\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")


LINE_INTERVAL_S = 10.0
MAX_GROUPS = 16
# figures of the machine, how they are shown, in this order
_MACHINE = {
    "tokens_per_second": "{:,.0f} tokens/s",
    "padding_share": "padding {:.0%}",
    "mfu": "MFU {:.1%}",
    "memory_gib": "{:.1f} GiB",
    "data_wait_share": "waiting for data {:.0%}",
    "grad_norm": "gradient {:.2g}",
    "eval_loss": "validation loss {:.4f}",
}


class ProgressCallback(TrainerCallback):
    """Progress of a training run.

    Args:
        stage: What the run is called.
        console: Where to show it; stderr if left out.
    """

    def __init__(self, stage: str | None = None, console: Console | None = None) -> None:
        self.stage = stage or "training"
        self.console = console or Console(stderr=True)
        self._bar: Progress | None = None
        self._live: Live | None = None
        self._loss: float | None = None
        self._seen: dict[str, float] = {}
        self._first_step = 0
        self._started = self._shown = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the bar, or the first line."""
        if not state.is_world_process_zero:
            return
        self._first_step = state.global_step
        self._started = self._shown = time.monotonic()
        if not self.console.is_terminal:
            self._line(f"{self.stage}: step {state.global_step} of {state.max_steps}")
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=self.console,
        )
        self._live = Live(console=self.console, get_renderable=self._view, refresh_per_second=4)
        self._live.start()
        self._task = self._bar.add_task(
            self.stage, total=state.max_steps, completed=state.global_step, figures=""
        )

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any
    ) -> None:
        """Take note of the figures."""
        self._loss = (logs or {}).get("loss", self._loss)
        self._seen |= {k: v for k, v in (logs or {}).items() if isinstance(v, int | float)}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar, or print a line if the last one is old."""
        if not state.is_world_process_zero:
            return
        now = time.monotonic()
        if self._bar is not None:
            self._bar.update(
                self._task, completed=state.global_step, figures=self._figures(args, state, now)
            )
        elif now - self._shown >= LINE_INTERVAL_S:
            self._shown = now
            done = state.global_step - self._first_step
            left = (now - self._started) / done * (state.max_steps - state.global_step)
            self._line(
                f"{self.stage}: step {state.global_step} of {state.max_steps}, "
                f"{self._figures(args, state, now)}, {duration(left)} left"
            )
            if machine := self._machine():
                self._line(f"{self.stage}: {machine}")
            if groups := self._groups():
                losses = ", ".join(f"{name} {values[0]:.3f}" for name, values in groups.items())
                self._line(f"{self.stage}: loss of {losses}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remove the bar and say what was reached."""
        if not state.is_world_process_zero:
            return
        self.close()
        now = time.monotonic()
        self._line(
            f"{self.stage}: {state.global_step} steps, {self._figures(args, state, now)}, "
            f"{duration(now - self._started)}"
        )

    def close(self) -> None:
        """Remove the bar; also for a run that stops early."""
        if self._live is not None:
            self._live.stop()
        self._bar = self._live = None

    def _figures(self, args: Any, state: Any, now: float) -> str:
        batch = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        rate = (state.global_step - self._first_step) * batch / max(now - self._started, 1e-9)
        loss = "" if self._loss is None else f"loss {self._loss:.4f}, "
        return f"{loss}{rate:.1f} samples/s"

    def _view(self) -> Group:
        """The bar, how the machine is used, and the groups."""
        parts: list[Any] = [] if self._bar is None else [self._bar]
        if machine := self._machine():
            parts.append(Text(machine, style="dim", no_wrap=True, overflow="ellipsis"))
        if groups := self._groups():
            parts.append(_table(groups))
        return Group(*parts)

    def _machine(self) -> str:
        seen = self._seen
        return ", ".join(form.format(seen[name]) for name, form in _MACHINE.items() if name in seen)

    def _groups(self) -> dict[str, tuple[float, float, float, float | None]]:
        """Loss, accuracy, tokens and validation loss of each group that is no part of another."""
        names = [key.removeprefix("loss/") for key in self._seen if key.startswith("loss/")]
        shown = sorted(name for name in names if "/" not in name)[:MAX_GROUPS]
        return {
            name: (
                self._seen[f"loss/{name}"],
                self._seen[f"accuracy/{name}"],
                self._seen[f"tokens/{name}"],
                self._seen.get(f"eval_loss/{name}"),
            )
            for name in shown
        }

    def _line(self, text: str) -> None:
        self.console.print(text, highlight=False, soft_wrap=True)


def _table(groups: dict[str, tuple[float, float, float, float | None]]) -> Table:
    has_validation = any(values[3] is not None for values in groups.values())
    headings = ["group", "loss", "right", "tokens", *(["validation"] if has_validation else [])]
    table = Table(*headings, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for name, (loss, accuracy, tokens, validation) in groups.items():
        row = [name, f"{loss:.3f}", f"{accuracy:.1%}", f"{tokens:,.0f}"]
        if has_validation:
            row.append("" if validation is None else f"{validation:.3f}")
        table.add_row(*row)
    return table
