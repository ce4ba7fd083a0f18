"""Opens images and shapes them: pads to a square, shrinks for sending, encodes as text.

The one place where what a user gave becomes pixels. Input: a path or the bytes of a file. Output:
RGB PIL images, upright, or base64 text. Tensors are made in `mm_utils` and by the vision tower's
processor.
"""

from __future__ import annotations

import base64
import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from llava.errors import DataError

CLIP_MEAN_COLOUR = (122, 116, 104)
"""Mean colour of CLIP's training images, with which squares are filled up."""

MAX_SQUARE_PX = 8192
"""Longest side of an image that is filled up to a square as it is (the square takes 200 MB)."""

MAX_STRETCH = 64
"""Longer side over shorter side from which on a crop is prepared (see `central_part`)."""


class ImageError(DataError):
    """A file that cannot be read as an image.

    Attributes:
        reason: Under which it is counted.
    """

    reason = "broken_picture"


class TooManyPixelsError(ImageError):
    """An image that Pillow refuses to decode because it would take gigabytes."""

    reason = "too_many_pixels"


def open_image(
    source: str | Path | bytes,
    name: str | None = None,
    least_side: int | None = None,
    orient: bool = True,
) -> Image.Image:
    """Opens an image of any mode as RGB (see `to_rgb`).

    Args:
        source: A path, or what the file holds.
        name: What messages call it; the path when left out.
        least_side: A JPEG whose shorter side is at least twice that may be decoded at a half, a
            quarter or an eighth, as long as the shorter side keeps so many pixels ("draft mode").
            It takes less time and gives slightly other pixels. None: as it is.
        orient: Turn it as its metadata says (see `apply_orientation`). LLaVA's own scripts and
            dataset do not.

    Raises:
        ImageError: It is damaged or no image (`TooManyPixelsError`: it has too many pixels).
        DataError: There is no such file.
    """
    with _opened(source, name) as image:
        if least_side is not None and image.format == "JPEG":
            # both sides are given; the shorter one decides
            image.draft(None, (least_side, least_side))
        return to_rgb(apply_orientation(image) if orient else image)


# their header says what size they will have
_WITH_HEADER = ("JPEG", "MPO", "WEBP")


def image_size(source: str | Path, orient: bool = True) -> tuple[int, int]:
    """Returns the (width, height) in pixels that `open_image` gives, if possible from the header.

    A PNG that may have to be turned is decoded, because its metadata may come last.

    Raises:
        DataError: As for `open_image`.
    """
    with _opened(source, None) as image:
        width, height = image.size
        if image.format in _WITH_HEADER:
            is_turned = orient and _orientation(image) in (5, 6, 7, 8)
            return (height, width) if is_turned else (width, height)
        if not orient and image.format != "TIFF":
            return width, height
        return (apply_orientation(image) if orient else to_rgb(image)).size


@contextlib.contextmanager
def _opened(source: str | Path | bytes, name: str | None) -> Iterator[Image.Image]:
    """Opens a file for decoding; see `open_image`."""
    shown = name or ("the image" if isinstance(source, bytes) else str(source))
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            yield image
    except FileNotFoundError as error:
        raise DataError(f"{shown}: there is no such image (looked from {Path.cwd()})") from error
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError(f"{shown}: the image cannot be read: {error}") from error
    except Exception as error:  # decoders raise nearly anything at a damaged file
        raise ImageError(f"{shown}: the image cannot be read: {image_fault(error)}") from error


def image_fault(error: Exception) -> str:
    """Says what Pillow found wrong with a file, without the name of a Python object."""
    if isinstance(error, UnidentifiedImageError):
        return "it is damaged, or of no format that Pillow knows"
    return str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image of any mode to RGB; the only place that does.

    An animation gives its current frame, which is the first after opening. Sixteen bits a channel
    are scaled to eight, and so are floats that lie within 0 and 1; PIL alone clips at 255, so that
    the former come out white and the latter black. Transparency is dropped, not blended, as LLaVA
    does: what lies under it shows. The orientation is left as it is (see `apply_orientation`).
    """
    if image.mode.startswith("I"):
        # `I` has 32 bits a pixel, but holds what a 16-bit PNG or TIFF had
        values = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
        image = Image.fromarray(values.astype(np.uint8))
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        scale = 255 if values.max(initial=0) <= 1 else 1
        image = Image.fromarray((values * scale).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_METADATA = ("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp")


def apply_orientation(image: Image.Image) -> Image.Image:
    """Turns an image as its metadata says that it was held (EXIF tag 0x0112).

    No other tag is read: `ImageOps.exif_transpose` writes them all anew, and fails at a tag of an
    odd type although the pixels are whole. A turned image loses the metadata, so that it is not
    turned again; any other is returned unchanged.
    """
    image.load()  # PIL turns a TIFF itself while it decodes it
    transpose = _TRANSPOSES.get(_orientation(image))
    if transpose is None:
        return image
    turned = image.transpose(transpose)
    for key in _METADATA:
        turned.info.pop(key, None)
    return turned


def _orientation(image: Image.Image) -> Any:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # PIL's reader raises nearly anything at a damaged block
        return 1


def central_part(image: Image.Image) -> Image.Image:
    """Cuts what a centre crop will leave out anyway off an image that is a thin line.

    CLIP's processor first enlarges the shorter side: a line of 20,000 x 1 pixels would take 7 GB.
    Images up to `MAX_STRETCH` times as long as wide are returned unchanged.
    """
    width, height = image.size
    longest = MAX_STRETCH * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(width - longest, 0) // 2, max(height - longest, 0) // 2
    return image.crop((left, top, left + min(width, longest), top + min(height, longest)))


def expand2square(pil_img: Image.Image, background_color: tuple[int, ...]) -> Image.Image:
    """Centres an image on a square canvas.

    A square image is returned unchanged. An image whose mode has no colours (palette, greyscale)
    becomes RGB when the background is a colour. One longer than `MAX_SQUARE_PX` is shrunk to that,
    because its square would take gigabytes.
    """
    if pil_img.width == pil_img.height:
        return pil_img
    if len(background_color) == 3 and pil_img.mode not in ("RGB", "RGBA"):
        pil_img = to_rgb(pil_img)
    side = max(pil_img.size)
    if side > MAX_SQUARE_PX:
        scale = MAX_SQUARE_PX / side
        pil_img = pil_img.resize(tuple(max(round(length * scale), 1) for length in pil_img.size))
        side = MAX_SQUARE_PX
    canvas = Image.new(pil_img.mode, (side, side), background_color)
    canvas.paste(pil_img, ((side - pil_img.width) // 2, (side - pil_img.height) // 2))
    return canvas


def shape_image(image: Image.Image, processor: Any, aspect_ratio: str | None) -> Image.Image:
    """Shapes an image for a tower that sees squares.

    It is filled up to one with the mean colour of the tower's training images (`pad`); otherwise a
    centre crop follows, and what that leaves out of a thin line is cut off.
    """
    if aspect_ratio == "pad":
        return expand2square(image, tuple(int(255 * mean) for mean in processor.image_mean))
    return central_part(image)


def fit_image(image: Image.Image, mode: str) -> Image.Image:
    """Fits an image as the chat page's hidden switch says.

    Args:
        image: The image.
        mode: `Pad` (to a square), `Resize` (to 336 x 336), `Default` or `Crop` (leave it).

    Raises:
        ValueError: The mode is unknown.
    """
    if mode not in ("Pad", "Resize", "Default", "Crop"):
        raise ValueError(
            f"{mode!r} is an invalid image_process_mode. Use Pad, Resize, Default or Crop."
        )
    if mode == "Pad":
        return expand2square(image, CLIP_MEAN_COLOUR)
    return image.resize((336, 336)) if mode == "Resize" else image


def shrink_image(image: Image.Image, max_len: int, min_len: int) -> Image.Image:
    """Shrinks an image whose longer side exceeds `max_len` pixels, keeping its proportions.

    Args:
        image: The image.
        max_len: Longest side in pixels that is left alone, and the most that comes out.
        min_len: Most pixels of the shorter side afterwards.
    """
    long, short = max(image.size), min(image.size)
    if long <= max_len:
        return image
    ratio = long / short
    new_short = int(min(max_len / ratio, min_len, short))
    new_long = int(new_short * ratio)
    is_upright = image.height > image.width
    return image.resize((new_short, new_long) if is_upright else (new_long, new_short))


def to_base64(image: Image.Image, image_format: str) -> str:
    """Returns an image's file bytes as base64 text."""
    if image_format.upper() == "JPEG" and image.mode not in ("L", "RGB", "CMYK"):
        image = to_rgb(image)  # JPEG supports neither palettes nor transparency
    buffer = io.BytesIO()
    image.save(buffer, format=image_format)
    return base64.b64encode(buffer.getvalue()).decode()
