"""Pictures of every kind that users have: a defined result, or an error that names the file."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from llava.data.dataset import LazySupervisedDataset
from llava.data.sample import SampleError
from llava.images import MAX_SQUARE_PX, central_part, expand2square, to_rgb
from llava.mm_utils import process_images

PINPOINTS = [[28, 56], [56, 28], [56, 56]]
RATIOS = ("pad", "square", "anyres")
MEAN = (122, 116, 104)


@pytest.fixture(scope="module")
def processor(golden_dir):
    return CLIPImageProcessorPil.from_pretrained(golden_dir / "llava" / "model" / "tiny-clip")


@pytest.fixture
def train_on(tmp_path, llama_tokenizer, processor):
    """What the training dataset makes of a picture file."""

    def train_on(name, ratio="pad"):
        turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Red."}]
        path = tmp_path / "data.json"
        path.write_text(json.dumps([{"id": "one", "image": name, "conversations": turns}]))
        args = SimpleNamespace(
            image_folder=str(tmp_path),
            is_multimodal=True,
            image_aspect_ratio=ratio,
            image_processor=processor,
            mm_use_im_start_end=False,
        )
        return LazySupervisedDataset(str(path), llama_tokenizer(), args)[0]["image"]

    return train_on


def prepare(image, processor, ratio):
    config = SimpleNamespace(image_aspect_ratio=ratio, image_grid_pinpoints=PINPOINTS)
    return process_images([image], processor, config)[0]


def picture(mode, tmp_path):
    """A file in a mode; its left half is red (or bright), its right half black."""
    rgb = Image.new("RGB", (40, 20))
    rgb.paste((255, 0, 0), (0, 0, 20, 20))
    values = np.zeros((20, 40), dtype=np.uint16)
    values[:, :20] = 40_000
    made = {
        "cmyk.jpg": lambda: rgb.convert("CMYK"),
        "palette.png": lambda: rgb.convert("P", palette=Image.Palette.ADAPTIVE),
        "palette.gif": lambda: rgb.convert("P", palette=Image.Palette.ADAPTIVE),
        "transparent.png": lambda: rgb.convert("RGBA"),
        "grey.png": lambda: rgb.convert("L"),
        "grey-alpha.png": lambda: rgb.convert("LA"),
        "bits.png": lambda: rgb.convert("1"),
        "16bit.png": lambda: Image.fromarray(values),
        "16bit.tiff": lambda: Image.fromarray(values),
    }[mode]()
    made.save(tmp_path / mode)
    return mode


@pytest.mark.parametrize(
    "name",
    ["cmyk.jpg", "palette.png", "palette.gif", "transparent.png", "grey.png", "grey-alpha.png",
     "bits.png", "16bit.png", "16bit.tiff"],
)  # fmt: skip
def test_modes(name, tmp_path, train_on, processor):
    pixels = train_on(picture(name, tmp_path), "square")
    assert pixels.shape == (3, 28, 28)
    # red, or grey of the same file, on the left; black on the right
    assert pixels[0, :, :8].mean() > pixels[0, :, -8:].mean() + 0.5
    with Image.open(tmp_path / name) as image:
        torch.testing.assert_close(prepare(image, processor, "square"), pixels)


def test_sixteen_bits_are_scaled_and_not_cut_off():
    values = np.linspace(0, 65535, 12, dtype=np.uint16).reshape(3, 4)
    expected = (values >> 8).astype(np.uint8)
    for image in (Image.fromarray(values), Image.fromarray(values.astype(np.int32))):
        found = to_rgb(image)
        assert found.mode == "RGB" and (np.asarray(found)[..., 1] == expected).all()


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("size", [(1, 1), (3, 1), (1, 3), (3, 3), (2, 9)])
def test_tiny_pictures(size, ratio, processor):
    pixels = prepare(Image.new("RGB", size, (9, 200, 9)), processor, ratio)
    assert torch.isfinite(pixels).all()
    centre = pixels.reshape(-1, 3, 28, 28)[0, :, 14, 14]
    assert centre[1] > centre[0] + 1  # green, not read as one channel


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("size", [(20_000, 40), (1, 20_000)])
def test_20000_pixels_take_no_gigabytes(size, ratio, processor, monkeypatch):
    largest = []
    resize, new = Image.Image.resize, Image.new

    def watched_resize(self, to, *args, **kwargs):
        largest.append(to[0] * to[1])
        return resize(self, to, *args, **kwargs)

    def watched_new(mode, to, *args, **kwargs):
        largest.append(to[0] * to[1])
        return new(mode, to, *args, **kwargs)

    image = Image.new("RGB", size, (9, 200, 9))
    monkeypatch.setattr(Image.Image, "resize", watched_resize)
    monkeypatch.setattr(Image, "new", watched_new)
    monkeypatch.setattr("llava.images.MAX_SQUARE_PX", 1000)  # the real one takes a second
    pixels = prepare(image, processor, ratio)
    assert torch.isfinite(pixels).all() and max(largest) <= 1000**2
    assert MAX_SQUARE_PX**2 * 3 < 250e6


def test_large_squares_keep_their_proportions(monkeypatch):
    monkeypatch.setattr("llava.images.MAX_SQUARE_PX", 100)
    squared = expand2square(Image.new("RGB", (400, 100), (255, 0, 0)), MEAN)
    assert squared.size == (100, 100)
    rows = (np.asarray(squared)[:, 50] == (255, 0, 0)).all(axis=1)
    assert rows.sum() == 25 and rows[37] and not rows[36]
    exact = expand2square(Image.new("RGB", (100, 20)), MEAN)
    assert exact.size == (100, 100)


def test_only_thin_lines_are_cut():
    assert central_part(Image.new("RGB", (64, 1))).size == (64, 1)
    line = Image.new("RGB", (1, 1000))
    line.paste((255, 0, 0), (0, 480, 1, 520))
    cut = central_part(line)
    assert cut.size == (1, 64)
    assert [cut.getpixel((0, y))[0] for y in (11, 12, 51, 52)] == [0, 255, 255, 0]


def test_an_animation_shows_its_first_frame(tmp_path, train_on):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:], duration=50)
    with Image.open(tmp_path / "moving.gif") as moving:
        assert moving.n_frames > 1
    pixels = train_on("moving.gif")
    assert pixels[0].mean() > pixels[2].mean() + 1


def test_exif_rotation_is_not_applied(tmp_path, train_on):
    """As in LLaVA, whose models saw pictures as they are stored."""
    image = Image.new("RGB", (8, 8))
    image.paste((255, 0, 0), (0, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # "turn by 90 degrees"
    image.save(tmp_path / "turned.png", exif=exif)
    image.save(tmp_path / "plain.png")
    with Image.open(tmp_path / "turned.png") as turned:
        assert turned.getexif()[0x0112] == 6
    assert torch.equal(train_on("turned.png"), train_on("plain.png"))


def test_damage_of_any_format_is_named(tmp_path, train_on, damaged_image):
    (tmp_path / "bad.png").write_bytes(damaged_image)
    with pytest.raises(SampleError, match=r"data.json:1, sample 'one'.*bad.png: the image"):
        train_on("bad.png")


@pytest.mark.parametrize("kind", ["cut off", "empty", "text", "bomb"])
def test_unreadable_files_are_named(kind, tmp_path, train_on, monkeypatch):
    path = tmp_path / "bad.png"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    if kind == "cut off":
        path.write_bytes(path.read_bytes()[:4000])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_text("<html>not found</html>")
    else:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # 64 x 64 is over twice that
    with pytest.raises(SampleError, match=r"data.json:1, sample 'one'.*bad.png: the image"):
        train_on("bad.png")
