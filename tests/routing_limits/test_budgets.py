"""Budgets that cannot be raced: `spent + held <= most` for every account at every moment, whatever workers, databases and kills do.

OWASP AISVS C9.1.1 (budgets are enforced, not observed), C9.1.3 (limits hold under concurrency), C9.8.6 (what was stopped stays stopped).
"""

import asyncio
import time

import pytest
from sqlalchemy import func, select, update

from routing import accounts as books
from routing.accounts import Batch, Change, Key, Part, Want
from routing.budgets import budgets_of
from routing.errors import BudgetExceeded, TooMany, Unavailable
from routing.holds import Ask, Hold
from routing.prices import Price, priced
from routing.purse import Purse
from routing.store import ACCOUNTS, ALLOTMENTS

CENT_A_TOKEN = priced(10_000.0, 10_000.0)


def ask(accounts, prompt=1, most=9, price=CENT_A_TOKEN):
    """A call of at most ten cents."""
    return Ask(accounts, prompt, most, price, "r")


def standing(store, unit="nanousd"):
    """(spent, held) of all accounts of a unit together."""
    mine = ACCOUNTS.c.unit == unit
    allotted = select(func.sum(ALLOTMENTS.c.held)).join(ACCOUNTS, ACCOUNTS.c.id == ALLOTMENTS.c.account).where(mine).scalar_subquery()
    with store.connect() as connection:  # one statement: what it sees is of one moment
        row = connection.execute(select(func.sum(ACCOUNTS.c.spent), func.sum(ACCOUNTS.c.held), allotted).where(mine)).one()
    assert int(row[1]) == int(row[2] or 0), "what is held is what is allotted"
    return int(row[0]), int(row[1])


@pytest.fixture
async def purse(store):
    """A started purse."""
    made = Purse(store)
    await made.start()
    yield made
    await made.close()


async def until(claim):
    deadline = time.monotonic() + 20
    while not claim():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def all_of(purse, asked, n):
    """`n` calls at once: the holds, and the refusals."""
    got = await asyncio.gather(*(purse.reserve(asked) for _ in range(n)), return_exceptions=True)
    return [one for one in got if isinstance(one, Hold)], [one for one in got if not isinstance(one, Hold)]


async def test_fifty_calls_at_once_do_not_pass_a_cap_of_ten(store, purse):
    """50 parallel calls of 10 cents against one dollar: ten go, forty are refused with 402, and the dollar is spent to the cent
    (the test of record: check-then-record gateways admit all 50). AISVS C9.1.1, C9.1.3."""
    accounts = purse.accounts("caller", "c", budgets_of(["1usd"]))
    holds, refused = await all_of(purse, ask(accounts), 50)
    assert (len(holds), len(refused)) == (10, 40)
    assert {type(one) for one in refused} == {BudgetExceeded}
    assert standing(store) == (0, 1_000_000_000)
    for hold in holds:
        hold.settle(1, 9, exact=True)
    await until(lambda: standing(store) == (1_000_000_000, 0))


async def test_all_scopes_or_none(store, purse):
    """A call that one scope can't pay takes nothing from the others."""
    rich = purse.accounts("team", "rich", budgets_of(["100usd", "100calls"]))
    poor = purse.accounts("run", "poor", budgets_of(["0.05usd"]))
    with pytest.raises(BudgetExceeded, match=r"run `poor` is 0\.05usd"):
        await purse.reserve(ask(rich + poor, prompt=6))
    await until(lambda: standing(store) == (0, 0) and standing(store, "calls") == (0, 0))


async def test_less_is_given_where_less_is_left(purse):
    """What is left pays for 4 tokens of the 9 asked for: the hold says 4. Next there is nothing, and the refusal says what and when."""
    accounts = purse.accounts("caller", "c", budgets_of(["0.15usd/day"]))
    first = await purse.reserve(ask(accounts))
    second = await purse.reserve(ask(accounts))
    assert (first.max_tokens, second.max_tokens) == (9, 4)
    with pytest.raises(BudgetExceeded) as refusal:
        await purse.reserve(ask(accounts))
    assert "0usd left; this call needs at least 0.02usd. It renews at 2" in refusal.value.message
    assert refusal.value.status == 402


async def test_several_answers_are_paid_for_each(store, purse):
    """`n: 3` reserves three answers; where less is left each of them is shorter, and none is given where not all can be."""
    accounts = purse.accounts("caller", "c", budgets_of(["0.30usd"]))
    three = Ask(accounts, 1, 9, CENT_A_TOKEN, "r", answers=3)
    hold = await purse.reserve(three)
    assert (hold.max_tokens, hold.worst.tokens) == (9, 28)
    hold.settle(1, 20, exact=True)
    hold = await purse.reserve(three)
    assert (hold.max_tokens, hold.worst.tokens) == (2, 7)
    with pytest.raises(BudgetExceeded):
        await purse.reserve(three)


async def test_a_tasks_budget_is_the_files(store, purse):
    """What `routes.yaml` says of a task holds from when it is read, raised or lowered."""
    for text, refused in (("0.05usd", True), ("1usd", False)):
        books.declare(store, "task", {"t": budgets_of([text]), "free": ()})
        accounts = purse.accounts("task", "t", budgets_of([text]))
        if refused:
            with pytest.raises(BudgetExceeded, match=r"task `t` is 0\.05usd"):
                await purse.reserve(ask(accounts, prompt=9))
        else:
            assert await purse.reserve(ask(accounts, prompt=9))


async def test_what_was_not_used_returns_only_where_the_count_is_exact(purse):
    """An exact count gives the rest back; an estimate charges the worst case; settling again changes nothing (AISVS C9.1.1)."""
    accounts = purse.accounts("caller", "c", budgets_of(["0.2usd"]))
    exact, guess = [await purse.reserve(ask(accounts)) for _ in range(2)]
    assert exact.settle(1, 2, exact=True).nanousd == 30_000_000
    assert guess.settle(1, 2, exact=False).nanousd == 100_000_000
    exact.settle(1, 9, exact=True)
    exact.release()
    guess.release()
    assert (await purse.reserve(ask(accounts))).max_tokens == 6


async def test_a_call_that_was_never_sent_costs_nothing(store, purse):
    """Released: money, tokens and the call itself return."""
    accounts = purse.accounts("caller", "c", budgets_of(["1usd", "5calls"]))
    (await purse.reserve(ask(accounts))).release()
    await until(lambda: standing(store) == (0, 0) and standing(store, "calls") == (0, 0))


async def test_rates_are_told_apart_from_budgets(purse):
    """Too many calls in a minute or at once: 429 with a time to wait, which clients obey; money gone: 402, which they don't try again."""
    minute = purse.accounts("caller", "m", budgets_of(["2calls/minute"]))
    once = purse.accounts("caller", "o", budgets_of(["2concurrent"]))
    holds, refused = await all_of(purse, ask(minute), 3)
    assert len(holds) == 2
    assert isinstance(refused[0], TooMany) and 1 <= refused[0].retry_after_s <= 60
    holds, refused = await all_of(purse, ask(once), 3)
    assert (len(holds), refused[0].status, refused[0].retry_after_s) == (2, 429, 1)
    holds[0].settle(1, 1, exact=False)
    assert await purse.reserve(ask(once))
    gone = purse.accounts("caller", "g", budgets_of(["0usd", "0calls/minute"]))
    with pytest.raises(BudgetExceeded):
        await purse.reserve(ask(gone))


async def test_a_caller_who_leaves_leaves_no_hold(store, purse):
    """A request that is cancelled while it waits for the database gives back what it would have got."""
    accounts = purse.accounts("caller", "c", budgets_of(["1usd"]))
    for wait in (0, 0, 0.001, 0.003, 0.01):
        task = asyncio.create_task(purse.reserve(ask(accounts)))
        await asyncio.sleep(wait)
        task.cancel()
        (got,) = await asyncio.gather(task, return_exceptions=True)
        if isinstance(got, Hold):
            got.release()
    await until(lambda: standing(store) == (0, 0))
    assert len((await all_of(purse, ask(accounts), 11))[0]) == 10


async def test_a_busy_worker_does_not_ask_the_database(purse):
    """After a moment of traffic calls are reserved from the worker's own allotment."""
    accounts = purse.accounts("caller", "c", budgets_of(["100000usd"]))

    def _mine():
        hold = purse.try_reserve(ask(accounts))
        if hold is not None:
            hold.settle(1, 1, exact=True)
        return hold

    (await purse.reserve(ask(accounts))).settle(1, 1, exact=True)
    assert _mine()


async def test_what_idles_returns_and_others_get_it(store, purse):
    """Another worker's reserve is no reason to refuse: it returns within moments, and a call waits for it once."""
    accounts = purse.accounts("caller", "c", budgets_of(["10usd"]))
    (await purse.reserve(ask(accounts))).release()
    other = Purse(store)
    await other.start()
    mine = other.accounts("caller", "c", budgets_of(["10usd"]))
    assert (await other.reserve(ask(mine, prompt=1, most=999))).max_tokens == 999
    await until(lambda: standing(store) == (0, 10_000_000_000))
    await other.close()
    await until(lambda: standing(store) == (0, 0))
    with store.connect() as connection:
        assert connection.execute(select(ALLOTMENTS)).all() == []


async def test_what_only_others_hold_is_told_apart_from_what_is_spent(store, purse):
    """Where a call under way holds what is left, 402 says that it may come back and when to try; where it is spent, it says neither."""
    other = Purse(store)
    theirs = other.accounts("caller", "c", budgets_of(["0.1usd"]))
    hold = await other.reserve(ask(theirs))
    with pytest.raises(BudgetExceeded, match="may come back within seconds, from calls under way") as refusal:
        await purse.reserve(ask(purse.accounts("caller", "c", budgets_of(["0.1usd"]))))
    assert refusal.value.headers() == {"retry-after": "2"}
    hold.settle(1, 9, exact=True)
    other.tick(look=False)
    await until(lambda: standing(store) == (100_000_000, 0))
    with pytest.raises(BudgetExceeded) as refusal:
        await purse.reserve(ask(purse.accounts("caller", "c", budgets_of(["0.1usd"]))))
    assert refusal.value.headers() == {} and "come back" not in refusal.value.message
    await other.close()


def test_limits_of_each_caller_are_changed_together(store):
    """A file's new limit for each caller of a model reaches the accounts that there are, of that model and unit alone."""
    mine = [Key(books.BY_MODEL, scope, unit, "minute") for scope in ("m_1/ann", "m_1/oidc/bob", "mx1/ann", "m_1") for unit in
            ("calls", "tokens")]  # fmt: skip
    books.open_accounts(store, dict.fromkeys(mine, 5))
    books.change(store, books.BY_MODEL, {"m_1": budgets_of(["7calls/minute"])})
    with store.connect() as connection:
        found = {one.key: one.most for one in books.spending(connection, books.BY_MODEL, {key.scope for key in mine})}
    assert found == {key: 7 if key.scope.startswith("m_1/") and key.unit == "calls" else 5 for key in mine}


async def test_a_dead_workers_holds_return_with_its_lease(store):
    """A worker that is gone without a word keeps its holds for the lease, not for ever; what it had recorded stays spent (AISVS C9.1.3)."""
    dead = Purse(store, lease_s=1.0)
    accounts = dead.accounts("caller", "c", budgets_of(["1usd"]))
    holds, _ = await all_of(dead, ask(accounts), 10)
    holds[0].settle(1, 9, exact=True)
    dead.tick(look=False)
    await until(lambda: standing(store) == (100_000_000, 900_000_000))
    alive = Purse(store)
    mine = alive.accounts("caller", "c", budgets_of(["1usd"]))
    got = []

    async def _nine():
        while len(got) < 9:
            try:
                got.append(await alive.reserve(ask(mine)))
            except BudgetExceeded:
                await asyncio.sleep(0.05)

    await asyncio.wait_for(_nine(), 30)
    assert {hold.max_tokens for hold in got} == {9}
    with pytest.raises(BudgetExceeded):
        await alive.reserve(ask(mine))
    await alive.close()


async def test_a_worker_that_was_away_too_long_does_not_spend_what_returned(store):
    """A worker that was stopped beyond its lease (SIGSTOP, a paused machine) finds its allotment gone and asks anew."""
    now, base = [0.0], time.time()
    clock = {"now": lambda: now[0], "clock": lambda _: base + now[0]}
    away, other = Purse(store, **clock), Purse(store, **clock)
    await other.start()
    budgets = budgets_of(["100usd"])
    mine, theirs = (one.accounts("caller", "c", budgets) for one in (away, other))
    kept = await away.reserve(ask(mine))
    away.try_reserve(ask(mine)).release()
    now[0] = 100.0
    assert away.try_reserve(ask(mine)) is None
    assert (await other.reserve(ask(theirs, prompt=1, most=9_998))).max_tokens == 9_998
    with pytest.raises(BudgetExceeded):  # the cent that is left covers a part of the call under way
        await away.reserve(ask(mine, prompt=1, most=0))
    kept.release()
    assert (await away.reserve(ask(mine, prompt=1, most=0))).worst.nanousd == 10_000_000
    with pytest.raises(BudgetExceeded):
        await away.reserve(ask(mine))
    for one in (away, other):
        await one.close()


async def test_a_batch_is_taken_in_once(store):
    """The same batch again, as after an answer that was lost, changes nothing: settlement is idempotent in the database (AISVS C9.1.1)."""
    key = Key("caller", "c", "calls", "total")
    books.open_accounts(store, {key: 10})
    books.exchange(store, Batch("w", 1, 10.0, (Change(key),), (Want((Part(key, 0, 4, 0, 1),), 0, 0),)))
    batch = Batch("w", 2, 10.0, (Change(key, spent=3),), ())
    assert [books.exchange(store, batch).again for _ in range(3)] == [False, True, True]
    assert standing(store, "calls") == (3, 1)


async def test_periods_renew_by_the_databases_clock(store):
    """A budget per day is whole again at midnight UTC, what is held stays held, and a clock that is set back gives nothing twice."""
    now = [1_000_000_000.0]
    purse = Purse(store, clock=lambda _: now[0], lease_s=1e6)
    accounts = purse.accounts("caller", "c", budgets_of(["0.2usd/day"]))
    (await purse.reserve(ask(accounts))).settle(1, 9, exact=True)
    kept = await purse.reserve(ask(accounts))
    with pytest.raises(BudgetExceeded, match="2001-09-10T00:00:00Z"):
        await purse.reserve(ask(accounts))
    now[0] += 86400
    assert (await purse.reserve(ask(accounts))).settle(1, 9, exact=True).nanousd == 100_000_000
    now[0] -= 86400
    with pytest.raises(BudgetExceeded):
        await purse.reserve(ask(accounts))
    kept.release()
    assert await purse.reserve(ask(accounts))
    await purse.close()


async def test_a_database_that_is_away_stops_spending_and_loses_nothing(store, purse):
    """Without the database no new money is spent (503, fail closed); what was used meanwhile is recorded once it is back."""
    accounts = purse.accounts("caller", "c", budgets_of(["1usd"]))
    hold = await purse.reserve(ask(accounts))
    with store.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE accounts RENAME TO away")
    hold.settle(1, 4, exact=True)
    with pytest.raises(Unavailable, match="database of budgets"):
        await purse.reserve(ask(accounts, most=90))
    with store.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE away RENAME TO accounts")
    await until(lambda: standing(store) == (50_000_000, 0))


async def test_a_limit_can_be_lowered_and_raised(store, purse):
    """A new limit counts from the next ask; what was spent stays spent."""
    accounts = purse.accounts("team", "t", budgets_of(["1usd"]))
    (await purse.reserve(ask(accounts))).settle(1, 9, exact=True)
    for text, tokens in (("0.05usd", None), ("0.15usd", 4)):
        with store.begin() as connection:
            books.set_budgets(connection, "team", "t", budgets_of([text]))
        await until(lambda: standing(store) == (100_000_000, 0))
        if tokens is None:
            with pytest.raises(BudgetExceeded, match=r"is 0\.05usd: 0\.1usd spent"):
                await purse.reserve(ask(accounts))
        else:
            assert (await purse.reserve(ask(accounts))).max_tokens == tokens


async def test_an_engine_that_lies_about_tokens_breaks_no_books(store, purse):
    """More than was reserved is not charged, as the limit would not hold; negative counts give nothing back; other accounts go on."""
    accounts = purse.accounts("caller", "liar", budgets_of(["1usd", "100tokens"]))
    (await purse.reserve(ask(accounts))).settle(-(1 << 70), -5, exact=True)
    hold = await purse.reserve(ask(accounts))
    assert hold.settle(1 << 70, 1 << 70, exact=True) == hold.worst
    await until(lambda: standing(store)[0] == 100_000_000)
    assert await purse.reserve(ask(purse.accounts("caller", "honest", budgets_of(["1usd"]))))


async def test_what_is_left_is_told(purse):
    """The tightest budget of a call, for its answer's header."""
    accounts = purse.accounts("caller", "c", budgets_of(["1usd/day"])) + purse.accounts("team", "t", budgets_of(["100usd"]))
    (await purse.reserve(ask(accounts))).settle(1, 4, exact=True)
    assert purse.left(accounts) == "0.95usd/day"
    assert purse.left(()) == ""


async def test_a_call_without_any_budget_is_free_to_go(purse):
    """No account, no database."""
    hold = purse.try_reserve(ask(()))
    assert hold.settle(1, 1, exact=True).nanousd == 20_000_000


async def test_wall_time_is_charged_where_no_throughput_is_known(purse):
    """A call on a model of unknown speed costs its time, in money and GPU time, and at most what was held."""
    price = Price(1_000_000_000, 1_000_000_000, 100_000_000, wall_gpus=1)
    hold = await purse.reserve(ask(purse.accounts("caller", "w", budgets_of(["1usd", "100000gpu_ms"])), price=price))
    charge = hold.settle(1, 1, exact=True)
    assert (charge.tokens, charge.calls) == (2, 1)
    assert 0 < charge.gpu_ms <= hold.worst.gpu_ms == 1000
    assert charge.nanousd <= hold.worst.nanousd


def test_reading_the_books_shows_the_present_period(store):
    """What was spent yesterday is not shown as spent today."""
    key = Key("team", "t", "calls", "day")
    books.open_accounts(store, {key: 10})
    books.exchange(store, Batch("w", 1, 10.0, (Change(key, spent=3),), ()))
    with store.begin() as connection:
        assert [one.spent for one in books.spending(connection, "team", ["t"])] == [3]
        connection.execute(update(ACCOUNTS).values(since=1))
        assert [one.spent for one in books.spending(connection, "team", ["t"])] == [0]
