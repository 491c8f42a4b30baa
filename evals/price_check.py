"""Makes prices.yaml: prices from the catalog bundled with MLflow, beside genai-prices'. For maintainers: python -m evals.price_check

Neither package is asked anything over the network. Where both price a model and differ by more than 1%, the file says so for a person to
settle at the provider's page; the catalog's figure stands until then. MLflow is found, not imported.
"""

import datetime
import importlib.metadata
import importlib.util
import json
from pathlib import Path
from typing import Any

import msgspec
import yaml

from evals.cost import SHIPPED, Disagreement, Price, Prices

PAGES = {  # the providers in the snapshot, and the page where a person checks a price
    "anthropic": "https://claude.com/pricing",
    "deepseek": "https://api-docs.deepseek.com/quick_start/pricing",
    "gemini": "https://ai.google.dev/gemini-api/docs/pricing",
    "groq": "https://groq.com/pricing",
    "mistral": "https://mistral.ai/pricing",
    "openai": "https://developers.openai.com/api/docs/pricing",
    "together_ai": "https://www.together.ai/pricing",
}
OTHER_NAMES = {"gemini": "google", "together_ai": "together"}  # genai-prices' own
TOLERANCE = 0.01


def catalog() -> dict[str, Price]:
    """The chat models with a price in MLflow's bundled catalog, as provider/model."""
    found = importlib.util.find_spec("mlflow")
    assert found is not None and found.submodule_search_locations
    folder = Path(found.submodule_search_locations[0]) / "utils" / "model_catalog"
    return {
        f"{provider}/{name}": _price(entry)
        for provider in PAGES
        for name, entry in json.loads((folder / f"{provider}.json").read_text(encoding="utf-8"))["models"].items()
        if entry.get("mode") == "chat" and {"input_per_million_tokens", "output_per_million_tokens"} <= entry.get("pricing", {}).keys()
    }


def _price(entry: dict[str, Any]) -> Price:
    pricing = entry["pricing"]
    return Price(input=pricing["input_per_million_tokens"], output=pricing["output_per_million_tokens"],
                 cached_input=pricing.get("cache_read_per_million_tokens"), updated=entry["last_updated_at"])  # fmt: skip


def other_price(model: str, date: str) -> Price | None:
    """genai-prices' price of a model on a day, for a thousand tokens of either kind; None where it has none."""
    from genai_prices import Usage, calc_price

    provider, _, name = model.partition("/")
    noon = datetime.datetime.fromisoformat(f"{date}T12:00Z")
    told = {"provider_id": OTHER_NAMES.get(provider, provider), "genai_request_timestamp": noon}
    try:
        both = [calc_price(Usage(**{kind: 1000}), name, **told).total_price * 1000 for kind in ("input_tokens", "output_tokens")]
    except LookupError:
        return None
    return Price(input=float(both[0]), output=float(both[1]))


def disagreements(ours: dict[str, Price], date: str) -> list[Disagreement]:
    """Where the two catalogs differ by more than 1% of the larger on that day."""
    found = []
    for model, price in ours.items():
        other = other_price(model, date)
        for field in ("input", "output") if other else ():
            one, two = getattr(price, field), getattr(other, field)
            if abs(one - two) > TOLERANCE * max(one, two):
                found.append(Disagreement(model=model, field=field, ours=one, other=two))
    return found


def snapshot() -> Prices:
    """All of it, as of today."""
    hosted = catalog()
    sources = tuple(f"{name} {importlib.metadata.version(name)}" for name in ("mlflow", "genai-prices"))
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    return Prices(date=today, sources=sources, pages=PAGES, hosted=hosted, disagreements=tuple(disagreements(hosted, today)))


def as_yaml(prices: Prices) -> str:
    """The file's text: one line a model, so that a review shows which price changed."""

    def line(value: Any) -> str:
        made = msgspec.to_builtins(value)
        if isinstance(made, dict):
            made = {key: part for key, part in made.items() if part is not None}
        return yaml.safe_dump(made, default_flow_style=True, width=1000, sort_keys=False).removesuffix("...\n").strip()

    def table(values: dict[str, Any]) -> str:
        return "".join(f"  {name}: {line(value)}\n" for name, value in values.items())

    differing = "".join(f"  - {line(one)}\n" for one in prices.disagreements)
    return (f"# US dollars per million tokens. Made by: python -m evals.price_check. `disagreements` wait for a person to settle them.\n"
            f"date: '{prices.date}'\nsources: {line(prices.sources)}\npages:\n{table(prices.pages)}hosted:\n{table(prices.hosted)}"
            f"disagreements:\n{differing}")  # fmt: skip


def main() -> None:
    """Writes prices.yaml and says what differs."""
    prices = snapshot()
    SHIPPED.write_text(as_yaml(prices), encoding="utf-8")
    print(f"{SHIPPED}: {len(prices.hosted)} models, {len(prices.disagreements)} disagreements")


if __name__ == "__main__":
    main()
