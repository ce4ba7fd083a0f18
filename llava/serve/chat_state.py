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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gradio as gr
from PIL import Image

from llava.constants import DEFAULT_IMAGE_TOKEN, LOGDIR
from llava.conversation import Conversation, get_conversation
from llava.image_fit import to_rgb
from llava.serve.chat_log import image_digest
from llava.serve.retention import KEEP_DAYS

THUMBNAIL_SIDE_PX = 512


@dataclass(frozen=True)
class PromptControl:
    """A choice that another package adds to the page.

    Attributes:
        build: Makes the fields; called once while the page is laid out.
        apply: Takes the user's text and the fields' values; returns the text for the model.
    """

    build: Callable[[], Sequence[gr.components.Component]]
    apply: Callable[..., str]


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
    """

    controller_url: str = "http://localhost:21001"
    model_list_mode: str = "once"
    models: tuple[str, ...] = ()
    moderate: bool = False
    log_dir: Path = Path(LOGDIR)
    control: PromptControl | None = None
    keep_days: float = KEEP_DAYS


@dataclass
class ChatState:
    """One user's conversation.

    Attributes:
        conversation: Template and messages.
        stop: Set to end the running answer.
        busy: Whether an answer is running.
        abandoned: Set when the user begins anew: an answer that still runs is not shown.
    """

    conversation: Conversation = field(default_factory=lambda: get_conversation("vicuna_v1"))
    stop: threading.Event = field(default_factory=threading.Event)
    busy: bool = False
    abandoned: bool = False
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
                picture = {"path": self._thumbnail(image), "alt_text": "the picture asked about"}
                shown.append({"role": role, "content": picture})
                content = text.replace(DEFAULT_IMAGE_TOKEN, "").strip()
            if content:
                shown.append({"role": role, "content": content})
            elif content == "" and role == "assistant":
                shown.append({"role": role, "content": "*(the answer is empty)*"})
        return shown

    def _thumbnail(self, image: Image.Image) -> str:
        """Return the path of a small copy; made once, as the panel is drawn for every token."""
        if id(image) not in self._thumbnails:
            small = to_rgb(image)
            small.thumbnail((THUMBNAIL_SIDE_PX, THUMBNAIL_SIDE_PX))
            path = thumbnail_dir() / f"{image_digest(small)}.webp"
            small.save(path)
            self._thumbnails[id(image)] = str(path)
        return self._thumbnails[id(image)]


@functools.cache
def thumbnail_dir() -> Path:
    """Return a folder that Gradio may serve from; it is deleted when the page ends."""
    folder = tempfile.mkdtemp(prefix="llava-thumbnails-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
