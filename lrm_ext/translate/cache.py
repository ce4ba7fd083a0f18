"""Caches the answers of engines, so that no run asks or pays for one twice.

A key is a digest of a segment and of everything that decides its translation. The cache is one
SQLite file in WAL mode: several runs may read and write it at the same time, and a run that is
killed loses nothing that was committed. Answers are committed as they arrive. Two runs that need
the same text at the same moment both ask for it; `put` reports how often that happened.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import NamedTuple

from llava.errors import DataError
from llava.files import lock_of
from lrm_ext.translate.engines.base import (
    EngineError,
    TextSegment,
    TranslationEngine,
    Usage,
    identity,
)

_VERSION = 1
_LOOKUP = 500  # keys in one query; SQLite once had a limit of 999
_BUSY_S = 60.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, text TEXT, error TEXT) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS spent (
    engine TEXT, target TEXT, requests INTEGER, input_tokens INTEGER, output_tokens INTEGER,
    usd REAL, PRIMARY KEY (engine, target)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS jobs (engine TEXT, name TEXT, value TEXT, PRIMARY KEY (engine, name));
"""


class CachedAnswer(NamedTuple):
    """An engine's answer to one segment.

    Attributes:
        text: The translation; None if there is none.
        error: Why there is none.
        is_final: Whether asking again would give the same answer. Only such answers are cached.
    """

    text: str | None
    error: str | None
    is_final: bool = True


class Cache:
    """A file of answers.

    Args:
        path: Created if it does not exist.

    Raises:
        DataError: The file is not a cache, has another version, or cannot be written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with self._plain_errors("cannot be opened"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # SQLite's own waiting does not cover the switch to a write-ahead log: of several runs
            # that start at once, one does it
            with lock_of(self.path):
                self._db = sqlite3.connect(self.path, timeout=_BUSY_S, isolation_level=None)
                version = self._db.execute("PRAGMA user_version").fetchone()[0]
                if version not in (0, _VERSION):
                    raise DataError(
                        f"{self.path}: cache version {version}, this code reads {_VERSION}; choose "
                        "another file with --cache."
                    )
                self._db.execute("PRAGMA journal_mode=WAL")
                # what was paid for has to survive a power cut, too
                self._db.execute("PRAGMA synchronous=FULL")
                if version == 0:
                    with self._transaction():
                        for statement in filter(str.strip, _SCHEMA.split(";")):
                            self._db.execute(statement)
                        self._db.execute(f"PRAGMA user_version={_VERSION}")

    def get_many(self, keys: Sequence[bytes]) -> dict[bytes, CachedAnswer]:
        """Returns the answers to keys; keys without an answer are left out.

        Raises:
            DataError: The file is damaged or cannot be read.
        """
        found: dict[bytes, CachedAnswer] = {}
        with self._plain_errors("cannot be read"):
            for start in range(0, len(keys), _LOOKUP):
                some = keys[start : start + _LOOKUP]
                marks = ",".join("?" * len(some))
                query = f"SELECT key, text, error FROM answers WHERE key IN ({marks})"
                for key, text, error in self._db.execute(query, some):
                    found[key] = CachedAnswer(text, error)
        return found

    def put(
        self,
        answers: Mapping[bytes, CachedAnswer],
        engine: TranslationEngine,
        target: str,
        usage: Usage,
    ) -> int:
        """Commits answers and their cost in one transaction.

        Returns:
            How many of the answers another run had committed already; those stay.

        Raises:
            DataError: The disk is full, or the file cannot be written.
        """
        rows = [(key, answer.text, answer.error) for key, answer in answers.items()]
        spent = (identity(engine), target, *astuple(usage))
        with self._plain_errors("cannot be written"), self._transaction():
            query = "INSERT OR IGNORE INTO answers VALUES (?, ?, ?)"
            num_new = self._db.executemany(query, rows).rowcount if rows else 0
            self._db.execute(
                "INSERT INTO spent VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "requests = requests + excluded.requests, "
                "input_tokens = input_tokens + excluded.input_tokens, "
                "output_tokens = output_tokens + excluded.output_tokens, "
                "usd = usd + excluded.usd",
                spent,
            )
        return len(rows) - num_new

    def spent(self, engine: str, target: str | None = None) -> Usage:
        """Returns what an engine has cost in all runs that used this cache.

        Args:
            engine: Its name.
            target: Only this language; None for all.
        """
        rows = self._db.execute("SELECT * FROM spent").fetchall()
        total = Usage()
        for who, lang, *values in rows:
            if json.loads(who)[0] == engine and target in (None, lang):
                total += Usage(*values)
        return total

    def note(self, engine: str, name: str, value: str | None) -> None:
        """Stores a note for later runs, such as a job that a service works on.

        Args:
            engine: The engine's name.
            name: Name of the note.
            value: Its text; None deletes the note.
        """
        with self._plain_errors("cannot be written"):
            if value is None:
                query = "DELETE FROM jobs WHERE engine = ? AND name = ?"
                self._db.execute(query, (engine, name))
            else:
                query = "INSERT OR REPLACE INTO jobs VALUES (?, ?, ?)"
                self._db.execute(query, (engine, name, value))

    def notes(self, engine: str) -> dict[str, str]:
        """Returns the notes of an engine, by name."""
        query = "SELECT name, value FROM jobs WHERE engine = ? ORDER BY name"
        return dict(self._db.execute(query, (engine,)).fetchall())

    def __len__(self) -> int:
        return int(self._db.execute("SELECT count(*) FROM answers").fetchone()[0])

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        # "immediate" takes the write lock at once: two runs wait for each other, none fails
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            # a full disk may have rolled it back by itself
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    @contextmanager
    def _plain_errors(self, what: str) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise DataError(
                f"{self.path}: the translation cache {what}: {error}. If the disk is full, make "
                "room and run again: what was answered is kept. If the file is damaged, move it "
                "away."
            ) from error


class Keys:
    """Computes the cache keys of one engine and pair of languages.

    Args:
        engine: Its name, version and options enter the key.
        source: Code of the source language.
        target: Code of the target language.

    Attributes:
        name: A short digest of the three arguments.
    """

    def __init__(self, engine: TranslationEngine, source: str, target: str) -> None:
        self._base = hashlib.blake2b(digest_size=16)
        self._base.update(f"{identity(engine)}\n{source}\n{target}\n".encode())
        self.name = self._base.hexdigest()[:12]

    def key(self, segment: TextSegment) -> bytes:
        """Returns the key of a segment; only what can change its translation enters it."""
        digest = self._base.copy()
        digest.update(segment.text.encode("utf-8", "surrogatepass"))
        if segment.context or segment.terms:
            # JSON escapes control characters, so the parts cannot run into each other
            more = json.dumps([segment.context, segment.terms])
            digest.update(b"\0" + more.encode())
        return digest.digest()


class CachedEngine:
    """An engine that is asked only for segments that the cache does not have.

    Args:
        engine: The engine.
        cache: Where its answers are kept.
        source: Code of the source language.
        target: Code of the target language.
    """

    def __init__(self, engine: TranslationEngine, cache: Cache, source: str, target: str) -> None:
        self._engine, self._cache, self._target = engine, cache, target
        self._keys = Keys(engine, source, target)

    def translate(
        self, segments: Sequence[TextSegment], counts: Counter[str]
    ) -> tuple[dict[TextSegment, CachedAnswer], Usage]:
        """Returns answers from the cache, and has the engine translate the rest.

        Answers are committed as they arrive.

        Args:
            segments: What to translate, without duplicates.
            counts: Counters to update.

        Returns:
            The answers and their cost. A segment that the engine does not mention has no answer.

        Raises:
            EngineError: The engine cannot continue; its answers so far are in the cache.
            DataError: The cache cannot be read or written.
        """
        engine, usage = self._engine, Usage()
        keys = {segment: self._keys.key(segment) for segment in segments}
        answers: dict[TextSegment, CachedAnswer] = {}
        if not engine.is_table:
            found = self._cache.get_many(list(keys.values()))
            answers = {segment: found[key] for segment, key in keys.items() if key in found}
            counts[f"{engine.name}: from the cache"] += len(answers)
        missing = [segment for segment in segments if segment not in answers]
        for reply in engine.translate(missing) if missing else ():
            fresh: dict[bytes, CachedAnswer] = {}
            for outcome in reply.outcomes:
                if not 0 <= outcome.index < len(missing):
                    raise EngineError(
                        f"engine {engine.name!r} answered segment {outcome.index} of "
                        f"{len(missing)}; its code is at fault."
                    )
                segment = missing[outcome.index]
                answers[segment] = CachedAnswer(outcome.text, outcome.error, outcome.is_final)
                if outcome.is_final:
                    fresh[keys[segment]] = answers[segment]
            if not engine.is_table:
                num_twice = self._cache.put(fresh, engine, self._target, reply.usage)
                counts[f"{engine.name}: asked by another run, too"] += num_twice
            usage += reply.usage
            counts[f"{engine.name}: asked"] += len(reply.outcomes)
        return answers, usage
