"""Images of tables become files: joined as they are seen."""

import io

import numpy as np
import pytest
from PIL import ExifTags, Image

from llava.errors import DataError
from llava.images import open_image
from lrm_ext.evaluate.official import ImageStore


def content(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_joined_images_look_as_they_do_alone(tmp_path):
    deep = content(Image.new("I;16", (30, 20), 20_000), "PNG")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    turned = content(Image.effect_noise((20, 10), 50), "PNG", exif=exif)
    name = ImageStore(tmp_path).put_joined([deep, turned], "here")
    joined = np.asarray(open_image(tmp_path / name))
    assert joined.shape == (20, 30 + 8 + 10, 3)
    assert (joined[:, :30] == 78).all()
    assert (joined[:, 38:] == np.asarray(open_image(turned))).all()


def test_names_are_read_through_links_and_do_not_leave_the_folder(tmp_path):
    secret, source = content(Image.new("RGB", (2, 2)), "PNG"), tmp_path / "images"
    (tmp_path / "secret.png").write_bytes(secret)
    source.mkdir()
    (source / "link.png").symlink_to(tmp_path / "secret.png")
    store = ImageStore(tmp_path / "out", source)
    assert store.put("link.png", "here") == str(source / "link.png")
    name = store.put_joined(["link.png"], "here")
    assert (tmp_path / "out" / name).read_bytes() == secret
    for outside in ("../secret.png", str(tmp_path / "secret.png")):
        with pytest.raises(DataError, match="neither a file"):
            store.put(outside, "here")


def test_what_is_no_image_is_named(tmp_path):
    good = content(Image.new("RGB", (2, 2)), "PNG")
    with pytest.raises(DataError, match="row 7") as caught:
        ImageStore(tmp_path).put_joined([good, b"none"], "row 7")
    assert "BytesIO" not in str(caught.value)
