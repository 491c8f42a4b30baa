"""The HTTP/1.1 client towards models: the one file of this room that opens sockets.

Written for the request path (16 us of CPU a request where aiohttp takes 99 and httpx over 2,000, measured 2026-11-22): kept-alive
connections, bytes in, bytes out, reading paused when the caller is slower than the model. It does not follow redirects, decode
content or keep cookies. What to send where, and whether it may be sent at all, is `forward`'s decision.
"""

import asyncio
import socket
import ssl
import time
from collections import deque
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

import httptools

_PAUSE_AT = 1 << 18  # bytes read ahead of a slow caller before the socket is paused: a few thousand SSE chunks
_KEEP_IDLE_S = 20.0  # below the 75 s of uvicorn's and HAProxy's usual keep-alive, so that we close first
_MAX_HEADER_BYTES = 1 << 16
# A machine without power says nothing: its connections end 25 s later, however long a model on a living one may think.
_PROBES = ((socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1), (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
           (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5), (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
           (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 25_000))  # fmt: skip


class UpstreamError(Exception):
    """No complete answer came. `sent` says whether the request may have reached the model; `kind` is a short word for the ledger.

    `retry_after_s` is what the other side itself asked for.
    """

    def __init__(self, kind: str, *, sent: bool, retry_after_s: float | None = None) -> None:
        super().__init__(kind)
        self.retry_after_s = retry_after_s
        self.kind = kind
        self.sent = sent


class Origin(NamedTuple):
    """Where a model answers: scheme, host and port, the path in front of `/v1`, and the value of the `Host` header."""

    host: str
    port: int
    tls: bool
    prefix: str
    authority: str

    @classmethod
    def of(cls, url: str) -> "Origin":
        """Splits a base URL such as `http://127.0.0.1:8100/models/a`."""
        parts = urlsplit(url)
        tls = parts.scheme == "https"
        return cls(parts.hostname or "127.0.0.1", parts.port or (443 if tls else 80), tls, parts.path.rstrip("/"), parts.netloc)


class Timeouts(NamedTuple):
    """Seconds: to connect, until the first byte of the answer, between two bytes of it, and for all of it."""

    connect_s: float = 5.0
    first_byte_s: float = 600.0
    idle_s: float = 120.0
    total_s: float = 3600.0


class Sink(Protocol):
    """Where a body is pushed to as it arrives."""

    def data(self, data: bytes) -> None:
        """Some bytes, in order."""

    def over(self, kind: str) -> None:
        """There will be no more: the proper end where `kind` is empty, else what cut it. Called once."""


class Answer(asyncio.Protocol):
    """One connection and the answer it is carrying now. After `send` returns, `status` and `headers` are set.

    Read the body by `chunk`, or have it pushed by `push_to`: a stream of small chunks costs half as much pushed.
    """

    def __init__(self, pool: "Pool", origin: Origin) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = True
        self.used = False
        self._pool = pool
        self._origin = origin
        self._transport: Any = None
        self._parser = httptools.HttpResponseParser(self)
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._paused = False
        self._sink: Sink | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._error: str | None = None
        self._keep_alive = False
        self._header_bytes = 0
        self.idle_since = 0.0
        self.deadline_at = 0.0
        self.first_byte_by = 0.0
        self.idle_limit_s = 0.0

    # asyncio.Protocol
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self.idle_since = time.monotonic()
        if self.complete:  # bytes that nobody asked for
            self._fail("protocol_error")
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._fail("protocol_error")
        if not self.status:  # a head that never ends
            self._header_bytes += len(data)
            if self._header_bytes > _MAX_HEADER_BYTES:
                self._fail("protocol_error")
        if self._sink is not None:
            self._push(self._sink)
        else:
            self._wake()

    def eof_received(self) -> None:
        pass  # connection_lost follows

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.complete and self.status and not self._keep_alive and self._until_close():
            self.on_message_complete()
        elif not self.complete:
            self._error = self._error or "upstream_closed"
        self._transport = None
        self._pool.forget(self)
        self._wake()

    # httptools callbacks
    def on_message_begin(self) -> None:
        if self.complete:
            raise ValueError("a second answer to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status < 200:  # 100 Continue, 103 Early Hints: not the answer
            self.headers.clear()
            return
        self.status = status
        self._keep_alive = self._parser.should_keep_alive()

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)
        self._buffered += len(body)
        if self._buffered > _PAUSE_AT:
            self.pause()

    def on_message_complete(self) -> None:
        if self.status:
            self.complete = True

    # for the pool and the caller
    def write(self, data: bytes, timeouts: Timeouts) -> None:
        """Starts a new exchange on this connection."""
        self.status = 0
        self.headers = []
        self._header_bytes = 0
        self.complete = False
        self._error = None
        now = time.monotonic()
        self.idle_since = now
        self.first_byte_by = now + timeouts.first_byte_s
        self.deadline_at = now + timeouts.total_s
        self.idle_limit_s = timeouts.idle_s
        self._transport.write(data)

    async def head(self) -> None:
        """Waits until `status` and `headers` are there. Raises `UpstreamError`."""
        while not self.status:
            if self._error is not None:
                raise UpstreamError(self._error, sent=True)
            await self._wait()

    async def chunk(self) -> bytes:
        """The next bytes of the body, all that have arrived; empty at its proper end. Raises `UpstreamError` where it was cut."""
        while not self._chunks:
            if self.complete:
                return b""
            if self._error is not None:
                raise UpstreamError(self._error, sent=True)
            await self._wait()
        data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks.clear()
        self._buffered = 0
        self.resume()
        return data

    def push_to(self, sink: Sink) -> None:
        """From now on the body goes to `sink`, what has arrived at once; until `release`."""
        self._sink = sink
        self._wake()

    def pause(self) -> None:
        """Reads no more from the model: the caller is slower."""
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Reads on."""
        if self._paused and self._transport is not None:
            self._paused = False
            self.idle_since = time.monotonic()
            self._transport.resume_reading()

    async def body(self, limit: int) -> bytes:
        """The whole body. Raises `UpstreamError` where it is cut or longer than `limit` bytes."""
        parts = []
        size = 0
        while data := await self.chunk():
            size += len(data)
            if size > limit:
                raise UpstreamError("answer_too_large", sent=True)
            parts.append(data)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def header(self, name: bytes) -> bytes:
        """The first header of that (lower-case) name, or nothing."""
        for key, value in self.headers:
            if key == name:
                return value
        return b""

    def release(self) -> None:
        """Gives the connection back if the answer is complete; else cuts it, which makes the model stop its work. Call it once, always."""
        self._pool.forget(self)
        self._sink = None
        if self._transport is None:
            return
        self.resume()
        if self.complete and self._keep_alive and not self._chunks and self._error is None:
            self.used = True
            self.idle_since = time.monotonic()
            self._pool.keep(self._origin, self)
        else:
            self._transport.abort()

    def expire(self, now: float) -> None:
        """Fails an exchange that has passed one of its deadlines. Time spent waiting for a slow caller is not the model's idleness."""
        if now > self.deadline_at:
            self._fail("deadline")
        elif not self.status:
            if now > self.first_byte_by:
                self._fail("first_byte_timeout")
        elif not self._chunks and not self._paused and now - self.idle_since > self.idle_limit_s:
            self._fail("idle_timeout")

    def is_open(self) -> bool:
        """Whether the other side has not closed it yet, as far as we know."""
        return self._transport is not None and not self._transport.is_closing()

    def close(self) -> None:
        """Cuts the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _fail(self, kind: str) -> None:
        self._error = self._error or kind
        self.close()
        self._wake()

    def _until_close(self) -> bool:
        names = {name for name, _ in self.headers}
        return b"content-length" not in names and b"transfer-encoding" not in names

    async def _wait(self) -> None:
        self._waiter = self._pool.loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._sink is not None:
            self._push(self._sink)
        elif self._waiter is not None and not self._waiter.done() and (self.status or self._error is not None):
            self._waiter.set_result(None)

    def _push(self, sink: Sink) -> None:
        if self._chunks:
            data = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
            self._chunks.clear()
            self._buffered = 0
            sink.data(data)
        if self.complete or self._error is not None:
            self._sink = None
            sink.over(self._error or "")


class Pool:
    """Kept-alive connections per origin. One per worker process, made inside its running loop; `sweep` must run beside it."""

    def __init__(self, *, max_idle: int = 512) -> None:
        self._idle: dict[Origin, deque[Answer]] = {}
        self._busy: set[Answer] = set()
        self._max_idle = max_idle
        self.loop = asyncio.get_running_loop()  # asking for it at every wait costs a system call on Python 3.11
        self._tls: ssl.SSLContext | None = None

    async def send(self, origin: Origin, request: bytes, timeouts: Timeouts) -> Answer:
        """Sends `request` (head and body) and returns the answer once its status is known.

        A kept-alive connection that the other side closed in the same moment is retried once on a new one, as nothing of an answer
        had come. Raises `UpstreamError`; a caller that is cancelled leaves no connection behind.
        """
        while True:
            answer = self._take(origin) or await self._connect(origin, timeouts.connect_s)
            if not answer.is_open():  # taken and dropped at once
                raise UpstreamError("upstream_closed", sent=False)
            self._busy.add(answer)
            answer.write(request, timeouts)
            try:
                await answer.head()
                return answer
            except UpstreamError as error:
                answer.close()
                self._busy.discard(answer)
                if answer.used and error.kind == "upstream_closed":
                    continue
                raise
            except BaseException:
                answer.close()
                self._busy.discard(answer)
                raise

    def _take(self, origin: Origin) -> Answer | None:
        idle = self._idle.get(origin)
        while idle:
            answer = idle.pop()
            if answer.is_open():
                return answer
        return None

    async def _connect(self, origin: Origin, timeout_s: float) -> Answer:
        if origin.tls and self._tls is None:
            self._tls = ssl.create_default_context()
        try:
            async with asyncio.timeout(timeout_s):
                transport, answer = await self.loop.create_connection(
                    lambda: Answer(self, origin), origin.host, origin.port, ssl=self._tls if origin.tls else None
                )
                for option in _PROBES:
                    transport.get_extra_info("socket").setsockopt(*option)
                return answer
        except TimeoutError as error:
            raise UpstreamError("connect_timeout", sent=False) from error
        except ssl.SSLError as error:
            raise UpstreamError("tls_error", sent=False) from error
        except OSError as error:
            raise UpstreamError("connect_failed", sent=False) from error

    def keep(self, origin: Origin, answer: Answer) -> None:
        """Takes a connection back for the next request to its origin."""
        idle = self._idle.setdefault(origin, deque())
        if len(idle) >= self._max_idle:
            answer.close()
        else:
            idle.append(answer)

    def forget(self, answer: Answer) -> None:
        """The exchange on this connection is over."""
        self._busy.discard(answer)

    async def sweep(self, *, every_s: float = 0.25) -> None:
        """Runs until cancelled: ends what passed its deadline, closes what lay idle. One timer for all beats one a request."""
        while True:
            await asyncio.sleep(every_s)
            now = time.monotonic()
            for answer in tuple(self._busy):
                answer.expire(now)
            for idle in self._idle.values():
                while idle and now - idle[0].idle_since > _KEEP_IDLE_S:
                    idle.popleft().close()

    def close(self) -> None:
        """Cuts every connection."""
        for answer in (*self._busy, *(a for idle in self._idle.values() for a in idle)):
            answer.close()
        self._idle.clear()
