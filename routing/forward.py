"""The one door out: a request goes to a model here and nowhere else, attempt by attempt, and its answer comes back.

Falls back to the next target only while the caller has seen nothing. What a stream looks like on the way is `stream`'s business,
sockets are `upstream`'s.
"""

import logging
import os
import time
from collections.abc import Sequence
from functools import cache
from itertools import count
from typing import Protocol

import msgspec

from routing.choose import Target
from routing.config import Limits
from routing.errors import BadAnswer, NotFound, Refusal, TooMany, TooSlow, Unavailable
from routing.ledger import Ledger, Row
from routing.request import Asked
from routing.stream import Tee, Tokens, tokens_of
from routing.upstream import Answer, Origin, Pool, Timeouts, UpstreamError

log = logging.getLogger("inhouse.forward")
_TRY_NEXT = frozenset((401, 403, 429, 500, 502, 503, 504))
_NOT_SICK = frozenset(("busy", "status_500"))  # a full house, and a request that one model can't digest, say little about its health
_MOST_ATTEMPTS = 4
_CLIENT_LEFT = 499  # nginx's word for it; callers never see it
_PASSED_ON = frozenset((b"accept", b"traceparent", b"tracestate", b"anthropic-version", b"anthropic-beta", b"openai-beta"))

_SERIES = os.urandom(8).hex()  # of this process; asking the kernel for each id costs 8 us, more than the rest of a request's head
_COUNT = count(1)


def new_id() -> str:
    """An id that no other request, attempt or worker has."""
    return f"{_SERIES}{next(_COUNT):08x}"


class Reply(msgspec.Struct, frozen=True):
    """What the caller gets: header lines, and a whole body or a stream, which must be begun or abandoned."""

    status: int
    head: bytes
    body: "bytes | Relay"


class Decided(msgspec.Struct, frozen=True, gc=False):
    """A request on its way: who asked, what was decided and since when (Unix seconds, and monotonic for durations)."""

    asked: Asked
    request_id: str
    key_id: str
    caller: str
    task: str
    why: str
    at: float
    started: float
    headers: dict[bytes, bytes]

    def row(self, attempt: int, model: str, status: int, *, error: str = "", tokens: Tokens = Tokens(), exact: bool = True,  # noqa: B008 (a frozen value; the ledger's columns)
            first_byte: float | None = None) -> Row:  # fmt: skip
        """The ledger's row for one attempt that ends now."""
        ttft_ms = None if first_byte is None else (first_byte - self.started) * 1e3
        return Row(self.at, self.request_id, attempt, self.key_id, self.caller, self.asked.endpoint.path, self.task, model, self.why,
                   status, error, tokens.prompt, tokens.completion, exact, ttft_ms, (time.monotonic() - self.started) * 1e3)  # fmt: skip


class Door:
    """Sends requests to targets with one worker's connections, and writes every attempt into the ledger."""

    def __init__(self, pool: Pool, ledger: Ledger, limits: Limits) -> None:
        self._pool = pool
        self._ledger = ledger
        self._answer_bytes = limits.answer_bytes
        self._timeouts = Timeouts(limits.connect_timeout_s, limits.first_byte_timeout_s, limits.idle_timeout_s, limits.total_timeout_s)

    async def forward(self, decided: Decided, targets: Sequence[Target]) -> Reply:
        """The answer of the first target that gives one. Raises a `Refusal` where none does."""
        for attempt, target in enumerate(targets[:_MOST_ATTEMPTS], 1):
            try:
                return await self._attempt(decided, target, attempt)
            except UpstreamError as error:
                refusal = _refusal(target.model, error.kind)
                status = refusal.status
                self._ledger.append(decided.row(attempt, target.model, status, error=error.kind))
                if error.kind in ("deadline", "answer_too_large"):
                    break
                if error.kind not in _NOT_SICK:
                    target.rest()
            except BaseException:
                self._ledger.append(decided.row(attempt, target.model, _CLIENT_LEFT, error="client_left"))
                raise
            log.warning("%s: %s in cell %s: %s", decided.request_id, target.model, target.cell, refusal.code)
        assert targets, "a route always has a target: the configuration is checked for it"
        raise refusal

    async def _attempt(self, decided: Decided, target: Target, attempt: int) -> Reply:
        timeouts = self._timeouts
        if attempt > 1:  # all attempts share the time that one request has
            timeouts = timeouts._replace(total_s=timeouts.total_s - (time.monotonic() - decided.started))
        answer = await self._pool.send(target.origin, _request(decided, target), timeouts)
        try:
            content_type = _content_type(answer)
            is_stream = content_type.startswith(b"text/event-stream")
            if is_stream:
                first = await _first(answer)
            else:
                body = await answer.body(self._answer_bytes)
        except BaseException:
            answer.release()
            raise
        target.recovered()
        head = b"content-type: %b\r\nx-request-id: %b\r\ninhouse-task: %b\r\ninhouse-model: %b\r\ninhouse-why: %b\r\n" % (
            content_type or b"application/json", decided.request_id.encode(), decided.task.encode(), target.model.encode(),
            decided.why.encode())  # fmt: skip
        if is_stream:
            return Reply(answer.status, head, Relay(decided, target, attempt, answer, first, self._ledger))
        answer.release()
        self._ledger.append(decided.row(attempt, target.model, answer.status, tokens=tokens_of(body), first_byte=time.monotonic(),
                                        error="" if answer.status < 400 else "refused_by_model"))  # fmt: skip
        if answer.status in (404, 405) and b'"error"' not in body:  # the engine has no such path: it serves what its model can do
            raise NotFound(f"`{target.model}` does not serve {decided.asked.endpoint.path}; ask a model or task that does "
                           "(GET /v1/models says what each is)", code="endpoint_not_supported")  # fmt: skip
        return Reply(answer.status, head, body)


class Outlet(Protocol):
    """Where a relay writes."""

    def chunk(self, data: bytes) -> None:
        """Bytes for the caller."""

    def end(self) -> None:
        """There is no more."""


class Relay:
    """A stream on its way from a model to a caller, pushed chunk by chunk from socket to socket.

    Ends with an error event where the model's stream was cut; the ledger gets what was really seen, once, however it ends.
    """

    __slots__ = ("_answer", "_attempt", "_decided", "_first", "_first_byte", "_ledger", "_out", "_target", "_tee")

    def __init__(self, decided: Decided, target: Target, attempt: int, answer: Answer, first: bytes, ledger: Ledger) -> None:
        asked = decided.asked
        self._decided = decided
        self._target = target
        self._attempt = attempt
        self._answer = answer
        self._first = first
        self._first_byte = time.monotonic()
        self._ledger = ledger
        self._tee = Tee(asked.endpoint.dialect, strip_usage=asked.endpoint.usage_on_request and not asked.wants_usage)
        self._out: Outlet | None = None

    def begin(self, out: Outlet) -> None:
        """Sends what has come and from now on what comes, until it calls `out.end`."""
        self._out = out
        self.data(self._first)
        self._answer.push_to(self)

    def data(self, data: bytes) -> None:
        """Bytes from the model."""
        if self._out is not None and (out := self._tee.feed(data)):
            self._out.chunk(out)

    def over(self, kind: str) -> None:
        """The model's stream has ended, or was cut."""
        out, tee = self._out, self._tee
        if out is None:
            return
        if not kind and (rest := tee.rest()):
            out.chunk(rest)
        if not kind and not tee.ended:
            kind = "upstream_truncated"
        status = self._answer.status
        if kind:
            refusal = _refusal(self._target.model, kind)
            status = 502 if kind == "upstream_truncated" else refusal.status
            out.chunk(tee.cut(refusal))
        self._settle(status, kind)
        out.end()

    def pause(self) -> None:
        """The caller reads slower than the model writes."""
        self._answer.pause()

    def resume(self) -> None:
        """The caller has caught up."""
        self._answer.resume()

    def abandon(self) -> None:
        """The caller is gone: the model's work ends at once."""
        self._settle(_CLIENT_LEFT, "client_left")

    def _settle(self, status: int, error: str) -> None:
        self._out = None
        self._answer.release()
        if status >= 500:
            self._target.rest()
        seen = self._tee.tokens
        is_exact = seen.completion is not None
        tokens = seen if is_exact else Tokens(seen.prompt, self._tee.events)
        self._ledger.append(self._decided.row(self._attempt, self._target.model, status, error=error, tokens=tokens,
                                              first_byte=self._first_byte, exact=is_exact))  # fmt: skip


def _content_type(answer: Answer) -> bytes:
    """The type of an answer that may go to the caller. Raises `UpstreamError` for one that is no model's last word."""
    content_type = answer.header(b"content-type")
    if answer.status in _TRY_NEXT or (answer.status >= 400 and b"json" not in content_type):  # engines refuse in JSON, proxies in prose
        raise UpstreamError("busy" if answer.status == 429 else f"status_{answer.status}", sent=True)
    return content_type


async def _first(answer: Answer) -> bytes:
    """A stream's first bytes. Raises `UpstreamError` where it has none: the next target may."""
    first = await answer.chunk()
    if not first:
        raise UpstreamError("upstream_truncated", sent=True)
    return first


def _request(decided: Decided, target: Target) -> bytes:
    """The request's bytes: our own head, built anew, so that no header of the caller's slips through that is not on the list."""
    asked = decided.asked
    body = asked.for_model(target.model)
    given = decided.headers
    passed = b"".join([b"%b: %b\r\n" % (name, given[name]) for name in _PASSED_ON & given.keys()])
    content_type = given.get(b"content-type", b"") if asked.endpoint.form else b"application/json"
    return b"%bcontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b\r\n%b" % (
        _first_lines(target.origin, asked.endpoint.path), content_type, len(body), new_id().encode(), passed, body)  # fmt: skip
    # The engine's id is ours, not the caller's: engines refuse an id that is in flight already.


@cache
def _first_lines(origin: Origin, path: str) -> bytes:
    return f"POST {origin.prefix}{path} HTTP/1.1\r\nhost: {origin.authority}\r\n".encode()


def _refusal(model: str, kind: str) -> Refusal:
    """What an upstream's failure is to the caller, who learns which model failed and how, but no address."""
    if kind == "busy":
        return TooMany(f"`{model}` has as many requests as it takes; try again shortly", retry_after_s=1)
    if kind in ("connect_failed", "connect_timeout", "status_503", "tls_error"):
        return Unavailable(f"`{model}` is not answering at the moment; try again shortly", retry_after_s=5)
    if kind in ("first_byte_timeout", "idle_timeout", "deadline", "status_504"):
        return TooSlow(f"`{model}` did not answer in time ({kind}); try again, or ask for less", code=kind)
    if kind == "answer_too_large":
        return BadAnswer(f"the answer of `{model}` is larger than this router relays; ask for less, or stream it", code=kind)
    return BadAnswer(f"`{model}` stopped before its answer was complete ({kind}); try again", retry_after_s=1)
