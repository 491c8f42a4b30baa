"""Prometheus metrics of all workers together, fed from ledger rows off the request path. Labels are names
from the configuration, and of teams and errors the first 200.

prometheus_client shares them between processes through files, in the folder that PROMETHEUS_MULTIPROC_DIR names (set by `server`).
"""

import os
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Sequence
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from routing.ledger import Row
from routing.loops import Finding

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """The router's metrics in one worker."""

    def __init__(self) -> None:
        nowhere = CollectorRegistry()  # what is scraped comes from the shared files
        self._attempts = Counter("inhouse_attempts", "Attempts to answer, refused ones included", ["task", "model", "status"],
                                 registry=nowhere)  # fmt: skip
        self._tokens = Counter("inhouse_tokens", "Tokens read and written by models", ["model", "kind"], registry=nowhere)
        self._total = Histogram("inhouse_request_seconds", "From arrival to the answer's last byte", ["task", "model"], buckets=_SECONDS,
                                registry=nowhere)  # fmt: skip
        self._ttft = Histogram("inhouse_ttft_seconds", "From arrival to the answer's first byte", ["task", "model"], buckets=_SECONDS,
                               registry=nowhere)  # fmt: skip
        self._refusals = Counter("inhouse_refusals", "Requests refused before a model was asked, by the error's code", ["code", "task"],
                                 registry=nowhere)  # fmt: skip
        self._budget_refusals = Counter("inhouse_budget_refusals", "Requests refused as a budget had too little left", ["scope", "unit"],
                                        registry=nowhere)  # fmt: skip
        self._findings = Counter("inhouse_loop_findings", "Circles found in agents' runs", ["kind", "severity", "task"], registry=nowhere)
        self._cost = Counter("inhouse_cost_usd", "What attempts cost", ["team", "model"], registry=nowhere)
        self._gpu = Counter("inhouse_gpu_seconds", "GPU time of attempts", ["team", "model"], registry=nowhere)
        self._few = {"code": _Few(), "team": _Few()}
        self.in_flight = Gauge("inhouse_in_flight", "Requests being answered", registry=nowhere, multiprocess_mode="livesum")
        self.ready = Gauge("inhouse_model_ready", "Whether a model answers its health check", ["model", "cell"], registry=nowhere,
                           multiprocess_mode="livemin")  # fmt: skip

    def observe(self, rows: Sequence[Row]) -> None:
        """Counts a batch of ledger rows: sums first, as each counter is a write into a shared file."""
        attempts: Tally[tuple[str, str, int]] = Tally()
        refusals: Tally[tuple[str, str]] = Tally()
        answered: dict[tuple[str, str], list[Row]] = {}
        sums: dict[tuple[str, str], list[int]] = {}  # of a team and a model: tokens read, written, nano-USD, GPU ms
        for row in rows:
            task, model, status = row.task, row.model, row.status
            attempts[task, model, status] += 1
            if not row.attempt:
                refusals[row.error, task] += 1
            elif status < 400:
                answered.setdefault((task, model), []).append(row)
            total = sums.get((row.team, model)) or sums.setdefault((row.team, model), [0, 0, 0, 0])
            total[0] += row.prompt_tokens or 0
            total[1] += row.completion_tokens or 0
            total[2] += row.cost_nanousd
            total[3] += row.gpu_ms
        for labels, n in attempts.items():
            self._attempts.labels(*labels).inc(n)
        for (error, task), n in refusals.items():
            self._refusals.labels(self._few["code"].of(error), task).inc(n)
        for (team, model), total in sums.items():
            self._add(self._few["team"].of(team), model, total)
        for names, those in answered.items():
            _observe(self._total.labels(*names), [row.total_ms / 1e3 for row in those])
            _observe(self._ttft.labels(*names), [row.ttft_ms / 1e3 for row in those if row.ttft_ms is not None])

    def _add(self, team: str, model: str, total: Sequence[int]) -> None:
        read, written, nanousd, gpu_ms = total
        for kind, n in (("prompt", read), ("completion", written)):
            if n:
                self._tokens.labels(model, kind).inc(n)
        if nanousd > 0:
            self._cost.labels(team, model).inc(nanousd / 1e9)
        if gpu_ms > 0:
            self._gpu.labels(team, model).inc(gpu_ms / 1e3)

    def budget_refused(self, scope: str, unit: str) -> None:
        """A budget of that scope (run, caller, team, task) had too little left of that unit."""
        self._budget_refusals.labels(scope, unit).inc()

    def found(self, finding: Finding, task: str) -> None:
        """An agent's circle was found in a request of that task."""
        self._findings.labels(finding.kind, finding.severity, task).inc()


class _Few:
    """The first 200 values that a label is given; all further ones are `other`. For names that people make while the router runs."""

    def __init__(self, most: int = 200) -> None:
        self._seen: set[str] = set()
        self._most = most

    def of(self, value: str) -> str:
        """The value, or `other`."""
        if value not in self._seen and len(self._seen) >= self._most:
            return "other"
        self._seen.add(value)
        return value


def _observe(histogram: Histogram, seconds: Sequence[float]) -> None:
    """Observes many values at once: 1 us each where `observe` takes 4, as the shared file is written once a bucket."""
    histogram._sum.inc(sum(seconds))
    for bucket, n in Tally(bisect_left(_SECONDS, value) for value in seconds).items():
        histogram._buckets[bucket].inc(n)


def exposition() -> bytes:
    """All workers' metrics in Prometheus' text format."""
    _forget_dead_workers()
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def _forget_dead_workers() -> None:
    """What a killed worker was doing and which models it saw ready is over; what it counted stays counted."""
    for file in Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]).glob("gauge_live*.db"):
        pid = int(file.stem.rpartition("_")[2])
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            mark_process_dead(pid)  # type: ignore[no-untyped-call]
