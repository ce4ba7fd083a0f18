"""Keeps an old import path for one release."""

from llava.serve.openai_api import Reply

__all__ = ["Reply"]
