"""The calls of runs that a worker is answering, so that all of a run's end when it is stopped. Calls without a run are not here."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from weakref import WeakSet

from routing.call import Call
from routing.relay import Relay, stopped


class UnderWay:
    """What is being done for runs. Belongs to the event loop."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], Call] = {}
        self._relays: WeakSet[Relay] = WeakSet()

    @contextmanager
    def waiting(self, call: Call) -> Iterator[None]:
        """While the block runs, its task is cancelled where the call's run is stopped; `call.is_stopped` then says so."""
        task = asyncio.current_task()
        assert task is not None, "requests are answered in tasks"
        self._tasks[task] = call
        try:
            yield
        finally:
            del self._tasks[task]

    def streaming(self, relay: Relay) -> None:
        """From now on the relay is ended where its run is stopped."""
        self._relays.add(relay)

    def end(self, killed: Mapping[str, str]) -> None:
        """Ends what is under way for these runs (id -> why) and all below them."""
        if not killed:
            return
        for task, call in tuple(self._tasks.items()):
            if not call.is_stopped and _why(call, killed) is not None:
                call.is_stopped = True
                task.cancel()
        for relay in tuple(self._relays):
            if (why := _why(relay.call, killed)) is not None:
                relay.stop(stopped(relay.call, why))


def _why(call: Call, killed: Mapping[str, str]) -> str | None:
    return next((killed[one] for one in call.run.line if one in killed), None) if call.run is not None else None
