"""Any interleaving of workers, database, lost answers, kills, long sleeps: `spent + held <= most`, and everything spent is counted once.

Each worker's calls to the database are parked, and a rule decides when they run and whether their answer arrives; nothing is left to
the scheduler. The same machine finds two planted mistakes. OWASP AISVS C9.1.1, C9.1.3.
"""

import asyncio
import itertools
import tempfile
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test
from sqlalchemy import create_engine, func, select

from routing.budgets import budgets_of
from routing.errors import Refusal
from routing.holds import Ask, Hold
from routing.prices import priced
from routing.purse import Purse
from routing.store import ACCOUNTS, ALLOTMENTS, METADATA

PRICE = priced(10_000.0, 10_000.0)
LEASE_S = 10.0
STEPS = settings(max_examples=40, stateful_step_count=30, deadline=None, phases=(Phase.generate, Phase.reuse),
                 suppress_health_check=list(HealthCheck))


@dataclass
class Worker:
    """A purse, its parked calls to the database, and what its owner knows of it."""

    purse: Any
    accounts: Any
    parked: list[Any] = field(default_factory=list)
    asking: list[Any] = field(default_factory=list)
    holds: list[Hold] = field(default_factory=list)
    charged: int = 0
    known: int = 0  # of `charged`, when the last batch was made
    swept: bool = False


class Machine(RuleBasedStateMachine):
    """Up to three workers on one budget of 40 cents; calls of one to ten cents."""

    kind = Purse

    def __init__(self):
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = tempfile.TemporaryDirectory()
        self.engine = create_engine(f"sqlite:///{Path(self.folder.name) / 'x.db'}")
        METADATA.create_all(self.engine)
        self.now = 1000.0
        self.workers = []
        self.lost_cover = 0  # held by calls under way when their lease ran out: the one thing that may go over
        self.killed = 0
        self.dead = []
        self.ids = itertools.count()

    def teardown(self):
        for worker in self.workers:
            for task in worker.asking:
                task.cancel()
            for _, future in worker.parked:
                future.cancel()
        self.turn()
        tasks = asyncio.all_tasks(self.loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self.loop.run_until_complete(asyncio.wait(tasks))
        self.loop.close()
        self.engine.dispose()
        self.folder.cleanup()

    def turn(self):
        """Lets the loop do everything that it can do now."""

        async def _few():
            for _ in range(8):
                await asyncio.sleep(0)

        self.loop.run_until_complete(_few())
        for worker in self.workers:
            for task in [task for task in worker.asking if task.done()]:
                worker.asking.remove(task)
                if not task.cancelled() and task.exception() is None:
                    worker.holds.append(task.result())
                elif not task.cancelled():
                    assert isinstance(task.exception(), Refusal), task.exception()

    def hire(self):
        parked = []

        def _park(call):
            future = self.loop.create_future()
            parked.append((call, future))
            return future

        purse = self.kind(self.engine, lease_s=LEASE_S, wait_s=0.0, now=lambda: self.now, clock=lambda _: self.now, run=_park)
        worker = Worker(purse, purse.accounts("team", "t", budgets_of(["0.4usd", "6calls"])), parked)
        self.workers.append(worker)

    @initialize()
    def begin(self):
        self.hire()
        self.hire()

    def worker(self, pick):
        return self.workers[pick % len(self.workers)]

    @rule(pick=st.integers(0, 2), prompt=st.integers(1, 3), most=st.integers(0, 7))
    def call(self, pick, prompt, most):
        """A call comes in."""
        worker = self.worker(pick)

        async def _reserve():
            return await worker.purse.reserve(Ask(worker.accounts, prompt, most, PRICE, str(next(self.ids))))

        worker.asking.append(self.loop.create_task(_reserve()))
        self.turn()

    @rule(pick=st.integers(0, 2))
    def leave(self, pick):
        """A caller leaves while its call waits."""
        worker = self.worker(pick)
        if worker.asking:
            worker.asking[0].cancel()
            self.turn()

    @rule(pick=st.integers(0, 2), used=st.integers(0, 10), how=st.sampled_from(["exact", "guess", "release"]))
    def end(self, pick, used, how):
        """A call ends: with a count, without one, or as if it had never been sent."""
        worker = self.worker(pick)
        if worker.holds:
            hold = worker.holds.pop(0)
            if how == "release":
                hold.release()
            else:
                worker.charged += hold.settle(0, min(used, hold.worst.tokens), exact=how == "exact").nanousd
            hold.release()

    @rule(pick=st.integers(0, 2), look=st.booleans())
    def tick(self, pick, look):
        """Time for a worker to record, and to see what idles."""
        self.loop.call_soon(partial(self.worker(pick).purse.tick, look=look))
        self.turn()

    @rule(pick=st.integers(0, 2), fate=st.sampled_from(["answered", "answered", "answered", "lost before", "lost after"]))
    def database(self, pick, fate):
        """The database takes a parked batch in, or its connection breaks before it has, or before it says so."""
        worker = self.worker(pick)
        if worker.parked:
            call, future = worker.parked.pop(0)
            outcome = None if fate == "lost before" else call()
            if future.done():
                return
            if fate == "answered":
                future.set_result(outcome)
                self.turn()
            else:
                future.set_exception(OSError("the connection broke"))
                self.turn()
                self.loop.run_until_complete(asyncio.sleep(0.06))  # it tries again after 0.05 s
                self.turn()

    @precondition(lambda self: len(self.workers) > 1)
    @rule(pick=st.integers(0, 2))
    def kill(self, pick):
        """kill -9: a worker is gone with all that it knew; another may be hired."""
        worker = self.worker(pick)
        self.workers.remove(worker)
        self.dead.append(worker)
        self.killed += worker.charged
        for task in worker.asking:
            task.cancel()
        self.turn()

    @precondition(lambda self: len(self.workers) < 3)
    @rule()
    def hire_another(self):
        """A new worker."""
        self.hire()

    @rule(seconds=st.sampled_from([1.0, 4.0, LEASE_S + 1]))
    def sleep(self, seconds):
        """Time passes for everybody, perhaps for longer than a lease."""
        self.now += seconds
        if seconds > LEASE_S:
            self.lost_cover += sum(hold.worst.nanousd for worker in self.workers for hold in worker.holds)
            self.lost_cover += sum(max(0, a.unflushed) for worker in self.workers for a in worker.accounts if a.budget.unit == "nanousd")
            self.lost_cover += sum(change.spent for worker in self.workers for call, _ in worker.parked
                                   for change in call.args[1].changes if change.key.unit == "nanousd")  # fmt: skip

    @invariant()
    def no_account_is_overdrawn(self):
        """In the database at every moment; and of what the workers may do by it."""
        allotted = select(func.total(ALLOTMENTS.c.held)).where(ALLOTMENTS.c.account == ACCOUNTS.c.id).scalar_subquery()
        with self.engine.connect() as connection:
            rows = connection.execute(select(ACCOUNTS, allotted.label("allotted"))).all()
        for row in rows:
            assert row.held == row.allotted >= 0
            slack = self.lost_cover if row.unit == "nanousd" else self.lost_cover // 10_000_000
            assert row.spent + row.held <= row.most + slack, row
            if row.unit == "nanousd":
                charged = sum(worker.charged for worker in self.workers)
                under_way = sum(hold.worst.nanousd for worker in self.workers for hold in worker.holds)
                assert row.spent <= charged + self.killed, "nothing is counted twice"
                assert charged + under_way <= row.most + slack, "nobody may spend what is not there"

    def settled(self):
        """Everybody ends well: all calls end, all is recorded."""
        for worker in self.workers:
            for task in worker.asking:
                task.cancel()
            self.turn()
            while worker.holds:
                worker.charged += worker.holds.pop().settle(0, 1, exact=True).nanousd
            for _ in range(4):
                self.loop.call_soon(partial(worker.purse.tick, look=True))
                self.turn()
                while worker.parked:
                    call, future = worker.parked.pop(0)
                    future.set_result(call())
                    self.turn()

    @rule()
    def all_is_counted(self):
        """Once all is recorded, the books say exactly what was charged by those who were not killed, and hold nothing for them."""
        self.settled()
        with self.engine.connect() as connection:
            row = connection.execute(select(ACCOUNTS).where(ACCOUNTS.c.unit == "nanousd")).one_or_none()
        charged = sum(worker.charged for worker in self.workers)
        assert charged <= (row.spent if row else 0) <= charged + self.killed


def test_no_interleaving_overdraws_an_account():
    """40 runs of 30 steps each hold the invariant after every step, and the books are right at the end."""
    run_state_machine_as_test(Machine, settings=STEPS)


class Renumbering(Purse):
    """Brings a batch whose answer was lost again as if it were a new one."""

    def _exchange(self, new, batch):
        self._number += 1
        return super()._exchange(new, batch._replace(number=self._number))


class Trusting(Purse):
    """Believes that what it gave back is still its own."""

    def _learn(self, changes, outcome):
        super()._learn(changes, outcome)
        for account, change in changes.items():
            account.have += change.returned


def lost_answer(machine):
    """A call is charged, and the answer to its record is lost."""
    machine.call(pick=0, prompt=1, most=0)
    machine.database(pick=0, fate="answered")
    machine.end(pick=0, used=1, how="exact")
    machine.tick(pick=0, look=False)
    machine.database(pick=0, fate="lost after")
    machine.all_is_counted()


def idle_then_rich(machine):
    """What the first worker gave back the second one takes; then the first one calls."""
    machine.call(pick=0, prompt=1, most=0)
    machine.database(pick=0, fate="answered")
    machine.end(pick=0, used=0, how="release")
    for _ in range(2):
        machine.tick(pick=0, look=True)
        machine.database(pick=0, fate="answered")
    for _ in range(4):
        machine.call(pick=1, prompt=3, most=7)
        machine.database(pick=1, fate="answered")
    machine.call(pick=0, prompt=1, most=0)
    machine.database(pick=0, fate="answered")
    machine.no_account_is_overdrawn()


@pytest.mark.parametrize(("broken", "steps", "says"), [(Renumbering, lost_answer, r"<="), (Trusting, idle_then_rich, "not there")])
def test_the_machine_finds_planted_mistakes(broken, steps, says):
    """The same steps and checks pass on the purse and fail on one with a mistake: the test above means something."""
    for kind in (Purse, broken):
        machine = type("One", (Machine,), {"kind": kind})()
        try:
            machine.begin()
            if kind is Purse:
                steps(machine)
            else:
                with pytest.raises(AssertionError, match=says):
                    steps(machine)
        finally:
            machine.teardown()
