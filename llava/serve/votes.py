"""Votes on answers: up, down, flag, stored as LLaVA's page stores them.

In: a conversation and the model's name. Out: a line in the log, and values for the page's fields.
"""

from __future__ import annotations

import logging
from typing import Any

import gradio as gr

from llava.serve.chat import client_ip, notice
from llava.serve.chat_log import write_record
from llava.serve.chat_state import ChatState, PageSettings

log = logging.getLogger(__name__)


def vote_last_response(
    state: ChatState, vote_type: str, model: str, request: gr.Request, *, settings: PageSettings
) -> None:
    """Write a vote on the last answer.

    Raises:
        gr.Error: The log cannot be written.
    """
    try:
        write_record(settings.log_dir, vote_type, model, state.conversation, client_ip(request))
    except OSError as error:
        log.error("a vote could not be logged: %s", error)
        raise notice(settings.say("vote_lost")) from error


def upvote_last_response(
    state: ChatState, model: str, request: gr.Request, *, settings: PageSettings
) -> list[Any]:
    """Vote for the answer; return text field and the vote buttons."""
    return _vote(state, "upvote", model, request, settings)


def downvote_last_response(
    state: ChatState, model: str, request: gr.Request, *, settings: PageSettings
) -> list[Any]:
    """Vote against the answer; return text field and the vote buttons."""
    return _vote(state, "downvote", model, request, settings)


def flag_last_response(
    state: ChatState, model: str, request: gr.Request, *, settings: PageSettings
) -> list[Any]:
    """Flag the answer; return text field and the vote buttons."""
    return _vote(state, "flag", model, request, settings)


def _vote(
    state: ChatState, vote_type: str, model: str, request: gr.Request, settings: PageSettings
) -> list[Any]:
    vote_last_response(state, vote_type, model, request, settings=settings)
    gr.Info(settings.say("thanks"), duration=3, title="")
    return ["", *[gr.update(interactive=False)] * 3]
