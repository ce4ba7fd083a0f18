"""Which parameters a stage trains: one decision in one place, shown as a table.

Input: a model with its vision modules, and the flags of a stage. Output: `requires_grad` set on
every parameter, and a `FreezeReport`. Rules: the projector stage trains the projector alone; the
fine-tuning stage trains projector and language model; the tower is frozen in both.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from llava.errors import ConfigError
from llava.train.arguments import ModelArguments, TrainingArguments

log = logging.getLogger(__name__)

TOWER, PROJECTOR, NEWLINE, LANGUAGE_MODEL, HEAD, ADAPTERS = (
    "vision tower",
    "projector",
    "image newline",
    "language model",
    "lm_head",
    "LoRA adapters",
)


@dataclass(frozen=True)
class FreezePlan:
    """Which parts of a model are trained.

    Attributes:
        projector: The projector.
        language_model: Embeddings and layers of the language model, and `image_newline`.
        head: The language model's output matrix.
        adapters: The language model is left to its LoRA adapters.
    """

    projector: bool = True
    language_model: bool = True
    head: bool = True
    adapters: bool = False

    @classmethod
    def from_args(cls, model_args: ModelArguments, training_args: TrainingArguments) -> FreezePlan:
        """The plan that the flags of a stage describe."""
        if model_args.tune_mm_mlp_adapter:
            return cls(projector=True, language_model=False, head=False)
        adapters = training_args.lora_enable
        return cls(
            projector=not training_args.freeze_mm_mlp_adapter,
            language_model=not (model_args.freeze_backbone or adapters),
            head=not adapters,
            adapters=adapters,
        )


@dataclass(frozen=True)
class PartCount:
    """Parameters of one part of a model."""

    part: str
    num_trainable: int
    num_total: int
    dtype: str


@dataclass(frozen=True)
class FreezeReport:
    """What is trained, by part of the model."""

    parts: tuple[PartCount, ...]

    @property
    def num_trainable(self) -> int:
        """Parameters that are trained, in all."""
        return sum(part.num_trainable for part in self.parts)

    @property
    def num_total(self) -> int:
        """All parameters."""
        return sum(part.num_total for part in self.parts)

    def __str__(self) -> str:
        lines = [f"{'part':<15}{'trainable':>15}{'all':>15}  dtype"]
        total = PartCount("total", self.num_trainable, self.num_total, "")
        lines += [
            f"{p.part:<15}{p.num_trainable:>15,}{p.num_total:>15,}  {p.dtype}".rstrip()
            for p in (*self.parts, total)
        ]
        return "\n".join(lines)


def part_of(name: str) -> str:
    """Tell by its name which part of the model a parameter belongs to."""
    if "lora_" in name:
        return ADAPTERS
    if "vision_tower." in name:
        return TOWER
    if "mm_projector." in name:
        return PROJECTOR
    if "image_newline" in name:
        return NEWLINE
    return HEAD if "lm_head." in name else LANGUAGE_MODEL


def apply_freeze(model: nn.Module, plan: FreezePlan) -> FreezeReport:
    """Set `requires_grad` on every parameter, and log what is trained.

    Args:
        model: A model with its vision modules, perhaps with LoRA adapters.
        plan: What is to be trained. Adapters' own bias terms keep what peft has set.

    Raises:
        ConfigError: Nothing would be trained.
    """
    is_trained = {
        TOWER: False,
        PROJECTOR: plan.projector,
        NEWLINE: plan.language_model or plan.adapters,
        LANGUAGE_MODEL: plan.language_model,
        HEAD: plan.head,
        ADAPTERS: plan.adapters,
    }
    kept_by_peft = (LANGUAGE_MODEL, HEAD) if plan.adapters else ()
    for name, parameter in model.named_parameters():
        # quantised weights are integers, which cannot have a gradient
        if part_of(name) not in kept_by_peft and parameter.is_floating_point():
            parameter.requires_grad_(is_trained[part_of(name)])
    report = count_parameters(model.named_parameters())
    if not report.num_trainable:
        raise ConfigError(f"nothing is left to be trained by these flags:\n{report}")
    log.info("parameters\n%s", report)
    return report


def count_parameters(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> FreezeReport:
    """Count parameters by part; one that ZeRO-3 partitioned counts with its full size."""
    counts: dict[str, list[int]] = {}
    dtypes: dict[str, set[str]] = {}
    for name, parameter in named_parameters:
        size = getattr(parameter, "ds_numel", parameter.numel())
        part = part_of(name)
        count = counts.setdefault(part, [0, 0])
        count[0] += size if parameter.requires_grad else 0
        count[1] += size
        dtypes.setdefault(part, set()).add(str(parameter.dtype).removeprefix("torch."))
    return FreezeReport(
        tuple(
            PartCount(part, trainable, total, ", ".join(sorted(dtypes[part])))
            for part, (trainable, total) in counts.items()
        )
    )
