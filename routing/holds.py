"""One budget as a worker knows it, a call that asks for a part of it, and the hold that it gets: plain data, in microseconds.

Where allotments come from is `purse`'s business.
"""

import time
from operator import gt
from typing import NamedTuple

from routing.accounts import Key, Part, Want
from routing.budgets import UNITS, Budget
from routing.prices import Charge, Price

_FIRST_WISH = 8  # calls' worth that a worker asks for beyond the first one
_ROUNDS = 3  # looks' worth of calls that a busy worker keeps
CONCURRENT = UNITS.index("concurrent")  # held only, never spent


class Account:
    """One budget as one worker knows it. Free to reserve is `have - used`; `used` is held by calls, or spent and not yet recorded."""

    __slots__ = ("__weakref__", "budget", "have", "is_open", "key", "left", "taken", "unflushed", "unit", "used", "wish")

    def __init__(self, key: Key, budget: Budget) -> None:
        self.key = key
        self.budget = budget
        self.unit = UNITS.index(budget.unit)
        self.have = 0
        self.used = 0
        self.unflushed = 0
        self.taken = 0  # since the last look
        self.wish = 0  # of calls that wait, for the calls after them
        self.left = budget.most  # nobody's, when last heard of
        self.is_open = False  # known to be in the database


class Ask(NamedTuple):
    """A call that wants to be made: its worst case, against all these accounts or none; none of them twice.

    `max_tokens` is for each of its answers, 0 where nothing is written.
    """

    accounts: tuple[Account, ...]
    prompt_tokens: int
    max_tokens: int
    price: Price
    request_id: str
    attempt: int = 1
    answers: int = 1

    def worst(self, max_tokens: int) -> Charge:
        """What it costs when every answer is as long as that."""
        return self.price.charge(self.prompt_tokens, max_tokens * self.answers)


class Hold:
    """The right to make one call whose answers have at most `max_tokens` tokens each. Settle or release it, once; again is harmless."""

    __slots__ = ("_ask", "_dirty", "_open", "_since", "max_tokens", "worst")

    def __init__(self, dirty: set[Account], ask: Ask, max_tokens: int, worst: Charge) -> None:
        self._dirty = dirty
        self._ask = ask
        self._open = True
        self._since = time.monotonic()
        self.max_tokens = max_tokens
        self.worst = worst

    @property
    def accounts(self) -> tuple[Account, ...]:
        """The budgets that it is held from."""
        return self._ask.accounts

    @property
    def prompt_tokens(self) -> int:
        """The bound of what is read."""
        return self._ask.prompt_tokens

    @property
    def answers(self) -> int:
        """How many answers it is for."""
        return self._ask.answers

    @property
    def asked_tokens(self) -> int:
        """What was asked for each answer, of which `max_tokens` were granted."""
        return self._ask.max_tokens

    def settle(self, prompt_tokens: int | None, completion_tokens: int | None, *, exact: bool) -> Charge:
        """Charges what the call used, and no more than was reserved where a model ignores what it may write. Only exact counts give
        something back; without them the worst case is charged. Never raises."""
        if exact and prompt_tokens is not None and completion_tokens is not None:
            price = self._ask.price
            charge = price.charge(max(0, prompt_tokens), max(0, completion_tokens))  # an engine may say anything
            if price.wall_gpus:
                charge = price.wall(self.worst, time.monotonic() - self._since)._replace(tokens=charge.tokens)
            if self._ask.accounts and any(map(gt, charge, self.worst)):
                charge = Charge(*map(min, charge, self.worst))
        else:
            charge = self.worst
        return self._close(charge)

    def release(self) -> None:
        """The call was never sent: nothing is charged."""
        self._close(NOTHING)

    def _close(self, charge: Charge) -> Charge:
        if self._open:
            self._open = False
            for account in self._ask.accounts:
                number = charge[account.unit] if account.unit != CONCURRENT else 0
                account.used += number - self.worst[account.unit]
                account.unflushed += number
                self._dirty.add(account)
        return charge


NOTHING = Charge(0, 0, 0, 0, 0)


def want_of(ask: Ask, least: int) -> Want:
    """An ask for the database. What this worker has of its own is taken at once, so that no other call takes it meanwhile."""
    worst = ask.worst(ask.max_tokens)
    linear = ask.price.linear(ask.prompt_tokens, ask.answers)
    parts = []
    for account in ask.accounts:
        number = worst[account.unit]
        taken = max(0, min(number, account.have - account.used))
        account.used += taken
        account.taken += number
        if account.unit != CONCURRENT and least == ask.max_tokens:  # where that was refused, reserves would take what calls need
            account.wish = max(account.wish, _FIRST_WISH * number)
        parts.append(Part(account.key, taken, *linear[account.unit]))
    return Want(tuple(parts), ask.max_tokens, least)


def give_back(ask: Ask, want: Want) -> None:
    """What the want took returns."""
    for account, part in zip(ask.accounts, want.parts, strict=True):
        account.used -= part.taken


def surplus_of(account: Account) -> tuple[int, int]:
    """(what to return, what to wish for): a busy worker keeps what a few looks' worth of calls need, an idle one nothing."""
    free = account.have - account.used
    target = 0 if account.unit == CONCURRENT else _ROUNDS * account.taken
    account.taken = 0
    if free > 2 * target:
        return free - target, 0
    return 0, target - free if free < target // 2 else 0
