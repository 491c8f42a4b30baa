"""Streams on their way: verbatim, honest at their end, counted, and none of them in another's way."""

import asyncio
import json
import time

import pytest

END = b"data: [DONE]\n\n"


def errors_in(body):
    """The error events of an OpenAI stream."""
    events = [json.loads(line[6:]) for line in body.decode().split("\n") if line.startswith('data: {"')]
    return [event["error"] for event in events if "error" in event]


async def test_a_stream_comes_through_as_it_is(router, chat, say, tag):
    """The events arrive byte for byte, with the stream's own content type; the ledger has its usage and first byte."""
    got = await router.ask(chat(stream=True), headers={"x-request-id": tag})
    assert (got.status, got.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert got.body == "".join(say.words(3)).encode() + END
    (row,) = router.rows(tag, n=1)
    assert (row["status"], row["prompt_tokens"], row["completion_tokens"], row["exact"]) == (200, 7, 3, 1)


@pytest.mark.parametrize(
    ("options", "comes"), [(None, False), ({}, False), ({"include_usage": False}, False), ({"include_usage": True}, True)]
)
async def test_usage_is_asked_for_always_and_passed_on_if_wished(router, upstream, chat, say, options, comes):
    """The engine is always asked for usage; the caller sees it only if it asked itself."""
    asked = chat(stream=True, **({"stream_options": options} if options is not None else {}))
    got = await router.ask(asked)
    assert (say.USAGE.encode() in got.body) == comes
    assert upstream.got(asked["tag"])[0].json["stream_options"]["include_usage"] is True


@pytest.mark.parametrize("way", ["bytes", "crlf", "one_chunk", "raw_pieces"])
async def test_no_chunking_changes_a_stream(router, chat, say, way):
    """Single bytes, CRLF, all at once and cuts inside UTF-8 and chunk frames give the caller the same stream without the usage."""
    first = 'data: {"choices":[{"delta":{"content":"naïve 🙂"}}]}\n\n'
    whole = first + ": ping\n\n" + "data: {broken\n\n" + say.USAGE + END.decode()
    kept = (first + ": ping\n\ndata: {broken\n\n" + END.decode()).encode()
    if way == "crlf":
        whole, kept = whole.replace("\n", "\r\n"), kept.replace(b"\n", b"\r\n")
    data = whole.encode()
    framed = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
    script = {
        "bytes": [say.HEAD, ["bytes", whole], ["end"]],
        "crlf": say.stream(whole),
        "one_chunk": say.stream(whole),
        "raw_pieces": [say.HEAD, *(step for i in range(0, len(framed), 7) for step in (say.raw(framed[i : i + 7]), ["sleep", 0]))],
    }[way]
    got = await router.ask(chat(script, stream=True))
    assert not got.cut
    assert got.body == kept


@pytest.mark.parametrize("ending", ["no_done", "cut_in_body", "cut_in_event", "cut_in_frame", "garbage_frame", "engine_closes"])
async def test_a_stream_that_is_cut_ends_with_an_error_event(router, chat, say, tag, ending):
    """However a stream ends before its last word, the caller gets what came, an error event and no `[DONE]`; the ledger says 502."""
    words = say.words(2)
    script = [
        say.HEAD,
        *(["chunk", word] for word in words),
        ["sleep", 0.05],
        *{
            "no_done": [["end"]],
            "cut_in_body": [["cut"]],
            "cut_in_event": [["chunk", 'data: {"choices":'], ["sleep", 0.05], ["cut"]],
            "cut_in_frame": [say.raw(b"ff\r\ndata: {"), ["close"]],
            "garbage_frame": [say.raw(b"zz not a chunk\r\n")],
            "engine_closes": [["close"]],
        }[ending],
    ]
    got = await router.ask(chat(script, stream=True), headers={"x-request-id": tag})
    assert got.status == 200
    assert not got.cut
    assert got.body.startswith("".join(words).encode())
    assert END not in got.body
    (error,) = errors_in(got.body)
    assert "`alpha`" in error["message"]
    assert got.body.endswith(b"\n\n")
    (row,) = router.rows(tag, n=1)
    assert (row["status"], row["exact"], row["completion_tokens"]) == (502, 0, 2)
    assert row["error"]


@pytest.mark.parametrize(
    ("path", "last"), [("/v1/messages", "event: message_stop\ndata: {}\n\n"), ("/v1/responses", "event: response.completed\ndata: {}\n\n")]
)
async def test_other_dialects_end_and_break_in_their_own_way(router, chat, say, path, last):
    """Anthropic's and Responses' streams end by their own last event, and a cut is an `error` event of theirs."""
    first = 'event: start\ndata: {"x":1}\n\n'
    assert (await router.ask(chat(say.stream(first, last), stream=True), path)).body == (first + last).encode()
    broken = (await router.ask(chat(say.stream(first), stream=True), path)).body
    assert broken.startswith(first.encode() + b"event: error\ndata: {")
    problem = json.loads(broken.split(b"data: ")[-1])
    assert problem["error"]["message"]
    assert problem.get("type") == ("error" if path == "/v1/messages" else None)


async def test_events_reach_the_caller_when_they_come(router, chat, say, connected):
    """A first event is there long before the stream's end: nothing is gathered on the way."""
    async with connected(router.port) as (reader, writer), asyncio.timeout(20):
        writer.write(router.client.request(chat([say.HEAD, ["chunk", say.words(1)[0]], ["hang"]], stream=True)))
        seen = b""
        while b"w0 " not in seen:
            seen += await reader.read(4096)


async def test_a_huge_answer_is_refused_and_a_huge_stream_is_not(router, chat, say, tag):
    """A whole answer beyond `answer_bytes` is 502 without the rest being read; a stream may be as long as it likes."""
    script = [["head", 200, {"content-type": "application/json", "transfer-encoding": "chunked"}], ["flood", 3 << 20], ["end"]]
    got = await router.ask(chat(script), headers={"x-request-id": tag})
    assert (got.status, got.error["code"]) == (502, "answer_too_large")
    assert router.rows(tag, n=1)[0]["error"] == "answer_too_large"
    got = await router.ask(chat([say.HEAD, ["flood", 3 << 20], ["chunk", say.DONE], ["end"]], stream=True))
    assert len(got.body) > 2 << 20
    assert got.body.endswith(END)


async def test_an_event_larger_than_any_buffer_comes_through(router, chat, say):
    """One event of 3 MB is relayed whole."""
    got = await router.ask(chat([say.HEAD, ["large_event", 3_000_000], ["chunk", say.DONE], ["end"]], stream=True))
    assert got.body == say.large_event(3_000_000) + END


async def test_an_error_event_of_the_engine_is_passed_on(router, chat, say):
    """What an engine says in its stream, an error included, is the caller's to read."""
    script = say.stream(say.words(1)[0], say.event({"error": {"message": "out of blocks"}}), say.DONE)
    got = await router.ask(chat(script, stream=True))
    assert [error["message"] for error in errors_in(got.body)] == ["out of blocks"]
    assert got.body.endswith(END)


@pytest.mark.parametrize("n", [64, 512])
async def test_many_streams_at_once_all_complete(router, chat, say, n):
    """64 and 512 paced streams at the same time each bring all of their events and their end."""
    script = [say.HEAD, ["pace", 10, 0.05], ["chunk", say.DONE], ["end"]]
    answers = await asyncio.gather(*(router.ask(chat(script, stream=True), within_s=60) for _ in range(n)))
    assert all(got.status == 200 and not got.cut and got.body.endswith(END) and got.body.count(b"data: ") == 11 for got in answers)


async def test_a_reader_that_stops_holds_the_model_back_and_not_the_workers_memory(start_router, upstream, chat, say, wait_until):
    """With 200 MB on their way to a caller that does not read, the upstream is paused and the worker's memory stays flat."""
    router = start_router()
    assert (await router.ask(chat(stream=True))).status == 200
    before = router.rss()
    asked = chat([say.HEAD, ["flood", 200 << 20], ["chunk", say.DONE], ["end"]], stream=True)
    connection = router.client.open(asked)
    try:
        (seen,) = upstream.got(asked["tag"])
        most, since = 0, time.monotonic()
        while time.monotonic() - since < 1.5:  # until nothing has moved for a while
            if seen.sent > most:
                most, since = seen.sent, time.monotonic()
            await asyncio.sleep(0.05)
        assert most < 30 << 20
        assert router.rss() - before < 40 << 20
        assert (await router.ask(chat())).status == 200
        got = 0
        while got < 5 << 20:  # reading again sets it moving again
            got += len(connection.recv(1 << 20))
        wait_until(lambda: seen.sent > most)
    finally:
        connection.close()
    wait_until(lambda: seen.closed_at)
    assert router.rss() - before < 60 << 20
