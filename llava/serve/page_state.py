"""Holds the texts and settings of the page, the state of each user, and what the page stores.

`PageText` has the texts of the page in one language: `page_text.json` holds the English ones, and
another package may add languages. `ChatState` is the conversation of one user. Conversations and
votes go to `<log_dir>/YYYY-MM-DD-conv.json` (JSON Lines), images to
`<log_dir>/serve_images/YYYY-MM-DD/<md5>.jpg`, as on LLaVA's page. Images are deleted after a number
of days; conversations and votes stay and name images by their hash.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import hashlib
import json
import logging
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

import llava.conversation as conversation_lib
from llava.constants import DEFAULT_IMAGE_TOKEN, LOGDIR
from llava.conversation import Conversation
from llava.errors import UserError
from llava.images import to_rgb
from llava.serve.web import ImageLimits

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


class PageError(UserError):
    """Raised for input that the user must change; `key` names the text that explains it."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


@dataclass(frozen=True)
class PageText:
    """The texts of the page in one language.

    Attributes:
        code: Language code, as browsers write it.
        name: Name of the language in that language.
        texts: Texts by name; missing ones are shown in English.
    """

    code: str = ENGLISH
    name: str = "English"
    texts: Mapping[str, str] = field(default_factory=lambda: _ENGLISH_TEXTS)

    def say(self, key: str, **values: object) -> str:
        """Returns a text with `values` filled in."""
        text = self.texts.get(key) or _ENGLISH_TEXTS[key]
        return text.format(**values) if values else text


ENGLISH_TEXT = PageText()


def preferred_language(accept_language: str, codes: Iterable[str]) -> str:
    """Chooses a language in the browser's order of preference.

    Args:
        accept_language: The header `Accept-Language`, such as `hr-HR,hr;q=0.9,en;q=0.8`.
        codes: The available languages.

    Returns:
        The code of the best match: the tag itself, or the tag without region or script. Without a
        match, English if it is available, else the first code.
    """
    by_tag = {code.lower(): code for code in codes}
    ranges = re.findall(r"([\w-]+)\s*(?:;\s*q=(\d(?:\.\d+)?))?", accept_language.lower())
    accepted = [(tag, float(quality or 1)) for tag, quality in ranges]
    for tag, quality in sorted(accepted, key=lambda pair: -pair[1]):
        while tag and quality:
            if tag in by_tag:
                return by_tag[tag]
            tag = tag.rpartition("-")[0]
    return by_tag.get(ENGLISH) or next(iter(by_tag.values()))


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
        wait_s = 0.0
        while not stop.wait(wait_s):
            try:
                sweep_images(log_dir, keep_s)
            except OSError as error:
                log.error("stored images could not be deleted: %s", error)
            wait_s = SWEEP_INTERVAL_S

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
        stop: Set to end the running answer.
        busy: Whether an answer is running.
        abandoned: Whether the user has started anew; a running answer is then no longer shown.
        text: Texts of the page in the language of the last question.
        shown_by: For the number of a reply, the function that returns its Markdown.
    """

    conversation: Conversation = field(
        default_factory=lambda: conversation_lib.default_conversation.copy()
    )
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

    def messages(self) -> list[dict[str, Any]]:
        """Returns the conversation in the format of Gradio's chat panel, with thumbnails."""
        shown: list[dict[str, Any]] = []
        for index, (_, content) in enumerate(
            self.conversation.messages[self.conversation.offset :]
        ):
            role = "assistant" if index % 2 else "user"
            if isinstance(content, tuple):
                text, image, _ = content
                file = {"path": self._thumbnail(image), "alt_text": self.text.say("picture_alt")}
                shown.append({"role": role, "content": file})
                content = text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
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
