"""Open-loop load: a suite's own requests at a stated rate; quality, time to first token, tokens a second and goodput are of one run.

Requests are due by a Poisson process whether or not earlier ones were answered, and times count from when a request was due: a server that
falls behind can't hide it by being asked less. Nothing is retried or cached. Also reads what `vllm bench serve --save-result` wrote.
"""

import asyncio
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from evals.ask import Question, Told
from evals.case import Answer, Row
from evals.client import Client
from evals.report import Spread, spread

MOST_UNDER_WAY = 4096


class LoadError(Exception):
    """A result file that can't be read as one."""


class Load(msgspec.Struct, frozen=True, kw_only=True):
    """Requests a second on average, and the seconds that a request may take to count as good (None: not looked at)."""

    rate_per_s: float
    slo_ttft_s: float | None = None
    slo_tpot_s: float | None = None
    seed: int = 0


class Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """What a server did under load. `goodput_per_s`: complete answers a second within the limits; `right_per_s`: those that are also right.

    `late` is how long after its time a request was sent: the load generator's own fault, a fraction of the other times if it kept up.
    """

    source: str
    rate_per_s: float | None
    duration_s: float
    requests: int
    completed: int
    prompt_tokens_per_s: float
    output_tokens_per_s: float
    goodput_per_s: float | None = None
    right_per_s: float | None = None
    ttft: Spread | None = None
    tpot: Spread | None = None
    late: Spread | None = None


async def ask_at_rate(
    client: Client, asked: Sequence[Question], load: Load, tell: Callable[[Told], None]
) -> tuple[list[Answer], list[float]]:
    """The answers in the questions' order, and how late each was sent (seconds). Always asks anew."""
    late: list[float] = []
    done = failed = 0

    async def one(question: Question, due_at: float) -> Answer:
        nonlocal done, failed
        answer = (await client.ask(question.body, question.case.id, question.sample, due_at=due_at)).answer
        done, failed = done + 1, failed + answer.failed
        tell(Told(done, len(asked), 0, failed, len(tasks) - done, 0))
        return answer

    tasks: list[asyncio.Task[Answer]] = []
    began = time.perf_counter()
    for question, after_s in zip(asked, arrivals(load), strict=False):
        due_at = began + after_s
        await asyncio.sleep(due_at - time.perf_counter())
        late.append(time.perf_counter() - due_at)
        under_way = len(tasks) - done
        work = one(question, due_at) if under_way < MOST_UNDER_WAY else _not_sent(question)
        tasks.append(asyncio.create_task(work))
    return list(await asyncio.gather(*tasks)), late


def arrivals(load: Load) -> Iterator[float]:
    """Seconds from the beginning at which requests are due, without end: a Poisson process, the same for the same seed."""
    rng = random.Random(load.seed)  # noqa: S311  # repeatable on purpose
    return itertools.accumulate(rng.expovariate(load.rate_per_s) for _ in itertools.count())


async def _not_sent(question: Question) -> Answer:
    return Answer(
        case_id=question.case.id, sample=question.sample, error=f"overload: {MOST_UNDER_WAY} requests were under way, this one was not sent"
    )


def loaded(load: Load, rows: Sequence[Row], duration_s: float, late: Sequence[float]) -> Loaded:
    """Sums up a run under load. `duration_s` is from the first request's time to the last answer."""
    good = [row for row in rows if _is_good(row, load)]
    return Loaded(
        source="inhouse eval run",
        rate_per_s=load.rate_per_s,
        duration_s=duration_s,
        requests=len(rows),
        completed=sum(not row.failed for row in rows),
        prompt_tokens_per_s=sum(row.prompt_tokens or 0 for row in rows) / duration_s,
        output_tokens_per_s=sum(row.completion_tokens or 0 for row in rows) / duration_s,
        goodput_per_s=len(good) / duration_s,
        right_per_s=sum(row.value == 1 for row in good) / duration_s,
        ttft=spread(row.ttft_s for row in rows if not row.failed),
        tpot=spread(tpot_s(row) for row in rows if not row.failed),
        late=spread(late),
    )


def tpot_s(row: Row) -> float | None:
    """Seconds a token after the first; None where that was not measured."""
    if row.ttft_s is None or row.completion_tokens is None or row.completion_tokens < 2:
        return None
    return (row.total_s - row.ttft_s) / (row.completion_tokens - 1)


def _is_good(row: Row, load: Load) -> bool:
    limits = ((row.ttft_s, load.slo_ttft_s), (tpot_s(row), load.slo_tpot_s))
    return not row.failed and all(limit is None or (time_s is not None and time_s <= limit) for time_s, limit in limits)


def read_vllm_bench(file: Path) -> Loaded:
    """What `vllm bench serve --save-result` measured. With --save-detailed the percentiles are computed, else taken where it wrote them.

    Raises `LoadError` for any other file.
    """
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        duration_s, rate = float(found["duration"]), float(found.get("request_rate", "inf"))
        return Loaded(
            source=f"vllm bench serve, {found.get('model_id', 'unknown model')}, {found.get('date', 'undated')}",
            rate_per_s=None if rate == float("inf") else rate,
            duration_s=duration_s,
            requests=found["completed"] + found.get("failed", 0),
            completed=found["completed"],
            prompt_tokens_per_s=found["total_input_tokens"] / duration_s,
            output_tokens_per_s=found["output_throughput"],
            goodput_per_s=found.get("request_goodput"),
            ttft=_bench_times(found, "ttft", found.get("ttfts")),
            tpot=_bench_times(found, "tpot", None),
        )
    except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
        raise LoadError(f"{file} is no result of `vllm bench serve --save-result`: {type(error).__name__}: {error}") from None


def _bench_times(found: dict[str, Any], name: str, each: list[float] | None) -> Spread | None:
    """A spread in seconds. Without the single times only what the file has is known; the rest is NaN."""
    if each:
        return spread(each)
    at = [found.get(key) for key in (f"median_{name}_ms", f"p95_{name}_ms", f"p99_{name}_ms")]
    if at[0] is None:
        return None
    p50, p95, p99 = (float("nan") if value is None else value / 1000 for value in at)
    return Spread(p50, p95, p99, float("nan"), found["completed"])


def lines(made: Loaded) -> list[str]:
    """The load as text."""
    rate = "as fast as it would go" if made.rate_per_s is None else f"{made.rate_per_s:g} requests a second on average"
    out = [f"under load: {rate}, {made.duration_s:.1f} s ({made.source})",
           f"  completed            {made.completed} of {made.requests}",
           f"  tokens a second      {made.output_tokens_per_s:.1f} out, {made.prompt_tokens_per_s:.1f} in"]  # fmt: skip
    if made.goodput_per_s is not None:
        right = "" if made.right_per_s is None else f", of these right {made.right_per_s:.2f}"
        out.append(f"  goodput              {made.goodput_per_s:.2f} requests a second within the limits{right}")
    for title, times in (("time to first token", made.ttft), ("time a token", made.tpot), ("sent late by", made.late)):
        if times:
            out.append(f"  {title:<21}{times}")
    return out
