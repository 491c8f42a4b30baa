"""The configuration of a running router: changed files and SIGHUP are taken in, what can't be used is not, and no caller notices."""

import asyncio
import json
import shutil
import signal
from collections import Counter

import pytest

from routing.policy import SHIPPED

PRICE = {"usd_per_million_input_tokens": 1, "usd_per_million_output_tokens": 2, "as_of": "2026-11-01", "source": "x"}


@pytest.fixture(scope="module")
def house(start_router, upstream, tmp_path_factory):
    """A router with policies of its own and a provider whose key is in a file."""
    key = tmp_path_factory.mktemp("secrets") / "key"
    key.write_text("first-key")
    policies = tmp_path_factory.mktemp("site") / "policies"
    shutil.copytree(SHIPPED, policies)
    provider = {"name": "gpt-house", "url": f"http://127.0.0.1:{upstream.port}/models/gpt", "key_file": str(key),
                "models": [{"name": "gpt", "price": PRICE, "context": 4096}]}  # fmt: skip
    zones = [{"name": "onprem", "teams": ["*"]}, {"name": "hosted", "teams": ["*"]}]
    made = start_router(policies=str(policies), providers=[provider], zones=zones)
    made.extra.update(key=key, policies=policies, routes=made.home / "routes.yaml", models=made.home / "models.yaml")
    return made


async def config_of(house):
    return (await house.get("/readyz")).json["config"]


async def in_force(house, claim, within_s=30.0):
    """What /readyz says of the configuration, once the claim is true of it."""
    async with asyncio.timeout(within_s):
        while not claim(told := await config_of(house)):
            await asyncio.sleep(0.1)
    return told


async def change(house, name, edit):
    """Edits one of the files in place and waits until the new version is in force; that version."""
    before = (await config_of(house))["version"]
    path = house.extra[name]
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    return (await in_force(house, lambda config: config["version"] != before and not config["not_taken"]))["version"]


async def answered_by(house, chat, model, n=6):
    return Counter([(await house.ask(chat(model=model))).headers.get("inhouse-model") for _ in range(n)])


async def test_a_new_task_is_served_and_a_running_stream_goes_on(house, chat, say, tag):
    """The stream that began before the change ends as it would have, each row carries the version that it was decided by."""
    before = (await config_of(house))["version"]
    stream = asyncio.create_task(
        house.ask(chat([say.HEAD, ["pace", 60, 0.1], ["chunk", say.DONE], ["end"]], stream=True), headers={"x-request-id": f"{tag}-old"})
    )
    assert (await house.ask(chat(model="task/fresh"))).status == 404
    after = await change(house, "routes", lambda routes: routes["tasks"].append({"name": "fresh", "candidates": [{"model": "gamma"}]}))
    assert (await house.ask(chat(model="task/fresh"), headers={"x-request-id": f"{tag}-new"})).headers["inhouse-model"] == "gamma"
    got = await stream
    assert not got.cut and got.body.count(b"data: ") == 61 and got.body.endswith(b"data: [DONE]\n\n")
    assert house.rows(f"{tag}-old", n=1)[0]["config_version"] == before
    assert house.rows(f"{tag}-new", n=1)[0]["config_version"] == after


async def test_changed_weights_and_prices_count(house, chat):
    """Traffic follows the weights, and a call costs what models.yaml says now, as `/v1/models` does; it says none where time is paid."""
    split = [{"model": "alpha", "weight": 1}, {"model": "beta", "weight": 0}]
    await change(house, "routes", lambda routes: routes["tasks"].append({"name": "split", "candidates": split}))
    assert await answered_by(house, chat, "task/split") == {"alpha": 6}
    split = [{"model": "alpha", "weight": 0}, {"model": "beta", "weight": 1}]
    await change(house, "routes", lambda routes: routes["tasks"][-1].update(candidates=split))
    assert await answered_by(house, chat, "task/split") == {"beta": 6}
    price = {"usd_per_million_input_tokens": 1e5, "usd_per_million_output_tokens": 0}
    await change(house, "models", lambda models: models["models"][2].update(price=price))
    assert (await house.ask(chat(model="gamma"))).headers["inhouse-cost-usd"] == "0.7"
    assert (await house.get("/v1/models/gamma")).json["price"] == price
    assert (await house.get("/v1/models/alpha")).json["price"] == {}


async def test_a_changed_budget_counts_at_once(house, chat):
    """Raised, lowered and taken away; what was spent stays spent."""
    task = {"name": "paid", "candidates": [{"model": "alpha"}], "budgets": ["2calls/total"]}
    await change(house, "routes", lambda routes: routes["tasks"].append(task))

    async def _statuses(n):
        return [(await house.ask(chat(model="task/paid"))).status for _ in range(n)]

    assert await _statuses(4) == [200, 200, 402, 402]
    await change(house, "routes", lambda routes: routes["tasks"][-1].update(budgets=["5calls/total"]))
    assert await _statuses(6) == [200, 200, 200, 402, 402, 402]
    await change(house, "routes", lambda routes: routes["tasks"][-1].update(budgets=[]))
    assert await _statuses(4) == [200] * 4
    await change(house, "routes", lambda routes: routes["tasks"][-1].update(budgets=["1calls/total"]))
    assert await _statuses(4) == [402] * 4


async def test_a_changed_policy_counts_and_its_hash_is_told(house, chat, tag):
    """A policy file that is added is in force, its hash at /readyz and in the ledger, and its removal, too."""
    before = await config_of(house)
    rule = house.extra["policies"] / "mine.cedar"
    rule.write_text('@id("mine") @says("not today") forbid (principal, action, resource) when { resource.model == "beta" };')
    after = await in_force(house, lambda config: config["policy"] != before["policy"])
    assert after["version"] != before["version"]
    got = await house.ask(chat(model="beta"), headers={"x-request-id": tag})
    assert (got.status, "`mine`: not today" in got.error["message"]) == (403, True)
    assert house.rows(tag, n=1)[0]["policy_hash"] == after["policy"]
    rule.unlink()
    assert await in_force(house, lambda config: config["policy"] == before["policy"])
    assert (await house.ask(chat(model="beta"))).status == 200


async def test_a_providers_new_key_is_used(house, upstream, chat):
    """A key file that is changed, or replaced by another, needs no restart."""
    for key in ("second-key", "third-key!"):
        new = house.extra["key"].with_suffix(".new")
        new.write_text(key)
        new.rename(house.extra["key"])
        used = set()
        async with asyncio.timeout(30):
            while f"Bearer {key}" not in used:
                asked = chat(model="gpt", tag="key")  # a made-up tag may look like a card's number, which never leaves
                assert (await house.ask(asked)).status == 200
                used.add(upstream.seen["key"][-1].header("authorization"))


WRONG = {
    "not YAML": ("routes", b"{tasks: ["),
    "not UTF-8": ("routes", b"default_task: \xff\xfe"),
    "empty": ("routes", b""),
    "a list": ("models", b"[1, 2]"),
    "a number too large": ("routes", b'{"default_task": "chat", "tasks": [], "limits": {"idle_timeout_s": 1e999}}'),
    "nested without end": ("routes", b"[" * 100_000),
    "an anchor of itself": ("routes", b"&a [*a]"),
    "an unpriced model": ("models", b'{"models": [{"name": "alpha", "path": ".", "license": "x"}]}'),
    "a model gone": ("models", b'{"models": [{"name": "alpha", "path": ".", "license": "x", "price": {"usd_per_gpu_hour": 1}}]}'),
    "no Cedar": ("rule", b"permit everything"),
    "Cedar that is not UTF-8": ("rule", b"// \xff"),
    "an empty key": ("key", b"\n"),
    "a key of two lines": ("key", b"one\r\nx-evil: two"),
}


@pytest.mark.parametrize("wrong", WRONG)
async def test_a_wrong_file_is_not_taken_and_readyz_says_why(house, chat, wrong):
    """The version before stays in force, requests are answered, and with the file put right nothing is left of it."""
    house.extra["rule"] = house.extra["policies"] / "zz.cedar"
    name, content = WRONG[wrong]
    path = house.extra[name]
    good = path.read_bytes() if path.exists() else None
    before = await config_of(house)
    path.write_bytes(content)
    try:
        told = await in_force(house, lambda config: config["not_taken"])
        assert {**told, "not_taken": ""} == before
        assert path.name in told["not_taken"] or wrong == "a model gone"
        assert "x-evil" not in told["not_taken"]
        assert (await house.ask(chat(model="task/chat"))).status == 200
    finally:
        path.unlink() if good is None else path.write_bytes(good)
    assert await in_force(house, lambda config: config == before)


@pytest.mark.parametrize("name", ["routes", "models", "key", "policies"])
async def test_a_file_that_is_gone_or_a_folder_is_not_taken(house, chat, name):
    """A file deleted, or replaced by a folder, is a wrong one; moved back it is the right one again."""
    before = await config_of(house)
    path = house.extra[name]
    path.rename(path.with_suffix(".aside"))
    await in_force(house, lambda config: path.name in config["not_taken"])
    path.mkdir()
    await asyncio.sleep(1.5)  # it is looked at
    assert path.name in (await config_of(house))["not_taken"]
    assert (await house.ask(chat(model="task/chat"))).status == 200
    path.rmdir()
    path.with_suffix(".aside").rename(path)
    await in_force(house, lambda config: config == before)


async def test_sighup_reads_all_files_in_all_workers_and_ends_nothing(pair, chat, say, wait_until):
    """The signal to the router's own process reaches each worker; a stream goes on and no worker is started anew."""

    def _told(n):
        return wait_until(lambda: pair.log.read_text().count("is in force") >= n, 60)

    wait_until(lambda: len(pair.workers()) == 2, 60)
    workers = pair.workers()
    _told(2)
    told = pair.log.read_text().count("is in force")
    stream = asyncio.create_task(pair.ask(chat([say.HEAD, ["pace", 30, 0.1], ["chunk", say.DONE], ["end"]], stream=True)))
    await asyncio.sleep(0.1)
    pair.process.send_signal(signal.SIGHUP)
    await asyncio.to_thread(_told, told + 2)
    got = await stream
    assert not got.cut and got.body.endswith(b"data: [DONE]\n\n")
    assert pair.workers() == workers
