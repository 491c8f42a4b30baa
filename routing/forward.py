"""The one door out: a request goes to a model here and nowhere else, attempt by attempt, and its answer comes back.

Every attempt is checked against the policy and the zone again, and reserved before its first byte goes. Falls back to the next target
only while the caller has seen nothing. What a stream looks like on the way is `relay`'s business, sockets are `upstream`'s.
"""

import logging
import os
import re
import time
from collections.abc import Sequence
from email.utils import parsedate_to_datetime
from functools import cache
from itertools import count

import msgspec

from routing.batch import stand_back
from routing.call import Attempt, Call
from routing.choose import LONGEST_WISH_S, Target
from routing.config import Limits
from routing.errors import BudgetExceeded, Denied, NotFound, RunStopped
from routing.holds import NOTHING, Account, Ask, Hold
from routing.ledger import Ledger
from routing.metrics import Metrics
from routing.policy import Policy, may_leave
from routing.prices import Charge
from routing.purse import Purse
from routing.relay import CLIENT_LEFT, Relay, failure
from routing.repetition import CAUSE, in_openai_words, with_detection
from routing.stream import Tokens, tokens_of
from routing.upstream import Answer, Origin, Pool, Timeouts, UpstreamError
from routing.worst import Worst, lowered, worst_of, writes

log = logging.getLogger("inhouse.forward")
_NOT_THE_CALLERS = frozenset((401, 402, 403, 407, 408, 429))  # about our key, our bill, our pace: never shown as the caller's own
_NOT_SICK = frozenset(("busy", "status_500"))  # a full house, and a request that one model can't digest, say little about its health
_MOST_ATTEMPTS = 4
_PASSED_ON = frozenset((b"accept", b"traceparent", b"tracestate", b"anthropic-version", b"anthropic-beta", b"openai-beta"))
_PASSED_OUT = frozenset((b"anthropic-version", b"anthropic-beta", b"openai-beta"))
_DATE = rb"\d{4}-?\d\d-?\d\d"
_FEATURE = rb"(?!(?:[a-z_=-]*\d){13})[a-z][a-z0-9_-]{0,48}(?:[=-]%b|=v\d\d?)" % _DATE  # no more digits than a date and a version have
_HARMLESS = re.compile(rb"%b|%b(?:, ?%b){0,15}" % (_DATE, _FEATURE, _FEATURE))  # what may leave in a header: dated names of features
_ANTHROPIC_VERSION = b"2023-06-01"
_NO_WORK = Worst(0, 0)
_SERIES = os.urandom(8).hex()  # of this process; asking the kernel for each id costs 8 us, more than the rest of a request's head
_COUNT = count(1)


def new_id() -> str:
    """An id that no other request, attempt or worker has."""
    return f"{_SERIES}{next(_COUNT):08x}"


class Reply(msgspec.Struct, frozen=True):
    """What the caller gets: header lines, and a whole body or a stream, which must be begun or abandoned."""

    status: int
    head: bytes
    body: bytes | Relay


class Door:
    """Sends requests to targets with one worker's connections, and writes every attempt into the ledger."""

    def __init__(self, pool: Pool, ledger: Ledger, purse: Purse, policy: Policy, *, limits: Limits, metrics: Metrics) -> None:
        self._pool = pool
        self._ledger = ledger
        self._purse = purse
        self._policy = policy
        self._metrics = metrics
        self._answer_bytes = limits.answer_bytes
        self._timeouts = Timeouts(limits.connect_timeout_s, limits.first_byte_timeout_s, limits.idle_timeout_s, limits.total_timeout_s)

    async def forward(self, call: Call, targets: Sequence[Target], accounts: tuple[Account, ...]) -> Reply:
        """The answer of the first target that gives one. Raises a `Refusal` where none does."""
        for number, target in enumerate(targets[:_MOST_ATTEMPTS], 1):
            if target.closed_until and (closed := target.closed()):
                refusal = failure(target.model, closed)
                continue
            attempt = Attempt(call, target, number, await self._reserve(call, target, number, accounts))
            target.tried()
            try:
                return await self._send(attempt)
            except UpstreamError as error:
                refusal = failure(target.model, error)
                log.warning("%s: %s in %s: %s", call.request_id, target.model, target.cell, error.kind)
                self._ledger.append(attempt.ended(refusal.status, _failed(attempt.hold, error), error=error.kind))
                if error.kind in ("deadline", "answer_too_large"):
                    target.let_be()
                    break
                if error.kind not in _NOT_SICK or error.retry_after_s is not None:
                    target.rest(error.retry_after_s, kind=error.kind)
                target.let_be()
            except NotFound:
                raise
            except BaseException:
                target.let_be()
                status, word = (RunStopped.status, RunStopped.code) if call.is_stopped else (CLIENT_LEFT, "client_left")
                charge = attempt.hold.settle(None, None, exact=False)
                self._ledger.append(attempt.ended(status, charge, error=word, exact=False))
                raise
        assert targets, "a route always has a target: the configuration is checked for it"
        raise refusal

    async def _reserve(self, call: Call, target: Target, number: int, accounts: tuple[Account, ...]) -> Hold:
        """The hold for one attempt. Raises `Denied` where the request may not go there, and what `Purse.reserve` raises."""
        assert call.about is not None and call.asked is not None, "a call is labelled before it goes out"
        if not may_leave(self._policy, call.about, model=target.model, zone=target.zone):
            raise Denied(f"data of class `{call.data_class}` may not go to `{target.model}`", code="residency")
        accounts = accounts + target.accounts if target.accounts else accounts
        if target.each_caller is not None:
            accounts += target.each_caller(call.caller.name)
        prompt, most, answers = worst_of(call.asked, target.context) if accounts and not call.endpoint.is_free else _NO_WORK
        ask = Ask(accounts, prompt, most, target.price, call.request_id, number, answers)
        hold = self._purse.try_reserve(ask)
        if hold is not None:
            return hold
        try:
            return await self._purse.reserve(ask)
        except BudgetExceeded as refusal:
            self._metrics.budget_refused(refusal.scope, refusal.unit)
            raise

    async def _send(self, attempt: Attempt) -> Reply:
        call, target = attempt.call, attempt.target
        answer = await self._pool.send(target.origin, _request(attempt), self._times(attempt))
        try:
            content_type = _content_type(answer, may_encode=target.is_ours)
            is_stream = content_type.startswith(b"text/event-stream")
            body = await _first(answer) if is_stream else await answer.body(self._answer_bytes)
        except BaseException:
            answer.release()
            raise
        target.recovered()
        head = self._head(call, target, attempt.hold, content_type)
        if is_stream:
            return Reply(answer.status, head, Relay(attempt, answer, body, self._ledger))
        answer.release()
        return self._whole(attempt, answer.status, head, body)

    def _times(self, attempt: Attempt) -> Timeouts:
        """How long it may take: all attempts share the time that one request has, and its run's deadline is its own."""
        timeouts, call = self._timeouts, attempt.call
        if attempt.number == 1 and call.run is None:
            return timeouts
        left_s = timeouts.total_s - (time.monotonic() - call.started)
        return timeouts._replace(total_s=left_s if call.run is None else min(left_s, call.run.deadline - time.time()))

    def _whole(self, attempt: Attempt, status: int, head: bytes, body: bytes) -> Reply:
        """A whole answer: settled, recorded and on its way."""
        call, hold, endpoint = attempt.call, attempt.hold, attempt.call.endpoint
        is_fine = status < 400
        tokens = tokens_of(body) if is_fine else Tokens()
        if endpoint.is_free or not is_fine:
            charge = hold.settle(0, 0, exact=True)
        else:
            written = tokens.completion if writes(endpoint.path) else tokens.completion or 0
            charge = hold.settle(tokens.prompt, written, exact=tokens.prompt is not None and written is not None)
        self._ledger.append(attempt.ended(status, charge, tokens=tokens, first_byte=time.monotonic(),
                                          error="" if is_fine else "refused_by_model"))  # fmt: skip
        if status in (404, 405) and b'"error"' not in body:  # the engine has no such path: it serves what its model can do
            raise NotFound(f"`{attempt.target.model}` does not serve {endpoint.path}; ask a model or task that does "
                           "(GET /v1/models says what each is)", code="endpoint_not_supported")  # fmt: skip
        head += b"inhouse-cost-usd: %b\r\n" % _usd(charge.nanousd)
        if call.run is not None and endpoint.dialect == "openai":
            body, is_cut = in_openai_words(body)
            head += b"inhouse-finish-cause: %b\r\n" % CAUSE.encode() if is_cut else b""
        return Reply(status, head, body)

    def _head(self, call: Call, target: Target, hold: Hold, content_type: bytes) -> bytes:
        lines = b"content-type: %b\r\nx-request-id: %b\r\ninhouse-task: %b\r\ninhouse-model: %b\r\ninhouse-why: %b\r\n" % (
            content_type or b"application/json", call.request_id.encode(), call.task.encode(), target.model.encode(),
            call.why.encode())  # fmt: skip
        if hold.accounts:
            lines += f"inhouse-budget-left: {self._purse.left(hold.accounts)}\r\n".encode()
            if (most := _lowered(hold)) is not None:
                lines += b"inhouse-max-tokens: %d\r\n" % most
        if call.run is not None:
            lines += f"inhouse-run: {call.run.public_id}\r\n".encode()
        if call.warning:
            lines += f"inhouse-loop: {call.warning}\r\n".encode()
        return lines


def _failed(hold: Hold, error: UpstreamError) -> Charge:
    """What a failed attempt costs: nothing where no model worked for it, the worst case where nobody knows how much one did."""
    if not error.sent or error.kind == "busy" or error.kind.startswith("status_"):
        hold.release()
        return NOTHING
    return hold.settle(None, None, exact=False)


def _lowered(hold: Hold) -> int | None:
    """How many tokens an answer may have, where the budget allows fewer than were asked for."""
    return hold.max_tokens if hold.max_tokens < hold.asked_tokens else None


def _content_type(answer: Answer, *, may_encode: bool) -> bytes:
    """The type of an answer that may go to the caller. Raises `UpstreamError` for one that is no model's last word."""
    content_type = answer.header(b"content-type")
    status = answer.status
    is_refusal = (400 <= status < 500 and status not in _NOT_THE_CALLERS) or status == 501
    if status < 300 or (is_refusal and b"json" in content_type):  # engines refuse in JSON, proxies in prose; nobody follows a redirect
        if not may_encode and answer.header(b"content-encoding") not in (b"", b"identity"):  # we asked for none
            raise UpstreamError("encoded", sent=True)
        return content_type
    wait_s = _wish(answer.header(b"retry-after")) if status == 429 or status >= 500 else None
    raise UpstreamError("busy" if status == 429 else f"status_{status}", sent=True, retry_after_s=wait_s)


def _wish(given: bytes) -> float | None:
    """The seconds that a `Retry-After` asks for, as a number or a date (RFC 9110, 10.2.3). None where it says neither."""
    if given.isdigit():
        return min(float(given), LONGEST_WISH_S)
    try:
        return min(max(0.0, parsedate_to_datetime(given.decode("latin-1")).timestamp() - time.time()), LONGEST_WISH_S)
    except (ValueError, OverflowError):
        return None


async def _first(answer: Answer) -> bytes:
    """A stream's first bytes. Raises `UpstreamError` where it has none: the next target may."""
    first = await answer.chunk()
    if not first:
        raise UpstreamError("upstream_truncated", sent=True)
    return first


def _request(attempt: Attempt) -> bytes:
    """The request's bytes: our own head, built anew, so that no header of the caller's slips through that is not on the list."""
    call, target = attempt.call, attempt.target
    asked = call.asked
    assert asked is not None, "a call is read before it goes out"
    endpoint, given = asked.endpoint, call.headers
    body = asked.for_model(target.id)
    if (most := _lowered(attempt.hold)) is not None and not endpoint.form:
        body = lowered(endpoint.path, body, most)
    if target.is_ours:
        passed = b"".join([b"%b: %b\r\n" % (name, given[name]) for name in _PASSED_ON & given.keys()])
        if call.run is not None:
            body = with_detection(endpoint.path, body)
        if call.caller.is_batch:
            back, body = stand_back(asked, body)
            passed += back
    else:
        passed = target.head + _passed_out(given, is_anthropic=endpoint.dialect == "anthropic")
    content_type = given.get(b"content-type", b"") if endpoint.form else b"application/json"
    return b"%bcontent-type: %b\r\ncontent-length: %d\r\nx-request-id: %b\r\n%b\r\n%b" % (
        _first_lines(target.origin, endpoint.path), content_type, len(body), new_id().encode(), passed, body)  # fmt: skip
    # The engine's id is ours, not the caller's: engines refuse an id that is in flight already.


def _passed_out(given: dict[bytes, bytes], *, is_anthropic: bool) -> bytes:
    """The caller's headers that may go to a provider: versions and features, and nothing that could carry data."""
    passed = {name: given[name] for name in _PASSED_OUT & given.keys() if _HARMLESS.fullmatch(given[name])}
    if is_anthropic:
        passed.setdefault(b"anthropic-version", _ANTHROPIC_VERSION)
    return b"".join([b"%b: %b\r\n" % item for item in passed.items()])


@cache
def _first_lines(origin: Origin, path: str) -> bytes:
    return f"POST {origin.prefix}{path} HTTP/1.1\r\nhost: {origin.authority}\r\n".encode()


def _usd(nanousd: int) -> bytes:
    """Nano-USD as dollars."""
    return f"{nanousd / 1e9:.9f}".rstrip("0").rstrip(".").encode()
