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

UNCHECKED = (str(Path(__file__).with_name("unchecked_router.py")),)
MODEL = re.compile(rb'"model":( ?)"auto"')
AT_ONCE = 32
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
        [["head", 429, {"retry-after": "1", "content-length": 0}]],
        half,
        [["cut"]],
        fine,
        [["head", 200, {"content-type": "application/json", "content-length": 50}], ["raw", "e30="], ["close"]],
        [["head", 500, {"content-length": 0}]],
        fine,
        [["head", 529, {"content-type": "application/json", "content-length": 2}], ["raw", "e30="]],
    ]
    random.Random(seed).shuffle(bad)
    turn = itertools.cycle(bad)

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
        "limits": {"first_byte_timeout_s": 0.4, "connect_timeout_s": 0.5, "idle_timeout_s": 0.5, "total_timeout_s": 5.0},
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
    """Sends them over kept-alive connections, many at once; how often which status came."""
    statuses = Counter()
    waiting = iter(requests)

    async def one_connection():
        while True:
            async with connected(client.port) as (reader, writer):
                for path, body, headers in waiting:
                    writer.write(client.request(body, path, headers=headers))
                    try:
                        got = await asyncio.wait_for(read_answer(reader), 30)
                    except (asyncio.IncompleteReadError, ConnectionError):
                        statuses["closed"] += 1
                        break
                    statuses[got.status] += 1
                    if got.cut or got.headers.get("connection") == "close":
                        break
                else:
                    return

    await asyncio.gather(*(one_connection() for _ in range(AT_ONCE)))
    return statuses


def planted(many):
    for number, one in enumerate(itertools.islice(canaries.conversations(), many)):
        yield one.endpoint, asking(number, one.body), {"inhouse-data-class": "public"}


def clean(seeds):
    number = itertools.count()
    for seed in range(seeds):
        for place, (endpoint, _) in canaries.PLACES.items():
            yield endpoint, asking(next(number), canaries.harmless(seed, place, "plain")), PLANTED_HEADERS


def interleaved(*streams):
    """One of each in turn until all have ended."""
    return (one for group in itertools.zip_longest(*streams) for one in group if one is not None)


async def everything_sent(start_router, start_upstream, say, sender, program):
    """What came of all conversations, and the stand-in that heard what left."""
    local, stand_in = start_upstream(faults(say, 1)), start_upstream(faults(say, 2), records=True)
    router = start_router(program=program, **site(local, stand_in))
    client = type(router.client)(router.port, key_for_research(router))
    return stand_in, router, await sender(client, local)


@pytest.fixture
def sender(connected, read_answer):
    """Sends every planted conversation among clean ones while local models fail, then some more when nothing local listens any more."""

    async def send(client, local, many=6156):
        failing = await send_all(client, interleaved(planted(many), clean(60)), connected, read_answer)
        local.close()
        down = await send_all(client, interleaved(planted(many // 8), clean(4)), connected, read_answer)
        return failing, down

    return send


async def test_no_byte_of_a_planted_conversation_reaches_a_hosted_provider(start_router, start_upstream, say, sender):
    """Over 6,900 conversations with a planted value and 2,400 clean ones with planted headers: no marker is heard outside (AISVS 9.6.3, 9.7.1).

    Streamed or not, by task, `auto` or name, over kept-alive connections, 32 at once, through 503, 500, 429, 529, timeouts, cuts and half
    streams of both sides, with retries and fallbacks, and with all local models gone.
    """
    stand_in, router, outcomes = await everything_sent(start_router, start_upstream, say, sender, ("-m", "routing.server"))
    print(outcomes, len(stand_in.heard), Counter(seen.model for many in stand_in.seen.values() for seen in many))
