"""The web page on which users ask about images: its fields, its buttons, its server.

In: the address of a controller. Out: a Gradio page. Its fields are connected to the handlers of
`llava.serve.chat` for one model or for two side by side; each handler receives the language that
its user has chosen. Another package may add fields through `PromptControl`.

    python -m llava.serve.gradio_web_server --controller-url http://localhost:21001
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gradio as gr
import requests
from gradio.components import Component
from PIL import Image
from starlette.middleware import Middleware

from llava.constants import LOGDIR
from llava.errors import ConfigError, flag, make_parser, run_command
from llava.images import open_image
from llava.serve import protocol
from llava.serve.chat import (
    DAY_S,
    ENGLISH_TEXT,
    KEEP_DAYS,
    ChatState,
    PageSettings,
    PageText,
    PromptControl,
    add_text,
    button_states,
    clear_history,
    conv_log_path,
    downvote_last_response,
    find_examples,
    flag_last_response,
    http_bot,
    mirror,
    question_in,
    regenerate,
    start_sweeper,
    stop,
    thumbnail,
    upvote_last_response,
    vote_last_response,
)
from llava.serve.check import check_at_least, check_port_is_free
from llava.serve.page_guard import PageGuard, preferred_language
from llava.serve.web import FORMATS, ImageLimits
from llava.utils import build_logger

__all__ = [
    "PageSettings",
    "PromptControl",
    "add_text",
    "build_demo",
    "clear_history",
    "downvote_last_response",
    "flag_last_response",
    "get_conv_log_filename",
    "get_model_list",
    "http_bot",
    "launch_options",
    "load_demo",
    "load_demo_refresh_model_list",
    "regenerate",
    "upvote_last_response",
    "vote_last_response",
]

log = logging.getLogger(__name__)

TITLE = "LLaVA"
EXAMPLES_ROOT = Path(__file__).parents[2] / "playground" / "data" / "emoji_scenes"
MAX_UPLOAD = "20mb"
CACHE_SWEEP_S = 600
CACHE_AGE_S = 3600
# Gradio's indigo with darker shades for text, so that the contrast is at least 4.5 to 1.
PRIMARY = gr.themes.Color(
    name="primary",
    c50="#eef2ff",
    c100="#e0e7ff",
    c200="#c7d2fe",
    c300="#a5b4fc",
    c400="#818cf8",
    c500="#4f46e5",
    c600="#4338ca",
    c700="#3730a3",
    c800="#312e81",
    c900="#2b2c5e",
    c950="#24254f",
)
READ_MODEL_FROM_URL = """
() => new URLSearchParams(window.location.search).get("model") || ""
"""
EXAMPLES_PER_PAGE = 4
# Fonts of systems, because the page must not load anything from another server. A browser takes
# each letter from the first that has it; those after the first two cover one script each.
FONTS = (
    "system-ui, Noto Sans, Noto Sans Arabic, Geeza Pro, Noto Sans Hebrew, Arial Hebrew, "
    "Noto Sans Devanagari, Nirmala UI, Noto Sans Bengali, Noto Sans Tamil, Noto Sans Telugu, "
    "Noto Sans Sinhala, Noto Sans Thai, Leelawadee UI, Noto Sans Ethiopic, Nyala, "
    "Noto Sans CJK SC, PingFang SC, Microsoft YaHei, sans-serif"
).split(", ")
# The same in every language.
WORKER_COMMAND = "`python -m llava.serve.model_worker --model-path ...`"

VOTES = ("upvote", "downvote", "flag")
CSS = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
ADJUST_FIELDS = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")


def set_page_language(languages: Iterable[PageText]) -> str:
    """Returns the script that tells the browser the language and the direction of the page.

    Screen readers pronounce a page by its language; its layout follows its direction.
    """
    directions = {text.code: text.direction for text in languages}
    return (
        f"(code) => {{ document.documentElement.lang = code; "
        f"document.documentElement.dir = {json.dumps(directions)}[code]; return [code]; }}"
    )


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
            self.language: gr.Dropdown = self._labelled(
                gr.Dropdown,
                lambda t: {"label": t.say("page_language"), "info": t.note},
                choices=[(text.name, code) for code, text in settings.languages.items()],
                value=settings.lang,
                visible=len(settings.languages) > 1,
                elem_id="page-language",
                scale=0,
                min_width=240,
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
        """Creates a field in the first language and remembers how to translate it.

        Args:
            kind: Class of the field.
            say: Returns the properties that hold words, in a given language.
            options: The other properties.
        """
        made = kind(**say(self.settings.text), **options)
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
        self._images = self._field(
            gr.Gallery,
            {"label": "picture"},
            format="png",
            file_types=["image"],
            height=280,
            columns=3,
            object_fit="contain",
            sources=["upload", "webcam", "clipboard"],
            buttons=["fullscreen"],
            interactive=True,
            elem_id="picture",
        )
        # within the empty field, which has no setting for its own words
        self._labelled(
            gr.Markdown, lambda t: {"value": t.say("picture_hint")}, elem_id="picture-hint"
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
                votes = self._buttons(VOTES, prefix)
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

        def choose(index: int, lang: str) -> tuple[list[Image.Image], str]:
            path, question = examples[index]
            return [open_image(path)], question_in(question, self.settings.languages[lang])

        with self._examples_column:
            # gr.Examples would restore the fields' English labels with each example.
            dataset = self._labelled(
                gr.Dataset,
                words,
                components=["image", "textbox"],
                type="index",
                samples_per_page=EXAMPLES_PER_PAGE,
            )
        fields = [self._images, self._text]
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
        both_fields = [*states, *both_chats, self._text, self._images, *both_votes]
        everything = [*both_fields, *self._actions]
        hidden: dict[str, Any] = {"show_progress": "hidden"}
        asked = [self.compare, self._text, self._images, self._process_mode, *self._control]
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
        for side in self.sides:
            for event in (sent, opened):
                event.success(
                    self.answer,
                    [self.language, side.state, side.model, *self._parameters],
                    [side.state, side.chatbot, *side.votes],
                    concurrency_limit=concurrency_count,
                    **hidden,
                ).then(settle, states, self._actions, **hidden)
            for button, kind in zip(side.votes, VOTES, strict=True):
                voted = [self.language, side.state, side.model]
                button.click(self._voter(kind), voted, [self._text, *side.votes], **hidden)
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
            js=set_page_language(self.settings.languages.values()),
            show_progress="hidden",
        )

    def load(self, url_model: str, request: gr.Request) -> list[Any]:
        """Fills the page when a user opens it.

        Returns:
            Updates for the model list, the notice, the second model, the comparison switch and the
            page's language.
        """
        reload = self.settings.model_list_mode == "reload"
        update = load_demo_refresh_model_list if reload else load_demo
        model, notice = update(url_model, settings=self.settings)
        models = model["choices"]
        second = next((name for name in models if name != model["value"]), model["value"])
        accepted = request.headers.get("accept-language", "") if request.headers else ""
        return [
            model,
            notice,
            gr.update(choices=models, value=second),
            gr.update(visible=len(models) > 1),
            preferred_language(accepted, self.settings.languages),
        ]

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
        uploaded: list[tuple[str, str | None]] | None,
        image_process_mode: str,
        request: gr.Request,
        *control_values: Any,
    ) -> list[Any]:
        """Adds a question for one model or for two; see `add_text`."""
        images = [open_image(path) for path, _ in uploaded or ()]
        asked = (text, images, image_process_mode, request, *control_values)
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
            yield update[: 2 + len(VOTES)]

    def _voter(self, kind: str) -> Callable[..., list[Any]]:
        def vote(lang: str, state: ChatState, model: str, request: gr.Request) -> list[Any]:
            return vote_last_response(state, kind, model, request, settings=self._in(lang))

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
    votes, shared = buttons[: len(VOTES)], buttons[len(VOTES) :]
    return [state, second, shown, shown_second, text, image, *votes, *votes, *shared]


def settle(first: ChatState | None, second: ChatState | None) -> list[Any]:
    """Returns updates for Stop, Regenerate and Clear once one side has its answer."""
    there = [state for state in (first, second) if state is not None]
    busy = any(state.busy for state in there)
    answered = any(state.last_number > 0 for state in there)
    return button_states(stop=busy, regenerate=answered and not busy, clear=answered)[len(VOTES) :]


def stop_all(first: ChatState | None, second: ChatState | None) -> Any:
    """Ends the running answers; their text so far stays."""
    stop(second)
    return stop(first)


def get_model_list(settings: PageSettings) -> list[str]:
    """Returns the models that the controller knows; [] if it does not answer."""
    try:
        return protocol.get_model_list(settings.controller_url)
    except (requests.RequestException, ValueError, KeyError) as error:
        log.error("controller %s: %s", settings.controller_url, error)
        return []


def get_conv_log_filename(log_dir: Path = Path(LOGDIR)) -> str:
    """Returns the path of today's conversation log."""
    return str(conv_log_path(log_dir))


def load_demo(url_model: str, *, settings: PageSettings) -> list[Any]:
    """Fills the page with the models known at the start.

    Args:
        url_model: Value of `?model=`; the first model is chosen if it is "" or unknown.
        settings: The page's settings.

    Returns:
        Updates for the model list and the notice.
    """
    models = list(settings.models)
    chosen = url_model if url_model in models else next(iter(models), None)
    return [gr.update(choices=models, value=chosen), gr.update(visible=not models)]


def load_demo_refresh_model_list(url_model: str, *, settings: PageSettings) -> list[Any]:
    """Fills the page with the models that run now; see `load_demo`."""
    return load_demo(url_model, settings=replace(settings, models=get_model_list(settings)))


def build_demo(
    embed_mode: bool,
    cur_dir: str | Path | None = None,
    concurrency_count: int = 10,
    *,
    settings: PageSettings | None = None,
    title: str = TITLE,
) -> gr.Blocks:
    """Builds the page.

    Args:
        embed_mode: Leave out title and terms.
        cur_dir: Folder with `examples/`; by default the built-in images.
        concurrency_count: How many answers may stream at the same time.
        settings: Settings of the page.
        title: Heading of the page.

    Returns:
        The page; start it with `demo.queue(api_open=False).launch(**launch_options())`.
    """
    settings = settings or PageSettings()
    with gr.Blocks(
        title=title,
        analytics_enabled=False,
        fill_width=True,
        delete_cache=(CACHE_SWEEP_S, CACHE_AGE_S),
    ) as demo:
        url_model = gr.Textbox(visible=False)
        page = Page(settings, Path(cur_dir) if cur_dir else EXAMPLES_ROOT, title, embed_mode)
        page.connect(concurrency_count)
        first, second = page.sides
        demo.load(
            page.load,
            url_model,
            [first.model, page.notice, second.model, page.compare, page.language],
            js=READ_MODEL_FROM_URL,
            show_progress="hidden",
        )
    return demo


def launch_options(settings: PageSettings | None = None) -> dict[str, Any]:
    """Returns the arguments of `Blocks.launch` for this page: style and limits."""
    settings = settings or PageSettings()
    theme = gr.themes.Soft(primary_hue=PRIMARY, font=FONTS, font_mono=["ui-monospace", "monospace"])
    return {
        "theme": theme,
        "css": CSS,
        "head": f"<script>({ADJUST_FIELDS})({json.dumps(list(FORMATS.values()))});</script>",
        "max_file_size": MAX_UPLOAD,
        "footer_links": [],
        "show_error": True,
        "ssr_mode": False,
        "quiet": True,
        "app_kwargs": {"middleware": [Middleware(PageGuard, settings=settings)]},
        "allowed_paths": [],
        "blocked_paths": [str(settings.log_dir.resolve())],
        "enable_monitoring": False,
        # Gradio would ask for its own page and give up after three seconds, busy or not
        "_frontend": False,
    }


def serve(
    demo: gr.Blocks, host: str, port: int | None, share: bool, settings: PageSettings
) -> None:
    """Serves a page until SIGINT or SIGTERM.

    Args:
        demo: The page.
        host: Address to listen on.
        port: Port to listen on; None takes the first free one from 7860.
        share: Also serve the page through Gradio's tunnel.
        settings: The page's settings.

    Raises:
        ConfigError: The port is in use or invalid, or the host is unknown.
    """
    if port is not None:
        check_port_is_free(host, port)
    finished = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: finished.set())
    # Gradio's uvicorn would otherwise trust the header from the local machine
    os.environ["FORWARDED_ALLOW_IPS"] = settings.forwarded_allow_ips
    sweeper = start_sweeper(settings.log_dir, settings.keep_days * DAY_S)
    try:
        _, url, _ = demo.queue(api_open=False).launch(
            server_name=host,
            server_port=port,
            share=share,
            prevent_thread_lock=True,
            **launch_options(settings),
        )
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port}: {error}") from error
    log.info("the page is at %s", url)
    finished.wait()
    sweeper.set()
    demo.close(verbose=False)


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of the command line."""
    return make_parser(
        __doc__,
        flag("--host", default="0.0.0.0"),
        flag("--port", type=int),
        flag("--controller-url", default="http://localhost:21001"),
        flag("--concurrency-count", type=int, default=16),
        flag("--model-list-mode", choices=["once", "reload"], default="once"),
        flag("--share", action="store_true"),
        flag("--moderate", action="store_true"),
        flag("--embed", action="store_true"),
        flag("--max-images", type=int, default=4, help="images in a question or an upload"),
        flag("--max-image-mib", type=int, default=10, help="size of an image file"),
        flag(
            "--max-image-pixels",
            type=int,
            default=25_000_000,
            help="width times height of an image",
        ),
        flag(
            "--keep-days",
            type=float,
            default=KEEP_DAYS,
            help="days until stored images are deleted; 0: never",
        ),
        flag(
            "--rate-limit",
            type=int,
            default=120,
            help="requests per minute and client; 0: no limit",
        ),
        flag("--forwarded-allow-ips", default="", help="proxies whose X-Forwarded-For is trusted"),
        prog="python -m llava.serve.gradio_web_server",
    )


def settings_from(args: argparse.Namespace, **own: Any) -> PageSettings:
    """Converts the flags of `build_parser` into settings; `own` are settings without a flag.

    Raises:
        ConfigError: A number is too low.
    """
    check_at_least(
        args, max_images=1, max_image_mib=1, max_image_pixels=1, keep_days=0, rate_limit=0
    )
    return PageSettings(
        args.controller_url,
        args.model_list_mode,
        moderate=args.moderate,
        keep_days=args.keep_days,
        images=ImageLimits(args.max_image_mib * 2**20, args.max_image_pixels, args.max_images),
        per_minute=args.rate_limit,
        forwarded_allow_ips=args.forwarded_allow_ips,
        **own,
    )


def run(args: argparse.Namespace, title: str = TITLE, **own: Any) -> None:
    """Serves the page until it is interrupted.

    Args:
        args: The flags of `build_parser`.
        title: Heading of the page.
        own: Settings without a flag: `control`, `log_dir`, `languages`.
    """
    settings = settings_from(args, **own)
    settings = replace(settings, models=tuple(get_model_list(settings)))
    if not settings.models:
        log.warning("no model runs at %s yet", args.controller_url)
    demo = build_demo(
        args.embed, concurrency_count=args.concurrency_count, settings=settings, title=title
    )
    serve(demo, args.host, args.port, args.share, settings)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    args = build_parser().parse_args(argv)
    build_logger("gradio_web_server", "gradio_web_server.log")
    run(args)


if __name__ == "__main__":
    run_command(main)
