"""A model server that costs next to nothing, so that what asks it is what is measured: `python -m evals.bench_upstream PORT_FILE`.

Answers every POST with the same short chat completion, streamed in one write where a stream is asked for; tells its port in the file.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

import httptools
import uvloop

ANSWER = "the answer is right"
_USAGE = {"prompt_tokens": 20, "completion_tokens": 4, "total_tokens": 24}


def _event(**fields: Any) -> bytes:
    return b"data: " + json.dumps({"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m"} | fields).encode() + b"\n\n"


def _http(kind: str, body: bytes) -> bytes:
    return f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body


_WORDS = [_event(choices=[{"index": 0, "delta": {"content": word}, "finish_reason": None}]) for word in ("the ", "answer ", "is ", "right")]
_END = [_event(choices=[{"index": 0, "delta": {}, "finish_reason": "stop"}]), _event(choices=[], usage=_USAGE), b"data: [DONE]\n\n"]
_STREAM = _http("text/event-stream", b"".join([*_WORDS, *_END]))
_MESSAGE = {"index": 0, "message": {"role": "assistant", "content": ANSWER}, "finish_reason": "stop"}
_WHOLE = _http("application/json", json.dumps({"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [_MESSAGE],
                                               "usage": _USAGE}).encode())  # fmt: skip


class _Connection(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: Any = transport
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        self._transport.write(_STREAM if json.loads(self._body).get("stream") else _WHOLE)
        self._body = b""


async def _serve(file: Path) -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0, backlog=1024)
    draft = file.with_suffix(f".{os.getpid()}")
    draft.write_text(str(server.sockets[0].getsockname()[1]))
    draft.replace(file)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_serve(Path(sys.argv[1])))
