"""The page: fields, buttons, examples and style, and which button does what.

In: settings and a folder with example pictures. Out: Gradio fields (`lay_out`), connected with the
handlers of `llava.serve.chat` for one model or for two side by side (`connect`). Each handler gets
the language that its user reads.
"""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component
from PIL import Image

from llava.images import open_image
from llava.serve.chat import (
    add_text,
    clear_history,
    downvote_last_response,
    flag_last_response,
    http_bot,
    mirror,
    regenerate,
    stop,
    upvote_last_response,
)
from llava.serve.page_state import ENGLISH_TEXT, ChatState, PageSettings, PageText, thumbnail

EXAMPLES_PER_PAGE = 4
# A command is the same in every language.
WORKER_COMMAND = "`python -m llava.serve.model_worker --model-path ...`"
CSS = """
.gradio-container { width: 100%; max-width: 1280px !important; margin: 0 auto; }
#title h1 { margin-bottom: 0; }
#title p { margin-top: 0.25rem; }
#head { align-items: end; }
#head #title { flex: 1 1 200px; }
.buttons { gap: 8px; align-items: stretch; }
.buttons button { min-width: 0; flex: 1 1 30%; }
/* a choice ends before the arrow, and a cut one says so */
.gradio-container .wrap-inner { padding-right: 36px !important; }
.gradio-container .wrap-inner input { text-overflow: ellipsis; }
/* room for the conversation's name above the first message */
#chatbot .bubble-wrap, #second-chatbot .bubble-wrap { padding-top: 40px; }
#chatbot label.float, #second-chatbot label.float { max-width: calc(100% - 44px); }
/* Gradio writes "Pages:" in front of the numbers, in English alone */
#examples .paginate { font-size: 0; }
#examples .paginate button { font-size: var(--text-sm); }
#terms { font-size: 0.85rem; opacity: 0.8; }
/* no sharing, and no frames around buttons that are not there */
button[title="Share"] { display: none !important; }
.icon-button-wrapper:not(:has(button:not([title="Share"]))) { display: none !important; }
footer { display: none !important; }
@media (min-width: 641px) {
  .buttons { flex-wrap: nowrap; }
}
@media (max-width: 640px) {
  .gradio-container > main, .gradio-container main { padding: 12px !important; }
  #picture { height: 220px !important; }
  /* as high as what is said */
  #chatbot, #second-chatbot { height: auto !important; max-height: 75vh; }
  #chatbot .placeholder-content, #second-chatbot .placeholder-content { padding: 0 16px 16px; }
  .buttons:not(:has(button:not([disabled]))) { display: none !important; }
  /* picture, question, answer, examples, then what is needed less often */
  #left, #right { display: contents; }
  #left > *, #right > * { order: 1; width: 100%; }
  #right > #ask { order: 2; }
  #right > #answers { order: 3; }
  #right > #actions { order: 4; }
  #left > #examples { order: 5; }
  #left > #control { order: 6; }
  #left > #parameters { order: 7; }
  /* no word and no hint is cut */
  .buttons button { flex: 1 1 auto !important; min-width: min-content !important; }
  #ask > * { flex: 1 1 100% !important; }
}
"""


Question = str | dict[str, str]

NUM_VOTES = 3
# Screen readers pronounce a page by its language.
SET_PAGE_LANGUAGE = "(code) => { document.documentElement.lang = code; return [code]; }"


def find_examples(root: Path) -> list[tuple[str, Question]]:
    """Return example pictures with a question each.

    Args:
        root: Folder with `examples/`: pictures, and optionally `examples.json` that maps a file's
            name to its question, or to the question's wording by language code.

    Returns:
        Pairs of path and question; [] when there is no such folder.
    """
    folder = root / "examples"
    questions: dict[str, Question] = {}
    if (folder / "examples.json").is_file():
        questions = json.loads((folder / "examples.json").read_text(encoding="utf-8"))
    pictures = [
        path
        for path in sorted(folder.glob("*"))
        if path.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp"}
    ]
    return [(str(path), questions.get(path.name, {})) for path in pictures]


def question_in(question: Question, text: PageText) -> str:
    """Return an example's question in the page's language; where it has none, a general one."""
    if isinstance(question, str):
        return question
    return question.get(text.code) or text.say("example_question")


@dataclass
class Side:
    """A model and the conversation with it; the second one is there for comparing.

    Attributes:
        state: The `ChatState`.
        model: The list of models.
        chatbot: The conversation.
        votes: Upvote, Downvote, Flag.
        panel: What holds conversation and votes.
    """

    state: gr.State
    model: gr.Dropdown
    chatbot: gr.Chatbot
    votes: list[gr.Button]
    panel: gr.Column


@dataclass
class Fields:
    """The page's fields that events read or fill.

    `labels` has, for each field with words in it, what makes its update in another language.
    """

    language: gr.Dropdown
    sides: tuple[Side, Side]
    compare: gr.Checkbox
    image: gr.Image
    process_mode: gr.Radio
    temperature: gr.Slider
    top_p: gr.Slider
    max_new_tokens: gr.Slider
    control: list[Component]
    text: gr.Textbox
    send: gr.Button
    stop: gr.Button
    again: gr.Button
    clear: gr.Button
    notice: gr.Markdown
    labels: list[tuple[Component, Callable[[PageText], Any]]]


@dataclass
class _Labels:
    """Makes fields with English words, and remembers how to say them in another language."""

    known: list[tuple[Component, Callable[[PageText], Any]]] = field(default_factory=list)

    def make(self, kind: Callable[..., Any], words: dict[str, str], **options: Any) -> Any:
        """Make a field.

        Args:
            kind: Its class.
            words: For each of its properties that holds words, the name of the text.
            options: Its other properties.
        """

        def say(text: PageText) -> dict[str, str]:
            return {name: text.say(key) for name, key in words.items()}

        made = kind(**say(ENGLISH_TEXT), **options)
        self.known.append((made, lambda text: gr.update(**say(text))))
        return made

    def markdown(self, write: Callable[[PageText], str], **options: Any) -> gr.Markdown:
        """Make a piece of Markdown."""
        made = gr.Markdown(write(ENGLISH_TEXT), **options)
        self.known.append((made, lambda text: gr.update(value=write(text))))
        return made


def lay_out(
    settings: PageSettings, examples_root: Path, title: str = "", embed_mode: bool = False
) -> Fields:
    """Make the fields, within an open `gr.Blocks`.

    Args:
        settings: Models, languages, and a choice that another package adds.
        examples_root: Folder with `examples/`.
        title: Heading of the page.
        embed_mode: Leave out heading and terms.

    Returns:
        The fields.
    """
    labels = _Labels()
    language = _lay_out_head(settings, labels, "" if embed_mode else title)
    notice = labels.markdown(
        lambda t: f"**{t.say('no_model')}** {WORKER_COMMAND}", visible=False, elem_id="notice"
    )
    with gr.Row():
        with gr.Column(scale=3, min_width=280, elem_id="left"):
            models, compare = _lay_out_models(settings, labels)
            image, process_mode = _lay_out_picture(labels)
            with gr.Column(elem_id="control", visible=settings.control is not None):
                control = list(settings.control.build()) if settings.control else []
            examples_slot = gr.Column(elem_id="examples")
            with labels.make(
                gr.Accordion, {"label": "parameters"}, open=False, elem_id="parameters"
            ):
                sliders = _lay_out_parameters(labels)
        with gr.Column(scale=7, min_width=280, elem_id="right"):
            with gr.Row(elem_id="answers"):
                sides = (
                    _lay_out_side(labels, models[0], "chat", "chatbot"),
                    _lay_out_side(labels, models[1], "second_chat", "second-chatbot"),
                )
            text, send = _lay_out_question(labels)
            with gr.Row(elem_id="actions", elem_classes="buttons"):
                stop, again, clear = _lay_out_buttons(labels, ("stop", "regenerate", "clear"))
    _add_examples(labels, settings, examples_root, examples_slot, (language, image, text))
    if not embed_mode:
        labels.markdown(lambda t: terms(t, settings.keep_days), elem_id="terms")
    return Fields(
        language,
        sides,
        compare,
        image,
        process_mode,
        *sliders,
        control,
        text,
        send,
        stop,
        again,
        clear,
        notice,
        labels.known,
    )


def _lay_out_head(settings: PageSettings, labels: _Labels, title: str) -> gr.Dropdown:
    with gr.Row(elem_id="head"):
        if title:
            labels.markdown(lambda t: f"# {title}\n{t.say('intro')}", elem_id="title")
        language: gr.Dropdown = labels.make(
            gr.Dropdown,
            {"label": "page_language"},
            choices=[(text.name, code) for code, text in settings.languages.items()],
            value=settings.lang,
            visible=len(settings.languages) > 1,
            elem_id="page-language",
            scale=0,
            min_width=180,
        )
    return language


def _lay_out_picture(labels: _Labels) -> tuple[gr.Image, gr.Radio]:
    image = labels.make(
        gr.Image,
        {"label": "picture", "placeholder": "picture_hint"},
        type="pil",
        height=280,
        sources=["upload", "webcam", "clipboard"],
        buttons=["fullscreen"],
        elem_id="picture",
    )
    process_mode = gr.Radio(
        ["Crop", "Resize", "Pad", "Default"],
        value="Default",
        label="Preprocess for non-square image",
        visible=False,
    )
    return image, process_mode


def _lay_out_question(labels: _Labels) -> tuple[gr.Textbox, gr.Button]:
    with gr.Row(elem_id="ask", equal_height=True):
        text = labels.make(
            gr.Textbox,
            {"label": "question", "placeholder": "question_hint"},
            scale=8,
            min_width=160,
            autofocus=True,
            elem_id="question",
        )
        send = labels.make(
            gr.Button,
            {"value": "send"},
            variant="primary",
            scale=1,
            min_width=80,
            elem_id="send",
        )
    return text, send


def terms(text: PageText, keep_days: float) -> str:
    """Return what a user should know, and how long pictures stay; 0 days is for ever."""
    if not keep_days:
        return f"{text.say('terms')} {text.say('pictures_kept')}"
    return f"{text.say('terms')} {text.say('pictures_days', days=f'{keep_days:g}')}"


def _lay_out_models(
    settings: PageSettings, labels: _Labels
) -> tuple[list[gr.Dropdown], gr.Checkbox]:
    choices = list(settings.models)
    first = labels.make(
        gr.Dropdown, {"label": "model"}, choices=choices, interactive=True, elem_id="model"
    )
    compare = labels.make(
        gr.Checkbox, {"label": "compare"}, visible=len(choices) > 1, elem_id="compare"
    )
    second = labels.make(
        gr.Dropdown,
        {"label": "second_model"},
        choices=choices,
        interactive=True,
        visible=False,
        elem_id="second-model",
    )
    return [first, second], compare


def _lay_out_parameters(labels: _Labels) -> tuple[gr.Slider, gr.Slider, gr.Slider]:
    bounds = {
        "temperature": {"minimum": 0, "maximum": 1, "value": 0.2, "step": 0.1},
        "top_p": {"minimum": 0, "maximum": 1, "value": 0.7, "step": 0.1},
        "max_new_tokens": {"minimum": 0, "maximum": 1024, "value": 512, "step": 64},
    }
    temperature, top_p, max_new_tokens = (
        labels.make(gr.Slider, {"label": key}, **options) for key, options in bounds.items()
    )
    return temperature, top_p, max_new_tokens


def _lay_out_side(labels: _Labels, model: gr.Dropdown, label: str, name: str) -> Side:
    is_first = name == "chatbot"
    with gr.Column(min_width=280, visible=is_first) as panel:
        chatbot = labels.make(
            gr.Chatbot,
            {"placeholder": "empty_chat"},
            label=ENGLISH_TEXT.say(label),  # `name_chats` says it anew
            elem_id=name,
            height=600,
            buttons=["copy"],
            allow_file_downloads=False,
        )
        with gr.Row(elem_classes="buttons"):
            votes = _lay_out_buttons(
                labels, ("upvote", "downvote", "flag"), "" if is_first else "second-"
            )
    return Side(gr.State(), model, chatbot, votes, panel)


def _lay_out_buttons(labels: _Labels, keys: tuple[str, ...], prefix: str = "") -> list[gr.Button]:
    return [
        labels.make(
            gr.Button,
            {"value": key},
            interactive=False,
            min_width=60,
            size="md",
            elem_id=prefix + key,
        )
        for key in keys
    ]


def _add_examples(
    labels: _Labels,
    settings: PageSettings,
    root: Path,
    slot: gr.Column,
    fields: tuple[gr.Dropdown, gr.Image, gr.Textbox],
) -> None:
    """Show examples whose questions are in the page's language, and take the one clicked on.

    Args:
        labels: Gets the words.
        settings: The page's languages.
        root: Folder with `examples/`.
        slot: Where the examples go.
        fields: The page's language, its picture and its question.
    """
    language, image, text = fields
    examples = find_examples(root)
    if not examples:
        return
    thumbnails = [thumbnail(open_image(path)) for path, _ in examples]

    def words(said: PageText) -> dict[str, Any]:
        questions = [question_in(question, said) for _, question in examples]
        return {
            "label": said.say("examples"),
            "headers": [said.say("picture"), said.say("question")],
            "samples": [list(sample) for sample in zip(thumbnails, questions, strict=True)],
        }

    def choose(index: int, code: str) -> tuple[Image.Image, str]:
        path, question = examples[index]
        return open_image(path), question_in(question, settings.languages[code])

    with slot:
        # Not gr.Examples: it puts the fields' English labels back with each example.
        dataset = gr.Dataset(
            components=[image, text],
            type="index",
            samples_per_page=EXAMPLES_PER_PAGE,
            **words(ENGLISH_TEXT),
        )
    dataset.click(choose, [dataset, language], [image, text], show_progress="hidden")
    labels.known.append((dataset, lambda said: gr.update(**words(said))))


def connect(fields: Fields, settings: PageSettings, concurrency_count: int) -> None:
    """Connect all fields, within the `gr.Blocks` that they are in.

    Args:
        fields: The fields.
        settings: The page's settings; the language is each user's own.
        concurrency_count: Answers that stream at the same time.
    """
    states = [side.state for side in fields.sides]
    shared = [fields.stop, fields.again, fields.clear]
    everything: list[Component] = [
        *states,
        *(side.chatbot for side in fields.sides),
        fields.text,
        fields.image,
        *(vote for side in fields.sides for vote in side.votes),
        *shared,
    ]
    sent = gr.on(
        [fields.text.submit, fields.send.click],
        bind(send, settings),
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
        bind(regenerate_all, settings),
        [fields.language, *states, fields.process_mode],
        everything,
        show_progress="hidden",
    )
    for side in fields.sides:
        for opened in (sent, again):
            opened.success(
                bind(answer, settings),
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
    handlers = (upvote_last_response, downvote_last_response, flag_last_response)
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
