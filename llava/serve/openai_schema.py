"""Keeps an old import path for one release."""

from llava.serve.openai_chat import ApiError, parse_chat_request

__all__ = ["ApiError", "parse_chat_request"]
