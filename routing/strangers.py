"""Requests of nobody we know (401), told to the audit log: one entry a second for each cause, with how many there were.

So a flood of them can't fill the disk. The key that was shown is never told, only the id of one that we made.
"""

from collections import Counter
from collections.abc import Callable

from routing.chain import Entry
from routing.errors import Unauthorized

_EVERY_S = 1.0
_MOST = 20  # causes that are told apart at once; of more, only how many


class Strangers:
    """One worker's. What was not told yet when a worker is killed is lost: the last second of it."""

    def __init__(self, append: Callable[[Entry], None]) -> None:
        self._append = append
        self._seen: Counter[tuple[str, str]] = Counter()
        self._told_at = 0.0

    def saw(self, refusal: Unauthorized) -> None:
        """Counts a request that was refused so."""
        one = (refusal.cause, refusal.who)
        self._seen[one if one in self._seen or len(self._seen) < _MOST else ("others", "")] += 1

    def tell(self, now: float, *, at_once: bool = False) -> None:
        """Tells what was counted, where the last time was a second ago. `now` is in Unix seconds; call it a few times a second."""
        if self._seen and (at_once or abs(now - self._told_at) >= _EVERY_S):
            self._told_at = now
            for (cause, who), n in self._seen.items():
                self._append(Entry(now, "refusal", who, "identify", Unauthorized.code, why=f"{cause}, {n} requests"))
            self._seen.clear()
