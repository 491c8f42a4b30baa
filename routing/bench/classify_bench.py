"""`inhouse bench classify`: what telling the task costs, and what all of our own Python costs for one request, with no socket in sight."""

import asyncio
import time
from collections.abc import Callable
from itertools import cycle, islice
from pathlib import Path
from tempfile import TemporaryDirectory

from routing import keys, router
from routing.bench.driver import chat
from routing.bench.plan import Times
from routing.bench.processes import Weather, machine
from routing.bench.report import Grid, Report
from routing.config import SHIPPED, read_site
from routing.house import House
from routing.plan import open_house
from routing.router import Request
from routing.settings import Settings
from routing.tasks import Classifier, load_or_train
from routing.upstream import Answer, Origin, Pool, Timeouts
from serving.catalog import SHIPPED as SHIPPED_MODELS
from serving.catalog import read_catalog

_BODY = (b'{"id":"chatcmpl-1","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"All is well."},'
         b'"finish_reason":"stop"}],"usage":{"prompt_tokens":210,"completion_tokens":64,"total_tokens":274}}')  # fmt: skip
_TIMES = 5_000
_PER_REQUEST = 2_000


class _Instant(Answer):
    """An answer that is there at once."""

    def __init__(self, pool: Pool, origin: Origin) -> None:
        super().__init__(pool, origin)
        self.status = 200
        self.headers = [(b"content-type", b"application/json")]

    async def body(self, limit: int) -> bytes:
        return _BODY

    def release(self) -> None:
        pass


class _NoSockets(Pool):
    """Where models answer at once, for nothing."""

    async def send(self, origin: Origin, request: bytes, timeouts: Timeouts) -> Answer:
        return _Instant(self, origin)


def run(say: Callable[[str], None], *, routes: Path = SHIPPED, models: Path = SHIPPED_MODELS) -> Report:
    """Times the classifier on the examples of `routes`, and the router's Python."""
    site = read_site(routes, read_catalog(models))
    texts = [example for task in site.routes.tasks for example in task.examples]
    with TemporaryDirectory(prefix="inhouse-bench-") as folder:
        say("training the classifier")
        classifier = load_or_train(Path(folder) / "classifier.json", site.routes.tasks, site.routes.default_task, site.routes.auto)
        before = Weather.now()
        say("telling tasks")
        timed = {"auto classifier, a prompt": _time_classifier(classifier, texts)} if classifier.reports else {}
        say("answering without sockets")
        timed |= asyncio.run(_time_requests(Settings.from_environment()._replace(home=Path(folder), routes=routes, models=models)))
        weather = Weather.now().since(before)
    rows = [[name, times.p50, times.p99, times.n] for name, times in timed.items()]
    data = {"machine": {**machine(), **weather}, "prompts": len(texts), "us": {n: {"p50": t.p50, "p99": t.p99} for n, t in timed.items()}}
    notes = [f"load average {weather['load_before']}; wall clock, so other load shows; the ledger is written in a thread beside"]
    if not classifier.reports:
        notes.append(f"no classifier to time: the tasks of {routes} have too few examples to tell them apart")
    return Report("classify", data, [Grid("without sockets", ["", "p50 us", "p99 us", "samples"], rows)], notes)


def _time_classifier(classifier: Classifier, texts: list[str]) -> Times:
    for text in texts:
        classifier.task_of(text)
    samples = []
    for text in islice(cycle(texts), _TIMES):
        began = time.perf_counter_ns()
        classifier.task_of(text)
        samples.append(time.perf_counter_ns() - began)
    return Times.of(samples)


async def _time_requests(settings: Settings) -> dict[str, Times]:
    house, _ = open_house(settings, _NoSockets())
    header = {b"authorization": f"Bearer {keys.create(house.engine, 'bench')}".encode(), b"content-type": b"application/json"}
    site = house.plan.site
    asked = {"a request for a task": f"task/{site.routes.default_task}", "a request for a model": next(iter(site.models))}
    if house.plan.classifier.may_serve:
        asked["a request for auto"] = "auto"
    try:
        return {f"router's Python, {name}": await _time_one(house, header, chat(model).encode()) for name, model in asked.items()}
    finally:
        house.ledger.close()
        house.audit.close()
        house.engine.dispose()


async def _time_one(house: House, header: dict[bytes, bytes], body: bytes) -> Times:
    samples = []
    for i in range(_PER_REQUEST + 200):
        began = time.perf_counter_ns()
        at, started = router.now()
        reply = await router.answer(house, Request("POST", "/v1/chat/completions", header, body, at, started))
        assert reply.body == _BODY, "the mock's answer comes back as it is"
        if i >= 200:
            samples.append(time.perf_counter_ns() - began)
    return Times.of(samples)
