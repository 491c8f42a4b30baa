"""What an answer costs: hosted models by their price per token, own models by their accelerators' hours. One file is read; no network.

An own model's price per token depends on how busy its accelerators are more than on anything else, so it is a curve over utilisation (the
share of the tokens a second measured at the latency goal that is really asked for), never one number.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import yaml

SHIPPED = Path(__file__).parent / "prices.yaml"
UTILISATIONS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


class CostError(Exception):
    """A price that was asked for is unknown or makes no sense."""


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """US dollars per million tokens, and the date that the catalog gives for them."""

    input: float
    output: float
    cached_input: float | None = None
    updated: str = ""


class Own(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model on own accelerators: what they cost an hour, and the tokens a second that all of them together did at the latency goal.

    `prefill_share` is the part of the accelerators' time that goes into prompts (`prefill_share_of` derives it from two measurements).
    """

    usd_per_gpu_hour: float
    gpus: float = 1.0
    input_tokens_per_s: float
    output_tokens_per_s: float
    prefill_share: float
    utilisation: float


class Disagreement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A price on which two catalogs differ by more than 1%: for a person to settle at the provider's page."""

    model: str
    field: str
    ours: float
    other: float


class Prices(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A dated snapshot of prices. `hosted` names are provider/model; `own` names are those of models.yaml.

    `sources` are the catalogs that it was made from, `pages` the providers' own, where a person checks a price.
    """

    date: str
    sources: tuple[str, ...] = ()
    pages: dict[str, str] = {}
    hosted: dict[str, Price] = {}
    own: dict[str, Own] = {}
    disagreements: tuple[Disagreement, ...] = ()

    def price(self, model: str) -> Price | None:
        """The price of a model by its full name, or by its bare name where all that share it agree. None: unknown."""
        if model in self.own:
            return own_price(self.own[model])
        if model in self.hosted:
            return self.hosted[model]
        bare = {(price.input, price.output): price for name, price in self.hosted.items() if name.partition("/")[2] == model}
        return next(iter(bare.values())) if len(bare) == 1 else None

    def of_run(self, facts: Mapping[str, Any]) -> Price | None:
        """The price of a run's model, else what its router said of it when it ran. None: unknown."""
        told = facts.get("served", {}).get("price", {})
        read, written = told.get("usd_per_million_input_tokens"), told.get("usd_per_million_output_tokens")
        said = None if read is None or written is None else Price(input=read, output=written)
        return self.price(facts["model"]) or said


class Point(NamedTuple):
    """One point of the curve: US dollars per million input and output tokens, and per task, at a utilisation."""

    utilisation: float
    input: float
    output: float
    usd_per_task: float


def read_prices(file: Path = SHIPPED) -> Prices:
    """Reads a price file. Raises `CostError` with what is wrong where."""
    try:
        prices = msgspec.convert(yaml.safe_load(file.read_text(encoding="utf-8")), Prices, strict=False)
    except (OSError, yaml.YAMLError, msgspec.ValidationError) as error:
        raise CostError(f"{file} is no price file: {error}. Compare it with {SHIPPED}") from None
    for name, own in prices.own.items():
        _check(file, name, own)
    return prices


def _check(file: Path, name: str, own: Own) -> None:
    if not 0 < own.utilisation <= 1 or not 0 <= own.prefill_share <= 1:
        raise CostError(f"{file}: own model `{name}`: utilisation is above 0 and at most 1, prefill_share from 0 to 1")
    if min(own.input_tokens_per_s, own.output_tokens_per_s) <= 0 or min(own.usd_per_gpu_hour, own.gpus) < 0:
        raise CostError(f"{file}: own model `{name}`: tokens per second are above 0, its price and number of GPUs not below")


def usd(price: Price, prompt_tokens: float, completion_tokens: float) -> float:
    """US dollars for so many tokens, none of them cached."""
    return (price.input * prompt_tokens + price.output * completion_tokens) / 1e6


def own_price(own: Own, utilisation: float | None = None) -> Price:
    """Dollars per million tokens of an own model at a utilisation (default: its own).

    Each phase is charged its share of the accelerators' time, so that at this workload's mix both together cost exactly the fleet.
    """
    busy = own.utilisation if utilisation is None else utilisation
    usd_per_s = own.usd_per_gpu_hour * own.gpus / 3600 / busy * 1e6
    return Price(input=usd_per_s * own.prefill_share / own.input_tokens_per_s,
                 output=usd_per_s * (1 - own.prefill_share) / own.output_tokens_per_s)  # fmt: skip


def prefill_share_of(prompt_tokens: float, completion_tokens: float, prefill_tokens_per_s: float, decode_tokens_per_s: float) -> float:
    """The share of accelerator time that prompts take, from throughput measured with prompts alone and with decoding alone.

    Both come from `vllm bench serve`: once with one output token, once with one input token.
    """
    prefill, decode = prompt_tokens / prefill_tokens_per_s, completion_tokens / decode_tokens_per_s
    return prefill / (prefill + decode)


def curve(own: Own, prompt_tokens: float, completion_tokens: float, at: Sequence[float] = UTILISATIONS) -> list[Point]:
    """What a task of so many tokens costs at each utilisation."""
    prices = [(busy, own_price(own, busy)) for busy in at]
    return [Point(busy, price.input, price.output, usd(price, prompt_tokens, completion_tokens)) for busy, price in prices]


def break_even(
    own: Own, hosted: Price, prompt_tokens: float, completion_tokens: float, *, own_success: float = 1.0, hosted_success: float = 1.0
) -> float | None:
    """The utilisation above which a successful task costs less on own accelerators. None: not even at full use.

    u = own cost at full use / hosted cost, each per success.
    """
    if not own_success or not hosted_success:
        return 0.0 if own_success else None
    ours = usd(own_price(own, 1.0), prompt_tokens, completion_tokens) / own_success
    theirs = usd(hosted, prompt_tokens, completion_tokens) / hosted_success
    return ours / theirs if theirs > 0 and ours <= theirs else None


def costs_of(rows: Iterable[Any], price: Price | None) -> list[float] | None:
    """Dollars of each row: what the router said, else tokens by the price. None: a completed row could not be priced.

    A failed request without token counts costs nothing: nobody bills it. Own accelerators' idle time is in their price already.
    """
    found: list[float] = []
    for row in rows:
        known = row.prompt_tokens is not None or row.completion_tokens is not None
        if row.cost_usd is not None:
            found.append(row.cost_usd)
        elif row.failed and not known:
            found.append(0.0)
        elif price is None or not known:
            return None
        else:
            found.append(usd(price, row.prompt_tokens or 0, row.completion_tokens or 0))
    return found
