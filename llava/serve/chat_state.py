"""What the page remembers of a user, and how a conversation is shown.

In: a conversation. Out: messages for Gradio's chat panel. The settings of a page and the choice
that another package may add to it are defined here too.
"""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from llava import conversation as conversation_lib
from llava.constants import DEFAULT_IMAGE_TOKEN, LOGDIR
from llava.conversation import Conversation
from llava.images import to_rgb
from llava.serve.chat_log import image_digest
from llava.serve.page_text import ENGLISH, ENGLISH_TEXT, PageText
from llava.serve.retention import KEEP_DAYS

THUMBNAIL_SIDE_PX = 512


@dataclass(frozen=True)
class PromptControl:
    """A choice that another package adds to the page.

    Attributes:
        build: Makes the fields; called once while the page is laid out.
        apply: Takes the user's text and the fields' values; returns the text for the model. What
            the user must change is a `PageError`.
        relabel: Takes the page's texts in another language; returns an update for each field.
        show: Takes a reply, the page's texts and the fields' values as they were when the question
            was asked; returns the Markdown to show. Without it, replies are shown as they are.
    """

    build: Callable[[], Sequence[gr.components.Component]]
    apply: Callable[..., str]
    relabel: Callable[[PageText], Sequence[Any]] | None = None
    show: Callable[..., str] | None = None


@dataclass(frozen=True)
class PageSettings:
    """How one page works.

    Attributes:
        controller_url: Where the workers are asked for.
        model_list_mode: `once` (fixed at start) or `reload` (asked at every load of the page).
        models: The models known at start.
        moderate: Refuse text that OpenAI's moderation flags.
        log_dir: Folder of conversation logs and pictures.
        control: A choice that another package adds.
        keep_days: Age of stored pictures at which they are deleted; 0 keeps them for ever.
        languages: What the page says, by language.
        lang: The language that a user reads.
    """

    controller_url: str = "http://localhost:21001"
    model_list_mode: str = "once"
    models: tuple[str, ...] = ()
    moderate: bool = False
    log_dir: Path = Path(LOGDIR)
    control: PromptControl | None = None
    keep_days: float = KEEP_DAYS
    languages: Mapping[str, PageText] = field(default_factory=lambda: {ENGLISH: ENGLISH_TEXT})
    lang: str = ENGLISH

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
        shown_by: For replies that are not shown as they are, by their number: what shows them.
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

    def messages(self) -> list[dict[str, Any]]:
        """Return the conversation in the form of Gradio's chat panel, pictures as small files."""
        shown: list[dict[str, Any]] = []
        for index, (_, content) in enumerate(
            self.conversation.messages[self.conversation.offset :]
        ):
            role = "assistant" if index % 2 else "user"
            if isinstance(content, tuple):
                text, image, _ = content
                picture = {"path": self._thumbnail(image), "alt_text": self.text.say("picture_alt")}
                shown.append({"role": role, "content": picture})
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
    """Write a small copy of a picture where Gradio may serve it from; return its path."""
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
