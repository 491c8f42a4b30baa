"""A caller's connection: uvicorn's HTTP/1.1 protocol reads the requests, but the answers are written by us instead of through ASGI.

uvicorn and llhttp do what strangers can attack: framing, pipelining, refusing malformed heads. ASGI's messages, its task per stream and
its futures per chunk are what costs; so a whole request goes to `worker`, and a stream is pushed from the model's connection into this
one. Limits on size are kept here as bytes come, those on time by the worker's tick through `look_after`.
"""

import asyncio
import http
import logging
import time
from collections import deque
from typing import Any
from urllib.parse import unquote

import httptools
import msgspec
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from routing.errors import BadRequest, HeadersTooLarge, Refusal, TooLarge, TooSlowToSend, Unavailable
from routing.forward import Reply
from routing.relay import Relay
from routing.router import Request
from routing.worker import Worker, refused

log = logging.getLogger("inhouse.router")
_LINGER_S = 5.0
_PARTING_S = 1.0  # what a caller has sent before it could know that we leave comes within this time
_PHRASES = {int(status): status.phrase for status in http.HTTPStatus}
_STATUS = {status: f"HTTP/1.1 {status} {_PHRASES.get(status, '')}\r\n".encode() for status in range(200, 600)}  # models make some up
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class _Arrived(msgspec.Struct, frozen=True, gc=False):
    """A whole request, whether its answer may be chunked, and whether it is the connection's last."""

    request: Request
    is_chunked: bool
    is_last: bool


class Connection(HttpToolsProtocol):
    """One connection and the request on it. `phase` says what is waited for, `since` (monotonic seconds) since when."""

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.phase = "head"
        self.since = time.monotonic()
        self.url = b""
        self._worker: Worker = app_state["worker"]
        self._worker.connections = self.connections
        self._reading = ""  # the part of a request that the parser is in
        self._head_bytes = 0
        self._fields: dict[bytes, bytes] = {}
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._arrived = (0.0, 0.0)
        self._waiting: deque[_Arrived] = deque()  # pipelined behind the request that is being answered
        self._task: asyncio.Task[None] | None = None
        self._relay: Relay | None = None
        self._is_last = False
        self._is_chunked = True

    # what uvicorn's server and the transport call
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._worker.limits.connections_per_worker:
            self._refuse(Unavailable("too many connections; try again shortly", retry_after_s=1))

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        self._waiting.clear()
        self._leave()
        self.parser = None  # it holds this object, as this object holds it

    def data_received(self, data: bytes) -> None:
        if self.phase == "linger":
            return
        try:
            self.parser.feed_data(data)
            if self._reading == "head":
                self._head_bytes += len(data)  # a head that never ends
                self._check_head(self._head_bytes)
        except httptools.HttpParserUpgrade:
            self._is_last = True  # to another protocol, which we don't speak: the request itself is answered
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._spoiled(cause if isinstance(cause, Refusal) else BadRequest("this is no HTTP/1.1 request that makes sense"))
        except Refusal as refusal:
            self._spoiled(refusal)

    def shutdown(self) -> None:
        """No further request after the one that is being answered or on its way: closing at once would lose what was just sent."""
        self._is_last = True
        if not self.is_answering and not self._reading and self.phase != "linger":
            self._enter("parting")

    def pause_writing(self) -> None:
        self._enter("clogged")
        if self._relay is not None:
            self._relay.pause()

    def resume_writing(self) -> None:
        if self.phase == "clogged":
            self._enter("answering")
        if self._relay is not None:
            self._relay.resume()

    # what the parser calls
    def on_message_begin(self) -> None:
        self.url = b""
        self._head_bytes = 0
        self._fields = {}
        self._body = []
        self._body_bytes = 0
        self._read("head")
        if self.is_answering:
            self.flow.pause_reading()  # a caller that sends ahead is read no further than this

    def on_header(self, name: bytes, value: bytes) -> None:
        self._fields[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._check_head(sum(map(len, self._fields)) + sum(map(len, self._fields.values())))
        self._read("body")
        self._arrived = time.time(), time.monotonic()
        declared = self._fields.get(b"content-length", b"")
        if declared.isdigit() and int(declared) > self._worker.limits.body_bytes:
            raise self._too_large(int(declared))
        if b"expect" in self._fields and not self.is_answering:
            self.transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)
        self._body_bytes += len(body)
        if self._body_bytes > self._worker.limits.body_bytes:
            raise self._too_large(self._body_bytes)

    def on_message_complete(self) -> None:
        self._reading = ""
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        path = self.url.partition(b"?")[0].decode("ascii", "replace")
        request = Request(self.parser.get_method().decode(), unquote(path) if "%" in path else path, self._fields, body, *self._arrived)
        arrived = _Arrived(request, self.parser.get_http_version() != "1.0", not self.parser.should_keep_alive())
        if self.is_answering:
            self._waiting.append(arrived)
        else:
            self._answer(arrived)

    # answering
    @property
    def is_answering(self) -> bool:
        """Whether a request on it is being answered."""
        return self._task is not None or self._relay is not None

    def _answer(self, arrived: _Arrived) -> None:
        self._is_chunked = arrived.is_chunked
        self._is_last = self._is_last or arrived.is_last
        self.phase = "answering"
        self._task = self.loop.create_task(self._serve(arrived.request))

    async def _serve(self, request: Request) -> None:
        try:
            reply = await self._worker.reply(request)
            self._task = None
            if isinstance(reply.body, bytes):
                self.transport.write(self._head(reply, len(reply.body)) + (reply.body if request.method != "HEAD" else b""))
                self._next()
            else:
                self.transport.write(self._head(reply, None))
                self._relay = reply.body
                reply.body.begin(self)
        except Exception:
            log.exception("a connection failed by our own fault")
            self.transport.abort()

    def _head(self, reply: Reply, length: int | None) -> bytes:
        if length is not None:
            frame = b"content-length: %d\r\n" % length
        elif self._is_chunked:
            frame = b"transfer-encoding: chunked\r\n"
        else:
            frame = b""
            self._is_last = True  # where chunks have no frame, only closing tells the end
        return b"%b%b%bdate: %b\r\n%b\r\n" % (
            _STATUS[reply.status], reply.head, frame, self._worker.date, b"connection: close\r\n" if self._is_last else b"")  # fmt: skip

    def chunk(self, data: bytes) -> None:
        """Writes a relay's bytes."""
        self.transport.write(b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data)

    def end(self) -> None:
        """The relay has nothing more."""
        self._relay = None
        if self._is_chunked:
            self.transport.write(b"0\r\n\r\n")
        self._next()

    def _next(self) -> None:
        """An answer is written: on to the next request, which may be here already."""
        if self._is_last:
            self._enter("idle")
            self.transport.close()
        elif self._waiting:
            self._answer(self._waiting.popleft())
        else:
            self._enter(self._reading or "idle")
            self.flow.resume_reading()

    # ending what goes wrong
    def look_after(self, now: float) -> None:
        """Ends what has taken too long."""
        waited, limits = now - self.since, self._worker.limits
        if self.phase == "body" and waited > limits.body_timeout_s:
            self._refuse(TooSlowToSend("the request's body did not arrive in time; send it faster"))
        elif self.phase == "parting" and waited > _PARTING_S:
            self.transport.close()
        elif waited > {"idle": limits.keep_alive_timeout_s, "head": limits.header_timeout_s, "clogged": limits.idle_timeout_s,
                       "linger": _LINGER_S}.get(self.phase, waited):  # fmt: skip
            self.transport.abort()

    def cut(self) -> None:
        """Ends it at once."""
        self.transport.abort()

    def _spoiled(self, refusal: Refusal) -> None:
        """What came makes no sense or is too much: no more is read. A request before it is answered still."""
        if self.is_answering:
            self._is_last = True
            self._waiting.clear()
            self.flow.pause_reading()
        else:
            self._refuse(refusal)

    def _refuse(self, refusal: Refusal) -> None:
        """Refuses a request that is not whole, and reads away what is still being sent: hanging up would destroy the refusal."""
        self._is_last = True
        reply = refused(refusal, self.url.decode("ascii", "replace"), self._fields)
        assert isinstance(reply.body, bytes), "a refusal is short"
        self.transport.write(self._head(reply, len(reply.body)) + reply.body)
        self._enter("linger")
        self.transport.write_eof()

    def _leave(self) -> None:
        """The caller is gone: what is done for it ends at once."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        if self._relay is not None:
            self._relay.abandon()
            self._relay = None

    def _enter(self, phase: str) -> None:
        self.phase = phase
        self.since = time.monotonic()

    def _read(self, part: str) -> None:
        self._reading = part
        if not self.is_answering:
            self._enter(part)

    def _check_head(self, size: int) -> None:
        if size > self._worker.limits.header_bytes:
            raise HeadersTooLarge(f"the headers are over {self._worker.limits.header_bytes} bytes (`limits.header_bytes` in routes.yaml)")

    def _too_large(self, size: int) -> TooLarge:
        most = self._worker.limits.body_bytes
        return TooLarge(f"the body is {size} bytes or more; at most {most} are taken (`limits.body_bytes` in routes.yaml)")
