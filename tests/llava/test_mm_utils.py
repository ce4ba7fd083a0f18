import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor

from llava import mm_utils
from llava.errors import ConfigError

PINPOINTS = [[28, 56], [56, 28], [56, 56], [84, 28], [28, 84]]


@pytest.fixture
def processor(golden_dir):
    return CLIPImageProcessor.from_pretrained(golden_dir / "llava" / "model" / "tiny-clip")


@pytest.fixture
def images(golden_dir):
    paths = [golden_dir / "llava" / "model" / f"image{i}.png" for i in range(3)]
    return [Image.open(path).convert("RGB") for path in paths]


def test_pad_equals_llava(processor, images, load_golden):
    pixels = mm_utils.process_images(images, processor, SimpleNamespace(image_aspect_ratio="pad"))
    expected = load_golden("model/process_images")["pad"]
    assert isinstance(pixels, torch.Tensor) and len(expected) == 3
    for found, golden in zip(pixels, expected, strict=True):
        assert list(found.shape) == golden["shape"]
        assert found.mean().item() == pytest.approx(golden["mean"], abs=1e-3)
        assert found.std().item() == pytest.approx(golden["std"], abs=1e-3)
        corner = found[:, 0, :8].flatten().tolist()
        assert corner == pytest.approx(golden["corner"], abs=1e-3)


def test_anyres_equals_llava(processor, images, load_golden):
    config = SimpleNamespace(image_aspect_ratio="anyres", image_grid_pinpoints=PINPOINTS)
    pixels = mm_utils.process_images(images, processor, config)
    expected = load_golden("model/process_images")["anyres"]
    assert isinstance(pixels, list)  # five, four and five tiles
    for found, golden in zip(pixels, expected, strict=True):
        assert list(found.shape) == golden["shape"]
        assert found.mean().item() == pytest.approx(golden["mean"], abs=1e-3)
        assert found.std().item() == pytest.approx(golden["std"], abs=1e-3)
    config.image_grid_pinpoints = str(PINPOINTS)
    again = mm_utils.process_images(images[:1], processor, config)
    assert torch.equal(again[0], pixels[0])


def test_anyres_without_pinpoints_is_an_error(processor, images):
    with pytest.raises(ConfigError, match="image_grid_pinpoints"):
        mm_utils.process_images(images, processor, SimpleNamespace(image_aspect_ratio="anyres"))


@pytest.mark.parametrize("pinpoints", ["[[28, 56]", "all", 28, [[28]], [[0, 28]], [28, 56], [[]]])
def test_pinpoints_that_are_none(processor, images, pinpoints):
    config = SimpleNamespace(image_aspect_ratio="anyres", image_grid_pinpoints=pinpoints)
    with pytest.raises(ConfigError, match="expected a list of"):
        mm_utils.process_images(images, processor, config)


@pytest.mark.parametrize("config", [SimpleNamespace(), SimpleNamespace(image_aspect_ratio="x")])
def test_any_other_ratio_is_the_processors_own_crop(processor, images, config):
    pixels = mm_utils.process_images(images, processor, config)
    assert torch.equal(pixels, processor(images, return_tensors="pt")["pixel_values"])


@pytest.mark.parametrize("mode", ["L", "P", "LA", "RGBA"])
@pytest.mark.parametrize("ratio", ["pad", "anyres", None])
def test_pictures_of_any_mode(processor, images, mode, ratio):
    config = SimpleNamespace(image_aspect_ratio=ratio, image_grid_pinpoints=PINPOINTS)
    pixels = mm_utils.process_images([images[0].convert(mode)], processor, config)
    assert torch.isfinite(pixels).all()


def test_anyres_geometry_equals_llava(load_golden):
    cases = load_golden("anyres")
    for case in cases:
        size, pinpoints = tuple(case["image_size"]), case["pinpoints"]
        resolutions = [tuple(p) for p in pinpoints]
        assert list(mm_utils.select_best_resolution(size, resolutions)) == case["best"]
        grid = mm_utils.get_anyres_image_grid_shape(size, str(pinpoints), case["patch"])
        assert list(grid) == case["grid"]
    assert len(cases) == 40


def test_equal_merit_takes_the_first():
    assert mm_utils.select_best_resolution((10, 10), [(28, 56), (56, 28)]) == (28, 56)


def test_letterbox_is_black_and_centred_and_tiles_run_by_row():
    image = Image.new("RGB", (40, 20), (255, 255, 255))
    padded = np.asarray(mm_utils.resize_and_pad_image(image, (40, 40)))
    assert (padded[10:30] == 255).all() and not padded[:10].any() and not padded[30:].any()
    picture = Image.fromarray(np.arange(16, dtype=np.uint8).reshape(4, 4))
    corners = [np.asarray(tile)[0, 0] for tile in mm_utils.divide_to_patches(picture, 2)]
    assert corners == [0, 2, 8, 10]


def test_square_and_padded_pictures():
    square = Image.new("RGB", (5, 5))
    assert mm_utils.expand2square(square, (1, 2, 3)) is square
    wide = mm_utils.expand2square(Image.new("L", (6, 2), 255), (1, 2, 3))
    assert wide.size == (6, 6) and wide.getpixel((0, 1)) == (1, 2, 3)
    assert wide.getpixel((0, 2)) == (255, 255, 255)


def test_base64_picture():
    buffer = io.BytesIO()
    Image.new("RGB", (3, 2), (9, 8, 7)).save(buffer, "PNG")
    image = mm_utils.load_image_from_base64(base64.b64encode(buffer.getvalue()).decode())
    assert image.size == (3, 2) and image.getpixel((0, 0)) == (9, 8, 7)


def test_image_token_ids_equal_llava(llama_tokenizer, load_golden):
    cases = load_golden("tokenizer_image_token")
    for case in cases:
        tokenizer = llama_tokenizer(case["legacy"])
        assert mm_utils.tokenizer_image_token(case["text"], tokenizer) == case["ids"]
    assert len(cases) == 12


def test_image_token_arguments(llama_tokenizer):
    found = mm_utils.tokenizer_image_token("<image>", llama_tokenizer(), -7, return_tensors="pt")
    assert found.tolist() == [1, -7] and found.dtype == torch.long
    with pytest.raises(ValueError, match="np"):
        mm_utils.tokenizer_image_token("a", llama_tokenizer(), return_tensors="np")


def test_model_names_equal_llava(load_golden):
    for case in load_golden("model_name"):
        assert mm_utils.get_model_name_from_path(case["path"]) == case["name"]


def test_keywords_stop_each_row_for_itself(llama_tokenizer):
    tokenizer = llama_tokenizer()
    prompt = tokenizer("What?", return_tensors="pt").input_ids
    criteria = mm_utils.KeywordsStoppingCriteria(["###", "</s>"], tokenizer, prompt)
    stops = tokenizer("A ###", return_tensors="pt").input_ids[0, 1:]
    rows = torch.zeros(3, prompt.shape[1] + len(stops), dtype=torch.long)
    rows[:, : prompt.shape[1]] = prompt
    rows[0, prompt.shape[1] :] = stops
    rows[2, -1] = tokenizer.eos_token_id
    found = criteria(rows, None)
    assert found.dtype == torch.bool and found.tolist() == [True, False, True]
