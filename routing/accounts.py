"""The books: what is spent and held of every budget, in the database, for all workers of all machines.

A worker brings one batch at a time: what its calls spent, what it gives back, what it wants. All of a batch is taken in at once and once
only; `spent + held <= most` holds before and after. The single call is not known here: that is `purse`'s business.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import chain
from typing import Any, NamedTuple

from sqlalchemy import Connection, Engine, delete, select, update

from routing.budgets import Budget, period_start
from routing.store import ACCOUNTS, ALLOTMENTS, LEASES, direct, insert_missing, locked

_MOST = 1 << 62  # what an engine that lies about its tokens can do to a column of 63 bits
_REMEMBERED_S = 86400.0  # how long an ended lease is known: its worker may have been stopped, and come back
_SHARE = 16  # a worker's reserve for calls to come is at most this part of what is left: near the limit it is nothing


BY_MODEL = "caller_model"  # the kind of a caller's account with one model; its scope is `<model>/<caller>`


class Key(NamedTuple):
    """Whose account of what: `kind` is run, caller, team, task, model or `BY_MODEL`; `every` a period."""

    kind: str
    scope: str
    unit: str
    every: str


class Part(NamedTuple):
    """What a want asks of one account: (fixed + tokens x per_token) / scale, rounded up, less what was `taken` from the worker's own."""

    key: Key
    taken: int
    fixed: int
    per_token: int
    scale: int

    def amount(self, tokens: int) -> int:
        """The whole amount, with what was taken."""
        return -(-(self.fixed + tokens * self.per_token) // self.scale)

    def affordable(self, tokens: int, left: int) -> int:
        """The most tokens up to `tokens` that `left` pays for; -1 where it does not even pay for the fixed part."""
        most = (self.taken + left) * self.scale - self.fixed
        if most < 0:
            return -1
        return min(tokens, most // self.per_token) if self.per_token else tokens


class Want(NamedTuple):
    """What a call needs: all its parts or nothing. `tokens` it would like to write, and `least` it must be able to."""

    parts: tuple[Part, ...]
    tokens: int
    least: int


class Change(NamedTuple):
    """What a worker has to say about one account. `keeps` is what it believes to hold for calls under way, should its lease be lost.

    `wish` is what it would like to hold on top, for calls to come.
    """

    key: Key
    spent: int = 0
    returned: int = 0
    keeps: int = 0
    wish: int = 0


class Batch(NamedTuple):
    """A worker's message. Numbers count up by one; `lease_s` is how long its allotments are safe without another."""

    lease: str
    number: int
    lease_s: float
    changes: tuple[Change, ...]
    wants: tuple[Want, ...]


@dataclass(slots=True)
class Standing:
    """An account while a batch is taken in. `mine` is the worker's allotment of it."""

    id: int
    key: Key
    most: int
    spent: int
    held: int
    since: int
    mine: int

    @property
    def left(self) -> int:
        """What nobody has spent or holds; below 0 where `most` was lowered."""
        return self.most - self.spent - self.held

    def take(self, number: int) -> None:
        """Moves so much into the worker's allotment, or out of it where it is negative."""
        self.held += number
        self.mine += number


class Grant(NamedTuple):
    """A want's answer: the tokens it may write; below `least` it was refused, and `short` are the accounts that had too little."""

    tokens: int
    short: tuple[Key, ...] = ()


class Outcome(NamedTuple):
    """What became of a batch. `lost`: the lease had run out, and with it all that was held; `last`: the batch taken in before this one.

    `again`: the batch had been taken in before, and nothing was changed.
    """

    standings: dict[Key, Standing]
    grants: tuple[Grant, ...]
    lost: bool
    again: bool
    last: int
    now: float


Clock = Callable[[Connection], float]


def database_clock(connection: Connection) -> float:
    """Unix seconds by the database's clock, which is the same for all workers."""
    if connection.dialect.name == "sqlite":
        return time.time()  # its workers are on its machine
    return float(direct(connection, "SELECT extract(epoch FROM clock_timestamp())").fetchone()[0])


def open_accounts(engine: Engine, budgets: Mapping[Key, int]) -> None:
    """Makes the accounts that are missing, with their limits; those that exist stay as they are.

    In a transaction of its own: rows that wait for a lock while they are new can wait in a circle.
    """
    with locked(engine) as connection:
        _open(connection, budgets)


def exchange(engine: Engine, batch: Batch, clock: Clock = database_clock) -> Outcome:
    """Takes a batch in, in one transaction; its accounts must be open. Where the database raises the batch may have been taken in."""
    with locked(engine) as connection:
        now = clock(connection)
        last, lost, again = _renew(connection, batch, now)
        standings = _standings(connection, batch, now)
        if again:
            return Outcome(standings, (Grant(-1),) * len(batch.wants), lost, again, last, now)
        for change in batch.changes:
            _settle(standings[change.key], change, lost=lost)
        grants = tuple(Grant(-1) if lost else _grant(standings, want) for want in batch.wants)  # what a want took is lost as well
        for change in batch.changes:  # calls come first, reserves for calls to come after them
            one = standings[change.key]
            one.take(max(0, min(change.wish, one.left // _SHARE)))
        _write(connection, batch.lease, standings.values())
    return Outcome(standings, grants, lost, again, last, now)


def _renew(connection: Connection, batch: Batch, now: float) -> tuple[int, bool, bool]:
    """The number of the last batch, whether the lease was lost, and whether this batch was there before."""
    found = "SELECT flushed, ended_at FROM leases WHERE id = ?"
    row = direct(connection, found + _lock(connection), (batch.lease,)).fetchone()
    last = row[0] if row else 0
    if batch.number <= last:
        return last, False, True
    if row is None:
        renew = "INSERT INTO leases (expires_at, flushed, id) VALUES (?, ?, ?)"
    else:
        renew = "UPDATE leases SET expires_at = ?, flushed = ?, ended_at = NULL WHERE id = ?"
    direct(connection, renew, (now + batch.lease_s, batch.number, batch.lease))
    return last, row is not None and row[1] is not None, False


def _standings(connection: Connection, batch: Batch, now: float) -> dict[Key, Standing]:
    """The accounts of a batch in their present period, locked in the order of their ids: two batches never wait for each other."""
    found = _locked_accounts(connection, {change.key for change in batch.changes}, batch.lease) if batch.changes else {}
    for one in found.values():
        start = period_start(one.key.every, now)
        if start > one.since:  # never back: a clock that was set back must not give a period twice
            one.since, one.spent = start, 0
    return found


def _locked_accounts(connection: Connection, keys: Set[Key], lease: str = "") -> dict[Key, Standing]:
    kinds, scopes = sorted({key.kind for key in keys}), sorted({key.scope for key in keys})
    rows = direct(connection, "SELECT a.id, a.kind, a.scope, a.unit, a.every, a.most, a.spent, a.held, a.since, coalesce(m.held, 0) "  # noqa: S608 (marks)
                  "FROM accounts a LEFT JOIN allotments m ON m.account = a.id AND m.lease = ? "
                  f"WHERE a.kind IN ({_marks(kinds)}) AND a.scope IN ({_marks(scopes)}) ORDER BY a.id{_lock(connection, ' OF a')}",
                  (lease, *kinds, *scopes))  # fmt: skip
    found = {}
    for row in rows:
        key = Key(row[1], row[2], row[3], row[4])
        if key in keys:
            found[key] = Standing(row[0], key, row[5], row[6], row[7], row[8], row[9])
    return found


def _lock(connection: Connection, of: str = "") -> str:
    return "" if connection.dialect.name == "sqlite" else f" FOR UPDATE{of}"  # SQLite's writers are alone in any case


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))


def _open(connection: Connection, budgets: Mapping[Key, int]) -> None:
    rows = [{**key._asdict(), "most": most, "spent": 0, "held": 0, "since": 0} for key, most in sorted(budgets.items())]
    insert_missing(connection, ACCOUNTS, rows)


def _settle(one: Standing, change: Change, *, lost: bool) -> None:
    """What was spent is spent, even where the lease that covered it is gone; what was held for it is held no longer."""
    one.take(-min(change.spent + change.returned, one.mine))
    one.spent = min(_MOST, one.spent + change.spent)
    if lost:
        one.take(max(0, min(change.keeps, one.left)))


def _grant(standings: dict[Key, Standing], want: Want) -> Grant:
    """All parts or nothing: the most tokens that every account affords."""
    affordable = [part.affordable(want.tokens, max(0, standings[part.key].left)) for part in want.parts]
    tokens = min(affordable, default=want.tokens)
    if tokens < want.least:
        return Grant(tokens, tuple(part.key for part, most in zip(want.parts, affordable, strict=True) if most < want.least))
    for part in want.parts:
        standings[part.key].take(max(0, part.amount(tokens) - part.taken))
    return Grant(tokens)


def _write(connection: Connection, lease: str, standings: Iterable[Standing]) -> None:
    """All rows in one statement each: a statement a row hands the interpreter's lock over a row, and the request path waits for it."""
    rows = sorted(standings, key=lambda one: one.id)
    if not rows:
        return
    accounts = [(one.id, *one.key, one.most, one.spent, one.held, one.since) for one in rows]
    names = ", ".join(column.name for column in ACCOUNTS.c)
    _upsert(connection, f"accounts ({names})", accounts, "id", ("spent", "held", "since"))
    if mine := [(lease, one.id, one.mine) for one in rows if one.mine]:
        _upsert(connection, "allotments (lease, account, held)", mine, "lease, account", ("held",))
    if nothing := [one.id for one in rows if not one.mine]:  # runs end, workers stay: what they held must not pile up
        direct(connection, f"DELETE FROM allotments WHERE lease = ? AND account IN ({_marks(nothing)})", (lease, *nothing))  # noqa: S608 (marks)


def _upsert(connection: Connection, into: str, rows: Sequence[tuple[Any, ...]], on: str, names: Sequence[str]) -> None:
    changes = ", ".join(f"{name} = excluded.{name}" for name in names)
    for start in range(0, len(rows), 500):
        some = rows[start : start + 500]
        marks = ", ".join([f"({_marks(some[0])})"] * len(some))
        direct(connection, f"INSERT INTO {into} VALUES {marks} ON CONFLICT ({on}) DO UPDATE SET {changes}",  # noqa: S608 (names of ours)
               tuple(chain.from_iterable(some)))  # fmt: skip


def sweep(engine: Engine, clock: Clock = database_clock) -> int:
    """Gives back what workers held that did not renew their leases in time: they were killed, or stopped for too long. Returns how many."""
    with locked(engine) as connection:
        now = clock(connection)
        late = select(LEASES.c.id).where(LEASES.c.expires_at < now, LEASES.c.ended_at.is_(None)).with_for_update(skip_locked=True)
        connection.execute(delete(LEASES).where(LEASES.c.ended_at < now - _REMEMBERED_S))
        return _end(connection, connection.execute(late).scalars().all(), now)


def end_lease(engine: Engine, lease: str, clock: Clock = database_clock) -> None:
    """A worker stops: all that it holds is given back at once."""
    with locked(engine) as connection:
        mine = select(LEASES.c.id).where(LEASES.c.id == lease).with_for_update()
        _end(connection, connection.execute(mine).scalars().all(), clock(connection))


def _end(connection: Connection, leases: Sequence[str], now: float) -> int:
    if leases:
        theirs = ALLOTMENTS.c.lease.in_(leases)
        accounts = connection.execute(select(ALLOTMENTS.c.account).where(theirs)).scalars().all()
        connection.execute(select(ACCOUNTS.c.id).where(ACCOUNTS.c.id.in_(accounts)).order_by(ACCOUNTS.c.id).with_for_update())
        for row in connection.execute(select(ALLOTMENTS.c.account, ALLOTMENTS.c.held).where(theirs).order_by(ALLOTMENTS.c.account)):
            connection.execute(update(ACCOUNTS).where(ACCOUNTS.c.id == row.account).values(held=ACCOUNTS.c.held - row.held))
        connection.execute(delete(ALLOTMENTS).where(theirs))
        connection.execute(update(LEASES).where(LEASES.c.id.in_(leases)).values(ended_at=now))
    return len(leases)


def set_budgets(connection: Connection, kind: str, scope: str, budgets: Iterable[Budget]) -> None:
    """Makes these the limits of a scope; what was spent stays spent. To be called where the scope's own row is written."""
    most = {Key(kind, scope, budget.unit, budget.every): budget.most for budget in budgets}
    if most:
        _open(connection, most)
        for one in _locked_accounts(connection, most.keys()).values():
            connection.execute(update(ACCOUNTS).where(ACCOUNTS.c.id == one.id).values(most=most[one.key]))


def declare(engine: Engine, kind: str, budgets: Mapping[str, Iterable[Budget]]) -> None:
    """Makes these the limits of scopes that a file names, as `routes.yaml` does tasks. Every worker does it when it reads the file."""
    for scope, some in sorted(budgets.items()):
        with locked(engine) as connection:
            set_budgets(connection, kind, scope, some)


def change(engine: Engine, kind: str, budgets: Mapping[str, Iterable[Budget]]) -> None:
    """Gives all accounts that there are below these scopes, as in `<scope>/...`, these limits; those to come are opened with them."""
    for scope, some in sorted(budgets.items()):
        for budget in some:
            other = (ACCOUNTS.c.kind == kind, ACCOUNTS.c.scope.startswith(f"{scope}/", autoescape=True), ACCOUNTS.c.unit == budget.unit,
                     ACCOUNTS.c.every == budget.every, ACCOUNTS.c.most != budget.most)  # fmt: skip
            with locked(engine) as connection:
                connection.execute(select(ACCOUNTS.c.id).where(*other).order_by(ACCOUNTS.c.id).with_for_update())  # as batches lock them
                connection.execute(update(ACCOUNTS).where(*other).values(most=budget.most))


class Spending(NamedTuple):
    """One account as it stands, for people: what is spent in the present period and what is held by calls under way."""

    key: Key
    most: int
    spent: int
    held: int


def spending(connection: Connection, kind: str, scopes: Iterable[str], clock: Clock = database_clock) -> list[Spending]:
    """The accounts of these scopes."""
    now = clock(connection)
    rows = connection.execute(select(ACCOUNTS).where(ACCOUNTS.c.kind == kind, ACCOUNTS.c.scope.in_(list(scopes))).order_by(ACCOUNTS.c.id))
    return [Spending(Key(row.kind, row.scope, row.unit, row.every), row.most, row.spent if row.since >= period_start(row.every, now) else 0,
                     row.held) for row in rows]  # fmt: skip
