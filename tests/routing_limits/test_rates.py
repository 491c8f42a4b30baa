"""Limits that are a matter of waiting: calls and tokens a minute, calls at once; 429 with Retry-After, over three workers."""

import asyncio
import time

import pytest


@pytest.fixture(autouse=True)
async def within_a_minute():
    """The periods are minutes of the clock: a test that would see one end waits for the next."""
    if (left := 60 - time.time() % 60) < 8:
        await asyncio.sleep(left + 0.1)


async def test_calls_a_minute(make_caller, upstream, chat):
    """Of twelve calls at once five pass; the others are told when to come again, and no model hears of them."""
    _, client = await make_caller("5calls/minute", "1usd/day")
    asked = [chat(max_tokens=5) for _ in range(12)]
    answers = await asyncio.gather(*map(client.ask, asked))
    assert sorted(got.status for got in answers) == [200] * 5 + [429] * 7
    refused = [got for got in answers if got.status == 429]
    assert all(1 <= int(got.headers["retry-after"]) <= 60 for got in refused)
    assert {got.error["code"] for got in refused} == {"rate_limited"} and "may use 5calls/minute" in refused[0].error["message"]
    assert sum(one["tag"] in upstream.seen for one in asked) == 5


async def test_tokens_a_minute(make_caller, chat, say):
    """What answers used counts, in all dialects; where the rest of the minute's tokens do not suffice it is 429, not 402."""
    _, client = await make_caller("4000tokens/minute")
    script = say.answer({"usage": {"input_tokens": 400, "output_tokens": 100}})
    answers = [await client.ask(chat(script, max_tokens=2000), "/v1/messages") for _ in range(8)]
    passed = [got.status for got in answers].index(429)
    assert 4 <= passed < 8 and {got.status for got in answers[passed:]} == {429}, "500 tokens each, not the 3,100 that were reserved"
    got = answers[-1]
    assert int(got.headers["retry-after"]) >= 1
    assert got.error["type"] == "rate_limit_error" and "4000tokens/minute" in got.error["message"]


async def test_calls_at_once(make_caller, upstream, chat, say):
    """Two calls at a time over all workers: a third is 429 while they run, also while one streams, and passes when one has ended."""
    _, client = await make_caller("2concurrent")
    slow = [chat([say.HEAD, ["chunk", say.words(1)[0]], ["hang"]], stream=True, max_tokens=5), chat([["hang"]], max_tokens=5)]
    open_ones = [client.open(one) for one in slow]
    for one in slow:
        await asyncio.to_thread(upstream.got, one["tag"])
    got = await client.ask(chat(max_tokens=5))
    assert got.status == 429 and int(got.headers["retry-after"]) >= 1 and "2 calls at once" in got.error["message"]
    open_ones[0].close()
    async with asyncio.timeout(20):
        while (got := await client.ask(chat(max_tokens=5))).status == 429:
            await asyncio.sleep(0.05)
    assert got.status == 200
    open_ones[1].close()


async def test_each_caller_has_a_rate_with_a_model(make_caller, upstream, chat, books):
    """Of six calls one after another four pass and two are 429 with the time to wait; another caller, and the same caller with another
    model, are not touched."""
    (name, client), (other, beside) = await make_caller("1usd/day"), await make_caller()
    statuses = [(await client.ask(chat(model="beta-adapter", max_tokens=5))).status for _ in range(4)]
    assert statuses == [200] * 4
    asked = chat(model="beta-adapter", max_tokens=5)
    got = await client.ask(asked)
    assert got.status == 429 and 1 <= int(got.headers["retry-after"]) <= 60 and asked["tag"] not in upstream.seen
    assert f"caller `{name}` with model `beta-adapter` may use 4calls/minute" in got.error["message"]
    assert (await client.ask(chat(model="beta", max_tokens=5))).status == 200
    assert (await beside.ask(chat(model="beta-adapter", max_tokens=5))).status == 200
    assert [most for _, _, most in await asyncio.to_thread(books, "caller_model", f"beta-adapter/{other}", "calls")] == [4]


async def test_each_caller_has_tokens_and_places_with_a_model(make_caller, upstream, chat, say):
    """One call at a time of a caller with the model, while others' go on; its tokens of the hour end with 402, which names both."""
    (_, client), (_, beside) = await make_caller(), await make_caller()
    slow = chat([["hang"]], model="beta-adapter", max_tokens=5)
    with client.open(slow):
        await asyncio.to_thread(upstream.got, slow["tag"])
        got = await client.ask(chat(model="beta-adapter", max_tokens=5))
        assert got.status == 429 and "1 calls at once" in got.error["message"] and int(got.headers["retry-after"]) >= 1
        assert (await beside.ask(chat(model="beta-adapter", max_tokens=5))).status == 200
    large = say.answer({"choices": [], "usage": {"prompt_tokens": 1000, "completion_tokens": 1500}})
    got = await beside.ask(chat(large, model="beta-adapter", max_tokens=1500))
    assert got.status == 200
    got = await beside.ask(chat(model="beta-adapter", max_tokens=5))
    assert got.status == 402 and "with model `beta-adapter` is 3000tokens/hour" in got.error["message"]


async def test_batch_work_may_stand_back_and_nobody_may_push_in(make_caller, upstream, chat):
    """vLLM's `priority` reaches the engine as it is, where more is later; below 0, or spelled so that only engines read it, it is 400."""
    _, client = await make_caller("1usd/day")
    batch = chat(priority=1, max_tokens=5)
    assert (await client.ask(batch)).status == 200
    assert upstream.got(batch["tag"])[0].json["priority"] == 1
    for pushing in (-1, "-1", -1.0, [-1]):
        got = await client.ask(chat(priority=pushing, max_tokens=5))
        assert (got.status, got.error["param"]) == (400, "priority")
