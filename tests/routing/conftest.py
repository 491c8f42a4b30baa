"""The real parts of the router's tests: a router process of its own, an upstream that does what a request tells it, a raw HTTP client.

A request carries its own `script`: the steps that the upstream takes to answer it, the same for every model or one for each. So tests
share a router and an upstream without setting anything up in them, and can run at once.
"""

import asyncio
import base64
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sqlalchemy import text

from routing import keys
from routing.store import open_store

EXTRACTION = [
    f"{verb} the {thing} {what}"
    for verb, what in (
        ("Order", "AB-1 for Ann, two boxes"),
        ("Please send", "order to Berlin by Friday"),
        ("We need", "invoice 4711 delivered"),
    )
    for thing in ("chairs", "paper", "screws", "lamps")
]
CHAT = [
    f"{start} {end}"
    for start in ("hello there,", "good morning,", "tell me a joke")
    for end in ("how are you", "my friend", "what is up", "thanks")
]


def wait_until(claim: Callable[[], Any], within_s: float = 20.0) -> Any:
    """The first true value of `claim`; fails where none comes in time."""
    deadline = time.monotonic() + within_s
    while not (value := claim()):
        assert time.monotonic() < deadline, f"not so within {within_s} s"
        time.sleep(0.02)
    return value


# The upstream


@dataclass
class Seen:
    """One request as the upstream got it, and what became of it there."""

    tag: str
    model: str
    path: str
    headers: list[tuple[str, str]]
    body: bytes
    closed_at: float | None = None
    sent: int = 0

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        return dict(self.headers).get(name)


class Connection(asyncio.Protocol):
    """One connection to the upstream; steps through the script of each request that comes on it."""

    def __init__(self, upstream: "Upstream") -> None:
        self.upstream = upstream
        self.buffer = b""
        self.task: asyncio.Task[None] | None = None
        self.writable = asyncio.Event()
        self.writable.set()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.upstream.connections.add(self)

    def pause_writing(self) -> None:
        self.writable.clear()

    def resume_writing(self) -> None:
        self.writable.set()

    def data_received(self, data: bytes) -> None:
        if self.upstream.records:
            self.upstream.heard += data
        self.buffer += data
        self.next()

    def connection_lost(self, exc: Exception | None) -> None:
        self.upstream.connections.discard(self)
        self.writable.set()
        if self.task is not None:
            self.seen.closed_at = time.monotonic()
            self.task.cancel()

    def next(self) -> None:
        head, found, rest = self.buffer.partition(b"\r\n\r\n")
        if self.task is not None or not found:
            return
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = [(name.lower(), value) for name, value in (line.split(": ", 1) for line in lines)]
        size = int(dict(headers).get("content-length", 0))
        if len(rest) < size:
            return
        self.buffer = rest[size:]
        self.task = asyncio.get_running_loop().create_task(self.answer(first, headers, rest[:size]))

    async def answer(self, first: str, headers: list[tuple[str, str]], body: bytes) -> None:
        path = first.split(" ")[1]
        _, _, model, path = path.split("/", 3)
        if path == "health":
            status = 200 if self.upstream.healthy.get(model, True) else 503
            self.transport.write(b"HTTP/1.1 %d X\r\ncontent-length: 0\r\n\r\n" % status)
        else:
            try:
                asked = json.loads(body)
            except ValueError:
                asked = {}
            seen = self.seen = Seen(asked.get("tag") or dict(headers).get("traceparent", ""), model, "/" + path, headers, body)
            self.upstream.seen.setdefault(seen.tag, []).append(seen)
            script = self.upstream.script(model, asked)
            for step, *arguments in script[model] if isinstance(script, dict) else script:
                await self.take(step, *arguments)
        self.task = None
        if not self.transport.is_closing():
            self.next()

    async def take(self, step: str, *arguments: Any) -> None:
        await getattr(self, f"do_{step}")(*arguments)

    async def do_head(self, status: int, headers: dict[str, Any]) -> None:
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        await self.write(f"HTTP/1.1 {status} X\r\n{lines}\r\n".encode())

    async def do_raw(self, base64_text: str) -> None:
        await self.write(base64.b64decode(base64_text))

    async def do_chunk(self, text: str) -> None:
        await self.write_chunk(text.encode())

    async def do_bytes(self, text: str) -> None:
        """Each byte of the text as a chunk of its own."""
        for byte in text.encode():
            await self.write_chunk(bytes((byte,)))
            await asyncio.sleep(0)

    async def do_end(self) -> None:
        await self.write(b"0\r\n\r\n")

    async def do_sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def do_hang(self) -> None:
        await asyncio.sleep(3600)

    async def do_cut(self) -> None:
        self.transport.abort()

    async def do_close(self) -> None:
        self.transport.close()

    async def do_pace(self, n: int, gap_s: float) -> None:
        for i in range(n):
            await self.write_chunk(event({"choices": [{"index": 0, "delta": {"content": f"w{i} "}}]}).encode())
            await asyncio.sleep(gap_s)

    async def do_large_event(self, size: int) -> None:
        await self.write_chunk(large_event(size))

    async def do_flood(self, size: int) -> None:
        one = large_event(65536)
        for _ in range(size // len(one)):
            await self.write_chunk(one)

    async def write_chunk(self, data: bytes) -> None:
        await self.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def write(self, data: bytes) -> None:
        await self.writable.wait()
        self.transport.write(data)
        self.seen.sent += len(data)


def event(data: Any) -> str:
    return f"data: {json.dumps(data, separators=(',', ':'))}\n\n"


def large_event(size: int) -> bytes:
    return event({"choices": [{"index": 0, "delta": {"content": "y" * size}}]}).encode()


def default_answer() -> list[list[Any]]:
    return Say.answer(
        {
            "id": "x",
            "object": "chat.completion",
            "created": 1,
            "model": "m",
            "choices": [{"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        }
    )


def default_stream() -> list[list[Any]]:
    return Say.stream(*(Say.words(3)), Say.USAGE, Say.DONE)


class Say:
    """Scripts for the upstream."""

    HEAD: ClassVar[list[Any]] = ["head", 200, {"content-type": "text/event-stream; charset=utf-8", "transfer-encoding": "chunked"}]
    DONE = "data: [DONE]\n\n"
    USAGE = event(
        {
            "id": "x",
            "object": "chat.completion.chunk",
            "created": 1,
            "model": "m",
            "choices": [],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        }
    )
    event = staticmethod(event)
    large_event = staticmethod(large_event)

    @staticmethod
    def words(n: int) -> list[str]:
        return [
            event(
                {
                    "id": "x",
                    "object": "chat.completion.chunk",
                    "created": 1,
                    "model": "m",
                    "choices": [{"index": 0, "delta": {"content": f"w{i} "}, "finish_reason": None}],
                }
            )
            for i in range(n)
        ]

    @staticmethod
    def answer(data: Any, status: int = 200, **headers: str) -> list[list[Any]]:
        body = json.dumps(data).encode()
        return [["head", status, {"content-type": "application/json", "content-length": len(body), **headers}], Say.raw(body)]

    @staticmethod
    def stream(*events: str) -> list[list[Any]]:
        return [Say.HEAD, *(["chunk", one] for one in events), ["end"]]

    @staticmethod
    def raw(data: bytes) -> list[Any]:
        return ["raw", base64.b64encode(data).decode()]


def own_script(model: str, asked: Any) -> Any:
    """The script that a request carries, or a plain answer."""
    return asked.get("script") or (default_stream() if asked.get("stream") else default_answer())


class Upstream:
    """The models' server: `/models/<name>/v1/...`. What it saw is in `seen`, by the requests' tags.

    `script` says how to answer which model's request; `records` keeps every byte that comes in, in `heard`.
    """

    def __init__(self, script: Callable[[str, Any], Any] = own_script, *, records: bool = False) -> None:
        self.script = script
        self.records = records
        self.heard = bytearray()
        self.seen: dict[str, list[Seen]] = {}
        self.connections: set[Connection] = set()
        self.healthy: dict[str, bool] = {}
        self.port = 0
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="upstream")
        self._thread.start()
        assert self._up.wait(10)

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        server = await self._loop.create_server(lambda: Connection(self), "127.0.0.1", 0, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        self._up.set()
        await self._over.wait()
        server.close()
        tasks = [connection.task for connection in self.connections if connection.task]
        for connection in tuple(self.connections):
            connection.transport.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()

    def close(self) -> None:
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._over.set)
            self._thread.join(10)

    def got(self, tag: str, *, n: int = 1, within_s: float = 5.0) -> list[Seen]:
        """The requests of that tag, once there are `n`."""
        return wait_until(lambda: len(self.seen.get(tag, ())) >= n and self.seen[tag], within_s)


# The client


@dataclass
class Got:
    """A whole answer. `cut` says that the connection ended before the answer did."""

    status: int
    headers: dict[str, str]
    body: bytes
    cut: bool = False

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]


async def read_answer(reader: asyncio.StreamReader) -> Got:
    """Reads one HTTP answer off a socket."""
    head = await reader.readuntil(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").strip().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    status = int(first.split(" ")[1])
    try:
        if headers.get("transfer-encoding") == "chunked":
            body = bytearray()
            while size := int(await reader.readuntil(b"\r\n"), 16):
                body += await reader.readexactly(size)
                await reader.readexactly(2)
            await reader.readexactly(2)
            return Got(status, headers, bytes(body))
        return Got(status, headers, await reader.readexactly(int(headers.get("content-length", 0))))
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        return Got(status, headers, bytes(body) if "transfer-encoding" in headers else getattr(error, "partial", b""), cut=True)


@contextlib.asynccontextmanager
async def connected(port: int) -> Any:
    """A raw connection, closed at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


@dataclass
class Client:
    """Asks a router, by hand-made HTTP."""

    port: int
    key: str = ""

    def request(
        self, body: Any, path: str = "/v1/chat/completions", *, method: str = "POST", headers: dict[str, str] | None = None
    ) -> bytes:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        mine = {
            "host": "router",
            "content-type": "application/json",
            "content-length": str(len(data)),
            "authorization": f"Bearer {self.key}",
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in {**mine, **(headers or {})}.items() if value)
        return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + data

    async def ask(self, body: Any = b"", path: str = "/v1/chat/completions", *, within_s: float = 20.0, **more: Any) -> Got:
        return await self.send_raw(self.request(body, path, **more), within_s=within_s)

    async def send_raw(self, data: bytes, *, within_s: float = 20.0) -> Got:
        async with connected(self.port) as (reader, writer), asyncio.timeout(within_s):
            writer.write(data)
            return await read_answer(reader)

    async def get(self, path: str, **more: Any) -> Got:
        return await self.ask(b"", path, method="GET", **more)

    def open(self, body: Any = b"", **more: Any) -> socket.socket:
        """A connection on which the request has been sent and nothing read."""
        connection = socket.create_connection(("127.0.0.1", self.port))
        connection.sendall(self.request(body, **more))
        return connection


# The router


def chat(script: Any = None, *, model: str = "alpha", **more: Any) -> dict[str, Any]:
    """A chat request with a tag of its own."""
    return {
        "model": model,
        "messages": [{"role": "user", "content": "hi"}],
        "tag": uuid.uuid4().hex,
        **({"script": script} if script else {}),
        **more,
    }


@dataclass
class Router:
    """A router process and all its workers."""

    home: Path
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    key: str = ""
    engine: Any = None
    extra: dict[str, Any] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def client(self) -> Client:
        return Client(self.port, self.key)

    async def ask(self, body: Any = b"", path: str = "/v1/chat/completions", **more: Any) -> Got:
        return await self.client.ask(body, path, **more)

    async def get(self, path: str, **more: Any) -> Got:
        return await self.client.get(path, **more)

    def workers(self) -> list[int]:
        """Process ids of the workers that live."""
        out = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                parent = int((folder / "stat").read_text().rsplit(")", 1)[1].split()[1])
                if parent == self.process.pid and re.search(rb"worker-|spawn_main", (folder / "cmdline").read_bytes()):
                    out.append(int(folder.name))
        return sorted(out)

    def rss(self) -> int:
        """Resident bytes of all workers."""
        return sum(int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) << 10 for pid in self.workers())

    def rows(self, request_id: str | None = None, *, n: int = 0, within_s: float = 5.0) -> list[dict[str, Any]]:
        """The ledger's rows (of one request), once there are `n`."""

        def look() -> list[dict[str, Any]] | None:
            with self.engine.connect() as connection:
                mine = text("select * from ledger where :id = '' or request_id = :id order by id")
                rows = [dict(row) for row in connection.execute(mine, {"id": request_id or ""}).mappings()]
            return rows if len(rows) >= n else None

        return wait_until(lambda: (found := look()) is not None and [found], within_s)[0]

    def is_up(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/healthz", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def stop(self) -> None:
        """Ends the process and whatever it started, and makes sure of it."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):  # a test left a stream open: the group is killed below
                self.process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(10)
        if self.engine is not None:
            self.engine.dispose()


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


MODEL_NAMES = ("alpha", "beta", "gamma")


def write_site(
    home: Path, *, cells: list[str], limits: dict[str, Any], taught: bool, price: dict[str, Any] | None = None, **routes: Any
) -> None:
    """`models.yaml` and `routes.yaml` (JSON is YAML) under `home`. Untaught tasks can't serve `auto`, and start faster."""
    models = [{"name": name, "path": ".", "license": "x", "price": price or {"usd_per_gpu_hour": 1}} for name in MODEL_NAMES]
    models[1]["adapters"] = [{"name": "beta-adapter", "path": "."}]
    tasks = [
        {
            "name": "extraction",
            "description": "to JSON",
            "candidates": [{"model": "alpha"}],
            "fallbacks": ["beta", "gamma"],
            "examples": EXTRACTION if taught else [],
        },
        {"name": "chat", "candidates": [{"model": "beta"}], "examples": CHAT if taught else []},
    ]
    document = {
        "default_task": "chat",
        "tasks": tasks,
        "cells": [{"name": f"cell{i}", "url": url} for i, url in enumerate(cells)],
        "auto": {"confidence": 0.8},
        "limits": limits,
        **routes,
    }
    (home / "models.yaml").write_text(json.dumps({"models": models}))
    (home / "routes.yaml").write_text(json.dumps(document))


@pytest.fixture(scope="session")
def upstream() -> Iterator[Upstream]:
    """The upstream that all routers of the tests share."""
    served = Upstream()
    yield served
    served.close()


@pytest.fixture(scope="module")
def start_upstream() -> Iterator[Callable[..., Upstream]]:
    """Starts upstreams of a test's own, and ends them all after its file."""
    started: list[Upstream] = []

    def start(*arguments: Any, **more: Any) -> Upstream:
        started.append(Upstream(*arguments, **more))
        return started[-1]

    yield start
    for one in started:
        one.close()


@contextlib.contextmanager
def routers(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Router]]:
    """What starts routers; all of them end with the block."""
    started: list[Router] = []

    def start(
        *,
        workers: int = 1,
        cells: list[str] | None = None,
        limits: dict[str, Any] | None = None,
        taught: bool = False,
        database: str = "",
        program: Sequence[str] = ("-m", "routing.server"),
        environment: Mapping[str, str] | None = None,
        home: Path | None = None,
        **routes: Any,
    ) -> Router:
        home = home or tmp_path_factory.mktemp("router")
        cells = cells or [f"http://127.0.0.1:{upstream.port}"]
        write_site(home, cells=cells, limits=limits or {}, taught=taught, **routes)
        port = free_port()
        whole = {
            **os.environ,
            "INHOUSE_DATABASE": database,
            "INHOUSE_HOME": str(home),
            "INHOUSE_MODELS": str(home / "models.yaml"),
            "INHOUSE_PORT": str(port),
            "INHOUSE_ROUTES": str(home / "routes.yaml"),
            "INHOUSE_WORKERS": str(workers),
            "INHOUSE_HOST": "127.0.0.1",
            **(environment or {}),
        }
        whole.pop("PROMETHEUS_MULTIPROC_DIR", None)
        log = home / "router.log"
        with log.open("wb") as out:
            process = subprocess.Popen([sys.executable, *program], env=whole, stdout=out, stderr=out, start_new_session=True)
        router = Router(home, port, process, log)
        started.append(router)
        router.engine = open_store(home, database or None)
        router.key = keys.create(router.engine, "tester")
        wait_until(lambda: router.is_up() or router.process.poll() is not None, 60)
        assert router.process.poll() is None, log.read_text()
        return router

    try:
        yield start
    finally:
        for router in started:
            router.process.terminate()
        for router in started:
            router.stop()


@pytest.fixture(scope="module")
def start_router(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Router]]:
    """Starts routers for a file's tests, and ends them after it: the idle ones would take a third of a core from those that come later."""
    with routers(upstream, tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="session")
def start_shared(upstream: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Router]]:
    """Starts the routers that several files share."""
    with routers(upstream, tmp_path_factory) as start:
        yield start


@pytest.fixture(scope="session")
def router(start_shared: Callable[..., Router]) -> Router:
    """A router with one worker and patient limits, which can tell tasks."""
    limits = {"body_bytes": 1 << 20, "header_bytes": 8192, "answer_bytes": 1 << 20}
    return start_shared(limits=limits, taught=True, media_domains=["media.example"])


@pytest.fixture(scope="session")
def hasty(start_shared: Callable[..., Router]) -> Router:
    """A router whose limits of time are short."""
    return start_shared(
        limits={
            "header_timeout_s": 1.0,
            "body_timeout_s": 1.0,
            "keep_alive_timeout_s": 1.0,
            "connect_timeout_s": 1.0,
            "first_byte_timeout_s": 1.0,
            "idle_timeout_s": 1.0,
            "total_timeout_s": 4.0,
        }
    )


@pytest.fixture(scope="session")
def pair(start_shared: Callable[..., Router]) -> Router:
    """A router with two workers, which train at the same moment."""
    return start_shared(workers=2, taught=True)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Any]:
    """A database of its own."""
    engine = open_store(tmp_path)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def say() -> type[Say]:
    """Scripts for the upstream."""
    return Say


@pytest.fixture(scope="session", name="chat")
def _chat() -> Callable[..., dict[str, Any]]:
    """Makes chat requests."""
    return chat


@pytest.fixture(scope="session", name="wait_until")
def _wait_until() -> Callable[..., Any]:
    """Waits for a claim to hold."""
    return wait_until


@pytest.fixture(scope="session", name="connected")
def _connected() -> Callable[..., Any]:
    """Opens raw connections."""
    return connected


@pytest.fixture(scope="session", name="read_answer")
def _read_answer() -> Callable[..., Any]:
    """Reads HTTP answers."""
    return read_answer


@pytest.fixture
def tag() -> str:
    """A name for one request."""
    return uuid.uuid4().hex
