"""The front door: one command whose parts are loaded when they are used. What spans rooms (up, down, status, check) is here."""

import dataclasses
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

_PARTS = {
    "models": ("serving.cli:models", "Find, fetch and size the models of the catalog."),
    "cell": ("serving.cell_cli:cell", "Run this server's part of a cell: one Ray cluster over several machines."),
    "keys": ("routing.keys_cli:keys", "Make, list, rotate and revoke the API keys of callers, and their budgets."),
    "teams": ("routing.keys_cli:teams", "Make and change teams: what all callers of one together may use."),
    "runs": ("routing.runs_cli:runs", "Show the runs of callers, stop them, raise their limits."),
    "routes": ("routing.routes_cli:routes", "Show, check and change which model answers which task."),
    "eval": ("evals.cli:evals", "Ask models the cases of a task and say how good they are."),
    "policy": ("routing.policy_cli:policy", "Show and test the policies that say which request may go where."),
    "usage": ("routing.usage_cli:usage", "Show what was asked and what it cost, by team, caller, task, model, day."),
    "audit": ("routing.audit_cli:audit", "Check the audit log of decisions, refusals and admin acts."),
    "bench": ("routing.bench.cli:bench", "Measure the router and the models beside their peers."),
}
_HOME = click.option("--home", envvar="INHOUSE_HOME", default=".inhouse", show_default=True, type=click.Path(path_type=Path),
                     help="Where models and state live (INHOUSE_HOME).")  # fmt: skip
_CURL = """\
  curl {url}/v1/chat/completions -H "Authorization: Bearer $(cat {key})" \\
    -H 'Content-Type: application/json' -d '{{"model": "auto", "messages": [{{"role": "user",
    "content": "Please confirm AB-4711. 12 pumps go to Ann Keller at our Leeds site before 3 May 2027; we pay EUR 980.50."}}]}}'"""


class _Parts(click.Group):
    """Commands by name; a part is imported when it is called, its help line is known without."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *_PARTS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _PARTS:
            return super().get_command(ctx, cmd_name)
        module, _, name = _PARTS[cmd_name][0].partition(":")
        command: click.Command = getattr(importlib.import_module(module), name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        own = [(name, self.commands[name].get_short_help_str(100)) for name in super().list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl([*own, *((name, text) for name, (_, text) in _PARTS.items())])


@click.group(cls=_Parts, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="inhouse")
def main() -> None:
    """Host open models on your own machines; route each task to the model that is good enough for it.

    Start with `inhouse up`, then ask over HTTP. Every command has --help with an example.
    """


@main.command()
@_HOME
@click.option("--port", envvar="INHOUSE_PORT", default=8000, show_default=True,
              help="Where the router listens, on loopback (INHOUSE_PORT).")  # fmt: skip
@click.option("--models-port", envvar="INHOUSE_MODELS_PORT", default=8100, show_default=True,
              help="Where Ray Serve listens, on loopback (INHOUSE_MODELS_PORT).")  # fmt: skip
@click.option("--workers", envvar="INHOUSE_WORKERS", default=1, show_default=True, type=click.IntRange(1, 64),
              help="Router processes (INHOUSE_WORKERS).")  # fmt: skip
@click.option("--mlflow-port", envvar="INHOUSE_MLFLOW_PORT", default=5000, show_default=True, type=click.IntRange(0, 65535),
              help="Where MLflow's page listens, on loopback; 0 leaves it out (INHOUSE_MLFLOW_PORT).")  # fmt: skip
def up(home: Path, port: int, models_port: int, workers: int, mlflow_port: int) -> None:
    """Start Ray, the models, the router and MLflow's page on this machine; harmless when they run already.

    Example: inhouse up --port 8000
    """
    with _told():
        _up(home.absolute(), port, models_port, workers, mlflow_port)


def _up(home: Path, port: int, models_port: int, workers: int, mlflow_port: int) -> None:
    from routing import cli as routing
    from serving import local as serving

    started = time.monotonic()
    settings = routing.settings_for(home, port=port, models_port=models_port, workers=workers)
    site = routing.site_of(settings)
    page = 0 if os.environ.get("MLFLOW_TRACKING_URI") else mlflow_port  # records go elsewhere then, and a page over none would mislead
    was_up = serving.is_up(home) and routing.is_up(settings)
    try:
        if not was_up:
            serving.check(home, settings.models)
            serving.stop(home)
            serving.check_port(port, "the router listens on it; choose another with --port or INHOUSE_PORT")
            if page:
                serving.check_port(page, "MLflow's page listens on it; choose another with --mlflow-port (INHOUSE_MLFLOW_PORT), 0 for none")
        for progress in serving.start(home, settings.models, models_port):
            _say(started, progress)
        key = _first_key(home)
        router = None if was_up else routing.start_router(settings, serving.marks(home))
        for progress in serving.load_models(home, settings.models, models_port):
            _say(started, progress)
        if router is not None:
            routing.await_router(settings, router)
        while routing.ask(settings, key.read_text().strip(), site.routes.default_task) != 200:
            time.sleep(0.2)
        mlflow = f"mlflow    {_open_page(home, page, serving.marks(home))}\n" if page else ""
    except BaseException:
        if not was_up and (ended := serving.stop(home)):
            click.echo(f"ended the {ended} processes that were started", err=True)
        raise
    url = f"http://{settings.host}:{port}"
    click.echo(f"{time.monotonic() - started:6.1f} s  ready     a model has answered through the router\n\n"
               f"endpoint  {url}/v1\nkey       {key}\n{mlflow}\ntry\n{_CURL.format(url=url, key=key)}")  # fmt: skip


def _open_page(home: Path, port: int, marks: dict[str, str]) -> str:
    """The address of MLflow's page, which is started last: nobody waits for it."""
    from evals import tracking_page

    try:
        return tracking_page.start(home, port, marks).url
    except tracking_page.PageError as error:
        raise click.ClickException(str(error)) from error


def _first_key(home: Path) -> Path:
    """The file with the key made on the first start, readable by its owner alone."""
    from routing import keys
    from routing.audit import AuditError, note
    from routing.store import open_store

    file = home / "key"
    if not file.exists():
        try:
            note(home, "up keys create name=first-key", "asked")
        except (OSError, AuditError) as error:
            raise click.ClickException(f"the audit log can't be written, so no key was made: {error}") from error
        file.touch(mode=0o600)
        file.write_text(keys.create(open_store(home), "first-key") + "\n")
        note(home, "up keys create name=first-key", "done")
    return file


@main.command()
@_HOME
def down(home: Path) -> None:
    """Stop everything that `inhouse up` started here; leaves no process behind.

    Example: inhouse down
    """
    from serving import local as serving

    with _told():
        ended = serving.stop(home.absolute())
    click.echo(f"ended {ended} processes" if ended else "nothing was running")


@main.command()
@_HOME
def check(home: Path) -> None:
    """Validate models.yaml, routes.yaml and the model folders without starting anything.

    Example: INHOUSE_ROUTES=new-routes.yaml inhouse check
    """
    from routing import cli as routing
    from routing.policy_cli import policy_of
    from serving import local as serving

    with _told():
        settings = routing.settings_for(home)
        site = routing.checked_site(settings)
        policy_of(settings)
        serving.check(home.absolute(), settings.models)
    click.echo(f"ok: {len(site.models)} models, {len(site.tasks)} tasks")


@main.command()
@_HOME
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def status(home: Path, *, as_json: bool) -> None:
    """Show processes, models, readiness, MLflow's page, memory and tokens per second (measured over one second).

    Example: inhouse status --json
    """
    from evals import tracking_page
    from routing import cli as routing
    from serving import local as serving

    settings = routing.running_settings(home.absolute())
    router, page = routing.readiness(settings), tracking_page.state(home.absolute())
    with _told():
        node = serving.status(home.absolute())
    if as_json:
        told = {"router": router, "mlflow": page and page._asdict(), "node": dataclasses.asdict(node), "rss_bytes": node.rss_bytes}
        click.echo(json.dumps(told, indent=1))
        return
    for line in (*routing.readiness_lines(settings, router), *tracking_page.lines(page), *serving.status_lines(node)):
        click.echo(line)


@main.command()
@_HOME
@click.option("--json", "as_json", is_flag=True, help="Print JSON: `ok`, `failures`, `unchecked`, and what was `checked`.")
def doctor(home: Path, *, as_json: bool) -> None:
    """Look at this machine and this house: packages, CPU, GPUs, memory, disk, ports, models' checksums, both files, policies, Ray, router.

    Exit code 0: all is well; 1: something is wrong, each with what to do; 2: something could not be looked at.

    Example: inhouse doctor --json
    """
    from routing import cli, doctor
    from serving import doctor as serving

    settings = cli.running_settings(home.absolute())
    ports = {settings.port: "choose another with INHOUSE_PORT", settings.models_port: "choose another with INHOUSE_MODELS_PORT"}
    of_models = list(serving.checks(settings.home, settings.models, {} if cli.is_up(settings) else ports))
    started = any(what == "ray" for what, _ in of_models)
    verdict = _verdict([*of_models, *doctor.checks(settings, is_started=started)], (*serving.WRONG, *doctor.WRONG))
    if as_json:
        click.echo(json.dumps(verdict, indent=1))
    else:
        for what, said in verdict["checked"].items():
            click.echo(f"ok        {what}: {said}")
        for word in ("failures", "unchecked"):
            for line in verdict[word]:
                click.echo(f"{'WRONG' if word == 'failures' else 'UNKNOWN':<10}{line}")
    sys.exit(1 if verdict["failures"] else 2 if verdict["unchecked"] else 0)


def _verdict(checks: list[tuple[str, Any]], wrong: tuple[type[Exception], ...]) -> dict[str, Any]:
    """What each check said, in the form of the playbooks' verdicts."""
    checked, failures, unchecked = {}, [], []
    for what, check in checks:
        try:
            checked[what] = check()
        except wrong as error:
            failures.append(f"{what}: {error}")
        except OSError as error:
            unchecked.append(f"{what}: can't be looked at ({error}); run it as the user who owns this house")
    return {"ok": not failures and not unchecked, "failures": failures, "unchecked": unchecked, "checked": checked}


def _say(started: float, progress: Any) -> None:
    name = f"{progress.model}: " if progress.model else ""
    click.echo(f"{time.monotonic() - started:6.1f} s  {progress.phase:<9} {name}{progress.detail}")


@contextmanager
def _told() -> Iterator[None]:
    """SIGTERM ends a command as Ctrl-C does, and what a user can cause is told in one line."""
    from serving.local import user_errors

    def _stop(_number: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, _stop)
    try:
        with user_errors():
            yield
    except KeyboardInterrupt:
        click.echo("interrupted", err=True)
        sys.exit(130)


if __name__ == "__main__":
    main()
