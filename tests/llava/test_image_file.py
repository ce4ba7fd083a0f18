import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from llava.errors import DataError
from llava.images import ImageError, TooManyPixelsError, open_image


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path):
    values = np.array([[0, 256 * 100], [256 * 200, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    for source in (tmp_path / "deep.png", (tmp_path / "deep.png").read_bytes()):
        picture = open_image(source)
        assert picture.mode == "RGB"
        assert np.asarray(picture)[..., 0].tolist() == [[0, 100], [200, 255]]


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match=r"text\.png: the image cannot be read"):
        open_image(tmp_path / "text.png")
    with pytest.raises(DataError, match=r"none\.png: there is no such image"):
        open_image(tmp_path / "none.png")
    with pytest.raises(DataError, match="question 7: the image cannot be read"):
        open_image(b"hello", "question 7")
    with pytest.raises(ImageError) as caught:
        open_image(b"hello")
    assert "BytesIO" not in str(caught.value)


def test_a_picture_that_was_cut_off_is_refused(tmp_path):
    path = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"cut\.png: the image cannot be read"):
        open_image(path)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    Image.new("L", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    said = r"bomb\.png: the image cannot be read: .*pixels"
    with pytest.raises(TooManyPixelsError, match=said) as caught:
        open_image(tmp_path / "bomb.png")
    copy = pickle.loads(pickle.dumps(caught.value))  # a loader's worker process raises it
    assert copy.reason == "too_many_pixels" and str(copy) == str(caught.value)


def test_a_damaged_file_of_any_format_is_refused(damaged_image):
    with pytest.raises(ImageError, match=r"here: the image cannot be read: \w+") as caught:
        open_image(damaged_image, "here")
    assert caught.value.reason == "broken_picture"


@pytest.mark.parametrize(
    "error",
    [RuntimeError, IndexError, AttributeError, KeyError, SyntaxError, struct.error, zlib.error,
     OverflowError, ZeroDivisionError, EOFError, TypeError, AssertionError],
)  # fmt: skip
def test_whatever_a_decoder_raises(error, tmp_path, monkeypatch):
    Image.new("RGB", (3, 3)).save(tmp_path / "a.png")

    def fails(self):
        raise error("odd")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fails)
    with pytest.raises(ImageError, match=r"a\.png: the image cannot be read: .*odd"):
        open_image(tmp_path / "a.png")


def test_want_of_memory_is_no_damage(tmp_path, monkeypatch):
    Image.new("RGB", (3, 3)).save(tmp_path / "a.png")

    def fails(self):
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fails)
    with pytest.raises(MemoryError):
        open_image(tmp_path / "a.png")
