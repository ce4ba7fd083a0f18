"""Opens image files: the one place where what a user gave becomes pixels.

Input: a path or the bytes of a file. Output: an RGB PIL image, upright. Shapes and sizes are the
concern of `image_fit` and the vision tower's processor.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from llava.errors import DataError
from llava.image_fit import apply_orientation, to_rgb


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
    shown = name or ("the picture" if isinstance(source, bytes) else str(source))
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            if least_side is not None and picture.format == "JPEG":
                # both sides are given; the shorter one decides
                picture.draft(None, (least_side, least_side))
            return to_rgb(apply_orientation(picture) if orient else picture)
    except FileNotFoundError as error:
        raise DataError(f"{shown}: there is no such picture (looked from {Path.cwd()})") from error
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise TooManyPixelsError(f"{shown}: the picture cannot be read: {error}") from error
    except Exception as error:  # decoders raise nearly everything at a damaged file
        raise ImageError(f"{shown}: the picture cannot be read: {image_fault(error)}") from error


def image_fault(error: Exception) -> str:
    """Says what Pillow found wrong with a file, without the name of a Python object."""
    if isinstance(error, UnidentifiedImageError):
        return "it is damaged, or of no format that Pillow knows"
    return str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
