"""`models.yaml` as frozen data: which models are hosted, from where, on what, at what price.

Everything that can be known without starting anything is checked here; whether a model fits a node is `fit`'s question.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import msgspec

from serving.identity import digest_of
from serving.strict import ConfigError, Document, nearest

__all__ = ["Adapter", "Catalog", "ConfigError", "Document", "Model", "Price", "engine_argument_names", "nearest", "read_catalog"]

SHIPPED = Path(__file__).parent / "models.yaml"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_REVISION = re.compile(r"[0-9a-f]{40}")
# Arguments that inhouse derives from its own keys; given twice they could disagree.
_OURS = {"model": "path` or `repo", "served_model_name": "name", "tensor_parallel_size": "gpus", "lora_modules": "adapters",
         "enable_lora": "adapters", "revision": "revision", "tokenizer_revision": "revision", "distributed_executor_backend": "gpus",
         "host": "name", "port": "name", "api_key": "name"}


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a model costs: per hour of its accelerator (or CPU slice), or per million tokens. Amounts in US dollars.

    `tokens_per_s` is what one replica reads and writes in a second at full load, measured: it makes a price per token of one per hour.
    """

    usd_per_gpu_hour: float | None = None
    usd_per_million_input_tokens: float | None = None
    usd_per_million_output_tokens: float | None = None
    tokens_per_s: float | None = None


class Adapter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A LoRA adapter in a local folder, asked for by its own name."""

    name: str
    path: str


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One hosted model. `gpus` and `cpus` are per replica; `gpus: 0` means that it runs on the CPU."""

    name: str
    license: str
    price: Price
    description: str = ""
    path: str | None = None
    repo: str | None = None
    revision: str | None = None
    engine: dict[str, Any] = {}
    adapters: tuple[Adapter, ...] = ()
    gpus: int = 0
    gpu_type: str | None = None
    cpus: float = 1.0
    replicas: int = 1
    upgrade: Literal["surge", "recreate"] = "surge"
    max_ongoing_requests: int | None = None
    max_queued_requests: int = 256

    @property
    def ongoing_limit(self) -> int:
        """Requests a replica takes at once: what was asked, or what the engine batches plus a few on the doorstep."""
        if self.max_ongoing_requests is not None:
            return self.max_ongoing_requests
        return int(self.engine.get("max_num_seqs", 256)) + 8

    def folder(self, home: Path, catalog_folder: Path) -> Path:
        """Where the weights lie: beside the catalog for `path`, under `home` for a fetched `repo`."""
        if self.path is not None:
            return (catalog_folder / self.path).resolve()
        return home / "models" / str(self.repo).replace("/", "--") / str(self.revision)

    def digests(self, home: Path, catalog_folder: Path) -> dict[str, str]:
        """By the model's name and its adapters': what changes when the weights do, empty where that can't be known here.

        For a `repo` it is the pinned commit; for a local folder, and an adapter together with its model, see `digest_of`.
        """
        mine = self.revision or digest_of(self.folder(home, catalog_folder))
        found = {self.name: mine}
        for adapter in self.adapters:
            added = digest_of((catalog_folder / adapter.path).resolve())
            found[adapter.name] = hashlib.sha256(f"{mine}\0{added}".encode()).hexdigest() if mine and added else ""
        return found


class Catalog(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All hosted models, in the file's order."""

    models: tuple[Model, ...]

    def named(self, name: str) -> Model:
        """The model of that name. Raises `ConfigError` with the nearest known name."""
        for model in self.models:
            if model.name == name:
                return model
        raise ConfigError(f"no model `{name}` in the catalog{nearest(name, [m.name for m in self.models])}")


@cache
def engine_argument_names() -> frozenset[str]:
    """The arguments of the pinned vLLM engine and its HTTP front end (written by `python -m serving.engine_args`)."""
    return frozenset(json.loads(resources.files("serving").joinpath("engine_args.json").read_text(encoding="utf-8"))["names"])


def read_catalog(path: Path = SHIPPED) -> Catalog:
    """Reads and checks a catalog. Raises `ConfigError` naming the line."""
    document = Document(path)
    catalog = document.read(Catalog)
    owners: dict[str, int] = {}
    for i, model in enumerate(catalog.models):
        _check(document, f"$.models[{i}]", model)
        for name in (model.name, *(adapter.name for adapter in model.adapters)):
            if name in owners:
                raise document.error(f"$.models[{i}]", f"the name `{name}` is taken by the model on line {owners[name]}")
            owners[name] = document.line(f"$.models[{i}]")
    if not catalog.models:
        raise document.error("$", "no models; add one under `models:`")
    return catalog


def _check(document: Document, at: str, model: Model) -> None:
    for key, name in ((f"{at}.name", model.name), *((f"{at}.adapters", a.name) for a in model.adapters)):
        if not _NAME.fullmatch(name):
            raise document.error(key, f"`{name}` can't be a model's name: lower-case letters, digits, dot, dash, underscore, at most 63")
    if (model.path is None) == (model.repo is None):
        raise document.error(at, f"`{model.name}` needs exactly one of `path` (a local folder) and `repo` (on the hub, with `revision`)")
    if model.repo is not None and not _REVISION.fullmatch(model.revision or ""):
        raise document.error(f"{at}.revision", f"`{model.name}` is not pinned: `revision` must be a full 40-digit commit hash; "
                             f"`inhouse models search {model.repo}` prints the current one")
    if model.path is not None and model.revision is not None:
        raise document.error(f"{at}.revision", "`revision` goes with `repo`; a local `path` has none")
    counts = (("gpus", model.gpus, 0), ("replicas", model.replicas, 1), ("max_queued_requests", model.max_queued_requests, 0),
              ("max_ongoing_requests", model.max_ongoing_requests, 1))
    for key, number, least in counts:
        if number is not None and number < least:
            raise document.error(f"{at}.{key}", f"`{key}` must be at least {least}, not {number}")
    if model.cpus <= 0:
        raise document.error(f"{at}.cpus", f"`cpus` must be above 0, not {model.cpus}")
    _check_price(document, at, model)
    _check_engine(document, at, model.engine)


def _check_price(document: Document, at: str, model: Model) -> None:
    price = model.price
    tokens = (price.usd_per_million_input_tokens, price.usd_per_million_output_tokens)
    hourly = price.usd_per_gpu_hour is not None
    if hourly == (tokens != (None, None)) or (not hourly and None in tokens):
        raise document.error(f"{at}.price", f"the price of `{model.name}` is either `usd_per_gpu_hour` or both "
                             "`usd_per_million_input_tokens` and `usd_per_million_output_tokens`")
    if any(value is not None and not 0 <= value < 1e6 for value in (price.usd_per_gpu_hour, *tokens)):
        raise document.error(f"{at}.price", f"the price of `{model.name}` must be between 0 and 1,000,000 dollars")
    if price.tokens_per_s is not None and not 0 < price.tokens_per_s < 1e9:
        raise document.error(f"{at}.price.tokens_per_s", f"`tokens_per_s` of `{model.name}` must be above 0; "
                             "`inhouse bench serve` measures it")


def _check_engine(document: Document, at: str, engine: Mapping[str, Any]) -> None:
    known = engine_argument_names()
    sequences = engine.get("max_num_seqs", 1)
    if not isinstance(sequences, int) or sequences < 1:
        raise document.error(f"{at}.engine.max_num_seqs", f"`max_num_seqs` must be a whole number of at least 1, not `{sequences}`")
    for name in engine:
        if name in _OURS:
            raise document.error(f"{at}.engine.{name}", f"`{name}` is set by inhouse from `{_OURS[name]}`; write it there")
        if name not in known:
            raise document.error(f"{at}.engine.{name}", f"the engine has no argument `{name}`{nearest(name, known)}")


def json_schema() -> dict[str, Any]:
    """The JSON schema of `models.yaml`, for editors."""
    schema = msgspec.json.schema(Catalog)
    engine = schema["$defs"]["Model"]["properties"]["engine"]
    engine |= {"propertyNames": {"enum": sorted(engine_argument_names() - _OURS.keys())}}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "inhouse models.yaml", **schema}
