"""The command `inhouse audit`: what the audit log is worth; and what puts the other commands' acts into it. Text or JSON out."""

import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from routing.cli import HOME, JSON

_SETTLED_S = 5.0  # younger requests may still be on their way into the log


@click.group()
def audit() -> None:
    """Check the audit log of decisions, refusals and admin acts."""


@audit.command("verify")
@click.option("--since", default=1, show_default=True, metavar="N", help="The first line that is here; earlier ones are archived.")
@click.option("--also", multiple=True, type=click.Path(path_type=Path, exists=True), metavar="HOME",
              help="The home of another node that writes into the same ledger; again for more.")  # fmt: skip
@HOME
@JSON
def verify_log(since: int, also: tuple[Path, ...], home: Path, *, as_json: bool) -> None:
    """Check every line's seal and order, the anchors, and that each request of the ledger is in the log.

    Exits with 1 where something is altered, reordered, replayed, missing, cut off, or in the ledger alone.
    Example: inhouse audit verify --json
    """
    from routing.audit import AuditError, place_of
    from routing.audit_verify import ledger_requests, log_began, missing_requests, verify
    from routing.store import open_store

    place = place_of(home)
    others = [place_of(other)._replace(anchors=other / "logs" / "audit-anchors.jsonl") for other in also]
    try:
        began = max(log_began(one) for one in (place, *others))
        store = open_store(home)
        ledger = ledger_requests(store, began + 1, time.time() - _SETTLED_S)
        store.dispose()
        report, requests = verify(place, since=since)
        for other in others:
            requests += verify(other)[1]
    except AuditError as error:
        raise click.ClickException(str(error)) from error
    report.missing_against_ledger = missing_requests(ledger, requests)
    findings = {name: value for name, value in vars(report).items() if isinstance(value, list)}
    if as_json:
        click.echo(json.dumps({"ok": report.ok, **vars(report)}, indent=1))
    else:
        click.echo(f"{report.lines} lines, numbers {report.first} to {report.last}, {report.torn} torn by killed writers; "
                   f"{len(ledger)} requests of the ledger looked for")  # fmt: skip
        for name, found in findings.items():
            if found:
                some = ", ".join(map(str, found[:10]))
                click.echo(f"{name.upper().replace('_', ' ')}: {len(found)}: {some}{' ...' if found[10:] else ''}")
        click.echo("ok" if report.ok else "NOT OK: put the log beside its backup and its anchors before anything else is written")
    if not report.ok:
        raise SystemExit(1)


def noted(work: Callable[..., None]) -> Callable[..., None]:
    """A command that changes something: who asked for what is in the audit log before it is done, and how it ended after.

    Where the log can't be written nothing is done. Options go into the log: none may be a secret.
    """

    @functools.wraps(work)
    def _noted(*, home: Path, **options: Any) -> None:
        from routing.audit import AuditError, note

        words = click.get_current_context().command_path.split()[1:]
        told = [f"{name}={_word(value)}" for name, value in sorted(options.items()) if value not in (None, (), False)]
        act = " ".join([*words, *told])
        try:
            note(home, act, "asked")
        except (OSError, AuditError) as error:
            raise click.ClickException(f"the audit log can't be written, so nothing was done: {error}") from error
        outcome = "failed"
        try:
            work(home=home, **options)
            outcome = "done"
        finally:
            note(home, act, outcome)

    return _noted


def _word(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
