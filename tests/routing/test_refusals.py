"""Every no: its status, its shape for OpenAI's and Anthropic's clients, and that no model hears of it."""

import asyncio

import pytest

from routing import keys

MESSAGES = "/v1/messages"


def shaped(got, status, code):
    """Whether a refusal has OpenAI's shape."""
    assert got.status == status
    assert set(got.error) == {"message", "type", "param", "code"}
    assert got.error["code"] == code
    assert len(got.error["message"]) > 15
    return True


@pytest.fixture
def narrow(router):
    """A key for one task and one model."""
    return {"authorization": f"Bearer {keys.create(router.engine, 'narrow', tasks=['chat'], models=['beta'])}"}


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": ""},
        {"authorization": "Bearer ihk_wrong"},
        {"authorization": "Bearer"},
        {"authorization": "Basic eDp5"},
        {"authorization": "", "x-api-key": "wrong"},
        {"authorization": "Bearer \xff\xfe"},
    ],
)
async def test_strangers_are_told_so_in_both_shapes(router, upstream, chat, headers):
    """Without a key that is known the answer is 401, before the body is looked at, and no model hears of it."""
    asked = chat()
    assert shaped(await router.ask(asked, headers=headers), 401, "invalid_api_key")
    assert shaped(await router.ask(b"garbage", headers=headers), 401, "invalid_api_key")
    got = await router.ask(asked, MESSAGES, headers=headers)
    assert (got.status, got.json["type"], got.error["type"]) == (401, "error", "authentication_error")
    assert (await router.get("/v1/models", headers=headers)).status == 401
    assert asked["tag"] not in upstream.seen


async def test_anthropics_header_opens_as_well(router, chat):
    """`x-api-key` is as good as a bearer token."""
    got = await router.ask({**chat(), "max_tokens": 5}, MESSAGES, headers={"authorization": "", "x-api-key": router.key})
    assert got.status == 200


async def test_a_key_opens_its_own_tasks_and_models_only(router, upstream, chat, narrow, tag):
    """Other tasks and models are 403, by name and through `auto`, and in the ledger with attempt 0."""
    assert (await router.ask(chat(model="task/chat"), headers=narrow)).status == 200
    assert (await router.ask(chat(model="beta"), headers=narrow)).status == 200
    for model in ("task/extraction", "alpha", "beta-adapter"):
        asked = chat(model=model)
        assert shaped(await router.ask(asked, headers={**narrow, "x-request-id": tag + model[-5:]}), 403, "access_denied")
        assert asked["tag"] not in upstream.seen
        (row,) = router.rows(tag + model[-5:], n=1)
        assert (row["attempt"], row["status"], row["error"], row["caller"]) == (0, 403, "access_denied", "narrow")
    asked = chat(model="auto", messages=[{"role": "user", "content": "Please send the paper order to Berlin by Friday"}])
    assert shaped(await router.ask(asked, headers=narrow), 403, "access_denied")
    got = await router.ask(chat(), MESSAGES, headers=narrow)
    assert (got.status, got.error["type"]) == (403, "permission_error")


@pytest.mark.parametrize(
    ("model", "says"),
    [
        ("alfa", "did you mean `alpha`"),
        ("task/extract", "did you mean `extraction`"),
        ("task/", "no task"),
        ("x" * 500, "no model"),
        ("Auto", "no model"),
        ("../alpha", "no model"),
        ("alpha\r\nx: y", "no model"),
        ("task/\ud83d\ude00", "no task"),
    ],
)
async def test_an_unknown_model_is_404_with_the_nearest_name(router, chat, model, says):
    """A name that nothing has is refused with what was meant or where to look, and stays short."""
    got = await router.ask(chat(model=model))
    assert shaped(got, 404, "model_not_found")
    assert says in got.error["message"]
    assert got.error["param"] == "model"
    assert len(got.error["message"]) < 300


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/",
        "/v2/chat/completions",
        "/v1/load_lora_adapter",
        "/sleep",
        "/v1/chat/completions/",
        "/v1/chat/completions/../../x",
        "/models/alpha/v1/chat/completions",
        "/metrics/",
        "/v1//chat/completions",
        "/%ff%fe",
        "/v1/chat/completions%00",
        "/x?y=%zz",
        "/health",
        "/v1/models/nobody",
        "/wake_up",
        "/v1/unload_lora_adapter",
        "/collective_rpc",
        "/server_info",
    ],
)
async def test_what_is_not_listed_is_not_there(router, upstream, chat, path):
    """Other paths, administration of the engine among them, are 404 and reach no engine."""
    asked = chat()
    got = await router.ask(asked, path)
    assert got.status in (404, 405)
    assert got.error["message"]
    assert asked["tag"] not in upstream.seen


async def test_a_method_that_http_does_not_know_is_400(router):
    """What is no method at all is refused before any path is looked at."""
    assert shaped(await router.ask(b"", method="BREW"), 400, "invalid_request_error")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
async def test_other_methods_are_405(router, method):
    """Endpoints take POST, and say so."""
    assert shaped(await router.ask(b"", method=method), 405, "method_not_allowed")
    assert (await router.ask(b"", MESSAGES, method=method)).error["type"] == "invalid_request_error"
    if method != "GET":
        assert shaped(await router.ask(b"", "/v1/models", method=method), 405, "method_not_allowed")


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff\x00", b'{"model":1}', b"model=alpha", b'{"model":"alpha","x":"\xff"}'])
async def test_what_is_no_request_is_400(router, body, tag):
    """A body without sense is refused in both shapes and noted in the ledger."""
    assert shaped(await router.ask(body, headers={"x-request-id": tag}), 400, "invalid_request_error")
    assert (await router.ask(body, MESSAGES)).error["type"] == "invalid_request_error"
    assert router.rows(tag, n=1)[0]["status"] == 400


async def test_deep_json_and_remote_media_are_refused(router, upstream, chat):
    """Nesting beyond the limit is 400 and a stranger's URL is 403, before any model hears of it."""
    deep = b'{"model":"alpha","tag":"deep","x":' + b"[" * 5000 + b"]" * 5000 + b"}"
    assert shaped(await router.ask(deep), 400, "invalid_request_error")
    asked = chat(messages=[{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "http://169.254.169.254/"}}]}])
    assert shaped(await router.ask(asked), 403, "remote_media")
    asked["messages"][0]["content"][0]["image_url"]["url"] = "https://media.example/cat.png"
    assert (await router.ask(asked)).status == 200
    assert len(upstream.got(asked["tag"])) == 1
    assert "deep" not in upstream.seen


async def test_compressed_bodies_are_refused(router, chat):
    """No decompression, so no bombs: 400 says what to do."""
    got = await router.ask(chat(), headers={"content-encoding": "gzip"})
    assert shaped(got, 400, "invalid_request_error")
    assert "Content-Encoding" in got.error["message"]


async def test_a_body_that_is_declared_too_large_is_413_at_once(router, connected, read_answer):
    """With Content-Length the refusal comes before the body is sent."""
    for path in ("/v1/chat/completions", MESSAGES):
        head = router.client.request(b"", path, headers={"content-length": str((1 << 20) + 1)})
        async with connected(router.port) as (reader, writer), asyncio.timeout(10):
            writer.write(head)
            got = await read_answer(reader)
            assert got.status == 413
            assert got.error["type"] == ("request_too_large" if path == MESSAGES else "invalid_request_error")


async def test_a_body_that_grows_too_large_is_413(router, upstream, connected, read_answer):
    """Without a length the refusal comes as soon as the limit is passed."""
    head = router.client.request(b"", headers={"content-length": "", "transfer-encoding": "chunked"})
    async with connected(router.port) as (reader, writer), asyncio.timeout(20):
        writer.write(head)
        for _ in range(17):
            writer.write(b"10000\r\n" + b'{"tag":"grows",' + b" " * (65536 - 15) + b"\r\n")
        got = await read_answer(reader)
    assert shaped(got, 413, "request_too_large")
    assert "grows" not in upstream.seen


async def test_a_body_of_just_the_limit_is_taken(router, chat, upstream):
    """The limit itself still fits, with a length and in chunks."""
    import json

    asked = chat(pad="")
    asked["pad"] = "x" * ((1 << 20) - len(json.dumps(asked)))
    data = json.dumps(asked).encode()
    assert len(data) == 1 << 20
    assert (await router.ask(data)).status == 200
    head = router.client.request(b"", headers={"content-length": "", "transfer-encoding": "chunked"})
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(data[i : i + 5000]), data[i : i + 5000]) for i in range(0, len(data), 5000))
    assert (await router.client.send_raw(head + chunks + b"0\r\n\r\n")).status == 200
    assert [len(seen.body) for seen in upstream.got(asked["tag"], n=2)] == [1 << 20, 1 << 20]


async def test_headers_beyond_the_limit_are_431(router, chat):
    """Header bytes are bounded by our limit, and by the server's own where they are many more."""
    assert shaped(await router.ask(chat(), headers={"x-long": "x" * 8200}), 431, "request_too_large")
    assert (await router.ask(chat(), headers={f"x-{i}": "y" for i in range(90)})).status == 200
    assert (await router.ask(chat(), headers={f"x-{i}": "y" for i in range(2000)})).status in (400, 431)


async def test_a_refusal_echoes_the_request_id(router, chat):
    """A caller can find a refused request by the id it gave; an impossible id is not echoed."""
    assert (await router.ask(chat(model="none"), headers={"x-request-id": "my-id.1"})).headers["x-request-id"] == "my-id.1"
    assert "x-request-id" not in (await router.ask(chat(model="none"), headers={"x-request-id": "a b"})).headers


async def test_a_connection_serves_on_after_a_refusal(router, chat, connected, read_answer):
    """On one connection a good request is answered after each kind of no."""
    async with connected(router.port) as (reader, writer), asyncio.timeout(20):
        for body in (b"garbage", chat(model="none"), chat()):
            writer.write(router.client.request(body))
            got = await read_answer(reader)
        assert got.status == 200


async def test_a_revoked_key_stops_in_every_worker_and_a_new_one_works_at_once(pair, chat):
    """Both workers of a router refuse a key within two seconds of its end, and know a new one the moment it is made."""
    key = keys.create(pair.engine, "short")
    for _ in range(10):
        assert (await pair.ask(chat(), headers={"authorization": f"Bearer {key}"})).status == 200
    assert keys.revoke(pair.engine, key[:12])
    await asyncio.sleep(2)
    for _ in range(20):
        assert (await pair.ask(chat(), headers={"authorization": f"Bearer {key}"})).status == 401
