"""`inhouse bench router`: our router beside other gateways, all over one mock upstream, in random order within each round.

What may be quoted is the ratio of two gateways in the same round: the machine's mood changes figures by a quarter from one minute to the
next, and both by about the same. CPU time per request and per chunk is the primary metric, as other load changes it least.
"""

import contextlib
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from routing.bench import peers
from routing.bench.driver import PATH, Upstream, chat, gateway_running, generate, upstream
from routing.bench.peers import Gateway
from routing.bench.plan import Outcome, Plan
from routing.bench.processes import BenchError, Cores, Process, Weather, machine, peak_rss_mib, rss_mib
from routing.bench.report import Grid, Range, Report

_CHUNKS = 64
_RATIOS = ("cpu_us_per_request", "cpu_us_per_chunk", "requests_per_s")
_HEAPED = 1.1  # chunks per read above which a gateway did not relay each chunk by itself
_BUSY = 1.5  # load average above which the figures deserve a warning: we ourselves keep two cores busy, and start from idle


@dataclass(frozen=True)
class Settings:
    """What to run. `streams` run at one chunk each `interval_ms`; `rate` adds an open loop of so many requests a second."""

    rounds: int = 5
    seconds: float = 3.0
    connections: int = 64
    streams: int = 32
    interval_ms: float = 10.0
    rate: float = 0.0
    body_bytes: int = 1024
    vllm_router: str | None = None
    litellm: str | None = None
    only: tuple[str, ...] = ()


@dataclass(frozen=True)
class Running:
    """A gateway that answers, and its processes (none for `direct`)."""

    gateway: Gateway
    process: Process | None

    @property
    def pids(self) -> tuple[int, ...]:
        """Its whole process tree now."""
        return tuple(self.process.pids()) if self.process is not None else ()


Rounds = dict[str, dict[str, list[float]]]  # gateway -> metric -> a value for each round


def run(settings: Settings, say: Callable[[str], None]) -> Report:
    """The whole benchmark. Raises `BenchError` where a gateway that was asked for does not start."""
    cores, before = Cores.of_this_machine(), Weather.now()
    notes = [cores.note]
    failures: Counter[str] = Counter()
    rounds: Rounds = defaultdict(lambda: defaultdict(list))
    with TemporaryDirectory(prefix="inhouse-bench-") as folder, upstream(cores) as mock, contextlib.ExitStack() as stack:
        field = []
        for gateway in _gateways(settings, Path(folder), mock.port, notes):
            say(f"starting {gateway.name}")
            field.append(Running(gateway, stack.enter_context(gateway_running(gateway, cores))))
            rounds[gateway.name].clear()  # the tables' order is that of the start, not of the draw
        for i in range(settings.rounds + 1):  # round 0 warms everything up and is thrown away, but not its failures
            for scenario in _scenarios(settings):
                for running in random.sample(field, len(field)):
                    say(f"{f'round {i} of {settings.rounds}' if i else 'warming up'}: {scenario}: {running.gateway.name}")
                    outcome = _measure(settings, scenario, running, mock, cores, is_warm_up=i == 0)
                    failures.update({f"{running.gateway.name}: {scenario}: {kind}": n for kind, n in outcome.failures.items()})
                    if i:
                        for metric, value in _metrics(scenario, outcome, has_cpu=bool(running.process)).items():
                            rounds[running.gateway.name][metric].append(value)
        for running in field:
            if running.process is not None:
                rounds[running.gateway.name]["peak_rss_mib"] = [peak_rss_mib(running.pids)]
    weather = Weather.now().since(before)
    if weather["load_before"] > _BUSY or weather["steal_percent"] > 2:
        notes.append(f"the machine was busy (load {weather['load_before']} before we began, {weather['steal_percent']}% of CPU time "
                     "stolen): quote nothing but ratios")  # fmt: skip
    heaped = [name for name, metrics in rounds.items() if any(value > _HEAPED for value in metrics.get("chunks_per_read", ()))]
    if heaped and settings.interval_ms:
        notes.append(f"chunks came in heaps through {', '.join(heaped)}: they waited for the core, which makes a chunk look cheaper")
    about = {"machine": {**machine(), **weather, "placement": cores.note}, "notes": notes}
    return _report(settings, rounds, [f"{what}: {n}" for what, n in failures.items()], about)


def _gateways(settings: Settings, folder: Path, port: int, notes: list[str]) -> Iterator[Gateway]:
    makers: dict[str, Callable[[], Gateway]] = {
        "router": lambda: peers.router(folder, port),
        "nginx": lambda: peers.nginx(folder, port),
        "vllm-router": lambda: peers.vllm_router(settings.vllm_router, port),
    }
    if settings.litellm:
        makers["litellm"] = lambda: peers.litellm(folder, str(settings.litellm), port)
    yield peers.direct(port)
    for name, make in makers.items():
        if settings.only and name not in settings.only:
            continue
        try:
            yield make()
        except BenchError as missing:
            if name in settings.only or (name == "vllm-router" and settings.vllm_router) or name == "litellm":
                raise
            notes.append(f"without {name}: {missing}")


def _scenarios(settings: Settings) -> list[str]:
    return ["requests", *(["streams"] if settings.streams else []), *(["rate"] if settings.rate else [])]


def _measure(settings: Settings, scenario: str, running: Running, mock: Upstream, cores: Cores, *, is_warm_up: bool) -> Outcome:
    gateway = running.gateway
    streams = scenario == "streams"
    interval_us = int(settings.interval_ms * 1000)
    mock.pace(interval_us=interval_us if streams else 0, chunks=_CHUNKS)
    return generate(Plan(
        host="127.0.0.1", port=gateway.port, path=PATH, headers=gateway.headers,
        bodies=[chat(gateway.model, stream=streams, body_bytes=settings.body_bytes)],
        connections=settings.streams if streams else settings.connections,
        stream=streams, chunks=_CHUNKS if streams else None, spread_s=_CHUNKS * interval_us / 1e6 if streams else 0.0,
        warm_s=0.1 if is_warm_up else 0.5, seconds=min(1.0, settings.seconds) if is_warm_up else settings.seconds,
        rate=settings.rate if scenario == "rate" else 0.0, pids=running.pids,
    ), cores)  # fmt: skip


def _metrics(scenario: str, outcome: Outcome, *, has_cpu: bool) -> dict[str, float]:
    """The figures of one measurement."""
    if scenario == "rate":
        return {"rate_p50_us": outcome.latency.p50, "rate_p99_us": outcome.latency.p99}
    if scenario == "requests":
        found = {"requests_per_s": outcome.requests / outcome.seconds, "latency_p50_us": outcome.latency.p50}
        if has_cpu and outcome.requests:
            found |= {"cpu_us_per_request": outcome.cpu_s / outcome.requests * 1e6, "core_share": outcome.cpu_s / outcome.seconds,
                      "requests_per_core_s": outcome.requests / outcome.cpu_s}  # fmt: skip
        return found
    found = {"chunks_per_s": outcome.chunks / outcome.seconds, "ttft_p50_us": outcome.ttft.p50, "ttft_p99_us": outcome.ttft.p99,
             "relay_p50_us": outcome.relay.p50, "relay_p99_us": outcome.relay.p99,
             "chunks_per_read": outcome.chunks / max(1, outcome.reads)}  # fmt: skip
    if has_cpu and outcome.chunks:
        found["cpu_us_per_chunk"] = outcome.cpu_s / outcome.chunks * 1e6
    return found


def _ratios(rounds: Rounds) -> dict[str, dict[str, Range]]:
    """Our router over each peer, round by round."""
    ours = rounds.get("router", {})
    found: dict[str, dict[str, Range]] = {}
    for name, theirs in rounds.items():
        if name in ("router", "direct"):
            continue
        per_metric = {metric: Range.of(a / b for a, b in zip(ours.get(metric, ()), theirs.get(metric, ()), strict=False) if b)
                      for metric in _RATIOS}  # fmt: skip
        found[name] = {metric: ratio for metric, ratio in per_metric.items() if ratio is not None}
    return found


def _added(rounds: Rounds) -> None:
    """What each gateway adds to the upstream's own TTFT, round by round."""
    direct = rounds.get("direct", {}).get("ttft_p50_us", [])
    for name, metrics in rounds.items():
        if name != "direct" and "ttft_p50_us" in metrics:
            metrics["ttft_added_p50_us"] = [a - b for a, b in zip(metrics["ttft_p50_us"], direct, strict=False)]


_REQUEST_COLUMNS = {"us CPU/request": "cpu_us_per_request", "requests/s": "requests_per_s", "core busy": "core_share",
                    "requests/core-s": "requests_per_core_s", "p50 us": "latency_p50_us", "peak MiB": "peak_rss_mib"}  # fmt: skip
_STREAM_COLUMNS = {"us CPU/chunk": "cpu_us_per_chunk", "chunks/s": "chunks_per_s", "TTFT p50 us": "ttft_p50_us",
                   "added": "ttft_added_p50_us", "relay p50 us": "relay_p50_us", "relay p99 us": "relay_p99_us",
                   "chunks/read": "chunks_per_read"}  # fmt: skip
_RATE_COLUMNS = {"p50 us": "rate_p50_us", "p99 us": "rate_p99_us"}


def _report(settings: Settings, rounds: Rounds, failures: Sequence[str], about: dict[str, Any]) -> Report:
    _added(rounds)
    ranges: dict[str, dict[str, Range]] = {
        name: {metric: found for metric, values in metrics.items() if (found := Range.of(values))} for name, metrics in rounds.items()
    }
    ratios = _ratios(rounds)
    grids = [_grid(f"{settings.connections} connections, {settings.body_bytes} byte chat requests", ranges, _REQUEST_COLUMNS)]
    if settings.streams:
        grids.append(_grid(f"{settings.streams} streams, a chunk each {settings.interval_ms:g} ms", ranges, _STREAM_COLUMNS))
    if settings.rate:
        grids.append(_grid(f"open loop, {settings.rate:g} requests/s", ranges, _RATE_COLUMNS))
    if ratios:
        columns = {"CPU a request": "cpu_us_per_request", "CPU a chunk": "cpu_us_per_chunk", "requests/s": "requests_per_s"}
        grids.append(_grid("router / peer, in the same round (this is what may be quoted)", ratios, columns))
    weather = about["machine"]
    notes = [*about["notes"], f"medians of {settings.rounds} rounds (least-most); load average {weather['load_before']} before, "
             f"{weather['load_after']} after; stolen {weather['steal_percent']}%; {weather['cpu']}, {weather['cores']} cores"]  # fmt: skip
    data = {"machine": weather, "gateways": ranges, "ratios": ratios, "rounds": {name: dict(metrics) for name, metrics in rounds.items()}}
    return Report("router", data, grids, notes, failures, asdict(settings))


def _grid(title: str, ranges: Mapping[str, Mapping[str, Range]], columns: Mapping[str, str]) -> Grid:
    return Grid(title, ["", *columns], [[name, *(metrics.get(metric) for metric in columns.values())] for name, metrics in ranges.items()])


def run_memory(requests: int, say: Callable[[str], None]) -> Report:
    """Sends many requests through our router, whole answers and streams in turn, and reads its memory on the way. Is it flat?"""
    cores = Cores.of_this_machine()
    failures: list[str] = []
    rows: list[list[object]] = []
    with TemporaryDirectory(prefix="inhouse-bench-") as folder, upstream(cores) as mock, contextlib.ExitStack() as stack:
        gateway = peers.router(Path(folder), mock.port)
        process = stack.enter_context(gateway_running(gateway, cores))
        assert process is not None, "our router is started by a command"
        running = Running(gateway, process)
        mock.pace(chunks=8)
        rows.append([0, rss_mib(running.pids)])
        parts = [min(5000, requests), *[requests // 4] * 4]  # the first fills pools and caches
        sent = 0
        for i, part in enumerate(parts):
            say(f"{sent:,} requests sent, {rows[-1][1]:.1f} MiB resident")
            for stream in (False, True):
                outcome = generate(_some(gateway, part // 2, stream=stream), cores)
                failures += [f"router: part {i}: {kind}: {n}" for kind, n in outcome.failures.items()]
            sent += part // 2 * 2
            rows.append([sent, rss_mib(running.pids)])
    growth = float(str(rows[-1][1])) - float(str(rows[1][1]))
    after_warm = sent - parts[0] // 2 * 2
    notes = [f"{growth:+.1f} MiB over the last {after_warm:,} requests ({growth * 1024 / max(1, after_warm) * 1000:+.1f} KiB per 1,000)"]
    data = {"machine": machine(), "resident_mib": [{"requests": n, "rss_mib": mib} for n, mib in rows], "growth_mib": growth}
    return Report("memory", data, [Grid("router's resident memory", ["requests", "MiB"], rows)], notes, failures, {"requests": requests})


def _some(gateway: Gateway, count: int, *, stream: bool) -> Plan:
    return Plan(host="127.0.0.1", port=gateway.port, path=PATH, headers=gateway.headers, bodies=[chat(gateway.model, stream=stream)],
                connections=64, stream=stream, chunks=8 if stream else None, count=count, patience_s=600.0)  # fmt: skip
