"""Keeps an old import path for one release."""

from lrm_ext.benchmarks.official import PictureStore

__all__ = ["PictureStore"]
