"""What the page says, what it remembers of a user, and what it stores.

`PageText` has the page's words in one language (`page_text.json` has the English ones; another
package may bring more languages). `ChatState` is one user's conversation and how it is shown.
Conversations and votes go to `<log_dir>/YYYY-MM-DD-conv.json` (JSON Lines), images to
`<log_dir>/serve_images/YYYY-MM-DD/<md5>.jpg`, as LLaVA's page stores them. Images are deleted
once their time is over; what was said and how people voted stays, and names images by their hash.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import functools
import hashlib
import json
import logging
import re
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from llava import conversation as conversation_lib
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
    """Something that the user must change; `key` names the text that says what."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key


@dataclass(frozen=True)
class PageText:
    """The page's texts in one language.

    Attributes:
        code: Its code, as browsers write it.
        name: Its own name.
        texts: Texts by name; those that are not there stay English.
    """

    code: str = ENGLISH
    name: str = "English"
    texts: Mapping[str, str] = field(default_factory=lambda: _ENGLISH_TEXTS)

    def say(self, key: str, **values: object) -> str:
        """Return a text, with the values that it names put in."""
        text = self.texts.get(key) or _ENGLISH_TEXTS[key]
        return text.format(**values) if values else text


ENGLISH_TEXT = PageText()


def preferred_language(accept_language: str, codes: Iterable[str]) -> str:
    """Choose a language as the browser's `Accept-Language` orders them.

    Args:
        accept_language: The header, such as `hr-HR,hr;q=0.9,en;q=0.8`; "" chooses the first code.
        codes: The languages that there are.

    Returns:
        The code that fits best: the tag itself, else its language without region or script.
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
    """Delete stored images that are older than they may be, and folders that are empty then.

    Args:
        log_dir: Folder of the logs.
        keep_s: Age in seconds that an image may reach.
        now: Seconds since the epoch; by default the present.

    Returns:
        How many images were deleted.
    """
    now = time.time() if now is None else now
    num_deleted = 0
    for folder in sorted((log_dir / "serve_images").glob("*")):
        if folder.is_symlink() or not folder.is_dir():
            continue
        for path in folder.glob("*"):  # of a folder that cannot be read, nothing
            try:
                # lstat: what a link points to is not ours to judge
                if path.lstat().st_mtime < now - keep_s:
                    path.unlink()
                    num_deleted += 1
            except OSError as error:
                log.error("an image could not be deleted: %s", error)
        with contextlib.suppress(OSError):  # it still holds something
            folder.rmdir()
    if num_deleted:
        log.info("deleted %d images older than %.1f days", num_deleted, keep_s / DAY_S)
    return num_deleted


def start_sweeper(log_dir: Path, keep_s: float) -> threading.Event:
    """Sweep now and every ten minutes, in a thread of its own.

    Args:
        log_dir: Folder of the logs.
        keep_s: Age in seconds that an image may reach; 0 keeps all for ever.

    Returns:
        Set it to end the thread.
    """
    stop = threading.Event()

    def run() -> None:
        sweep_images(log_dir, keep_s)
        while not stop.wait(SWEEP_INTERVAL_S):
            sweep_images(log_dir, keep_s)

    if keep_s:
        threading.Thread(target=run, name="sweep-images", daemon=True).start()
    return stop


def conv_log_path(log_dir: Path) -> Path:
    """Return today's conversation log."""
    return log_dir / f"{datetime.date.today()}-conv.json"


def write_record(
    log_dir: Path,
    kind: str,
    model: str,
    conversation: Conversation,
    client_ip: str,
    **extra: Any,
) -> None:
    """Append one record.

    Args:
        log_dir: Folder of the logs; made if it is missing.
        kind: `chat`, `upvote`, `downvote` or `flag`.
        model: Name of the model.
        conversation: The conversation as it is now.
        client_ip: Address of the user.
        extra: Further keys: `start`, `finish`, `images` for `chat`.
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
    """Return the md5 of an image's raw pixels: its name in the logs, not a safeguard."""
    return hashlib.md5(image.tobytes(), usedforsecurity=False).hexdigest()


def save_images(log_dir: Path, images: list[Image.Image]) -> list[str]:
    """Store images under their md5, each once a day.

    Returns:
        The md5 sums.
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
    """A choice that another package adds to the page.

    Attributes:
        build: Makes the fields; called once while the page is laid out.
        apply: Takes the user's text and the fields' values; returns the text for the model. What
            the user must change is a `PageError`.
        relabel: Takes the page's texts in another language; returns an update for each field.
        show: Takes a reply, the page's texts and the fields' values as they were when the question
            was asked; returns the Markdown to show.
    """

    build: Callable[[], Sequence[gr.components.Component]]
    apply: Callable[..., str]
    relabel: Callable[[PageText], Sequence[Any]]
    show: Callable[..., str]


@dataclass(frozen=True)
class PageSettings:
    """How one page works.

    Attributes:
        controller_url: Where the workers are asked for.
        model_list_mode: `once` (fixed at start) or `reload` (asked at every load of the page).
        models: The models known at start.
        moderate: Refuse text that OpenAI's moderation flags.
        log_dir: Folder of conversation logs and images.
        control: A choice that another package adds.
        languages: What the page says, by language.
        lang: The language that a user reads.
        keep_days: Age of stored images at which they are deleted; 0 keeps them for ever.
        images: What an upload may be.
        max_body_bytes: Size of a question with its settings.
        per_minute: Questions, clicks and uploads a minute and client; 0 for any number.
        forwarded_allow_ips: Proxies whose X-Forwarded-For says who the client is; "" for none.
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
        """The page's texts in the user's language."""
        return self.languages.get(self.lang, ENGLISH_TEXT)

    def say(self, key: str, **values: object) -> str:
        """Return one of the page's texts in the user's language."""
        return self.text.say(key, **values)


@dataclass
class ChatState:
    """One user's conversation.

    Attributes:
        conversation: Template and messages.
        stop: Set to end the running answer.
        busy: Whether an answer is running.
        abandoned: Set when the user begins anew: an answer that still runs is not shown.
        text: The page's texts, in the language in which the user last asked.
        shown_by: By the number of a reply: what makes the Markdown that is shown of it.
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
        """Number of the last message, -1 before the first."""
        return len(self.conversation.messages) - self.conversation.offset - 1

    def open_turn(self, question: Any) -> None:
        """Add a question, and a place for its answer."""
        for role, content in zip(self.conversation.roles, (question, None), strict=True):
            self.conversation.append_message(role, content)

    def messages(self) -> list[dict[str, Any]]:
        """Return the conversation in the form of Gradio's chat panel, images as small files."""
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
        """Return the path of a small copy; made once, as the panel is drawn for every token."""
        if id(image) not in self._thumbnails:
            self._thumbnails[id(image)] = thumbnail(image)
        return self._thumbnails[id(image)]


def thumbnail(image: Image.Image) -> str:
    """Write a small copy of an image where Gradio may serve it from; return its path."""
    small = to_rgb(image)
    small.thumbnail((THUMBNAIL_SIDE_PX, THUMBNAIL_SIDE_PX))
    path = thumbnail_dir() / f"{image_digest(small)}.webp"
    small.save(path)
    return str(path)


@functools.cache
def thumbnail_dir() -> Path:
    """Return a folder that Gradio may serve from; it is deleted when the page ends."""
    folder = tempfile.mkdtemp(prefix="llava-thumbnails-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
