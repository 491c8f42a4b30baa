"""The serving side of `inhouse up`, `down` and `status`: one Ray node on this machine and the catalog's models on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from serving.catalog import ConfigError, read_catalog
from serving.deploy import DeployError, deploy
from serving.node import NodeError, NodeSettings, is_healthy, read_node, start_node, stop_node
from serving.preflight import PreflightError, check_folder, check_port
from serving.processes import MARK
from serving.progress import Progress
from serving.serve_api import ServeRefusedError, ServeUnreachableError
from serving.status import NodeStatus
from serving.status import status as node_status

__all__ = ["check", "check_port", "is_up", "load_models", "marks", "start", "status", "status_lines", "stop", "user_errors"]


def marks(home: Path) -> dict[str, str]:
    """The environment that makes a process part of this home, so that `stop` finds it."""
    return {MARK: str(home.resolve()), "SPT_NOENV": "1"}


def is_up(home: Path) -> bool:
    """Whether this home's node answers."""
    node = read_node(home)
    return node is not None and is_healthy(node)


def start(home: Path, catalog_path: Path, http_port: int) -> Iterator[Progress]:
    """Starts the node, ending first what is left of an unhealthy one; reports each step. A node that is up is left alone."""
    yield from start_node(NodeSettings(home=home, http_port=http_port), read_catalog(catalog_path))


def load_models(home: Path, catalog_path: Path, http_port: int) -> Iterator[Progress]:
    """Makes the catalog's models the ones that run on the node; reports until all answer. Those that did not change are not touched."""
    node = read_node(home)
    assert node is not None, "the node is started first"
    yield from deploy(read_catalog(catalog_path), node.api, home=home, catalog_folder=catalog_path.parent, http_port=http_port)


def check(home: Path, catalog_path: Path) -> None:
    """Reads the catalog and looks at every model's folder. Raises `ConfigError` or `PreflightError`, before anything is started."""
    for model in read_catalog(catalog_path).models:
        check_folder(model, model.folder(home, catalog_path.parent))


def status(home: Path) -> NodeStatus:
    """What runs; takes about a second, as rates need two looks."""
    return node_status(home, sample_s=1.0)


def status_lines(state: NodeStatus) -> list[str]:
    """The same for a person: models, then processes."""
    if not state.is_running:
        return [f"models     {state.message}"]
    lines = [f"memory     {state.rss_bytes / 2**30:.1f} GiB resident in {len(state.processes)} processes", "",
             f"{'MODEL':<24}{'STATE':<12}{'RUNNING':>8}{'WAITING':>8}{'TOKENS/S':>10}  REPLICAS"]  # fmt: skip
    for model in state.models:
        load = model.load
        busy = f"{load.running:>8}{load.waiting:>8}{load.generated_tokens_per_s:>10.0f}" if load else f"{'-':>8}{'-':>8}{'-':>10}"
        replicas = ", ".join(f"{replica.state} (pid {replica.pid})" for replica in model.replicas)
        lines.append(f"{model.name:<24}{model.state:<12}{busy}  {replicas}{f'  {model.message}' if model.message else ''}")
    lines += ["", f"{'PROCESS':<44}{'PID':>8}{'MIB':>8}"]
    lines += [f"{process.name[:43]:<44}{process.pid:>8}{process.rss_bytes / 2**20:>8.0f}" for process in state.processes]
    return lines


def stop(home: Path) -> int:
    """Ends every process of this home, the router included; returns how many there were."""
    return stop_node(home)


@contextmanager
def user_errors() -> Iterator[None]:
    """What a user can cause ends as one line on stderr and exit code 1."""
    try:
        yield
    except (ConfigError, DeployError, NodeError, PreflightError, ServeRefusedError, ServeUnreachableError, TimeoutError) as error:
        raise click.ClickException(" ".join(str(error).split("\n"))) from error
