"""Time: every part of a request has an end, and every end has its own word."""

import asyncio
import contextlib
import socket

import pytest


@pytest.mark.parametrize(
    ("steps", "code"),
    [
        ([["hang"]], "first_byte_timeout"),
        ([["head", 200, {"content-type": "application/json", "content-length": 9}], ["hang"]], "idle_timeout"),
        ([["head", 200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"}], ["hang"]], "idle_timeout"),
    ],
)
async def test_a_model_that_does_not_answer_in_time_is_504(hasty, upstream, chat, wait_until, tag, steps, code):
    """Silence before the head, or before the body, ends with 504, a word for it, and the model's connection closed."""
    asked = chat(steps)
    got = await hasty.ask(asked, headers={"x-request-id": tag})
    assert (got.status, got.error["code"]) == (504, code)
    wait_until(lambda: upstream.seen[asked["tag"]][0].closed_at)
    assert hasty.rows(tag, n=1)[0]["error"] == code


@pytest.mark.parametrize(("steps", "word"), [([["hang"]], b"idle_timeout"), ([["pace", 1000, 0.1]], b"deadline")])
async def test_a_stream_that_stalls_or_never_ends_is_cut_with_an_error_event(hasty, upstream, chat, say, wait_until, steps, word):
    """A stall between events and a stream beyond the total deadline both end in an error event."""
    asked = chat([say.HEAD, ["chunk", say.words(1)[0]], *steps], stream=True)
    got = await hasty.ask(asked)
    assert got.status == 200
    assert b"w0 " in got.body
    assert word in got.body
    assert b"[DONE]" not in got.body
    wait_until(lambda: upstream.seen[asked["tag"]][0].closed_at)


async def test_a_steady_stream_outlives_the_idle_limit(hasty, chat, say):
    """Two seconds of events every tenth of a second are no stall where a second is."""
    got = await hasty.ask(chat([say.HEAD, ["pace", 20, 0.1], ["chunk", say.DONE], ["end"]], stream=True))
    assert got.body.endswith(b"data: [DONE]\n\n")


async def test_an_address_that_does_not_take_connections_is_503(start_router, chat, tag):
    """A full listen queue, which drops connections silently, ends at the connect timeout."""
    with socket.socket() as full, contextlib.ExitStack() as stack:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                waiting.connect(full.getsockname())
        router = start_router(cells=[f"http://127.0.0.1:{full.getsockname()[1]}"], limits={"connect_timeout_s": 0.5})
        got = await router.ask(chat(), headers={"x-request-id": tag})
        assert (got.status, got.error["code"]) == (503, "no_healthy_model")
        assert router.rows(tag, n=1)[0]["error"] == "connect_timeout"


async def test_a_slow_sender_of_headers_is_cut_off(hasty, connected):
    """A header a byte at a time does not hold a connection beyond the limit."""
    async with connected(hasty.port) as (reader, writer), asyncio.timeout(10):
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nx: ")
        ended = asyncio.create_task(reader.read(1000))
        while not ended.done():
            writer.write(b"y")
            await asyncio.sleep(0.1)
        assert b" 200 " not in (b"" if ended.exception() else ended.result())


async def test_a_slow_sender_of_a_body_gets_408(hasty, connected, read_answer):
    """A body that does not arrive ends with 408, in both framings and both shapes."""

    async def dawdle(path, headers, sent):
        async with connected(hasty.port) as (reader, writer), asyncio.timeout(10):
            writer.write(hasty.client.request(b"", path, headers=headers) + sent)
            got = await read_answer(reader)
        assert got.status == 408
        assert got.error["type"] == "invalid_request_error"

    await asyncio.gather(
        *(
            dawdle(path, headers, sent)
            for path in ("/v1/chat/completions", "/v1/messages")
            for headers, some in (
                ({"content-length": "100"}, b'{"model":'),
                ({"content-length": "", "transfer-encoding": "chunked"}, b'9\r\n{"model":\r\n'),
            )
            for sent in (b"", some)
        )
    )


async def test_an_idle_connection_is_closed(hasty, chat, connected, read_answer):
    """A connection that asks nothing more is closed by the router after a while."""
    async with connected(hasty.port) as (reader, writer), asyncio.timeout(15):
        writer.write(hasty.client.request(chat()))
        assert (await read_answer(reader)).status == 200
        assert await reader.read() == b""


async def test_a_connection_that_never_asks_is_closed(hasty, connected):
    """Opening a connection and saying nothing is no way to keep it."""
    async with connected(hasty.port) as (reader, _), asyncio.timeout(15):
        assert b"200" not in await reader.read()


async def test_a_caller_that_stops_reading_is_dropped(hasty, upstream, chat, say, wait_until):
    """A stream that its caller does not read for the idle limit is ended, and so is the model's work on it."""
    asked = chat([say.HEAD, ["flood", 100 << 20], ["end"]], stream=True)
    connection = hasty.client.open(asked, headers={"x-request-id": asked["tag"]})
    try:
        (seen,) = upstream.got(asked["tag"])
        wait_until(lambda: seen.closed_at, 15)
        assert hasty.rows(asked["tag"], n=1)[0]["status"] in (499, 504)
    finally:
        connection.close()
