"""A team with a dollar a day, agents in eight processes that ask in every way there is, plugs that are pulled, and the bill.

OWASP AISVS C9.1.1 (budgets hold), C9.1.3 (also for all together).
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import func, select

import inhouse
from routing import teams
from routing.budgets import NANOUSD, budgets_of
from routing.store import LEDGER

AGENT = Path(__file__).parent / "agent.py"
WORST = 60_000_000  # nano-USD: more than any of these calls is reserved for
HELLO = [{"role": "user", "content": "hi"}]
USAGE = {"prompt_tokens": 500, "completion_tokens": 20, "total_tokens": 520}
OTHER_USAGE = {"input_tokens": 500, "output_tokens": 20, "total_tokens": 520}


def ways(say):
    """Requests of every kind, each with what the model does; a whole answer costs 0.0104 dollars."""
    whole, other = say.answer({"choices": [], "usage": USAGE}), say.answer({"usage": OTHER_USAGE})
    stream = say.stream(*say.words(20), say.event({"choices": [], "usage": USAGE}), say.DONE)
    slow = [say.HEAD, ["pace", 200, 0.02], ["end"]]
    cut = [say.HEAD, *(["chunk", word] for word in say.words(5)), ["sleep", 0.01], ["cut"]]
    down = {"alpha": [["head", 503, {"content-length": 0}]], "beta": whole, "gamma": whole}

    def _ask(what, path, script, leave=0, **body):
        return {"what": what, "path": f"/v1/{path}", "leave": leave, "body": {"model": "alpha", "script": script, **body}}

    return [
        _ask("whole", "chat/completions", whole, messages=HELLO, max_tokens=50),
        _ask("stream", "chat/completions", stream, messages=HELLO, max_tokens=50, stream=True),
        _ask("embeddings", "embeddings", say.answer({"data": [], "usage": {"prompt_tokens": 500, "total_tokens": 500}}), input="hi"),
        _ask("responses", "responses", other, input="hi", max_output_tokens=50),
        _ask("messages", "messages", other, messages=HELLO, max_tokens=50),
        _ask("left", "chat/completions", slow, leave=80, messages=HELLO, max_tokens=200, stream=True),
        _ask("cut", "chat/completions", cut, messages=HELLO, max_tokens=50, stream=True),
        _ask("fallback", "chat/completions", down, model="task/extraction", messages=HELLO, max_tokens=50),
        _ask("completions", "completions", whole, prompt="hi", max_tokens=50),
        _ask("long", "chat/completions", whole, messages=HELLO),
    ]


@pytest.fixture
async def team(toll, make_caller):
    """A new team with a dollar a day, and two callers in it."""
    name = f"team-{uuid.uuid4().hex[:8]}"
    teams.create_team(toll.engine, name, budgets_of(["1usd/day"]))
    return name, [(await make_caller("400calls/day", team=name))[1] for _ in range(2)]


def shop(toll, say, callers, *, meanwhile=None):
    """The tasks of eight agents, each of which ends when it was refused three times, and of what happens to them meanwhile."""
    requests = ways(say)
    agents = []
    for i in range(8):
        words = [sys.executable, "-S", AGENT, str(toll.port), callers[i % 2].key]
        asked = json.dumps(requests[i:] + requests[:i])
        run = asyncio.to_thread(subprocess.run, words, input=asked, capture_output=True, text=True, check=True)
        agents.append(asyncio.create_task(run))
    if meanwhile is not None:
        agents.append(asyncio.create_task(meanwhile()))
    return agents


def row_sums(toll, team):
    """(cost, rows) of the team in the ledger."""
    with toll.engine.connect() as connection:
        return tuple(map(int, connection.execute(select(func.coalesce(func.sum(LEDGER.c.cost_nanousd), 0), func.count())
                                                 .where(LEDGER.c.team == team)).one()))  # fmt: skip


async def watched(agents, books):
    """What the agents told, once all are done; meanwhile no account of the team or its callers may be overdrawn, at any look."""
    looks = 0
    while not all(agent.done() for agent in agents):
        for kind in ("team", "caller"):
            for spent, held, most in await asyncio.to_thread(books, kind):
                assert spent >= 0 and held >= 0 and spent + held <= most
        looks += 1
        await asyncio.sleep(0.02)
    assert looks > 5
    return [one for agent in agents if (told := agent.result()) is not None for one in json.loads(told.stdout)]


async def settled(toll, books, name, client, *, asking=False):
    """Waits until nothing is held by the team any more; (spent, cost in the ledger)."""
    deadline = time.monotonic() + 40
    while True:
        ((spent, held, _),) = await asyncio.to_thread(books, "team", name)
        cost, _ = row_sums(toll, name)
        if not held and (asking or spent == cost):
            return spent, cost
        assert time.monotonic() < deadline, (spent, held, cost)
        if asking:  # what the dead hold returns when somebody wants it
            await client.ask({"model": "alpha", "messages": HELLO})
        await asyncio.sleep(0.2)


async def test_eight_agents_spend_a_dollar_and_no_more(toll, upstream, say, team, books):
    """Whatever they ask and however it ends, no look finds the dollar overdrawn; at the end books, ledger and `inhouse usage` agree to
    the nano-dollar; who is refused is told what is left and when it renews, and no model hears of it."""
    name, callers = team
    told = await watched(shop(toll, say, callers), books)
    refused = [one for one in told if one["status"] == 402]
    assert len(refused) >= 24
    for one in refused:
        error = one["error"]
        assert error["type"] == ("billing_error" if one["path"] == "/v1/messages" else "budget_exceeded")
        assert one["path"] == "/v1/messages" or error["code"] == "budget_exceeded"
        assert f"the budget of team `{name}` is 1usd/day" in error["message"] and "left" in error["message"]
        assert "It renews at 20" in error["message"]
    fallback_refused = {one["tag"] for one in refused if one["what"] == "fallback"}  # its first model may have been asked
    assert not {one["tag"] for one in refused} - fallback_refused & upstream.seen.keys()
    answered = {one["what"] for one in told if one["status"] == 200}
    assert answered == {one["what"] for one in ways(say)}
    assert all(one["left"].endswith(("usd/day", "calls/day")) for one in told if one["status"] == 200)
    spent, cost = await settled(toll, books, name, callers[0])
    assert spent == cost and 0.7 * NANOUSD < spent <= NANOUSD
    shown = CliRunner().invoke(inhouse.main, ["usage", "--by", "team", "--json", "--home", str(toll.home)],
                               env={"INHOUSE_DATABASE": toll.extra["place"].url})  # fmt: skip
    (line,) = [line for line in json.loads(shown.output) if line["team"] == name]
    assert line["cost_nanousd"] == spent
    assert line["refused"] >= len(refused) - len(fallback_refused)


async def test_a_killed_worker_takes_nothing_with_it(toll, upstream, say, team, books):
    """kill -9 of a worker while eight agents ask: no look finds the dollar overdrawn, what it held comes back, and the bill lacks at most
    what ended in its last moment."""
    name, callers = team
    killed = []

    async def _kill():
        while row_sums(toll, name)[1] < 25:
            await asyncio.sleep(0.02)
        os.kill(toll.workers()[0], signal.SIGKILL)
        killed.append(time.time())

    told = await watched(shop(toll, say, callers, meanwhile=_kill), books)
    spent, cost = await settled(toll, books, name, callers[0], asking=True)
    assert spent <= NANOUSD
    rows = {row["request_id"]: row for row in toll.rows() if row["team"] == name}
    lost = [one["tag"] for one in told if one["tag"] in upstream.seen and one["tag"] not in rows]
    last = [row for row in rows.values() if killed[0] - 1 < row["at"] + row["total_ms"] / 1e3 < killed[0] + 0.1]
    assert abs(spent - cost) <= WORST * (len(lost) + len(last))
    assert len(lost) <= 8 * 3, "eight agents ask one after another: what was under way, and what ended a moment before"
