"""What callers may ask beside models: which tasks and models there are, their runs, and whether the router is well."""

import time
from typing import Any

import msgspec

from routing.choose import Fleet
from routing.errors import NotFound, WrongMethod
from routing.forward import Reply
from routing.house import House
from routing.keys import Caller
from routing.standing import stale
from routing.tasks import as_table

_JSON = b"content-type: application/json\r\n"
_TELLING = ("dtype", "quantization", "kv_cache_dtype", "max_model_len", "reasoning_parser", "tool_call_parser", "seed")
"""Engine settings that change answers, and that anybody who may ask the model may know."""
TASK = "task/"  # before a task's name, where a model's name may stand


def health(house: House, path: str) -> Reply:
    """`/healthz`: this process answers. `/readyz`: 200 where every task has a model that answers."""
    if path == "/healthz":
        return Reply(200, _JSON, b'{"status":"ok"}')
    ready = readiness(house)
    return Reply(200 if ready["ready"] else 503, _JSON, msgspec.json.encode(ready))


def readiness(house: House) -> dict[str, Any]:
    """Whether every task has a model that answers, and everything that is known of why not."""
    plan = house.plan
    tasks = {name: any(plan.fleet.is_ready(model) for model in task.models()) for name, task in plan.site.tasks.items()}
    return {
        "ready": all(tasks.values()) and not house.ledger.failing and not house.audit.failing,
        "tasks": tasks,
        "models": {name: plan.fleet.is_ready(name) for name in plan.site.names()},
        "auto": {"serves": plan.classifier.may_serve, "tasks": as_table(plan.classifier)},
        "stale_evidence": stale(plan.site, house.known, time.time()),
        "ledger": "cannot write" if house.ledger.failing else "ok",
        "audit": "cannot write" if house.audit.failing else "ok",
        "config": {"version": plan.version, "policy": plan.policy.hash, "not_taken": house.stale},
    }


def models(house: House, caller: Caller, method: str, path: str) -> Reply:
    """`/v1/models` and one of them: tasks first, then models, what each is and whether it answers now."""
    if method != "GET":
        raise WrongMethod(f"{path} takes GET, not {method}")
    entries = {entry["id"]: entry for entry in _listed(house, caller)}
    if path == "/v1/models":
        return _json({"object": "list", "data": list(entries.values())})
    name = path.removeprefix("/v1/models/")
    if name not in entries:
        raise NotFound(f"no model or task `{name[:80]}` on this key; GET /v1/models lists them", param="model")
    return _json(entries[name])


def _listed(house: House, caller: Caller) -> list[dict[str, Any]]:
    plan = house.plan
    site, fleet = plan.site, plan.fleet
    entries = []
    if plan.classifier.may_serve:
        entries.append(_entry("auto", "auto", "the task is told from the text", ready=True))
    for name, task in site.tasks.items():
        if caller.may_use_task(name):
            ready = any(fleet.is_ready(candidate.model) for candidate in task.candidates)
            entries.append(_entry(f"{TASK}{name}", "task", task.description, ready=ready))
    for name, model in site.models.items():
        if caller.may_use_model(name):
            entry = _entry(name, "model" if name == model.name else "adapter", model.description, ready=fleet.is_ready(name))
            entries.append(entry | {"digest": house.known.digests.get(name, ""), "repo": model.repo or "", "revision": model.revision or "",
                                    "engine": {key: model.engine[key] for key in _TELLING if key in model.engine},
                                    "price": _price(fleet, name)})  # fmt: skip
    for name, hosted in site.hosted.items():
        if caller.may_use_model(name):
            entry = _entry(name, "hosted", hosted.model.description, ready=fleet.is_ready(name))
            entries.append(entry | {"price": _price(fleet, name)})
    return entries


def _price(fleet: Fleet, name: str) -> dict[str, float]:
    """US dollars per million tokens, by the names that models.yaml has for them; nothing where calls pay by their time."""
    price = fleet.targets[name][0].price
    if price.wall_gpus:
        return {}
    return {"usd_per_million_input_tokens": price.prompt / 1e9, "usd_per_million_output_tokens": price.completion / 1e9}


def _entry(name: str, kind: str, description: str, *, ready: bool) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "inhouse", "kind": kind, "description": description, "ready": ready}


async def runs(house: House, caller: Caller, method: str, path: str, body: bytes) -> Reply:
    """`POST /v1/runs` makes a run; GET and DELETE of one show it with all below it and what they spent, and stop it."""
    run_id = path.removeprefix("/v1/runs").removeprefix("/")
    if not run_id and method == "POST":
        return _json(await house.runs.create(caller.name, body))
    if run_id and method == "GET":
        return _json(await house.runs.show(run_id, caller.name))
    if run_id and method == "DELETE":
        document = await house.runs.stop(run_id, caller.name)
        house.underway.end(house.runs.killed)
        return _json(document)
    raise WrongMethod(f"/v1/runs takes POST, /v1/runs/<id> takes GET and DELETE; this is {method}")


def _json(document: dict[str, Any]) -> Reply:
    return Reply(200, _JSON, msgspec.json.encode(document))
