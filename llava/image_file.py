"""Opens picture files: the one place where what a user gave becomes pixels.

Input: a path or the bytes of a file. Output: an RGB PIL image. Shapes and sizes are the concern of
`image_fit` and the vision tower's processor.
"""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from llava.errors import DataError
from llava.image_fit import to_rgb

# What Pillow raises for files that are cut off, foreign, damaged or too large.
IMAGE_ERRORS = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)


def open_image(source: str | Path | bytes, name: str | None = None) -> Image.Image:
    """Open a picture of any mode as RGB (see `to_rgb`).

    Args:
        source: A path, or what the file holds.
        name: What messages call it; the path when left out.

    Raises:
        DataError: There is no such file, or it is no picture, or one of too many pixels.
    """
    shown = name or ("the picture" if isinstance(source, bytes) else str(source))
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as picture:
            return to_rgb(picture)
    except FileNotFoundError as error:
        raise DataError(f"{shown}: there is no such picture (looked from {Path.cwd()})") from error
    except IMAGE_ERRORS as error:
        raise DataError(f"{shown}: the picture cannot be read: {error}") from error
