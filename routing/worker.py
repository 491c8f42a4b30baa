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
from datetime import date
from email.utils import formatdate
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError

from routing import router
from routing.choose import Target
from routing.config import ConfigError, Limits
from routing.errors import Refusal, Unauthorized
from routing.forward import Reply
from routing.metrics import exposition
from routing.pace import hasty_runs, paces
from routing.plan import open_house
from routing.providers import stale_prices
from routing.prune import prune_runs
from routing.router import Request
from routing.settings import Settings
from routing.strangers import Strangers
from routing.tasks import report_lines
from routing.tracing import Tracing, is_on
from routing.upstream import Origin, Pool, Timeouts, UpstreamError

log = logging.getLogger("inhouse.router")
_TICK_S = 0.25
_HEALTH_EVERY_S = 1.0
_PACES_EVERY_S = 15.0
_EVIDENCE_EVERY_S = 5.0
_PRUNE_EVERY_S = 3600.0
_PACES_OVER_S = 7 * 86400.0
_HEALTH_TIMEOUTS = Timeouts(1.0, 5.0, 5.0, 5.0)


class Caller(Protocol):
    """A caller's connection, as far as a worker looks after it."""

    @property
    def is_answering(self) -> bool:
        """Whether a request on it is being answered."""

    def look_after(self, now: float) -> None:
        """Ends what has taken too long."""

    def cut(self) -> None:
        """Ends it at once."""


class Worker:
    """Everything that one process of the router holds. Made inside its running loop; `start` and `stop` are called once each."""

    def __init__(self, settings: Settings) -> None:
        self.date = b""
        self.connections: Collection[Caller] = ()  # uvicorn's, told by the first of them
        self._parent = os.getppid()
        self._pool = Pool()
        self._house, self._planner = open_house(settings, self._pool, Tracing() if is_on() else None)
        self._metrics = self._house.metrics
        self._strangers = Strangers(self._house.audit.append)
        self._reload = asyncio.Event()
        self._background: list[asyncio.Task[None]] = []

    @property
    def limits(self) -> Limits:
        """What a request may weigh, as of now."""
        return self._house.plan.site.routes.limits

    async def start(self) -> None:
        """Returns when requests can be taken: the models' health is known."""
        house = self._house
        self._look_around()
        await house.purse.start()
        await self._refresh_tokens()
        await self._check_health()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload.set)
        jobs = (self._pool.sweep(), self._tick(), self._learn(), self._watch_health(), self._watch_tokens(), self._watch_paces(),
                self._watch_files(), self._watch_evidence(), self._prune())  # fmt: skip
        self._background = [asyncio.create_task(job) for job in jobs]
        gc.collect()
        gc.freeze()  # what lives as long as the worker is not looked at again
        gc.set_threshold(50_000, 20, 50)  # a request leaves next to no cycles behind; looking every 700 objects costs more than it finds
        for line in report_lines(house.plan.classifier.reports):
            log.info(line)
        self._tell()

    async def stop(self) -> None:
        """Ends what is still being answered, and writes every row."""
        for connection in tuple(self.connections):
            connection.cut()
        await asyncio.sleep(0.05)  # they are told of it by the loop, and write their rows
        for job in self._background:
            job.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self._pool.close()
        await self._house.purse.close()
        self._strangers.tell(time.time(), at_once=True)
        await asyncio.to_thread(self._house.samples.close)
        await asyncio.to_thread(self._house.ledger.close)
        await asyncio.to_thread(self._house.audit.close)
        if self._house.tracing is not None:
            await asyncio.to_thread(self._house.tracing.close)

    async def reply(self, request: Request) -> Reply:
        """The reply to a request, a refusal's included. Our own bugs become a plain 500 and a line in the log."""
        try:
            if request.path == "/metrics":
                return Reply(200, b"content-type: text/plain; version=0.0.4\r\n", await asyncio.to_thread(exposition))
            return await router.answer(self._house, request)
        except Refusal as refusal:
            if isinstance(refusal, Unauthorized):
                self._strangers.saw(refusal)
            return refused(refusal, request.path, request.headers)
        except Exception:
            log.exception("a request to %s failed by our own fault", ascii(request.path[:80]))
            return refused(Refusal("the router failed; its log says why"), request.path, request.headers)

    async def _tick(self) -> None:
        """Looks after requests; one timer for all is cheaper than one for each."""
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
        self._strangers.tell(time.time())
        self._metrics.in_flight.set(sum(connection.is_answering for connection in self.connections))

    async def _learn(self) -> None:
        """Takes in what other processes have written: keys, teams, runs. A database on another machine may be slow, so in a thread."""
        house, is_away = self._house, False
        while True:
            await asyncio.sleep(_TICK_S)
            try:
                await asyncio.to_thread(house.keys.refresh)
                await house.runs.look()
                house.underway.end(house.runs.killed)
            except (SQLAlchemyError, OSError) as error:  # the keys and runs that are known stay in force
                if not is_away:
                    log.warning("the database can't be read (%s); going on with what is known", type(error).__name__)
                is_away = True
                continue
            if is_away:
                log.warning("the database can be read again")
            is_away = False

    async def _watch_paces(self) -> None:
        """Looks now and then for runs that spend much faster than others of their task."""
        while True:
            await asyncio.sleep(_PACES_EVERY_S)
            now = time.time()
            try:
                known = await asyncio.to_thread(paces, self._house.engine, now - _PACES_OVER_S)
                self._house.hasty = await asyncio.to_thread(hasty_runs, self._house.engine, known, now - 600)
            except SQLAlchemyError as error:
                log.warning("the ledger can't be read for the pace of runs (%s)", type(error).__name__)

    async def _prune(self) -> None:
        """Forgets runs that ended long ago."""
        while True:
            before = time.time() - self._house.plan.site.routes.keep_runs_days * 86400
            try:
                if pruned := await asyncio.to_thread(prune_runs, self._house.engine, before):
                    log.info("%d runs that ended long ago are forgotten; the ledger keeps what they cost", pruned)
            except SQLAlchemyError as error:
                log.warning("old runs can't be pruned (%s)", type(error).__name__)
            await asyncio.sleep(_PRUNE_EVERY_S)

    async def _watch_files(self) -> None:
        """Takes in changed files, and all of them on SIGHUP."""
        house = self._house
        while True:
            try:
                async with asyncio.timeout(_HEALTH_EVERY_S):
                    await self._reload.wait()
            except TimeoutError:
                if not self._planner.has_news():
                    continue
            self._reload.clear()
            try:
                plan = await asyncio.to_thread(self._planner.read, house.plan)
                known = await asyncio.to_thread(self._planner.known, plan)
            except (ConfigError, OSError, SQLAlchemyError) as error:
                house.stale = str(error) if not isinstance(error, SQLAlchemyError) else "the database can't be written"
                log.error("the configuration was not taken, and the one before it stays in force: %s", house.stale)
                continue
            house.plan, house.known, house.stale = plan, known, ""
            house.forget_accounts()
            self._tell()
            await self._refresh_tokens()
            await self._check_health()

    def _tell(self) -> None:
        plan = self._house.plan
        log.info("configuration %s is in force", plan.version)
        for line in stale_prices(plan.site.routes.providers, date.today()):
            log.warning(line)

    async def _watch_evidence(self) -> None:
        """Sees models whose files are replaced, and comparisons that are newer than what a route was given on."""
        while True:
            await asyncio.sleep(_EVIDENCE_EVERY_S)
            self._house.known = await asyncio.to_thread(self._planner.known, self._house.plan)

    async def _refresh_tokens(self) -> None:
        if self._house.plan.tokens is not None:
            await self._house.plan.tokens.refresh()

    async def _watch_tokens(self) -> None:
        while True:
            await asyncio.sleep(_HEALTH_EVERY_S)
            await self._refresh_tokens()

    async def _watch_health(self) -> None:
        while True:
            await asyncio.sleep(_HEALTH_EVERY_S)
            await self._check_health()

    async def _check_health(self) -> None:
        targets = [target for target in self._house.plan.fleet.all() if target.is_ours]
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
