"""Decides which parameters a stage trains, and shows them as a table.

Input: a model with its vision modules, and the flags of a stage. Output: `requires_grad` set on
every parameter, and a `FreezeReport`. Rules: the projector stage trains the projector alone; the
fine-tuning stage trains projector and language model; the tower is frozen in both.
"""

from __future__ import annotations

import logging
from collections import defaultdict
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
    """The parts of a model that are trained.

    Attributes:
        projector: The projector.
        language_model: Embeddings and layers of the language model, and `image_newline`.
        head: The language model's output matrix.
        adapters: The LoRA adapters are trained in place of the language model.
    """

    projector: bool = True
    language_model: bool = True
    head: bool = True
    adapters: bool = False

    @classmethod
    def from_args(cls, model_args: ModelArguments, training_args: TrainingArguments) -> FreezePlan:
        """Makes the plan that the flags of a stage describe."""
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
    """Trained parameters by part of the model."""

    parts: tuple[PartCount, ...]

    @property
    def num_trainable(self) -> int:
        """Number of trained parameters."""
        return sum(part.num_trainable for part in self.parts)

    def __str__(self) -> str:
        total = PartCount("total", self.num_trainable, sum(p.num_total for p in self.parts), "")
        rows = [
            f"{p.part:<15}{p.num_trainable:>15,}{p.num_total:>15,}  {p.dtype}".rstrip()
            for p in (*self.parts, total)
        ]
        return "\n".join([f"{'part':<15}{'trainable':>15}{'all':>15}  dtype", *rows])


# a parameter's name contains the mark of its part
_MARKS = {
    "lora_": ADAPTERS,
    "vision_tower.": TOWER,
    "mm_projector.": PROJECTOR,
    "image_newline": NEWLINE,
    "lm_head.": HEAD,
}


def part_of(name: str) -> str:
    """Returns the part of the model that a parameter belongs to, by its name."""
    return next((part for mark, part in _MARKS.items() if mark in name), LANGUAGE_MODEL)


def apply_freeze(model: nn.Module, plan: FreezePlan) -> FreezeReport:
    """Sets `requires_grad` on every parameter and logs what is trained.

    Args:
        model: A model with its vision modules, perhaps with LoRA adapters.
        plan: What to train. Bias terms of adapted layers keep what peft has set.

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
        # quantized weights are integers, which have no gradient
        if part_of(name) not in kept_by_peft and parameter.is_floating_point():
            parameter.requires_grad_(is_trained[part_of(name)])
    report = count_parameters(model.named_parameters())
    if not report.num_trainable:
        raise ConfigError(f"nothing is left to be trained by these flags:\n{report}")
    log.info("parameters\n%s", report)
    return report


def count_parameters(named_parameters: Iterable[tuple[str, nn.Parameter]]) -> FreezeReport:
    """Counts parameters by part; partitioned ones (ZeRO-3) count with their full size."""
    parts: dict[str, list[nn.Parameter]] = defaultdict(list)
    for name, parameter in named_parameters:
        parts[part_of(name)].append(parameter)
    counts = []
    for part, own in parts.items():
        sizes = [(getattr(each, "ds_numel", each.numel()), each.requires_grad) for each in own]
        dtypes = {str(each.dtype).removeprefix("torch.") for each in own}
        trainable = sum(size for size, is_trained in sizes if is_trained)
        total = sum(size for size, _ in sizes)
        counts.append(PartCount(part, trainable, total, ", ".join(sorted(dtypes))))
    return FreezeReport(tuple(counts))
