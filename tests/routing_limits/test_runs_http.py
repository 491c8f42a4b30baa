"""Runs as their callers have them, over HTTP at a real router of three workers: limits, trees, the kill, the data class.

OWASP AISVS C9.1.1 (limits of a run), C9.8.6 (kill switch).
"""

import asyncio
import json
import time
import uuid

import pytest
from click.testing import CliRunner

import inhouse


@pytest.fixture
async def client(make_caller):
    """A caller with a dollar a day."""
    return (await make_caller("5usd/day"))[1]


async def new_run(client, **body):
    got = await client.ask(body, "/v1/runs")
    assert got.status == 200, got.body
    return got.json["id"]


async def shown(client, run, claim):
    """The run's document, once the claim holds of it."""
    for _ in range(200):
        if claim(document := (await client.get(f"/v1/runs/{run}")).json):
            return document
        await asyncio.sleep(0.05)
    raise AssertionError(document)


def of(run):
    return {"headers": {"inhouse-run": run}}


async def test_a_run_shows_its_tree_and_what_it_spends_while_it_spends(client, upstream, chat, say):
    """POST makes it, calls name it, GET tells what it and those below it spent, and what is held for a call under way."""
    made = await client.ask({"limits": {"usd": 0.5, "tokens": 20000, "calls": 10, "seconds": 600, "depth": 2, "fanout": 4}}, "/v1/runs")
    top = made.json["id"]
    assert made.json["state"] == "open" and made.json["limits"]["fanout"] == 4
    child = await new_run(client, parent=top, limits={"calls": 3})
    got = await client.ask(chat(max_tokens=5), **of(child))
    assert (got.status, got.headers["inhouse-run"]) == (200, child)
    assert (await client.ask(chat(max_tokens=5), **of(top))).status == 200
    slow = chat([["hang"]], max_tokens=5)
    with client.open(slow, **of(child)):
        upstream.got(slow["tag"])
        held = await shown(client, top, lambda run: run["held"]["calls"] >= 1 and run["spent"]["calls"] == 2)
        assert held["held"]["tokens"] > 1024
    document = await shown(client, top, lambda run: run["spent"]["calls"] == 3 and run["held"]["calls"] == 0)
    assert [one["id"] for one in document["children"]] == [child]
    assert document["children"][0]["spent"]["calls"] == 2
    assert document["spent"]["usd"] > document["children"][0]["spent"]["usd"] > 0
    statuses = [(await client.ask(chat(max_tokens=5), **of(child))).status for _ in range(2)]
    assert statuses == [200, 402], "its own three calls, though its parent has more"


async def test_a_run_is_worth_nothing_to_another(client, make_caller, chat, upstream):
    """Another caller's key opens it for nothing: 404, and no model is asked."""
    run = await new_run(client)
    _, stranger = await make_caller("1usd/day")
    asked = chat(max_tokens=5)
    answers = [await stranger.ask(asked, **of(run)), await stranger.get(f"/v1/runs/{run}"),
               await stranger.ask(b"", f"/v1/runs/{run}", method="DELETE"), await stranger.ask({"parent": run}, "/v1/runs")]  # fmt: skip
    assert [(got.status, got.error["code"]) for got in answers] == [(404, "run_not_found")] * 4
    assert asked["tag"] not in upstream.seen
    assert (await client.get(f"/v1/runs/{run}")).json["state"] == "open"


@pytest.mark.parametrize("dialect", ["chat/completions", "messages"])
async def test_the_kill_ends_all_that_is_under_way_in_every_worker(client, toll, upstream, chat, say, dialect):
    """DELETE of a run: twelve streams and six whole answers of it and its child, spread over three workers, end within a second of its
    answer; later calls get 409, what is beside it goes on."""
    top, beside = await new_run(client), await new_run(client)
    child = await new_run(client, parent=top)
    path = f"/v1/{dialect}"
    streams = [chat([say.HEAD, ["pace", 3000, 0.02]], stream=True, max_tokens=3000) for _ in range(12)]
    waiting = [chat([["hang"]], max_tokens=5) for _ in range(6)]
    asked = [*streams, *waiting]
    calls = [asyncio.create_task(client.ask(one, path, **of((top, child)[i % 2]))) for i, one in enumerate(asked)]
    other = chat([say.HEAD, ["pace", 30, 0.05], ["chunk", say.DONE], ["end"]], stream=True, max_tokens=3000)
    goes_on = asyncio.create_task(client.ask(other, **of(beside)))
    for one in (*asked, other):
        await asyncio.to_thread(upstream.got, one["tag"])
    document = (await client.ask(b"", f"/v1/runs/{top}", method="DELETE")).json
    answered = time.monotonic()
    assert (document["state"], document["children"][0]["state"]) == ("stopped", "stopped")
    answers = await asyncio.gather(*calls)
    async with asyncio.timeout(20):
        while not all(ended := [upstream.seen[one["tag"]][0].closed_at for one in asked]):
            await asyncio.sleep(0.01)
    assert max(ended) - answered < 1.0, "at a load of 25 on two cores it was 0.22 s at most, of 12 times (2026-11-25)"
    for got in answers[:12]:
        assert got.status == 200 and b"was stopped" in got.body and not got.cut
    for got in answers[12:]:
        assert got.status == 409 and "was stopped" in got.error["message"]
    got = await client.ask(chat(max_tokens=5), path, **of(child))
    assert got.status == 409 and (dialect == "messages" or got.error["code"] == "run_stopped")
    assert (await client.ask({"parent": top}, "/v1/runs")).status == 409
    assert (await goes_on).body.endswith(b"data: [DONE]\n\n")


async def test_a_deadline_ends_calls_and_then_refuses_them(client, upstream, chat, say, toll):
    """A call under way when the run's time is up ends; later ones are 409 until a person gives more."""
    run = await new_run(client, limits={"seconds": 1.5})
    slow = chat([["hang"]], max_tokens=5)
    got = await client.ask(slow, **of(run))
    assert got.status in (409, 504) and upstream.got(slow["tag"])
    got = await client.ask(chat(max_tokens=5), **of(run))
    assert (got.status, got.error["code"]) == (409, "run_deadline")
    raise_run(toll, run, "--seconds", "600")
    for _ in range(6):  # whichever worker
        assert (await client.ask(chat(max_tokens=5), **of(run))).status == 200


def raise_run(toll, run, *limits):
    """What a person on call does."""
    done = CliRunner().invoke(inhouse.main, ["runs", "raise", run, *limits, "--home", str(toll.home)],
                              env={"INHOUSE_DATABASE": toll.extra["place"].url})  # fmt: skip
    assert done.exit_code == 0, done.output


async def test_the_data_class_of_a_run_never_falls(client, toll, chat):
    """A card number in the first call: all later calls of the run, its parent and its siblings are as sensitive, in whichever worker,
    though nothing is in them."""
    top = await new_run(client)
    one, two = await new_run(client, parent=top), await new_run(client, parent=top)
    tag = uuid.uuid4().hex
    assert (await client.ask(chat(max_tokens=5), headers={"inhouse-run": two, "x-request-id": f"{tag}-before"})).status == 200
    card = [{"role": "user", "content": "pay with 4111 1111 1111 1111"}]
    assert (await client.ask(chat(messages=card, max_tokens=5), headers={"inhouse-run": one, "x-request-id": f"{tag}-card"})).status == 200
    later = [f"{tag}-{i}" for i in range(12)]
    answers = await asyncio.gather(*(client.ask(chat(max_tokens=5), headers={"inhouse-run": (top, one, two)[i % 3], "x-request-id": name})
                                     for i, name in enumerate(later)))  # fmt: skip
    assert {got.status for got in answers} == {200}
    before, first = toll.rows(f"{tag}-before", n=1)[0]["data_class"], toll.rows(f"{tag}-card", n=1)[0]["data_class"]
    assert before != first == "restricted"
    assert {toll.rows(name, n=1)[0]["data_class"] for name in later} == {first}


async def test_a_loop_stops_the_run_and_a_person_may_let_it_go_on(client, toll, upstream, chat):
    """The same tool call with the same result again and again: 409 with the reason, for every later call of the run; `inhouse runs raise`
    resumes it."""
    run = await new_run(client, limits={"usd": 1})
    said = [{"role": "user", "content": "fix it"}]
    for i in range(6):
        call = {"id": f"c{i}", "type": "function", "function": {"name": "read", "arguments": '{"path": "a"}'}}
        said += [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "tool_call_id": f"c{i}", "content": "same"}]
    asked = chat(messages=said, max_tokens=5)
    got = await client.ask(asked, **of(run))
    assert (got.status, got.error["code"]) == (409, "loop") and "repeated_call" in got.error["message"]
    assert asked["tag"] not in upstream.seen
    got = await client.ask(chat(max_tokens=5), **of(run))
    assert got.status == 409 and "repeated_call" in got.error["message"] and "inhouse runs raise" in got.error["message"]
    document = (await client.get(f"/v1/runs/{run}")).json
    assert document["state"] == "stopped" and "repeated_call" in document["reason"]
    raise_run(toll, run, "--usd", "2")
    for _ in range(6):
        got = await client.ask(chat(max_tokens=5), **of(run))
        assert got.status == 200, json.dumps(got.json)
