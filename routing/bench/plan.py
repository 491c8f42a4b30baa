"""What the load generator is asked to do and what it says happened, as plain data: both cross a process border as JSON."""

from collections.abc import Sequence

import msgspec


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to send. `bodies` are sent in turn. `chunks`: how many stamped content chunks each stream must have (mock upstream only).

    `spread_s` spreads the first streams over that time, so that TTFT and chunks are not those of one burst; it goes before the warm-up.
    """

    host: str
    port: int
    path: str
    headers: dict[str, str]
    bodies: Sequence[str]
    connections: int
    stream: bool = False
    chunks: int | None = None
    spread_s: float = 0.0
    warm_s: float = 0.5
    seconds: float = 0.0
    count: int = 0
    rate: float = 0.0
    patience_s: float = 30.0
    pids: Sequence[int] = ()


class Times(msgspec.Struct, frozen=True):
    """Microseconds: median and 99th percentile of `n` samples."""

    n: int = 0
    p50: float = 0.0
    p99: float = 0.0

    @classmethod
    def of(cls, samples_ns: list[int]) -> "Times":
        """Of samples in nanoseconds."""
        if not samples_ns:
            return cls()
        samples_ns.sort()
        n = len(samples_ns)
        return cls(n, samples_ns[n // 2] / 1e3, samples_ns[min(n - 1, n * 99 // 100)] / 1e3)


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What happened in the window. `failures` are those of the whole run, by kind; `requests` were answered as they should be.

    `reads` brought the chunks: where they are far fewer than the chunks, what was measured had to wait for its core.
    """

    seconds: float
    requests: int
    chunks: int
    tokens: int
    cpu_s: float
    reads: int
    latency: Times
    ttft: Times
    relay: Times
    failures: dict[str, int]
