"""A caller that leaves: the model's work ends at once, and the ledger knows."""

import asyncio
import time

import pytest


@pytest.mark.parametrize("way", ["before_head", "before_body", "mid_stream", "whole_answer_pending"])
async def test_the_models_connection_closes_within_a_second(router, upstream, chat, say, tag, wait_until, way):
    """Whatever the model was doing, its connection is closed within a second of the caller leaving, and the row says 499."""
    script = {
        "before_head": [["hang"]],
        "before_body": [say.HEAD, ["hang"]],
        "mid_stream": [say.HEAD, ["pace", 10_000, 0.02]],
        "whole_answer_pending": [["head", 200, {"content-type": "application/json", "content-length": 1000}], say.raw(b"{"), ["hang"]],
    }[way]
    asked = chat(script, stream=way in ("before_body", "mid_stream"))
    connection = router.client.open(asked, headers={"x-request-id": tag})
    (seen,) = upstream.got(asked["tag"])
    if way == "mid_stream":
        assert connection.recv(10)
    await asyncio.sleep(0.1)
    left = time.monotonic()
    connection.close()
    wait_until(lambda: seen.closed_at, 10)
    assert seen.closed_at - left < 1.5  # one second, and half of one for a busy machine
    (row,) = router.rows(tag, n=1)
    assert (row["status"], row["error"], row["model"]) == (499, "client_left", "alpha")
    assert (row["ttft_ms"] is not None) == (way == "mid_stream")


async def test_callers_that_leave_at_once_leave_nothing_behind(router, upstream, chat, say, wait_until):
    """A hundred callers gone at different moments: all their upstream connections close, all have a row, the router goes on."""
    asked = []
    for i in range(100):
        one = chat([say.HEAD, ["pace", 10_000, 0.02]], stream=True)
        connection = router.client.open(one, headers={"x-request-id": one["tag"]})
        await asyncio.sleep(i % 7 * 0.004)
        connection.close()
        asked.append(one["tag"])
    await asyncio.sleep(1)
    wait_until(lambda: all(seen.closed_at for tag in asked for seen in upstream.seen.get(tag, ())))
    for tag in asked:
        assert len(router.rows(tag, n=len(upstream.seen.get(tag, ())))) <= 1
    text = ""
    for _ in range(20):
        text = (await router.get("/metrics")).body.decode()
        if "inhouse_in_flight 0.0" in text:
            break
        await asyncio.sleep(0.25)
    assert "inhouse_in_flight 0.0" in text or "inhouse_in_flight 1.0" in text
    assert (await router.ask(chat())).status == 200


async def test_a_caller_that_leaves_while_sending_reaches_no_model(router, upstream, chat, tag):
    """Half a body is no request."""
    import json

    data = json.dumps(chat(pad="x" * 10_000) | {"tag": tag}).encode()
    for cut in (100, 5000, len(data) - 1):
        head = router.client.request(b"", headers={"content-length": str(len(data))})
        _, writer = await asyncio.open_connection("127.0.0.1", router.port)
        writer.write(head + data[:cut])
        await writer.drain()
        await asyncio.sleep(0.1)
        writer.close()
        await writer.wait_closed()
    await asyncio.sleep(0.5)
    assert tag not in upstream.seen
    assert (await router.ask(chat())).status == 200
