"""`inhouse cell`: what a server's units and playbooks call. Arguments in, lines out; the work is done in `cell`, `deploy` and `drain`."""

import time
from pathlib import Path

import click

from serving.cell import DASHBOARD_PORT, GCS_PORT, HTTP_PORT, IN_USE, Member, become_ray, client_environment
from serving.cli import catalog_option, home_option
from serving.serve_api import ServeApi, ServeRefusedError, ServeUnreachableError

_FOLDER = click.Path(path_type=Path)
_TOKEN = click.option("--token", default=f"/var/lib/inhouse/cell/{IN_USE}", show_default=True, type=_FOLDER,
                      help="The file with the token that the running cell takes.")
_TLS = click.option("--tls", default="/etc/inhouse/tls", show_default=True, type=_FOLDER, help="The folder of ca.crt, node.crt, node.key.")
_PATIENCE_S = 180.0  # a head's REST API answers 6 s after its start on two idle cores; this is for a machine under load


@click.group()
def cell() -> None:
    """Run this server's part of a cell: one Ray cluster over several machines."""


@cell.command()
@click.option("--ip", required=True, help="This machine's address for the others.")
@click.option("--head", required=True, metavar="IP", help="The head's address; this machine is the head where it is --ip.")
@click.option("--folder", default="/var/lib/inhouse/cell", show_default=True, type=_FOLDER, help="Ray's logs and sockets, private.")
@click.option("--cpus", type=click.IntRange(0), help="CPUs that models may ask for. Without it: all.")
@click.option("--token", default="/etc/inhouse/ray-token", show_default=True, type=_FOLDER, help="The file with the cell's token.")
@_TLS
def start(ip: str, head: str, folder: Path, cpus: int | None, token: Path, tls: Path) -> None:
    """Become this machine's Ray, in the foreground.

    Example: inhouse cell start --ip 10.0.0.12 --head 10.0.0.11
    """
    from serving.environment import HaproxyMissingError

    try:
        become_ray(Member(ip=ip, head_ip=head, folder=folder, token=token, tls=tls, cpus=cpus))
    except HaproxyMissingError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"Ray can't start in {folder}: {error.strerror}") from error


@cell.command()
@catalog_option
@home_option
@_TOKEN
def deploy(catalog_path: Path, home: Path, token: Path) -> None:
    """Make the catalog's models the ones that run on this head's cell; returns when all answer. Those that did not change are let be.

    Example: inhouse cell deploy --catalog /etc/inhouse/models.yaml --home /var/lib/inhouse
    """
    from serving.catalog import read_catalog
    from serving.deploy import deploy as make_so
    from serving.local import user_errors

    with user_errors():
        catalog = read_catalog(catalog_path)
        deadline = time.monotonic() + _PATIENCE_S
        while not _is_up(token) and time.monotonic() < deadline:
            time.sleep(1)
        steps = make_so(catalog, _api(token), home=home.absolute(), catalog_folder=catalog_path.parent, http_port=HTTP_PORT,
                        host="0.0.0.0")  # noqa: S104 (the firewall opens it to the routers alone)
        for told in steps:
            click.echo(f"{told.seconds:6.1f} s  {told.phase:<9} {f'{told.model}: ' if told.model else ''}{told.detail}")


@cell.command()
@click.argument("ip")
@click.option("--head", required=True, metavar="IP", help="The head's address; the command runs there.")
@click.option("--timeout", "timeout_s", default=600.0, show_default=True, help="Seconds until it gives up: requests in flight end first.")
@_TOKEN
@_TLS
def drain(ip: str, head: str, timeout_s: float, token: Path, tls: Path) -> None:
    """Move the models away from the machine with this IP; returns when none is left there.

    Example: inhouse cell drain 10.0.0.12 --head 10.0.0.11
    """
    from serving.drain import DrainError
    from serving.drain import drain as take_out

    try:
        take_out(_api(token), ip, gcs=f"{head}:{GCS_PORT}", environment=client_environment(token, tls), timeout_s=timeout_s,
                 tell=lambda line: click.echo(line, err=True))
    except DrainError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"{ip} is drained")


@cell.command()
@click.option("--timeout", "timeout_s", default=660.0, show_default=True, help="Seconds until it gives up: requests in flight end first.")
@_TOKEN
def empty(timeout_s: float, token: Path) -> None:
    """Take all models off this head's cell, each when its requests have ended; routers go to another cell where there is one.

    Example: inhouse cell empty --timeout 60
    """
    from serving.drain import DrainError
    from serving.drain import empty as take_off

    try:
        take_off(_api(token), http_port=HTTP_PORT, host="0.0.0.0", timeout_s=timeout_s,  # noqa: S104 (the firewall opens it to the routers)
                 tell=lambda line: click.echo(line, err=True))
    except DrainError as error:
        raise click.ClickException(str(error)) from error
    click.echo("no model runs here")


def _api(token: Path) -> ServeApi:
    try:
        return ServeApi(url=f"http://127.0.0.1:{DASHBOARD_PORT}", token=token.read_text(encoding="ascii").strip())
    except OSError as error:
        raise click.ClickException(f"can't read the cell's token {token}: {error.strerror}; run as root or the cell's user") from error


def _is_up(token: Path) -> bool:
    """Whether the cell answers. Its start writes the token, so that there may be none yet, or that of the start before."""
    try:
        _api(token).details()
    except (click.ClickException, ServeRefusedError, ServeUnreachableError):
        return False
    return True
