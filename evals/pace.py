"""How many requests may be under way: grows by one a round of answers, halves when the other side says 429, and waits as long as it says.

Additive increase, multiplicative decrease (Chiu and Jain 1989). Not here: what is asked.
"""

import asyncio
import math
import random
import time
from collections import deque
from email.utils import parsedate_to_datetime

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 60.0


class Pace:
    """Places for requests under way, shared by all that ask one endpoint."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.limit = float(most)
        self.refusals = 0
        self._under_way = 0
        self._in_a_row = 0
        self._not_before = 0.0
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def turn(self) -> None:
        """Returns when one more may be sent. Follow it with `over`."""
        while self._under_way >= int(self.limit):
            place = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            await place
        self._under_way += 1
        while (wait_s := self._not_before - time.monotonic()) > 0:  # noqa: ASYNC110  # the clock sets no event
            await asyncio.sleep(wait_s * random.uniform(1.0, 1.1))  # noqa: S311  # so that not all come back at once

    def over(self) -> None:
        """The request is no longer under way; those that wait may see whether there is a place."""
        self._under_way -= 1
        for _ in range(max(0, int(self.limit) - self._under_way)):
            if self._waiting and not (place := self._waiting.popleft()).done():
                place.set_result(None)

    def answered(self) -> None:
        """An answer came: a little more may be asked."""
        self._in_a_row = 0
        self.limit = min(float(self.most), self.limit + 1 / self.limit)

    def refused(self, wait_s: float | None) -> None:
        """Told to ask less: nobody sends for `wait_s`, or for longer each time; the first refusal of a burst halves the limit."""
        self.refusals += 1
        now = time.monotonic()
        if now >= self._not_before:
            self.limit = max(1.0, self.limit / 2)
            self._in_a_row += 1
        wait_s = wait_s if wait_s is not None else min(_LONGEST_WAIT_S, _FIRST_WAIT_S * 2 ** (self._in_a_row - 1))
        self._not_before = max(self._not_before, now + wait_s)


def retry_after_s(value: str | None) -> float | None:
    """The header's seconds or date, at most ten minutes and never negative; None where it says nothing that can be read."""
    if not value:
        return None
    try:
        wait_s = float(value)
    except ValueError:
        try:
            wait_s = parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return None
    return min(600.0, max(0.0, wait_s)) if math.isfinite(wait_s) else None
