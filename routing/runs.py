"""Runs: a tree of calls with limits of its own, that its caller made and anybody above may stop.

A call of a run is reserved from the run and from every run above it. What loops is found elsewhere; here it is stopped.
"""

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import Connection, Engine, func, insert, select, update

from routing.accounts import Spending, set_budgets, spending
from routing.budgets import NANOUSD, Budget
from routing.errors import BadRequest, NotFound, RunStopped
from routing.store import RUNS, SECRETS, changing, direct, insert_missing, locked

DEPTH = 8  # generations below a run that names no limit; every one of them adds accounts to each call
FANOUT = 100
_MOST = 1 << 60
_UNITS = {"usd": "nanousd", "tokens": "tokens", "calls": "calls", "gpu_ms": "gpu_ms"}


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a run and all below it may use together. `depth` is how many generations may come below it, `fanout` how many children."""

    usd: Decimal | None = None
    tokens: int | None = None
    calls: int | None = None
    gpu_ms: int | None = None
    seconds: float | None = None
    depth: int | None = None
    fanout: int | None = None

    def budgets(self) -> tuple[Budget, ...]:
        """Money, tokens and calls are counted for every run, limited or not, so that it can be told what was spent."""
        usd = None if self.usd is None else int(self.usd * NANOUSD)
        given = {"nanousd": usd, "tokens": self.tokens, "calls": self.calls, "gpu_ms": self.gpu_ms}
        return tuple(Budget(unit, "total", _MOST if most is None else most) for unit, most in given.items()
                     if most is not None or unit != "gpu_ms")  # fmt: skip


class NewRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of `POST /v1/runs`; all of it may be left out."""

    limits: Limits = Limits()
    parent: str | None = None


class Stored(NamedTuple):
    """A run as the database has it."""

    id: str
    parent: str
    caller: str
    state: str
    reason: str
    stopped_by: str
    limits: str
    created_at: float
    deadline: float | None
    depth: int
    fanout: int
    data_class: str = ""
    raised: int = 0
    ended_at: float | None = None


def read_new_run(body: bytes) -> NewRun:
    """Reads the body of `POST /v1/runs`. Raises `BadRequest`."""
    try:
        asked = msgspec.json.decode(body or b"{}", type=NewRun)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest(f"this is no run: {error}; a run is {{}} or has `limits` (usd, tokens, calls, gpu_ms, seconds, depth, fanout) "
                         "and `parent`") from error  # fmt: skip
    check(asked.limits)
    return asked


def check(limits: Limits) -> None:
    """Raises `BadRequest` where a limit is none."""
    for name, most in msgspec.structs.asdict(limits).items():
        if most is not None and not 0 <= most <= 10**9 * (10**6 if name in ("tokens", "gpu_ms") else 1):
            raise BadRequest(f"`limits.{name}` is {most}; it must be a number from 0 to a thousand million", param=f"limits.{name}")


class Signer:
    """Makes and checks the ids that callers have. A signature holds for one run and one caller: to others the id is worth nothing."""

    def __init__(self, engine: Engine) -> None:
        with locked(engine) as connection:
            insert_missing(connection, SECRETS, [{"name": "runs", "value": secrets.token_hex(32)}])
            self._secret = bytes.fromhex(connection.execute(select(SECRETS.c.value).where(SECRETS.c.name == "runs")).scalar_one())

    def sign(self, run_id: str, caller: str) -> str:
        """The id with its signature."""
        return f"{run_id}.{hmac.new(self._secret, f'{run_id}.{caller}'.encode(), hashlib.sha256).hexdigest()[:32]}"

    def open(self, given: str, caller: str) -> str:
        """The id of a signed one. Raises `NotFound` where it is not signed for this caller; says no more than that."""
        run_id = given.partition(".")[0]
        if not hmac.compare_digest(self.sign(run_id, caller).encode(), given.encode(errors="replace")):
            raise unknown(given)
        return run_id


def unknown(given: str) -> NotFound:
    """The refusal for a run that is not there, or not this caller's."""
    shown = ascii(given[:60])[1:-1]
    return NotFound(f"no run `{shown}` of this caller; POST /v1/runs makes one and answers with its id", code="run_not_found")


def create_run(engine: Engine, caller: str, asked: NewRun, parent: str | None) -> Stored:
    """Makes a run, below `parent` (an id without signature) or on its own. Raises `RunStopped` where a limit above says no."""
    limits = asked.limits
    now = time.time()
    deadline = None if limits.seconds is None else now + limits.seconds
    depth, fanout = (DEPTH if limits.depth is None else limits.depth), (FANOUT if limits.fanout is None else limits.fanout)
    with locked(engine) as connection:
        if parent:
            above = _locked(connection, parent)
            _may_have_child(connection, above, now)
            depth, fanout = min(depth, above.depth - 1), min(fanout, above.fanout)
            deadline = min((at for at in (deadline, above.deadline) if at is not None), default=None)
        run = Stored(f"run_{secrets.token_hex(12)}", parent or "", caller, "open", "", "", _text(limits), now, deadline, depth, fanout)
        connection.execute(insert(RUNS).values(run._asdict()))
        set_budgets(connection, "run", run.id, limits.budgets())
    return run


def _locked(connection: Connection, run_id: str) -> Stored:
    row = connection.execute(select(RUNS).where(RUNS.c.id == run_id).with_for_update()).one_or_none()
    if row is None:
        raise unknown(run_id)
    return Stored(*row)


def _may_have_child(connection: Connection, above: Stored, now: float) -> None:
    refuse_stopped(above, now)
    if above.depth < 1:
        raise RunStopped(f"{above.id} may have no runs below it: `limits.depth` here or above is used up; go on in the run itself",
                         code="run_too_deep")  # fmt: skip
    children = connection.execute(select(func.count()).where(RUNS.c.parent == above.id)).scalar_one()
    if children >= above.fanout:
        raise RunStopped(f"{above.id} has {children} runs below it, and `limits.fanout` allows {above.fanout}; use those",
                         code="run_too_wide")  # fmt: skip


def refuse_stopped(run: Stored, now: float) -> None:
    """Raises `RunStopped` for a run that was stopped or has had its time."""
    if run.state != "open":
        raise RunStopped(f"{run.id} was stopped: {run.reason}; a person can raise its limits (`inhouse runs raise {run.id}`)")
    if run.deadline is not None and now > run.deadline:
        raise RunStopped(f"{run.id} has had its time (`limits.seconds`); a person can raise it (`inhouse runs raise {run.id}`)",
                         code="run_deadline")  # fmt: skip


def stop_run(engine: Engine, run_id: str, reason: str) -> list[str]:
    """Stops a run and all below it; the ids of those that were open. Workers see it with their next look. Raises `NotFound`."""
    with changing(engine, "runs") as connection:
        _locked(connection, run_id)
        stopped: list[str] = []
        for generation in generations(connection, run_id):
            still = RUNS.c.id.in_(generation), RUNS.c.state == "open"
            stopped += connection.execute(select(RUNS.c.id).where(*still)).scalars().all()
            connection.execute(update(RUNS).where(*still).values(state="stopped", reason=reason[:200], stopped_by=run_id,
                                                                   ended_at=time.time()))  # fmt: skip
    return stopped


def generations(connection: Connection, run_id: str) -> Iterator[list[str]]:
    """The run, its children, theirs, and so on. Each is read after the one above was dealt with, so that no new child slips through."""
    generation = [run_id]
    while generation:
        yield generation
        generation = list(connection.execute(select(RUNS.c.id).where(RUNS.c.parent.in_(generation))).scalars())


def raise_run(engine: Engine, run_id: str, limits: Limits) -> Stored:
    """Gives a run new limits, those that are named, and opens it and what was stopped with it again. For people, not for callers.

    Raises `NotFound`, and `RunStopped` where a run above it is stopped: that one is to be raised first.
    """
    check(limits)
    with changing(engine, "runs") as connection:
        run = _locked(connection, run_id)
        if run.parent and (above := _locked(connection, run.parent)).state != "open":
            raise RunStopped(f"{above.id} above it is stopped; raise that one: `inhouse runs raise {above.stopped_by}`")
        merged = msgspec.structs.replace(_limits(run), **{k: v for k, v in msgspec.structs.asdict(limits).items() if v is not None})
        changes: dict[str, Any] = {"limits": _text(merged), "raised": RUNS.c.raised + 1}
        if limits.seconds is not None:
            changes["deadline"] = time.time() + limits.seconds
        changes |= {name: most for name in ("depth", "fanout") if (most := getattr(limits, name)) is not None}
        connection.execute(update(RUNS).where(RUNS.c.id == run_id).values(changes))
        connection.execute(update(RUNS).where(RUNS.c.stopped_by == run_id).values(state="open", reason="", stopped_by="", ended_at=None))
        set_budgets(connection, "run", run_id, merged.budgets())
        return Stored(*connection.execute(select(RUNS).where(RUNS.c.id == run_id)).one())


def raise_class(engine: Engine, run_id: str, higher: Callable[[str], str]) -> None:
    """Makes the data class of a run without parent what `higher` makes of it. When this returns every worker's next look sees it."""
    with changing(engine, "runs") as connection:
        run = _locked(connection, run_id)
        connection.execute(update(RUNS).where(RUNS.c.id == run_id).values(data_class=higher(run.data_class)))


def lineage(connection: Connection, run_id: str) -> list[Stored]:
    """The run, the one above it, and so on to the top. Empty where there is no such run."""
    found: list[Stored] = []
    while run_id and (row := connection.execute(select(RUNS).where(RUNS.c.id == run_id)).one_or_none()) is not None:
        found.append(Stored(*row))
        run_id = row.parent
    return found


def tree(engine: Engine, run_id: str) -> list[tuple[Stored, list[Spending]]]:
    """A run and all below it, each with its accounts as they stand, parents before children."""
    with engine.connect() as connection:
        rows = [Stored(*row) for ids in generations(connection, run_id) for row in
                connection.execute(select(RUNS).where(RUNS.c.id.in_(ids)).order_by(RUNS.c.created_at))]  # fmt: skip
        books = spending(connection, "run", [run.id for run in rows])
    return [(run, [one for one in books if one.key.scope == run.id]) for run in rows]


def changes_of(engine: Engine) -> int:
    """A number that grows whenever a run is stopped or raised, or its data class is."""
    with engine.connect() as connection:
        row = direct(connection, "SELECT version FROM versions WHERE name = 'runs'").fetchone()
    return int(row[0]) if row else 0


def runs_of(engine: Engine, *, caller: str | None = None, open_only: bool = False) -> list[Stored]:
    """Runs, newest first, at most a thousand."""
    asked = select(RUNS).order_by(RUNS.c.created_at.desc()).limit(1000)
    asked = asked.where(RUNS.c.caller == caller) if caller else asked
    with engine.connect() as connection:
        return [Stored(*row) for row in connection.execute(asked.where(RUNS.c.state == "open") if open_only else asked)]


def document(run: Stored, books: list[Spending], public_id: str) -> dict[str, Any]:
    """A run as `POST /v1/runs` and `GET` answer it. What a run spent includes what those below it did."""
    of = {one.key.unit: one for one in books}
    shown = [(name, of[unit]) for name, unit in _UNITS.items() if unit in of]
    state = "expired" if run.state == "open" and run.deadline is not None and time.time() > run.deadline else run.state
    return {"id": public_id, "object": "run", "state": state, "reason": run.reason, "created_at": run.created_at, "deadline": run.deadline,
            "limits": json.loads(run.limits), "spent": {name: _number(name, one.spent) for name, one in shown},
            "held": {name: _number(name, one.held) for name, one in shown}}  # fmt: skip


def _number(name: str, number: int) -> int | float:
    return number / NANOUSD if name == "usd" else number


def _text(limits: Limits) -> str:
    given: Mapping[str, Any] = {name: most for name, most in msgspec.structs.asdict(limits).items() if most is not None}
    return json.dumps({name: float(most) if name == "usd" else most for name, most in given.items()})


def budgets_of_run(run: Stored) -> tuple[Budget, ...]:
    """What is counted for a run."""
    return _limits(run).budgets()


def _limits(run: Stored) -> Limits:
    return msgspec.json.decode(run.limits, type=Limits)
