"""The load generator and the mock upstream: they count exactly, and nothing that goes wrong goes unnoticed."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import pytest

from routing.bench.driver import PATH, Upstream, chat, generate, upstream
from routing.bench.load import Run
from routing.bench.plan import Outcome, Plan
from routing.bench.processes import Cores

ANYWHERE = Cores(None, None)


@pytest.fixture(scope="module")
def mock() -> Iterator[Upstream]:
    with upstream(ANYWHERE) as running:
        yield running


def ask(port: int, *, stream: bool = False, **more: object) -> Plan:
    plan = {"host": "127.0.0.1", "port": port, "path": PATH, "headers": {}, "bodies": [chat("mock", stream=stream)], "connections": 4,
            "stream": stream, "patience_s": 5.0, **more}  # fmt: skip
    return Plan(**plan)  # type: ignore[arg-type]  # one dictionary for all kinds


def test_every_request_is_counted_once(mock: Upstream) -> None:
    """Fifty requests are fifty answers here and fifty requests there."""
    mock.pace()
    before = mock.requests()
    outcome = generate(ask(mock.port, count=50), ANYWHERE)
    assert (outcome.requests, outcome.latency.n, outcome.failures) == (50, 50, {})
    assert mock.requests() - before == 50


@pytest.mark.parametrize("interval_us", [0, 1000])
def test_every_chunk_is_counted_once(mock: Upstream, interval_us: int) -> None:
    """Ten streams of sixteen chunks, in a burst or paced, are 160 chunks, each with its delay, and ten first ones."""
    mock.pace(interval_us=interval_us, chunks=16)
    outcome = generate(ask(mock.port, stream=True, count=10, chunks=16), ANYWHERE)
    assert (outcome.requests, outcome.chunks, outcome.relay.n, outcome.ttft.n) == (10, 160, 160, 10)
    assert (outcome.tokens, outcome.failures) == (160, {})
    assert 0 < outcome.reads <= 160


def test_a_window_counts_no_more_than_was_served(mock: Upstream) -> None:
    """Timed runs, closed and open loop, count what was answered within their window only."""
    mock.pace()
    before = mock.requests()
    closed = generate(ask(mock.port, warm_s=0.1, seconds=0.3), ANYWHERE)
    opened = generate(ask(mock.port, warm_s=0.1, seconds=0.5, rate=200.0), ANYWHERE)
    assert closed.failures == opened.failures == {}
    assert 0 < opened.requests <= 120
    assert closed.requests + opened.requests <= mock.requests() - before


def test_the_requests_are_the_size_they_claim() -> None:
    """A body of 1024 bytes has about 1024 bytes."""
    assert abs(len(chat("a-model", stream=True)) - 1024) < 8


def event(content: str) -> str:
    return f'data: {{"choices":[{{"index":0,"delta":{{"content":"{content}"}}}}]}}\n\n'


def stamped(*stamps: int) -> str:
    return "".join(event(f"t={stamp:019d} ") for stamp in stamps)


USAGE = 'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":3}}\n\n'
DONE = "data: [DONE]\n\n"
HEAD = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def chunked(body: str) -> str:
    return HEAD + f"{len(body):x}\r\n{body}\r\n0\r\n\r\n"


@asynccontextmanager
async def server_that_says(answer: str) -> AsyncIterator[int]:
    """A port where every request gets the same bytes, after which the connection is cut."""

    async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
        await reader.readexactly(length)
        writer.write(answer.encode())
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def heard(answer: str, *, stream: bool = True) -> Outcome:
    async with server_that_says(answer) as port:
        return await Run(ask(port, stream=stream, chunks=3 if stream else None, connections=1, count=1)).measure()


FAULTS = {
    "chunks_2_of_3": chunked(stamped(1, 2) + USAGE + DONE),
    "chunks_4_of_3": chunked(stamped(1, 2, 3, 4) + USAGE + DONE),
    "chunks_out_of_order": chunked(stamped(1, 3, 2) + USAGE + DONE),
    "usage_missing": chunked(stamped(1, 2, 3) + DONE),
    "done_missing": chunked(stamped(1, 2, 3) + USAGE),
    "connection_lost": HEAD + f"{1000:x}\r\n" + stamped(1, 2),
    "status_503": "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\n{}",
    "not_http": "What?\r\n\r\n",
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_wrong_stream_is_a_failure(fault: str) -> None:
    """A gateway that drops, doubles or reorders a chunk, drops usage or the end, cuts or refuses is told apart by name."""
    outcome = await heard(FAULTS[fault])
    assert outcome.failures == {fault: 1}
    assert outcome.requests == 0


async def test_a_right_stream_is_none() -> None:
    """The same stream without a fault passes: the faults above are what is noticed."""
    outcome = await heard(chunked(stamped(1, 2, 3) + USAGE + DONE))
    assert (outcome.failures, outcome.requests, outcome.chunks) == ({}, 1, 3)


async def test_an_answer_without_usage_is_a_failure() -> None:
    """A whole answer that has lost its usage is not counted as good."""
    outcome = await heard("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}", stream=False)
    assert (outcome.failures, outcome.requests) == ({"usage_missing": 1}, 0)


async def test_nobody_there_is_a_failure() -> None:
    """A port where nobody listens ends the run at once."""
    async with server_that_says("") as port:
        pass
    outcome = await Run(ask(port, connections=2, count=2)).measure()
    assert (outcome.failures, outcome.requests) == ({"connect_failed": 2}, 0)
