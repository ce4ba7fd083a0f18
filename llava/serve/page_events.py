"""What happens on the page: which button does what, for one model or for two side by side.

In: the fields of `llava.serve.page`. Out: nothing; they are connected with the handlers of
`llava.serve.chat` and `llava.serve.votes`, each of which gets the language that its user reads.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import gradio as gr
from gradio.components import Component
from PIL import Image

from llava.serve import votes
from llava.serve.chat import add_text, clear_history, http_bot, mirror, regenerate, stop
from llava.serve.chat_state import ChatState, PageSettings
from llava.serve.page import Fields, Side

NUM_VOTES = 3
# Screen readers pronounce a page by its language.
SET_PAGE_LANGUAGE = "(code) => { document.documentElement.lang = code; return [code]; }"


def connect(fields: Fields, settings: PageSettings, concurrency_count: int) -> None:
    """Connect all fields, within the `gr.Blocks` that they are in.

    Args:
        fields: The fields.
        settings: The page's settings; the language is each user's own.
        concurrency_count: Answers that stream at the same time.
    """
    first, second = fields.sides
    states = [first.state, second.state]
    shared = [fields.stop, fields.again, fields.clear]
    everything: list[Component] = [
        *states,
        first.chatbot,
        second.chatbot,
        fields.text,
        fields.image,
        *first.votes,
        *second.votes,
        *shared,
    ]

    def bound(handler: Callable[..., Any]) -> Callable[..., Any]:
        return bind(handler, settings)

    sent = gr.on(
        [fields.text.submit, fields.send.click],
        bound(send),
        [
            fields.language,
            *states,
            fields.compare,
            fields.text,
            fields.image,
            fields.process_mode,
            *fields.control,
        ],
        everything,
        show_progress="hidden",
    )
    again = fields.again.click(
        bound(regenerate_all),
        [fields.language, *states, fields.process_mode],
        everything,
        show_progress="hidden",
    )
    for side in fields.sides:
        for opened in (sent, again):
            opened.success(
                bound(answer),
                [
                    fields.language,
                    side.state,
                    side.model,
                    fields.temperature,
                    fields.top_p,
                    fields.max_new_tokens,
                ],
                [side.state, side.chatbot, *side.votes],
                concurrency_limit=concurrency_count,
                show_progress="hidden",
            ).then(settle, states, shared, show_progress="hidden")
        _connect_votes(side, fields, settings)
    _connect_buttons(fields, states, everything, settings)


def _connect_buttons(
    fields: Fields, states: list[gr.State], everything: list[Component], settings: PageSettings
) -> None:
    """Connect Stop, Clear, comparing, the conversations' names and the page's language."""
    first, second = fields.sides
    clear = bind(clear_all, settings)
    fields.stop.click(stop_all, states, fields.stop, concurrency_limit=None)
    gr.on(
        [fields.clear.click, first.chatbot.clear, second.chatbot.clear],
        clear,
        [fields.language, *states],
        everything,
        concurrency_limit=None,
    )
    # in one event: what is sent once the second side is there must not be cleared after it
    fields.compare.change(
        bind(switch_comparing, settings),
        [fields.language, fields.compare, *states],
        [second.model, second.panel, *everything],
        show_progress="hidden",
    )
    gr.on(
        [
            fields.compare.change,
            first.model.change,
            second.model.change,
            fields.language.change,
        ],
        bind(name_chats, settings),
        [fields.language, fields.compare, first.model, second.model],
        [first.chatbot, second.chatbot],
        show_progress="hidden",
    )
    fields.language.change(
        bind(relabel(fields), settings),
        fields.language,
        [*(field for field, _ in fields.labels), *fields.control],
        js=SET_PAGE_LANGUAGE,
        show_progress="hidden",
    )


def _connect_votes(side: Side, fields: Fields, settings: PageSettings) -> None:
    handlers = (
        votes.upvote_last_response,
        votes.downvote_last_response,
        votes.flag_last_response,
    )
    for button, handler in zip(side.votes, handlers, strict=True):
        button.click(
            bind(handler, settings),
            [fields.language, side.state, side.model],
            [fields.text, *side.votes],
            show_progress="hidden",
        )


def bind(handler: Callable[..., Any], settings: PageSettings) -> Callable[..., Any]:
    """Give a handler its settings, in the language that comes as its first input.

    Gradio reads the signature, to see where the handler expects the request.
    """
    signature = inspect.signature(handler)
    language = inspect.Parameter("page_language", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    others = [p for name, p in signature.parameters.items() if name != "settings"]
    if inspect.isgeneratorfunction(handler):

        @functools.wraps(handler)
        def call(page_language: str, *args: Any) -> Iterator[Any]:
            yield from handler(*args, settings=replace(settings, lang=page_language))

    else:

        @functools.wraps(handler)
        def call(page_language: str, *args: Any) -> Any:
            return handler(*args, settings=replace(settings, lang=page_language))

    call.__signature__ = signature.replace(parameters=[language, *others])  # type: ignore[attr-defined]
    return call


def send(
    first: ChatState | None,
    second: ChatState | None,
    compare: bool,
    text: str,
    image: Image.Image | None,
    image_process_mode: str,
    request: gr.Request,
    *control_values: Any,
    settings: PageSettings,
) -> list[Any]:
    """Add what the user sends, for one model or for two; as `add_text` otherwise.

    Returns:
        Both states, both chat panels, text field, picture field, both sides' votes, the buttons.
    """
    update = add_text(
        first, text, image, image_process_mode, request, *control_values, settings=settings
    )
    return _for_both(update, mirror(update[0], second) if compare else None)


def regenerate_all(
    first: ChatState | None,
    second: ChatState | None,
    image_process_mode: str,
    request: gr.Request,
    *,
    settings: PageSettings,
) -> list[Any]:
    """Open the last turn again, on both sides; returns what `send` does."""
    update = regenerate(first, image_process_mode, request, settings=settings)
    if second is not None and _has_answer(second):
        regenerate(second, image_process_mode, request, settings=settings)
    return _for_both(update, second)


def clear_all(
    first: ChatState | None,
    second: ChatState | None,
    request: gr.Request,
    *,
    settings: PageSettings,
) -> list[Any]:
    """Begin anew on both sides; returns what `send` does."""
    clear_history(second, request, settings=settings)
    return _for_both(clear_history(first, request, settings=settings), None)


def switch_comparing(
    is_on: bool,
    first: ChatState | None,
    second: ChatState | None,
    request: gr.Request,
    *,
    settings: PageSettings,
) -> list[Any]:
    """Show or hide the second side, and begin anew on both.

    Returns:
        The second side's model and panel, then what `send` returns.
    """
    shown = gr.update(visible=is_on)
    return [shown, shown, *clear_all(first, second, request, settings=settings)]


def name_chats(
    compare: bool, first: str | None, second: str | None, *, settings: PageSettings
) -> list[Any]:
    """Return labels for both conversations: the models' names where two are compared."""
    text = settings.text
    names = (first, second) if compare else (None, None)
    return [
        gr.update(label=name or text.say(key))
        for name, key in zip(names, ("chat", "second_chat"), strict=True)
    ]


def _for_both(update: list[Any], second: ChatState | None) -> list[Any]:
    state, shown, text, image, *buttons = update
    shown_second = second.messages() if second is not None else []
    first_votes, shared = buttons[:NUM_VOTES], buttons[NUM_VOTES:]
    return [state, second, shown, shown_second, text, image, *first_votes, *first_votes, *shared]


def answer(
    state: ChatState | None,
    model: str | None,
    temperature: float,
    top_p: float,
    max_new_tokens: float,
    request: gr.Request,
    *,
    settings: PageSettings,
) -> Iterator[list[Any]]:
    """Stream one side's answer.

    Yields:
        State, chat panel, votes.
    """
    updates = http_bot(state, model, temperature, top_p, max_new_tokens, request, settings=settings)
    for update in updates:
        yield update[: 2 + NUM_VOTES]


def settle(first: ChatState | None, second: ChatState | None) -> list[Any]:
    """Return updates for Stop, Regenerate and Clear when one side has its answer."""
    there = [state for state in (first, second) if state is not None]
    busy = any(state.busy for state in there)
    answered = any(_has_answer(state) for state in there)
    usable = (busy, answered and not busy, answered)
    return [gr.update(interactive=state) for state in usable]


def _has_answer(state: ChatState) -> bool:
    return len(state.conversation.messages) >= state.conversation.offset + 2


def stop_all(first: ChatState | None, second: ChatState | None) -> Any:
    """End the answers that run; they keep what has come so far."""
    stop(second)
    return stop(first)


def relabel(fields: Fields) -> Callable[..., list[Any]]:
    """Return a handler that says the page's words in the user's language."""

    def say(*, settings: PageSettings) -> list[Any]:
        updates = [update(settings.text) for _, update in fields.labels]
        control = settings.control
        if control is not None and control.relabel is not None:
            return [*updates, *control.relabel(settings.text)]
        return [*updates, *[gr.skip()] * len(fields.control)]

    return say
