"""The golden tiny models and their inputs."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from llava.mm_utils import process_images
from llava.model import LlavaLlamaForCausalLM

MODELS = Path(__file__).parents[2] / "golden" / "llava" / "model"


@pytest.fixture(scope="session")
def models() -> Path:
    return MODELS


@pytest.fixture(scope="session")
def golden() -> dict:
    return json.loads((MODELS / "forward.json").read_text())


@pytest.fixture(scope="session")
def pictures() -> list[Image.Image]:
    return [Image.open(MODELS / f"image{i}.png").convert("RGB") for i in range(3)]


@pytest.fixture(scope="session")
def pixels(pictures) -> torch.Tensor:
    """The three pictures, padded to squares: [3, 3, 28, 28]."""
    processor = CLIPImageProcessorPil.from_pretrained(MODELS / "tiny-clip")
    return process_images(pictures, processor, SimpleNamespace(image_aspect_ratio="pad"))


@pytest.fixture
def tiny_llava():
    """A fresh tiny-llava in evaluation mode, float32."""
    return LlavaLlamaForCausalLM.from_pretrained(MODELS / "tiny-llava")


@pytest.fixture
def batch(golden, pixels) -> dict:
    """The three golden rows (one image, two, none) and their four image slots."""
    case = golden["mlp2x_gelu"]
    tensors = {name: torch.tensor(case[name]) for name in ("input_ids", "labels", "attention_mask")}
    return {**tensors, "images": pixels[[0, 1, 2, 0]]}
