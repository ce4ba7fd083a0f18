"""Keeps an old import path for one release."""

from llava.images import ImageError, TooManyPixelsError, open_image

__all__ = ["ImageError", "TooManyPixelsError", "open_image"]
