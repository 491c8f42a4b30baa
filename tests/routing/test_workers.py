"""The router's processes: killed, stopped, several at once."""

import asyncio
import contextlib
import os
import re
import signal
import time
from pathlib import Path

import pytest


def in_group(pgid):
    """Process ids of a process group."""
    out = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            if os.getpgid(int(folder.name)) == pgid:
                out.append(int(folder.name))
    return out


async def served(router, chat, *, within_s=60):
    """Waits until a request is answered, over new connections."""
    async with asyncio.timeout(within_s):
        while True:
            try:
                if (await router.ask(chat())).status == 200:
                    return
            except (ConnectionError, asyncio.IncompleteReadError):
                pass  # nobody listens, or it was killed meanwhile
            await asyncio.sleep(0.05)


async def test_two_workers_start_at_once_on_an_empty_folder(pair, wait_until):
    """Two workers that train, create the database and write the classifier at the same moment all come up."""
    metrics = pair.home / "run" / "metrics"
    wait_until(lambda: sum(b"alpha" in file.read_bytes() for file in metrics.glob("gauge_livemin_*.db")) >= 2, 60)  # both look around
    assert len(pair.workers()) == 2
    assert (await pair.get("/readyz")).json["auto"]["serves"]
    assert "can't start" not in pair.log.read_text()
    assert [file.name for file in (pair.home / "run").glob("classifier*")] == ["classifier.json"]


async def test_killed_workers_are_replaced_again_and_again(start_router, chat, say, wait_until):
    """kill -9 of a worker, and of its successor: callers' connections close, the parent lives, a new worker serves within seconds."""
    router = start_router()
    for wait_s in (1, 0):
        (worker,) = router.workers()
        connection = router.client.open(chat([say.HEAD, ["pace", 10_000, 0.02]], stream=True))
        assert connection.recv(100)
        os.kill(worker, signal.SIGKILL)
        try:
            while connection.recv(65536):
                pass  # what was on its way
        except ConnectionError:
            pass  # a reset is a closed connection, too
        connection.close()
        await served(router, chat)
        assert router.process.poll() is None
        assert router.workers() != [worker]
        await asyncio.sleep(wait_s)


async def test_the_other_worker_serves_while_one_is_killed(pair, chat, wait_until):
    """With two workers requests go on being answered, and there are two again soon; dead workers' gauges are forgotten."""
    first, second = wait_until(lambda: len(found := pair.workers()) == 2 and found)
    os.kill(first, signal.SIGKILL)
    await served(pair, chat)
    wait_until(lambda: len(found := pair.workers()) == 2 and first not in found, 60)
    assert second in pair.workers()
    await served(pair, chat)
    await pair.get("/metrics")
    assert not list((pair.home / "run" / "metrics").glob(f"gauge_live*_{first}.db"))


async def test_metrics_add_up_over_workers(pair, chat, wait_until):
    """The counters of both workers come from either, summed."""

    async def count():
        text = (await pair.get("/metrics")).body.decode()
        found = re.search(r'inhouse_attempts_total\{model="gamma",status="200",task=""\} (\S+)', text)
        return float(found[1]) if found else 0.0

    asked, before = 0, await count()
    async with asyncio.timeout(30):
        while (
            asked < 60 or len(list((pair.home / "run" / "metrics").glob("counter_*.db"))) < 2
        ):  # who takes a connection is the kernel's choice
            await asyncio.gather(*(pair.ask(chat(model="gamma")) for _ in range(30)))
            asked += 30
        while await count() != before + asked:
            await asyncio.sleep(0.1)


async def test_sigterm_drains_and_loses_nothing(start_router, chat, say, wait_until):
    """Asked to stop under load, the router ends its open streams properly, writes every answered request's row and leaves no process."""
    router = start_router()
    answered = []

    async def keep_asking():
        for _ in range(500):
            asked = chat()
            try:
                if (await router.ask(asked, headers={"x-request-id": asked["tag"]})).status == 200:
                    answered.append(asked["tag"])
            except (ConnectionError, asyncio.IncompleteReadError):
                return

    slow = chat([say.HEAD, ["pace", 30, 0.05], ["chunk", say.DONE], ["end"]], stream=True)
    streaming = asyncio.create_task(router.ask(slow, headers={"x-request-id": slow["tag"]}))
    load = [asyncio.create_task(keep_asking()) for _ in range(8)]
    await asyncio.sleep(0.7)
    router.process.send_signal(signal.SIGTERM)
    got = await streaming
    await asyncio.gather(*load)
    assert got.body.endswith(b"data: [DONE]\n\n")
    code = await asyncio.to_thread(router.process.wait, 20)
    assert code == 0
    rows = {row["request_id"]: row["status"] for row in router.rows()}
    assert rows[slow["tag"]] == 200
    assert len(answered) > 20
    assert [one for one in answered if rows.get(one) != 200] == []
    wait_until(lambda: in_group(router.process.pid) == [])


async def test_a_kill_of_a_worker_loses_at_most_the_last_moment_of_the_ledger(start_router, chat):
    """After kill -9 under load the rows of all but the last second are there."""
    router = start_router()
    answered = []
    is_killed = asyncio.Event()
    (worker,) = router.workers()

    async def keep_asking():
        while not is_killed.is_set():  # who asks just after it waits in the socket's queue for the next worker, and sees no error
            asked = chat()
            try:
                await router.ask(asked, headers={"x-request-id": asked["tag"]})
            except (ConnectionError, asyncio.IncompleteReadError):
                return
            answered.append((time.time(), asked["tag"]))

    load = [asyncio.create_task(keep_asking()) for _ in range(4)]
    async with asyncio.timeout(20):
        while len(answered) < 20 or time.time() - answered[10][0] < 1.2:
            await asyncio.sleep(0.05)
    os.kill(worker, signal.SIGKILL)
    killed = time.time()
    is_killed.set()
    await asyncio.gather(*load)
    rows = {row["request_id"] for row in router.rows()}
    old = [tag for at, tag in answered if at < killed - 1]
    assert old
    assert [tag for tag in old if tag not in rows] == []


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
async def test_an_idle_router_stops_at_once(start_router, stop, wait_until):
    """Either signal ends an idle router in seconds, with nothing left behind."""
    router = start_router()
    router.process.send_signal(stop)
    await asyncio.to_thread(router.process.wait, 10)
    wait_until(lambda: in_group(router.process.pid) == [])


async def test_a_database_that_is_away_does_not_stop_answers(start_router, chat, tag):
    """While the ledger can't be written requests are answered and `/readyz` says so; the rows arrive afterwards."""
    router = start_router()
    with router.engine.begin() as connection:
        connection.exec_driver_sql("alter table ledger rename to away")
    assert (await router.ask(chat(), headers={"x-request-id": tag})).status == 200
    async with asyncio.timeout(5):
        while (await router.get("/readyz")).json["ledger"] == "ok":
            await asyncio.sleep(0.05)
    with router.engine.begin() as connection:
        connection.exec_driver_sql("alter table away rename to ledger")
    assert router.rows(tag, n=1)[0]["status"] == 200
    async with asyncio.timeout(5):
        while (await router.get("/readyz")).json["ledger"] != "ok":
            await asyncio.sleep(0.05)


async def test_a_worker_that_dies_while_a_wrong_file_is_there_comes_back_with_the_right_one(pair, chat, wait_until):
    """Its successor can't start; the other worker answers all the while, and both are there again once the file is put right."""
    routes = pair.home / "routes.yaml"
    right = routes.read_text()
    first, second = wait_until(lambda: len(found := pair.workers()) == 2 and found)
    await asyncio.sleep(pair.started + 21 - time.monotonic())  # it has settled: at its first start a wrong file ends it
    routes.write_text("tasks: nonsense")
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: "a worker ended (3)" in pair.log.read_text(), 60)
    await served(pair, chat)
    assert pair.process.poll() is None and second in pair.workers()
    routes.write_text(right)
    wait_until(lambda: len(found := pair.workers()) == 2 and first not in found and second in found, 60)
    await served(pair, chat)
