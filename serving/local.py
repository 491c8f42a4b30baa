"""The serving side of `inhouse up`, `down` and `status`: one Ray node on this machine and the catalog's models on it."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from serving.catalog import ConfigError, read_catalog
from serving.deploy import DeployError, deploy
from serving.node import NodeError, NodeSettings, is_healthy, read_node, start_node, stop_node
from serving.preflight import PreflightError
from serving.preflight import check_port as check_port
from serving.processes import MARK
from serving.progress import Progress
from serving.serve_api import ServeRefused, ServeUnreachable


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


def stop(home: Path) -> int:
    """Ends every process of this home, the router included; returns how many there were."""
    return stop_node(home)


@contextmanager
def user_errors() -> Iterator[None]:
    """What a user can cause ends as one line on stderr and exit code 1."""
    try:
        yield
    except (ConfigError, DeployError, NodeError, PreflightError, ServeRefused, ServeUnreachable, TimeoutError) as error:
        raise click.ClickException(" ".join(str(error).split("\n"))) from error
