"""What a worker may spend without asking: it holds an allotment of every budget in use and reserves single calls from it, in microseconds.

A call is reserved at its worst before it is sent and settled at what it used. Allotments come from `accounts` in batches, in a thread;
near a limit they are exactly what is asked. Nothing here touches the database on the event loop.
"""

import asyncio
import logging
import math
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from itertools import chain, count, repeat
from typing import NamedTuple
from weakref import WeakValueDictionary

from sqlalchemy import Engine
from sqlalchemy.exc import SQLAlchemyError

from routing import accounts as books
from routing.accounts import BY_MODEL, Batch, Change, Grant, Key, Outcome, Standing, Want
from routing.budgets import UNITS, Budget, amount, renews_at
from routing.errors import BudgetExceeded, Refusal, TooMany, Unavailable
from routing.holds import Account, Ask, Hold, give_back, surplus_of, want_of

log = logging.getLogger("inhouse.purse")
_BEAT_S = 0.05  # how long what was spent may wait to be recorded: what a kill can lose
_LOOK_EVERY = 2  # beats between two looks for what is idle
_TOLD_S = 0.02
_PATIENCE_S = 2.0  # how long a call waits for the database
_BACK_S = 2  # after which a call that only others' holds refused may be worth another try: idle reserves return within two looks


class _Waiting(NamedTuple):
    """A call that waits for the database. Below `least` tokens it would rather have none."""

    ask: Ask
    least: int
    future: "asyncio.Future[Hold | _Refused]"


_Sent = list[tuple[_Waiting, Want]]  # the calls of a batch; each want took what it could from the worker's own


class _Refused(NamedTuple):
    """No, and the account with too little; `others_hold` says that some of it is in other workers' hands."""

    standing: Standing
    others_hold: bool
    now: float


class Purse:
    """One worker's allotments. All methods belong to the event loop that `start` was called on.

    `lease_s`: after so long without a word to the database, what this worker holds returns to the others.
    """

    def __init__(
        self, engine: Engine, *, lease_s: float = 10.0, wait_s: float = 0.3, now: Callable[[], float] = time.monotonic,
        run: Callable[[Callable[[], Outcome]], Awaitable[Outcome]] | None = None, clock: books.Clock = books.database_clock,
    ) -> None:  # fmt: skip
        """`now` (monotonic), `run` (takes a call off the loop) and `clock` (the database's) are for tests."""
        self._engine = engine
        self._now = now
        self._clock = clock
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="purse")
        self._off_loop = run or self._in_thread
        self._lease_s = lease_s
        self._wait_s = wait_s
        self._lease = secrets.token_hex(8)
        self._number = 0
        self._accounts: WeakValueDictionary[Key, Account] = WeakValueDictionary()
        self._live: set[Account] = set()  # with an allotment, or something to record
        self._dirty: set[Account] = set()
        self._waiting: list[_Waiting] = []
        self._told: dict[tuple[Account, ...], tuple[float, str]] = {}
        self._valid_until = -math.inf
        self._swept_at = -math.inf
        self._is_look_due = False
        self._flight: asyncio.Task[None] | None = None
        self._beat: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Begins to record and renew."""
        self._beat = asyncio.create_task(self._run())

    async def close(self) -> None:
        """Records what is left and gives back the rest. What can't be written in time is named in the log and returns with the lease."""
        if self._beat is not None:
            self._beat.cancel()
        try:
            async with asyncio.timeout(10):
                while self._dirty or self._flight is not None:
                    self._pump()
                    await asyncio.sleep(0.005)
                await asyncio.to_thread(books.end_lease, self._engine, self._lease, self._clock)
        except (TimeoutError, SQLAlchemyError) as error:
            log.error("purse: could not record everything before the end (%s)", type(error).__name__)
            if self._flight is not None:
                self._flight.cancel()
        self._thread.shutdown(wait=False)

    def accounts(self, kind: str, scope: str, budgets: Iterable[Budget]) -> tuple[Account, ...]:
        """The accounts of a caller, team, task or run, to be kept and put into many an `Ask`."""
        found = []
        for budget in budgets:
            key = Key(kind, scope, budget.unit, budget.every)
            account = self._accounts.get(key)
            if account is None:
                account = self._accounts[key] = Account(key, budget)
            found.append(account)
        return tuple(found)

    def try_reserve(self, ask: Ask) -> Hold | None:
        """The hold, where this worker's allotments suffice for the worst case; else None, and `reserve` asks further."""
        if self._now() > self._valid_until and ask.accounts:
            return None
        worst = ask.price.charge(ask.prompt_tokens, ask.max_tokens * ask.answers)  # not `worst`: a call less
        for account in ask.accounts:
            if account.have - account.used < worst[account.unit]:
                return None
        for account in ask.accounts:
            number = worst[account.unit]
            account.used += number
            account.taken += number
        return Hold(self._dirty, ask, ask.max_tokens, worst)

    async def reserve(self, ask: Ask) -> Hold:
        """The hold, for fewer tokens than asked where less is left. Raises `BudgetExceeded`, `TooMany`, or `Unavailable` where the
        database does not answer.

        Where others hold something it waits once for what they do not use; only then it takes less, or refuses.
        """
        hold = self.try_reserve(ask)
        if hold is not None:
            return hold
        got = await self._want(ask, ask.max_tokens)
        if isinstance(got, _Refused):
            if got.others_hold:
                await asyncio.sleep(self._wait_s)
            self._swept_at = -math.inf  # what the dead hold is worth a look now
            got = await self._want(ask, min(1, ask.max_tokens))
        if isinstance(got, _Refused):
            raise _refusal(got, ask)
        return got

    def left(self, accounts: tuple[Account, ...]) -> str:
        """The tightest of these budgets for a header, as in `0.41usd/day`: what nobody has spent or holds, as this worker last heard.

        Up to 20 ms old: under load, writing it anew for each of many calls costs more than reserving for them.
        """
        now = self._now()
        kept = self._told.get(accounts)
        if kept is not None and now < kept[0]:
            return kept[1]
        if len(self._told) > 1000:
            self._told.clear()
        told = self._left(accounts)
        self._told[accounts] = now + _TOLD_S, told
        return told

    def _left(self, accounts: Iterable[Account]) -> str:
        tightest = min(accounts, key=lambda one: one.left / max(1, one.budget.most), default=None)
        if tightest is None:
            return ""
        number = max(0, tightest.left + tightest.have - tightest.used)
        return str(tightest.budget._replace(most=number))

    async def _want(self, ask: Ask, least: int) -> "Hold | _Refused":
        """What the database says to an ask."""
        loop = asyncio.get_running_loop()
        waiting = _Waiting(ask, least, loop.create_future())
        self._waiting.append(waiting)
        loop.call_soon(self._pump)  # whoever else asks in this turn of the loop goes into the same batch
        try:
            async with asyncio.timeout(_PATIENCE_S):
                return await waiting.future
        except BaseException as error:
            future = waiting.future
            if future.done() and not future.cancelled() and future.exception() is None and isinstance(hold := future.result(), Hold):
                hold.release()
            future.cancel()
            if isinstance(error, TimeoutError):
                raise _away() from error
            raise

    async def _run(self) -> None:
        for beat in count():
            await asyncio.sleep(_BEAT_S)
            self.tick(look=beat % _LOOK_EVERY == 0)

    def tick(self, *, look: bool) -> None:
        """Records what was spent, renews the lease when it is time, and looks, where asked, for what idles."""
        self._is_look_due = self._is_look_due or look
        self._pump()

    def _pump(self) -> None:
        """Sends a batch where there is something to say and none is under way."""
        if self._flight is not None:
            return
        sent = [(one, want_of(one.ask, one.least)) for one in self._waiting if not one.future.done()]  # else it left, or lost patience
        self._waiting = []
        for one, _ in sent:
            self._dirty.update(one.ask.accounts)
        changes = self._changes()
        due = self._live and self._now() > self._valid_until - self._lease_s / 2
        if changes or due:
            self._number += 1
            batch = Batch(self._lease, self._number, self._lease_s, tuple(changes.values()), tuple(want for _, want in sent))
            self._flight = asyncio.create_task(self._fly(batch, changes, sent))

    def _changes(self) -> dict[Account, Change]:
        """What is to be said of each account: what was spent, what idles, what would be good to have."""
        changes = {}
        dirty = self._dirty.copy()
        self._dirty.clear()  # holds have it: it stays the same set
        for account in dirty | self._live if self._is_look_due else dirty:
            spent, account.unflushed = account.unflushed, 0
            returned, wish = surplus_of(account) if self._is_look_due else (0, 0)
            wish, account.wish = max(wish, account.wish), 0
            account.have -= returned
            if spent or returned or wish or account in dirty:
                changes[account] = Change(account.key, spent, returned, max(0, account.used - spent), wish)
        self._is_look_due = False
        return changes

    async def _fly(self, batch: Batch, changes: dict[Account, Change], sent: _Sent) -> None:
        """Brings a batch to the database until it is taken in: a batch that may have been taken in is brought again, under its number."""
        new = {account.key: account.budget.most for account in changes if not account.is_open}
        for delay in chain((0.05, 0.1, 0.2, 0.5), repeat(1.0)):
            started = self._now()
            try:
                outcome = await self._off_loop(partial(self._exchange, new, batch))
                break
            except Exception as error:  # whatever it is: what was spent must not be forgotten
                log.error("purse: the database refuses (%s); trying again", type(error).__name__)
                for one, want in sent:
                    give_back(one.ask, want)
                    if not one.future.done():
                        one.future.set_exception(_away())
                batch, sent = batch._replace(wants=()), []
                new = {account.key: account.budget.most for account in changes}
                await asyncio.sleep(delay)
        self._flight = None
        self._valid_until = started + self._lease_s * 0.9
        self._learn(changes, outcome)
        for (one, want), grant in zip(sent, outcome.grants, strict=True):
            give_back(one.ask, want)
            if outcome.lost:  # what it took of our own was not there; from the beginning
                self._waiting.append(one)
            else:
                self._answer(one, grant, outcome)
        if self._waiting:
            self._pump()

    def _exchange(self, new: dict[Key, int], batch: Batch) -> Outcome:
        """In the thread."""
        if new:
            books.open_accounts(self._engine, new)
        if self._now() - self._swept_at > 1:
            books.sweep(self._engine, self._clock)
            self._swept_at = self._now()
        return books.exchange(self._engine, batch, self._clock)

    def _learn(self, changes: dict[Account, Change], outcome: Outcome) -> None:
        if outcome.lost:
            log.warning("purse: this worker was away for longer than its lease of %g s; what it held has returned", self._lease_s)
            for account in self._live:
                account.have = 0
        for account, change in changes.items():
            standing = outcome.standings[account.key]
            account.is_open = True
            account.have = standing.mine
            account.used -= change.spent
            account.left = standing.left
            account.budget = account.budget._replace(most=standing.most)
            (self._live.add if account.have or account.used else self._live.discard)(account)

    def _answer(self, one: _Waiting, grant: Grant, outcome: Outcome) -> None:
        ask = one.ask
        if grant.tokens >= one.least:
            worst = ask.worst(grant.tokens)
            for account in ask.accounts:
                account.used += worst[account.unit]
            hold = Hold(self._dirty, ask, grant.tokens, worst)
            if one.future.done():
                hold.release()
            else:
                one.future.set_result(hold)
        elif not one.future.done():
            short = sorted((outcome.standings[key] for key in grant.short), key=lambda standing: _budget(standing).is_rate)
            others_hold = any(standing.held > standing.mine for standing in short)
            one.future.set_result(_Refused(short[0], others_hold, outcome.now))  # first what no waiting helps against

    async def _in_thread(self, call: Callable[[], Outcome]) -> Outcome:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


def _budget(standing: Standing) -> Budget:
    return Budget(standing.key.unit, standing.key.every, standing.most)


def _whose(key: Key) -> str:
    if key.kind == BY_MODEL:
        model, _, caller = key.scope.partition("/")
        return f"caller `{caller}` with model `{model}`"
    return f"{key.kind} `{key.scope}`"


def _away() -> Refusal:
    return Unavailable("the database of budgets does not answer, and nothing is spent without it; try again shortly", retry_after_s=2,
                       code="budgets_unavailable")  # fmt: skip


def _refusal(refused: _Refused, ask: Ask) -> Refusal:
    """The refusal in words: whose budget, what is left of it, what was asked, when it renews."""
    standing, budget = refused.standing, _budget(refused.standing)
    key = standing.key
    needs = ask.worst(min(1, ask.max_tokens))[UNITS.index(key.unit)]
    whose = _whose(key)
    renews = renews_at(key.every, refused.now)
    if budget.unit == "concurrent":
        return TooMany(f"{whose} may make {standing.most} calls at once, and makes them; wait for one to end", retry_after_s=1)
    if budget.is_rate:
        wait_s = max(1, math.ceil(renews - refused.now))
        return TooMany(f"{whose} may use {budget}, and has; try again in {wait_s} s", retry_after_s=wait_s)
    when = f"It renews at {datetime.fromtimestamp(renews, UTC):%Y-%m-%dT%H:%M:%SZ}" if renews else "It does not renew"
    left = amount(key.unit, max(0, standing.left))
    is_held = standing.most - standing.spent >= needs  # it is not spent: what calls under way and other workers do not use comes back
    back = ". Enough may come back within seconds, from calls under way and from what workers keep for the next ones" if is_held else ""
    refusal = BudgetExceeded(
        f"the budget of {whose} is {budget}: {amount(key.unit, standing.spent)} spent, {amount(key.unit, standing.held)} held by calls "
        f"under way, {left} left; this call needs at least {amount(key.unit, needs)}. {when}; ask for less, or have it raised{back}",
        retry_after_s=_BACK_S if is_held else None)  # fmt: skip
    refusal.scope, refusal.unit = key.kind, key.unit
    return refusal
