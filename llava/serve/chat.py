"""Holds the conversation of each user of the page, and does what the user asks for.

In: a `ChatState` and the values of the page's fields. Out: values for the page's fields: of send,
stream, stop, regenerate, clear and vote. The layout is in `llava.serve.gradio_web_server`.

`PageText` has the texts of the page in one language: `page_text.json` holds the English ones, and
another package may add languages. Conversations and votes go to `<log_dir>/YYYY-MM-DD-conv.json`
(JSON Lines), images to `<log_dir>/serve_images/YYYY-MM-DD/<md5>.jpg`, as on LLaVA's page. Images
are deleted after a number of days; conversations and votes stay and name images by their hash.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import itertools
import json
import logging
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
import requests
from PIL import Image

import llava.conversation as conversation_lib
from llava.constants import DEFAULT_IMAGE_TOKEN, LOGDIR
from llava.conversation import Conversation, images_of
from llava.errors import UserError
from llava.images import to_rgb
from llava.serve import protocol
from llava.serve.protocol import (
    BUSY,
    DEADLINE,
    GENERATION_FAILED,
    NO_WORKER,
    OK,
    STOPPING,
    TOO_LONG_MESSAGE,
    WORKER_UNREACHABLE,
    template_of_worker,
)
from llava.serve.web import ImageLimits
from llava.utils import server_error_msg, violates_moderation

log = logging.getLogger(__name__)

ENGLISH = "en"
_ENGLISH_TEXTS: Mapping[str, str] = json.loads(
    (Path(__file__).parent / "page_text.json").read_text(encoding="utf-8")
)

SWEEP_INTERVAL_S = 600.0
DAY_S = 86_400.0
KEEP_DAYS = 30.0

_write_lock = threading.Lock()

THUMBNAIL_SIDE_PX = 512

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


class PageError(UserError):
    """Raised for input that the user must change, with the name of the text that explains it."""


@dataclass(frozen=True)
class PageText:
    """The texts of the page in one language.

    Attributes:
        code: Language code, as browsers write it.
        name: Name of the language in that language.
        texts: Texts by name; missing ones are shown in English.
        direction: Direction of the language, as HTML's `dir` names it.
        note: What to know about the texts; "" for nothing.
    """

    code: str = ENGLISH
    name: str = "English"
    texts: Mapping[str, str] = field(default_factory=lambda: _ENGLISH_TEXTS)
    direction: str = "ltr"
    note: str = ""

    def say(self, key: str, **values: object) -> str:
        """Returns a text with `values` filled in."""
        text = self.texts.get(key) or _ENGLISH_TEXTS[key]
        return text.format(**values) if values else text


ENGLISH_TEXT = PageText()
Question = str | dict[str, str]


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


def sweep_images(log_dir: Path, keep_s: float, now: float | None = None) -> int:
    """Deletes stored images that are too old, and folders that are then empty.

    Args:
        log_dir: Folder of the logs.
        keep_s: Age in seconds from which images are deleted.
        now: Seconds since the epoch; by default the current time.

    Returns:
        The number of deleted images.
    """
    now = time.time() if now is None else now
    num_deleted = 0
    for folder in sorted((log_dir / "serve_images").glob("*")):
        if folder.is_symlink() or not folder.is_dir():
            continue
        for path in folder.iterdir():
            try:
                # lstat: the age of a link, not of its target
                if path.lstat().st_mtime < now - keep_s:
                    path.unlink()
                    num_deleted += 1
            except OSError as error:
                log.error("an image could not be deleted: %s", error)
        with contextlib.suppress(OSError):  # it still holds files
            folder.rmdir()
    if num_deleted:
        log.info("deleted %d images older than %.1f days", num_deleted, keep_s / DAY_S)
    return num_deleted


def start_sweeper(log_dir: Path, keep_s: float) -> threading.Event:
    """Deletes old images now and every ten minutes, in a thread.

    Args:
        log_dir: Folder of the logs.
        keep_s: Age in seconds from which images are deleted; 0 keeps all of them.

    Returns:
        An event that ends the thread when it is set.
    """
    stop = threading.Event()

    def run() -> None:
        while not stop.is_set():
            try:
                sweep_images(log_dir, keep_s)
            except OSError as error:
                log.error("stored images could not be deleted: %s", error)
            stop.wait(SWEEP_INTERVAL_S)

    if keep_s:
        threading.Thread(target=run, name="sweep-images", daemon=True).start()
    return stop


def conv_log_path(log_dir: Path) -> Path:
    """Returns the path of today's conversation log."""
    return log_dir / f"{datetime.date.today()}-conv.json"


def write_record(
    log_dir: Path,
    kind: str,
    model: str,
    conversation: Conversation,
    client_ip: str,
    **extra: Any,
) -> None:
    """Appends one record to today's conversation log.

    Args:
        log_dir: Folder of the logs; created if it is missing.
        kind: `chat`, `upvote`, `downvote` or `flag`.
        model: Name of the model.
        conversation: The conversation so far.
        client_ip: Address of the user.
        extra: Further keys: `start`, `finish` and `images` for `chat`.
    """
    record = {
        "tstamp": round(time.time(), 4),
        "type": kind,
        "model": model,
        **extra,
        "state": conversation.dict(),
        "ip": client_ip,
    }
    log_dir.mkdir(parents=True, exist_ok=True)
    line = json.dumps(record, ensure_ascii=False) + "\n"
    with _write_lock, conv_log_path(log_dir).open("a", encoding="utf-8") as file:
        file.write(line)


def image_digest(image: Image.Image) -> str:
    """Returns the MD5 of the raw pixels, which names an image in the logs (not for security)."""
    return hashlib.md5(image.tobytes(), usedforsecurity=False).hexdigest()


def save_images(log_dir: Path, images: list[Image.Image]) -> list[str]:
    """Stores images under their MD5, each once a day.

    Returns:
        The MD5 sums.
    """
    folder = log_dir / "serve_images" / f"{datetime.date.today()}"
    digests = [image_digest(image) for image in images]
    for digest, image in zip(digests, images, strict=True):
        path = folder / f"{digest}.jpg"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            to_rgb(image).save(path)
    return digests


@dataclass(frozen=True)
class PromptControl:
    """Fields that another package adds to the page.

    Attributes:
        build: Creates the fields; called once during the layout.
        apply: Returns the text for the model, given the user's text and the values of the fields.
            Raises `PageError` if the user must change something.
        relabel: Returns an update for each field, given the texts of another language.
        show: Returns the Markdown to show, given a reply, the texts of the page and the values that
            the fields had when the question was asked.
    """

    build: Callable[[], Sequence[gr.components.Component]]
    apply: Callable[..., str]
    relabel: Callable[[PageText], Sequence[Any]]
    show: Callable[..., str]


@dataclass(frozen=True)
class PageSettings:
    """Settings of a page.

    Attributes:
        controller_url: URL of the controller.
        model_list_mode: `once` (fixed at the start) or `reload` (updated whenever the page loads).
        models: Models known at the start.
        moderate: Refuse text that OpenAI's moderation flags.
        log_dir: Folder of conversation logs and images.
        control: Fields that another package adds.
        languages: Texts of the page by language.
        lang: Language of the user.
        keep_days: Days after which stored images are deleted; 0 keeps them for ever.
        images: Limits of an upload.
        max_body_bytes: Size of a question with its settings.
        per_minute: Questions, clicks and uploads per minute and client; 0 for no limit.
        forwarded_allow_ips: Proxies whose X-Forwarded-For is trusted; "" for none.
    """

    controller_url: str = "http://localhost:21001"
    model_list_mode: str = "once"
    models: Sequence[str] = ()
    moderate: bool = False
    log_dir: Path = Path(LOGDIR)
    control: PromptControl | None = None
    languages: Mapping[str, PageText] = field(default_factory=lambda: {ENGLISH: ENGLISH_TEXT})
    lang: str = ENGLISH
    keep_days: float = KEEP_DAYS
    images: ImageLimits = ImageLimits(max_images=4)
    max_body_bytes: int = 2**20
    per_minute: int = 120
    forwarded_allow_ips: str = ""

    @property
    def text(self) -> PageText:
        """The texts of the page in the user's language."""
        return self.languages.get(self.lang, ENGLISH_TEXT)

    def say(self, key: str, **values: object) -> str:
        """Returns a text of the page in the user's language."""
        return self.text.say(key, **values)


@dataclass
class ChatState:
    """The conversation of one user.

    Attributes:
        conversation: Template and messages.
        model: The model whose template it is; "" before the first answer.
        stop: Set to end the running answer.
        busy: Whether an answer is running.
        abandoned: Whether the user has started anew; a running answer is then no longer shown.
        text: Texts of the page in the language of the last question.
        shown_by: For the number of a reply, the function that returns its Markdown.
    """

    conversation: Conversation = field(
        default_factory=lambda: conversation_lib.default_conversation.copy()
    )
    model: str = ""
    stop: threading.Event = field(default_factory=threading.Event)
    busy: bool = False
    abandoned: bool = False
    text: PageText = ENGLISH_TEXT
    shown_by: dict[int, Callable[[str], str]] = field(default_factory=dict, repr=False)
    _thumbnails: dict[int, str] = field(default_factory=dict, repr=False)

    @property
    def last_number(self) -> int:
        """Number of the last message; -1 if there is none."""
        return len(self.conversation.messages) - self.conversation.offset - 1

    def open_turn(self, question: Any) -> None:
        """Adds a question and an empty answer."""
        for role, content in zip(self.conversation.roles, (question, None), strict=True):
            self.conversation.append_message(role, content)

    def use_template(self, template: Conversation, model: str) -> None:
        """Puts the turns so far into the template of a model."""
        turns = self.conversation.messages[self.conversation.offset :]
        for role, (_, content) in zip(itertools.cycle(template.roles), turns, strict=False):
            template.append_message(role, content)
        self.conversation, self.model = template, model

    def messages(self) -> list[dict[str, Any]]:
        """Returns the conversation in the format of Gradio's chat panel, with thumbnails."""
        shown: list[dict[str, Any]] = []
        for index, (_, content) in enumerate(
            self.conversation.messages[self.conversation.offset :]
        ):
            role = "assistant" if index % 2 else "user"
            for image in images_of(content):
                file = {"path": self._thumbnail(image), "alt_text": self.text.say("picture_alt")}
                shown.append({"role": role, "content": file})
            if isinstance(content, tuple):
                content = content[0].replace(DEFAULT_IMAGE_TOKEN, "").strip()
            if content:
                show = self.shown_by.get(index, str)
                shown.append({"role": role, "content": show(content)})
            elif content == "" and role == "assistant":
                shown.append({"role": role, "content": f"*{self.text.say('empty_answer')}*"})
        return shown

    def _thumbnail(self, image: Image.Image) -> str:
        """Returns the path of a thumbnail; cached, because the panel is drawn for every token."""
        if id(image) not in self._thumbnails:
            self._thumbnails[id(image)] = thumbnail(image)
        return self._thumbnails[id(image)]


def thumbnail(image: Image.Image) -> str:
    """Writes a thumbnail to a folder that Gradio may serve; returns its path."""
    small = to_rgb(image)
    small.thumbnail((THUMBNAIL_SIDE_PX, THUMBNAIL_SIDE_PX))
    path = Path(_thumbnail_dir().name) / f"{image_digest(small)}.webp"
    small.save(path)
    return str(path)


@functools.cache
def _thumbnail_dir() -> tempfile.TemporaryDirectory[str]:
    """Returns a folder that Gradio may serve; it is deleted when the page ends."""
    return tempfile.TemporaryDirectory(prefix="llava-thumbnails-", ignore_cleanup_errors=True)


class AnswerError(Exception):
    """Raised when a question gets no answer; its text is shown in place of the answer."""


def answer_error(settings: PageSettings, code: int, reason: str, heading: str = "") -> AnswerError:
    """Returns an error with the text that the page shows.

    Args:
        settings: The page's settings.
        code: An error code of `llava.serve.protocol`.
        reason: The cause, translated if the page knows it.
        heading: First line of the text; by default the page's general error.
    """
    said = "\n\n".join(filter(None, (heading or settings.say("error_server"), reason)))
    return AnswerError(f"{said} (error_code: {code})")


def button_states(
    vote: bool = False, stop: bool = False, regenerate: bool = False, clear: bool = False
) -> list[Any]:
    """Returns updates for Upvote, Downvote, Flag, Stop, Regenerate, Clear."""
    states = (vote, vote, vote, stop, regenerate, clear)
    return [gr.update(interactive=state) for state in states]


def add_text(
    state: ChatState | None,
    text: str,
    image: Image.Image | Sequence[Image.Image] | None,
    image_process_mode: str,
    request: gr.Request,
    *control_values: Any,
    settings: PageSettings,
) -> list[Any]:
    """Adds a question to the conversation; images start a new one and go before the text.

    Returns:
        State, chat panel, text field, image field, buttons.

    Raises:
        gr.Error: The question is empty or has too many images, an answer is running, or moderation
            refuses the text.
    """
    state = state or ChatState()
    text = (text or "").strip()
    images = [image] if isinstance(image, Image.Image) else list(image or ())
    if state.busy:
        raise notice(settings.say("still_answering"))
    if not text and not images:
        raise notice(settings.say("no_question"))
    if len(images) > settings.images.max_images:
        raise notice(settings.say("too_many_pictures", limit=settings.images.max_images))
    if settings.moderate and violates_moderation(text):
        raise notice(settings.say("moderated"))
    limit = MAX_TEXT_LEN_WITH_IMAGE if images else MAX_TEXT_LEN
    if len(text) > limit:
        gr.Warning(settings.say("text_cut", length=len(text), limit=limit))
        text = text[:limit]
    control = settings.control
    if control is not None and text:
        try:
            text = control.apply(text, *control_values)
        except PageError as error:
            raise notice(settings.say(str(error))) from error
    log.info("add_text. ip: %s. len: %d", client_ip(request), len(text))
    content: Any = text
    if images:
        state = ChatState()
        mark = "" if DEFAULT_IMAGE_TOKEN in text else f"\n{DEFAULT_IMAGE_TOKEN}" * len(images)
        content = (text + mark, images if len(images) > 1 else images[0], image_process_mode)
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
            failure = answer_error(settings, GENERATION_FAILED, reason)
        if failure is not None:
            state.conversation.messages[-1][1] = str(failure)
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
        raise answer_error(settings, NO_WORKER, settings.say(key, model=repr(model)))
    # at the first turn, and when the user has chosen another model
    if state.last_number == 1 or state.model != model:
        state.use_template(template_of_worker(address, model), model)
    conversation = state.conversation
    prompt = conversation.get_prompt()
    body = {
        "model": model,
        "prompt": prompt,
        **sampling,
        "stop": conversation.answer_end,
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
        raise answer_error(
            settings, WORKER_UNREACHABLE, settings.say("error_worker_gone")
        ) from error
    finally:
        # The log must not hold a cursor, even if the user has left.
        conversation.messages[-1][1] = text


def _reported_error(chunk: dict[str, Any], settings: PageSettings) -> AnswerError:
    """Converts the error that a worker reports; known messages are translated."""
    headings = {TOO_LONG_MESSAGE: settings.say("error_too_long"), server_error_msg: ""}
    kind, text = chunk.get("kind"), str(chunk["text"])
    reason = settings.say(REASONS[kind]) if kind in REASONS else str(chunk.get("reason", ""))
    return answer_error(settings, int(chunk["error_code"]), reason, headings.get(text, text))


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
