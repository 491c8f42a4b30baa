"""The commands `inhouse keys` and `inhouse teams`: who may call, what for, and how much. Arguments in, text or JSON out."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from routing.audit_cli import noted
from routing.cli import HOME, JSON, date, print_table, seconds, settings_for, site_of, store_of

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from routing.budgets import Budget
    from routing.keys import Allowed

_BUDGET = click.option("--budget", "--limit", "limits", multiple=True, metavar="AMOUNT",
                       help="What may be used: 1usd/day, 20000tokens/minute, 500calls/month, 60000gpu_ms/hour, 8concurrent, or 5usd in "
                            "total; again for more. `0usd` and the like stop it.")  # fmt: skip
_CLASSES = (
    click.option("--class", "default_class", metavar="CLASS", help="The data class of requests that declare none."),
    click.option("--max-class", metavar="CLASS", help="The highest data class that the caller may send."),
)


@click.group()
def keys() -> None:
    """Make, list, rotate and revoke the API keys of callers."""


@keys.command("create")
@click.argument("name")
@click.option("--team", help="The team that NAME belongs to (`inhouse teams create`).")
@click.option("--task", "tasks", multiple=True, help="A task the key opens; again for more. Without it: all.")
@click.option("--model", "models", multiple=True, help="A model the key opens by its own name; again for more. Without it: all.")
@click.option("--expires", metavar="TIME", help="When it ends: 12h, 30d or 8w from now. Without it: never.")
@click.option("--batch", "is_batch", is_flag=True, help="For batch work: our models serve it after all that other keys ask.")
@_CLASSES[0]
@_CLASSES[1]
@_BUDGET
@HOME
@JSON
@noted
def create_key(name: str, tasks: tuple[str, ...], models: tuple[str, ...], expires: str | None, home: Path, *, as_json: bool,
               is_batch: bool, **allowed: Any) -> None:  # fmt: skip
    """Make a key for NAME and print it: the only time that it is shown.

    Team, classes and budgets belong to NAME: another key of the same name shares them, and what is given here counts for all its keys.

    Example: inhouse keys create invoices --team finance --task extraction --expires 30d --budget 1usd/day --limit 60calls/minute
    """
    from routing import keys as store

    what = _allowed(home, allowed)
    engine, lifetime_s = store_of(home), seconds(expires)
    try:
        key = store.create(engine, name, tasks=tasks or ("*",), models=models or ("*",), lifetime_s=lifetime_s, is_batch=is_batch,
                           allowed=what)  # fmt: skip
    except LookupError as error:
        raise click.ClickException(str(error.args[0])) from error
    click.echo(json.dumps({"key": key, "caller": name}) if as_json else key)


@keys.command("list")
@HOME
@JSON
def list_keys(home: Path, *, as_json: bool) -> None:
    """Show all keys: who they belong to, what they open, what is used of their budgets. Never the keys themselves.

    Example: inhouse keys list --json
    """
    from routing import keys as store

    engine = store_of(home)
    rows = store.listed(engine)
    used = usage(engine, "caller", {row["caller"] for row in rows})
    if as_json:
        click.echo(json.dumps([{**row, "used": used.get(row["caller"], {})} for row in rows], indent=1))
        return
    table = [(row["id"], row["caller"], row["team"] or "-", " ".join(row["tasks"]), " ".join(row["models"]),
              "batch" if row["batch"] else "-", _used(row["limits"], used.get(row["caller"], {})), date(row["created_at"]),
              date(row["expires_at"]), date(row["revoked_at"])) for row in rows]  # fmt: skip
    print_table(("ID", "CALLER", "TEAM", "TASKS", "MODELS", "FOR", "USED", "CREATED", "EXPIRES", "REVOKED"), table)


@keys.command("rotate")
@click.argument("key_id", metavar="ID")
@click.option("--overlap", metavar="TIME", help="How long the old key still works: 12h, 1d. Without it: it ends now.")
@HOME
@noted
def rotate_key(key_id: str, overlap: str | None, home: Path) -> None:
    """Print a new key in the place of the one with this ID: same caller, same budgets, what was spent stays spent.

    Example: inhouse keys rotate ihk_Ab3dE5gh --overlap 1d
    """
    from routing import keys as store

    key = store.rotate(store_of(home), key_id, overlap_s=seconds(overlap) or 0.0)
    if key is None:
        raise click.ClickException(f"no key in force has the id `{key_id}`; `inhouse keys list` shows them")
    click.echo(key)


@keys.command("revoke")
@click.argument("key_id", metavar="ID")
@HOME
@noted
def revoke_key(key_id: str, home: Path) -> None:
    """End the key with this ID (`inhouse keys list` shows it). Every router stops taking it within two seconds.

    Example: inhouse keys revoke ihk_Ab3dE5gh
    """
    from routing import keys as store

    if not store.revoke(store_of(home), key_id):
        raise click.ClickException(f"no key in force has the id `{key_id}`; `inhouse keys list` shows them")
    click.echo(f"revoked {key_id}")


@keys.command("set")
@click.argument("name")
@click.option("--team", help="The team that NAME belongs to.")
@_CLASSES[0]
@_CLASSES[1]
@_BUDGET
@HOME
@noted
def set_caller(name: str, home: Path, **allowed: Any) -> None:
    """Change team, classes or budgets of the caller NAME, for all of its keys. Budgets that are given replace all it had.

    Example: inhouse keys set invoices --budget 5usd/day --budget 60calls/minute
    """
    from routing import keys as store
    from routing.store import changing

    engine = store_of(home)
    if name not in {row["caller"] for row in store.listed(engine)}:
        raise click.ClickException(f"no caller `{name}`; `inhouse keys list` shows them")
    what = _allowed(home, allowed)
    try:
        with changing(engine, "keys") as connection:
            store.allow(connection, name, what)
    except LookupError as error:
        raise click.ClickException(str(error.args[0])) from error
    click.echo(f"changed {name}")


@click.group()
def teams() -> None:
    """Make and change teams: what all callers of one together may use."""


@teams.command("create")
@click.argument("name")
@_BUDGET
@HOME
@noted
def create_team(name: str, limits: tuple[str, ...], home: Path) -> None:
    """Make the team NAME.

    Example: inhouse teams create finance --budget 100usd/month
    """
    from routing import teams as store

    if not store.create_team(store_of(home), name, read_budgets(limits)):
        raise click.ClickException(f"there is a team `{name}`; `inhouse teams set {name}` changes it")
    click.echo(f"created {name}")


@teams.command("set")
@click.argument("name")
@_BUDGET
@HOME
@noted
def set_team(name: str, limits: tuple[str, ...], home: Path) -> None:
    """Replace the budgets of the team NAME; what it has spent stays spent. Without any it has none.

    Example: inhouse teams set finance --budget 200usd/month
    """
    from routing import teams as store

    if not store.set_team(store_of(home), name, read_budgets(limits)):
        raise click.ClickException(f"no team `{name}`; `inhouse teams create {name}` makes it")
    click.echo(f"changed {name}")


@teams.command("list")
@HOME
@JSON
def list_teams(home: Path, *, as_json: bool) -> None:
    """Show all teams: who is in them and what is used of their budgets.

    Example: inhouse teams list --json
    """
    from routing import teams as store

    engine = store_of(home)
    rows = store.listed_teams(engine)
    used = usage(engine, "team", {row["name"] for row in rows})
    if as_json:
        click.echo(json.dumps([{**row, "used": used.get(row["name"], {})} for row in rows], indent=1))
        return
    table = [(row["name"], " ".join(row["callers"]) or "-", _used(row["limits"], used.get(row["name"], {}))) for row in rows]
    print_table(("TEAM", "CALLERS", "USED"), table)


def _allowed(home: Path, given: Mapping[str, Any]) -> "Allowed":
    """What the options give a caller. A data class that routes.yaml does not have would refuse all that the caller asks: no such key."""
    from routing.keys import Allowed
    from serving.catalog import nearest

    classes = {option: given[name] for option, name in (("--class", "default_class"), ("--max-class", "max_class")) if given[name]}
    if classes and (settings := settings_for(home)).routes.exists():
        known = [one.name for one in site_of(settings).routes.data_classes]
        for option, name in classes.items():
            if name not in known:
                raise click.BadParameter(f"{settings.routes} has no data class `{name}`{nearest(name, known)}", param_hint=option)
    return Allowed(**{**given, "limits": read_budgets(given["limits"]) if given["limits"] else None})


def read_budgets(texts: Sequence[str]) -> "tuple[Budget, ...]":
    """Budgets from the command line; a wrong one is told as a wrong option."""
    from routing.budgets import budgets_of

    try:
        return budgets_of(texts)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--budget") from error


def usage(engine: "Engine", kind: str, scopes: Iterable[str]) -> dict[str, dict[str, str]]:
    """By scope and budget (as in `1usd/day`), what is spent, and held by calls under way, as in `0.4usd+0.1usd`."""
    from routing.accounts import spending
    from routing.budgets import Budget, amount

    found: dict[str, dict[str, str]] = {}
    with engine.connect() as connection:
        for key, most, spent, held in spending(connection, kind, scopes):
            text = amount(key.unit, spent) + (f"+{amount(key.unit, held)}" if held else "")
            found.setdefault(key.scope, {})[str(Budget(key.unit, key.every, most))] = text
    return found


def _used(limits: Iterable[str], used: Mapping[str, str]) -> str:
    return " ".join(f"{used.get(limit, '0')} of {limit};" for limit in limits).rstrip(";") or "no limit"
