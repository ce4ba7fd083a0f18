import numpy as np
import pytest
from PIL import Image

from llava.errors import DataError
from llava.image_file import open_image


def test_sixteen_bits_are_scaled_and_not_cut_off(tmp_path):
    values = np.array([[0, 256 * 100], [256 * 200, 65535]], np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    for source in (tmp_path / "deep.png", (tmp_path / "deep.png").read_bytes()):
        picture = open_image(source)
        assert picture.mode == "RGB"
        assert np.asarray(picture)[..., 0].tolist() == [[0, 100], [200, 255]]


def test_what_is_no_picture_is_named(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    with pytest.raises(DataError, match=r"text\.png: the picture cannot be read"):
        open_image(tmp_path / "text.png")
    with pytest.raises(DataError, match=r"none\.png: there is no such picture"):
        open_image(tmp_path / "none.png")
    with pytest.raises(DataError, match="question 7: the picture cannot be read"):
        open_image(b"hello", "question 7")


def test_a_picture_that_was_cut_off_is_refused(tmp_path):
    path = tmp_path / "cut.png"
    Image.effect_noise((64, 64), 50).save(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(DataError, match=r"cut\.png: the picture cannot be read"):
        open_image(path)


def test_a_decompression_bomb_is_refused(tmp_path, monkeypatch):
    Image.new("L", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"bomb\.png: the picture cannot be read: .*pixels"):
        open_image(tmp_path / "bomb.png")
