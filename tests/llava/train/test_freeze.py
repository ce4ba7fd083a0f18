"""Which parameters each kind of run trains."""

import pytest
import torch
from torch import nn

from llava.errors import ConfigError
from llava.train.arguments import parse_arguments
from llava.train.build import apply_freeze, part_of, trained_parts

NAMES = {
    "model.embed_tokens.weight": "language model",
    "model.layers.0.self_attn.q_proj.weight": "language model",
    "model.vision_tower.vision_tower.encoder.layers.0.self_attn.q_proj.weight": "vision tower",
    "model.mm_projector.0.weight": "projector",
    "model.image_newline": "image newline",
    "lm_head.weight": "lm_head",
    "base_model.model.model.layers.0.q_proj.lora_A.default.weight": "LoRA adapters",
}


@pytest.mark.parametrize(("name", "part"), NAMES.items())
def test_part_of(name, part):
    assert part_of(name) == part


class Toy(nn.Module):
    """Parameters with a model's names."""

    def __init__(self):
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(3, 2)
        self.model.vision_tower = nn.Linear(2, 2)
        self.model.mm_projector = nn.Linear(2, 2)
        self.model.image_newline = nn.Parameter(torch.zeros(2))
        self.lm_head = nn.Linear(2, 3, bias=False)


def parts_trained_by(*flags):
    flags = ["--output_dir", "out", "--use_cpu", "True", "--vision_tower", "t", *flags]
    model_args, _, training_args, _ = parse_arguments(args=flags)
    counts = apply_freeze(Toy(), trained_parts(model_args, training_args))
    return {count.part for count in counts if count.num_trainable}


WHOLE = {"language model", "projector", "lm_head", "image newline"}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), WHOLE),
        (("--tune_mm_mlp_adapter", "True"), {"projector", "image newline"}),
        (("--freeze_mm_mlp_adapter", "True"), WHOLE - {"projector"}),
        (("--freeze_backbone", "True"), {"projector", "lm_head"}),
    ],
)
def test_plans(flags, expected):
    assert parts_trained_by(*flags) == expected


def test_tower_is_frozen_even_if_it_was_not_before():
    model = Toy()
    apply_freeze(model, WHOLE)
    assert not any(p.requires_grad for p in model.model.vision_tower.parameters())


def test_nothing_to_train_is_refused():
    with pytest.raises(ConfigError, match="nothing is left"):
        apply_freeze(Toy(), ())


def test_what_is_trained_is_logged_as_a_table(caplog):
    with caplog.at_level("INFO"):
        apply_freeze(Toy(), {"projector"})
    (report,) = (record.getMessage() for record in caplog.records)
    assert "projector                    6              6  float32" in report
    assert report.splitlines()[-1].split() == ["total", "6", "26"]
