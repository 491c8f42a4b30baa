"""Watches a server-sent-event stream go by: forwards its bytes, sees its end and its usage, and can end it honestly when it is cut.

Chunks are not parsed: a 64-chunk answer relays 64 times for one request, so that is where time goes. Only an event that carries usage
is decoded, and only that event is ever held back.
"""

import re
from typing import Annotated, Any

import msgspec

from routing.errors import Refusal
from routing.request import Dialect

_BOUNDARY = re.compile(rb"\r?\n\r?\n")
_LONGEST_EVENT = 1 << 20  # a partial event is held no longer than this; then it goes out as it is
_ENDS: dict[Dialect, tuple[bytes, ...]] = {
    "openai": (b"data: [DONE]", b"data:[DONE]"),
    "anthropic": (b"event: message_stop", b"event:message_stop"),
    "responses": (b"event: response.completed", b"event: response.incomplete", b"event: response.failed"),
}


_FINISH: dict[Dialect, bytes] = {  # with the tokens that were read, written, and both
    "openai": b'data: {"id":"","object":"chat.completion.chunk","created":0,"model":"","choices":[{"index":0,"delta":{},"text":"",'
              b'"finish_reason":"length"}]}\n\n%bdata: [DONE]\n\n',
    "anthropic": b'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"max_tokens","stop_sequence":null},'
                 b'"usage":{"output_tokens":%(written)d}}\n\nevent: message_stop\ndata: {"type":"message_stop"}\n\n',
    "responses": b'event: response.incomplete\ndata: {"type":"response.incomplete","response":{"status":"incomplete",'
                 b'"incomplete_details":{"reason":"max_output_tokens"},"usage":{"input_tokens":%(read)d,"output_tokens":%(written)d,'
                 b'"total_tokens":%(both)d}}}\n\n',
}  # fmt: skip
_USAGE = (b'data: {"id":"","object":"chat.completion.chunk","created":0,"model":"","choices":[],"usage":{"prompt_tokens":%(read)d,'
          b'"completion_tokens":%(written)d,"total_tokens":%(both)d}}\n\n')  # fmt: skip
_Count = Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]  # what is no count is not believed, and can't upset the ledger or a metric


class Usage(msgspec.Struct):
    """Token counts as OpenAI (`prompt_tokens`) or Anthropic and Responses (`input_tokens`) name them."""

    prompt_tokens: _Count | None = None
    completion_tokens: _Count | None = None
    input_tokens: _Count | None = None
    output_tokens: _Count | None = None

    def merged(self, seen: "Tokens") -> "Tokens":
        """The counts so far, replaced by what this usage says. Zero is a value, not an absence."""
        prompt = self.prompt_tokens if self.prompt_tokens is not None else self.input_tokens
        completion = self.completion_tokens if self.completion_tokens is not None else self.output_tokens
        return Tokens(seen.prompt if prompt is None else prompt, seen.completion if completion is None else completion)


class Tokens(msgspec.Struct, frozen=True):
    """Tokens of a request and its answer; None where the engine has not said."""

    prompt: int | None = None
    completion: int | None = None


class _Wrapped(msgspec.Struct):
    usage: Usage | None = None


class _Event(msgspec.Struct):
    usage: Usage | None = None
    message: _Wrapped | None = None
    response: _Wrapped | None = None
    choices: list[Any] | None = None


_decode_event = msgspec.json.Decoder(_Event).decode
_decode_answer = msgspec.json.Decoder(_Wrapped).decode


def tokens_of(body: bytes) -> Tokens:
    """The usage of a whole JSON answer, as far as it tells."""
    try:
        usage = _decode_answer(body).usage
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Tokens()
    return usage.merged(Tokens()) if usage is not None else Tokens()


class Tee:
    """One stream on its way to a caller. `feed` gives what to forward; `ended` says whether its last word has been seen."""

    def __init__(self, dialect: Dialect, *, strip_usage: bool) -> None:
        self.ended = False
        self.events = 0
        self.tokens = Tokens()
        self._dialect = dialect
        self._strip_usage = strip_usage
        self._carry = b""
        self._half = False  # the start of an event went out, which was too long to hold
        self._is_plain = dialect == "openai"

    def feed(self, data: bytes) -> bytes:
        """The bytes to forward now: all complete events of `data` and what was held, the same bytes but for a usage nobody asked for."""
        if self._is_plain and not self._carry and data.endswith(b"}\n\n"):
            events = data.count(b"\n\n")
            if ((events == 1 or b"[DONE]" not in data)
                    and (b'"usage":' not in data or data.count(b'"usage":') == data.count(b'"usage":null'))):  # fmt: skip
                self.events += events
                return data
        data = self._carry + data
        complete = self._complete(data)
        self._carry = data[complete:]
        return b"".join(self._seen(event) for event in _events(data[:complete]))

    def rest(self) -> bytes:
        """What is still held when the stream has ended by itself: an event whose closing blank line never came."""
        data, self._carry = self._carry, b""
        return self._seen(data) if data else b""

    def cut(self, refusal: Refusal) -> bytes:
        """The event that tells the caller that the rest is missing. A half event that is still held is dropped: it would spoil this one."""
        self._carry = b""
        body = refusal.body(anthropic=self._dialect == "anthropic")
        return (b"\n\n" if self._half else b"") + (b"" if self._dialect == "openai" else b"event: error\n") + b"data: " + body + b"\n\n"

    def finish(self, prompt_tokens: int) -> bytes:
        """The events that end the stream properly, as if the model had stopped by itself for its length. A half event is dropped.

        They say what was counted; `prompt_tokens` is what the prompt counts where the model has not told.
        """
        self._carry = b""
        read, written = self.tokens.prompt, self.written
        counted = {b"read": prompt_tokens if read is None else read, b"written": written}
        counted[b"both"] = sum(counted.values())
        if self._dialect == "openai":
            return _FINISH["openai"] % (b"" if self._strip_usage else _USAGE % counted)
        return _FINISH[self._dialect] % counted

    @property
    def written(self) -> int:
        """The tokens of the answer so far, as far as they are known: each event counts as one where the model has said less."""
        return max(self.tokens.completion or 0, self.events)

    def _complete(self, data: bytes) -> int:
        end = max(data.rfind(b"\n\n") + 2 if b"\n\n" in data else 0, data.rfind(b"\r\n\r\n") + 4 if b"\r\n\r\n" in data else 0)
        if len(data) - end <= _LONGEST_EVENT:
            return end
        self._half = True
        return len(data)

    def _seen(self, event: bytes) -> bytes:
        self.events += 1
        if any(line in _ENDS[self._dialect] or line.startswith(_ENDS[self._dialect]) for line in event.splitlines()):
            self.ended = True
        if b'"usage"' not in event or not (found := _decoded(event)):
            return event
        for usage in (found.usage, found.message and found.message.usage, found.response and found.response.usage):
            if usage:
                self.tokens = usage.merged(self.tokens)
        return b"" if self._strip_usage and found.usage and found.choices == [] else event


def _events(data: bytes) -> list[bytes]:
    events = []
    start = 0
    for boundary in _BOUNDARY.finditer(data):
        events.append(data[start : boundary.end()])
        start = boundary.end()
    if start < len(data):
        events.append(data[start:])
    return events


def _decoded(event: bytes) -> _Event | None:
    """The event's JSON, or None where it has none that makes sense: a bad line must not end a stream."""
    data = b"\n".join(line[5:].strip() for line in event.splitlines() if line.startswith(b"data:"))
    try:
        return _decode_event(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
