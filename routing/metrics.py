"""Prometheus metrics of all workers together, fed from ledger rows off the request path. Labels are names from the configuration only.

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
        self.in_flight = Gauge("inhouse_in_flight", "Requests being answered", registry=nowhere, multiprocess_mode="livesum")
        self.ready = Gauge("inhouse_model_ready", "Whether a model answers its health check", ["model", "cell"], registry=nowhere,
                           multiprocess_mode="livemin")  # fmt: skip

    def observe(self, rows: Sequence[Row]) -> None:
        """Counts a batch of ledger rows."""
        attempts = Tally((row.task, row.model, row.status) for row in rows)
        for (task, model, status), n in attempts.items():
            self._attempts.labels(task, model, status).inc(n)
        tokens: Tally[tuple[str, str]] = Tally()
        answered: dict[tuple[str, str], list[Row]] = {}
        for row in rows:
            tokens[row.model, "prompt"] += row.prompt_tokens or 0
            tokens[row.model, "completion"] += row.completion_tokens or 0
            if row.status < 400:
                answered.setdefault((row.task, row.model), []).append(row)
        for (model, kind), n in tokens.items():
            if n:
                self._tokens.labels(model, kind).inc(n)
        for labels, those in answered.items():
            _observe(self._total.labels(*labels), [row.total_ms / 1e3 for row in those])
            _observe(self._ttft.labels(*labels), [row.ttft_ms / 1e3 for row in those if row.ttft_ms is not None])


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
