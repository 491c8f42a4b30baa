"""What a notebook does in one call: ask a model a suite, put a local stand-in where no key is, bill it at the published price, say where
each model stands and what command makes a verdict the route.

A stand-in is named as one in every record, so that no verdict about it can be taken for one about the hosted model.
"""

import asyncio
import hashlib
import json
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from msgspec import structs

from evals.client import Endpoint, identity_at
from evals.cost import CostError, Own, Price, Prices, costs_of, usd
from evals.load import Load, Loaded
from evals.report import Share, report
from evals.run import Plan, limited, run
from evals.store import Stored
from evals.suite import read_suite
from evals.verdict import Verdict

HELD = 0.95  # of the requests within the latency goal


class Hosted(NamedTuple):
    """A hosted model or its stand-in: whom to ask, its published price, and the name for records."""

    endpoint: Endpoint
    price: Price
    name: str
    is_stand_in: bool


def hosted(model: str, base_url: str, key_env: str, stand_in: Endpoint, prices: Prices) -> Hosted:
    """The hosted `provider/model` where the environment has its key, else the stand-in. Raises `CostError` where it has no price."""
    price = prices.hosted.get(model)
    if price is None:
        raise CostError(f"`{model}` has no price in the snapshot of {prices.date}; names are provider/model, as in evals/prices.yaml")
    if key := os.environ.get(key_env):
        return Hosted(Endpoint(base_url, model.partition("/")[2], key=key), price, model, is_stand_in=False)
    return Hosted(stand_in, price, f"{stand_in.model}, a stand-in for {model}", is_stand_in=True)


def ask(suite: str, endpoint: Endpoint, home: Path, *, limit: int | None = None, load: Load | None = None) -> Stored:
    """Asks a suite's cases and returns the stored run. In a thread of its own, as a notebook's own event loop is running.

    An endpoint on premises without a digest gets the one that its router has of the model: without it no verdict can promote.
    """

    def _asked() -> Stored:
        known = asyncio.run(identity_at(endpoint.base_url, endpoint.model, endpoint.key)) if endpoint.onprem else endpoint.identity
        asked = replace(endpoint, digest=endpoint.digest or known.digest, identity=known)
        return run(Plan(limited(read_suite(suite), limit), asked, load=load), home, lambda _: None)

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(_asked).result()


def own_measured(made: Stored, *, usd_per_gpu_hour: float, prefill_share: float, gpus: float = 1, utilisation: float = 0.3) -> Own:
    """An own model's throughput from a run under load, at the latency goal that the run had.

    Raises `CostError` where the run had no load or no goal, or missed it on more than a twentieth of the requests: then it says what the
    accelerators can't do, not what they can.
    """
    if "load" not in made.facts:
        raise CostError(f"{made.id} was not under load. Make such a run: inhouse eval run SUITE --model NAME --rate 20 --slo-ttft 0.5")
    load = msgspec.convert(made.facts["load"], Loaded)
    limits = made.facts["settings"]["load"]
    if limits["slo_ttft_s"] is None and limits["slo_tpot_s"] is None:
        raise CostError(f"{made.id} had no latency goal, so its tokens a second are of no quality. Give one: --slo-ttft or --slo-tpot")
    good = (load.goodput_per_s or 0.0) * load.duration_s / load.requests
    if good < HELD:
        raise CostError(f"{made.id} met its latency goal on {good:.0%} of the requests and {HELD:.0%} are needed; lower --rate")
    return Own(usd_per_gpu_hour=usd_per_gpu_hour, gpus=gpus, input_tokens_per_s=load.prompt_tokens_per_s,
               output_tokens_per_s=load.output_tokens_per_s, prefill_share=prefill_share, utilisation=utilisation)  # fmt: skip


def billed(made: Stored, other: Hosted) -> Stored:
    """A run under the name of a hosted model or its stand-in, each row at the published price."""
    rows = [structs.replace(row, cost_usd=None if row.prompt_tokens is None or row.completion_tokens is None
                            else usd(other.price, row.prompt_tokens, row.completion_tokens)) for row in made.rows]  # fmt: skip
    return made._replace(rows=rows, facts=made.facts | {"model": other.name})


def own_listed(*, usd_per_gpu_hour: float, tokens_per_s: float, gpus: float = 1, utilisation: float = 0.3) -> Own:
    """An own model by its line in models.yaml: one throughput for tokens read and written, so that both cost the same."""
    return Own(usd_per_gpu_hour=usd_per_gpu_hour, gpus=gpus, input_tokens_per_s=tokens_per_s / 2, output_tokens_per_s=tokens_per_s / 2,
               prefill_share=0.5, utilisation=utilisation)  # fmt: skip


class Standing(NamedTuple):
    """Where a model stands at a task: effective success with its interval, and US dollars per success (None: unpriced, or no success)."""

    task: str
    model: str
    success: Share
    usd_per_success: float | None


def standing(made: Stored, prices: Prices) -> Standing:
    """A run as a point of quality and cost."""
    model = made.facts["model"]
    costs, successes = costs_of(made.rows, prices.of_run(made.facts)), math.fsum(row.value or 0.0 for row in made.rows)
    paid = math.fsum(costs) / successes if costs is not None and successes else None
    return Standing(made.facts["suite"], model, report(made.rows).overall.effective, paid)


def frontier(points: Sequence[Standing]) -> list[Standing]:
    """The points that no other of the same task beats in quality or cost without losing in the other. Unpriced ones are not on it."""
    priced = [(one, one.success.value or 0.0, one.usd_per_success) for one in points if one.usd_per_success is not None]

    def is_beaten(one: Standing, success: float, paid: float) -> bool:
        return any(other.task == one.task and (right, cost) != (success, paid) and right >= success and cost <= paid
                   for other, right, cost in priced)  # fmt: skip

    return [point[0] for point in priced if not is_beaten(*point)]


def promotion(verdict: Verdict) -> str | None:
    """The command that gives the task to the candidate; None where the verdict does not let it."""
    if not verdict.promotes:
        return None
    return f"inhouse routes promote --task {verdict.task} --to {verdict.candidate} --evidence {verdict.id}"


class CommandError(Exception):
    """What `inhouse` said when it could not do what was asked."""


def command(*words: str) -> Any:
    """What `inhouse WORDS --json` prints, parsed: rooms that notebooks do not import are asked so. Raises `CommandError`."""
    asked = subprocess.run([sys.executable, "-m", "inhouse", *words, "--json"], capture_output=True, text=True, check=False)
    if asked.returncode:
        raise CommandError(asked.stderr.strip().removeprefix("Error: ") or f"inhouse {words[0]} exited with {asked.returncode}")
    return json.loads(asked.stdout)


def origin(*config: Path) -> dict[str, str]:
    """The code's commit and the hashes of the files that a notebook's answers rest on."""
    commit = subprocess.run(["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest()[:16] for file in config}
    return {"git": commit.stdout.strip() or "no repository"} | hashes


def provenance(made: Stored, *config: Path) -> dict[str, str]:
    """What a reader needs to get the same again: code, config, data, prompt, model, when."""
    facts = {name: str(made.facts.get(name, "")) for name in ("data_sha256", "prompt_sha256", "model", "model_digest", "host", "started")}
    return {"run": made.id} | origin(*config) | facts
