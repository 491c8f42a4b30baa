"""A stream on its way from a model to a caller, and what an upstream's failure is to the caller. Opens no socket."""

import math
import time
from typing import Protocol

from routing.call import Attempt, Call
from routing.errors import BadAnswer, Refusal, RunStopped, TooMany, TooSlow, Unavailable
from routing.ledger import Ledger
from routing.repetition import in_openai_words
from routing.stream import Tee, Tokens
from routing.upstream import Answer, UpstreamError

CLIENT_LEFT = 499  # nginx's word for it; callers never see it
_OVERRUN_EVENTS = 16  # events that carry no token: roles, finish, usage, the blocks of other dialects


class Outlet(Protocol):
    """Where a relay writes."""

    def chunk(self, data: bytes) -> None:
        """Bytes for the caller."""

    def end(self) -> None:
        """There is no more."""


class Relay:
    """A stream, pushed chunk by chunk from socket to socket.

    Ends with an error event where the model's stream was cut; the ledger and the hold get what was really seen, once, however it ends.
    """

    __slots__ = ("__weakref__", "_answer", "_attempt", "_first", "_first_byte", "_ledger", "_most", "_out", "_target", "_tee", "call")

    def __init__(self, attempt: Attempt, answer: Answer, first: bytes, ledger: Ledger) -> None:
        asked = attempt.call.asked
        assert asked is not None, "what is streamed was asked for"
        self.call = attempt.call
        self._target = attempt.target
        self._attempt = attempt
        self._answer = answer
        self._first = first
        self._first_byte = time.monotonic()
        self._ledger = ledger
        self._most = attempt.hold.max_tokens * attempt.hold.answers + _OVERRUN_EVENTS if attempt.hold.max_tokens else 0
        self._tee = Tee(asked.endpoint.dialect, strip_usage=asked.endpoint.usage_on_request and not asked.wants_usage)
        self._out: Outlet | None = None

    def begin(self, out: Outlet) -> None:
        """Sends what has come and from now on what comes, until it calls `out.end`."""
        self._out = out
        self.data(self._first)
        self._answer.push_to(self)

    def data(self, data: bytes) -> None:
        """Bytes from the model."""
        out, tee = self._out, self._tee
        if out is None:
            return
        if self.call.run is not None:
            data, _ = in_openai_words(data)
        if forwarded := tee.feed(data):
            out.chunk(forwarded)
        if self._most and tee.events > self._most:
            self._finish()

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
            refusal = failure(self._target.model, UpstreamError(kind, sent=True))
            status = refusal.status
            out.chunk(tee.cut(refusal))
        self._settle(status, kind)
        out.end()

    def stop(self, refusal: Refusal) -> None:
        """Ends the stream with an error event: its run was stopped."""
        out = self._out
        if out is not None:
            out.chunk(self._tee.cut(refusal))
            self._settle(refusal.status, refusal.code)
            out.end()

    def pause(self) -> None:
        """The caller reads slower than the model writes."""
        self._answer.pause()

    def resume(self) -> None:
        """The caller has caught up."""
        self._answer.resume()

    def abandon(self) -> None:
        """The caller is gone: the model's work ends at once."""
        self._settle(CLIENT_LEFT, "client_left")

    def _finish(self) -> None:
        """The model writes on past what was reserved: the caller's stream ends as if it had stopped there, by itself."""
        out = self._out
        assert out is not None, "only a begun stream can be too long"
        out.chunk(self._tee.finish(self._attempt.hold.prompt_tokens))
        self._settle(self._answer.status, "over_budget")
        out.end()

    def _settle(self, status: int, error: str) -> None:
        self._out = None
        self._answer.release()
        target = self._target
        if status >= 500:
            target.rest()
        tokens, is_exact = self._seen()
        # An engine of ours stops with its caller, and has written what was seen; a provider may bill for the rest.
        hold = self._attempt.hold
        prompt = hold.prompt_tokens if tokens.prompt is None else tokens.prompt
        charge = hold.settle(prompt, tokens.completion, exact=is_exact or target.is_ours)
        self._ledger.append(self._attempt.ended(status, charge, error=error, tokens=tokens, first_byte=self._first_byte, exact=is_exact))

    def _seen(self) -> tuple[Tokens, bool]:
        """The tokens of the stream, and whether the model said so itself; else each event counts as one."""
        seen = self._tee.tokens
        is_exact = seen.completion is not None and self._tee.ended
        return (seen if is_exact else Tokens(seen.prompt, self._tee.written)), is_exact


def failure(model: str, error: UpstreamError) -> Refusal:
    """What an upstream's failure is to the caller, who learns which model failed and how, but no address."""
    kind = error.kind
    wait_s = None if error.retry_after_s is None else max(1, math.ceil(error.retry_after_s))
    if kind == "busy":
        return TooMany(f"`{model}` has as many requests as it takes; try again shortly", retry_after_s=wait_s or 1)
    if kind in ("connect_failed", "connect_timeout", "status_404", "status_503", "status_529", "tls_error"):  # 404 in prose: not placed yet
        return Unavailable(f"`{model}` is not answering at the moment; try again shortly", retry_after_s=wait_s or 5)
    if kind in ("first_byte_timeout", "idle_timeout", "deadline", "status_504"):
        return TooSlow(f"`{model}` did not answer in time ({kind}); try again, or ask for less", code=kind)
    if kind in ("status_401", "status_402", "status_403", "status_407"):
        return BadAnswer(f"`{model}` does not accept this router's own key or account ({kind}); whoever runs the router must look at it")
    if kind == "answer_too_large":
        return BadAnswer(f"the answer of `{model}` is larger than this router relays; ask for less, or stream it", code=kind)
    return BadAnswer(f"`{model}` stopped before its answer was complete ({kind}); try again", retry_after_s=1)


def stopped(call: Call, reason: str, *, code: str | None = None) -> RunStopped:
    """The refusal for a call whose run was stopped."""
    run_id = call.run.id if call.run is not None else ""
    return RunStopped(f"{run_id} was stopped: {reason}; a person can raise its limits (`inhouse runs raise {run_id}`)", code=code)
