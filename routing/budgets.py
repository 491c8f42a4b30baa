"""What may be used, as people write it: `1usd/day`, `20000tokens/minute`, `500calls`, `8concurrent`. Amounts are whole numbers inside.

Only the words: who counts them is `accounts` (in the database) and `purse` (in a worker).
"""

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

UNITS = ("nanousd", "tokens", "gpu_ms", "calls", "concurrent")
PERIODS_S = {"minute": 60, "hour": 3600, "day": 86400, "month": 0, "total": 0}  # a month is as long as it is
NANOUSD = 1_000_000_000
_MOST = 1 << 60  # a thousand million dollars; what a database's whole number holds with room to add
_TEXT = re.compile(r"(\d+(?:\.\d{1,9})?) ?(usd|tokens|gpu_ms|calls|concurrent)(?:/(minute|hour|day|month|total))?")


class Budget(NamedTuple):
    """At most so many of a unit in every period. Money is in nano-USD (10^-9 US dollars), GPU time in ms times GPUs.

    Periods are calendar ones in UTC by the database's clock. `concurrent` is how many calls at once.
    """

    unit: str
    every: str
    most: int

    @property
    def is_rate(self) -> bool:
        """Whether it is a matter of waiting a moment (429) rather than of money gone (402)."""
        return self.every == "minute" or self.unit == "concurrent"

    def __str__(self) -> str:
        return f"{amount(self.unit, self.most)}{'' if self.every == 'total' else f'/{self.every}'}"


def budget_of(text: str) -> Budget:
    """A budget from its text; without a period it is for good. Raises `ValueError`."""
    found = _TEXT.fullmatch(text.strip())
    if found is None:
        raise ValueError(f"`{text}` is not a budget; write 1usd/day, 20000tokens/minute, 500calls/month, 60000gpu_ms/hour or 8concurrent")
    number, unit, every = found.groups()
    if unit != "usd" and "." in number:
        raise ValueError(f"`{text}`: {unit} come in whole numbers")
    if unit == "concurrent" and every not in (None, "total"):
        raise ValueError(f"`{text}`: concurrent calls have no period; write {number}concurrent")
    whole, _, part = number.partition(".")
    most = int(whole) * NANOUSD + int(part.ljust(9, "0")) if unit == "usd" else int(whole)
    if most > _MOST:
        raise ValueError(f"`{text}` is more than can be counted; {amount('nanousd' if unit == 'usd' else unit, _MOST)} is the most")
    return Budget("nanousd" if unit == "usd" else unit, every or "total", most)


def budgets_of(texts: Iterable[str]) -> tuple[Budget, ...]:
    """Budgets from their texts. Raises `ValueError`, also where two are about the same."""
    budgets = tuple(map(budget_of, texts))
    for i, one in enumerate(budgets):
        for other in budgets[:i]:
            if (one.unit, one.every) == (other.unit, other.every):
                raise ValueError(f"`{other}` and `{one}` are both about the same; give one")
    return budgets


def amount(unit: str, number: int) -> str:
    """A number of a unit as people write it."""
    if unit != "nanousd":
        return f"{number}{unit}"
    sign, number = ("-", -number) if number < 0 else ("", number)
    text = f"{sign}{number // NANOUSD}.{number % NANOUSD:09d}".rstrip("0").rstrip(".")
    return f"{text}usd"


def period_start(every: str, now: float) -> int:
    """When the period that `now` (Unix seconds) lies in began; 0 for `total`."""
    if every == "month":
        day = datetime.fromtimestamp(now, UTC)
        return int(datetime(day.year, day.month, 1, tzinfo=UTC).timestamp())
    length = PERIODS_S[every]
    return int(now // length) * length if length else 0


def renews_at(every: str, now: float) -> int:
    """When the next period begins, in Unix seconds; 0 for `total`, which never does."""
    if every == "month":
        return period_start("month", period_start("month", now) + 32 * 86400)
    return period_start(every, now) + PERIODS_S[every]
