"""The command's `policy` part: show the policies in force and hold them against a table of cases. Arguments in, text or JSON out."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click
import msgspec

from routing.classes import Zone
from routing.cli import HOME, JSON, print_table, settings_for, site_of

if TYPE_CHECKING:
    from routing.policy import Policy
    from routing.settings import Settings


class Case(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One question to the policies and the answer that is wanted. `rules`, where given, are the policies that must have decided."""

    name: str
    expect: Literal["allow", "refuse", "ask"]
    rules: tuple[str, ...] = ()
    caller: str = "caller"
    team: str = "team"
    tasks: tuple[str, ...] = ("*",)
    models: tuple[str, ...] = ("*",)
    task: str = ""
    model: str = "model"
    zone: str = "onprem"
    data_class: str = "internal"
    endpoint: str = "/v1/chat/completions"
    stream: bool = False
    risky_tools: tuple[str, ...] = ()
    approved: bool = False


class Cases(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of cases. `zones`, where given, stand in for those of routes.yaml: who may use which."""

    cases: tuple[Case, ...]
    zones: tuple[Zone, ...] = ()


@click.group()
def policy() -> None:
    """Show and test the policies that say which request may go where."""


@policy.command("show")
@HOME
@JSON
def show(home: Path, *, as_json: bool) -> None:
    """Show the policies in force, what each says, and the hash that is in every ledger row.

    Example: inhouse policy show
    """
    settings = settings_for(home)
    policies = policy_of(settings)
    rules = list(policies.rules.values())
    if as_json:
        click.echo(json.dumps({"hash": policies.hash, "policies": [rule._asdict() for rule in rules]}, indent=1))
        return
    table = [(rule.id, rule.file, "permit" if rule.permits else "ask" if rule.needs_approval else "forbid", rule.says) for rule in rules]
    print_table(("POLICY", "FILE", "DOES", "SAYS"), table)
    click.echo(f"\nhash {policies.hash}")


@policy.command("test")
@click.argument("file", required=False, type=click.Path(path_type=Path))
@HOME
@JSON
def test(file: Path | None, home: Path, *, as_json: bool) -> None:
    """Ask the policies in force every question of FILE and compare; without FILE the shipped table. Fails where one answer differs.

    Example: inhouse policy test my-cases.yaml
    """
    from routing.policy import SHIPPED

    settings = settings_for(home)
    rows = outcomes(policy_of(settings), file or SHIPPED / "cases.yaml")
    wrong = [row for row in rows if not row["right"]]
    if as_json:
        click.echo(json.dumps(rows, indent=1))
    else:
        for row in wrong:
            click.echo(f"WRONG  {row['name']}: wanted {row['expect']} {' '.join(row['wanted_rules'])}, got {row['outcome']} "
                       f"{' '.join(row['rules'])} ({row['says'] or 'no words'})")  # fmt: skip
        click.echo(f"{len(rows) - len(wrong)} of {len(rows)} cases right")
    if wrong:
        raise SystemExit(1)


def policy_of(settings: "Settings") -> "Policy":
    """The policies that these settings' routes name, with a wrong file told as one line."""
    from routing.policy import folder_of, load
    from serving.catalog import ConfigError

    routes = site_of(settings).routes
    try:
        return load(folder_of(routes.policies, settings.routes), routes, risky_tools=routes.risky_tools)
    except ConfigError as error:
        raise click.ClickException(str(error)) from error


def outcomes(policies: "Policy", file: Path) -> list[dict[str, Any]]:
    """Every case of a table with what the policies say. Raises `ClickException` where the table can't be read."""
    from dataclasses import replace

    from routing.policy import About
    from serving.catalog import ConfigError, Document

    try:
        table = Document(file).read(Cases)
    except ConfigError as error:
        raise click.ClickException(str(error)) from error
    if table.zones:
        policies = replace(policies, zones={zone.name: zone for zone in table.zones}, _memo={})
    rows = []
    for case in table.cases:
        about = About(case.caller, case.team, frozenset(case.tasks), frozenset(case.models), case.task, case.data_class, case.endpoint,
                      case.stream, frozenset(case.risky_tools), case.approved)  # fmt: skip
        verdict = policies.decide(about, case.model, case.zone)
        is_right = verdict.outcome == case.expect and (not case.rules or set(case.rules) == set(verdict.rules))
        rows.append({"name": case.name, "right": is_right, "expect": case.expect, "wanted_rules": case.rules, **verdict._asdict()})
    return rows
