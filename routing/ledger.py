"""One row for every attempt, written off the request path: a request appends to a list, a thread commits it every 50 ms.

Nothing is lost when the worker is asked to stop; a crash loses at most what the last 50 ms brought. Prompts and answers are never in it.
"""

import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain

import msgspec
from msgspec.structs import astuple
from sqlalchemy import Engine
from sqlalchemy.exc import DataError, SQLAlchemyError

from routing.store import direct

log = logging.getLogger("inhouse.ledger")
_EVERY_S = 0.05
_HELD_ROWS = 100_000  # about 40 MB: what is kept while the disk refuses, before the oldest rows are given up


class Row(msgspec.Struct, frozen=True, gc=False):
    """One attempt; the columns of the ledger in their order."""

    at: float
    request_id: str
    attempt: int
    key_id: str
    caller: str
    endpoint: str
    task: str
    model: str
    why: str
    status: int
    error: str
    prompt_tokens: int | None
    completion_tokens: int | None
    exact: bool
    ttft_ms: float | None
    total_ms: float
    team: str = ""
    run_id: str = ""
    data_class: str = ""
    zone: str = ""
    cost_nanousd: int = 0
    gpu_ms: int = 0
    policy_hash: str = ""
    config_version: str = ""


_COLUMNS = ", ".join(f'"{name}"' for name in Row.__struct_fields__)
_MOST_ROWS = 512  # in one statement: 12,288 values; SQLite takes 32,766, PostgreSQL 65,535


class Ledger:
    """Takes rows from the request path and writes them. `first` is called every 50 ms before what there is, `also` with it after.

    `first` is where the audit log is written: a row whose audit entry was appended before it is never in the database without it. Where
    that log can't be written, rows don't wait for it: what a kill then loses of it shows as missing against the ledger.
    """

    def __init__(
        self, engine: Engine, also: Callable[[Sequence[Row]], None] = lambda rows: None, first: Callable[[], None] = lambda: None
    ) -> None:
        self._first = first
        self._engine = engine
        self._also = also
        self._rows: list[Row] = []
        self._stop = threading.Event()
        self.append = self._rows.append
        self.failing = False
        self._thread = threading.Thread(target=self._run, name="ledger", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Writes what is left and stops. Raises nothing; what could not be written is named in the log by its count."""
        self._stop.set()
        self._thread.join(timeout=15)
        if self._rows:
            log.error("ledger: %d rows could not be written", len(self._rows))

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_S):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        rows = self._rows.copy()
        self._first()  # what it writes was there before these rows
        n = len(rows)
        if not n:
            return
        try:
            written = self._write(rows)
        except SQLAlchemyError as error:
            if not self.failing:
                log.error("ledger: cannot write (%s); rows are kept and tried again", type(error).__name__)
            self.failing = True
            if n > _HELD_ROWS:
                del self._rows[: n - _HELD_ROWS]
            return
        del self._rows[:n]  # in place: `append` is bound to this list, and appending is atomic under the interpreter's lock
        if self.failing:
            log.warning("ledger: writing again")
        self.failing = False
        try:
            self._also(written)
        except Exception:
            log.exception("ledger: %d rows were written but not counted", len(written))

    def _write(self, rows: Sequence[Row]) -> Sequence[Row]:
        """The rows that are in the database now: all of them, but for one that no database could hold."""
        try:
            with self._engine.begin() as connection:
                for start, size in _portions(len(rows)):
                    values = tuple(chain.from_iterable(map(astuple, rows[start : start + size])))
                    direct(connection, _insert(size), values)
            return rows
        except (OverflowError, ValueError, TypeError, DataError):
            if len(rows) == 1:
                log.exception("ledger: a row of request %s is given up", ascii(rows[0].request_id))
                return ()
        half = len(rows) // 2
        return [*self._write(rows[:half]), *self._write(rows[half:])]


def _portions(rows: int) -> Iterator[tuple[int, int]]:
    """(start, size) of each statement, sizes in powers of two: ten different statements, which the drivers keep prepared."""
    start = 0
    while start < rows:
        size = min(_MOST_ROWS, 1 << ((rows - start).bit_length() - 1))
        yield start, size
        start += size


@cache
def _insert(rows: int) -> str:
    """One statement for many rows: SQLite's driver gives the interpreter's lock away for each statement it runs, and the request path
    waits to get it back."""
    names = Row.__struct_fields__
    one = ", ".join("CAST(? AS INTEGER)" if name == "exact" else "?" for name in names)  # PostgreSQL's booleans are no numbers
    return f"INSERT INTO ledger ({_COLUMNS}) VALUES {', '.join([f'({one})'] * rows)}"  # noqa: S608 (names and marks of ours, no values)
