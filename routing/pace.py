"""How fast runs spend, against the task's own history: a run that costs a hundred times the usual shows here, whatever it says.

Asks the ledger, so it belongs into a background task of a worker, not on the request path.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sqlalchemy import BigInteger, Engine, Float, cast, func, select

from routing.loops import Finding
from routing.store import LEDGER

_FEWEST_RUNS = 20  # with fewer, a 99th percentile is the dearest run and no more
_WARN, _STOP = 3, 10  # times the 99th percentile
_C = LEDGER.c


class Pace(NamedTuple):
    """How fast runs of a task spend, in nano-USD a minute: the median and the 99th percentile of so many runs."""

    runs: int
    median: float
    p99: float


def paces(engine: Engine, since: float) -> dict[str, Pace]:
    """The pace of each task's runs of at least two calls since then (Unix seconds)."""
    span_s = func.max(_C.at) - func.min(_C.at)
    query = (
        select(_C.task, cast(func.sum(_C.cost_nanousd), Float), cast(span_s, Float))
        .where(_C.at >= since, _C.run_id != "", _C.attempt > 0)
        .group_by(_C.task, _C.run_id)
        .having(func.count() > 1)
    )
    found: dict[str, list[float]] = {}
    with engine.connect() as connection:
        for task, cost, seconds in connection.execute(query):
            found.setdefault(task, []).append(per_minute(cost, seconds))
    return {task: pace_of(those) for task, those in found.items()}


def hasty_runs(engine: Engine, known: Mapping[str, Pace], since: float) -> dict[str, Finding]:
    """The runs with calls since then that spend far faster than others of their task, by id."""
    recent = select(_C.run_id).where(_C.at >= since, _C.run_id != "").distinct()
    query = (
        select(_C.run_id, _C.task, cast(func.sum(_C.cost_nanousd), BigInteger), cast(func.max(_C.at) - func.min(_C.at), Float))
        .where(_C.run_id.in_(recent))
        .group_by(_C.run_id, _C.task)
    )
    with engine.connect() as connection:
        found = ((run_id, spend_velocity(known.get(task), cost, span_s)) for run_id, task, cost, span_s in connection.execute(query))
        return {run_id: finding for run_id, finding in found if finding is not None}


def pace_of(per_minute: Sequence[float]) -> Pace:
    """The pace of runs that each spent so much a minute; at least one."""
    ordered = sorted(per_minute)
    return Pace(len(ordered), ordered[len(ordered) // 2], ordered[(len(ordered) - 1) * 99 // 100])


def per_minute(cost_nanousd: float, span_s: float) -> float:
    """Spending over a span as nano-USD a minute; a span under a minute counts as one: two calls at once are no speed."""
    return cost_nanousd * 60 / max(span_s, 60.0)


def spend_velocity(pace: Pace | None, cost_nanousd: int, span_s: float) -> Finding | None:
    """Whether a run that has spent so much in its time is far over the pace of its task's runs. Little history finds nothing."""
    if pace is None or pace.runs < _FEWEST_RUNS or pace.p99 <= 0:
        return None
    times = per_minute(cost_nanousd, span_s) / pace.p99
    if times < _WARN:
        return None
    detail = f"the run spends {times:.1f} times as fast as 99 of 100 runs of its task"
    return Finding("spend_velocity", detail, "stop" if times >= _STOP else "warn")
