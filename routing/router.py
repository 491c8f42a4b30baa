"""The life of a request, step by step, over bytes and frozen data: no framework here, no socket.

    identify -> label -> decide -> choose -> forward -> settle -> record

Each step takes plain data and returns the next thing or raises a `Refusal`. Budgets (reserve), data classes and approvals are further
steps between decide and choose. The last two happen where an answer ends: in `forward`.
"""

import re
import time
from dataclasses import dataclass
from typing import Any

import msgspec

from routing.choose import Fleet, Target
from routing.config import Site
from routing.errors import BadRequest, Denied, NotFound, Refusal, Unavailable, WrongMethod
from routing.forward import Decided, Door, Reply, new_id
from routing.keys import Caller, KeyRing
from routing.ledger import Ledger
from routing.request import ENDPOINTS, Asked, Endpoint, read_asked
from routing.tasks import Classifier, as_table
from serving.catalog import nearest

_TASK = "task/"
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_JSON = b"content-type: application/json\r\n"


class Request(msgspec.Struct, frozen=True, gc=False):
    """What came in, whole. Header names are lower case; of a header sent twice the last counts."""

    method: str
    path: str
    headers: dict[bytes, bytes]
    body: bytes
    at: float
    started: float

    @property
    def request_id(self) -> str:
        """The caller's `x-request-id` where it is one, else a new one."""
        given = self.headers.get(b"x-request-id", b"")
        return given.decode() if given and is_request_id(given) else new_id()


class Label(msgspec.Struct, frozen=True, gc=False):
    """What a request was found to be: its task (empty where a model was named), the model asked for by name, and why."""

    task: str
    model: str
    why: str


@dataclass(frozen=True)
class House:
    """Everything that a worker knows while it answers."""

    site: Site
    classifier: Classifier
    keys: KeyRing
    fleet: Fleet
    door: Door
    ledger: Ledger


async def answer(house: House, request: Request) -> Reply:
    """Any request to its reply. Raises `Refusal`."""
    endpoint = ENDPOINTS.get(request.path)
    if endpoint is None:
        return _other(house, request)
    if request.method != "POST":
        raise WrongMethod(f"{request.path} takes POST, not {request.method}")
    caller = identify(house.keys, request)
    request_id = request.request_id
    asked = label = None
    try:
        asked = _read(house.site, endpoint, request)
        label = assign(house, asked)
        decide(caller, label)
        targets = choose(house.fleet, house.site, label)
    except Refusal as refusal:
        _record_refusal(house, request, request_id, caller, (asked, label, refusal))
        raise
    decided = Decided(asked, request_id, caller.key_id, caller.name, label.task, label.why, request.at, request.started, request.headers)
    return await house.door.forward(decided, targets)


def identify(keys: KeyRing, request: Request) -> Caller:
    """Whose request this is, by bearer token or Anthropic's `x-api-key`. Raises `Unauthorized`."""
    value = request.headers.get(b"authorization", b"")
    if value[:7].lower() == b"bearer ":
        return keys.identify(value[7:].strip())
    return keys.identify(request.headers.get(b"x-api-key", b""))


def _read(site: Site, endpoint: Endpoint, request: Request) -> Asked:
    if request.headers.get(b"content-encoding", b"identity") != b"identity":
        raise BadRequest("compressed request bodies are not taken; send it without `Content-Encoding`")
    return read_asked(endpoint, request.body, json_depth=site.routes.limits.json_depth, media_domains=site.routes.media_domains)


def assign(house: House, asked: Asked) -> Label:
    """The task: named by `task/<name>`, told by the classifier for `auto`, none where a model is named. Raises `NotFound`."""
    name = asked.model
    if name == "auto":
        if not house.classifier.may_serve:
            raise Unavailable("`auto` is off: the tasks can't be told apart well enough on held-out examples (see /readyz); "
                              "name the task as `task/<name>`", code="auto_unavailable")  # fmt: skip
        task, why = house.classifier.task_of(asked.text())
        return Label(task, "", why)
    if name.startswith(_TASK):
        task = name[len(_TASK) :]
        if task not in house.site.tasks:
            raise NotFound(f"no task `{task[:80]}`{nearest(task[:80], house.site.tasks)}; GET /v1/models lists them", param="model")
        return Label(task, "", "task named")
    if not house.site.serves(name):
        raise NotFound(f"no model `{name[:80]}`{nearest(name[:80], house.site.models)}; GET /v1/models lists them", param="model")
    return Label("", name, "model named")


def decide(caller: Caller, label: Label) -> None:
    """Whether this caller may. Raises `Denied`. The policy: callers may use the tasks and models on their key."""
    if label.task and not caller.may_use_task(label.task):
        raise Denied(f"this key does not open the task `{label.task}`; ask for one that does")
    if label.model and not caller.may_use_model(label.model):
        raise Denied(f"this key does not open the model `{label.model}`; ask for one that does, or use a task")


def choose(fleet: Fleet, site: Site, label: Label) -> list[Target]:
    """The targets in the order to try."""
    return fleet.for_model(label.model) if label.model else fleet.for_task(site.tasks[label.task])


def _record_refusal(
    house: House, request: Request, request_id: str, caller: Caller, what: tuple[Asked | None, Label | None, Refusal]
) -> None:
    asked, label, refusal = what
    asked = asked or Asked(ENDPOINTS[request.path], "", False, False, b"")
    label = label or Label("", "", "")
    decided = Decided(asked, request_id, caller.key_id, caller.name, label.task, label.why, request.at, request.started, {})
    house.ledger.append(decided.row(0, label.model, refusal.status, error=refusal.code))


def _other(house: House, request: Request) -> Reply:
    """The paths that ask no model."""
    if request.path == "/v1/models" or request.path.startswith("/v1/models/"):
        return _models(house, request)
    if request.path == "/healthz":
        return Reply(200, _JSON, b'{"status":"ok"}')
    if request.path == "/readyz":
        ready = readiness(house)
        return Reply(200 if ready["ready"] else 503, _JSON, msgspec.json.encode(ready))
    raise NotFound(f"nothing is served at {request.path[:80]}; callers have {', '.join(sorted(ENDPOINTS)[:4])} and others under /v1",
                   code="not_found")  # fmt: skip


def _models(house: House, request: Request) -> Reply:
    if request.method != "GET":
        raise WrongMethod(f"{request.path} takes GET, not {request.method}")
    caller = identify(house.keys, request)
    entries = {entry["id"]: entry for entry in _listed(house, caller)}
    if request.path == "/v1/models":
        return Reply(200, _JSON, msgspec.json.encode({"object": "list", "data": list(entries.values())}))
    name = request.path.removeprefix("/v1/models/")
    if name not in entries:
        raise NotFound(f"no model or task `{name[:80]}` on this key; GET /v1/models lists them", param="model")
    return Reply(200, _JSON, msgspec.json.encode(entries[name]))


def _listed(house: House, caller: Caller) -> list[dict[str, Any]]:
    """Tasks first, then models: what each is and whether it answers now."""
    site = house.site
    entries = []
    if house.classifier.may_serve:
        entries.append(_entry("auto", "auto", "the task is told from the text", ready=True))
    for name, task in site.tasks.items():
        if caller.may_use_task(name):
            ready = any(house.fleet.is_ready(candidate.model) for candidate in task.candidates)
            entries.append(_entry(f"{_TASK}{name}", "task", task.description, ready=ready))
    for name, model in site.models.items():
        if caller.may_use_model(name):
            entries.append(_entry(name, "model" if name == model.name else "adapter", model.description, ready=house.fleet.is_ready(name)))
    return entries


def _entry(name: str, kind: str, description: str, *, ready: bool) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "inhouse", "kind": kind, "description": description, "ready": ready}


def readiness(house: House) -> dict[str, Any]:
    """Whether every task has a model that answers, and everything that is known of why not."""
    tasks = {
        name: any(house.fleet.is_ready(model) for model in (*(c.model for c in task.candidates), *task.fallbacks))
        for name, task in house.site.tasks.items()
    }
    return {
        "ready": all(tasks.values()) and not house.ledger.failing,
        "tasks": tasks,
        "models": {name: house.fleet.is_ready(name) for name in house.site.models},
        "auto": {"serves": house.classifier.may_serve, "tasks": as_table(house.classifier)},
        "ledger": "cannot write" if house.ledger.failing else "ok",
    }


def is_request_id(given: bytes) -> bool:
    """Whether a caller's `x-request-id` is one that may go into headers and the ledger."""
    return _REQUEST_ID.fullmatch(given) is not None


def now() -> tuple[float, float]:
    """Unix time and monotonic time, both in seconds."""
    return time.time(), time.monotonic()
