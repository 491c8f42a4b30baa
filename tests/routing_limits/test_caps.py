"""Where a budget nearly ends, at a real router: shorter answers, streams that are ended properly, and what each ending costs."""

import asyncio
import json
import uuid

import anthropic
import openai
import pytest

HELLO = [{"role": "user", "content": "hi"}]
TOKEN = 20_000  # nano-USD


async def spent(books, name, want, unit="nanousd"):
    """Whether the caller has spent so much, once nothing is held any more."""
    for _ in range(200):
        ((said, held, _),) = await asyncio.to_thread(books, "caller", name, unit)
        if (said, held) == (want, 0):
            return True
        await asyncio.sleep(0.05)
    raise AssertionError(f"{said} spent and {held} held, not {want}")


async def test_an_answer_is_made_shorter_where_less_is_left(toll, upstream, make_caller, chat, books):
    """The model is asked for what is affordable, in each of the fields that the caller used; headers say how much that is, what it cost
    and what is left."""
    name, client = await make_caller("2000tokens")
    asked = chat(max_tokens=5000, max_completion_tokens=6000)
    got = await client.ask(asked)
    most = int(got.headers["inhouse-max-tokens"])
    (seen,) = upstream.got(asked["tag"])
    assert seen.json["max_tokens"] == seen.json["max_completion_tokens"] == most
    assert 500 < most < 2000 - 1024, "the bound of the prompt is more than a template's 1,024 tokens"
    assert got.headers["inhouse-cost-usd"] == f"{10 * TOKEN / 1e9:.4f}"
    assert got.headers["inhouse-budget-left"].endswith("tokens")
    assert await spent(books, name, 10, "tokens")
    for path, field, more in (("messages", "max_tokens", {"messages": HELLO}), ("responses", "max_output_tokens", {"input": "hi"}),
                              ("completions", "max_tokens", {"prompt": "hi"})):  # fmt: skip
        asked = {"model": "alpha", "tag": uuid.uuid4().hex, field: 5000, **more}
        got = await client.ask(asked, f"/v1/{path}")
        assert upstream.got(asked["tag"])[0].json[field] == int(got.headers["inhouse-max-tokens"]) < 1000
    plenty = chat(max_tokens=5)
    assert "inhouse-max-tokens" not in (await client.ask(plenty)).headers
    assert upstream.got(plenty["tag"])[0].json["max_tokens"] == 5


async def test_nothing_affordable_is_refused_before_the_model(toll, upstream, make_caller, chat):
    """402 with what is left and when it renews, for OpenAI's callers and Anthropic's; the model hears nothing."""
    _, client = await make_caller("900tokens/day")
    for path, body in (("chat/completions", chat()), ("messages", chat(max_tokens=5)), ("embeddings", {**chat(), "input": "hi"})):
        got = await client.ask(body, f"/v1/{path}")
        assert got.status == 402 and "tokens left; this call needs" in got.error["message"] and "It renews at 20" in got.error["message"]
        assert body["tag"] not in upstream.seen
    with openai.OpenAI(base_url=f"http://127.0.0.1:{toll.port}/v1", api_key=client.key) as sdk, pytest.raises(openai.APIStatusError) as no:
        await asyncio.to_thread(sdk.chat.completions.create, model="alpha", messages=HELLO)  # with retries on: it must not try again
    assert (no.value.status_code, no.value.code) == (402, "budget_exceeded")


def endless(say, dialect):
    """A stream of 60 words that takes no notice of what it was asked for, and never ends."""
    if dialect == "openai":
        return [say.HEAD, *(["chunk", word] for word in say.words(60)), ["hang"]]
    if dialect == "anthropic":
        message = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None,
                   "stop_sequence": None, "usage": {"input_tokens": 4, "output_tokens": 0}}  # fmt: skip
        block = {"index": 0, "content_block": {"type": "text", "text": ""}}
        events = [("message_start", {"message": message}), ("content_block_start", block)]
        events += [("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "w "}})] * 60
    else:
        part = {"item_id": "i", "output_index": 0, "content_index": 0}
        item = {"id": "i", "type": "message", "role": "assistant", "status": "in_progress", "content": []}
        created = {"id": "r", "object": "response", "created_at": 1, "status": "in_progress", "model": "m", "output": [], "tools": [],
                   "parallel_tool_calls": True, "tool_choice": "auto"}  # fmt: skip
        text = {"type": "output_text", "text": "", "annotations": []}
        events = [("response.created", {"response": created}), ("response.output_item.added", {"output_index": 0, "item": item}),
                  ("response.content_part.added", {**part, "part": text})]  # fmt: skip
        events += [("response.output_text.delta", {**part, "delta": "w ", "logprobs": []})] * 60
    return [say.HEAD, *(["chunk", f"event: {name}\n" + say.event({"type": name, "sequence_number": i, **data})]
                        for i, (name, data) in enumerate(events)), ["hang"]]  # fmt: skip


@pytest.mark.parametrize("dialect", ["openai", "completions", "anthropic", "responses"])
async def test_a_stream_that_ignores_its_cap_ends_as_if_by_itself(toll, make_caller, say, books, dialect):
    """A model that writes on past what was reserved: the SDKs see an answer that ended for its length, the model's work ends, and the
    caller is charged what was reserved and no more. Where usage is told, it is what was counted."""
    name, client = await make_caller("1usd/day")
    url = f"http://127.0.0.1:{toll.port}"
    script = {"extra_body": {"script": endless(say, "openai" if dialect == "completions" else dialect)}}
    counts = []

    def _openai():
        with openai.OpenAI(base_url=f"{url}/v1", api_key=client.key, max_retries=0) as sdk:
            if dialect == "openai":
                chunks = list(sdk.chat.completions.create(model="alpha", messages=HELLO, max_tokens=5, stream=True, **script))
                assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks).startswith("w0 w1 w2")
                return chunks[-1].choices[0].finish_reason
            if dialect == "completions":
                more = {"stream_options": {"include_usage": True}, **script}
                *_, end, told = sdk.completions.create(model="alpha", prompt="hi", max_tokens=5, stream=True, **more)
                assert not told.choices and told.usage.total_tokens == told.usage.prompt_tokens + told.usage.completion_tokens
                counts.append(told.usage.completion_tokens)
                return end.choices[0].finish_reason
            last = list(sdk.responses.create(model="alpha", input="hi", max_output_tokens=5, stream=True, **script))[-1]
            counts.append(last.response.usage.output_tokens)
            return last.type, last.response.incomplete_details.reason

    def _anthropic():
        with (anthropic.Anthropic(base_url=url, api_key=client.key, max_retries=0) as sdk,
              sdk.messages.stream(model="alpha", messages=HELLO, max_tokens=5, **script) as stream):  # fmt: skip
            assert "".join(stream.text_stream).startswith("w w w")
            counts.append(stream.get_final_message().usage.output_tokens)
            return stream.get_final_message().stop_reason

    ended = await asyncio.to_thread(_anthropic if dialect == "anthropic" else _openai)
    assert ended == {"anthropic": "max_tokens", "responses": ("response.incomplete", "max_output_tokens")}.get(dialect, "length")
    (row,) = await until_row(toll, name)
    assert (row["status"], row["error"]) == (200, "over_budget")
    assert counts == [row["completion_tokens"]] * (dialect != "openai"), "callers who are told are told what the ledger has"
    used = row["cost_nanousd"] // TOKEN
    assert 20 < used < 70 if dialect == "anthropic" else 1024 + 5 < used < 40_000  # Anthropic's begins with the prompt's true count
    assert await spent(books, name, row["cost_nanousd"])


async def until_row(toll, name, n=1):
    """The caller's rows in the ledger, once there are so many."""
    async with asyncio.timeout(20):
        while len(rows := [row for row in await asyncio.to_thread(toll.rows) if row["caller"] == name]) < n:
            await asyncio.sleep(0.05)
    return rows


async def test_a_whole_answer_that_ignores_its_cap_is_charged_what_was_reserved(toll, make_caller, chat, say, books):
    """Also where the model says that it wrote a thousand times what it was allowed."""
    name, client = await make_caller("0.1usd/day")
    got = await client.ask(chat(say.answer({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 10_000_000}}), max_tokens=5))
    assert got.status == 200
    (row,) = await until_row(toll, name)
    assert row["completion_tokens"] == 10_000_000, "what the model said stays on record"
    assert 0 < row["cost_nanousd"] < 2000 * TOKEN
    assert await spent(books, name, row["cost_nanousd"])


@pytest.mark.parametrize("ending", ["cut", "left"])
async def test_a_stream_that_ends_early_costs_what_was_written(toll, upstream, make_caller, chat, say, books, ending):
    """A model whose connection breaks after 5 words, and a caller who leaves: the words that came are charged, not those reserved."""
    name, client = await make_caller("1usd/day")
    words = [["chunk", word] for word in say.words(5)]
    asked = chat([say.HEAD, *words, *([["sleep", 0.05], ["cut"]] if ending == "cut" else [["hang"]])], stream=True, max_tokens=4000)
    if ending == "cut":
        assert b'"code":"upstream_error"' in (await client.ask(asked)).body
    else:
        with client.open(asked) as connection:
            while b"w4 " not in await asyncio.to_thread(connection.recv, 65536):
                pass
    (row,) = await until_row(toll, name)
    assert (row["completion_tokens"], row["exact"]) == (5, 0)
    bound = row["cost_nanousd"] // TOKEN - 5
    assert 1024 < bound < 1024 + len(json.dumps(asked)) + 100
    assert await spent(books, name, row["cost_nanousd"])


async def test_a_fallback_is_not_charged_twice(toll, make_caller, chat, say, books):
    """Three attempts, one answer: the models that refused cost nothing, and the ledger says which was which."""
    name, client = await make_caller("1usd/day", "1000calls/day")
    down = [["head", 503, {"content-length": 0}]]
    fine = say.answer({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
    asked, rows = 0, []
    async with asyncio.timeout(120):  # other tests may have left a model resting, which is then asked last
        while len(rows) < 3:
            got = await client.ask(chat({"alpha": down, "beta": down, "gamma": fine}, model="task/extraction"))
            assert (got.status, got.headers["inhouse-model"]) == (200, "gamma")
            asked += 1
            await asyncio.sleep(1)
            rows = [row for row in await until_row(toll, name, asked) if row["request_id"] == got.headers["x-request-id"]]
    assert sorted(row["cost_nanousd"] for row in rows) == [0, 0, 10 * TOKEN]
    assert sorted(row["attempt"] for row in rows) == [1, 2, 3]
    assert await spent(books, name, asked * 10 * TOKEN)
    assert await spent(books, name, asked, "calls")


async def test_a_request_id_used_again_is_paid_again(toll, make_caller, chat, tag, books):
    """Settling once belongs to an attempt, not to a word of the caller's: ten calls under one `x-request-id` are ten calls."""
    name, client = await make_caller("1usd/day", "100calls/day")
    answers = await asyncio.gather(*(client.ask(chat(max_tokens=5), headers={"x-request-id": tag}) for _ in range(10)))
    assert {(got.status, got.headers["x-request-id"]) for got in answers} == {(200, tag)}
    assert await spent(books, name, 100 * TOKEN)
    assert await spent(books, name, 10, "calls")
    assert sum(row["cost_nanousd"] for row in await until_row(toll, name, 10)) == 100 * TOKEN
