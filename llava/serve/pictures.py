"""Keeps an old import path for one release."""

from llava.serve.web import PictureLimits, clean, decode_data_url

__all__ = ["PictureLimits", "clean", "decode_data_url"]
