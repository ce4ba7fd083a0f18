"""Who is asking for what, where several runs share a cache file: no text is paid for twice.

Input: keys that have no answer. Output: those that nobody else is asking for. A run is known by a
file beside the cache that it holds locked; the lock dies with the process, so claims of a run that
was killed count for nothing. Runs on other machines are not seen: SQLite files are not for those.
"""

from __future__ import annotations

import fcntl
import glob
import sqlite3
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import IO

_SCHEMA = """
CREATE TABLE IF NOT EXISTS claims (key BLOB PRIMARY KEY, owner TEXT) WITHOUT ROWID
"""
_LOOKUP = 500  # keys in one query
_YOUNG_S = 60.0


class Claims:
    """The claims in one cache file; transactions are the caller's.

    Args:
        db: The cache.
        path: Its file.
    """

    def __init__(self, db: sqlite3.Connection, path: Path) -> None:
        self._db = db
        self._path = path
        self._owner = uuid.uuid4().hex
        self._file: IO[bytes] | None = None
        db.execute(_SCHEMA)

    def take(self, keys: Sequence[bytes]) -> frozenset[bytes]:
        """Claim those keys that no run claims that is still alive."""
        if self._file is None:
            self._clear_up()
            self._file = self._owner_file(self._owner).open("wb")
            fcntl.flock(self._file, fcntl.LOCK_EX)
        self._forget_the_dead()
        taken = self._taken(keys)
        ours = frozenset(keys) - taken
        rows = ((key, self._owner) for key in ours)
        self._db.executemany("INSERT OR REPLACE INTO claims VALUES (?, ?)", rows)
        return ours

    def are_pending(self, keys: Sequence[bytes]) -> bool:
        """Whether a run that is alive is asking for one of the keys."""
        self._forget_the_dead()
        return bool(self._taken(keys))

    def release(self) -> None:
        """Give back this run's claims."""
        if self._file is not None:
            self._db.execute("DELETE FROM claims WHERE owner = ?", (self._owner,))

    def close(self) -> None:
        """Let others see that this run is over."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._owner_file(self._owner).unlink(missing_ok=True)

    def _taken(self, keys: Sequence[bytes]) -> frozenset[bytes]:
        taken: list[bytes] = []
        for start in range(0, len(keys), _LOOKUP):
            some = keys[start : start + _LOOKUP]
            marks = ",".join("?" * len(some))
            query = f"SELECT key FROM claims WHERE owner <> ? AND key IN ({marks})"
            taken += (key for (key,) in self._db.execute(query, (self._owner, *some)))
        return frozenset(taken)

    def _forget_the_dead(self) -> None:
        query = "SELECT DISTINCT owner FROM claims WHERE owner <> ?"
        for (owner,) in self._db.execute(query, (self._owner,)).fetchall():
            path = self._owner_file(owner)
            if not _is_alive(path):
                self._db.execute("DELETE FROM claims WHERE owner = ?", (owner,))
                path.unlink(missing_ok=True)

    def _clear_up(self) -> None:
        """Remove files of runs that were killed; a young one may be about to be locked."""
        for path in self._path.parent.glob(f"{glob.escape(self._path.name)}-run-*"):
            is_young = time.time() - path.stat().st_mtime < _YOUNG_S
            if not is_young and not _is_alive(path):
                path.unlink(missing_ok=True)

    def _owner_file(self, owner: str) -> Path:
        return self._path.with_name(f"{self._path.name}-run-{owner}")


def _is_alive(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    return False
