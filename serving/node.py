"""One Ray head on this machine, on loopback only and without telemetry: start it, find it again, end it.

For servers Ansible starts Ray itself and passes addresses; models are deployed on both in the same way (`deploy`).
"""

import fcntl
import hashlib
import math
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from serving import processes
from serving.catalog import Catalog
from serving.environment import HaproxyMissingError, cell_environment
from serving.preflight import check_machine, check_port
from serving.progress import Progress
from serving.serve_api import ServeApi, ServeRefusedError, ServeUnreachableError
from serving.sockets import free_ports

HTTP_PORT = 8100
_START_S = 180  # a head takes 6 s on two idle cores; this is for a machine under load
_OBJECT_STORE_BYTES = 80_000_000  # requests do not travel through it


class NodeError(Exception):
    """The node did not start, or does not run; the message says why and what to do."""


@dataclass(frozen=True, kw_only=True)
class NodeSettings:
    """What a person may choose about a node. `home` is INHOUSE_HOME."""

    home: Path
    http_port: int = HTTP_PORT


class Node(msgspec.Struct, frozen=True, kw_only=True):
    """A started node, as written in `run/node.json`: models answer at `http_url`/models/NAME."""

    home: str
    folder: str
    http_url: str
    dashboard_url: str
    ray_address: str

    @property
    def api(self) -> ServeApi:
        """Serve's REST API with this node's token."""
        return ServeApi(url=self.dashboard_url, token=_token_file(Path(self.home)).read_text(encoding="ascii"))


def read_node(home: Path) -> Node | None:
    """The node that was started last for this home, whether or not it still lives; None where there was none."""
    try:
        return msgspec.json.decode(_state_file(home).read_bytes(), type=Node)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def is_healthy(node: Node) -> bool:
    """Whether its REST API answers."""
    try:
        node.api.details()
    except (ServeUnreachableError, ServeRefusedError, OSError):
        return False
    return True


def start_node(settings: NodeSettings, catalog: Catalog) -> Iterator[Progress]:
    """Starts a node and reports each step; a healthy one is kept, a half-dead one is ended first.

    When it fails or is interrupted (Ctrl-C, or the iterator is closed) nothing is left running. Raises `PreflightError` or `NodeError`.
    """
    home = settings.home.resolve()
    began = time.monotonic()

    def step(phase: str, detail: str) -> Progress:
        return Progress(phase=phase, detail=detail, seconds=time.monotonic() - began)

    with _lock(home):
        node = read_node(home)
        if node is not None and processes.marked(str(home)) and is_healthy(node):
            yield step("node", f"already running at {node.http_url}")
            return
        if stop_node(home):
            yield step("clean", "ended what was left of an earlier start")
        check_machine(catalog)
        check_port(settings.http_port, "models are served on it; choose another with INHOUSE_MODELS_PORT")
        try:
            yield step("ray", "starting Ray on 127.0.0.1")
            node = _start(home, settings, catalog)
            yield step("serve", "waiting for Serve's REST API")
            _await_health(node)
        except BaseException:
            stop_node(home)
            raise
        yield step("node", f"ready at {node.http_url}")


def stop_node(home: Path) -> int:
    """Ends every process of this home's node, whoever started it and however; returns how many. Waits seconds, not for requests."""
    home = home.resolve()
    ended = processes.end(str(home))
    _state_file(home).unlink(missing_ok=True)
    _clear_folder(home)
    return ended


def _start(home: Path, settings: NodeSettings, catalog: Catalog) -> Node:
    gcs, dashboard, agent, stats, metrics, fallback, dashboard_metrics = free_ports(7)
    folder = _short_folder(home)
    node = Node(home=str(home), folder=str(folder), http_url=f"http://127.0.0.1:{settings.http_port}",
                dashboard_url=f"http://127.0.0.1:{dashboard}", ray_address=f"127.0.0.1:{gcs}")
    _write_secret(_token_file(home), secrets.token_hex(32))
    _state_file(home).write_bytes(msgspec.json.format(msgspec.json.encode(node), indent=1))
    environment = _environment(home, folder) | {
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats), "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(fallback), "DASHBOARD_METRIC_PORT": str(dashboard_metrics)}
    command = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--node-ip-address=127.0.0.1", f"--port={gcs}",
        "--min-worker-port=0", "--max-worker-port=0", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
        f"--dashboard-agent-listen-port={agent}", "--include-dashboard=true", "--include-log-monitor=false", "--no-monitor",
        "--disable-usage-stats", f"--object-store-memory={_OBJECT_STORE_BYTES}", f"--num-cpus={_cpus(catalog)}",
        f"--temp-dir={folder / 'ray'}"]
    log = home / "logs" / "ray-start.log"
    with log.open("wb") as out:
        # A session of its own: Ctrl-C reaches only us, and we end it in order.
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, cwd=home,
                                 start_new_session=True)
        try:
            code = child.wait(timeout=_START_S)
        except subprocess.TimeoutExpired as error:
            raise NodeError(f"Ray did not start within {_START_S} s; see {log}") from error
    if code:
        raise NodeError(f"Ray did not start: {last_line(log.read_text(encoding='utf-8', errors='replace'))}; see {log}")
    return node


def _await_health(node: Node) -> None:
    deadline = time.monotonic() + _START_S
    while not is_healthy(node):
        if time.monotonic() > deadline:
            raise NodeError(f"Serve's REST API did not answer within {_START_S} s; see {node.home}/logs/ray")
        time.sleep(0.2)


def _environment(home: Path, folder: Path) -> dict[str, str]:
    """What every process of the node inherits: what every cell has, and what keeps this one on loopback."""
    try:
        common = cell_environment(folder, _token_file(home))
    except HaproxyMissingError as error:
        raise NodeError(str(error)) from error
    return common | {
        processes.MARK: str(home), "SPT_NOENV": "1",  # setproctitle would write over the mark
        "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost",
        "GLOO_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": "127.0.0.1",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the switch that lets Ray keep 127.0.0.1: else it binds every interface
    }


def _short_folder(home: Path) -> Path:
    """A private folder with a short name: HAProxy's socket lies 77 characters below it, and a socket's path ends at 107.

    Ray makes its own folder writable for everybody; that is one level down, where nobody else gets.
    """
    folder = _folder(home)
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError as error:
        raise NodeError(f"{folder} belongs to someone else; remove it, or set INHOUSE_HOME to another folder") from error
    logs = home / "logs" / "ray"
    shutil.rmtree(logs, ignore_errors=True)
    logs.symlink_to(folder / "ray" / "session_latest" / "logs")
    return folder


def _clear_folder(home: Path) -> None:
    """Removes the short folder; its logs go where the link to them was, so that a failed start can be read about."""
    folder, logs = _folder(home), home / "logs" / "ray"
    if logs.is_symlink():
        kept = logs.resolve()
        logs.unlink()
        if kept.is_dir():
            shutil.copytree(kept, logs, symlinks=True)
    if folder.is_dir() and not folder.is_symlink() and folder.stat().st_uid == os.getuid():
        shutil.rmtree(folder)


def _folder(home: Path) -> Path:
    return Path("/tmp") / f"inhouse-{hashlib.sha256(str(home).encode()).hexdigest()[:8]}"  # noqa: S108 (made private, or refused)


def _cpus(catalog: Catalog) -> int:
    """CPUs that Ray may hand out: the machine's, and at least room for every CPU model twice, so that an upgrade can surge."""
    wanted = sum(model.cpus * model.replicas for model in catalog.models)
    return max(os.cpu_count() or 1, math.ceil(2 * wanted))


@contextmanager
def _lock(home: Path) -> Iterator[None]:
    """One starter at a time per home. Raises `NodeError`."""
    for name in ("run", "logs", "cache", "models"):
        (home / name).mkdir(parents=True, exist_ok=True)
    (home / "run").chmod(0o700)
    with (home / "run" / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise NodeError(f"another `inhouse up` is starting {home}; wait for it, or end it") from error
        yield


def last_line(text: str) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"


def _write_secret(path: Path, secret: str) -> None:
    """Writes a secret that only its owner can read, unless there is one."""
    if not path.exists():
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
            out.write(secret)


def _token_file(home: Path) -> Path:
    return home / "run" / "ray-token"


def _state_file(home: Path) -> Path:
    return home / "run" / "node.json"
