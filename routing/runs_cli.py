"""The command `inhouse runs`: what callers' runs spend, and the hand that stops them or lets them go on. Text or JSON out."""

import json
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from routing.audit_cli import noted
from routing.cli import HOME, JSON, date, print_table, store_of

if TYPE_CHECKING:
    from routing.accounts import Spending

_T = TypeVar("_T")


@click.group()
def runs() -> None:
    """Show the runs of callers, stop them, raise their limits."""


@runs.command("list")
@click.option("--caller", help="Only this caller's.")
@click.option("--open", "open_only", is_flag=True, help="Only those that were not stopped.")
@HOME
@JSON
def list_runs(caller: str | None, home: Path, *, open_only: bool, as_json: bool) -> None:
    """Show runs, newest first, at most a thousand.

    Example: inhouse runs list --open --caller invoices
    """
    from routing import runs as store

    rows = store.runs_of(store_of(home), caller=caller, open_only=open_only)
    if as_json:
        click.echo(json.dumps([row._asdict() for row in rows], indent=1))
        return
    table = [(row.id, row.parent or "-", row.caller, row.state, row.limits, date(row.created_at), row.reason or "-") for row in rows]
    print_table(("ID", "BELOW", "CALLER", "STATE", "LIMITS", "CREATED", "REASON"), table)


@runs.command("show")
@click.argument("run_id", metavar="ID")
@HOME
@JSON
def show_run(run_id: str, home: Path, *, as_json: bool) -> None:
    """Show a run and all below it, with what each has spent.

    Example: inhouse runs show run_5f0c1d2e3a4b5c6d7e8f9a0b
    """
    from routing import runs as store

    found = store.tree(store_of(home), _bare(run_id))
    if not found:
        raise click.ClickException(f"no run `{run_id}`; `inhouse runs list` shows them")
    documents = [{**store.document(run, books, run.id), "parent": run.parent} for run, books in found]
    if as_json:
        click.echo(json.dumps(documents, indent=1))
        return
    depth = {"": -1}
    for run, _ in found:
        depth[run.id] = depth.get(run.parent, -1) + 1
    table = [("  " * depth[run.id] + run.id, one["state"], *_spent(books), run.reason or "-")
             for (run, books), one in zip(found, documents, strict=True)]  # fmt: skip
    print_table(("ID", "STATE", "USD", "TOKENS", "CALLS", "REASON"), table)


@runs.command("stop")
@click.argument("run_id", metavar="ID")
@click.option("--reason", default="a person ended it", show_default=True, help="What its caller is told.")
@HOME
@noted
def stop_run(run_id: str, reason: str, home: Path) -> None:
    """Stop a run and all below it: streams under way end within a second, later calls are refused with 409.

    Example: inhouse runs stop run_5f0c1d2e3a4b5c6d7e8f9a0b --reason "it repeats itself"
    """
    from routing import runs as store

    stopped = _told(lambda: store.stop_run(store_of(home), _bare(run_id), reason))
    click.echo(f"stopped {len(stopped)} runs" if stopped else "it was stopped already")


@runs.command("raise")
@click.argument("run_id", metavar="ID")
@click.option("--usd", type=Decimal, help="Dollars in all, with what is spent.")
@click.option("--tokens", type=int, help="Tokens in all.")
@click.option("--calls", type=int, help="Calls in all.")
@click.option("--seconds", type=float, help="Time from now.")
@click.option("--depth", type=int, help="Generations below it.")
@click.option("--fanout", type=int, help="Children that it may have.")
@HOME
@noted
def raise_run(run_id: str, home: Path, **limits: Any) -> None:
    """Change the limits of a run that are named, and let it go on where it was stopped, with all that was stopped with it.

    Example: inhouse runs raise run_5f0c1d2e3a4b5c6d7e8f9a0b --usd 2 --seconds 600
    """
    from routing import runs as store

    run = _told(lambda: store.raise_run(store_of(home), _bare(run_id), store.Limits(**limits)))
    click.echo(f"{run.id} is {run.state}, limits {run.limits}")


def _told(work: Callable[[], _T]) -> _T:
    from routing.errors import Refusal

    try:
        return work()
    except Refusal as refusal:
        raise click.ClickException(refusal.message) from refusal


def _bare(run_id: str) -> str:
    """The id without its signature: people may paste either."""
    return run_id.partition(".")[0]


def _spent(books: "list[Spending]") -> tuple[str, ...]:
    from routing.budgets import amount

    of = {one.key.unit: one for one in books}
    return tuple(f"{amount(unit, of[unit].spent).removesuffix(unit)}" for unit in ("nanousd", "tokens", "calls"))
