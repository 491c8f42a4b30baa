"""A run: a suite asked of an endpoint, scored and stored. Scoring comes after asking, so that no scorer can cost an answer.

Not here: statistics (report.py), load (load.py), printing (cli.py).
"""

import asyncio
import datetime
import hashlib
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from evals import store
from evals.ask import Asking, Told, questions
from evals.cache import Cache
from evals.case import Answer, Case, Row, row
from evals.client import Endpoint, open_client
from evals.pace import Pace
from evals.scorers import Scorer, score, scorer_of
from evals.store import Stored
from evals.suite import Suite


@dataclass(frozen=True)
class Plan:
    """What a run does. `request` are fields of every request's body; `at_once` is the most requests under way."""

    suite: Suite
    endpoint: Endpoint
    samples: int = 1
    at_once: int = 32
    request: dict[str, Any] = field(default_factory=dict)


def run(plan: Plan, home: Path, tell: Callable[[Told], None]) -> Stored:
    """Asks, scores and stores. Run again after a crash it asks only what was not answered. Raises `AskError`, `ScorerError`."""
    started = datetime.datetime.now(datetime.UTC)
    scorer = scorer_of(plan.suite.scorer, plan.suite.folder, plan.suite.cases)
    answers = _loop(lambda: _ask(plan, home, tell))
    rows = scored(plan.suite.cases, plan.samples, answers, scorer)
    return stored(plan, home, started, rows)


def scored(cases: list[Case], samples: int, answers: list[Answer], scorer: Scorer) -> list[Row]:
    """The rows of answers that came in the order of the questions."""
    asked = (case for case in cases for _ in range(samples))
    return [row(case, answer, score(scorer, case, answer)) for case, answer in zip(asked, answers, strict=True)]


def stored(plan: Plan, home: Path, started: datetime.datetime, rows: list[Row], **more: Any) -> Stored:
    """Writes a run and returns it as it will be read."""
    run_id = f"{started:%Y%m%d-%H%M%S}-{_slug(plan.suite.name)}-{_slug(plan.endpoint.model)}-{secrets.token_hex(2)}"
    facts = facts_of(plan, started) | {"n": len(rows)} | more
    return Stored(run_id, store.write_run(home, run_id, facts, rows), facts, rows)


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
        "host": endpoint.host,
        "started": started.isoformat(timespec="seconds"),
        "settings": {"api": endpoint.api, "onprem": endpoint.onprem, "sensitive": suite.sensitive, "samples": plan.samples,
                     "at_once": plan.at_once, "request": plan.request, "cases": len(suite.cases)},
    }  # fmt: skip


async def _ask(plan: Plan, home: Path, tell: Callable[[Told], None]) -> list[Answer]:
    cache = Cache(store.folder_of(home))
    try:
        async with open_client(plan.endpoint, sensitive=plan.suite.sensitive) as client:
            asked = list(questions(client, plan.suite, plan.samples, plan.request))
            return await Asking(client, cache, Pace(plan.at_once), tell).all(asked)
    finally:
        cache.close()


def _loop(work: Callable[[], Any]) -> Any:
    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work())


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:40] or hashlib.sha256(name.encode()).hexdigest()[:8]


def limited(suite: Suite, n: int | None) -> Suite:
    """The first n cases of a suite. The data's hash stays: a part is of the same data."""
    return suite if n is None else msgspec.structs.replace(suite, cases=suite.cases[:n])
