"""What was asked and what it cost, summed over the ledger by whatever a reader wants to see side by side. SQLite and PostgreSQL alike."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Engine, Integer, case, cast, func, literal_column, select
from sqlalchemy.sql.elements import ColumnElement

from routing.store import LEDGER

_DAY_S = 86400
_C = LEDGER.c
GROUPS: dict[str, ColumnElement[Any]] = {
    "team": _C.team,
    "caller": _C.caller,
    "task": _C.task,
    "model": _C.model,
    "run": _C.run_id,
    "zone": _C.zone,
    "class": _C.data_class,
    "day": cast(func.floor(_C.at / literal_column(str(_DAY_S))), Integer),  # since 1970, in UTC; told as a date
}


class Usage(NamedTuple):
    """One line: what it is grouped by, and the sums. A request that took three attempts is one request and three attempts."""

    group: tuple[str, ...]
    requests: int
    attempts: int
    refused: int  # by the router, before any model was asked
    failed: int  # attempts that ended without an answer, callers who left included
    prompt_tokens: int
    completion_tokens: int
    estimated: int  # attempts whose tokens were counted by us, as the engine did not say
    cost_nanousd: int
    gpu_ms: int


def usage(engine: Engine, by: Sequence[str], *, since: float = 0.0, until: float = float("inf")) -> list[Usage]:
    """Sums of the requests that arrived in that span (Unix seconds, `until` not included), dearest first; by day, oldest first."""
    groups = [GROUPS[name] for name in by]
    query = (
        select(*groups, *_sums())
        .where(_C.at >= since, _C.at < (until if until < float("inf") else time.time() + _DAY_S))
        .group_by(*groups)
    )
    with engine.connect() as connection:
        rows = connection.execute(query).all()
    lines = [Usage(tuple(_told(name, value) for name, value in zip(by, row, strict=False)), *map(int, row[len(by) :])) for row in rows]
    return sorted(lines, key=lambda line: line.group if "day" in by else (-line.cost_nanousd, -line.prompt_tokens, line.group))


def _sums() -> list[ColumnElement[Any]]:
    asked = _C.attempt > 0
    return [
        _count(_C.attempt <= 1),
        _count(asked),
        _count(_C.attempt == 0),
        _count(asked & (_C.status >= 400)),
        func.coalesce(func.sum(_C.prompt_tokens), 0),
        func.coalesce(func.sum(_C.completion_tokens), 0),
        _count(asked & (_C.exact == 0)),
        func.coalesce(func.sum(_C.cost_nanousd), 0),
        func.coalesce(func.sum(_C.gpu_ms), 0),
    ]


def _count(which: ColumnElement[bool]) -> ColumnElement[Any]:
    return func.coalesce(func.sum(case((which, 1), else_=0)), 0)


def _told(name: str, value: Any) -> str:
    if name != "day":
        return str(value)
    return time.strftime("%Y-%m-%d", time.gmtime(int(value) * _DAY_S))


def as_records(by: Sequence[str], lines: Sequence[Usage]) -> list[dict[str, Any]]:
    """The lines as flat records, for JSON, CSV and parquet: money in nano-USD, a whole number, so that sums stay exact."""
    return [{**dict(zip(by, line.group, strict=True)), **{k: v for k, v in line._asdict().items() if k != "group"}} for line in lines]


def write_parquet(path: Path, by: Sequence[str], lines: Sequence[Usage]) -> None:
    """The same as a parquet file: groups as strings, sums as 64-bit integers, also where there are no lines."""
    import pyarrow
    import pyarrow.parquet

    numbers = [name for name in Usage._fields if name != "group"]
    schema = pyarrow.schema([*((name, pyarrow.string()) for name in by), *((name, pyarrow.int64()) for name in numbers)])
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(as_records(by, lines), schema=schema), path)
