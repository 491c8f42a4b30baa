"""Hosted providers as targets: what they get, what a caller gets of theirs, and what happens where they fail. The provider is a stand-in.

Each test asks models of its own at it, so that what one does to a target's health is nothing to the next.
"""

import asyncio
import contextlib
import itertools
import json
import random
import select
import socket
from email.utils import formatdate
from time import time

import canaries
import pytest

GPT_KEY = "sk-gpt-" + "q7" * 20
CLAUDE_KEY = "sk-ant-" + "w8" * 20
PRICE = {"usd_per_million_input_tokens": 1, "usd_per_million_output_tokens": 2, "as_of": "2026-01-01", "source": "https://x.test/prices"}
HELLO = [{"role": "user", "content": "hi"}]
MANY = 40


@pytest.fixture(scope="module")
def provider(start_upstream, say):
    """The stand-in; what it answers for a model is in `scripts`, by the name that it has there."""
    scripts = {}

    def script(_, asked):
        fine = say.stream(*say.words(2), say.USAGE, say.DONE) if asked.get("stream") else say.answer({"from": asked.get("model")})
        return scripts.get(asked.get("model"), fine)

    made = start_upstream(script, records=True)
    made.scripts = scripts
    return made


@pytest.fixture(scope="module")
def house(start_router, provider, tmp_path_factory):
    """A router with a provider of each dialect, one that nobody answers for, and for each model a task that falls back to alpha."""
    key_file = tmp_path_factory.mktemp("secrets") / "claude.key"
    key_file.write_text(CLAUDE_KEY + "\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        dead = taken.getsockname()[1]
    models = {"gpt": [{"name": f"gpt{n}", "id": f"vendor/gpt{n}", "price": PRICE, "context": 32768} for n in range(MANY)],
              "claude": [{"name": f"claude{n}", "price": PRICE, "context": 32768} for n in range(4)],
              "dead": [{"name": "dead", "price": PRICE, "context": 32768}]}  # fmt: skip
    url = f"http://127.0.0.1:{provider.port}/models"
    names = [one["name"] for some in models.values() for one in some]
    made = start_router(
        limits={"first_byte_timeout_s": 2.0},
        environment={"GPT_KEY": GPT_KEY},
        zones=[{"name": "onprem", "teams": ["*"]}, {"name": "hosted", "teams": ["*"]}],
        providers=[
            {"name": "gpt-house", "url": f"{url}/gpt", "key_env": "GPT_KEY", "models": models["gpt"]},
            {"name": "claude-house", "url": f"{url}/claude", "dialect": "anthropic", "key_file": str(key_file), "models": models["claude"]},
            {"name": "dead-house", "url": f"http://127.0.0.1:{dead}", "models": models["dead"]},
        ],
        default_task="both",
        tasks=[
            {"name": "both", "candidates": [{"model": "gpt0"}], "fallbacks": ["claude0", "alpha"]},
            *({"name": name, "candidates": [{"model": name}], "fallbacks": ["alpha"]} for name in names),
        ],
    )  # fmt: skip
    made.extra["key_file"] = key_file
    made.extra["fresh"] = itertools.count(1)
    return made


@pytest.fixture
def gpt(house):
    """A hosted model that no test has asked yet."""
    return f"gpt{next(house.extra['fresh'])}"


def asked_of(provider, model):
    """What the provider was asked for a model of ours."""
    return [seen for many in provider.seen.values() for seen in many if seen.json["model"] in (model, f"vendor/{model}")]


def chat(model, **more):
    return {"model": model, "messages": HELLO, **more}


async def test_a_provider_gets_its_key_its_models_name_and_the_callers_words(house, provider, gpt):
    """Bodies arrive as they were sent but for the model's name, the key in the header of the dialect, and no header of the caller's."""
    body = chat(gpt, vendor_field={"deep": [1.50, None, "é"]}, temperature=0.70)
    headers = {"x-request-id": "mine", "user-agent": "me", "cookie": "a=b", "traceparent": "00-1-2-3", "accept": "text/x", "referer": "u"}
    got = await house.ask(body, headers=headers)
    assert (got.status, got.json, got.headers["x-request-id"]) == (200, {"from": f"vendor/{gpt}"}, "mine")
    (seen,) = asked_of(provider, gpt)
    assert seen.json == {**body, "model": f"vendor/{gpt}"}
    assert dict(seen.headers).keys() == {"host", "content-type", "content-length", "x-request-id", "accept-encoding", "authorization"}
    assert seen.header("authorization") == f"Bearer {GPT_KEY}"
    assert seen.header("x-request-id") != "mine"
    raw = b'{ "model":"claude1", "max_tokens":9,\n "messages" : [{"role":"user","content":"h\\u00ef"}], "x":1.0 }'
    assert (await house.ask(raw, "/v1/messages")).status == 200
    (seen,) = asked_of(provider, "claude1")
    assert (seen.path, seen.body, seen.header("x-api-key")) == ("/v1/messages", raw, CLAUDE_KEY)
    assert (seen.header("anthropic-version"), seen.header("authorization")) == ("2023-06-01", None)


async def test_a_providers_stream_is_relayed_byte_for_byte(house, provider, gpt, say):
    """Whatever stands in the events, in the pieces it came in, up to its end."""
    events = [': hello\n\n', 'event: odd\r\ndata: {"x": 1}\r\n\r\n', *say.words(3), say.USAGE, say.DONE]
    provider.scripts[f"vendor/{gpt}"] = [say.HEAD, *(["bytes", one] for one in events), ["end"]]
    got = await house.ask(chat(gpt, stream=True, stream_options={"include_usage": True}))
    assert got.body.decode() == "".join(events)
    asked = json.loads(asked_of(provider, gpt)[0].body)
    assert asked["stream_options"] == {"include_usage": True}


async def test_a_providers_refusal_of_the_request_is_the_callers_to_read(house, provider, gpt, say, tag):
    """A 400 in JSON comes as it is, costs nothing and puts nothing to rest."""
    provider.scripts[f"vendor/{gpt}"] = say.answer({"error": {"message": "too long", "vendor": 1}}, 400)
    for _ in range(2):
        got = await house.ask(chat(f"task/{gpt}"), headers={"x-request-id": tag})
        assert (got.status, got.json) == (400, {"error": {"message": "too long", "vendor": 1}})
    assert [row["cost_nanousd"] for row in house.rows(tag, n=2)] == [0, 0]


FAILURES = {
    "status_401": [["head", 401, {"content-type": "application/json", "content-length": 2}], ["raw", "e30="]],
    "status_402": [["head", 402, {"content-type": "application/json", "content-length": 2}], ["raw", "e30="]],
    "status_403": [["head", 403, {"content-type": "application/json", "content-length": 2}], ["raw", "e30="]],
    "status_408": [["head", 408, {"content-type": "application/json", "content-length": 2}], ["raw", "e30="]],
    "busy": [["head", 429, {"content-type": "application/json", "content-length": 2}], ["raw", "e30="]],
    "status_529": [["head", 529, {"content-type": "application/json", "content-length": 2}], ["raw", "e30="]],
    "status_520": [["head", 520, {"content-type": "application/json", "content-length": 2}], ["raw", "e30="]],
    "status_302": [["head", 302, {"location": "http://127.0.0.1:1/", "content-length": 0}]],
    "status_307": [["head", 307, {"location": "/v1/chat/completions", "content-type": "application/json", "content-length": 0}]],
    "encoded": [["head", 200, {"content-type": "application/json", "content-encoding": "gzip", "content-length": 2}], ["raw", "e30="]],
    "first_byte_timeout": [["hang"]],
    "upstream_closed": [["close"]],
}  # fmt: skip


@pytest.mark.parametrize("failure", FAILURES)
async def test_where_a_provider_fails_the_fallback_answers(house, provider, gpt, say, tag, failure):
    """Whatever is not an answer is the next target's to answer, and alone the caller's 429, 502, 503 or 504, never as the caller's own
    wrong key, unpaid bill or redirect, and without a word of the provider's."""
    provider.scripts[f"vendor/{gpt}"] = FAILURES[failure]
    got = await house.ask(chat(f"task/{gpt}"), headers={"x-request-id": tag})
    assert (got.status, got.headers["inhouse-model"]) == (200, "alpha")
    assert [(row["attempt"], row["model"], row["zone"], row["error"]) for row in house.rows(tag, n=2)] == [
        (1, gpt, "hosted", failure), (2, "alpha", "onprem", "")]  # fmt: skip
    words = {"echo": f"wrong key {GPT_KEY} for {provider.port}"}
    if FAILURES[failure][0][0] == "head":
        provider.scripts[f"vendor/{gpt}"] = say.answer(words, FAILURES[failure][0][1], **{"content-encoding": "x"})
    got = await house.ask(chat(gpt))
    assert got.status in (429, 502, 503, 504)
    assert got.status == {"busy": 429, "status_529": 503, "first_byte_timeout": 504}.get(failure, 502)
    assert GPT_KEY not in got.body.decode() and str(provider.port) not in got.body.decode() + str(got.headers)


async def test_a_provider_that_nobody_answers_for_is_left_to_the_fallback(house, tag):
    """A refused connection is the next target's to answer."""
    got = await house.ask(chat("task/dead"), headers={"x-request-id": tag})
    assert (got.status, got.headers["inhouse-model"]) == (200, "alpha")
    assert house.rows(tag, n=2)[0]["error"] == "connect_failed"


async def test_a_providers_stream_that_breaks_is_not_begun_anew(house, provider, upstream, gpt, say):
    """After the first byte the caller gets an error event, and no other model is asked."""
    provider.scripts[f"vendor/{gpt}"] = [say.HEAD, ["chunk", say.words(1)[0]], ["sleep", 0.05], ["cut"]]
    body = chat(f"task/{gpt}", stream=True, tag=gpt)
    got = await house.ask(body)
    assert b"w0 " in got.body and b'"error"' in got.body and b"[DONE]" not in got.body
    assert gpt not in {seen.tag for seen in itertools.chain(*upstream.seen.values())}


@pytest.mark.parametrize("said", ["seconds", "date"])
async def test_what_a_provider_asks_for_in_retry_after_it_gets(house, provider, gpt, say, tag, said):
    """Until then nothing is sent to it, the caller is told the time that is left, and where there is a fallback that answers."""
    wish = "30" if said == "seconds" else formatdate(time() + 30, usegmt=True)
    provider.scripts[f"vendor/{gpt}"] = say.answer({}, 429, **{"retry-after": wish})
    for _ in range(3):
        got = await house.ask(chat(gpt), headers={"x-request-id": tag})
        assert (got.status, got.error["code"]) == (429, "rate_limited")
        assert 15 < int(got.headers["retry-after"]) <= 30
    assert (await house.ask(chat(f"task/{gpt}"))).headers["inhouse-model"] == "alpha"
    assert len(asked_of(provider, gpt)) == 1
    assert [(row["attempt"], row["error"]) for row in house.rows(tag, n=3)] == [(1, "busy"), (0, "rate_limited"), (0, "rate_limited")]


@pytest.mark.parametrize("wish", ["9" * 400, "-5", "soon", "", "1.5", "Wed, 99 Foo 2026", "٣"])
async def test_a_retry_after_that_makes_no_sense_does_no_harm(house, provider, gpt, say, wish):
    """The longest that is believed is ten minutes; what is no time is not there."""
    provider.scripts[f"vendor/{gpt}"] = say.answer({}, 503, **{"retry-after": wish})
    got = await house.ask(chat(gpt))
    assert got.status == 503
    assert 1 <= int(got.headers["retry-after"]) <= 600


async def trier(house, provider, gpt, n):
    """The connection of the request that comes through to a resting target, as the nth that it gets; those before it went elsewhere."""
    async with asyncio.timeout(40):
        while True:
            connection = house.client.open(chat(f"task/{gpt}"))
            while not select.select([connection], [], [], 0)[0]:
                if len(asked_of(provider, gpt)) == n:
                    return connection
                await asyncio.sleep(0.02)
            connection.close()
            await asyncio.sleep(0.1)


async def test_after_a_rest_one_request_tries_the_target_and_the_others_do_not_wait(house, provider, gpt, say, wait_until):
    """While it is being tried all others go to the fallback; a trier that hangs up makes room for the next, and an answer ends it."""
    name = f"vendor/{gpt}"
    provider.scripts[name] = say.answer({}, 503, **{"retry-after": "1"})
    await house.ask(chat(gpt))
    provider.scripts[name] = [["hang"]]
    for n in (2, 3):
        with contextlib.closing(await trier(house, provider, gpt, n)):
            others = await asyncio.gather(*(house.ask(chat(f"task/{gpt}")) for _ in range(8)))
            assert {got.headers["inhouse-model"] for got in others} == {"alpha"}
            assert len(asked_of(provider, gpt)) == n
        wait_until(lambda n=n: asked_of(provider, gpt)[n - 1].closed_at)
    del provider.scripts[name]
    await house.ask(chat(gpt))
    assert {(await house.ask(chat(f"task/{gpt}"))).headers["inhouse-model"] for _ in range(5)} == {gpt}


async def test_a_runs_deadline_is_the_upstreams(house, provider, gpt, say, wait_until):
    """An answer that takes longer than its run may ends with it, and so does the provider's work."""
    made = (await house.ask({"limits": {"seconds": 2}}, "/v1/runs")).json
    provider.scripts[f"vendor/{gpt}"] = [say.HEAD, ["pace", 600, 0.1]]
    got = await house.ask(chat(gpt, stream=True), headers={"inhouse-run": made["id"]})
    assert b'"error"' in got.body and b"w1 " in got.body
    assert b"w59 " not in got.body
    wait_until(lambda: asked_of(provider, gpt)[0].closed_at)


async def test_a_target_is_only_asked_in_its_dialect(house, provider):
    """Messages go to the Anthropic provider, the rest to the OpenAI one; named outright, the other is no such endpoint."""
    message = {"max_tokens": 5, "messages": HELLO}
    for path, body, model in (("/v1/messages", message, "claude0"), ("/v1/chat/completions", {"messages": HELLO}, "gpt0"),
                              ("/v1/responses", {"input": "hi"}, "gpt0"), ("/v1/embeddings", {"input": "hi"}, "gpt0")):  # fmt: skip
        got = await house.ask({"model": "task/both", **body}, path)
        assert (got.status, got.headers["inhouse-model"]) == (200, model)
    for path, body, model in (("/v1/messages", message, "gpt0"), ("/v1/chat/completions", {"messages": HELLO}, "claude0")):
        before = len(asked_of(provider, model))
        got = await house.ask({"model": model, **body}, path)
        assert got.status == 404
        assert got.error.get("code", "endpoint_not_supported") == "endpoint_not_supported"
        assert len(asked_of(provider, model)) == before


async def test_what_leaves_in_a_header_is_a_name_of_a_feature(house, provider):
    """Providers' own names pass, and no card, key, address or number does, however it is written."""
    features = ("prompt-caching-2024-07-31", "claude-code-20250219, max-tokens-3-5-sonnet-2024-07-15,context-1m-2025-08-07")
    body = {"model": "claude2", "max_tokens": 5, "messages": HELLO}
    for one in features:
        await house.ask(body, "/v1/messages", headers={"anthropic-beta": one, "anthropic-version": "2023-01-01"})
    rng = random.Random(1)
    values = [write(make(rng)) for make in canaries.VALUES.values() for write in canaries.WRITINGS.values()]
    values = [one for one in values if one.isascii() and one.isprintable()]
    assert len(values) > 80
    for one in values:
        given = {"anthropic-beta": f"{one}-2025-01-01", "openai-beta": one, "anthropic-version": one}
        got = await house.ask(body, "/v1/messages", headers=given)
        assert got.status == 200
    seen = asked_of(provider, "claude2")
    assert [one.header("anthropic-beta") for one in seen] == [*features, *[None] * len(values)]
    assert {one.header("openai-beta") for one in seen} == {None}
    assert {one.header("anthropic-version") for one in seen} == {"2023-01-01", "2023-06-01"}


async def test_a_providers_key_is_in_its_requests_and_nowhere_else(house, provider):
    """After all of the above: not in the home (log, ledger, audit), not at /readyz, /metrics or /v1/models (AISVS 9.4.2)."""
    assert GPT_KEY.encode() in provider.heard and CLAUDE_KEY.encode() in provider.heard
    said = [(await house.get(path)).body for path in ("/readyz", "/metrics", "/v1/models", "/v1/models/gpt0")]
    files = [path for path in house.home.rglob("*") if path.is_file()]
    assert any("inhouse.db" in path.name for path in files) and house.log in files
    for text in (*said, *(path.read_bytes() for path in files)):
        assert GPT_KEY.encode() not in text and CLAUDE_KEY.encode() not in text
        assert GPT_KEY[7:].encode() not in text and CLAUDE_KEY[7:].encode() not in text


async def test_a_price_read_long_ago_is_told_in_the_log(house):
    """At its start the router says which prices to look at again, and where."""
    assert "the price of `gpt0` was read on 2026-01-01" in house.log.read_text()
