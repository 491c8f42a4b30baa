"""Who calls: keys are made, listed and revoked here, and known by their hash alone. The key itself is shown once and never stored."""

import hashlib
import json
import secrets
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from sqlalchemy import Engine, func, insert, select, text, update

from routing.errors import Unauthorized
from routing.store import KEYS

_PREFIX = "ihk_"
_ID_CHARS = len(_PREFIX) + 8
_LOOKS_A_SECOND = 50.0
_STATE = select(func.count(), func.count(KEYS.c.revoked_at), func.total(KEYS.c.expires_at)).select_from(KEYS)
_NOBODY = "send `Authorization: Bearer <key>`; `inhouse keys create NAME` makes one"


class Caller(NamedTuple):
    """Somebody who may ask. `tasks` and `models` are what the key opens; `*` is all of them."""

    key_id: str
    name: str
    tasks: frozenset[str]
    models: frozenset[str]
    expires_at: float

    def may_use_task(self, task: str) -> bool:
        """Whether the key opens this task."""
        return "*" in self.tasks or task in self.tasks

    def may_use_model(self, model: str) -> bool:
        """Whether the key opens this model by its own name."""
        return "*" in self.models or model in self.models


def create(
    engine: Engine, caller: str, *, tasks: Iterable[str] = ("*",), models: Iterable[str] = ("*",), lifetime_s: float | None = None
) -> str:
    """Makes a key and returns it: the only time that it can be seen."""
    key = _PREFIX + secrets.token_urlsafe(32)
    now = time.time()
    row = {"id": key[:_ID_CHARS], "hash": hashlib.sha256(key.encode()).hexdigest(), "caller": caller, "tasks": json.dumps(sorted(tasks)),
           "models": json.dumps(sorted(models)), "created_at": now, "expires_at": now + lifetime_s if lifetime_s else None}  # fmt: skip
    with engine.begin() as connection:
        connection.execute(insert(KEYS).values(row))
    return key


def listed(engine: Engine) -> list[dict[str, Any]]:
    """All keys, without their hashes, oldest first."""
    with engine.connect() as connection:
        rows = connection.execute(select(KEYS).order_by(KEYS.c.created_at)).mappings().all()
    shown = [{name: value for name, value in row.items() if name != "hash"} for row in rows]
    return [{**row, "tasks": json.loads(row["tasks"]), "models": json.loads(row["models"])} for row in shown]


def revoke(engine: Engine, key_id: str) -> bool:
    """Ends a key, named by its id (its first characters). False where there is no such key in force."""
    with engine.begin() as connection:
        done = connection.execute(update(KEYS).where(KEYS.c.id == key_id, KEYS.c.revoked_at.is_(None)).values(revoked_at=time.time()))
    return done.rowcount == 1


class KeyRing:
    """The keys in force, as one worker knows them. `refresh` asks the database whether anything changed, which costs microseconds."""

    def __init__(self, engine: Engine) -> None:
        self._connection = engine.connect()
        self._callers: dict[bytes, Caller] = {}
        self._version: int | None = None
        self._state: Any = None
        self._asked_at = 0.0
        self._looks = 0.0
        self.refresh()

    def refresh(self) -> None:
        """Takes in what other processes have written. Call it every second."""
        version = self._connection.execute(text("PRAGMA data_version")).scalar_one()
        self._connection.rollback()
        if version == self._version:
            return
        state = self._connection.execute(_STATE).one()  # the ledger is in the same file: most writes are not about keys
        self._version = version
        if state == self._state:
            self._connection.rollback()
            return
        rows = self._connection.execute(select(KEYS).where(KEYS.c.revoked_at.is_(None))).mappings().all()
        self._connection.rollback()
        self._callers = {bytes.fromhex(row["hash"]): _caller(row) for row in rows}
        self._state = state

    def _may_look(self) -> bool:
        """Whether an unknown key is worth a look: strangers get 50 a second, at 20 us each, and must not keep new keys waiting."""
        now = time.monotonic()
        self._looks = min(_LOOKS_A_SECOND, self._looks + (now - self._asked_at) * _LOOKS_A_SECOND)
        self._asked_at = now
        if self._looks < 1:
            return False
        self._looks -= 1
        return True

    def identify(self, key: bytes) -> Caller:
        """Whose key this is. Raises `Unauthorized`; says no more about why than a caller may know."""
        if not key:
            raise Unauthorized(f"no API key: {_NOBODY}")
        digest = hashlib.sha256(key).digest()
        caller = self._callers.get(digest)
        if caller is None and self._may_look():  # a key made this second?
            self.refresh()
            caller = self._callers.get(digest)
        if caller is None:
            raise Unauthorized(f"this API key is not known, or was revoked: {_NOBODY}")
        if caller.expires_at < time.time():
            raise Unauthorized(f"this API key has expired: {_NOBODY}")
        return caller


def _caller(row: Any) -> Caller:
    return Caller(row["id"], row["caller"], frozenset(json.loads(row["tasks"])), frozenset(json.loads(row["models"])),
                  row["expires_at"] or float("inf"))  # fmt: skip
