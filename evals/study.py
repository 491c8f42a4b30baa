"""What a notebook does in one call: ask a model a suite, put a local stand-in where no key is, bill it at the published price.

A stand-in is named as one in every record, so that no verdict about it can be taken for one about the hosted model.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from msgspec import structs

from evals.client import Endpoint
from evals.cost import CostError, Price, Prices, usd
from evals.run import Plan, limited, run
from evals.store import Stored
from evals.suite import read_suite


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


def ask(suite: str, endpoint: Endpoint, home: Path, *, limit: int | None = None, tell: Callable[[Any], None] = lambda _: None) -> Stored:
    """Asks a suite's cases and returns the stored run. In a thread of its own, as a notebook's own event loop is running."""
    plan = Plan(limited(read_suite(suite), limit), endpoint)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(run, plan, home, tell).result()


def billed(made: Stored, other: Hosted) -> Stored:
    """A run under the name of a hosted model or its stand-in, each row at the published price."""
    rows = [structs.replace(row, cost_usd=None if row.prompt_tokens is None or row.completion_tokens is None
                            else usd(other.price, row.prompt_tokens, row.completion_tokens)) for row in made.rows]  # fmt: skip
    return made._replace(rows=rows, facts=made.facts | {"model": other.name})
