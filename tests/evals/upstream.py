"""A model server that says what it is told to: chat completions and messages, streamed or whole, refusals, cuts, errors in the stream.

Runs in a thread of its own; counts what it was asked. `python tests/evals/upstream.py PORT` runs it alone, for measurements.
"""

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Reply:
    """One answer and how it goes wrong. `cut_after`: events sent before the connection is dropped."""

    text: str = "ok"
    calls: tuple[dict[str, Any], ...] = ()
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut_after: int | None = None
    wait_s: float = 0.0
    gap_s: float = 0.0
    streams: bool = True
    finish: str | None = "stop"
    error_event: bool = False


class Upstream:
    """Answers by `say`, a function of the request's body; `asked` are the bodies, in order."""

    def __init__(self, say: Callable[[dict[str, Any]], Reply]) -> None:
        self.say = say
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str] = []
        self.classes: list[str] = []
        self.under_way = self.most_under_way = 0
        self.port = 0

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, kept alive."""
        with suppress(ConnectionError, asyncio.IncompleteReadError), closing(writer):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                self.asked.append(body)
                self.keys.append(headers.get("authorization", headers.get("x-api-key", "")))
                self.classes.append(headers.get("inhouse-data-class", ""))
                self.under_way += 1
                self.most_under_way = max(self.most_under_way, self.under_way)
                try:
                    kept = await self.answer(writer, self.say(body), anthropic=head.startswith("post /v1/messages"))
                finally:
                    self.under_way -= 1
                if not kept:
                    break

    async def answer(self, writer: asyncio.StreamWriter, reply: Reply, *, anthropic: bool) -> bool:
        """Writes a reply; whether the connection lives on."""
        await asyncio.sleep(reply.wait_s)
        events = (_anthropic if anthropic else _openai)(reply)
        more = "".join(f"{name}: {value}\r\n" for name, value in reply.headers.items())
        if reply.status != 200 or not reply.streams:
            whole = json.dumps(_whole(reply) if reply.status == 200 else {"error": {"message": f"says {reply.status}"}}).encode()
            more = f"content-type: application/json\r\ncontent-length: {len(whole)}\r\n{more}"
            writer.write(f"HTTP/1.1 {reply.status} X\r\n{more}\r\n".encode() + whole)
            await writer.drain()
            return True
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n{more}transfer-encoding: chunked\r\n\r\n".encode())
        pieces = [f"{len(event):x}\r\n".encode() + event + b"\r\n" for event in events]
        if reply.gap_s:
            for piece in pieces[: reply.cut_after]:
                writer.write(piece)
                await asyncio.sleep(reply.gap_s)
        else:
            writer.write(b"".join(pieces[: reply.cut_after]))
        if reply.cut_after is None:
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        return reply.cut_after is None


def _event(data: Any) -> bytes:
    return b"data: " + (data if isinstance(data, bytes) else json.dumps(data).encode()) + b"\n\n"


def _openai(reply: Reply) -> list[bytes]:
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
    deltas += [{"content": word} for word in _words(reply.text)]
    for at, call in enumerate(reply.calls):
        deltas.append({"tool_calls": [{"index": at, "id": f"c{at}", "function": {"name": call["name"], "arguments": ""}}]})
        deltas += [{"tool_calls": [{"index": at, "function": {"arguments": part}}]} for part in _words(json.dumps(call["arguments"]))]
    events = [_event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}) for delta in deltas]
    if reply.error_event:
        return [*events, _event({"error": {"message": "the engine died", "type": "upstream_error"}})]
    usage = {"prompt_tokens": 7, "completion_tokens": len(deltas) - 1}
    end = [_event({"choices": [{"index": 0, "delta": {}, "finish_reason": reply.finish}]})] if reply.finish else []
    return [*events, *end, _event({"choices": [], "usage": usage}), _event(b"[DONE]")]


def _anthropic(reply: Reply) -> list[bytes]:
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": {"usage": {"input_tokens": 5, "cache_read_input_tokens": 2, "output_tokens": 1}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    ]
    events += [{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}} for word in _words(reply.text)]
    for at, call in enumerate(reply.calls, 1):
        events.append(
            {
                "type": "content_block_start",
                "index": at,
                "content_block": {"type": "tool_use", "id": f"c{at}", "name": call["name"], "input": {}},
            }
        )
        events += [
            {"type": "content_block_delta", "index": at, "delta": {"type": "input_json_delta", "partial_json": part}}
            for part in _words(json.dumps(call["arguments"]))
        ]
    if reply.error_event:
        events.append({"type": "error", "error": {"type": "overloaded_error", "message": "the engine died"}})
    events += [{"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}}, {"type": "message_stop"}]
    return [f"event: {event['type']}\n".encode() + _event(event) for event in events]


def _whole(reply: Reply) -> dict[str, Any]:
    calls = [
        {"id": "c", "type": "function", "function": {"name": call["name"], "arguments": json.dumps(call["arguments"])}}
        for call in reply.calls
    ]
    return {
        "choices": [{"message": {"role": "assistant", "content": reply.text, "tool_calls": calls or None}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2},
    }


def _words(text: str) -> list[str]:
    *words, last = text.split(" ")
    return [*(f"{word} " for word in words), *([last] if last else [])]


@contextmanager
def serving(say: Callable[[dict[str, Any]], Reply], port: int = 0) -> Iterator[Upstream]:
    """An upstream that runs until the block ends."""
    upstream = Upstream(say)
    ready = threading.Event()
    ends: list[Callable[[], Any]] = []

    async def main() -> None:
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        ends.append(lambda: loop.call_soon_threadsafe(over.set))
        async with await asyncio.start_server(upstream.serve, "127.0.0.1", port, backlog=1024) as server:
            upstream.port = server.sockets[0].getsockname()[1]
            ready.set()
            await over.wait()
            open_still = asyncio.all_tasks() - {asyncio.current_task()}
            for task in open_still:
                task.cancel()
            await asyncio.wait(open_still, timeout=5) if open_still else None
            await asyncio.sleep(0.01)  # the transports close

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    ready.wait()
    try:
        yield upstream
    finally:
        ends[0]()
        thread.join()


if __name__ == "__main__":
    import uvloop

    async def _alone() -> None:
        alone = Upstream(lambda body: Reply(text=f"the answer of {body['model']} is right"))
        server = await asyncio.start_server(alone.serve, "127.0.0.1", int(sys.argv[1]), backlog=1024)
        await server.serve_forever()

    uvloop.run(_alone())
