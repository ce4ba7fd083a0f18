"""One function makes RGB of every mode, one turns images upright; nothing else does."""

import ast
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from llava.errors import DataError
from llava.images import ImageError, apply_orientation, image_size, open_image, to_rgb
from llava.serve.web import ImageLimits, clean

ROOT = Path(__file__).resolve().parents[2]
ORIENTATION = ExifTags.Base.Orientation


def test_rgb_is_made_in_one_place():
    """Elsewhere 16-bit images would come out white."""
    found = []
    for path in sorted(
        p for d in ("llava", "lrm_ext", "scripts") for p in (ROOT / d).rglob("*.py")
    ):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            is_call = isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
            if is_call and node.func.attr == "convert":
                if any(isinstance(a, ast.Constant) and a.value == "RGB" for a in node.args):
                    found.append(path.relative_to(ROOT).as_posix())
    assert found == ["llava/images.py"]
    texts = [
        p.read_text(encoding="utf-8")
        for d in ("llava", "lrm_ext")
        for p in (ROOT / d).rglob("*.py")
    ]
    assert sum(text.count('convert("RGB")') for text in texts) == 1  # templates of code, too


def test_transparency_is_dropped_and_not_blended():
    rgba = Image.new("RGBA", (2, 1), (200, 100, 50, 0))
    assert to_rgb(rgba).getpixel((0, 0)) == (200, 100, 50)
    assert to_rgb(rgba.convert("LA")).getpixel((0, 0)) == (124, 124, 124)
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([0, 0, 0, 200, 100, 50])
    palette.info["transparency"] = b"\xff\x00"
    assert to_rgb(palette).getpixel((0, 0)) == (200, 100, 50)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([[0.0, 0.5, 1.0]], [0, 127, 255]),
        ([[0.0, 100.0, 300.0]], [0, 100, 255]),
        ([[np.nan, 2.0, -5.0]], [0, 2, 0]),
    ],
)
def test_floats(values, expected):
    found = np.asarray(to_rgb(Image.fromarray(np.array(values, np.float32))))
    assert found[0, :, 1].tolist() == expected


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_sixteen_bits_of_either_byte_order(mode):
    image = Image.new(mode, (2, 1), 20_000)
    assert to_rgb(image).getpixel((0, 0)) == (78, 78, 78)


def test_eight_bits_stay_as_they_are():
    values = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    for image in (Image.fromarray(values), Image.fromarray(values).convert("CMYK")):
        assert to_rgb(image).tobytes() == image.convert("RGB").tobytes()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_images_are_turned_once(orientation, kind):
    """Pillow turns TIFFs while it decodes them."""
    image = Image.new("RGB", (40, 20))
    image.paste((255, 0, 0), (0, 0, 10, 10))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=exif)
    corners = {
        1: (0, 0),
        2: (1, 0),
        3: (1, 1),
        4: (0, 1),
        5: (0, 0),
        6: (1, 0),
        7: (1, 1),
        8: (0, 1),
    }
    with Image.open(buffer) as opened:
        turned = apply_orientation(opened)
        for found in (to_rgb(turned), apply_orientation(turned), open_image(buffer.getvalue())):
            width, height = found.size
            assert found.size == ((40, 20) if orientation < 5 else (20, 40))
            x, y = corners[orientation]
            assert found.getpixel((2 + x * (width - 5), 2 + y * (height - 5)))[0] > 200
    if kind != "TIFF":
        assert open_image(buffer.getvalue(), orient=False).size == (40, 20)


def exif_block(tag, kind, count, value, rest=b""):
    """A JPEG of 40 x 20 pixels, to be turned by 90 degrees, with one more tag."""
    entries = [(0x0112, 3, 1, (6).to_bytes(4, "little")), (tag, kind, count, value)]
    body = b"II*\0" + (8).to_bytes(4, "little") + len(entries).to_bytes(2, "little")
    for number, form, size, content in entries:
        body += number.to_bytes(2, "little") + form.to_bytes(2, "little")
        body += size.to_bytes(4, "little") + content
    block = b"Exif\0\0" + body + bytes(4) + rest
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20)).save(buffer, "JPEG")
    head = b"\xff\xd8\xff\xe1" + (len(block) + 2).to_bytes(2, "big")
    return head + block + buffer.getvalue()[2:]


@pytest.mark.parametrize(
    "odd",
    [
        (0x011A, 10, 1, (38).to_bytes(4, "little"), b"\xb8\xff\xff\xff\1\0\0\0"),  # -72/1
        (0x011A, 5, 1, (38).to_bytes(4, "little"), b"\1\0\0\0\0\0\0\0"),  # 1/0
        (0x011A, 2, 4, b"abc\0"),  # text for a rational
        (0x0128, 2, 4, b"abc\0"),  # text for a number
        (0x011A, 5, 1, (60_000).to_bytes(4, "little")),  # beyond the end
        (0x8769, 4, 1, (60_000).to_bytes(4, "little")),  # a block that is not there
        (0x9999, 99, 1, bytes(4)),  # an unknown type
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_odd_tags_beside_the_orientation(odd):
    content = exif_block(*odd)
    assert open_image(content).size == (20, 40)
    with Image.open(io.BytesIO(clean(content, ImageLimits()))) as image:
        assert image.size == (20, 40)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("block", [b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"nonsense"])
def test_a_damaged_block_leaves_the_image_as_stored(block):
    buffer = io.BytesIO()
    Image.new("RGB", (40, 20)).save(buffer, "JPEG", exif=b"Exif\0\0" + block)
    assert open_image(buffer.getvalue()).size == (40, 20)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tiff", "gif", "bmp"])
@pytest.mark.parametrize("turn", [1, 3, 6, 8])
def test_the_size_is_that_of_the_opened_image(kind, turn, tmp_path):
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    path = tmp_path / f"a.{kind}"
    Image.new("RGB", (30, 20)).save(path, exif=exif)
    for orient in (True, False):
        assert image_size(path, orient) == open_image(path, orient=orient).size
    if kind == "jpg":
        assert image_size(path) == ((20, 30) if turn > 4 else (30, 20))


def test_the_size_of_what_is_no_image_is_an_error(tmp_path):
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(ImageError, match="a.jpg: the image cannot be read"):
        image_size(tmp_path / "a.jpg")
    with pytest.raises(DataError, match="there is no such image"):
        image_size(tmp_path / "b.jpg")
