"""Keeps an old import path for one release."""

from lrm_ext.benchmarks.reading import matches_text, parse_yes_no

__all__ = ["matches_text", "parse_yes_no"]
