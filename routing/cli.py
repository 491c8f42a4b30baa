"""What the router's commands share, and starting the router. The commands are in the `*_cli` files beside it."""

import http.client
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from routing.settings import Settings

_UNITS_S = {"h": 3600.0, "d": 86400.0, "w": 604800.0}
_START_S = 60.0
HOME = click.option("--home", envvar="INHOUSE_HOME", default=".inhouse", show_default=True, type=click.Path(path_type=Path),
                    help="Where models and state live (INHOUSE_HOME).")  # fmt: skip
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def store_of(home: Path) -> "Engine":
    """The database of a command, closed when the command ends."""
    from routing.store import open_store

    engine = open_store(home)
    click.get_current_context().call_on_close(engine.dispose)
    return engine


def settings_for(home: Path, **changes: Any) -> "Settings":
    """The router's settings from the environment, with `home` as given."""
    from routing.settings import Settings

    return Settings.from_environment()._replace(home=home.absolute(), **changes)


def running_settings(home: Path) -> "Settings":
    """The settings that the router of this home was last started with; those of the environment where there was none."""
    settings = settings_for(home)
    try:
        told = json.loads((home / "run" / "router.json").read_text())
        return settings._replace(**{name: type(getattr(settings, name))(value) for name, value in told.items()})
    except (OSError, ValueError, TypeError):
        return settings


def site_of(settings: "Settings") -> Any:
    """The site, with a wrong file told as one line."""
    from routing.config import ConfigError

    try:
        return settings.site()
    except ConfigError as error:
        raise click.ClickException(str(error)) from error


def checked_site(settings: "Settings") -> Any:
    """The site, once the providers' keys are there; a price that was read long ago is told on stderr."""
    import datetime

    from routing.config import ConfigError
    from routing.providers import stale_prices

    site = site_of(settings)
    try:
        for provider in site.routes.providers:
            provider.key()
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    for line in stale_prices(site.routes.providers, datetime.date.today()):
        click.echo(f"warning: {line}", err=True)
    return site


def is_up(settings: "Settings") -> bool:
    """Whether a router answers at these settings' address."""
    return _call(settings, "GET", "/healthz", None, {})[0] == 200


def readiness(settings: "Settings") -> dict[str, Any]:
    """What `/readyz` says; empty where no router answers."""
    status, body = _call(settings, "GET", "/readyz", None, {})
    return dict(json.loads(body)) if status in (200, 503) else {}


def readiness_lines(settings: "Settings", state: Mapping[str, Any]) -> list[str]:
    """The same for a person."""
    where = f"http://{settings.host}:{settings.port}"
    if not state:
        return [f"router     does not answer at {where}; start it with `inhouse up` (INHOUSE_PORT where it listens elsewhere)"]
    missing = [task for task, is_ready in state["tasks"].items() if not is_ready]
    auto = "serves" if state["auto"]["serves"] else "is off: tasks can't be told apart well enough"
    return [f"router     {'ready' if state['ready'] else 'NOT READY'} at {where}"
            f"{f', no model answers for: {chr(44).join(missing)}' if missing else ''}; auto {auto}; ledger {state['ledger']}",
            *(f"evidence   {line}" for line in state["stale_evidence"])]  # fmt: skip


def start_router(settings: "Settings", marks: Mapping[str, str]) -> "subprocess.Popen[bytes]":
    """Starts the router as a process of its own that outlives the caller. `marks` go into its environment. Its log: logs/router.log."""
    log = settings.home / "logs" / "router.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    told = {name: value if isinstance(value, int) else str(value) for name, value in settings._asdict().items()}
    (settings.home / "run" / "router.json").write_text(json.dumps(told, indent=1))
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with log.open("ab") as out:
        return subprocess.Popen([sys.executable, "-m", "routing.server"], stdin=subprocess.DEVNULL, stdout=out, stderr=out,
                                env={**environment, **settings.environment(), **marks}, start_new_session=True)  # fmt: skip


def await_router(settings: "Settings", process: "subprocess.Popen[bytes]") -> None:
    """Returns when the router answers. Raises `ClickException` with the end of its log where it does not."""
    deadline = time.monotonic() + _START_S
    while not is_up(settings):
        if process.poll() is not None or time.monotonic() > deadline:
            log = settings.home / "logs" / "router.log"
            lines = log.read_text(errors="replace").strip().splitlines()
            raise click.ClickException(f"the router did not start: {lines[-1] if lines else 'it said nothing'} (log: {log})")
        time.sleep(0.05)


def ask(settings: "Settings", key: str, task: str) -> int:
    """One tiny completion through the router; the HTTP status."""
    body = json.dumps({"model": f"task/{task}", "max_tokens": 1, "messages": [{"role": "user", "content": "hello"}]})
    return _call(settings, "POST", "/v1/chat/completions", body, {"Authorization": f"Bearer {key}", "Content-Type": "application/json"})[0]


def _call(settings: "Settings", method: str, path: str, body: str | None, headers: Mapping[str, str]) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(settings.host, settings.port, timeout=60 if body else 2)
    try:
        connection.request(method, path, body, dict(headers))
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A plain table: columns as wide as their widest cell."""
    lines = [tuple(head), *(tuple(row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def seconds(text: str | None) -> float | None:
    """12h, 30d or 8w in seconds."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text)
    if not found or not float(found.group(1)):
        raise click.BadParameter(f"`{text}` is not a time; write 12h, 30d or 8w")
    return float(found.group(1)) * _UNITS_S[found.group(2)]


def date(at: float | None) -> str:
    """A time for a table."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(at)) if at else "-"
