"""A real router between failing local models and a hosted provider that records every byte that reaches it.

Clean conversations do reach it, planted ones never; with the checks taken out (`unchecked_router`) the same conversations do.
"""

import asyncio
import itertools
import random
import re
import socket
from collections import Counter
from pathlib import Path

import canaries
import pytest

from routing import keys
from routing.keys import Allowed
from routing.teams import create_team

UNCHECKED = str(Path(__file__).with_name("unchecked_router.py"))
MODEL = re.compile(rb'"model":( ?)"auto"')
AT_ONCE = 64
WORDS = ("dates", "names", "amounts", "places", "goods", "prices", "terms", "people", "parts", "weights", "colours", "seasons")
MARK = b"zebra"  # every marker of a canary begins with it, and no clean conversation holds it
PLANTED_HEADERS = {
    "tracestate": "vendor=zebraone",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "anthropic-beta": "zebratwo",
    "openai-beta": "zebra-three",
    "user-agent": "zebrafour/1.0",
    "x-request-id": "zebrafive",
    "cookie": "a=zebrasix",
    "baggage": "user=zebraseven",
    "inhouse-data-class": "public",
}


def faults(say, seed):
    """How a model answers one request after another: mostly badly, in turn; its health check is always fine."""
    half = [say.HEAD, ["chunk", say.words(1)[0]], ["cut"]]
    fine = None
    bad = [
        [["head", 503, {"content-length": 0}]],
        [["hang"]],
        fine,
        [["head", 429, {"content-length": 0}]],
        half,
        [["cut"]],
        fine,
        [["head", 200, {"content-type": "application/json", "content-length": 50}], ["raw", "e30="], ["close"]],
        [["head", 500, {"content-length": 0}]],
        fine,
        [["head", 529, {"content-type": "application/json", "content-length": 2}], ["raw", "e30="]],
    ]
    random.Random(seed).shuffle(bad)
    turn = itertools.cycle([*bad * 30, [["head", 429, {"retry-after": "1", "content-length": 0}]]])

    def script(model, asked):
        wrong = next(turn)
        if wrong is not None:
            return wrong
        return say.stream(*say.words(2), say.USAGE, say.DONE) if asked.get("stream") else say.answer({"from": model})

    return script


def hosted(url):
    """Two providers, one of each dialect, behind one recording socket."""
    price = {"usd_per_million_input_tokens": 1, "usd_per_million_output_tokens": 2, "as_of": "2026-11-01", "source": "x"}
    return [
        {"name": f"{name}-house", "url": f"{url}/models/{name}", "dialect": dialect,
         "models": [{"name": name, "price": price, "context": 32768}]}
        for name, dialect in (("gpt", "openai"), ("claude", "anthropic"))
    ]  # fmt: skip


def site(local, stand_in):
    """Tasks that start inside and fall back outside, and the other way round; a cell where nobody listens beside one that fails."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        dead = taken.getsockname()[1]
    url = f"http://127.0.0.1:{stand_in.port}"
    tasks = [
        {"name": "inside", "candidates": [{"model": "alpha"}], "fallbacks": ["gpt", "claude"],
         "examples": [f"extract the {what} of this invoice" for what in WORDS]},
        {"name": "outside", "candidates": [{"model": "gpt"}, {"model": "claude"}], "fallbacks": ["beta"],
         "examples": [f"hello, let us talk about {what}" for what in WORDS]},
        {"name": "mixed", "candidates": [{"model": "gpt", "weight": 5}, {"model": "alpha"}], "fallbacks": ["claude", "beta"]},
    ]  # fmt: skip
    return {
        "taught": True,
        "cells": [f"http://127.0.0.1:{dead}", f"http://127.0.0.1:{local.port}"],
        "limits": {"first_byte_timeout_s": 0.2, "connect_timeout_s": 0.5, "idle_timeout_s": 0.5, "total_timeout_s": 5.0},
        "tasks": tasks,
        "default_task": "outside",
        "auto": {"min_precision": 0, "min_coverage": 0},
        "providers": hosted(url),
        "zones": [{"name": "onprem", "teams": ["*"]}, {"name": "hosted", "teams": ["research"]}],
    }


def key_for_research(router):
    create_team(router.engine, "research", ())
    return keys.create(router.engine, "researcher", allowed=Allowed(team="research"))


def asking(number, body):
    """The same conversation for one of the targets in turn, every second one as a stream."""
    name = ("task/inside", "task/outside", "auto", "task/mixed", "gpt", "claude", "alpha")[number % 7]
    stream = b',"stream":true' if number % 2 else b""
    return MODEL.sub(b'"model":\\1"%b"%b' % (name.encode(), stream), body, count=1)


async def send_all(client, requests, connected, read_answer):
    """Sends them over kept-alive connections, many at once; how often which status came, by the first letter of the request's id."""
    statuses = Counter()
    waiting = iter(requests)

    async def one_connection():
        while True:
            async with connected(client.port) as (reader, writer):
                for path, body, headers in waiting:
                    writer.write(client.request(body, path, headers=headers))
                    got = await asyncio.wait_for(read_answer(reader), 30)
                    statuses[headers["x-request-id"][0], got.status] += 1
                    if got.cut or got.headers.get("connection") == "close":
                        break
                else:
                    return

    await asyncio.gather(*(one_connection() for _ in range(AT_ONCE)))
    return statuses


def planted(every=1):
    """Every so many of the conversations with a planted value, declared public."""
    for number, one in enumerate(itertools.islice(canaries.conversations(), 0, None, every)):
        yield one.endpoint, asking(number, one.body), {"inhouse-data-class": "public", "x-request-id": f"planted-{number}"}


def clean(rounds):
    """Conversations with nothing in them under headers that have."""
    number = itertools.count()
    for seed in range(rounds):
        for place, (endpoint, _) in canaries.PLACES.items():
            yield endpoint, asking(next(number), canaries.harmless(seed, place, "plain")), PLANTED_HEADERS


def interleaved(*streams):
    """One of each in turn until all have ended."""
    return (one for group in itertools.zip_longest(*streams) for one in group if one is not None)


@pytest.fixture
def sent(start_router, start_upstream, say, connected, read_answer):
    """Sends planted conversations among clean ones while local models fail, then some more when nothing local listens any more."""

    async def send(*program, every=1):
        local, stand_in = start_upstream(faults(say, 1)), start_upstream(faults(say, 2), records=True)
        router = start_router(program=program, **site(local, stand_in))
        client = type(router.client)(router.port, key_for_research(router))
        statuses = await send_all(client, interleaved(planted(every), clean(32 // every)), connected, read_answer)
        local.close()
        statuses += await send_all(client, interleaved(planted(8 * every), clean(4)), connected, read_answer)
        await client.ask(b"{}")  # the row of the last is written with this one's
        return stand_in, router, statuses

    return send


async def test_no_byte_of_a_planted_conversation_reaches_a_hosted_provider(sent):
    """Over 6,900 conversations with a planted value and 1,300 clean ones with planted headers: no marker is heard outside.

    Streamed or not, by task, `auto` or name, over kept-alive connections, 64 at once, through 503, 500, 429, 529, timeouts, cuts and half
    streams of both sides, with retries and fallbacks, and with all local models gone (AISVS 9.6.3, 9.7.1).
    """
    stand_in, router, statuses = await sent("-m", "routing.server")
    assert stand_in.heard.count(MARK) == 0
    assert PLANTED_HEADERS["traceparent"].encode() not in stand_in.heard
    heard = Counter(seen.model for many in stand_in.seen.values() for seen in many)
    assert heard["gpt"] > 200 and heard["claude"] > 50, heard
    assert statuses["z", 200] > 200 and statuses["p", 200] > 200, statuses
    assert statuses["p", 503] > 700, statuses
    rows = [row for row in router.rows() if row["request_id"].startswith("planted-")]
    assert {row["zone"] for row in rows if row["attempt"]} == {"onprem"}
    assert max(row["attempt"] for row in rows) >= 3


async def test_with_the_checks_taken_out_planted_conversations_are_heard_outside(sent):
    """The same conversations and faults, an eighth of them, through a router without its checks: the proof above can fail."""
    stand_in, _, _ = await sent(UNCHECKED, every=8)
    assert stand_in.heard.count(MARK) > 100
