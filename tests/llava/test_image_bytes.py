"""Pictures that travel as bytes give the tower the very floats that the processor gives."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from llava.images import open_image
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower
from llava.model.tiles import byte_table, keeps_bytes, preprocess_bytes, to_floats


@pytest.fixture(scope="module")
def tower(golden_dir):
    path = golden_dir / "llava" / "model" / "tiny-clip"
    return CLIPVisionTower(str(path), SimpleNamespace(mm_vision_select_layer=-2))


def noise(size, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(values)


@pytest.mark.parametrize("size", [(28, 28), (300, 200), (17, 90), (1, 1)])
@pytest.mark.parametrize(
    "changes", [{}, {"do_normalize": False}, {"image_std": [0.1, 0.2, 0.3]}, {"do_rescale": False}]
)
def test_floats_are_equal_bit_for_bit(golden_dir, size, changes):
    path = golden_dir / "llava" / "model" / "tiny-clip"
    processor = CLIPImageProcessorPil.from_pretrained(path, **changes)
    pixels = preprocess_bytes(noise(size), processor)
    expected = processor.preprocess(noise(size), return_tensors="pt")["pixel_values"][0]
    assert pixels.dtype == torch.uint8
    assert torch.equal(to_floats(pixels, byte_table(processor)), expected.float())
    assert keeps_bytes(processor) == (expected.dtype == torch.float32)


def test_a_processor_without_such_switches_keeps_floats():
    def preprocess(image, return_tensors):
        return {"pixel_values": [torch.zeros(3, 4, 4)]}

    assert not keeps_bytes(SimpleNamespace(preprocess=preprocess))


def test_the_tower_sees_no_difference(tower):
    images = [noise((40, 30), seed) for seed in range(3)]
    processor = tower.image_processor
    floats = processor(images, return_tensors="pt")["pixel_values"]
    pixels = torch.stack([preprocess_bytes(image, processor) for image in images])
    assert torch.equal(tower(pixels), tower(floats))
    assert tower(pixels).dtype == torch.float32
    listed = tower(list(pixels))
    assert all(torch.equal(a, b) for a, b in zip(listed, tower(list(floats)), strict=True))
    assert not any("table" in name for name in tower.state_dict())


def test_features_of_bytes_have_the_towers_dtype(golden_dir):
    path = golden_dir / "llava" / "model" / "tiny-clip"
    half = CLIPVisionTower(str(path), SimpleNamespace(mm_vision_select_layer=-2)).bfloat16()
    pixels = preprocess_bytes(noise((40, 30)), half.image_processor)[None]
    floats = to_floats(pixels, byte_table(half.image_processor))
    assert half(pixels).dtype == torch.bfloat16
    assert torch.equal(half(pixels), half(floats.bfloat16()))


def soft(size):
    values = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(values).resize(size, Image.Resampling.BICUBIC)


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((640, 480), (640, 480)),
        ((1100, 895), (1100, 895)),
        ((1200, 900), (600, 450)),
        ((4000, 1800), (1000, 450)),
        ((8000, 3600), (1000, 450)),
        ((16000, 3600), (2000, 450)),
    ],
)
def test_a_drafted_jpeg_keeps_enough_pixels(tmp_path, size, expected):
    soft((160, 120)).resize(size).save(tmp_path / "a.jpg")
    assert open_image(tmp_path / "a.jpg", least_side=448).size == expected
    assert open_image(tmp_path / "a.jpg").size == size


def test_only_jpeg_files_are_drafted(tmp_path):
    soft((2000, 2000)).save(tmp_path / "a.png")
    assert open_image(tmp_path / "a.png", least_side=100).size == (2000, 2000)


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_draft_mode_changes_little(tmp_path, mode):
    """On a picture without noise: on average less than one level of 256, nowhere more than 16."""
    soft((1600, 1200)).convert(mode).save(tmp_path / "a.jpg", quality=95)
    whole, drafted = (
        np.asarray(open_image(tmp_path / "a.jpg", least_side=side).resize((96, 72))).astype(int)
        for side in (None, 200)
    )
    difference = abs(whole - drafted)
    assert difference.mean() < 1
    assert difference.max() <= 16
