"""What a caller gets when all goes well: the answer, its headers and its ledger row; and what the models see of the caller."""

import asyncio
import json

import pytest

from routing import keys
from routing.request import ENDPOINTS


async def test_a_request_is_answered_by_the_model_it_names(router, upstream, chat):
    """The upstream's body comes back as it is, and its own request was the caller's, byte for byte."""
    asked = chat(x=" spaced ")
    got = await router.ask(asked)
    assert got.status == 200
    assert got.json["choices"][0]["message"]["content"] == "hi"
    (seen,) = upstream.got(asked["tag"])
    assert (seen.model, seen.path) == ("alpha", "/v1/chat/completions")
    assert seen.body == json.dumps(asked).encode()


async def test_the_answer_says_what_happened(router, chat, tag):
    """Headers name the task, the model and why; the caller's request id comes back."""
    got = await router.ask(chat(model="task/extraction"), headers={"x-request-id": tag})
    assert {name: got.headers[name] for name in ("inhouse-task", "inhouse-model", "inhouse-why", "x-request-id", "content-type")} == {
        "inhouse-task": "extraction",
        "inhouse-model": "alpha",
        "inhouse-why": "task named",
        "x-request-id": tag,
        "content-type": "application/json",
    }


@pytest.mark.parametrize("given", ["", "has space", "x" * 129, "new\tline", "ümlaut", '"quoted"'])
async def test_a_request_id_that_is_none_is_replaced(router, chat, given):
    """What can't be an id is not echoed; the answer carries one of ours."""
    got = await router.ask(chat(), headers={"x-request-id": given})
    assert got.status == 200
    assert got.headers["x-request-id"] != given
    assert len(got.headers["x-request-id"]) >= 16


async def test_auto_finds_the_task(router, upstream, chat):
    """Texts like a task's examples go to that task's model, foreign ones to the default, and the headers say why."""
    asked = chat(model="auto", messages=[{"role": "user", "content": "Please send the paper order to Berlin by Friday"}])
    got = await router.ask(asked)
    assert (got.headers["inhouse-task"], got.headers["inhouse-model"]) == ("extraction", "alpha")
    assert got.headers["inhouse-why"].startswith("auto: ")
    assert upstream.got(asked["tag"])[0].json["model"] == "alpha"
    got = await router.ask(chat(model="auto", messages=[{"role": "user", "content": "Ωμέγα"}]))
    assert (got.headers["inhouse-task"], got.headers["inhouse-model"]) == ("chat", "beta")
    assert got.headers["inhouse-why"].startswith("abstained")


async def test_auto_is_off_where_tasks_cannot_be_told_apart(hasty, chat):
    """A router without examples refuses `auto` with 503, and `/readyz` and `/v1/models` do not offer it."""
    got = await hasty.ask(chat(model="auto"))
    assert (got.status, got.error["code"]) == (503, "auto_unavailable")
    assert not (await hasty.get("/readyz")).json["auto"]["serves"]
    assert "auto" not in [entry["id"] for entry in (await hasty.get("/v1/models")).json["data"]]


async def test_an_adapter_is_asked_by_its_own_name_at_its_models_address(router, upstream, chat):
    """The adapter's name stays in the body, and the request goes to the engine that holds it."""
    asked = chat(model="beta-adapter")
    assert (await router.ask(asked)).status == 200
    (seen,) = upstream.got(asked["tag"])
    assert (seen.model, seen.json["model"]) == ("beta", "beta-adapter")


@pytest.mark.parametrize("path", [path for path, endpoint in ENDPOINTS.items() if not endpoint.form])
async def test_every_open_endpoint_reaches_the_engine(router, upstream, tag, path):
    """Each listed path arrives at the engine under the same path."""
    assert (await router.ask({"model": "alpha", "tag": tag}, path)).status == 200
    assert upstream.got(tag)[0].path == path


@pytest.mark.parametrize("path", ["/v1/audio/transcriptions", "/v1/audio/translations"])
async def test_a_form_reaches_the_engine_with_its_boundary(router, upstream, tag, path):
    """A form goes through with its own content type; only the model's name changes."""
    part = b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n'
    body = part % (b"model", b"task/chat") + part % (b"file", b"\xff\x00") + b"--b--\r\n"
    got = await router.ask(body, path, headers={"content-type": "multipart/form-data; boundary=b", "traceparent": tag})
    assert got.status == 200
    (seen,) = upstream.got(tag)
    assert seen.header("content-type") == "multipart/form-data; boundary=b"
    assert seen.body == body.replace(b"task/chat", b"beta")


async def test_only_listed_headers_reach_the_model(router, upstream, chat):
    """Keys, cookies, hop-by-hop headers and claims of identity stay here; trace and API version headers go on."""
    kept = {
        "accept": "text/event-stream",
        "traceparent": "00-1-2-01",
        "tracestate": "a=b",
        "anthropic-version": "2023-06-01",
        "openai-beta": "x",
    }
    dropped = {
        "cookie": "session=secret",
        "x-api-key": "secret",
        "x-forwarded-for": "10.0.0.1",
        "x-user": "root",
        "accept-encoding": "gzip",
        "connection": "keep-alive, x-user",
        "te": "trailers",
        "expect": "",
        "upgrade": "h2c",
        "proxy-authorization": "secret",
        "user-agent": "me",
        "x-request-id": "mine",
        "forwarded": "for=1",
        "content-encoding": "identity",
    }
    asked = chat()
    assert (await router.ask(asked, headers={**kept, **dropped})).status == 200
    (seen,) = upstream.got(asked["tag"])
    names = [name for name, _ in seen.headers]
    assert sorted(names) == sorted([*kept, "host", "content-type", "content-length", "x-request-id"])
    assert all(seen.header(name) == value for name, value in kept.items())
    assert b"secret" not in seen.body
    assert seen.header("x-request-id") != "mine"
    assert router.key not in str(seen.headers)


async def test_nothing_of_the_upstreams_own_headers_comes_back(router, chat, say):
    """Server names, cookies, addresses and hop-by-hop headers of a model stay behind the door."""
    script = say.answer(
        {"ok": True},
        server="uvicorn",
        **{"set-cookie": "a=b", "x-upstream": "10.1.2.3", "connection": "close", "location": "http://10.1.2.3/"},
    )
    got = await router.ask(chat(script))
    assert got.status == 200
    assert set(got.headers) <= {
        "content-type",
        "content-length",
        "x-request-id",
        "inhouse-task",
        "inhouse-model",
        "inhouse-why",
        "inhouse-cost-usd",
        "date",
        "server",
    }
    assert "uvicorn" not in got.headers.get("server", "")


async def test_each_attempt_has_its_row(router, chat, tag):
    """The ledger names caller, task, model, reason, status, tokens and times; prompts are not in it."""
    await router.ask(chat(model="task/extraction"), headers={"x-request-id": tag})
    (row,) = router.rows(tag, n=1)
    wanted = {
        "attempt": 1,
        "caller": "tester",
        "endpoint": "/v1/chat/completions",
        "task": "extraction",
        "model": "alpha",
        "why": "task named",
        "status": 200,
        "error": "",
        "prompt_tokens": 7,
        "completion_tokens": 3,
        "exact": 1,
        "key_id": router.key[:12],
    }
    assert {name: row[name] for name in wanted} == wanted
    assert 0 < row["ttft_ms"] <= row["total_ms"] < 60_000


async def test_a_models_own_refusal_comes_back_as_it_is(router, chat, say, tag):
    """A 400 of the engine is the caller's to read, is not tried elsewhere and is in the ledger."""
    problem = {"error": {"message": "max_tokens is too large", "type": "BadRequestError", "param": None, "code": 400}}
    got = await router.ask(chat(say.answer(problem, 400), model="task/extraction"), headers={"x-request-id": tag})
    assert (got.status, got.json) == (400, problem)
    (row,) = router.rows(tag, n=1)
    assert (row["status"], row["error"]) == (400, "refused_by_model")


@pytest.mark.parametrize("way", ["length", "chunked", "until_close", "two_chunks", "early_hints", "tiny"])
async def test_every_framing_of_an_answer_is_read(router, chat, say, way):
    """Content-Length, chunks, an answer that ends with the connection, interim answers and single bytes all give the same body."""
    body = b'{"a":1}'
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    raw = {
        "length": head + b"content-length: 7\r\n\r\n" + body,
        "chunked": head + b"transfer-encoding: chunked\r\n\r\n7\r\n" + body + b"\r\n0\r\n\r\n",
        "two_chunks": head
        + b"transfer-encoding: chunked\r\n\r\n3;ext=1\r\n"
        + body[:3]
        + b"\r\n4\r\n"
        + body[3:]
        + b"\r\n0\r\ntrailer: x\r\n\r\n",
        "until_close": head + b"\r\n" + body,
        "early_hints": b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
        + head
        + b"content-length: 7\r\n\r\n"
        + body,
        "tiny": head + b"content-length: 7\r\n\r\n" + body,
    }[way]
    pieces = [raw[i : i + 1] for i in range(len(raw))] if way == "tiny" else [raw]
    script = [step for piece in pieces for step in (say.raw(piece), ["sleep", 0])]
    got = await router.ask(chat([*script, ["close"]] if way == "until_close" else script))
    assert (got.status, got.body) == (200, body)


async def test_connections_to_models_are_used_again(router, upstream, chat):
    """Many requests one after another need no more than a few connections."""
    for _ in range(20):
        assert (await router.ask(chat())).status == 200
    assert len(upstream.connections) < 100


async def test_a_connection_that_the_model_closed_meanwhile_is_no_failure(router, chat, say, tag):
    """A kept-alive connection closed by the other side is replaced without the caller or the ledger noticing."""
    for i in range(5):
        await router.ask(chat([*say.answer({}), ["close"]]))
        got = await router.ask(chat(), headers={"x-request-id": f"{tag}{i}"})
        assert got.status == 200
        assert len(router.rows(f"{tag}{i}", n=1)) == 1


async def test_models_lists_what_a_key_opens(router):
    """`/v1/models` shows tasks and models with what they are, and of them only what the key may use."""
    everything = (await router.get("/v1/models")).json["data"]
    assert [entry["id"] for entry in everything] == ["auto", "task/extraction", "task/chat", "alpha", "beta", "beta-adapter", "gamma"]
    assert {entry["kind"] for entry in everything} == {"auto", "task", "model", "adapter"}
    assert all(entry["ready"] for entry in everything)
    few = keys.create(router.engine, "few", tasks=["chat"], models=["gamma"])
    mine = {"authorization": f"Bearer {few}"}
    assert [entry["id"] for entry in (await router.get("/v1/models", headers=mine)).json["data"]] == ["auto", "task/chat", "gamma"]
    assert (await router.get("/v1/models/gamma", headers=mine)).json["id"] == "gamma"
    assert (await router.get("/v1/models/task/chat", headers=mine)).json["kind"] == "task"
    assert (await router.get("/v1/models/alpha", headers=mine)).status == 404


async def test_health_and_readiness(router, upstream, wait_until):
    """`/healthz` is about the process; `/readyz` follows the models, names them, and recovers with them."""
    assert (await router.get("/healthz", headers={"authorization": ""})).json == {"status": "ok"}
    assert (await router.get("/readyz")).status == 200
    upstream.healthy.update(beta=False)
    try:
        async with asyncio.timeout(10):
            while (got := await router.get("/readyz")).status != 503:
                await asyncio.sleep(0.1)
        assert got.json["models"] == {"alpha": True, "beta": False, "beta-adapter": False, "gamma": True}
        assert got.json["tasks"] == {"extraction": True, "chat": False}
    finally:
        upstream.healthy.clear()
    async with asyncio.timeout(10):
        while (await router.get("/readyz")).status != 200:
            await asyncio.sleep(0.1)


async def test_metrics_count_answers(router, chat):
    """Attempts, tokens and durations appear in Prometheus' format, labelled with configured names only."""
    await router.ask(chat(model="task/extraction"))
    await asyncio.sleep(0.2)
    text = (await router.get("/metrics")).body.decode()
    assert 'inhouse_attempts_total{model="alpha",status="200",task="extraction"}' in text
    assert 'inhouse_tokens_total{kind="completion",model="alpha"}' in text
    assert 'inhouse_model_ready{cell="cell0",model="gamma"} 1.0' in text
    assert "inhouse_ttft_seconds_bucket" in text
