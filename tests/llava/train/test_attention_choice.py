"""Which attention training uses, where flash-attention is wanted."""

import sys

import pytest
import torch

from llava.model.language_model.causal_lm import FLASH_ATTENTION, PACKED_SDPA
from llava.train import build
from llava.train.arguments import parse_arguments
from tools.gpu.flash_stand_in import installed


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"bf16": True}, FLASH_ATTENTION),
        ({"bf16": False}, "sdpa"),
        ({"bf16": False, "packing": True}, PACKED_SDPA),
    ],
)
def test_flash_attention_needs_16_bits(changes, expected, flags, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train", *flags(**changes)])
    model_args, _, training_args, _ = parse_arguments(())
    with installed():
        model = build.build_model(model_args, training_args, FLASH_ATTENTION)
    assert model.config._attn_implementation == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "sdpa"), ((8, 0), FLASH_ATTENTION)])
def test_flash_attention_needs_a_gpu_of_its_kind(capability, expected, monkeypatch):
    monkeypatch.setattr(build, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    with installed():
        assert build.memory_efficient_attention() == expected


def test_a_flash_attention_that_cannot_be_imported_is_left_out(monkeypatch, caplog):
    monkeypatch.setattr(build, "is_flash_attn_2_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    with caplog.at_level("INFO"):
        assert build.memory_efficient_attention() == "sdpa"
    assert "flash-attn is installed, but cannot be imported" in caplog.text
