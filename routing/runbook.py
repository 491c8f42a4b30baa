"""The runs that a worker knows: found in microseconds when it has seen them before, and gone within a moment of being stopped.

`runs` has the rules and the rows; this file keeps what a request needs of them in memory.
"""

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from sqlalchemy import Engine, select

from routing import runs
from routing.accounts import Spending
from routing.errors import RunStopped
from routing.holds import Account
from routing.purse import Purse
from routing.runs import Signer, Stored
from routing.store import RUNS

_KNOWN = 10_000  # runs; the oldest are forgotten, and read again when they call


class Run(NamedTuple):
    """A run as a request uses it: `accounts` are its own and those of all runs above it; `line` is its id and theirs."""

    id: str
    caller: str
    line: tuple[str, ...]
    accounts: tuple[Account, ...]
    deadline: float
    public_id: str
    raised: int = 0

    @property
    def root(self) -> str:
        """The run at the top of its tree, whose data class is that of all."""
        return self.line[-1]


class RunBook:
    """One worker's runs. Belongs to the event loop. It reads in a thread, and one thing at a time: what was read later never gives way to
    what was read before."""

    def __init__(self, engine: Engine, purse: Purse) -> None:
        self._engine = engine
        self._purse = purse
        self._signer = Signer(engine)
        self._runs: dict[str, Run] = {}
        self._version = -1
        self._reading = asyncio.Lock()
        self._begun = self._done = 0  # looks, and the last one that came to its end
        self._classes: dict[str, str] = {}  # of the runs at the top
        self.killed: dict[str, str] = {}  # of the runs that are known here, those that were stopped: why

    def known(self, given: str, caller: str) -> Run | None:
        """The run of a signed id, where this worker knows it. Raises `NotFound` for another's, `RunStopped` where it is over."""
        run = self._runs.get(given)
        if run is None:
            return None
        if run.caller != caller:
            raise runs.unknown(given)
        if run.id in self.killed:
            raise RunStopped(f"{run.id} was stopped: {self.killed[run.id]}; a person can raise its limits (`inhouse runs raise {run.id}`)")
        if time.time() > run.deadline:
            raise RunStopped(f"{run.id} has had its time (`limits.seconds`); a person can raise it (`inhouse runs raise {run.id}`)",
                             code="run_deadline")  # fmt: skip
        return run

    async def find(self, given: str, caller: str) -> Run:
        """The run of a signed id. Raises `NotFound` where it is none of this caller's, `RunStopped` where it is over."""
        run = self.known(given, caller)
        if run is None:
            run_id = self._signer.open(given, caller)
            async with self._reading:
                line = await asyncio.to_thread(self._line, run_id)
                if not line:
                    raise runs.unknown(given)
                self._remember(line, given)
            runs.refuse_stopped(line[0], time.time())
            run = self._runs[given]
        return run

    async def create(self, caller: str, body: bytes) -> dict[str, Any]:
        """`POST /v1/runs`: a new run as a document. Raises `BadRequest`, `NotFound` (no such parent) and `RunStopped`."""
        asked = runs.read_new_run(body)
        parent = self._signer.open(asked.parent, caller) if asked.parent else None
        made = await asyncio.to_thread(runs.create_run, self._engine, caller, asked, parent)
        return (await self._tree(made.id))[0]

    async def show(self, given: str, caller: str) -> dict[str, Any]:
        """`GET /v1/runs/<id>`: the run with `children` inside one another, and what each has spent by now. Raises `NotFound`."""
        documents = await self._tree(self._signer.open(given, caller))
        if not documents:
            raise runs.unknown(given)
        return documents[0]

    async def stop(self, given: str, caller: str) -> dict[str, Any]:
        """`DELETE /v1/runs/<id>`: ends the run and all below it, here at once and in other workers with their next look."""
        run_id = self._signer.open(given, caller)
        await asyncio.to_thread(runs.stop_run, self._engine, run_id, "its caller ended it")
        await self.look()
        return await self.show(given, caller)

    def class_of(self, run: Run) -> str:
        """The highest data class seen in the run's tree so far, as of the last look; empty where none was."""
        return self._classes.get(run.root, "")

    async def raise_class(self, run: Run, higher: Callable[[str], str]) -> None:
        """Raises the data class of the run's tree. When this returns, it is known to every worker that looks before it answers."""
        await asyncio.to_thread(runs.raise_class, self._engine, run.root, higher)
        await self.look()

    async def stop_for(self, run: Run, reason: str) -> None:
        """Stops a run for a reason of the router's own, as a loop that was found."""
        await asyncio.to_thread(runs.stop_run, self._engine, run.id, reason)
        await self.look()

    async def look(self) -> None:
        """Takes in what was stopped or raised anywhere before this was called; who calls at the same time shares a look. Call it twice a
        second or more often, and then end what calls on behalf of the runs in `killed`."""
        due = self._begun + 1  # a look under way may have read already
        async with self._reading:
            if self._done < due:
                self._begun = begun = self._begun + 1
                await self._take_in()
                self._done = begun

    async def _take_in(self) -> None:
        version = await asyncio.to_thread(runs.changes_of, self._engine)
        if version == self._version:
            return
        ids = {one for run in self._runs.values() for one in (run.id, run.root)}
        rows = await asyncio.to_thread(self._rows, ids)
        self._version = version
        self.killed = {row.id: row.reason for row in rows.values() if row.state != "open"}
        self._classes = {row.id: row.data_class for row in rows.values()}
        self._runs = {given: run for given, run in self._runs.items() if run.id in rows}  # others are in the database no longer
        for given, run in self._runs.items():
            deadline, raised = rows[run.id].deadline or math.inf, rows[run.id].raised
            if (deadline, raised) != (run.deadline, run.raised):
                self._runs[given] = run._replace(deadline=deadline, raised=raised)

    def _rows(self, ids: set[str]) -> dict[str, Any]:
        asked = select(RUNS.c.id, RUNS.c.state, RUNS.c.reason, RUNS.c.deadline, RUNS.c.data_class, RUNS.c.raised).where(RUNS.c.id.in_(ids))
        with self._engine.connect() as connection:
            return {row.id: row for row in connection.execute(asked)}

    def _line(self, run_id: str) -> list[Stored]:
        with self._engine.connect() as connection:
            return runs.lineage(connection, run_id)

    def _remember(self, line: list[Stored], given: str) -> None:
        accounts = tuple(account for run in line for account in self._purse.accounts("run", run.id, runs.budgets_of_run(run)))
        run = line[0]
        while len(self._runs) >= _KNOWN:
            del self._runs[next(iter(self._runs))]
        self._runs[given] = Run(run.id, run.caller, tuple(one.id for one in line), accounts, run.deadline or math.inf, given,
                                run.raised)  # fmt: skip
        self._classes[line[-1].id] = line[-1].data_class
        if run.state != "open":
            self.killed[run.id] = run.reason

    async def _tree(self, run_id: str) -> list[dict[str, Any]]:
        found: list[tuple[Stored, list[Spending]]] = await asyncio.to_thread(runs.tree, self._engine, run_id)
        documents = {run.id: {**runs.document(run, books, self._signer.sign(run.id, run.caller)), "children": []} for run, books in found}
        for run, _ in found[1:]:
            documents[run.parent]["children"].append(documents[run.id])
        return list(documents.values())

