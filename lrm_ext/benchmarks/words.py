"""Keeps an old import path for one release."""

from lrm_ext.benchmarks.reading import answer_words

__all__ = ["answer_words"]
