"""`routes.yaml` as frozen data: the tasks, who may answer them, where the models are and what a request may weigh.

Read once by each worker, never in the request path. It checks itself against the catalog; it starts nothing.
"""

import hashlib
import math
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from routing.budgets import Budget, budgets_of
from routing.classes import CLASSES, ONPREM, ZONES, DataClass, Detected, Sample, Zone, check_classes, check_reach
from routing.evidence import Evidence
from routing.providers import Hosted, Provider, check_providers
from serving.catalog import Catalog, ConfigError, Document, Model, nearest

SHIPPED = Path(__file__).parent / "routes.yaml"
MODELS_PORT = 8100
_MIB = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")  # it goes into headers, addresses and metrics
_SIGNATURES = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_SAFE_JWKS = re.compile(r"https://|http://(?:127\.0\.0\.1|localhost|\[::1\])[:/]")
_URL = re.compile(r"https?://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(\d{1,5}))?(?:/[A-Za-z0-9._~/-]*)?")


class Candidate(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A model that may answer a task, its share of the traffic relative to the task's other candidates, and why it is there."""

    model: str
    weight: float = 1.0
    evidence: Evidence | None = None


class Task(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A kind of work with a name. `examples` are what callers write; they teach `auto` to recognise it.

    `polling` names the tools of its agents that are there to be called again and again: calling them is no loop. `budgets` are what all
    calls of the task together may use, as `5usd/day`. Without `sample` nothing of its traffic is written down.
    """

    name: str
    description: str = ""
    examples: tuple[str, ...] = ()
    candidates: tuple[Candidate, ...]
    fallbacks: tuple[str, ...] = ()
    polling: tuple[str, ...] = ()
    budgets: tuple[str, ...] = ()
    sample: Sample | None = None

    def models(self) -> list[str]:
        """Whoever may answer it, in the order of the file."""
        return [*(candidate.model for candidate in self.candidates), *self.fallbacks]

    def limits(self) -> tuple[Budget, ...]:
        """What all calls of the task together may use."""
        return budgets_of(self.budgets)


class ModelLimits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What all callers together may use of a model, whichever task asks it, as `120calls/minute` or `8concurrent`; `each_caller` is what
    each of them may."""

    model: str
    budgets: tuple[str, ...] = ()
    each_caller: tuple[str, ...] = ()


class Cell(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One Ray cluster, by the address of its Serve proxy. A model answers at `<url>/models/<name>`."""

    name: str
    url: str
    zone: str = ONPREM


class Auto(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """When `model: auto` may decide by itself: held-out precision and coverage that each task must reach, both 0 to 1.

    `confidence` is the share of right answers that calibration keeps per task: the higher, the fewer abstentions.
    """

    min_precision: float = 0.9
    min_coverage: float = 0.5
    confidence: float = 0.95


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one request may weigh and how long each part of it may take."""

    body_bytes: int = 16 * _MIB
    header_bytes: int = 32 * 1024
    json_depth: int = 64
    answer_bytes: int = 64 * _MIB
    connections_per_worker: int = 4096
    header_timeout_s: float = 15.0
    body_timeout_s: float = 60.0
    keep_alive_timeout_s: float = 75.0
    connect_timeout_s: float = 3.0
    first_byte_timeout_s: float = 600.0
    idle_timeout_s: float = 120.0
    total_timeout_s: float = 3600.0


class Grant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a bearer token opens in which `claim` is `value`, or a list that has it; the rest as on a key, budgets for each caller."""

    claim: str
    value: str
    team: str = ""
    tasks: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    default_class: str = ""
    max_class: str = ""
    budgets: tuple[str, ...] = ()
    batch: bool = False


class Oidc(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """An issuer whose bearer tokens are taken beside API keys. `jwks` is a file or a URL; `caller` is the claim that names who calls.

    The first grant that fits counts; a token that fits none opens nothing.
    """

    issuer: str
    audience: str
    jwks: str
    grants: tuple[Grant, ...]
    caller: str = "sub"
    algorithms: tuple[str, ...] = ("RS256", "PS256", "ES256", "EdDSA")


class Routes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file. `default_task` takes what `auto` is not sure about. No `cells` means the one on this machine.

    `data_classes` go from the least to the most sensitive; a request of which nobody says or finds anything has the `default_class`.
    Evidence older than `evidence_days` counts as stale; without a number, age makes none so. Runs that ended `keep_runs_days` ago are
    forgotten.
    `presidio` is the language in which that detector is asked, none where it is empty. A request that offers a model one of the
    `risky_tools` needs a person's approval. `policies` is a folder of Cedar files beside this file; empty means the shipped ones.
    """

    default_task: str
    tasks: tuple[Task, ...]
    cells: tuple[Cell, ...] = ()
    auto: Auto = Auto()
    limits: Limits = Limits()
    media_domains: tuple[str, ...] = ()
    providers: tuple[Provider, ...] = ()
    model_limits: tuple[ModelLimits, ...] = ()
    zones: tuple[Zone, ...] = ZONES
    data_classes: tuple[DataClass, ...] = CLASSES
    default_class: str = "internal"
    detected: Detected = Detected()
    presidio: str = ""
    risky_tools: tuple[str, ...] = ()
    policies: str = ""
    oidc: Oidc | None = None
    evidence_days: float | None = None
    keep_runs_days: float = 30.0


class Site(NamedTuple):
    """What the router knows of the house: its routes and the models they name. `version` is a digest of both files."""

    routes: Routes
    tasks: dict[str, Task]
    models: dict[str, Model]
    cells: tuple[Cell, ...]
    hosted: dict[str, Hosted]
    version: str

    def names(self) -> list[str]:
        """All models and adapters, ours and hosted ones."""
        return [*self.models, *self.hosted]

    def serves(self, name: str) -> bool:
        """Whether a model or adapter of that name can be asked."""
        return name in self.models or name in self.hosted


def read_site(routes_path: Path, catalog: Catalog, *, models_port: int = MODELS_PORT) -> Site:
    """Reads `routes.yaml` against the catalog. Raises `ConfigError` naming the line.

    `models_port` is where this machine's own cell answers, for a file that names no cells.
    """
    document = Document(routes_path)
    routes = document.read(Routes)
    models = {name: model for model in catalog.models for name in (model.name, *(a.name for a in model.adapters))}
    hosted = check_providers(document, routes.providers, models)
    tasks: dict[str, Task] = {}
    for i, task in enumerate(routes.tasks):
        if task.name in tasks or task.name == "auto" or not _NAME.fullmatch(task.name):
            raise document.error(f"$.tasks[{i}].name", f"`{task.name}` can't name a task: it is taken, it is `auto`, or it is not made "
                                 "of letters, digits, dot, dash and underscore, at most 63")  # fmt: skip
        tasks[task.name] = task
        _check_task(document, i, task, {**models, **hosted})
    if routes.default_task not in tasks:
        raise document.error("$.default_task", f"no task `{routes.default_task}`{nearest(routes.default_task, tasks)}")
    _check_places(document, routes)
    _check_numbers(document, routes)
    _check_model_limits(document, routes, {**models, **hosted})
    cells = routes.cells or (Cell(name="local", url=f"http://127.0.0.1:{models_port}"),)
    _check_labels(document, routes, tasks, hosted, {cell.zone for cell in cells})
    if routes.oidc is not None:
        _check_oidc(document, routes.oidc, tasks, {**models, **hosted})
    version = hashlib.sha256(routes_path.read_bytes() + msgspec.json.encode(catalog)).hexdigest()[:12]
    return Site(routes, tasks, models, cells, hosted, version)


def _check_task(document: Document, i: int, task: Task, models: Collection[str]) -> None:
    at = f"$.tasks[{i}]"
    if not task.candidates:
        raise document.error(f"{at}.candidates", f"task `{task.name}` has no candidates; name at least one model")
    if any(not candidate.weight >= 0 for candidate in task.candidates) or not 0 < sum(c.weight for c in task.candidates) < math.inf:
        raise document.error(f"{at}.candidates", "weights must be numbers that are not negative, and one of them must be above 0")
    named = [(f"{at}.candidates[{j}].model", c.model) for j, c in enumerate(task.candidates)]
    named += [(f"{at}.fallbacks[{j}]", name) for j, name in enumerate(task.fallbacks)]
    for where, name in named:
        if name not in models:
            raise document.error(where, f"no model `{name}` in the catalog{nearest(name, models)}")
    try:
        task.limits()
    except ValueError as error:
        raise document.error(f"{at}.budgets", str(error)) from error
    if task.sample is not None and not 0 < task.sample.share <= 1:
        raise document.error(f"{at}.sample.share", "a share is a number above 0 and at most 1: 0.01 is one answer in a hundred")
    if any(not example.strip() for example in task.examples):
        raise document.error(f"{at}.examples", "an example is empty; write what a caller would")


def _check_labels(document: Document, routes: Routes, tasks: dict[str, Task], hosted: dict[str, Hosted], ours: set[str]) -> None:
    """Zones and classes are known, and every class can be answered somewhere. `ours` are the zones of the cells, which host all models."""
    zones = [(f"$.{key}[{i}].zone", zone) for key, many in (("cells", [cell.zone for cell in routes.cells]),
             ("providers", [provider.zone for provider in routes.providers])) for i, zone in enumerate(many)]  # fmt: skip
    classes = [(f"$.oidc.grants[{i}].{key}", name) for i, grant in enumerate(routes.oidc.grants if routes.oidc else ())
               for key in ("default_class", "max_class") if (name := getattr(grant, key))]  # fmt: skip
    classes += [(f"$.tasks[{i}].sample.up_to", task.sample.up_to) for i, task in enumerate(routes.tasks) if task.sample]
    check_classes(document, routes, zones_used=zones, classes_used=classes)
    reach = {name: [{hosted[model].provider.zone} if model in hosted else ours for model in task.models()] for name, task in tasks.items()}
    check_reach(document, routes, {name: set().union(*those) for name, those in reach.items()})


def _check_model_limits(document: Document, routes: Routes, models: Collection[str]) -> None:
    for i, limited in enumerate(routes.model_limits):
        if limited.model not in models or limited.model in (other.model for other in routes.model_limits[:i]):
            raise document.error(f"$.model_limits[{i}].model", f"`{limited.model}` is no model, or is limited twice"
                                 f"{nearest(limited.model, models)}")  # fmt: skip
        for key in ("budgets", "each_caller"):
            try:
                budgets_of(getattr(limited, key))
            except ValueError as error:
                raise document.error(f"$.model_limits[{i}].{key}", str(error)) from error


def _check_places(document: Document, routes: Routes) -> None:
    """Cells and providers share their names: both are where an answer came from."""
    names: set[str] = set()
    places = [(f"$.cells[{i}]", one.name, one.url) for i, one in enumerate(routes.cells)]
    places += [(f"$.providers[{i}]", one.name, one.url) for i, one in enumerate(routes.providers)]
    for at, name, url in places:
        found = _URL.fullmatch(url)
        if found is None or int(found[1] or 80) > 65535:
            raise document.error(f"{at}.url", f"`{url}` is not an http:// or https:// address of host, port and path alone")
        if name in names:
            raise document.error(f"{at}.name", f"`{name}` is there twice; give each cell and provider its own name")
        names.add(name)


def _check_numbers(document: Document, routes: Routes) -> None:
    for key in Limits.__struct_fields__:
        if not 0 < getattr(routes.limits, key) < math.inf:
            raise document.error(f"$.limits.{key}", f"`{key}` must be a number above 0")
    for key in ("evidence_days", "keep_runs_days"):
        if (days := getattr(routes, key)) is not None and not 0 < days < math.inf:
            raise document.error(f"$.{key}", f"`{key}` must be a number above 0")
    for key in Auto.__struct_fields__:
        if not 0 <= getattr(routes.auto, key) <= 1:
            raise document.error(f"$.auto.{key}", f"`{key}` is a share between 0 and 1")


def _check_oidc(document: Document, oidc: Oidc, tasks: dict[str, Task], models: Collection[str]) -> None:
    if not (oidc.issuer and oidc.audience and oidc.caller and oidc.grants):
        raise document.error("$.oidc", "`issuer`, `audience`, `caller` and at least one of `grants` must say something")
    if unsafe := [name for name in oidc.algorithms if name not in _SIGNATURES] or not oidc.algorithms:
        raise document.error("$.oidc.algorithms", f"{unsafe} can't be taken: a token is signed with a private key, by one of "
                             f"{', '.join(_SIGNATURES)}")  # fmt: skip
    if "://" in oidc.jwks and not _SAFE_JWKS.match(oidc.jwks):
        raise document.error("$.oidc.jwks", f"`{oidc.jwks}` is not an https:// address: whoever sits on the way could send keys of his own")
    for i, grant in enumerate(oidc.grants):
        for kind, named, known in (("task", grant.tasks, tasks), ("model", grant.models, models)):
            for name in named:
                if name not in known and name != "*":
                    raise document.error(f"$.oidc.grants[{i}].{kind}s", f"no {kind} `{name}`{nearest(name, known)}")
        try:
            budgets_of(grant.budgets)
        except ValueError as error:
            raise document.error(f"$.oidc.grants[{i}].budgets", str(error)) from error


def json_schema() -> dict[str, Any]:
    """The JSON schema of `routes.yaml`, for editors."""
    schema = msgspec.json.schema(Routes)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "inhouse routes.yaml", **schema}


__all__ = ["MODELS_PORT", "SHIPPED", "Auto", "Candidate", "Cell", "ConfigError", "Grant", "Limits", "Oidc", "Routes", "Site", "Task",
           "json_schema", "read_site"]  # fmt: skip
