"""The catalog as Ray Serve applications, one per model: adding, changing or removing one restarts no other.

Speaks Serve's REST API; imports neither ray nor vllm. Serve restarts an application when its `args` change, so these hold exactly
what a running engine can't change: its settings and the identity of its files. Everything else is an option of the deployment.
"""

import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

from serving import manifest
from serving.catalog import Catalog, Model
from serving.engine import Spec
from serving.preflight import check_folder
from serving.progress import Progress
from serving.serve_api import ServeApi, ServeUnreachableError, fetch

DEPLOYMENT = "Model"
# Long generations may finish; streams have no other deadline here. `inhouse down` does not wait for them.
DRAIN_S = 600
_POLL_S = 0.3
_PATIENCE_S = 60.0  # how long the REST API may be silent while models load: importing takes all cores
T = TypeVar("T")


class DeployError(Exception):
    """A model did not come up; the message carries the engine's own reason."""


def deploy(catalog: Catalog, api: ServeApi, *, home: Path, catalog_folder: Path, http_port: int, host: str = "127.0.0.1",
           timeout_s: float = 1800.0) -> Iterator[Progress]:
    """Makes the catalog's models the ones that run and reports until all answer; Serve listens at `host`, this machine's loopback included.

    Models that did not change are not touched. Raises `PreflightError` for a broken model folder before anything is changed,
    `DeployError` when an engine fails, does not fit or does not come up in time; the old version of a model then goes on serving.
    """
    began = time.monotonic()
    config = serve_config(catalog, home=home, catalog_folder=catalog_folder, http_port=http_port, host=host)
    _forget_failed(api, config)
    _patiently(lambda: api.deploy(config))
    yield Progress(phase="accepted", detail=f"{len(catalog.models)} models", seconds=time.monotonic() - began)
    told: dict[str, tuple[str, str]] = {}
    while any(phase != "running" for phase, _ in told.values()) or not told:
        applications = _applications(api)
        for wanted in config["applications"]:
            name = wanted["name"]
            phase, detail = _phase(wanted, applications.get(name))
            if phase == "running" and not _answers(f"http://127.0.0.1:{http_port}/models/{name}/health"):
                phase, detail = "starting", "engine is up, waiting for its route"
            now = phase, detail
            if told.get(name) != now:
                told[name] = now
                yield Progress(phase=phase, model=name, detail=detail, seconds=time.monotonic() - began)
            if phase == "failed":
                raise DeployError(f"model {name} did not start: {detail}; its log is in {home}/logs/ray/serve")
        if time.monotonic() - began > timeout_s:
            late = ", ".join(name for name, (phase, _) in told.items() if phase != "running")
            raise DeployError(f"not up after {timeout_s:.0f} s: {late}; `inhouse status` shows why, logs are in {home}/logs/ray/serve")
        time.sleep(_POLL_S)


def _forget_failed(api: ServeApi, config: dict[str, Any]) -> None:
    """Removes applications that failed and serve nothing: Serve does not try one again whose configuration is the same."""
    failed = {name for name, application in _applications(api).items() if application["status"] == "DEPLOY_FAILED"
              and not any(one.get("replicas") for one in application.get("deployments", {}).values())}
    if failed:
        rest = config | {"applications": [one for one in config["applications"] if one["name"] not in failed]}
        _patiently(lambda: api.deploy(rest))
    while failed & _applications(api).keys():
        time.sleep(_POLL_S)


def _applications(api: ServeApi) -> Mapping[str, Any]:
    """What Serve knows."""
    return dict(_patiently(api.details)["applications"])


def _patiently(call: Callable[[], T]) -> T:
    """What a call to the REST API gives. Silence and a 500, which a starting Serve gives on a busy machine, are borne for a while: to say
    what is wanted twice changes nothing."""
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return call()
        except ServeUnreachableError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_S)


def _answers(url: str) -> bool:
    """Whether requests get through: HAProxy learns of a replica a second after Serve calls it running."""
    try:
        fetch(url)
    except ServeUnreachableError:
        return False
    return True


def serve_config(catalog: Catalog, *, home: Path, catalog_folder: Path, http_port: int, host: str = "127.0.0.1") -> dict[str, Any]:
    """The document that Serve's REST API takes for a catalog. Raises `PreflightError` for a model folder that can't be loaded."""
    return {
        "proxy_location": "EveryNode",
        "http_options": {"host": host, "port": http_port, "keep_alive_timeout_s": 75},
        "logging_config": {"enable_access_log": False},
        "applications": [_application(model, home, catalog_folder) for model in catalog.models],
    }


def _application(model: Model, home: Path, catalog_folder: Path) -> dict[str, Any]:
    return {
        "name": model.name,
        "route_prefix": f"/models/{model.name}",
        "import_path": "serving.replica:build",
        "args": {"spec": asdict(spec(model, home, catalog_folder))},
        "deployments": [deployment(model)],
    }


def spec(model: Model, home: Path, catalog_folder: Path) -> Spec:
    """What one replica of a model needs to know."""
    folder = model.folder(home, catalog_folder)
    check_folder(model, folder)
    adapters = {adapter.name: str((catalog_folder / adapter.path).resolve()) for adapter in model.adapters}
    folders = [folder, *(Path(path) for path in adapters.values())]
    return Spec(name=model.name, folder=str(folder), engine=dict(model.engine), adapters=adapters, gpus=model.gpus, cpus=model.cpus,
                cache=str(home / "cache"), release=hashlib.sha256("".join(map(identity, folders)).encode()).hexdigest()[:16])


def identity(folder: Path) -> str:
    """Changes when a model's files change: the manifest's digest, or names, sizes and times where there is no manifest."""
    listed = manifest.read(folder)
    if listed is not None:
        return listed.digest
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return "".join(f"{path.relative_to(folder)}\0{path.stat().st_size}\0{path.stat().st_mtime_ns}\n" for path in files)


def deployment(model: Model) -> dict[str, Any]:
    """A model's options in Serve. Ray's defaults take any number of requests, stop before they start and cut after 20 s."""
    resources = {f"accelerator_type:{model.gpu_type}": 0.001} if model.gpu_type else {}
    return {
        "name": DEPLOYMENT,
        "num_replicas": model.replicas,
        "max_ongoing_requests": model.ongoing_limit,
        "max_queued_requests": model.max_queued_requests,
        "backpressure_config": {"status_code": 503, "retry_after_s": 1},
        "max_surge_percent": 100 if model.upgrade == "surge" else 0,
        "rolling_update_percentage": 1.0 if model.upgrade == "recreate" else 0.2,
        "graceful_shutdown_timeout_s": DRAIN_S,
        # A dead engine ends its replica at once (`replica`); the long timeout keeps a busy CPU from looking dead.
        "health_check_period_s": 2,
        "health_check_timeout_s": 60,
        # All GPUs of a replica are in one node: vLLM runs one worker process per GPU itself.
        "ray_actor_options": {"num_cpus": model.cpus, "num_gpus": model.gpus, "resources": resources},
    }


def _phase(wanted: Mapping[str, Any], application: Mapping[str, Any] | None) -> tuple[str, str]:
    """Where one model is (`waiting`, `starting`, `running`, `failed`) and one line about it."""
    if application is None or (application.get("deployed_app_config") or {}).get("args") != wanted["args"]:
        return "waiting", "Serve has not taken it up yet"
    state, message = application["status"], application.get("message") or ""
    deployments = application.get("deployments", {}).values()
    detail = reason(" ".join([message, *(one.get("message") or "" for one in deployments)]))
    if state == "RUNNING":
        return "running", ""
    if state == "DEPLOY_FAILED":
        return "failed", detail
    replicas = [replica["state"].lower() for one in deployments for replica in one.get("replicas", ())]
    return "starting", detail if "rror" in detail or not replicas else f"replica {', '.join(sorted(set(replicas)))}"


def reason(message: str) -> str:
    """The line of Serve's message that says what went wrong: the last exception of its traceback, else its first line."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if _is_error(line)]
    return (errors or lines or [""])[-1 if errors else 0]


def _is_error(line: str) -> bool:
    name, colon, text = line.partition(":")
    return bool(colon and text) and " " not in name and name.endswith(("Error", "Exception", "Exit"))
