"""Shape a picture: pad it to a square, shrink it for sending, encode it as text.

Role: the picture operations that need no tensors, shared by conversations and `mm_utils`.
Input and output: PIL images, or base64 text. Non-goals: what a vision tower's processor does.
"""

from __future__ import annotations

import base64
from io import BytesIO

from PIL import Image

CLIP_MEAN_COLOUR = (122, 116, 104)
"""Mean colour of CLIP's training pictures, with which squares are filled up."""


def expand2square(pil_img: Image.Image, background_color: tuple[int, ...]) -> Image.Image:
    """Centre a picture on a square canvas.

    A square picture comes back as it is. A picture whose mode has no colours (palette, greyscale)
    becomes RGB when the background is a colour.
    """
    width, height = pil_img.size
    if width == height:
        return pil_img
    if len(background_color) == 3 and pil_img.mode not in ("RGB", "RGBA"):
        pil_img = pil_img.convert("RGB")
    side = max(width, height)
    canvas = Image.new(pil_img.mode, (side, side), background_color)
    canvas.paste(pil_img, ((side - width) // 2, (side - height) // 2))
    return canvas


def fit_image(image: Image.Image, mode: str) -> Image.Image:
    """Fit a picture as the chat page's hidden switch says.

    Args:
        image: The picture.
        mode: `Pad` (to a square), `Resize` (to 336 x 336), `Default` or `Crop` (leave it).

    Raises:
        ValueError: The mode is unknown.
    """
    if mode == "Pad":
        return expand2square(image, CLIP_MEAN_COLOUR)
    if mode == "Resize":
        return image.resize((336, 336))
    if mode in ("Default", "Crop"):
        return image
    raise ValueError(
        f"{mode!r} is an invalid image_process_mode. Use Pad, Resize, Default or Crop."
    )


def shrink_image(image: Image.Image, max_len: int, min_len: int) -> Image.Image:
    """Shrink a picture whose longer side exceeds `max_len` pixels, keeping its proportions.

    Args:
        image: The picture.
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
    """Return a picture's file bytes as base64 text."""
    if image_format.upper() == "JPEG" and image.mode not in ("L", "RGB", "CMYK"):
        image = image.convert("RGB")  # JPEG knows neither palettes nor transparency
    buffer = BytesIO()
    image.save(buffer, format=image_format)
    return base64.b64encode(buffer.getvalue()).decode()
