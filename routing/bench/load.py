"""The load generator: `python -m routing.bench.load` reads a plan (JSON) from stdin and prints what happened (JSON).

Closed loop (every connection asks again as soon as it is answered), open loop (`rate`: latency counts from when a request was due) or a
fixed number of requests (`count`). CPU time of the processes under test is read where the window opens and closes, so that what is
counted and what is charged belong together. Nothing is retried: whatever goes wrong is a failure by name.
"""

import asyncio
import gc
import json
import sys
import time
from collections import Counter, deque
from typing import Any

import httptools
import msgspec
import uvloop

from routing.bench.plan import Outcome, Plan, Times
from routing.bench.processes import cpu_seconds
from routing.bench.sse import Stream

_GOLDEN = 0.6180339887


class Connection(asyncio.Protocol):
    """One kept-alive connection to what is under test."""

    def __init__(self, run: "Run") -> None:
        self._run = run
        self._parser = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self.due_ns = 0
        self.is_busy = False
        self.stream: Stream | None = None
        self._body = b""

    def ask(self, request: bytes, due_ns: int) -> None:
        """Sends a request that was due at `due_ns`."""
        self.is_busy = True
        self.due_ns = due_ns
        self._body = b""
        if self._run.plan.stream:
            self.stream = Stream(is_stamped=self._run.plan.chunks is not None)
        self._transport.write(request)

    def is_closing(self) -> bool:
        """Whether it can't be used again."""
        return self._transport is None or self._transport.is_closing()

    def close(self) -> None:
        """Cuts it."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # uvloop sets TCP_NODELAY

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._run.finished(self, "not_http")
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._run.lost(self)

    def on_body(self, body: bytes) -> None:
        if self.stream is not None and self._parser.get_status_code() == 200:
            self._run.arrived(self, self.stream, body)
        else:
            self._body += body

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        if status == 100:
            return
        fault = f"status_{status}" if not 200 <= status < 300 else ""
        if not fault and self.stream is not None:
            fault = self.stream.fault(self._run.plan.chunks)
        elif not fault and b'"completion_tokens"' not in self._body:
            fault = "usage_missing"
        if not self._parser.should_keep_alive():
            self.close()
        self._run.finished(self, fault)


class Run:
    """One plan being carried out."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self._loop = asyncio.get_running_loop()
        self._requests = [_request(plan, body) for body in plan.bodies]
        self._connections: set[Connection] = set()
        self._free: list[Connection] = []
        self._due: deque[int] = deque()
        self._issued = 0
        self._is_over = False
        self._all_answered = asyncio.Event()
        self._failures: Counter[str] = Counter()
        self._open_window()

    def _open_window(self) -> None:
        self._good = self._chunks = self._tokens = self._reads = 0
        self._latency_ns: list[int] = []
        self._ttft_ns: list[int] = []
        self._relay_ns: list[int] = []
        self._began_ns = time.monotonic_ns()
        self._cpu_s = cpu_seconds(self.plan.pids)

    async def measure(self) -> Outcome:
        """Carries the plan out. Waits for the answers that are still under way when the window closes, as they must be right too."""
        plan = self.plan
        await asyncio.gather(*(self._connect(i) for i in range(plan.connections)))
        if plan.count:
            self._open_window()
            for connection in list(self._connections):
                self._next(connection)
            await self._drained()
            return self._outcome()
        pump = asyncio.create_task(self._pump()) if plan.rate else None
        if pump is None:
            for i, connection in enumerate(list(self._connections)):
                self._loop.call_later(plan.spread_s * (i * _GOLDEN % 1.0), self._next, connection)
        else:
            self._free = list(self._connections)
        await asyncio.sleep(plan.spread_s + plan.warm_s)
        self._open_window()
        await asyncio.sleep(plan.seconds)
        outcome = self._outcome()
        self._is_over = True
        if pump is not None:
            pump.cancel()
        await self._drained()
        return msgspec.structs.replace(outcome, failures=dict(self._failures))

    def _outcome(self) -> Outcome:
        cpu_s = cpu_seconds(self.plan.pids) - self._cpu_s
        seconds = (time.monotonic_ns() - self._began_ns) / 1e9
        return Outcome(seconds=seconds, requests=self._good, chunks=self._chunks, tokens=self._tokens, cpu_s=cpu_s, reads=self._reads,
                       latency=Times.of(list(self._latency_ns)), ttft=Times.of(list(self._ttft_ns)), relay=Times.of(list(self._relay_ns)),
                       failures=dict(self._failures))  # fmt: skip

    async def _connect(self, i: int = 0) -> Connection | None:
        await asyncio.sleep(0.001 * (i // 64))  # no flood of handshakes
        try:
            _, connection = await self._loop.create_connection(lambda: Connection(self), self.plan.host, self.plan.port)
        except OSError:
            self._failures["connect_failed"] += 1
            return None
        self._connections.add(connection)
        return connection

    async def _reconnect(self) -> None:
        if connection := await self._connect():
            self._next(connection)
        self._note_end()

    async def _drained(self) -> None:
        self._is_over = self._is_over or not self.plan.count
        self._note_end()
        try:
            async with asyncio.timeout(self.plan.patience_s):
                await self._all_answered.wait()
        except TimeoutError:
            self._failures["never_answered"] += sum(connection.is_busy for connection in self._connections)
        self._is_over = True
        for connection in self._connections:
            connection.close()

    async def _pump(self) -> None:
        """Makes requests due at the plan's rate, whether or not earlier ones have been answered."""
        began = time.monotonic_ns()
        made = 0
        while True:
            due = int((time.monotonic_ns() - began) * self.plan.rate / 1e9)
            while made < due:
                made += 1
                self._due.append(began + int(made * 1e9 / self.plan.rate))
            while self._due and self._free:
                self._ask(self._free.pop(), self._due.popleft())
            await asyncio.sleep(0.001)

    def _next(self, connection: Connection) -> None:
        """Gives a free connection its next request, or lets it rest."""
        if connection.is_closing():
            return
        if self._is_enough():
            self._note_end()
        elif not self.plan.rate:
            self._ask(connection, time.monotonic_ns())
        elif self._due:
            self._ask(connection, self._due.popleft())
        else:
            self._free.append(connection)

    def _ask(self, connection: Connection, due_ns: int) -> None:
        self._issued += 1
        connection.ask(self._requests[self._issued % len(self._requests)], due_ns)

    def _is_enough(self) -> bool:
        return self._is_over or 0 < self.plan.count <= self._issued

    def _note_end(self) -> None:
        if (self._is_enough() or not self._connections) and not any(connection.is_busy for connection in self._connections):
            self._all_answered.set()

    def arrived(self, connection: Connection, stream: Stream, body: bytes) -> None:
        """Bytes of a stream."""
        now_ns = time.monotonic_ns()
        found = stream.feed(body, now_ns, self._relay_ns)
        if found and not stream.first:
            stream.first = True
            if connection.due_ns >= self._began_ns:
                self._ttft_ns.append(now_ns - connection.due_ns)
        self._chunks += found
        self._reads += found > 0

    def finished(self, connection: Connection, fault: str) -> None:
        """An exchange is over, well or not."""
        connection.is_busy = False
        if fault:
            self._failures[fault] += 1
        else:
            self._good += 1
            self._tokens += connection.stream.tokens if connection.stream is not None else 0
            self._latency_ns.append(time.monotonic_ns() - connection.due_ns)
        self._next(connection)

    def lost(self, connection: Connection) -> None:
        """A connection is closed. In the middle of an exchange that is a failure; between two it is the other side's right."""
        self._connections.discard(connection)
        if connection in self._free:
            self._free.remove(connection)
        if connection.is_busy:
            connection.is_busy = False
            self._failures["connection_lost"] += 1
        if self._is_enough():
            self._note_end()
        else:
            asyncio.ensure_future(self._reconnect())  # noqa: RUF006 (ends by itself; the run outlives it)


def _request(plan: Plan, body: str) -> bytes:
    data = body.encode()
    headers = {"host": f"{plan.host}:{plan.port}", "content-type": "application/json", "content-length": str(len(data)), **plan.headers}
    lines = [f"POST {plan.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    return "\r\n".join(lines).encode() + data


async def _main() -> None:
    plan = msgspec.json.decode(sys.stdin.buffer.read(), type=Plan)
    gc.disable()  # a run is short, and a pause here would be read as the gateway's
    outcome = await Run(plan).measure()
    sys.stdout.write(json.dumps(msgspec.to_builtins(outcome)))


if __name__ == "__main__":
    uvloop.run(_main())
