"""The router's process: granian's HTTP/1.1 server in front, an ASGI application that turns its events into `router`'s data behind.

Granian was chosen by measurement: of the maintained servers it cost least CPU per request and it bounds header size and time, which
uvicorn does not. Its ASGI interface, not the faster RSGI: RSGI's stream queues without bound when a caller reads slowly (2.8: an
unbounded channel), ASGI's holds four chunks and then waits.
"""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

from routing import router
from routing.choose import Fleet, Target
from routing.config import MODELS_PORT, SHIPPED, Limits, Routes, Site, read_site
from routing.errors import HeadersTooLarge, Refusal, TooLarge, TooSlowToSend
from routing.forward import Door, Reply
from routing.keys import KeyRing
from routing.ledger import Ledger
from routing.router import House, Request
from routing.store import open_store
from routing.tasks import Classifier, load_or_train, report_lines
from routing.upstream import Origin, Pool, Timeouts, UpstreamError
from serving.catalog import SHIPPED as SHIPPED_MODELS
from serving.catalog import read_catalog

log = logging.getLogger("inhouse.router")
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_TICK_S = 0.25
_WATCH_AFTER_S = 0.2  # quick answers need no watch for the caller leaving; slower ones get it at the next tick
_HEALTH_EVERY_S = 1.0
_HEALTH_TIMEOUTS = Timeouts(1.0, 5.0, 5.0, 5.0)
_LINGER_S = 5.0
_SHUTDOWN_S = 30


class Settings(NamedTuple):
    """Where the router finds and puts things, and where it listens. Workers get it through the environment."""

    home: Path
    models: Path
    routes: Path
    host: str
    port: int
    workers: int
    models_port: int

    @classmethod
    def from_environment(cls) -> "Settings":
        """From `INHOUSE_*`, with the shipped files and loopback as defaults."""
        get = os.environ.get
        return cls(
            home=Path(get("INHOUSE_HOME", ".inhouse")).absolute(),
            models=Path(get("INHOUSE_MODELS", SHIPPED_MODELS)),
            routes=Path(get("INHOUSE_ROUTES", SHIPPED)),
            host=get("INHOUSE_HOST", "127.0.0.1"),
            port=int(get("INHOUSE_PORT", "8000")),
            workers=int(get("INHOUSE_WORKERS", "1")),
            models_port=int(get("INHOUSE_MODELS_PORT", MODELS_PORT)),
        )

    def environment(self) -> dict[str, str]:
        """The same as environment variables."""
        told = {f"INHOUSE_{name.upper()}": str(value) for name, value in self._asdict().items()}
        return told | {"PROMETHEUS_MULTIPROC_DIR": str(self.home / "run" / "metrics")}

    def site(self) -> Site:
        """The site these settings point at. Raises `ConfigError`."""
        return read_site(self.routes, read_catalog(self.models), models_port=self.models_port)

    def classifier(self, routes: Routes) -> Classifier:
        """The classifier for these routes, trained now if it was not before."""
        return load_or_train(self.home / "run" / "classifier.json", routes.tasks, routes.default_task, routes.auto)


class Exchange:
    """One request that is being answered: enough to end it when its caller leaves or dawdles."""

    __slots__ = ("body_read", "reason", "receive", "sending_since", "started", "task", "watch")

    def __init__(self, receive: Receive, started: float, loop: asyncio.AbstractEventLoop) -> None:
        self.receive = receive
        self.started = started
        self.task = asyncio.current_task(loop)
        self.body_read = False
        self.sending_since = 0.0
        self.watch: asyncio.Task[None] | None = None
        self.reason = ""

    def end(self, reason: str) -> None:
        """Cancels the request's task, once."""
        if not self.reason and self.task is not None:
            self.reason = reason
            self.task.cancel()

    async def watch_caller(self) -> None:
        """Ends the request when its caller leaves."""
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.end("client_left")


class App:
    """The ASGI application of one worker."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._exchanges: set[Exchange] = set()
        self._background: list[asyncio.Task[None]] = []

    async def __call__(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        """ASGI's entry."""
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)

    async def _http(self, scope: dict[str, Any], receive: Receive, send: Send) -> None:
        at, started = router.now()
        exchange = Exchange(receive, started, self._pool.loop)
        self._exchanges.add(exchange)
        try:
            reply = await self._reply(scope, exchange, at)
            await self._send(exchange, reply, send)
        except asyncio.CancelledError:
            if exchange.reason != "body_timeout":
                return  # the caller has left, or never reads: there is nobody to tell
            await self._send(exchange, _refused(TooSlowToSend("the request's body did not arrive in time; send it faster"), scope), send)
        finally:
            self._exchanges.discard(exchange)
            exchange.task = None  # else task and exchange hold each other, and only the collector could free them
            if exchange.watch is not None:
                exchange.watch.cancel()
        if not exchange.body_read and not exchange.reason:
            await _linger(exchange)

    async def _reply(self, scope: dict[str, Any], exchange: Exchange, at: float) -> Reply:
        """The reply to a request, a refusal's included. Our own bugs become a plain 500 and a line in the log."""
        path = scope["path"]
        try:
            if path == "/metrics":
                from routing.metrics import exposition

                return Reply(200, [(b"content-type", b"text/plain; version=0.0.4")], await asyncio.to_thread(exposition))
            headers = dict(scope["headers"])
            body = await _body(headers, exchange, self._limits)
            return await router.answer(self._house, Request(scope["method"], path, headers, body, at, exchange.started))
        except Refusal as refusal:
            return _refused(refusal, scope)
        except Exception:
            log.exception("a request to %s failed by our own fault", path[:80])
            return _refused(Refusal("the router failed; its log says why"), scope)

    async def _send(self, exchange: Exchange, reply: Reply, send: Send) -> None:
        await send({"type": "http.response.start", "status": reply.status, "headers": reply.headers})
        if isinstance(reply.body, bytes):
            await send({"type": "http.response.body", "body": reply.body, "more_body": False})
            return
        async with contextlib.aclosing(_closable(reply.body)) as stream:
            async for data in stream:
                exchange.sending_since = time.monotonic()
                await send({"type": "http.response.body", "body": data, "more_body": True})
                exchange.sending_since = 0.0
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._start()
        except Exception as error:
            log.exception("the router's worker can't start")
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._stop()
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> None:
        from routing.metrics import Metrics

        settings = self._settings
        site = settings.site()
        self._limits = site.routes.limits
        self._metrics = Metrics()
        engine = open_store(settings.home)
        self._pool = Pool()
        self._ledger = Ledger(engine, self._metrics.observe)
        self._house = House(site, settings.classifier(site.routes), KeyRing(engine), Fleet(site),
                            Door(self._pool, self._ledger, site.routes.limits), self._ledger)  # fmt: skip
        await self._check_health()
        self._background = [asyncio.create_task(work) for work in (self._pool.sweep(), self._tick(), self._watch_health())]
        gc.collect()
        gc.freeze()  # what lives as long as the worker is not looked at again
        gc.set_threshold(50_000, 20, 50)  # a request leaves next to no cycles behind; looking every 700 objects costs more than it finds
        for line in report_lines(self._house.classifier.reports):
            log.info(line)

    async def _stop(self) -> None:
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self._pool.close()
        await asyncio.to_thread(self._ledger.close)

    async def _tick(self) -> None:
        """Looks after requests and keys four times a second; one timer for all is cheaper than one for each."""
        while True:
            await asyncio.sleep(_TICK_S)
            now = time.monotonic()
            for exchange in tuple(self._exchanges):
                self._look_after(exchange, now)
            self._metrics.in_flight.set(len(self._exchanges))
            try:
                self._house.keys.refresh()
            except Exception:  # the database is away: the keys that are known stay in force
                log.warning("keys: cannot read the database; going on with the keys that are known")

    def _look_after(self, exchange: Exchange, now: float) -> None:
        age = now - exchange.started
        if not exchange.body_read:
            if age > self._limits.body_timeout_s:
                exchange.end("body_timeout")
        elif exchange.watch is None and age > _WATCH_AFTER_S:
            exchange.watch = asyncio.create_task(exchange.watch_caller())
        if exchange.sending_since and now - exchange.sending_since > self._limits.idle_timeout_s:
            exchange.end("slow_reader")

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


async def _body(headers: dict[bytes, bytes], exchange: Exchange, limits: Limits) -> bytes:
    """The request's body. Raises `TooLarge` before reading what is declared too large, and as soon as it is where nothing is declared."""
    size = sum(map(len, headers)) + sum(map(len, headers.values()))
    declared = headers.get(b"content-length", b"")
    expected = int(declared) if declared.isdigit() else 0
    if size > limits.header_bytes:
        raise HeadersTooLarge(f"the headers are {size} bytes; at most {limits.header_bytes} are taken")
    if expected > limits.body_bytes:
        raise TooLarge(f"the body is {expected} bytes; at most {limits.body_bytes} are taken (`limits.body_bytes` in routes.yaml)")
    message = await exchange.receive()
    body: bytes = message.get("body", b"")
    if len(body) < expected or (not expected and message.get("more_body")):
        parts, got = [body], len(body)
        while message.get("more_body"):
            message = await exchange.receive()
            parts.append(message.get("body", b""))
            got += len(parts[-1])
            if got > limits.body_bytes:
                raise TooLarge(f"the body is over {limits.body_bytes} bytes (`limits.body_bytes` in routes.yaml)")
        body = b"".join(parts)
    if message["type"] == "http.disconnect":
        exchange.end("client_left")
        await asyncio.sleep(0)  # the cancellation arrives here
    exchange.body_read = True
    return body


async def _linger(exchange: Exchange) -> None:
    """Reads away what a refused caller is still sending, for a while: hanging up on it would destroy the refusal on its way."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            while (await exchange.receive()).get("more_body"):
                pass


def _refused(refusal: Refusal, scope: dict[str, Any]) -> Reply:
    anthropic = scope["path"].startswith("/v1/messages")
    given = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    headers = [(b"content-type", b"application/json"), *((k.encode(), v.encode()) for k, v in refusal.headers().items())]
    if given and router.is_request_id(given):
        headers.append((b"x-request-id", given))
    return Reply(refusal.status, headers, refusal.body(anthropic=anthropic))


def _closable(stream: AsyncIterator[bytes]) -> Any:
    return stream  # an async generator, which `aclosing` closes whether it was read to its end or not


def load_app() -> App:
    """A worker's application, from the environment."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    return App(Settings.from_environment())


def run(settings: Settings) -> None:
    """Runs the router until SIGTERM or SIGINT: open streams get time to end, a worker that dies is replaced.

    Granian gives up when a worker dies within seconds of its start; then everything is started anew, as nobody else would.
    """
    os.environ.update(settings.environment())
    limits = settings.site().routes.limits
    _fresh_metrics(settings.home / "run" / "metrics")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal is no reason to stop
    while True:
        server = _server(settings, limits)
        with contextlib.suppress(SystemExit):
            server.serve()
        if server.interrupt_signal:
            return
        log.error("router: workers keep dying; starting all of them again")
        time.sleep(1)


def _server(settings: Settings, limits: Limits) -> Any:
    from granian import Granian
    from granian.constants import HTTPModes, Interfaces, Loops, RuntimeModes
    from granian.http import HTTP1Settings
    from granian.log import LogLevels

    return Granian(
        "routing.server:load_app",
        factory=True,
        interface=Interfaces.ASGI,
        address=settings.host,
        port=settings.port,
        workers=settings.workers,
        http=HTTPModes.http1,
        websockets=False,
        loop=Loops.uvloop,
        runtime_mode=RuntimeModes.st,
        log_level=LogLevels.warning,
        backlog=4096,
        backpressure=limits.connections_per_worker,
        respawn_failed_workers=True,
        respawn_interval=0.2,
        workers_kill_timeout=_SHUTDOWN_S,
        http1_settings=HTTP1Settings(
            header_read_timeout=int(limits.header_timeout_s * 1000), max_buffer_size=max(8192, 2 * limits.header_bytes)
        ),
    )


def _fresh_metrics(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.db"):
        file.unlink(missing_ok=True)


if __name__ == "__main__":
    run(Settings.from_environment())
