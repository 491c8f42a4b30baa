"""Hosted providers as `routes.yaml` writes them: where their API is, whose key opens it, which of their models may be named, at what price.

Plain data and its checks; requests go out by `forward` alone.
"""

import math
import os
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Literal

import msgspec

from routing.classes import HOSTED
from serving.catalog import ConfigError, Document

STALE_DAYS = 90  # hosted prices change several times a year


class HostedPrice(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """US dollars per million tokens, as `source` (a page) said on the day `as_of`."""

    usd_per_million_input_tokens: float
    usd_per_million_output_tokens: float
    as_of: date
    source: str


class HostedModel(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A provider's model under a name of ours; `id` is the provider's own, `context` what it reads and writes at most (tokens)."""

    name: str
    price: HostedPrice
    context: int
    id: str = ""
    description: str = ""


class Provider(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An API of somebody else. `url` is what comes before `/v1`. Its key is in the environment (`key_env`) or a file (`key_file`)."""

    name: str
    url: str
    models: tuple[HostedModel, ...]
    dialect: Literal["openai", "anthropic"] = "openai"
    zone: str = HOSTED
    key_env: str = ""
    key_file: str = ""

    def key(self) -> str:
        """The key, or nothing where none is named. Raises `ConfigError` where it can't be had."""
        if self.key_file:
            try:
                return Path(self.key_file).read_text(encoding="utf-8").strip()
            except OSError as error:
                raise ConfigError(f"provider `{self.name}`: its key file {self.key_file} can't be read: {error.strerror}") from error
        if self.key_env and not os.environ.get(self.key_env):
            raise ConfigError(f"provider `{self.name}`: the environment has no {self.key_env}; set it, or name a `key_file`")
        return os.environ.get(self.key_env, "").strip() if self.key_env else ""


class Hosted(msgspec.Struct, frozen=True):
    """A hosted model and whose it is."""

    provider: Provider
    model: HostedModel


def check_providers(document: Document, providers: Sequence[Provider], taken: Iterable[str]) -> dict[str, Hosted]:
    """The hosted models by name. Raises `ConfigError` naming the line."""
    found: dict[str, Hosted] = {}
    names = set(taken)
    for i, provider in enumerate(providers):
        at = f"$.providers[{i}]"
        if provider.key_env and provider.key_file:
            raise document.error(at, f"the key of `{provider.name}` is in `key_env` or in `key_file`, not in both")
        if not provider.models:
            raise document.error(at, f"provider `{provider.name}` has no `models`; name those that may be used")
        for j, model in enumerate(provider.models):
            if model.name in names:
                raise document.error(f"{at}.models[{j}].name", f"the name `{model.name}` is taken; give it another, its `id` may stay")
            _check_model(document, f"{at}.models[{j}]", model)
            names.add(model.name)
            found[model.name] = Hosted(provider, model)
    return found


def _check_model(document: Document, at: str, model: HostedModel) -> None:
    price = model.price
    for key in ("usd_per_million_input_tokens", "usd_per_million_output_tokens"):
        if not 0 <= getattr(price, key) < math.inf:
            raise document.error(f"{at}.price.{key}", f"the price of `{model.name}` must be a number that is not negative")
    if not price.source.strip():
        raise document.error(f"{at}.price.source", f"say where the price of `{model.name}` was read: a page's address")
    if model.context < 1:
        raise document.error(f"{at}.context", f"`context` of `{model.name}` is how many tokens it takes; at least 1")


def stale_prices(providers: Iterable[Provider], today: date) -> list[str]:
    """A line for each price that was read over 90 days ago."""
    return [
        f"the price of `{model.name}` was read on {model.price.as_of} ({(today - model.price.as_of).days} days ago); look again at "
        f"{model.price.source} and set `as_of`"
        for provider in providers for model in provider.models if (today - model.price.as_of).days > STALE_DAYS
    ]  # fmt: skip
