"""What happens when somebody uses the page: send, stream, stop, regenerate, clear, vote.

In: a `ChatState` and the values of the page's fields. Out: values for the page's fields. The layout
is in `llava.serve.page`; what is stored, in `llava.serve.page_state`.
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
from llava.conversation import Conversation
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
# The page's text for what a worker calls the kind of an error.
REASONS = {BUSY: "error_busy", DEADLINE: "error_deadline", STOPPING: "error_stopping"}
# What leaves state, chat panel and buttons as they are.
NOTHING_NEW = [gr.skip()] * (2 + NUM_BUTTONS)


def button_states(
    vote: bool = False, stop: bool = False, regenerate: bool = False, clear: bool = False
) -> list[Any]:
    """Return updates for Upvote, Downvote, Flag, Stop, Regenerate, Clear."""
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
    """Add what the user sends; a picture starts a new conversation.

    Returns:
        State, chat panel, text field, picture field, buttons.

    Raises:
        gr.Error: There is nothing to send, an answer is running, or moderation refuses.
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
    if settings.control is not None and text:
        try:
            text = settings.control.apply(text, *control_values)
        except PageError as error:
            raise notice(settings.say(error.key)) from error
    log.info("add_text. ip: %s. len: %d", client_ip(request), len(text))
    content: str | tuple[str, Image.Image, str] = text
    if image is not None:
        if DEFAULT_IMAGE_TOKEN not in text:
            text = text + "\n" + DEFAULT_IMAGE_TOKEN
        content = (text, image, image_process_mode)
        state = ChatState()
    state.text = settings.text
    _open_turn(state, content)
    if settings.control is not None and settings.control.show is not None:
        show = settings.control.show
        state.shown_by[_last_index(state)] = lambda reply: show(reply, state.text, *control_values)
    return [state, state.messages(), "", None, *button_states(stop=True, clear=True)]


def _open_turn(state: ChatState, content: Any) -> None:
    conversation = state.conversation
    conversation.append_message(conversation.roles[0], content)
    conversation.append_message(conversation.roles[1], None)


def _last_index(state: ChatState) -> int:
    return len(state.conversation.messages) - state.conversation.offset - 1


def mirror(source: ChatState, target: ChatState | None) -> ChatState:
    """Put the open turn of one conversation into another, for a second model.

    Args:
        source: What `add_text` returned.
        target: The second model's conversation so far.

    Returns:
        The second conversation; a new one if the first is.
    """
    last = _last_index(source)
    if target is None or last == 1:
        target = ChatState()
    target.text = source.text
    _open_turn(target, source.conversation.messages[-2][1])
    if last in source.shown_by:
        target.shown_by[_last_index(target)] = source.shown_by[last]
    return target


def notice(message: str) -> gr.Error:
    """Return an error that Gradio shows for a few seconds."""
    return gr.Error(message, duration=5, title="", print_exception=False)


def client_ip(request: gr.Request | None) -> str:
    """Return the user's address, "" if it is not known."""
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
    """Ask a worker and show the answer as it comes.

    Yields:
        State, chat panel, buttons.
    """
    if state is None or not _waits_for_answer(state.conversation):
        yield NOTHING_NEW
        return
    state.busy = True
    state.stop.clear()
    started = time.time()
    failure: int | None = None
    sampling = {
        "temperature": float(temperature),
        "top_p": float(top_p),
        "max_new_tokens": min(int(max_new_tokens), MAX_NEW_TOKENS),
    }
    try:
        try:
            for code in _answer(state, model or "", sampling, settings):
                failure = code
                if not state.abandoned:
                    yield [state, state.messages(), *[gr.skip()] * NUM_BUTTONS]
        except Exception as error:
            # Nothing may leave the user with a turn that is open for ever.
            log.exception("the page failed to ask the model")
            known = isinstance(error, UserError)
            reason = str(error) if known else settings.say("error_page")
            failure = _fail(state, GENERATION_FAILED, reason)
        _write_chat(state.conversation, model or "", started, request, settings)
        if state.abandoned:
            yield NOTHING_NEW
        else:
            buttons = button_states(vote=failure is None, regenerate=True, clear=True)
            yield [state, state.messages(), *buttons]
    finally:
        state.busy = False


def _waits_for_answer(conversation: Conversation) -> bool:
    messages = conversation.messages
    return len(messages) > conversation.offset and messages[-1][1] is None


def _answer(
    state: ChatState,
    model: str,
    sampling: dict[str, Any],
    settings: PageSettings,
) -> Iterator[int | None]:
    """Fill the open turn piece by piece; yield None for progress, a code for an error."""
    address = ""
    try:
        address = protocol.get_worker_address(settings.controller_url, model) if model else ""
    except (requests.RequestException, ValueError, KeyError) as error:
        log.error("controller %s: %s", settings.controller_url, error)
    if not address:
        say = settings.say
        missing = say("error_no_worker", model=repr(model)) if model else say("error_no_model")
        yield _fail(state, NO_WORKER, missing)
        return
    _choose_template(state, address, model)
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
    yield None
    try:
        for chunk in protocol.stream_generation(address, body):
            if chunk["error_code"] != OK:
                yield _fail_as_told(state, chunk, settings)
                return
            text = chunk["text"][len(prompt) :].strip()
            conversation.messages[-1][1] = text + CURSOR
            yield None
            if state.stop.is_set():
                break
    except (requests.RequestException, ValueError, KeyError) as error:
        log.error("worker %s: %s", address, error)
        yield _fail(state, WORKER_UNREACHABLE, settings.say("error_worker_gone"))
        return
    finally:
        # Also when the user has left: the log must not hold a cursor.
        if str(conversation.messages[-1][1]).endswith(CURSOR):
            conversation.messages[-1][1] = text


def _fail(state: ChatState, code: int, reason: str, text: str = "") -> int:
    cause = f"\n\n{reason}" if reason else ""
    text = text or state.text.say("error_server")
    state.conversation.messages[-1][1] = f"{text}{cause} (error_code: {code})"
    return code


def _fail_as_told(state: ChatState, chunk: dict[str, Any], settings: PageSettings) -> int:
    """Show a worker's error; what the page knows, in the user's language."""
    text, reason = str(chunk["text"]), str(chunk.get("reason", ""))
    if text == TOO_LONG_MESSAGE:
        text = settings.say("error_too_long")
    elif text == server_error_msg:
        text = ""
    if chunk.get("kind") in REASONS:
        reason = settings.say(REASONS[chunk["kind"]])
    return _fail(state, int(chunk["error_code"]), reason, text)


def _choose_template(state: ChatState, address: str, model: str) -> None:
    """In the first round, move the question into the template of the chosen model."""
    conversation = state.conversation
    if len(conversation.messages) != conversation.offset + 2:
        return
    question = conversation.messages[-2][1]
    conversation = template_of_worker(address, model)
    conversation.append_message(conversation.roles[0], question)
    conversation.append_message(conversation.roles[1], None)
    state.conversation = conversation


def _write_chat(
    conversation: Conversation,
    model: str,
    started: float,
    request: gr.Request,
    settings: PageSettings,
) -> None:
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
        # The answer is there; a full disk must not take it from the user.
        log.error("the conversation could not be logged: %s", error)


def stop(state: ChatState | None) -> Any:
    """End the running answer; it keeps what has come so far."""
    if state is not None:
        state.stop.set()
    return gr.update(interactive=False)


def regenerate(
    state: ChatState | None, image_process_mode: str, request: gr.Request, *, settings: PageSettings
) -> list[Any]:
    """Throw the last answer away and open the turn again.

    Returns:
        State, chat panel, text field, picture field, buttons.

    Raises:
        gr.Error: There is no answer yet, or one is running.
    """
    if state is None or len(state.conversation.messages) < state.conversation.offset + 2:
        raise notice(settings.say("no_answer_yet"))
    if state.busy:
        raise notice(settings.say("still_answering"))
    log.info("regenerate. ip: %s", client_ip(request))
    conversation = state.conversation
    conversation.messages[-1][1] = None
    question = conversation.messages[-2][1]
    if isinstance(question, tuple):
        conversation.messages[-2][1] = (*question[:2], image_process_mode)
    return [state, state.messages(), "", None, *button_states(stop=True, clear=True)]


def clear_history(
    state: ChatState | None, request: gr.Request, *, settings: PageSettings
) -> list[Any]:
    """Begin anew; an answer that runs is stopped.

    Returns:
        State, chat panel, text field, picture field, buttons.
    """
    log.info("clear_history. ip: %s", client_ip(request))
    if state is not None:
        state.abandoned = True
        state.stop.set()
    return [ChatState(), [], "", None, *button_states()]


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
