"""Provides the servers' logging, moderation, and small helpers under LLaVA's names.

Role: what LLaVA's users import as `llava.utils`. Output: loggers, strings, a verdict.
Non-goals: LLaVA's redirection of `sys.stdout` and `sys.stderr` into log files, which breaks
progress bars and shows every line of uvicorn as an error. `StreamToLogger` is available for that.
"""

from __future__ import annotations

import io
import logging
import logging.handlers
import os
import sys
from pathlib import Path
from typing import Any, Final

import requests

from llava.constants import LOGDIR
from llava.errors import ConfigError

log = logging.getLogger(__name__)

server_error_msg: Final = (
    "**NETWORK ERROR DUE TO HIGH TRAFFIC. PLEASE REGENERATE OR REFRESH THIS PAGE.**"
)
moderation_msg: Final = "YOUR INPUT VIOLATES OUR CONTENT MODERATION GUIDELINES. PLEASE TRY AGAIN."

handler: logging.Handler | None = None
"""The file handler that all loggers of the process share, once `build_logger` has made it."""

_FORMAT: Final = logging.Formatter(
    fmt="%(asctime)s | %(levelname)s | %(name)s | %(message)s",
    datefmt="%Y-%m-%d %H:%M:%S",
)
_MODERATION_URL: Final = "https://api.openai.com/v1/moderations"


def build_logger(logger_name: str, logger_filename: str) -> logging.Logger:
    """Returns a logger that writes to the terminal and to a file.

    The file is in `LOGDIR`, in UTF-8, and rotates daily (UTC). The first call of a
    process decides its name; all loggers of the process write into it, and it appears with the
    first record. The standard streams stay as they are.

    Args:
        logger_name: Name of the logger.
        logger_filename: File name below `LOGDIR`.

    Raises:
        ConfigError: The folder cannot be written to.
    """
    global handler
    root = logging.getLogger()
    if not root.handlers:
        logging.basicConfig(level=logging.INFO)
    for each in root.handlers:
        each.setFormatter(_FORMAT)
    logger = logging.getLogger(logger_name)
    logger.setLevel(logging.INFO)
    if handler is None:
        path = Path(LOGDIR) / logger_filename
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise ConfigError(
                f"{path.parent.resolve()}: logs cannot be written there; start the server in a "
                "folder that you may write to"
            )
        handler = logging.handlers.TimedRotatingFileHandler(
            path, when="D", utc=True, encoding="utf-8", delay=True
        )
        handler.setFormatter(_FORMAT)
        root.addHandler(handler)  # all loggers propagate their records to the root
    return logger


class StreamToLogger(io.TextIOBase):
    """A text stream whose lines become records of a logger.

    Args:
        logger: Where the lines go.
        log_level: Level of the records.
    """

    def __init__(self, logger: logging.Logger, log_level: int = logging.INFO) -> None:
        super().__init__()
        self.terminal = sys.stdout
        self.logger = logger
        self.log_level = log_level
        self._rest = ""

    def write(self, text: str) -> int:
        """Logs the complete lines and keeps the rest."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self.logger.log(self.log_level, line.rstrip())
        return len(text)

    def flush(self) -> None:
        """Logs what is left of a line."""
        if self._rest:
            self.logger.log(self.log_level, self._rest.rstrip())
        self._rest = ""


def disable_torch_init() -> None:
    """Skips the random initialisation of `Linear` and `LayerNorm`, to build models faster.

    This lasts for the whole process, as in LLaVA. Loading through transformers skips it anyway;
    nothing in this project calls it.
    """
    import torch

    for layer in (torch.nn.Linear, torch.nn.LayerNorm):
        layer.reset_parameters = lambda self: None


def violates_moderation(text: str) -> bool:
    """Asks OpenAI's moderation service about a text.

    Needs `OPENAI_API_KEY`. If the service does not answer as it should, the text passes and the
    reason is logged.
    """
    try:
        response = requests.post(
            _MODERATION_URL,
            headers={"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"},
            json={"input": text.replace("\n", "")},
            timeout=5,
        )
        return bool(response.json()["results"][0]["flagged"])
    except (requests.RequestException, LookupError, TypeError, ValueError) as error:
        log.warning("The moderation service gave no verdict, the text passes: %r", error)
        return False


def pretty_print_semaphore(semaphore: Any) -> str:
    """Returns a semaphore's state as text, for logs."""
    if semaphore is None:
        return "None"
    return f"Semaphore(value={semaphore._value}, locked={semaphore.locked()})"


def duration(seconds: float) -> str:
    """Formats a time in seconds as `1 h 05 min`, `3 min 07 s` or `12 s`."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {seconds:02d} s" if minutes else f"{seconds} s"
