"""A stand-in for a model server that costs little and misses nothing: `python -m routing.bench.mock PORT`.

Answers any path that ends in an OpenAI path, whatever stands before it: half a kilobyte of JSON, or a stream whose every chunk is one
write and carries the monotonic time at which it was written (`t=<19 digits>` ns). `GET /ctl?interval_us=&ttft_us=&chunks=` sets
the pace and says how many POSTs came.
"""

import asyncio
import json
import re
import sys
import time
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any
from urllib.parse import parse_qsl

import httptools
import uvloop

PROMPT_TOKENS = 210
_STREAMED = re.compile(rb'"stream"\s*:\s*true')
_EVENT = ('data: {"id":"chatcmpl-mock0123456789","object":"chat.completion.chunk","created":1700000000,"model":"mock",'
          '"choices":[{"index":0,"delta":%s,"logprobs":null,"finish_reason":%s}]}\n\n')  # fmt: skip
_CONTENT = (_EVENT % ('{"content":"t=%019d "}', "null")).encode()
_FIRST = (_EVENT % ('{"role":"assistant","content":"t=%019d "}', "null")).encode()
_STOP = (_EVENT % ("{}", '"stop"')).encode()
_STREAM_HEAD = (b"HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: text/event-stream; charset=utf-8\r\ncache-control: no-cache\r\n"
                b"transfer-encoding: chunked\r\n\r\n")  # fmt: skip


@dataclass
class Pace:
    """How streams run, as `/ctl` set it, and how many requests have come."""

    interval_us: int = 0
    ttft_us: int = 0
    chunks: int = 64
    requests: int = 0


def _usage(chunks: int) -> dict[str, int]:
    return {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": chunks, "total_tokens": PROMPT_TOKENS + chunks}


@cache
def _answer(chunks: int) -> bytes:
    """A whole chat completion: head and body."""
    message: dict[str, object] = {"role": "assistant", "content": "All is well. " * 14, "refusal": None, "tool_calls": []}
    return _json({"id": "chatcmpl-mock0123456789", "object": "chat.completion", "created": 1700000000, "model": "mock", "choices": [
        {"index": 0, "message": message, "logprobs": None, "finish_reason": "stop"}], "usage": _usage(chunks)})  # fmt: skip


@cache
def _last_event(chunks: int) -> bytes:
    """Usage, `[DONE]` and the end of the body, in one write as engines do."""
    whole = {"id": "chatcmpl-mock0123456789", "object": "chat.completion.chunk", "created": 1700000000, "model": "mock", "choices": [],
             "usage": _usage(chunks)}  # fmt: skip
    return _framed(f"data: {json.dumps(whole, separators=(',', ':'))}\n\ndata: [DONE]\n\n".encode()) + b"0\r\n\r\n"


def _json(value: object) -> bytes:
    body = json.dumps(value, separators=(",", ":")).encode()
    return b"HTTP/1.1 200 OK\r\nserver: mock\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def _framed(event: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(event), event)


class Exchange(asyncio.Protocol):
    """One kept-alive connection."""

    def __init__(self, pace: Pace) -> None:
        self._pace = pace
        self._parser = httptools.HttpRequestParser(self)
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._timer: asyncio.TimerHandle | asyncio.Handle | None = None
        self._url = b""
        self._body = b""
        self._sent = 0
        self._due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # uvloop sets TCP_NODELAY

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def on_message_begin(self) -> None:
        self._url = self._body = b""

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_body(self, body: bytes) -> None:
        self._body = self._body + body if self._body else body

    def on_message_complete(self) -> None:
        if self._parser.get_method() != b"POST":
            self._transport.write(self._about())
            return
        self._pace.requests += 1
        is_stream = _STREAMED.search(self._body) is not None
        if is_stream:
            self._sent = 0
            self._transport.write(_STREAM_HEAD)
        if self._pace.ttft_us:
            self._due = self._loop.time() + self._pace.ttft_us / 1e6
            self._timer = self._loop.call_at(self._due, self._chunk if is_stream else self._whole)
        elif is_stream:
            self._due = self._loop.time()
            self._chunk()
        else:
            self._whole()

    def _whole(self) -> None:
        self._transport.write(_answer(self._pace.chunks))

    def _chunk(self) -> None:
        """Writes the next event of the stream and arranges for the one after it."""
        pace, i = self._pace, self._sent
        self._sent += 1
        if i > pace.chunks:
            self._transport.write(_last_event(pace.chunks))
            return
        self._transport.write(_framed(_STOP if i == pace.chunks else (_CONTENT if i else _FIRST) % time.monotonic_ns()))
        if pace.interval_us:
            self._due += pace.interval_us / 1e6
            self._timer = self._loop.call_at(self._due, self._chunk)
        else:
            self._timer = self._loop.call_soon(self._chunk)  # the loop joins what is written in one round; each chunk is to be its own

    def _about(self) -> bytes:
        """The answer to a GET: control, health, what models there are."""
        path, _, query = self._url.decode("ascii", "replace").partition("?")
        if path == "/ctl":
            for name, value in parse_qsl(query):
                setattr(self._pace, name, int(value))
            return _json(asdict(self._pace))
        if path.endswith("/models"):
            return _json({"object": "list", "data": [{"id": "mock", "object": "model", "created": 1700000000, "owned_by": "mock"}]})
        return _json({"status": "ok"})


async def serve(port: int) -> None:
    """Serves until cancelled."""
    pace = Pace()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Exchange(pace), "127.0.0.1", port, backlog=4096)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1])))
