"""Handles what users of the page do: send, stream, stop, regenerate, clear, vote.

In: a `ChatState` and the values of the page's fields. Out: values for the page's fields. The layout
is in `llava.serve.page`, the storage in `llava.serve.page_state`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

import gradio as gr
import requests
from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.errors import UserError
from llava.serve import protocol
from llava.serve.page_state import ChatState, PageError, PageSettings, save_images, write_record
from llava.serve.protocol import (
    BUSY,
    DEADLINE,
    GENERATION_FAILED,
    NO_WORKER,
    OK,
    STOPPING,
    TOO_LONG_MESSAGE,
    WORKER_UNREACHABLE,
    stop_string,
    template_of_worker,
)
from llava.utils import server_error_msg, violates_moderation

log = logging.getLogger(__name__)

MAX_TEXT_LEN = 1536
MAX_TEXT_LEN_WITH_IMAGE = 1200
MAX_NEW_TOKENS = 1536
CURSOR = "\u258c"
NUM_BUTTONS = 6
# The page's text for each kind of error that a worker reports.
REASONS = {BUSY: "error_busy", DEADLINE: "error_deadline", STOPPING: "error_stopping"}
# Leaves state, chat panel and buttons unchanged.
NOTHING_NEW = [gr.skip()] * (2 + NUM_BUTTONS)
_NETWORK_ERRORS = (requests.RequestException, ValueError, KeyError)


class AnswerError(Exception):
    """Raised when a question gets no answer.

    Args:
        code: An error code of `llava.serve.protocol`.
        reason: The cause, translated if the page knows it.
        heading: First line of the message; by default the page's general error.
    """

    def __init__(self, code: int, reason: str, heading: str = "") -> None:
        super().__init__(reason)
        self.code = code
        self.heading = heading


def button_states(
    vote: bool = False, stop: bool = False, regenerate: bool = False, clear: bool = False
) -> list[Any]:
    """Returns updates for Upvote, Downvote, Flag, Stop, Regenerate, Clear."""
    states = (vote, vote, vote, stop, regenerate, clear)
    return [gr.update(interactive=state) for state in states]


def add_text(
    state: ChatState | None,
    text: str,
    image: Image.Image | None,
    image_process_mode: str,
    request: gr.Request,
    *control_values: Any,
    settings: PageSettings,
) -> list[Any]:
    """Adds a question to the conversation; an image starts a new one.

    Returns:
        State, chat panel, text field, image field, buttons.

    Raises:
        gr.Error: The question is empty, an answer is running, or moderation refuses the text.
    """
    state = state or ChatState()
    text = (text or "").strip()
    if state.busy:
        raise notice(settings.say("still_answering"))
    if not text and image is None:
        raise notice(settings.say("no_question"))
    if settings.moderate and violates_moderation(text):
        raise notice(settings.say("moderated"))
    limit = MAX_TEXT_LEN if image is None else MAX_TEXT_LEN_WITH_IMAGE
    if len(text) > limit:
        gr.Warning(settings.say("text_cut", length=len(text), limit=limit))
        text = text[:limit]
    control = settings.control
    if control is not None and text:
        try:
            text = control.apply(text, *control_values)
        except PageError as error:
            raise notice(settings.say(error.key)) from error
    log.info("add_text. ip: %s. len: %d", client_ip(request), len(text))
    content: str | tuple[str, Image.Image, str] = text
    if image is not None:
        state = ChatState()
        mark = "" if DEFAULT_IMAGE_TOKEN in text else "\n" + DEFAULT_IMAGE_TOKEN
        content = (text + mark, image, image_process_mode)
    state.text = settings.text
    state.open_turn(content)
    if control is not None:
        show = control.show
        state.shown_by[state.last_number] = lambda reply: show(reply, state.text, *control_values)
    return [state, state.messages(), "", None, *button_states(stop=True, clear=True)]


def mirror(source: ChatState, target: ChatState | None) -> ChatState:
    """Copies the open turn of one conversation into another, for a second model.

    Args:
        source: The state that `add_text` returned.
        target: The conversation with the second model so far.

    Returns:
        The second conversation; a new one if the first one is new.
    """
    last = source.last_number
    if target is None or last == 1:
        target = ChatState()
    target.text = source.text
    target.open_turn(source.conversation.messages[-2][1])
    if last in source.shown_by:
        target.shown_by[target.last_number] = source.shown_by[last]
    return target


def notice(message: str) -> gr.Error:
    """Returns an error that Gradio shows for a few seconds."""
    return gr.Error(message, duration=5, title="", print_exception=False)


def client_ip(request: gr.Request | None) -> str:
    """Returns the address of the user, "" if it is unknown."""
    return request.client.host if request is not None and request.client else ""


def http_bot(
    state: ChatState | None,
    model: str | None,
    temperature: float,
    top_p: float,
    max_new_tokens: float,
    request: gr.Request,
    *,
    settings: PageSettings,
) -> Iterator[list[Any]]:
    """Asks a worker and shows the answer while it is generated.

    Yields:
        State, chat panel, buttons.
    """
    if state is None or state.last_number < 0 or state.conversation.messages[-1][1] is not None:
        yield NOTHING_NEW
        return
    sampling = {
        "temperature": float(temperature),
        "top_p": float(top_p),
        "max_new_tokens": min(int(max_new_tokens), MAX_NEW_TOKENS),
    }
    state.busy = True
    state.stop.clear()
    started = time.time()
    failure: AnswerError | None = None
    try:
        try:
            for _ in _answer(state, model or "", sampling, settings):
                if not state.abandoned:
                    yield [state, state.messages(), *[gr.skip()] * NUM_BUTTONS]
        except AnswerError as error:
            failure = error
        except Exception as error:
            # Whatever happens, the user's turn must not stay open for ever.
            log.exception("the page failed to ask the model")
            reason = str(error) if isinstance(error, UserError) else settings.say("error_page")
            failure = AnswerError(GENERATION_FAILED, reason)
        if failure is not None:
            heading = failure.heading or settings.say("error_server")
            said = "\n\n".join(filter(None, (heading, str(failure))))
            state.conversation.messages[-1][1] = f"{said} (error_code: {failure.code})"
        _log_chat(state, model or "", started, request, settings)
        if state.abandoned:
            yield NOTHING_NEW
        else:
            buttons = button_states(vote=failure is None, regenerate=True, clear=True)
            yield [state, state.messages(), *buttons]
    finally:
        state.busy = False


def _answer(
    state: ChatState, model: str, sampling: dict[str, Any], settings: PageSettings
) -> Iterator[None]:
    """Fills the open turn, and yields after each piece.

    Raises:
        AnswerError: No worker answers, or the worker reports an error.
    """
    address = ""
    try:
        address = protocol.get_worker_address(settings.controller_url, model) if model else ""
    except _NETWORK_ERRORS as error:
        log.error("controller %s: %s", settings.controller_url, error)
    if not address:
        key = "error_no_worker" if model else "error_no_model"
        raise AnswerError(NO_WORKER, settings.say(key, model=repr(model)))
    if state.last_number == 1:  # the first turn decides the template
        question = state.conversation.messages[-2][1]
        state.conversation = template_of_worker(address, model)
        state.open_turn(question)
    conversation = state.conversation
    prompt = conversation.get_prompt()
    body = {
        "model": model,
        "prompt": prompt,
        **sampling,
        "stop": stop_string(conversation),
        "images": conversation.get_images(),
    }
    text = ""
    conversation.messages[-1][1] = CURSOR
    try:
        yield
        for chunk in protocol.stream_generation(address, body):
            if chunk["error_code"] != OK:
                raise _reported_error(chunk, settings)
            text = chunk["text"][len(prompt) :].strip()
            conversation.messages[-1][1] = text + CURSOR
            yield
            if state.stop.is_set():
                break
    except _NETWORK_ERRORS as error:
        log.error("worker %s: %s", address, error)
        raise AnswerError(WORKER_UNREACHABLE, settings.say("error_worker_gone")) from error
    finally:
        # The log must not hold a cursor, even if the user has left.
        conversation.messages[-1][1] = text


def _reported_error(chunk: dict[str, Any], settings: PageSettings) -> AnswerError:
    """Converts the error that a worker reports; known messages are translated."""
    headings = {TOO_LONG_MESSAGE: settings.say("error_too_long"), server_error_msg: ""}
    kind, text = chunk.get("kind"), str(chunk["text"])
    reason = settings.say(REASONS[kind]) if kind in REASONS else str(chunk.get("reason", ""))
    return AnswerError(int(chunk["error_code"]), reason, headings.get(text, text))


def _log_chat(
    state: ChatState, model: str, started: float, request: gr.Request, settings: PageSettings
) -> None:
    conversation = state.conversation
    try:
        write_record(
            settings.log_dir,
            "chat",
            model,
            conversation,
            client_ip(request),
            start=round(started, 4),
            finish=round(time.time(), 4),
            images=save_images(settings.log_dir, conversation.get_images(return_pil=True)),
        )
    except OSError as error:
        # A full disk must not take the finished answer from the user.
        log.error("the conversation could not be logged: %s", error)


def stop(state: ChatState | None) -> Any:
    """Ends the running answer; the text so far stays."""
    if state is not None:
        state.stop.set()
    return gr.update(interactive=False)


def regenerate(
    state: ChatState | None, image_process_mode: str, request: gr.Request, *, settings: PageSettings
) -> list[Any]:
    """Drops the last answer and opens its turn again.

    Returns:
        State, chat panel, text field, image field, buttons.

    Raises:
        gr.Error: There is no answer yet, or one is running.
    """
    if state is None or state.last_number < 1:
        raise notice(settings.say("no_answer_yet"))
    if state.busy:
        raise notice(settings.say("still_answering"))
    log.info("regenerate. ip: %s", client_ip(request))
    asked, answered = state.conversation.messages[-2:]
    answered[1] = None
    if isinstance(asked[1], tuple):
        asked[1] = (*asked[1][:2], image_process_mode)
    return [state, state.messages(), "", None, *button_states(stop=True, clear=True)]


def clear_history(
    state: ChatState | None, request: gr.Request, *, settings: PageSettings
) -> list[Any]:
    """Starts a new conversation and stops a running answer.

    Returns:
        State, chat panel, text field, image field, buttons.
    """
    log.info("clear_history. ip: %s", client_ip(request))
    if state is not None:
        state.abandoned = True
        state.stop.set()
    return [ChatState(), [], "", None, *button_states()]


def vote_last_response(
    state: ChatState, vote_type: str, model: str, request: gr.Request, *, settings: PageSettings
) -> list[Any]:
    """Logs a vote on the last answer; returns updates for text field and vote buttons.

    Raises:
        gr.Error: The log cannot be written.
    """
    try:
        write_record(settings.log_dir, vote_type, model, state.conversation, client_ip(request))
    except OSError as error:
        log.error("a vote could not be logged: %s", error)
        raise notice(settings.say("vote_lost")) from error
    gr.Info(settings.say("thanks"), duration=3, title="")
    return ["", *button_states()[:3]]


def upvote_last_response(
    state: ChatState, model: str, request: gr.Request, *, settings: PageSettings
) -> list[Any]:
    """Votes for the answer; see `vote_last_response`."""
    return vote_last_response(state, "upvote", model, request, settings=settings)


def downvote_last_response(
    state: ChatState, model: str, request: gr.Request, *, settings: PageSettings
) -> list[Any]:
    """Votes against the answer; see `vote_last_response`."""
    return vote_last_response(state, "downvote", model, request, settings=settings)


def flag_last_response(
    state: ChatState, model: str, request: gr.Request, *, settings: PageSettings
) -> list[Any]:
    """Flags the answer; see `vote_last_response`."""
    return vote_last_response(state, "flag", model, request, settings=settings)
