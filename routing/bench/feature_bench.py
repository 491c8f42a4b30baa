"""`inhouse bench features`: what each thing that the router does for a request costs by itself, with the router's own functions.

CPU time of one thread, without sockets: what is left of a request's CPU is reading HTTP, relaying and the kernel.
"""

import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from routing.audit import Entry
from routing.batch import stand_back
from routing.bench import peers
from routing.bench.driver import PATH, chat
from routing.bench.processes import Weather, machine, run_json
from routing.bench.report import Grid, Range, Report
from routing.chain import Chain, place_of
from routing.detect import find
from routing.holds import Ask
from routing.house import House
from routing.ledger import Ledger, Row
from routing.loops import find_loop
from routing.plan import open_house
from routing.policy import About, may_leave, permitted
from routing.request import ENDPOINTS, read_asked
from routing.settings import Settings
from routing.upstream import Pool
from routing.worst import worst_of

_TIMES = 2_000
_LOOKS = 300
_ROUNDS = 7
_HELD = 700
_BATCH = 256  # rows that a busy worker writes at once: 50 ms at 5,000 requests a second


def run(say: Callable[[str], None], *, body_bytes: int = 1024) -> Report:
    """Times each feature on a chat request of that size, over an SQLite home of its own, in a process that is set up as a worker is."""
    before = Weather.now()
    with TemporaryDirectory(prefix="inhouse-bench-") as folder:
        gateway = peers.router(Path(folder), 9)  # nothing is sent there
        metrics = Path(folder) / "metrics"
        metrics.mkdir()
        env = gateway.env | {"PROMETHEUS_MULTIPROC_DIR": str(metrics)}
        key = gateway.headers["authorization"].removeprefix("Bearer ")
        say("timing one thing after the other")
        told = run_json(["env", *(f"{name}={value}" for name, value in env.items()), sys.executable, "-m", "routing.bench.feature_bench"],
                        json.dumps([key, chat(gateway.model, body_bytes=body_bytes)]).encode())  # fmt: skip
    timed = {name: Range(*us) for name, us in json.loads(told).items()}
    weather = Weather.now().since(before)
    data = {"machine": {**machine(), **weather}, "body_bytes": body_bytes, "us": {name: us._asdict() for name, us in timed.items()}}
    notes = [f"load average {weather['load_before']}; CPU time of the thread that does it; median (least-most) of {_ROUNDS} rounds"]
    return Report("features", data, [Grid(f"a {body_bytes} byte chat request", ["", "us CPU"], list(timed.items()))], notes)


async def _measure(key: bytes, body: bytes) -> dict[str, Range]:
    house, _ = open_house(Settings.from_environment(), Pool())
    try:
        await house.purse.start()
        return await _time_house(house, key, body) | await _time_run(house, key) | _time_threads(house)
    finally:
        await house.purse.close()
        house.ledger.close()
        house.audit.close()
        house.engine.dispose()


async def _time_house(house: House, key: bytes, body: bytes) -> dict[str, Range]:
    plan, endpoint = house.plan, ENDPOINTS[PATH]
    caller, asked = house.keys.identify(key), read_asked(endpoint, body, json_depth=64, media_domains=())
    (task,) = plan.site.tasks
    targets = plan.fleet.for_task(plan.site.tasks[task])
    target, accounts = targets[0], house.accounts_of(caller, task, None)
    label = plan.policy.ladder.default

    def decide() -> None:
        about = About(caller.name, caller.team, caller.tasks, caller.models, task, label, PATH, False)
        permitted(plan.policy, about, targets)
        may_leave(plan.policy, about, model=target.model, zone=target.zone)

    def ask() -> Ask:
        worst = worst_of(asked, target.context)
        return Ask(accounts, worst.prompt_tokens, worst.max_tokens, target.price, "bench", 1, worst.answers)

    def reserve() -> None:
        hold = house.purse.try_reserve(ask())
        assert hold is not None, "the worker holds more than one call needs"
        house.purse.left(accounts)
        hold.settle(210, 64, exact=True)

    timed = {
        "the key": _time(lambda: house.keys.identify(key)),
        "reading and checking the body": _time(lambda: read_asked(endpoint, body, json_depth=64, media_domains=())),
        "detectors, nothing found": _time(lambda: find(body, others=plan.detectors)),
        "circles of agents, nothing found": _time(lambda: find_loop(body)),
        "policy, chosen and at the door": _time(decide),
        "only with a batch key: its priority in the body": _time(lambda: stand_back(asked, body)),
    }
    for hold in [await house.purse.reserve(ask()) for _ in range(_HELD)]:
        hold.release()  # now the worker's allotment is enough for what follows, as the loop does not run meanwhile
    return timed | {f"budgets, {len(accounts)} accounts: worst case, hold, settle, header": _time(reserve, times=_HELD // _ROUNDS)}


async def _time_run(house: House, key: bytes) -> dict[str, Range]:
    """What a call of a run costs more, before it is reserved: a look at the database, in a thread, for what other workers learnt of it."""
    caller = house.keys.identify(key).name
    given = (await house.runs.create(caller, b""))["id"]
    await house.runs.find(given, caller)
    samples = []
    for _ in range(_ROUNDS):
        began = time.process_time()
        for _ in range(_LOOKS):
            await house.runs.look()
            house.runs.known(given, caller)
        samples.append((time.process_time() - began) / _LOOKS * 1e6)
    found = Range.of(samples)
    assert found is not None, "there are rounds"
    return {"only for a run: its state, from the database": found}


def _time_threads(house: House) -> dict[str, Range]:
    """What is written for each request, a batch at a time, in a thread."""
    now = time.time()
    rows = [Row(now, f"{i:024x}", 1, "ihk_bench", "bench", PATH, "bench", "mock", "task named", 200, "", 210, 64, True, 3.2, 4.5, "bench",
                "", "internal", "onprem", 3200, 4, "0" * 64, "0" * 12) for i in range(_BATCH)]  # fmt: skip
    entries = [Entry(now, "decision", "bench", PATH, "allow", row.request_id, "", "bench", "bench", "", "internal", "", "task named",
                     "0" * 64, "0" * 12) for row in rows]  # fmt: skip
    chain = Chain(place_of(Settings.from_environment().home))

    def write() -> None:
        ledger = Ledger(house.engine)
        for row in rows:
            ledger.append(row)
        ledger.close()

    return {
        "ledger, in its thread": _time(write, times=1, each=_BATCH, clock=time.process_time),
        "audit log, in its thread": _time(lambda: chain.append(entries), times=1, each=_BATCH),
        "metrics, in its thread": _time(lambda: house.metrics.observe(rows), times=1, each=_BATCH),
    }


def _time(call: Callable[[], object], *, times: int = _TIMES, each: int = 1, clock: Callable[[], float] = time.thread_time) -> Range:
    """Microseconds of CPU for one request, of which a call does `each`."""
    samples = []
    for _ in range(_ROUNDS):
        began = clock()
        for _ in range(times):
            call()
        samples.append((clock() - began) / times / each * 1e6)
    found = Range.of(samples)
    assert found is not None, "there are rounds"
    return found


if __name__ == "__main__":
    given_key, given_body = json.load(sys.stdin)
    json.dump(asyncio.run(_measure(given_key.encode(), given_body.encode())), sys.stdout)
