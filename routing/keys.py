"""Who calls: keys are made, listed, rotated and revoked here, and known by their hash alone. The key itself is shown once, never stored.

What belongs to the caller (team, data classes, limits) is the same on all of its keys.
"""

import asyncio
import hashlib
import json
import math
import secrets
import threading
import time
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, func, insert, select, update
from sqlalchemy.exc import SQLAlchemyError

from routing.accounts import set_budgets
from routing.budgets import Budget, budgets_of
from routing.errors import Unauthorized
from routing.store import KEYS, TEAMS, VERSIONS, changing

_PREFIX = "ihk_"
_ID_CHARS = len(_PREFIX) + 8
_LOOKS_A_SECOND = 50.0
_CHANGES = select(VERSIONS.c.version).where(VERSIONS.c.name == "keys").scalar_subquery()
_STATE = select(_CHANGES, func.count(), func.count(KEYS.c.revoked_at), func.sum(KEYS.c.expires_at)).select_from(KEYS)
_NOBODY = "send `Authorization: Bearer <key>`; `inhouse keys create NAME` makes one"


class Caller(NamedTuple):
    """Somebody who may ask. `tasks` and `models` are what the key opens; `*` is all of them."""

    key_id: str
    name: str
    tasks: frozenset[str]
    models: frozenset[str]
    expires_at: float
    team: str = ""
    default_class: str = ""
    max_class: str = ""
    limits: tuple[Budget, ...] = ()
    team_limits: tuple[Budget, ...] = ()
    is_batch: bool = False  # served after interactive callers

    def may_use_task(self, task: str) -> bool:
        """Whether the key opens this task."""
        return "*" in self.tasks or task in self.tasks

    def may_use_model(self, model: str) -> bool:
        """Whether the key opens this model by its own name."""
        return "*" in self.models or model in self.models


class Allowed(NamedTuple):
    """What belongs to a caller, whichever of its keys it shows: None leaves it as it is."""

    team: str | None = None
    default_class: str | None = None
    max_class: str | None = None
    limits: tuple[Budget, ...] | None = None


def create(
    engine: Engine, caller: str, *, tasks: Iterable[str] = ("*",), models: Iterable[str] = ("*",), lifetime_s: float | None = None,
    is_batch: bool = False, allowed: Allowed = Allowed(),  # noqa: B008 (frozen)
) -> str:  # fmt: skip
    """Makes a key and returns it: the only time that it can be seen. Raises `LookupError` where the team is not there.

    A caller that has keys keeps team, classes and limits, but for what `allowed` says, which then counts for all of its keys.
    """
    now = time.time()
    row = {"caller": caller, "tasks": json.dumps(sorted(tasks)), "models": json.dumps(sorted(models)),
           "expires_at": now + lifetime_s if lifetime_s else None, "batch": int(is_batch)}  # fmt: skip
    with changing(engine, "keys") as connection:
        known = connection.execute(select(KEYS).where(KEYS.c.caller == caller).order_by(KEYS.c.created_at.desc())).mappings().first()
        kept = {name: known[name] for name in ("team", "default_class", "max_class", "limits")} if known else {}
        key = _insert(connection, {**row, **kept}, now)
        allow(connection, caller, allowed)
    return key


def allow(connection: Connection, caller: str, allowed: Allowed) -> None:
    """Gives a caller, by all its keys, what `allowed` says. What it has spent stays spent. Raises `LookupError` for an unknown team."""
    changes: dict[str, Any] = {name: value for name, value in allowed._asdict().items() if value is not None}
    if allowed.team and connection.execute(select(TEAMS.c.name).where(TEAMS.c.name == allowed.team)).first() is None:
        raise LookupError(f"no team `{allowed.team}`; `inhouse teams list` shows them, `inhouse teams create` makes one")
    if allowed.limits is not None:
        changes["limits"] = json.dumps([str(limit) for limit in allowed.limits])
        set_budgets(connection, "caller", caller, allowed.limits)
    if changes:
        connection.execute(update(KEYS).where(KEYS.c.caller == caller).values(changes))


def rotate(engine: Engine, key_id: str, *, overlap_s: float = 0.0) -> str | None:
    """A new key that opens what the old one did; the old one ends in `overlap_s`. None where there is no such key in force."""
    now = time.time()
    with changing(engine, "keys") as connection:
        old = connection.execute(select(KEYS).where(KEYS.c.id == key_id, KEYS.c.revoked_at.is_(None))).mappings().one_or_none()
        if old is None:
            return None
        end = {"expires_at": min(now + overlap_s, old["expires_at"] or math.inf)} if overlap_s else {"revoked_at": now}
        connection.execute(update(KEYS).where(KEYS.c.id == key_id).values(end))
        return _insert(connection, dict(old), now)


def _insert(connection: Connection, row: dict[str, Any], now: float) -> str:
    key = _PREFIX + secrets.token_urlsafe(32)
    own = {"id": key[:_ID_CHARS], "hash": hashlib.sha256(key.encode()).hexdigest(), "created_at": now}
    connection.execute(insert(KEYS).values({**row, **own}))
    return key


def listed(engine: Engine) -> list[dict[str, Any]]:
    """All keys, without their hashes, oldest first."""
    with engine.connect() as connection:
        rows = connection.execute(select(KEYS).order_by(KEYS.c.created_at)).mappings().all()
    shown = [{name: value for name, value in row.items() if name != "hash"} for row in rows]
    return [{**row, **{name: json.loads(row[name]) for name in ("tasks", "models", "limits")}, "batch": bool(row["batch"])}
            for row in shown]  # fmt: skip


def revoke(engine: Engine, key_id: str) -> bool:
    """Ends a key, named by its id (its first characters). False where there is no such key in force."""
    with changing(engine, "keys") as connection:
        done = connection.execute(update(KEYS).where(KEYS.c.id == key_id, KEYS.c.revoked_at.is_(None)).values(revoked_at=time.time()))
    return done.rowcount == 1


class KeyRing:
    """The keys in force, as one worker knows them. `refresh` asks the database whether anything changed, which costs microseconds."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._connection = engine.connect() if engine.dialect.name == "sqlite" else None  # `data_version` counts for one connection
        self._lock = threading.Lock()
        self._callers: dict[bytes, Caller] = {}
        self._revoked: dict[bytes, tuple[str, str]] = {}  # their ids and callers, for the audit log
        self._teams: dict[str, tuple[Budget, ...]] = {}
        self._version: int | None = None
        self._state: Any = None
        self._asked_at = 0.0
        self._looks = 0.0
        self.refresh()

    def refresh(self) -> None:
        """Takes in what other processes have written. Call it every second, in a thread: a database on another machine may be slow."""
        with self._lock:
            if self._connection is None:
                with self._engine.connect() as connection:
                    self._read(connection)
                return
            version = self._connection.exec_driver_sql("PRAGMA data_version").scalar_one()
            if version != self._version:  # the ledger is in the same file: most writes are not about keys
                self._read(self._connection)
                self._version = version
            self._connection.rollback()

    def _read(self, connection: Connection) -> None:
        state = connection.execute(_STATE).one()
        if state == self._state:
            return
        teams = {row.name: _budgets(row.limits) for row in connection.execute(select(TEAMS))}
        rows = connection.execute(select(KEYS)).mappings().all()
        self._callers = {bytes.fromhex(row["hash"]): _caller(row, teams) for row in rows if row["revoked_at"] is None}
        self._revoked = {bytes.fromhex(row["hash"]): (row["id"], row["caller"]) for row in rows if row["revoked_at"] is not None}
        self._teams = teams
        self._state = state

    def team_limits(self, team: str) -> tuple[Budget, ...]:
        """What all callers of a team together may use; nothing of a team that is not there."""
        return self._teams.get(team, ())

    def _may_look(self) -> bool:
        """Whether an unknown key is worth a look: strangers get 50 a second, at 20 us each, and must not keep new keys waiting."""
        now = time.monotonic()
        self._looks = min(_LOOKS_A_SECOND, self._looks + (now - self._asked_at) * _LOOKS_A_SECOND)
        self._asked_at = now
        if self._looks < 1:
            return False
        self._looks -= 1
        return True

    async def look_again(self) -> bool:
        """Takes in what was written a moment ago, for a key that is not known. False where that was done already, or strangers ask too
        often, or the database does not answer."""
        if self._connection is not None or not self._may_look():
            return False
        try:
            await asyncio.to_thread(self.refresh)
        except SQLAlchemyError:
            return False
        return True

    def identify(self, key: bytes) -> Caller:
        """Whose key this is. Raises `Unauthorized`; says no more about why than a caller may know."""
        if not key:
            raise _nobody("no API key", "no key")
        digest = hashlib.sha256(key).digest()
        caller = self._callers.get(digest)
        if caller is None and self._connection is not None and self._may_look():  # a key made this second?
            self.refresh()
            caller = self._callers.get(digest)
        if caller is None:
            said, who = "this API key is not known, or was revoked", self._revoked.get(digest)
            raise _nobody(said, "unknown key") if who is None else _nobody(said, f"revoked key {who[0]}", who[1])
        if caller.expires_at < time.time():
            raise _nobody("this API key has expired", f"expired key {caller.key_id}", caller.name)
        return caller


def _nobody(said: str, cause: str, who: str = "") -> Unauthorized:
    error = Unauthorized(f"{said}: {_NOBODY}")
    error.cause, error.who = cause, who
    return error


def _caller(row: Any, teams: Mapping[str, tuple[Budget, ...]]) -> Caller:
    return Caller(row["id"], row["caller"], frozenset(json.loads(row["tasks"])), frozenset(json.loads(row["models"])),
                  row["expires_at"] or math.inf, row["team"], row["default_class"], row["max_class"], _budgets(row["limits"]),
                  teams.get(row["team"], ()), bool(row["batch"]))  # fmt: skip


def _budgets(text: str) -> tuple[Budget, ...]:
    return budgets_of(json.loads(text))
