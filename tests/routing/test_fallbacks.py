"""Where one model fails and another may answer: only before the caller has seen a byte."""

import asyncio
import json
import socket

import pytest


async def both(router, chat, say, first, tag, **more):
    """Asks the task whose candidate is alpha and whose fallbacks are beta and gamma; alpha does `first`."""
    asked = chat(
        {"alpha": first, "beta": say.answer({"from": "beta"}), "gamma": say.answer({"from": "gamma"})}, model="task/extraction", **more
    )
    return await router.ask(asked, headers={"x-request-id": tag})


@pytest.fixture(autouse=True)
async def alpha_has_rested(router, chat):
    """A model that has just answered is not resting from another test's failure."""
    for model in ("alpha", "beta", "gamma"):
        assert (await router.ask(chat(model=model))).status == 200


FAILURES = {
    "status_500": [["head", 500, {"content-length": 0}]],
    "status_502": [["head", 502, {"content-length": 0}]],
    "status_503": [["head", 503, {"content-length": 0}]],
    "busy": [["head", 429, {"content-length": 0}]],
    "upstream_closed": [["close"]],
    "closed_at_once": [["cut"]],
    "cut_in_head": [["raw", "SFRUUC8xLjEgMjAwIE9LDQpjb250ZW50"], ["cut"]],
    "garbage": [["raw", "Z2FyYmFnZQ0KDQo="]],
    "cut_in_body": [["head", 200, {"content-type": "application/json", "content-length": 50}], ["raw", "e30="], ["close"]],
    "cut_before_first_event": [
        ["head", 200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"}],
        ["sleep", 0.05],
        ["cut"],
    ],
    "empty_stream": [["head", 200, {"content-type": "text/event-stream", "transfer-encoding": "chunked"}], ["end"]],
    "proxy_404": [["head", 404, {"content-type": "text/plain", "content-length": 0}]],
}


@pytest.mark.parametrize("failure", FAILURES)
async def test_the_next_target_answers_where_the_first_fails_before_its_first_byte(router, chat, say, tag, failure):
    """A refusal, 5xx, 429, cut or garbage of the first model is answered by the second; the ledger has a row for each."""
    got = await both(router, chat, say, FAILURES[failure], tag, stream="stream" in failure)
    assert (got.status, got.json) == (200, {"from": "beta"})
    assert got.headers["inhouse-model"] == "beta"
    first, second = router.rows(tag, n=2)
    assert (first["attempt"], first["model"], second["attempt"], second["model"], second["status"]) == (1, "alpha", 2, "beta", 200)
    assert first["status"] >= 429
    assert first["error"]


async def test_nothing_is_tried_again_after_the_first_byte(router, upstream, chat, say):
    """A stream cut after its first event is not started anew elsewhere."""
    asked = chat({"alpha": [say.HEAD, ["chunk", say.words(1)[0]], ["sleep", 0.05], ["cut"]]}, model="task/extraction", stream=True)
    got = await router.ask(asked)
    assert b'"error"' in got.body
    assert [seen.model for seen in upstream.seen[asked["tag"]]] == ["alpha"]


async def test_a_resting_model_is_asked_after_the_healthy(router, upstream, chat, say, tag):
    """The request after a failure goes to the fallback first."""
    await both(router, chat, say, FAILURES["status_503"], tag)
    asked = chat(model="task/extraction")
    assert (await router.ask(asked)).headers["inhouse-model"] == "beta"
    assert [seen.model for seen in upstream.seen[asked["tag"]]] == ["beta"]


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        ("status_500", 502, "upstream_error"),
        ("status_503", 503, "no_healthy_model"),
        ("busy", 429, "rate_limited"),
        ("upstream_closed", 502, "upstream_error"),
        ("garbage", 502, "upstream_error"),
        ("proxy_404", 503, "no_healthy_model"),
    ],
)
async def test_the_last_failure_is_told_without_an_upstreams_words(router, upstream, chat, say, tag, failure, status, code):
    """When all fail the caller learns which model and how, when to come back, and no address or body of an upstream."""
    script = FAILURES[failure]
    if script[0][0] == "head":
        script = say.answer({"trace": f"File /srv/secret.py at 10.1.2.3:{upstream.port}"}, script[0][1], **{"content-type": "text/html"})
    for path in ("/v1/chat/completions", "/v1/messages"):
        got = await router.ask(chat(script, model="task/extraction"), path, headers={"x-request-id": tag})
        assert got.status == status
        assert got.error.get("code", code) == code
        assert "retry-after" in got.headers
        for secret in ("secret", "10.1.2.3", str(upstream.port), "127.0.0.1"):
            assert secret not in got.body.decode() + str(got.headers)
    rows = router.rows(tag, n=6)
    assert [(row["attempt"], row["model"]) for row in rows[:3]] == [(1, "alpha"), (2, "beta"), (3, "gamma")]


async def test_all_targets_down_is_503_with_retry_after(start_router, chat, tag):
    """Where nothing listens every way to ask says 503 at once, and gives no address away."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: refused
        port = taken.getsockname()[1]
        router = start_router(cells=[f"http://127.0.0.1:{port}"])
        for model in ("alpha", "task/extraction"):
            got = await router.ask(chat(model=model), headers={"x-request-id": tag})
            assert (got.status, got.error["code"]) == (503, "no_healthy_model")
            assert got.headers["retry-after"]
            assert str(port) not in got.body.decode()
        assert {row["error"] for row in router.rows(tag, n=4)} == {"connect_failed"}
        ready = await router.get("/readyz")
        assert (ready.status, ready.json["ready"]) == (503, False)


async def test_a_second_cell_answers_for_the_first(start_router, upstream, chat):
    """With one of two cells gone every request is answered by the other."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        router = start_router(cells=[f"http://127.0.0.1:{taken.getsockname()[1]}", f"http://127.0.0.1:{upstream.port}"])
        for _ in range(10):
            assert (await router.ask(chat())).status == 200


async def test_an_answer_that_follows_unasked_reaches_nobody(router, chat, say):
    """A model that sends two answers to one request loses its connection; the second is never another caller's."""
    body = json.dumps({"right": True}).encode()
    one = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)
    wrong = b'HTTP/1.1 404 X\r\ncontent-type: application/json\r\ncontent-length: 13\r\n\r\n{"right": 0} '
    for script in ([say.raw(one + wrong)], [say.raw(one), ["sleep", 0.02], say.raw(wrong)]):
        for _ in range(5):
            got = await router.ask(chat(script))
            assert (got.status, got.json) == (200, {"right": True})
            await asyncio.sleep(0.1)  # an answer that follows after the next request was sent can't be told from its own
            assert (await router.ask(chat())).json["choices"]
