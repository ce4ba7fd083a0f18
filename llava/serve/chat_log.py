"""What the page writes down: conversations, votes and uploaded pictures, as LLaVA's page does.

In: conversations. Out: `<log_dir>/YYYY-MM-DD-conv.json` (JSON Lines) and
`<log_dir>/serve_images/YYYY-MM-DD/<md5>.jpg`.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any

from PIL import Image

from llava.conversation import Conversation
from llava.images import to_rgb

_write_lock = threading.Lock()


def _today() -> str:
    return datetime.date.today().isoformat()


def conv_log_path(log_dir: Path) -> Path:
    """Return today's conversation log."""
    return log_dir / f"{_today()}-conv.json"


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
    """Return the md5 of a picture's raw pixels: its name in the logs, not a safeguard."""
    return hashlib.md5(image.tobytes(), usedforsecurity=False).hexdigest()


def save_images(log_dir: Path, images: list[Image.Image]) -> list[str]:
    """Store pictures under their md5, each once a day.

    Returns:
        The md5 sums.
    """
    folder = log_dir / "serve_images" / _today()
    digests = []
    for image in images:
        digest = image_digest(image)
        digests.append(digest)
        path = folder / f"{digest}.jpg"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            to_rgb(image).save(path)
    return digests
