"""Runs that ended long ago leave the database, whole trees and their accounts; nothing of a live tree leaves, or of the ledger."""

import json
import time

import pytest
from sqlalchemy import insert, select, update

from routing import runs
from routing.errors import NotFound
from routing.holds import Ask
from routing.prices import priced
from routing.prune import prune_runs
from routing.purse import Purse
from routing.runbook import RunBook
from routing.runs import Limits, NewRun
from routing.store import ACCOUNTS, LEDGER, RUNS

LATER = time.time() + 1e6


def made(store, parent=None, **limits):
    return runs.create_run(store, "ann", NewRun(limits=Limits(**limits)), parent).id


def there(store):
    """The runs in the database, and those that have accounts."""
    with store.connect() as connection:
        return (set(connection.execute(select(RUNS.c.id)).scalars()),
                set(connection.execute(select(ACCOUNTS.c.scope).where(ACCOUNTS.c.kind == "run")).scalars()))  # fmt: skip


def test_trees_that_ended_leave_and_others_stay(store):
    """A stopped tree and one whose time was up long ago leave; an open one, one with a child that was raised, and one that was stopped a
    moment ago stay, accounts and all."""
    stopped, expired, live, raised = made(store), made(store, seconds=0.0), made(store), made(store, seconds=0.0)
    below = made(store, stopped)
    with store.begin() as connection:  # a child of a run whose time is up can't be made, only raised
        row = dict(connection.execute(select(RUNS).where(RUNS.c.id == below)).mappings().one())
        connection.execute(insert(RUNS).values(row | {"id": "run_child", "parent": raised, "deadline": LATER * 2}))
        connection.execute(insert(LEDGER).values(at=1.0, request_id="r", attempt=1, key_id="k", caller="ann", endpoint="/v1", task="t",
                                                 model="m", why="w", status=200, error="", exact=1, total_ms=1.0, run_id=stopped))
    runs.stop_run(store, stopped, "enough")
    assert prune_runs(store, time.time() - 86400) == 0
    assert prune_runs(store, LATER) == 3
    assert there(store) == ({live, raised, "run_child"}, {live, raised})
    with store.connect() as connection:
        assert connection.execute(select(LEDGER.c.run_id)).scalars().all() == [stopped]
    assert prune_runs(store, LATER) == 0 and expired not in there(store)[0]


def test_a_run_that_a_person_let_go_on_is_live(store):
    """Raised after it was stopped, it counts from its next end."""
    run = made(store)
    runs.stop_run(store, run, "enough")
    runs.raise_run(store, run, Limits(calls=5))
    assert prune_runs(store, LATER) == 0
    runs.stop_run(store, run, "enough")
    assert prune_runs(store, LATER) == 1 and there(store) == (set(), set())


async def test_what_is_held_keeps_a_run_and_workers_forget_it_after(store):
    """A call under way keeps its run; when it has settled the run leaves, and a worker that knew it answers as for any unknown one, though
    it still has its accounts in mind."""
    purse = Purse(store)
    book = RunBook(store, purse)
    given = (await book.create("ann", json.dumps({"limits": {"calls": 3}}).encode()))["id"]
    run = await book.find(given, "ann")
    hold = await purse.reserve(Ask(run.accounts, 1, 0, priced(1.0, 1.0), "r"))
    await book.stop(given, "ann")
    assert prune_runs(store, LATER) == 0
    hold.settle(1, 0, exact=True)
    await purse.close()
    assert prune_runs(store, LATER) == 1
    await book.look()
    assert book.known(given, "ann") is None and book.killed == {}
    with pytest.raises(NotFound):
        await book.find(given, "ann")


def test_more_trees_than_one_transaction_takes(store):
    """A hundred and twenty trees leave in one call."""
    for _ in range(120):
        made(store, seconds=0.0)
    with store.begin() as connection:
        connection.execute(update(RUNS).values(deadline=1.0))
    assert prune_runs(store, 2.0) == 120
