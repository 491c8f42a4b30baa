"""Takes a machine out of a cell, or all models off it, without cutting a request short.

Runs on the head, whose REST API and GCS it asks; does not stop Ray afterwards. A drained machine's replicas start elsewhere first.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from serving.deploy import DRAIN_S
from serving.serve_api import ServeApi, ServeRefusedError, ServeUnreachableError


class DrainError(Exception):
    """A machine could not be drained; it goes on serving. The message says why."""


def drain(api: ServeApi, ip: str, *, gcs: str, environment: Mapping[str, str], timeout_s: float,
          tell: Callable[[str], None] = lambda _: None) -> None:
    """Returns when no replica is left on the machine with this address. Raises `DrainError` when Ray refuses or time is up.

    A model with no room elsewhere keeps its replica here until then; Serve then lets its requests end and stops it all the same.
    """
    try:
        nodes = node_ids(api.details(), ip)
        for node in nodes:
            _ask(node, gcs, environment, timeout_s)
        _until_none(lambda: replicas(api.details(), ip), timeout_s, lambda left: tell(f"waiting for {left} to leave {ip}"),
                    late=f"{ip} still runs {{left}} after {timeout_s:.0f} s; is there room for them on other machines?")
    except (ServeRefusedError, ServeUnreachableError) as error:
        raise DrainError(f"{ip} is not drained: {error}") from error


def empty(api: ServeApi, *, http_port: int, host: str, timeout_s: float, tell: Callable[[str], None] = lambda _: None) -> None:
    """Takes every model off the cell; returns when their requests have ended. Raises `DrainError` when they have not in time."""
    try:
        api.deploy({"proxy_location": "EveryNode", "http_options": {"host": host, "port": http_port}, "applications": []})
        _until_none(lambda: sorted(api.details()["applications"]), timeout_s, lambda left: tell(f"waiting for the requests of {left}"),
                    late=f"{{left}} still answer after {timeout_s:.0f} s; `inhouse cell deploy` brings the others back")
    except (ServeRefusedError, ServeUnreachableError) as error:
        raise DrainError(f"the cell is not emptied: {error}") from error


def _until_none(names: Callable[[], list[str]], timeout_s: float, tell: Callable[[str], None], *, late: str) -> None:
    """Asks every second until no name is left. Raises `DrainError` with `late`, which names `{left}`, when time is up."""
    deadline = time.monotonic() + timeout_s
    while found := names():
        left = ", ".join(found)
        if time.monotonic() > deadline:
            raise DrainError(late.format(left=left))
        tell(left)
        time.sleep(1)


def node_ids(details: Mapping[str, Any], ip: str) -> list[str]:
    """Ray's ids of the machines with this address that serve something."""
    proxies = {node: proxy.get("node_ip") for node, proxy in (details.get("proxies") or {}).items()}
    ids = {replica["node_id"]: replica.get("node_ip") for _, replica in _replicas(details) if replica.get("node_id")}
    return sorted(node for node, at in (proxies | ids).items() if at == ip)


def replicas(details: Mapping[str, Any], ip: str) -> list[str]:
    """The models that have a replica on the machine with this address, in order."""
    return sorted({name for name, replica in _replicas(details) if replica.get("node_ip") == ip})


def _replicas(details: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    return [(name, replica) for name, application in details.get("applications", {}).items()
            for deployment in application.get("deployments", {}).values() for replica in deployment.get("replicas", ())]


def command(node: str, gcs: str, timeout_s: float) -> list[str]:
    """Ray's own command, whose client speaks the cell's TLS and token. Serve stops a replica its `DRAIN_S` before Ray's deadline, whether
    another has started or not: that moment is `timeout_s` from now.
    """
    return [sys.executable, "-m", "ray.scripts.scripts", "drain-node", "--address", gcs, "--node-id", node,
            "--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "taken out by an administrator",
            "--deadline-remaining-seconds", str(int(timeout_s) + DRAIN_S)]


def _ask(node: str, gcs: str, environment: Mapping[str, str], timeout_s: float) -> None:
    said = subprocess.run(command(node, gcs, timeout_s), capture_output=True, text=True, check=False, timeout=120,
                          env={**os.environ, **environment})
    if said.returncode:
        lines = [line for line in (said.stderr + said.stdout).splitlines() if line.strip()]
        raise DrainError(f"Ray did not drain {node[:12]}: {lines[-1] if lines else 'it said nothing'}")
