"""One worker of the router: what it knows, started and stopped with its process, and what it looks after four times a second.

Requests come from `connection`, their life is in `router`. Supervision of workers is `server`'s.
"""

import asyncio
import gc
import logging
import os
import signal
import time
from collections.abc import Collection, Mapping
from email.utils import formatdate
from typing import TYPE_CHECKING

from routing import router
from routing.choose import Fleet, Target
from routing.errors import Refusal
from routing.forward import Door, Reply
from routing.keys import KeyRing
from routing.ledger import Ledger
from routing.metrics import Metrics, exposition
from routing.router import House, Request
from routing.settings import Settings
from routing.store import open_store
from routing.tasks import report_lines
from routing.upstream import Origin, Pool, Timeouts, UpstreamError

if TYPE_CHECKING:
    from routing.connection import Connection

log = logging.getLogger("inhouse.router")
_TICK_S = 0.25
_HEALTH_EVERY_S = 1.0
_HEALTH_TIMEOUTS = Timeouts(1.0, 5.0, 5.0, 5.0)


class Worker:
    """Everything that one process of the router holds. Made inside its running loop; `start` and `stop` are called once each."""

    def __init__(self, settings: Settings) -> None:
        site = settings.site()
        self.limits = site.routes.limits
        self.date = b""
        self.connections: Collection[Connection] = ()  # uvicorn's, told by the first of them
        self._parent = os.getppid()
        self._metrics = Metrics()
        engine = open_store(settings.home)
        self._pool = Pool()
        self._ledger = Ledger(engine, self._metrics.observe)
        self._house = House(site, settings.classifier(site.routes), KeyRing(engine), Fleet(site),
                            Door(self._pool, self._ledger, site.routes.limits), self._ledger)  # fmt: skip
        self._background: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Returns when requests can be taken: the models' health is known."""
        self._look_around()
        await self._check_health()
        self._background = [asyncio.create_task(work) for work in (self._pool.sweep(), self._tick(), self._watch_health())]
        gc.collect()
        gc.freeze()  # what lives as long as the worker is not looked at again
        gc.set_threshold(50_000, 20, 50)  # a request leaves next to no cycles behind; looking every 700 objects costs more than it finds
        for line in report_lines(self._house.classifier.reports):
            log.info(line)

    async def stop(self) -> None:
        """Ends what is still being answered, and writes every row."""
        for connection in tuple(self.connections):
            connection.transport.abort()
        await asyncio.sleep(0.05)  # they are told of it by the loop, and write their rows
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self._pool.close()
        await asyncio.to_thread(self._ledger.close)

    async def reply(self, request: Request) -> Reply:
        """The reply to a request, a refusal's included. Our own bugs become a plain 500 and a line in the log."""
        try:
            if request.path == "/metrics":
                return Reply(200, b"content-type: text/plain; version=0.0.4\r\n", await asyncio.to_thread(exposition))
            return await router.answer(self._house, request)
        except Refusal as refusal:
            return refused(refusal, request.path, request.headers)
        except Exception:
            log.exception("a request to %s failed by our own fault", ascii(request.path[:80]))
            return refused(Refusal("the router failed; its log says why"), request.path, request.headers)

    async def _tick(self) -> None:
        """Looks after requests and keys; one timer for all is cheaper than one for each."""
        while True:
            await asyncio.sleep(_TICK_S)
            self._look_around()

    def _look_around(self) -> None:
        self.date = formatdate(time.time(), usegmt=True).encode()
        if os.getppid() != self._parent:  # nobody supervises: end as if told to
            os.kill(os.getpid(), signal.SIGTERM)
        now = time.monotonic()
        for connection in tuple(self.connections):
            connection.look_after(now)
        self._metrics.in_flight.set(sum(connection.is_answering for connection in self.connections))
        try:
            self._house.keys.refresh()
        except Exception:  # the database is away: the keys that are known stay in force
            log.warning("keys: cannot read the database; going on with the keys that are known")

    async def _watch_health(self) -> None:
        while True:
            await asyncio.sleep(_HEALTH_EVERY_S)
            await self._check_health()

    async def _check_health(self) -> None:
        targets = list(self._house.fleet.all())
        by_origin = {target.origin: [t for t in targets if t.origin == target.origin] for target in targets}
        await asyncio.gather(*(self._check(origin, owners) for origin, owners in by_origin.items()))

    async def _check(self, origin: Origin, targets: list[Target]) -> None:
        request = f"GET {origin.prefix}/health HTTP/1.1\r\nhost: {origin.authority}\r\n\r\n".encode()
        try:
            answer = await self._pool.send(origin, request, _HEALTH_TIMEOUTS)
            try:
                await answer.body(1 << 16)
                is_ready = answer.status == 200
            finally:
                answer.release()
        except UpstreamError:
            is_ready = False
        for target in targets:
            if is_ready and not target.ready:
                target.recovered()
            target.ready = is_ready
            self._metrics.ready.labels(target.model, target.cell).set(is_ready)


def refused(refusal: Refusal, path: str, headers: Mapping[bytes, bytes]) -> Reply:
    """A refusal as the caller's SDK expects it, with the caller's request id where there is one."""
    lines = [b"content-type: application/json\r\n", *(f"{name}: {value}\r\n".encode() for name, value in refusal.headers().items())]
    given = headers.get(b"x-request-id", b"")
    if given and router.is_request_id(given):
        lines.append(b"x-request-id: %b\r\n" % given)
    return Reply(refusal.status, b"".join(lines), refusal.body(anthropic=path.startswith("/v1/messages")))
