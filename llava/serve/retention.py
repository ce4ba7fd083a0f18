"""Deletes the pictures that people uploaded once their time is over.

In: the log folder of a page. Out: the same without what is too old in `serve_images/`. What was
said and how people voted stays; it names pictures by their hash alone.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from pathlib import Path

log = logging.getLogger(__name__)

SWEEP_INTERVAL_S = 600.0
DAY_S = 86_400.0
KEEP_DAYS = 30.0


def sweep_pictures(log_dir: Path, keep_s: float, now: float | None = None) -> int:
    """Delete stored pictures that are older than they may be, and folders that are empty then.

    Args:
        log_dir: Folder of the logs.
        keep_s: Age in seconds that a picture may reach.
        now: Seconds since the epoch; by default the present.

    Returns:
        How many pictures were deleted.
    """
    now = time.time() if now is None else now
    num_deleted = 0
    for folder in sorted((log_dir / "serve_images").glob("*")):
        if folder.is_symlink() or not folder.is_dir():
            continue
        for path in folder.iterdir():
            try:
                # lstat: what a link points to is not ours to judge
                if path.lstat().st_mtime < now - keep_s:
                    path.unlink()
                    num_deleted += 1
            except OSError as error:
                log.error("a picture could not be deleted: %s", error)
        with contextlib.suppress(OSError):  # it still holds something
            folder.rmdir()
    if num_deleted:
        log.info("deleted %d pictures older than %.1f days", num_deleted, keep_s / DAY_S)
    return num_deleted


def start_sweeper(log_dir: Path, keep_s: float) -> threading.Event:
    """Sweep now and every ten minutes, in a thread of its own.

    Args:
        log_dir: Folder of the logs.
        keep_s: Age in seconds that a picture may reach; 0 keeps all for ever.

    Returns:
        Set it to end the thread.
    """
    stop = threading.Event()

    def run() -> None:
        while True:
            try:
                sweep_pictures(log_dir, keep_s)
            except OSError as error:
                log.error("stored pictures could not be swept: %s", error)
            if stop.wait(SWEEP_INTERVAL_S):
                return

    if keep_s:
        threading.Thread(target=run, name="sweep-pictures", daemon=True).start()
    return stop
