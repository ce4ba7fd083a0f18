"""Keeps an old import path for one release."""

from lrm_ext.translation.engines.openai import read_answer

__all__ = ["read_answer"]
