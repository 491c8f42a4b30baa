"""A run: a suite asked of an endpoint, scored and stored. Scoring comes after asking, so that no scorer can cost an answer.

Not here: statistics (report.py), how it is asked (ask.py, load.py), printing (cli.py).
"""

import asyncio
import datetime
import hashlib
import re
import resource
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from evals import store
from evals.ask import Asking, Told, questions
from evals.cache import Cache
from evals.case import Answer, Case, Score, row
from evals.client import Endpoint, check_allowed, open_client
from evals.judge import fault_of, judge, read_labels
from evals.load import Load, ask_at_rate, loaded
from evals.pace import Pace
from evals.scoring import score, scorer_of
from evals.store import Stored
from evals.suite import Suite

Tell = Callable[[Told], None]


@dataclass(frozen=True)
class Plan:
    """What a run does. `request` are fields of every request's body; `at_once` is the most requests under way, unless under `load`.
    `fresh` asks anew what is in the cache: a model's name says nothing of its weights, only a digest does.

    `judge` is who scores where the suite's scorer is `judge`; `labels` is a file of people's labels that measures it.
    """

    suite: Suite
    endpoint: Endpoint
    samples: int = 1
    at_once: int = 32
    request: dict[str, Any] = field(default_factory=dict)
    fresh: bool = False
    load: Load | None = None
    judge: Endpoint | None = None
    judge_request: dict[str, Any] = field(default_factory=dict)
    labels: Path | None = None


class Asked(NamedTuple):
    """The answers, and under load: from the first request's time to the last answer (seconds), and how late each was sent."""

    answers: list[Answer]
    duration_s: float
    late: list[float]


def run(plan: Plan, home: Path, tell: Tell) -> Stored:
    """Asks, scores and stores; after a crash it asks only what was not answered. Raises `AskError`, `ScorerError`, `JudgeError`."""
    _check(plan)
    started = datetime.datetime.now(datetime.UTC)
    asked = _loop(lambda: _ask(plan, home, tell))
    both = list(zip((case for case in plan.suite.cases for _ in range(plan.samples)), asked.answers, strict=True))
    scores, more = _score(plan, home, both, tell)
    rows = [row(case, answer, one) for (case, answer), one in zip(both, scores, strict=True)]
    if plan.load is not None:
        more["load"] = msgspec.to_builtins(loaded(plan.load, rows, asked.duration_s, asked.late))
    facts = facts_of(plan, started) | {"n": len(rows)} | more
    run_id = f"{started:%Y%m%d-%H%M%S}-{_slug(plan.suite.name)}-{_slug(plan.endpoint.model)}-{secrets.token_hex(2)}"
    return Stored(run_id, store.write_run(home, run_id, facts, rows), facts, rows)


def _check(plan: Plan) -> None:
    """Whatever would make the run worthless is found before the first request."""
    scorer_of(plan.suite.scorer, plan.suite.folder, plan.suite.cases, has_judge=plan.judge is not None)
    check_allowed(plan.endpoint, sensitive=plan.suite.sensitive)
    if plan.judge is not None:
        check_allowed(plan.judge, sensitive=plan.suite.sensitive)
    if plan.labels is not None:
        read_labels(plan.labels)


def _score(plan: Plan, home: Path, both: list[tuple[Case, Answer]], tell: Tell) -> tuple[list[Score], dict[str, Any]]:
    """The scores, and what the run's facts say about a judge."""
    if plan.judge is None:
        scorer = scorer_of(plan.suite.scorer, plan.suite.folder, plan.suite.cases)
        return [score(scorer, case, answer) for case, answer in both], {}
    judged = _loop(lambda: _judge(plan, home, both, tell))
    facts = {
        "model": plan.judge.model,
        "host": plan.judge.host,
        "digest": plan.judge.digest,
        "request": plan.judge_request,
        "asked": judged.asked,
        "flips": judged.flips,
    }
    if plan.labels is not None:
        facts["fault"] = msgspec.to_builtins(fault_of(both, judged.scores, read_labels(plan.labels)))
    return judged.scores, {"judge": facts}


def facts_of(plan: Plan, started: datetime.datetime) -> dict[str, Any]:
    """run.json without the results: enough to do the run again and to tell when its evidence is stale. No key, no full address."""
    suite, endpoint = plan.suite, plan.endpoint
    return {
        "suite": suite.name,
        "data_sha256": suite.data_sha256,
        "prompt_sha256": suite.prompt_sha256,
        "scorer": suite.scorer,
        "model": endpoint.model,
        "model_digest": endpoint.digest,
        "served": {"repo": endpoint.identity.repo, "revision": endpoint.identity.revision, "engine": endpoint.identity.engine,
                   "price": endpoint.identity.price},
        "host": endpoint.host,
        "started": started.isoformat(timespec="seconds"),
        "settings": {
            "api": endpoint.api,
            "onprem": endpoint.onprem,
            "sensitive": suite.sensitive,
            "samples": plan.samples,
            "at_once": plan.at_once,
            "request": plan.request,
            "cases": len(suite.cases),
            "load": msgspec.to_builtins(plan.load),
        },
    }


async def _ask(plan: Plan, home: Path, tell: Tell) -> Asked:
    with Cache(store.folder_of(home), fresh=plan.fresh) as cache:
        async with open_client(plan.endpoint, sensitive=plan.suite.sensitive) as client:
            asked = list(questions(client, plan.suite, plan.samples, plan.request))
            began = time.perf_counter()
            if plan.load is not None:
                answers, late = await ask_at_rate(client, asked, plan.load, tell)
            else:
                answers, late = await Asking(client, cache, Pace(plan.at_once), tell).all(asked), []
            return Asked(answers, time.perf_counter() - began, late)


async def _judge(plan: Plan, home: Path, both: list[tuple[Case, Answer]], tell: Tell) -> Any:
    assert plan.judge is not None
    with Cache(store.folder_of(home)) as cache:
        async with open_client(plan.judge, sensitive=plan.suite.sensitive) as client:
            asking = Asking(client, cache, Pace(plan.at_once), tell)
            return await judge(client, asking, both, criteria=plan.suite.scorer.get("criteria", ""), request=plan.judge_request)


def _loop(work: Callable[[], Any]) -> Any:
    import uvloop

    # A socket for each request under way: the usual 1,024 would fail requests under load, and it would look like the server's fault.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work())


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:40] or hashlib.sha256(name.encode()).hexdigest()[:8]


def limited(suite: Suite, n: int | None) -> Suite:
    """The first n cases of a suite. The data's hash stays: a part is of the same data."""
    return suite if n is None else msgspec.structs.replace(suite, cases=suite.cases[:n])
