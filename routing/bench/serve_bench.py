"""`inhouse bench serve`: real servers of the same model side by side: the router, Ray Serve without it, a bare vLLM server.

All sides get the same prompts and are made to write the same number of tokens (`ignore_eos`), in random order within each round.
"""

import contextlib
import json
import random
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import urlsplit

from routing.bench.driver import generate, get, post
from routing.bench.plan import Outcome, Plan
from routing.bench.processes import BenchError, Cores, Process, Weather, free_port, machine, started
from routing.bench.report import Grid, Range, Report

_ANYWHERE = Cores(None, None)  # engines use all cores; so may we
_PROMPTS = (
    "Hello! How are you today?",
    "Order: 12 pumps for Ann Keller, Lenzburg, by 3 May, total EUR 980.50. Please give it as JSON.",
    "What is 17 + 25 - 9? Show each step.",
    "Good morning. Which day comes after Tuesday?",
    "Please confirm AB-4711: 3 valves for Tom Weber, Basel, by 9 June, total EUR 120.00.",
    "A box has 4 rows of 6 apples; 5 are eaten. How many are left? Think step by step.",
    "Thank you for your help.",
    "We need 40 seals, item 77-120, to be sent to Marta Rossi in Chur before 1 July.",
)
_BARE_ENV = {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
             "HF_HUB_OFFLINE": "1"}  # fmt: skip
_BARE_OPTIONS = ("--max-model-len", "1024", "--enforce-eager", "--kv-cache-memory-bytes", str(64 << 20), "--max-num-seqs", "32")


@dataclass(frozen=True)
class Side:
    """One server: its base URL, what the model is called there, and a key where one is needed."""

    name: str
    url: str
    model: str
    key: str = ""

    @property
    def port(self) -> int:
        """The port it listens on."""
        parts = urlsplit(self.url)
        return parts.port or 80

    @property
    def host(self) -> str:
        """The host it runs on."""
        return urlsplit(self.url).hostname or "127.0.0.1"

    @property
    def path(self) -> str:
        """Where its chat completions are."""
        return urlsplit(self.url).path.rstrip("/").removesuffix("/v1") + "/v1/chat/completions"

    @property
    def headers(self) -> dict[str, str]:
        """What identifies us there."""
        return {"authorization": f"Bearer {self.key}"} if self.key else {}


@dataclass(frozen=True)
class Settings:
    """How much to ask: `asks` requests one after another for TTFT, then `batch` requests at `connections` for throughput, each round."""

    rounds: int = 3
    asks: int = 20
    connections: int = 16
    batch: int = 48
    max_tokens: int = 64


def run(sides: Sequence[Side], bare: Path | None, settings: Settings, say: Callable[[str], None]) -> Report:
    """The whole benchmark; the first of `sides` is compared with each other one. Raises `BenchError` where a side does not answer."""
    before = Weather.now()
    failures: list[str] = []
    rounds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with contextlib.ExitStack() as stack:
        if bare is not None:
            say("starting a bare vLLM server (half a minute or more)")
            sides = [*sides, stack.enter_context(_bare_server(bare))]
        for side in sides:
            _check(side)
            rounds[side.name].clear()  # the table's order is that of the command, not of the draw
        for i in range(settings.rounds + 1):  # round 0 fills caches and is thrown away
            for side in random.sample(list(sides), len(sides)):
                say(f"round {i} of {settings.rounds}: {side.name}" if i else f"warming up {side.name}")
                alone = _ask(side, settings, count=settings.asks, connections=1)
                many = _ask(side, settings, count=settings.batch, connections=settings.connections)
                for outcome, asked in ((alone, settings.asks), (many, settings.batch)):
                    failures += [f"{side.name}: {kind}: {n}" for kind, n in outcome.failures.items()]
                    if outcome.tokens != asked * settings.max_tokens:
                        failures.append(f"{side.name}: {outcome.tokens} tokens came, {asked * settings.max_tokens} were asked for")
                if i:
                    rounds[side.name]["ttft_p50_ms"].append(alone.ttft.p50 / 1e3)
                    rounds[side.name]["ttft_p99_ms"].append(alone.ttft.p99 / 1e3)
                    rounds[side.name]["tokens_per_s"].append(many.tokens / many.seconds)
    weather = Weather.now().since(before)
    return _report(sides, settings, rounds, failures, weather)


def _ask(side: Side, settings: Settings, *, count: int, connections: int) -> Outcome:
    bodies = [json.dumps({"model": side.model, "messages": [{"role": "user", "content": prompt}], "max_tokens": settings.max_tokens,
                          "ignore_eos": True, "temperature": 0, "stream": True, "stream_options": {"include_usage": True}})
              for prompt in _PROMPTS]  # fmt: skip
    return generate(Plan(host=side.host, port=side.port, path=side.path, headers=side.headers, bodies=bodies, connections=connections,
                         stream=True, count=count, patience_s=300.0), _ANYWHERE)  # fmt: skip


def _check(side: Side) -> None:
    if not side.url.startswith("http://"):
        raise BenchError(f"`{side.url}` is not an http:// address; the load generator speaks plain HTTP")
    body = json.dumps({"model": side.model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 2})
    status, said = post(side.port, side.path, body, side.headers, host=side.host, timeout_s=60)
    if status != 200:
        heard = said[:300].decode("utf-8", "replace")
        raise BenchError(f"{side.name} at {side.url} answers {status or 'nothing'} for model `{side.model}`: {heard}")


@contextlib.contextmanager
def _bare_server(folder: Path) -> Iterator[Side]:
    """vLLM's own server of the model in `folder`, with the settings of the demo models."""
    port = free_port()
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port),
               "--model", str(folder.absolute()), "--served-model-name", "bare", *_BARE_OPTIONS]  # fmt: skip
    with started(command, env=_BARE_ENV, preferred=False) as process:
        _await_health(process, port)
        yield Side("bare vLLM", f"http://127.0.0.1:{port}", "bare")


def _await_health(process: Process, port: int) -> None:
    process.wait_until(lambda: get(port, "/health")[0] == 200, timeout_s=300)


def _report(
    sides: Sequence[Side], settings: Settings, rounds: dict[str, dict[str, list[float]]], failures: Sequence[str], weather: dict[str, float]
) -> Report:
    ranges = {name: {metric: Range.of(values) for metric, values in metrics.items()} for name, metrics in rounds.items()}
    first = rounds[sides[0].name]
    compared = {}
    for side in sides[1:]:
        theirs = rounds[side.name]
        compared[side.name] = {
            "ttft_added_p50_ms": Range.of(a - b for a, b in zip(first["ttft_p50_ms"], theirs["ttft_p50_ms"], strict=True)),
            "tokens_per_s_ratio": Range.of(a / b for a, b in zip(first["tokens_per_s"], theirs["tokens_per_s"], strict=True)),
        }
    columns = {"TTFT p50 ms": "ttft_p50_ms", "TTFT p99 ms": "ttft_p99_ms", "tokens/s": "tokens_per_s"}
    grids = [Grid(f"TTFT one at a time; tokens/s at {settings.connections} at once, {settings.max_tokens} tokens an answer", ["", *columns],
                  [[name, *(metrics.get(metric) for metric in columns.values())] for name, metrics in ranges.items()])]  # fmt: skip
    if compared:
        grids.append(Grid(f"{sides[0].name} against", ["", "TTFT added p50 ms", "tokens/s ratio"],
                          [[name, *found.values()] for name, found in compared.items()]))  # fmt: skip
    notes = [f"medians of {settings.rounds} rounds (least-most); load average {weather['load_before']} before, "
             f"{weather['load_after']} after; stolen {weather['steal_percent']}%"]  # fmt: skip
    about = {**machine(), **weather}
    data = {"machine": about, "sides": ranges, "compared": compared, "urls": {side.name: side.url for side in sides}}
    return Report("serve", data, grids, notes, failures, asdict(settings))
