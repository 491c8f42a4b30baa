"""Runs: trees with limits that hold for all below, ids that are worth nothing to others, and a stop that reaches every process.

OWASP AISVS C9.1.1 (budgets, depth, fan-out, time), C9.1.2 (what loops is cut), C9.8.6 (kill switch).
"""

import asyncio
import contextlib
import json
import threading
import time

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import event

import inhouse
from routing import runs
from routing.errors import BadRequest, BudgetExceeded, NotFound, RunStopped
from routing.holds import Ask
from routing.prices import priced
from routing.purse import Purse
from routing.runbook import RunBook
from routing.runs import Limits, Signer

PRICE = priced(10_000.0, 10_000.0)  # a cent a token


@pytest.fixture
async def purse(store):
    """A started purse."""
    made = Purse(store)
    await made.start()
    yield made
    await made.close()


@pytest.fixture
def book(store, purse):
    """A worker's runs."""
    return RunBook(store, purse)


async def new(book, parent=None, **limits):
    return (await book.create("ann", json.dumps({"limits": limits, **({"parent": parent} if parent else {})}).encode()))["id"]


async def spend(book, purse, run_id, cents):
    run = await book.find(run_id, "ann")
    hold = await purse.reserve(Ask(run.accounts, cents, 0, PRICE, "r"))
    hold.settle(cents, 0, exact=True)


async def until_spent(book, run_id, usd):
    deadline = time.monotonic() + 20
    while (document := await book.show(run_id, "ann"))["spent"]["usd"] != usd:
        assert time.monotonic() < deadline, document
        await asyncio.sleep(0.02)
    return document


async def test_a_run_is_made_with_what_it_may_use(book):
    """All limits are optional; the answer says what they are, what is spent and held, and that it is open."""
    made = await book.create("ann", b'{"limits": {"usd": 0.5, "tokens": 20000, "calls": 10, "seconds": 600, "depth": 2, "fanout": 4}}')
    assert made["limits"] == {"usd": 0.5, "tokens": 20000, "calls": 10, "seconds": 600.0, "depth": 2, "fanout": 4}
    assert made["state"] == "open" and made["spent"] == made["held"] == {"usd": 0.0, "tokens": 0, "calls": 0}
    assert (await book.create("ann", b""))["limits"] == {}


@pytest.mark.parametrize("body", [b"[]", b"x", b'{"limits": {"euro": 1}}', b'{"limits": {"usd": -1}}', b'{"limits": {"calls": "many"}}',
                                  b'{"limits": {"tokens": 1e99}}', b'{"limits": {"seconds": 1e12}}'])  # fmt: skip
def test_nonsense_is_no_run(body):
    """A wrong limit is refused, not ignored: who misspells `usd` must not run without one."""
    with pytest.raises(BadRequest):
        runs.read_new_run(body)


async def test_a_child_spends_from_all_above_it(book, purse):
    """What a grandchild uses is used of its parents, and the least of all limits holds (AISVS C9.1.1)."""
    top = await new(book, usd=0.10)
    child = await new(book, top, usd=0.08)
    leaf = await new(book, child)
    await spend(book, purse, leaf, 5)
    await spend(book, purse, top, 3)
    with pytest.raises(BudgetExceeded, match=r"is 0\.1usd"):
        await spend(book, purse, leaf, 3)
    with pytest.raises(BudgetExceeded, match=r"is 0\.08usd"):
        await spend(book, purse, child, 4)
    shown = await until_spent(book, top, 0.08)
    assert [one["spent"]["usd"] for one in shown["children"]] == [0.05]
    assert shown["children"][0]["children"][0]["spent"] == {"usd": 0.05, "tokens": 5, "calls": 1}


async def test_children_cannot_multiply_a_limit(book, purse):
    """Ten children that race for their parent's ten cents get ten cents (AISVS C9.1.3)."""
    top = await new(book, usd=0.10)
    children = [await new(book, top, usd=0.10) for _ in range(10)]
    got = await asyncio.gather(*(spend(book, purse, child, 2) for child in children), return_exceptions=True)
    assert sum(one is None for one in got) == 5
    await until_spent(book, top, 0.1)


async def test_depth_and_fanout_have_caps(book):
    """Generations and children are counted from every run above."""
    top = await new(book, depth=2, fanout=2)
    child = await new(book, top, depth=9, fanout=9)
    await new(book, top)
    with pytest.raises(RunStopped, match="fanout` allows 2"):
        await new(book, top)
    leaf = await new(book, child)
    with pytest.raises(RunStopped, match=r"limits\.depth"):
        await new(book, leaf)


async def test_a_run_ends_at_its_deadline_with_all_below_it(book, store):
    """Time that is up refuses calls and children, also of children that had more; a person may give more."""
    top = await new(book, seconds=0)
    await asyncio.sleep(0.01)
    with pytest.raises(RunStopped, match="has had its time"):
        await new(book, top, seconds=600)
    for _ in range(2):  # unknown, then known
        with pytest.raises(RunStopped, match="has had its time"):
            await book.find(top, "ann")
    assert (await book.show(top, "ann"))["state"] == "expired"
    runs.raise_run(store, top.partition(".")[0], Limits(seconds=600.0))
    await book.look()
    child = await new(book, top, seconds=6000)
    assert (await book.find(child, "ann")).deadline <= (await book.find(top, "ann")).deadline


async def test_a_run_is_worth_nothing_to_another_caller(book):
    """Nobody else may find, show, stop or go below a run, nor is anybody told that it exists."""
    top = await new(book)
    await book.find(top, "ann")
    for work in (book.find(top, "bob"), book.show(top, "bob"), book.stop(top, "bob"),
                 book.create("bob", json.dumps({"parent": top}).encode())):  # fmt: skip
        with pytest.raises(NotFound, match="no run"):
            await work
    assert (await book.show(top, "ann"))["state"] == "open"


def test_ids_that_were_not_signed_here_are_none(store):
    """A made-up id, an unsigned one, one that was changed, one of another database: none of them opens anything."""
    signer = Signer(store)
    assert signer.open(Signer(store).sign("run_a", "ann"), "ann") == "run_a"

    @given(st.text(max_size=80))
    def _never(text):
        for forged in (text, "run_a", signer.sign("run_a", "ann") + text + "0", text + "." + signer.sign("run_a", "ann")[6:]):
            with pytest.raises(NotFound):
                signer.open(forged, "ann")

    _never()


async def test_a_stop_reaches_all_below_and_every_worker(store, book, purse):
    """DELETE ends the run and its descendants, here at once and in another worker with its next look; later calls get 409
    (AISVS C9.8.6)."""
    other = RunBook(store, purse)
    top = await new(book)
    child = await new(book, top)
    leaf = await new(book, child)
    beside = await new(book)
    for one in (child, leaf, beside):
        await other.find(one, "ann")
    answer = await book.stop(child, "ann")
    assert (answer["state"], answer["children"][0]["state"]) == ("stopped", "stopped")
    await other.look()
    assert set(other.killed) == {one.partition(".")[0] for one in (child, leaf)}
    for one in (child, leaf):
        for worker in (book, other):
            with pytest.raises(RunStopped, match="its caller ended it") as refusal:
                await worker.find(one, "ann")
            assert (refusal.value.status, refusal.value.code) == (409, "run_stopped")
    with pytest.raises(RunStopped):
        await new(book, leaf)
    assert await other.find(beside, "ann") and await book.find(top, "ann")
    assert runs.stop_run(store, child.partition(".")[0], "again") == []


async def test_a_person_may_raise_and_resume(store, book, purse):
    """Raised limits count, what was stopped with the run goes on, what was spent stays spent; below a stopped run nothing goes on."""
    top = await new(book, usd=0.05)
    child = await new(book, top)
    await spend(book, purse, child, 5)
    await book.stop_for(await book.find(top, "ann"), "it repeats itself")
    with pytest.raises(RunStopped, match="above it is stopped"):
        runs.raise_run(store, child.partition(".")[0], Limits(usd=9))
    runs.raise_run(store, top.partition(".")[0], Limits(usd=0.07))
    await book.look()
    await spend(book, purse, child, 2)
    with pytest.raises(BudgetExceeded, match=r"0\.07usd spent"):
        await spend(book, purse, child, 1)


@contextlib.asynccontextmanager
async def reading(store, what):
    """While the block runs, the first statement with these words has been answered by the database, and whoever asked doesn't know it."""
    reached, opened = threading.Event(), threading.Event()

    @event.listens_for(store, "after_cursor_execute")
    def _hold(connection, cursor, statement, *_):
        if what in " ".join(statement.split()) and not reached.is_set():
            reached.set()
            opened.wait(20)

    async def _block():
        assert await asyncio.to_thread(reached.wait, 20)

    try:
        yield _block
    finally:
        opened.set()


async def test_a_stop_while_a_run_is_read_is_not_missed(store, book):
    """A worker that learns of a run just as it is stopped sees that with its next look."""
    top = await new(book)
    async with reading(store, "FROM runs WHERE runs.id =") as reached:
        found = asyncio.create_task(book.find(top, "ann"))
        await reached()
        runs.stop_run(store, top.partition(".")[0], "now")
        looked = asyncio.create_task(book.look())
    await asyncio.gather(found, looked)
    with pytest.raises(RunStopped, match="now"):
        await book.find(top, "ann")


async def test_a_look_forgets_nothing_that_was_learnt_meanwhile(store, book, purse):
    """A worker learns of a run with confidential data while it looks for changes: what the look read before does not lower the class."""
    other = RunBook(store, purse)
    top = await new(book)
    await other.raise_class(await other.find(top, "ann"), lambda _: "confidential")
    async with reading(store, "runs.id IN") as reached:
        looked = asyncio.create_task(book.look())
        await reached()
        found = asyncio.create_task(book.find(top, "ann"))
        await asyncio.wait({found}, timeout=0.3)
    await looked
    assert book.class_of(await found) == "confidential"


async def test_the_commands_show_stop_and_raise(place, store, book):
    """What a person on call needs, on either database; both the signed and the bare id are taken."""
    top = await new(book, usd=0.05)
    await new(book, top)

    def _run(*words, code=0):
        result = CliRunner().invoke(inhouse.main, ["runs", *words, "--home", str(place.home)], env={"INHOUSE_DATABASE": place.url})
        assert result.exit_code == code, result.output
        return result.output

    assert len(json.loads(_run("list", "--open", "--caller", "ann", "--json"))) == 2
    assert _run("stop", top) == "stopped 2 runs\n"
    assert "a person ended it" in _run("list")
    assert _run("show", top.partition(".")[0]).count("stopped") == 2
    assert '"usd": 1.5' in _run("raise", top, "--usd", "1.5")
    assert json.loads(_run("show", top, "--json"))[0]["state"] == "open"
    assert "no run `run_x`" in _run("show", "run_x", code=1)
    assert "no run" in _run("stop", "run_x", code=1)
