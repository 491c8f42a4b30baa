"""Real vLLM behind a proxy that delays, refuses, resets and cuts: as providers of both dialects, and as a cell of our own."""

import asyncio
import contextlib
import json
import socket
import struct
import threading
import time
import urllib.error
import urllib.request
import uuid

import pytest
from sqlalchemy import text

from routing import keys
from routing.budgets import budgets_of
from routing.keys import Allowed
from routing.store import open_store

pytestmark = pytest.mark.slow
MODEL = "demo-generalist"
HELLO = [{"role": "user", "content": "Hello, how are you?"}]
TOKEN = 20_000  # nano-USD
PRICE = {"usd_per_million_input_tokens": 20, "usd_per_million_output_tokens": 20, "as_of": "2026-11-01", "source": "none: it is ours"}
FAULTS = {"reset": "reset/0", "busy": "busy/30", "broken": "broken/30", "headless": "headless/0", "half": "cut/100", "cut": "cut/700",
          "late": "late/1", "fine": "late/0"}  # fmt: skip
PATHS = {"openai": "/v1/chat/completions", "anthropic": "/v1/messages"}


class FaultProxy:
    """A proxy on a port of its own: `/<fault>/<N>/<path>` asks the server behind it for the path, with that fault. One request each time.

    `reset`: hangs up with RST. `busy`, `broken`: 429 and 503 with `Retry-After: N`. `headless`: ends in the middle of the answer's head.
    `late`: asks N seconds later. `cut`: ends after N bytes of the answer's body. `asked` are the paths that came.
    """

    def __init__(self, port: int) -> None:
        self.behind = port
        self.asked: list[str] = []
        self._up = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), name="fault proxy")
        self._thread.start()
        assert self._up.wait(10)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        server = await asyncio.start_server(self._take, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._up.set()
        await self._over.wait()
        server.close()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            head = await reader.readuntil(b"\r\n\r\n")
            first, _, lines = head.partition(b"\r\n")
            method, path, _ = first.decode().split(" ")
            _, fault, number, rest = path.split("/", 3)
            size = next((int(line[15:]) for line in lines.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
            body = await reader.readexactly(size)
            self.asked.append(path)
            request = f"{method} /{rest} HTTP/1.1\r\n".encode() + lines[:-2] + b"connection: close\r\n\r\n" + body
            await getattr(self, f"_{fault}")(writer, request, number)
        writer.close()

    async def _reset(self, writer: asyncio.StreamWriter, _request: bytes, _number: str) -> None:
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def _busy(self, writer: asyncio.StreamWriter, _request: bytes, number: str, status: str = "429 Too Many Requests") -> None:
        writer.write(f"HTTP/1.1 {status}\r\nretry-after: {number}\r\ncontent-length: 0\r\n\r\n".encode())

    async def _broken(self, writer: asyncio.StreamWriter, request: bytes, number: str) -> None:
        await self._busy(writer, request, number, "503 Service Unavailable")

    async def _headless(self, writer: asyncio.StreamWriter, request: bytes, _number: str) -> None:
        async with self._answer(request) as answer:
            writer.write((await answer.readuntil(b"\r\n\r\n"))[:40])

    async def _late(self, writer: asyncio.StreamWriter, request: bytes, number: str) -> None:
        await asyncio.sleep(float(number))
        await self._cut(writer, request, str(1 << 30))

    async def _cut(self, writer: asyncio.StreamWriter, request: bytes, number: str) -> None:
        async with self._answer(request) as answer:
            writer.write(await answer.readuntil(b"\r\n\r\n"))
            left = int(number)
            while left and (data := await answer.read(left)):
                writer.write(data)
                left -= len(data)
                await writer.drain()

    @contextlib.asynccontextmanager
    async def _answer(self, request: bytes):
        """The answer of who is behind; where it is left early, it is hung up on."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.behind)
        try:
            writer.write(request)
            yield reader
        finally:
            writer.close()


def site(folder, proxy):
    """For each dialect and fault a provider, and a task that falls back from it to one without; our own cell is cut after 700 bytes."""
    providers = [{"name": f"{dialect}-{fault}", "url": f"http://127.0.0.1:{proxy.port}/{path}/models/{MODEL}", "dialect": dialect,
                  "models": [{"name": f"{dialect}-{fault}", "id": MODEL, "price": PRICE, "context": 1024}]}
                 for dialect in PATHS for fault, path in FAULTS.items()]  # fmt: skip
    tasks = [{"name": f"{dialect}-{fault}", "candidates": [{"model": f"{dialect}-{fault}"}], "fallbacks": [f"{dialect}-fine", MODEL]}
             for dialect in PATHS for fault in FAULTS if fault != "fine"]  # fmt: skip
    own = {"name": MODEL, "path": ".", "license": "x", "price": {name: PRICE[name] for name in PRICE if name.startswith("usd")}}
    routes = {"default_task": "own", "tasks": [{"name": "own", "candidates": [{"model": MODEL}]}, *tasks], "providers": providers,
              "cells": [{"name": "cut", "url": f"http://127.0.0.1:{proxy.port}/cut/700"}],
              "zones": [{"name": "onprem", "teams": ["*"]}, {"name": "hosted", "teams": ["*"]}]}  # fmt: skip
    (folder / "models.yaml").write_text(json.dumps({"models": [own]}))
    (folder / "routes.yaml").write_text(json.dumps(routes))


class Router:
    """A router before the proxy, asked by a caller with a budget."""

    def __init__(self, folder, url):
        self.url = url
        self.engine = open_store(folder)
        self.key = keys.create(self.engine, "ann", allowed=Allowed(limits=budgets_of(["90usd/day"])))

    def ask(self, dialect, model, request_id="", **more):
        """(status, headers, body) of a request in a dialect."""
        body = json.dumps({"model": model, "messages": HELLO, "max_tokens": 40, **more}).encode()
        headers = {"authorization": f"Bearer {self.key}", "content-type": "application/json", "x-request-id": request_id}
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + PATHS[dialect], body, headers), timeout=120) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers, error.read()

    def sql(self, query, **values):
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(text(query), values).mappings()]

    def rows(self, request_id, n, last=""):
        """The ledger's rows of a request, once there are so many and the last is of that model."""
        deadline = time.monotonic() + 20
        asked = "select * from ledger where request_id = :id order by attempt"
        while len(found := self.sql(asked, id=request_id)) < n or last not in ("", found[-1]["model"]):
            assert time.monotonic() < deadline, found
            time.sleep(0.05)
        return found


@pytest.fixture(scope="module")
def proxy(house):
    """The proxy before the house's own models."""
    made = FaultProxy(house.models_port)
    yield made
    made.close()


@pytest.fixture(scope="module")
def router(proxy, router_in, tmp_path_factory):
    """A router whose providers and cell are all behind the proxy."""
    folder = tmp_path_factory.mktemp("faults")
    site(folder, proxy)
    with router_in(folder) as url:
        made = Router(folder, url)
        yield made
        made.engine.dispose()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", ["reset", "busy", "broken", "headless", "half"])
@pytest.mark.parametrize("dialect", PATHS)
def test_another_answers_where_one_fails_before_its_first_byte(router, dialect, fault, stream):
    """Refused, reset, cut in the head, and a whole answer that is cut in half: real vLLM answers as the fallback, whole or streamed."""
    if fault == "half" and stream:
        return  # its first bytes have come: the test below
    tag = uuid.uuid4().hex
    status, headers, body = router.ask(dialect, f"task/{dialect}-{fault}", tag, stream=stream)
    assert (status, headers["inhouse-model"]) == (200, f"{dialect}-fine"), body
    assert b"error" not in body
    *failed, last = router.rows(tag, 1 if stream else 2, f"{dialect}-fine")
    assert (last["model"], last["status"]) == (f"{dialect}-fine", 200) and last["completion_tokens"] > 0 and last["exact"]
    for row in failed:
        assert row["model"] == f"{dialect}-{fault}" and row["status"] in (429, 502, 503)
        assert (row["cost_nanousd"] == 0) == (fault in ("busy", "broken")), "who refused costs nothing; what the others did nobody knows"


@pytest.mark.parametrize("dialect", PATHS)
@pytest.mark.parametrize(("fault", "status"), [("busy", 429), ("broken", 503)])
def test_a_wish_to_be_left_alone_is_kept(router, proxy, dialect, fault, status):
    """A provider that said `Retry-After: 30` hears nothing until then, and its callers are told what is left of it."""
    path = f"/{FAULTS[fault]}/models/{MODEL}{PATHS[dialect]}"
    router.ask(dialect, f"{dialect}-{fault}")
    before = proxy.asked.count(path)
    got, headers, _ = router.ask(dialect, f"{dialect}-{fault}")
    assert got == status and 1 <= int(headers["retry-after"]) <= 30
    assert proxy.asked.count(path) == before > 0


@pytest.mark.parametrize("model", ["cut", MODEL])
@pytest.mark.parametrize("dialect", PATHS)
def test_a_stream_that_is_cut_settles_what_was_seen(router, dialect, model):
    """The caller gets all whole events that came and an error event, no half one; the ledger counts just those. Our own model costs what
    was seen, a provider, who may bill for the rest, what was reserved."""
    tag, is_ours = uuid.uuid4().hex, model == MODEL
    status, _, body = router.ask(dialect, MODEL if is_ours else f"task/{dialect}-cut", tag, stream=True)
    assert status == 200
    *seen, end = [json.loads(line[6:]) for line in body.splitlines() if line.startswith(b"data: {")]
    assert seen and "error" in end and not any("error" in event for event in seen)
    (row,) = router.rows(tag, 1)
    assert (row["status"], row["error"], row["exact"]) == (502, "upstream_closed", 0)
    assert row["completion_tokens"] == len(seen)
    tokens, rest = divmod(row["cost_nanousd"], TOKEN)
    assert rest == 0
    if is_ours and dialect == "anthropic":  # which says at its start what the prompt counts
        assert tokens == row["prompt_tokens"] + len(seen)
    elif is_ours:
        assert 1024 < tokens - len(seen) < 1500, "the bound of the prompt"
    else:
        assert tokens >= 1024


@pytest.mark.parametrize("dialect", PATHS)
def test_a_late_answer_is_an_answer(router, dialect):
    """A second's delay is no reason to ask another."""
    tag = uuid.uuid4().hex
    status, headers, body = router.ask(dialect, f"task/{dialect}-late", tag, stream=True)
    assert (status, headers["inhouse-model"]) == (200, f"{dialect}-late") and b"error" not in body
    (row,) = router.rows(tag, 1)
    assert row["ttft_ms"] >= 1000 and row["exact"]


def test_after_all_of_it_the_books_are_what_the_ledger_says(router):
    """Nothing is held any more, and what is spent is what the rows cost: no fault is charged twice or not at all."""
    deadline = time.monotonic() + 20
    while (found := router.sql("select a.spent, a.held, (select sum(cost_nanousd) from ledger) as billed from accounts a "
                               "where a.scope = 'ann'"))[0]["held"] or found[0]["spent"] != found[0]["billed"]:  # fmt: skip
        assert time.monotonic() < deadline, found
        time.sleep(0.1)
    assert found[0]["spent"] > 0
