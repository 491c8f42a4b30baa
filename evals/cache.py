"""Answers on disk, found again by everything that could change them; what was answered once is not asked twice, also after `kill -9`.

One SQLite file, one committed row an answer. Failed requests are not kept: asking again is the only way to learn more about them.
"""

import hashlib
import os
import sqlite3
from pathlib import Path
from typing import Self

import msgspec

from evals.case import Answer

_ENCODE = msgspec.msgpack.Encoder().encode
_DECODE = msgspec.msgpack.Decoder(Answer).decode
_VERSION = b"1"  # of what an answer holds: a new field's meaning makes old answers strangers


def key_of(url: str, body: bytes, nth: int, weights: str) -> bytes:
    """The name of an answer: where it was asked, the whole body (model, messages, settings), which time it is asked, what answers there."""
    made = hashlib.sha256()
    for part in (_VERSION, url.encode(), body, str(nth).encode(), weights.encode()):
        made.update(len(part).to_bytes(8, "big") + part)
    return made.digest()


class Cache:
    """The answers below a home. Two runs may use it at the same time. Readable by its owner alone: answers may be confidential."""

    def __init__(self, folder: Path, *, fresh: bool = False) -> None:
        self._fresh = fresh
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / "answers.sqlite"
        file.touch(mode=0o600)
        os.chmod(file, 0o600)  # noqa: PTH101  # the -wal file beside it takes the mode of this one
        self._db = sqlite3.connect(file, timeout=60, isolation_level=None)
        # With WAL, NORMAL loses nothing when a process dies; a power cut may cost the last answers, which are then asked again.
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute("CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, answer BLOB NOT NULL) WITHOUT ROWID")

    def get(self, key: bytes) -> Answer | None:
        """The answer of that name; none where this is to be a fresh start."""
        if self._fresh:
            return None
        found = self._db.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone()
        return _DECODE(found[0]) if found else None

    def put(self, key: bytes, answer: Answer) -> None:
        """Keeps a complete answer that is new; it is on disk when this returns."""
        if not (answer.failed or answer.cached):
            self._db.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, _ENCODE(answer)))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()
