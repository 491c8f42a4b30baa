"""Requests of nobody we know are in the audit log: what was wrong and whose key it was, never the key, and no more of them than seconds."""

import asyncio
import json

import inhouse
from routing import keys
from routing.errors import Unauthorized
from routing.strangers import Strangers


def entries(home):
    """The audit log's entries of strangers: (who, why)."""
    lines = [json.loads(line) for path in (home / "state" / "audit").glob("audit-*.jsonl") for line in path.read_text().splitlines()]
    return [(line.get("who", ""), line["why"]) for line in lines if line["what"] == "identify"]


def refused(cause, who=""):
    error = Unauthorized("no")
    error.cause, error.who = cause, who
    return error


def test_a_flood_is_a_line_a_second():
    """A hundred thousand requests within three seconds are three entries whose counts add up; causes beyond twenty are told together."""
    told = []
    strangers = Strangers(told.append)
    for i in range(100_000):
        strangers.saw(refused("unknown key"))
        strangers.tell(1000.0 + i * 3e-5)
    strangers.tell(1003.5)
    assert 3 <= len(told) <= 4 and sum(int(one.why.split(", ")[1].split()[0]) for one in told) == 100_000
    told.clear()
    for i in range(500):
        strangers.saw(refused(f"expired key {i}", f"caller-{i}"))
    strangers.tell(1003.6)
    assert told == []
    strangers.tell(1003.6, at_once=True)
    assert len(told) == 21 and told[-1].why == "others, 480 requests"


async def test_who_was_refused_is_in_the_log_and_no_key_is(toll, make_caller, chat, wait_until):
    """No key, an unknown, a revoked and an expired one: 401 each, and an entry each, with the caller where the key was one of ours
    (AISVS C9.4: refusals are recorded)."""
    (gone, revoked), (late, expired) = await make_caller(), await make_caller()
    expired.key = await asyncio.to_thread(lambda: keys.create(toll.engine, late, lifetime_s=0.001))
    assert (await revoked.ask(chat(max_tokens=5))).status == 200
    assert keys.revoke(toll.engine, revoked.key[:12])
    shown = ["", "ihk_" + "x" * 43, revoked.key, expired.key]
    for key in shown:
        revoked.key = key
        async with asyncio.timeout(30):
            while (await revoked.ask(chat(max_tokens=5))).status != 401:  # a worker may know the revoked one for a moment
                await asyncio.sleep(0.05)
    want = {("", "no key"), ("", "unknown key"), (gone, f"revoked key {shown[2][:12]}"), (late, f"expired key {shown[3][:12]}")}
    await asyncio.to_thread(wait_until, lambda: want <= causes(entries(toll.home)))
    log = "".join(path.read_text() for path in (toll.home / "state" / "audit").glob("audit-*.jsonl"))
    assert not any(key[13:] in log for key in shown if key)


def causes(found):
    return {(who, why.split(",")[0]) for who, why in found}


def test_the_first_key_is_in_the_log(tmp_path):
    """What `inhouse up` makes at its first start is recorded as if it had been asked for by command, and only then."""
    file = inhouse._first_key(tmp_path)
    assert inhouse._first_key(tmp_path).read_text() == file.read_text()
    log = "".join(path.read_text() for path in (tmp_path / "state" / "audit").glob("audit-*.jsonl"))
    acts = [(json.loads(line)["what"], json.loads(line)["outcome"]) for line in log.splitlines()]
    assert acts == [("up keys create name=first-key", "asked"), ("up keys create name=first-key", "done")]
    assert file.read_text().strip()[13:] not in log
