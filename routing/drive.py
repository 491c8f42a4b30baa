"""Runs a request's coroutine without a task: at once, in the stack of the socket's callback, and on in the stack of the one it waits for.

A task costs a round through the event loop at its start and at each wait (measured 2026-11-25: 9 us of 65 a request). What asyncio
itself offers on Python 3.12 (eager tasks) saves the first of them only. Code that needs a task (`asyncio.timeout`) is given one by
whoever calls it: any future or task can be awaited.
"""

import asyncio
from collections.abc import Coroutine
from typing import Any


class Moment(asyncio.Future[None]):
    """A future that is awaited once, and goes on at once when it comes."""

    then: "Drive | None" = None

    def come(self) -> None:
        """Whoever waits for it goes on now, in this stack; a task that waits goes on in the loop's next round."""
        if self.done():
            return
        self.set_result(None)
        if self.then is not None:
            self.then.go_on()


class Drive:
    """One coroutine on its way, once `go_on` is called. It must handle its own exceptions: nobody else would."""

    __slots__ = ("_coroutine", "_waits_for")

    def __init__(self, coroutine: Coroutine[Any, Any, None]) -> None:
        self._coroutine = coroutine
        self._waits_for: asyncio.Future[Any] | None = None

    def go_on(self, _done: "asyncio.Future[Any] | None" = None) -> None:
        """Runs until it must wait, or ends."""
        self._waits_for = None
        try:
            waits_for = self._coroutine.send(None)
        except (StopIteration, asyncio.CancelledError):
            return
        self._wait(waits_for)

    def cancel(self) -> None:
        """Raises `CancelledError` where it waits."""
        waits_for, self._waits_for = self._waits_for, None
        if isinstance(waits_for, Moment):
            waits_for.then = None
            try:
                self._wait(self._coroutine.throw(asyncio.CancelledError()))
            except (StopIteration, asyncio.CancelledError):
                return
        elif waits_for is not None:
            waits_for.cancel()  # it is told, and raises where it waits

    def _wait(self, waits_for: "asyncio.Future[Any]") -> None:
        waits_for._asyncio_future_blocking = False  # as a task does: says that the future was awaited and not just yielded
        self._waits_for = waits_for
        if type(waits_for) is Moment:
            waits_for.then = self
        else:
            waits_for.add_done_callback(self.go_on)
