"""The web page: fields, buttons, examples, style, and what each button does.

In: settings and a folder with example images. Out: Gradio fields, connected to the handlers of
`llava.serve.chat` for one model or for two side by side. Each handler receives the language that
its user has chosen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component
from PIL import Image

from llava.images import open_image
from llava.serve.chat import (
    add_text,
    button_states,
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
# The same in every language.
WORKER_COMMAND = "`python -m llava.serve.model_worker --model-path ...`"
CSS = """
.gradio-container { width: 100%; max-width: 1280px !important; margin: 0 auto; }
#title h1 { margin-bottom: 0; }
#title p { margin-top: 0.25rem; }
#head { align-items: end; }
#head #title { flex: 1 1 200px; }
.buttons { gap: 8px; align-items: stretch; }
.buttons button { min-width: 0; flex: 1 1 30%; }
/* a choice ends before the arrow; an ellipsis marks one that is cut */
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
  /* as high as its content */
  #chatbot, #second-chatbot { height: auto !important; max-height: 75vh; }
  #chatbot .placeholder-content, #second-chatbot .placeholder-content { padding: 0 16px 16px; }
  .buttons:not(:has(button:not([disabled]))) { display: none !important; }
  /* image, question, answer, examples, then what is needed less often */
  #left, #right { display: contents; }
  #left > *, #right > * { order: 1; width: 100%; }
  #right > #ask { order: 2; }
  #right > #answers { order: 3; }
  #right > #actions { order: 4; }
  #left > #examples { order: 5; }
  #left > #control { order: 6; }
  #left > #parameters { order: 7; }
  /* no word is cut */
  .buttons button { flex: 1 1 auto !important; min-width: min-content !important; }
  #ask > * { flex: 1 1 100% !important; }
}
"""


Question = str | dict[str, str]

NUM_VOTES = 3
# Screen readers pronounce a page by its language.
SET_PAGE_LANGUAGE = "(code) => { document.documentElement.lang = code; return [code]; }"


def find_examples(root: Path) -> list[tuple[str, Question]]:
    """Returns the example images, each with a question.

    Args:
        root: Folder with `examples/`, which holds images and optionally `examples.json`. That maps
            the name of a file to its question, or to the question by language code.

    Returns:
        Pairs of path and question; [] if there is no such folder.
    """
    folder = root / "examples"
    texts = folder / "examples.json"
    questions = json.loads(texts.read_text(encoding="utf-8")) if texts.is_file() else {}
    return [
        (str(path), questions.get(path.name, {}))
        for path in sorted(folder.glob("*"))
        if path.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp"}
    ]


def question_in(question: Question, text: PageText) -> str:
    """Returns an example's question in the page's language, or a general one if it has none."""
    if isinstance(question, str):
        return question
    return question.get(text.code) or text.say("example_question")


@dataclass
class Side:
    """One model and the conversation with it; the page has a second one for comparison.

    Attributes:
        state: The `ChatState`.
        model: The list of models.
        chatbot: The chat panel.
        votes: Upvote, Downvote, Flag.
        panel: The column with chat panel and votes.
    """

    state: gr.State
    model: gr.Dropdown
    chatbot: gr.Chatbot
    votes: list[gr.Button]
    panel: gr.Column


def terms(text: PageText, keep_days: float) -> str:
    """Returns the terms of use, with the days that images are stored; 0 means for ever."""
    kept = text.say("pictures_days", days=f"{keep_days:g}")
    return f"{text.say('terms')} {kept if keep_days else text.say('pictures_kept')}"


class Page:
    """The fields of a page and their handlers; created within a `gr.Blocks`.

    A handler that takes `first` and `second` serves both sides. It returns both states, both chat
    panels, the text field, the image field, the votes of both sides, Stop, Regenerate and Clear.

    Args:
        settings: Models, languages, limits, and the control that another package adds.
        examples_root: Folder with `examples/`.
        title: Heading of the page.
        embed_mode: Leave out heading and terms.
    """

    def __init__(
        self, settings: PageSettings, examples_root: Path, title: str, embed_mode: bool
    ) -> None:
        self.settings = settings
        # each field that shows words, and the function that returns them in a language
        self._labels: list[tuple[Component, Callable[[PageText], dict[str, Any]]]] = []
        self._control: list[Component] = []
        with gr.Row(elem_id="head"):
            if not embed_mode:
                self._labelled(
                    gr.Markdown,
                    lambda t: {"value": f"# {title}\n{t.say('intro')}"},
                    elem_id="title",
                )
            self.language: gr.Dropdown = self._field(
                gr.Dropdown,
                {"label": "page_language"},
                choices=[(text.name, code) for code, text in settings.languages.items()],
                value=settings.lang,
                visible=len(settings.languages) > 1,
                elem_id="page-language",
                scale=0,
                min_width=180,
            )
        self.notice = self._labelled(
            gr.Markdown,
            lambda t: {"value": f"**{t.say('no_model')}** {WORKER_COMMAND}"},
            visible=False,
            elem_id="notice",
        )
        with gr.Row():
            with gr.Column(scale=3, min_width=280, elem_id="left"):
                self._lay_out_settings()
            with gr.Column(scale=7, min_width=280, elem_id="right"):
                self._lay_out_chats()
        self._add_examples(examples_root)
        if not embed_mode:
            self._labelled(
                gr.Markdown, lambda t: {"value": terms(t, settings.keep_days)}, elem_id="terms"
            )

    def _labelled(
        self, kind: Callable[..., Any], say: Callable[[PageText], dict[str, Any]], **options: Any
    ) -> Any:
        """Creates a field in English and remembers how to translate it.

        Args:
            kind: Class of the field.
            say: Returns the properties that hold words, in a given language.
            options: The other properties.
        """
        made = kind(**say(ENGLISH_TEXT), **options)
        self._labels.append((made, say))
        return made

    def _field(self, kind: Callable[..., Any], words: dict[str, str], **options: Any) -> Any:
        """Creates a field; `words` maps each property that holds words to the name of a text."""

        def say(text: PageText) -> dict[str, str]:
            return {name: text.say(key) for name, key in words.items()}

        return self._labelled(kind, say, **options)

    def _buttons(self, keys: tuple[str, ...], prefix: str = "") -> list[gr.Button]:
        options = {"interactive": False, "min_width": 60, "size": "md"}
        return [
            self._field(gr.Button, {"value": key}, elem_id=prefix + key, **options) for key in keys
        ]

    def _lay_out_settings(self) -> None:
        """Creates the column with models, image, examples and parameters."""
        choices = {"choices": list(self.settings.models), "interactive": True}
        can_compare = len(self.settings.models) > 1
        self._models = [self._field(gr.Dropdown, {"label": "model"}, elem_id="model", **choices)]
        self.compare = self._field(
            gr.Checkbox, {"label": "compare"}, visible=can_compare, elem_id="compare"
        )
        second = {"visible": False, "elem_id": "second-model", **choices}
        self._models.append(self._field(gr.Dropdown, {"label": "second_model"}, **second))
        self._image = self._field(
            gr.Image,
            {"label": "picture", "placeholder": "picture_hint"},
            type="pil",
            height=280,
            sources=["upload", "webcam", "clipboard"],
            buttons=["fullscreen"],
            elem_id="picture",
        )
        self._process_mode = gr.Radio(
            ["Crop", "Resize", "Pad", "Default"],
            value="Default",
            label="Preprocess for non-square image",
            visible=False,
        )
        control = self.settings.control
        with gr.Column(elem_id="control", visible=control is not None):
            if control is not None:
                self._control = list(control.build())
        self._examples_column = gr.Column(elem_id="examples")
        with self._field(gr.Accordion, {"label": "parameters"}, open=False, elem_id="parameters"):
            self._parameters = [
                self._field(
                    gr.Slider, {"label": key}, minimum=0, maximum=most, value=value, step=step
                )
                for key, most, value, step in (
                    ("temperature", 1, 0.2, 0.1),
                    ("top_p", 1, 0.7, 0.1),
                    ("max_new_tokens", 1024, 512, 64),
                )
            ]

    def _lay_out_chats(self) -> None:
        """Creates the column with conversations, question and buttons."""
        with gr.Row(elem_id="answers"):
            self.sides = [
                self._lay_out_side(self._models[0], "chat", ""),
                self._lay_out_side(self._models[1], "second_chat", "second-"),
            ]
        with gr.Row(elem_id="ask", equal_height=True):
            self._text = self._field(
                gr.Textbox,
                {"label": "question", "placeholder": "question_hint"},
                scale=8,
                min_width=160,
                autofocus=True,
                elem_id="question",
            )
            self._send = self._field(
                gr.Button,
                {"value": "send"},
                variant="primary",
                scale=1,
                min_width=80,
                elem_id="send",
            )
        with gr.Row(elem_id="actions", elem_classes="buttons"):
            self._actions = self._buttons(("stop", "regenerate", "clear"))

    def _lay_out_side(self, model: gr.Dropdown, label: str, prefix: str) -> Side:
        with gr.Column(min_width=280, visible=not prefix) as panel:
            chatbot = self._field(
                gr.Chatbot,
                {"placeholder": "empty_chat"},
                label=ENGLISH_TEXT.say(label),  # `name_chats` replaces it
                elem_id=prefix + "chatbot",
                height=600,
                buttons=["copy"],
                allow_file_downloads=False,
            )
            with gr.Row(elem_classes="buttons"):
                votes = self._buttons(("upvote", "downvote", "flag"), prefix)
        return Side(gr.State(), model, chatbot, votes, panel)

    def _add_examples(self, root: Path) -> None:
        """Shows examples with questions in the page's language; a click fills the fields."""
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

        def choose(index: int, lang: str) -> tuple[Image.Image, str]:
            path, question = examples[index]
            return open_image(path), question_in(question, self.settings.languages[lang])

        fields = [self._image, self._text]
        with self._examples_column:
            # gr.Examples would restore the fields' English labels with each example.
            dataset = self._labelled(
                gr.Dataset,
                words,
                components=fields,
                type="index",
                samples_per_page=EXAMPLES_PER_PAGE,
            )
        dataset.click(choose, [dataset, self.language], fields, show_progress="hidden")

    def connect(self, concurrency_count: int) -> None:
        """Connects all fields; called within their `gr.Blocks`.

        Args:
            concurrency_count: How many answers may stream at the same time.
        """
        first, second = self.sides
        states = [first.state, second.state]
        stop_button, again, clear = self._actions
        both_chats = [first.chatbot, second.chatbot]
        both_votes = [*first.votes, *second.votes]
        both_fields = [*states, *both_chats, self._text, self._image, *both_votes]
        everything = [*both_fields, *self._actions]
        hidden: dict[str, Any] = {"show_progress": "hidden"}
        asked = [self.compare, self._text, self._image, self._process_mode, *self._control]
        sent = gr.on(
            [self._text.submit, self._send.click],
            self.send,
            [self.language, *states, *asked],
            everything,
            **hidden,
        )
        opened = again.click(
            self.regenerate_all, [self.language, *states, self._process_mode], everything, **hidden
        )
        handlers = (upvote_last_response, downvote_last_response, flag_last_response)
        for side in self.sides:
            for event in (sent, opened):
                event.success(
                    self.answer,
                    [self.language, side.state, side.model, *self._parameters],
                    [side.state, side.chatbot, *side.votes],
                    concurrency_limit=concurrency_count,
                    **hidden,
                ).then(settle, states, self._actions, **hidden)
            for button, handler in zip(side.votes, handlers, strict=True):
                voted = [self.language, side.state, side.model]
                button.click(self._voter(handler), voted, [self._text, *side.votes], **hidden)
        stop_button.click(stop_all, states, stop_button, concurrency_limit=None)
        gr.on(
            [clear.click, first.chatbot.clear, second.chatbot.clear],
            self.clear_all,
            [self.language, *states],
            everything,
            concurrency_limit=None,
        )
        self._connect_choices(both_chats, everything)

    def _connect_choices(self, chats: list[gr.Chatbot], everything: list[Any]) -> None:
        """Connects the comparison, the names of the conversations and the page's language."""
        first, second = self.sides
        # One event: a question sent once the second side is visible must not be cleared later.
        self.compare.change(
            self.switch_comparing,
            [self.language, self.compare, first.state, second.state],
            [second.model, second.panel, *everything],
            show_progress="hidden",
        )
        named = [self.compare, first.model, second.model, self.language]
        changes = [each.change for each in named]
        gr.on(changes, self.name_chats, named, chats, show_progress="hidden")
        self.language.change(
            self.relabel,
            self.language,
            [*(made for made, _ in self._labels), *self._control],
            js=SET_PAGE_LANGUAGE,
            show_progress="hidden",
        )

    def _in(self, lang: str) -> PageSettings:
        """Returns the settings for a user who reads the given language."""
        return replace(self.settings, lang=lang)

    def send(
        self,
        lang: str,
        first: ChatState | None,
        second: ChatState | None,
        compare: bool,
        text: str,
        image: Image.Image | None,
        image_process_mode: str,
        request: gr.Request,
        *control_values: Any,
    ) -> list[Any]:
        """Adds a question for one model or for two; see `add_text`."""
        asked = (text, image, image_process_mode, request, *control_values)
        update = add_text(first, *asked, settings=self._in(lang))
        return _for_both(update, mirror(update[0], second) if compare else None)

    def regenerate_all(
        self,
        lang: str,
        first: ChatState | None,
        second: ChatState | None,
        image_process_mode: str,
        request: gr.Request,
    ) -> list[Any]:
        """Opens the last turn again on both sides."""
        settings = self._in(lang)
        update = regenerate(first, image_process_mode, request, settings=settings)
        if second is not None and second.last_number > 0:
            regenerate(second, image_process_mode, request, settings=settings)
        return _for_both(update, second)

    def clear_all(
        self, lang: str, first: ChatState | None, second: ChatState | None, request: gr.Request
    ) -> list[Any]:
        """Starts a new conversation on both sides."""
        clear_history(second, request, settings=self._in(lang))
        return _for_both(clear_history(first, request, settings=self._in(lang)), None)

    def switch_comparing(
        self,
        lang: str,
        is_on: bool,
        first: ChatState | None,
        second: ChatState | None,
        request: gr.Request,
    ) -> list[Any]:
        """Shows or hides the second side (model and panel) and starts both sides anew."""
        return [*[gr.update(visible=is_on)] * 2, *self.clear_all(lang, first, second, request)]

    def answer(
        self,
        lang: str,
        state: ChatState | None,
        model: str | None,
        temperature: float,
        top_p: float,
        max_new_tokens: float,
        request: gr.Request,
    ) -> Iterator[list[Any]]:
        """Streams the answer of one side.

        Yields:
            State, chat panel, votes.
        """
        asked = (state, model, temperature, top_p, max_new_tokens, request)
        for update in http_bot(*asked, settings=self._in(lang)):
            yield update[: 2 + NUM_VOTES]

    def _voter(self, handler: Callable[..., list[Any]]) -> Callable[..., list[Any]]:
        def vote(lang: str, state: ChatState, model: str, request: gr.Request) -> list[Any]:
            return handler(state, model, request, settings=self._in(lang))

        return vote

    def name_chats(
        self, compare: bool, first: str | None, second: str | None, lang: str
    ) -> list[Any]:
        """Returns labels for both chat panels: the names of the models if two are compared."""
        text = self._in(lang).text
        names = (first, second) if compare else (None, None)
        return [
            gr.update(label=name or text.say(key))
            for name, key in zip(names, ("chat", "second_chat"), strict=True)
        ]

    def relabel(self, lang: str) -> list[Any]:
        """Returns updates that show the page in another language."""
        text = self._in(lang).text
        updates = [gr.update(**say(text)) for _, say in self._labels]
        control = self.settings.control
        return updates if control is None else [*updates, *control.relabel(text)]


def _for_both(update: list[Any], second: ChatState | None) -> list[Any]:
    state, shown, text, image, *buttons = update
    shown_second = second.messages() if second is not None else []
    votes, shared = buttons[:NUM_VOTES], buttons[NUM_VOTES:]
    return [state, second, shown, shown_second, text, image, *votes, *votes, *shared]


def settle(first: ChatState | None, second: ChatState | None) -> list[Any]:
    """Returns updates for Stop, Regenerate and Clear once one side has its answer."""
    there = [state for state in (first, second) if state is not None]
    busy = any(state.busy for state in there)
    answered = any(state.last_number > 0 for state in there)
    return button_states(stop=busy, regenerate=answered and not busy, clear=answered)[NUM_VOTES:]


def stop_all(first: ChatState | None, second: ChatState | None) -> Any:
    """Ends the running answers; their text so far stays."""
    stop(second)
    return stop(first)
