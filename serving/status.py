"""What runs: models, their replicas and load, processes and memory. Reads only; imports neither ray nor vllm."""

import re
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from serving import processes
from serving.deploy import reason
from serving.node import read_node
from serving.processes import Process
from serving.serve_api import ServeRefusedError, ServeUnreachableError, fetch

_METRICS_S = 2.0  # Serve holds a request for a model whose replica has just died until there is another
_SAMPLE = re.compile(r"^(vllm:[a-z_]+)(?:\{[^}]*\})? (\S+)$", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class ReplicaStatus:
    """One replica as Serve sees it; `state` is Serve's word in lower case (starting, running, stopping ...)."""

    id: str
    state: str
    pid: int | None


@dataclass(frozen=True, kw_only=True)
class Load:
    """An engine's own counters. With several replicas they are those of whichever one answered."""

    running: int
    waiting: int
    prompt_tokens: int
    generated_tokens: int
    generated_tokens_per_s: float


@dataclass(frozen=True, kw_only=True)
class ModelStatus:
    """One model. `is_ready` means that requests are answered; `load` is None where the engine did not say."""

    name: str
    url: str
    state: str
    message: str
    replicas: tuple[ReplicaStatus, ...]
    load: Load | None

    @property
    def is_ready(self) -> bool:
        return any(replica.state == "running" for replica in self.replicas)


@dataclass(frozen=True, kw_only=True)
class NodeStatus:
    """All of it. `message` says why models are unknown when the processes live but Serve does not answer."""

    is_running: bool
    message: str
    models: tuple[ModelStatus, ...]
    processes: tuple[Process, ...]

    @property
    def rss_bytes(self) -> int:
        """Resident memory of all processes; pages that several share count in each."""
        return sum(process.rss_bytes for process in self.processes)


def status(home: Path, *, sample_s: float = 0.5) -> NodeStatus:
    """The state of a home's node and its models. Takes `sample_s` and a little more: rates come from two looks at the counters."""
    found = processes.describe(processes.marked(str(home.resolve())))
    node = read_node(home)
    if not found or node is None:
        return NodeStatus(is_running=False, message="not running; start it with `inhouse up`", models=(), processes=found)
    try:
        applications = node.api.details()["applications"]
    except (ServeUnreachableError, ServeRefusedError, OSError) as error:
        return NodeStatus(is_running=False, message=f"{error}; `inhouse up` starts it again", models=(), processes=found)
    models = [_model(name, application, node.http_url) for name, application in applications.items()]
    loads = _loads({model.name: f"{model.url}/metrics" for model in models if model.is_ready}, sample_s)
    return NodeStatus(is_running=True, message="", models=tuple(replace(model, load=loads.get(model.name)) for model in models),
                      processes=found)


def _model(name: str, application: Mapping[str, Any], url: str) -> ModelStatus:
    deployments = list(application.get("deployments", {}).values())
    message = "\n".join([application.get("message") or "", *(one.get("message") or "" for one in deployments)])
    replicas = tuple(ReplicaStatus(id=replica["replica_id"], state=replica["state"].lower(), pid=replica.get("pid"))
                     for one in deployments for replica in one.get("replicas", ()))
    return ModelStatus(name=name, url=f"{url}/models/{name}", state=application["status"].lower(), message=reason(message),
                       replicas=replicas, load=None)


def _loads(urls: Mapping[str, str], sample_s: float) -> dict[str, Load]:
    before = _scrape(urls)
    if not sample_s:
        return {name: _load(now, now, 0) for name, now in before.items()}
    time.sleep(sample_s)
    after = _scrape({name: urls[name] for name in before})
    return {name: _load(before[name], now, sample_s) for name, now in after.items()}


def _scrape(urls: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """The counters of every model that answers."""
    with ThreadPoolExecutor(max_workers=16) as pool:
        texts = zip(urls, pool.map(_metrics, urls.values()), strict=True)
        return {name: counters(text) for name, text in texts if text is not None}


def _metrics(url: str) -> str | None:
    try:
        return fetch(url, _METRICS_S)
    except ServeUnreachableError:
        return None


def counters(text: str) -> dict[str, float]:
    """vLLM's samples in Prometheus' text format, added up over their labels."""
    sums: dict[str, float] = {}
    for name, value in _SAMPLE.findall(text):
        sums[name] = sums.get(name, 0.0) + float(value)
    return sums


def _load(before: Mapping[str, float], now: Mapping[str, float], seconds: float) -> Load:
    def count(name: str, sample: Mapping[str, float] = now) -> int:
        return int(sample.get(f"vllm:{name}", 0))

    generated = count("generation_tokens_total")
    gained = max(0, generated - count("generation_tokens_total", before))  # a replaced engine counts from zero
    return Load(running=count("num_requests_running"), waiting=count("num_requests_waiting"), prompt_tokens=count("prompt_tokens_total"),
                generated_tokens=generated, generated_tokens_per_s=gained / seconds if seconds else 0.0)
