"""The command `inhouse routes`: which model answers which task, and giving a task to another. Arguments in, text or JSON out."""

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from routing.audit_cli import noted
from routing.cli import HOME, JSON, checked_site, print_table, running_settings, settings_for, site_of

if TYPE_CHECKING:
    from routing.promote import Change
    from routing.settings import Settings


@click.group()
def routes() -> None:
    """Show, check and change which model answers which task."""


@routes.command("show")
@HOME
@JSON
def show_routes(home: Path, *, as_json: bool) -> None:
    """Show every task with its candidates, fallbacks and what the classifier makes of it.

    Example: inhouse routes show
    """
    settings = settings_for(home)
    site = site_of(settings)
    reports = {report.task: report for report in settings.classifier(site.routes).reports}
    rows = []
    for task in site.tasks.values():
        report = reports.get(task.name)
        rows.append({
            "task": task.name,
            "default": task.name == site.routes.default_task,
            "candidates": {candidate.model: candidate.weight for candidate in task.candidates},
            "fallbacks": list(task.fallbacks),
            "auto": report and {"precision": report.precision, "coverage": report.coverage, "passes": report.passes},
            "description": task.description,
        })  # fmt: skip
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    table = []
    for row in rows:
        candidates = " ".join(f"{name}:{weight:g}" for name, weight in row["candidates"].items())
        name = f"{row['task']}{' (default)' if row['default'] else ''}"
        table.append((name, candidates, " ".join(row["fallbacks"]) or "-", _auto(row["auto"]), row["description"]))
    print_table(("TASK", "CANDIDATES", "FALLBACKS", "AUTO (HELD OUT)", "DESCRIPTION"), table)


@routes.command("check")
@HOME
def check_routes(home: Path) -> None:
    """Validate routes.yaml against the catalog without starting anything, and name evidence that is stale.

    Stale is evidence of a model whose weights have changed, of a task that was compared on other data, prompt or judge since, or older than
    `evidence_days` in routes.yaml.

    Example: INHOUSE_ROUTES=new.yaml inhouse routes check
    """
    from routing.standing import known, stale

    settings = settings_for(home)
    site = checked_site(settings)
    for line in stale(site, known(site, settings.home, settings.models), time.time()):
        click.echo(f"stale: {line}; measure again, or say why not: inhouse routes promote --because", err=True)
    click.echo(f"ok: {len(site.tasks)} tasks, {len(site.models)} models, {len(site.cells)} cells, {len(site.hosted)} hosted models")


@routes.command("schema")
def schema() -> None:
    """Print the JSON schema of routes.yaml, for editors.

    Example: inhouse routes schema > routes.schema.json
    """
    from routing.config import json_schema

    click.echo(json.dumps(json_schema(), indent=1))


@routes.command("promote")
@click.option("--task", required=True, help="The task that gets another model.")
@click.option("--to", "model", required=True, help="The model that takes it.")
@click.option("--evidence", metavar="ID", help="What `inhouse eval compare` has printed; its verdict must be better or not worse.")
@click.option("--because", help="Without evidence: why. It goes into the audit log, so no secrets.")
@HOME
@noted
def promote_route(*, home: Path, task: str, model: str, evidence: str | None, because: str | None) -> None:
    """Give a task to a model on the evidence of a comparison; the running router follows within two seconds.

    The model becomes the only candidate, and whoever had the task the first fallback. routes.yaml keeps its comments and layout; the file
    as it was is kept under state/routes in the home.

    \b
    Example:
      inhouse routes promote --task extraction --to demo-generalist --evidence 20261125-140501-extraction-demo-generalist-1f3a
    """
    from routing.evidence import read_paper
    from routing.promote import check_paper, promote
    from routing.standing import digests_of

    because = (because or "").strip()
    if (evidence is None) != bool(because):
        raise click.UsageError("give either --evidence ID (inhouse eval compare prints it) or --because \"why without evidence\"")
    settings = _edited(home)
    site = site_of(settings)
    with _told():
        proven = None
        if evidence is not None:
            paper = read_paper(settings.home, evidence)
            proven = check_paper(site, paper, digests_of(site, settings.home, settings.models), task=task, model=model)
        _show(promote(settings, site, task=task, model=model, evidence=proven))


@routes.command("rollback")
@click.option("--task", help="Only this task's last promotion; without it the last of any.")
@HOME
@noted
def rollback_route(*, home: Path, task: str | None) -> None:
    """Put back what the last promotion replaced; again for the one before.

    Example: inhouse routes rollback --task extraction
    """
    from routing.promote import rollback

    settings = _edited(home)
    site = site_of(settings)
    with _told():
        _show(rollback(settings, site, task))


def _edited(home: Path) -> "Settings":
    """The settings whose routes.yaml is changed: as set now, or else the running router's."""
    settings = running_settings(home)
    return settings._replace(routes=Path(os.environ["INHOUSE_ROUTES"])) if "INHOUSE_ROUTES" in os.environ else settings


def _show(change: "Change") -> None:
    click.echo(f"{change.task}: {', '.join(change.before)} -> {', '.join(change.after)}\nchanged  {change.file}\nkept     {change.kept}")


@contextmanager
def _told() -> Iterator[None]:
    """What a user can cause is told in one line."""
    from routing.evidence import EvidenceError
    from routing.promote import PromoteError

    try:
        yield
    except (EvidenceError, PromoteError) as error:
        raise click.ClickException(str(error)) from None


def _auto(report: Mapping[str, Any] | None) -> str:
    if report is None:
        return "-"
    return f"precision {report['precision']:.2f}, coverage {report['coverage']:.2f}{'' if report['passes'] else ', below the floor'}"
