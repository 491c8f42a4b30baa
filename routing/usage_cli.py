"""The command `inhouse usage`: the ledger's sums for people and for spreadsheets."""

import csv
import json
import re
import sys
import time
from pathlib import Path

import click

from routing.cli import HOME, JSON, print_table

_GROUPS = ("team", "caller", "task", "model", "day", "run", "zone", "class")
_SPAN = re.compile(r"(\d+)([hdw])")
_UNITS_S = {"h": 3600, "d": 86400, "w": 604800}


@click.command()
@click.option("--by", multiple=True, type=click.Choice(_GROUPS), help="What to tell apart; again for more.  [default: team, caller, model]")
@click.option("--since", default="30d", show_default=True, metavar="TIME", help="From when on: 12h, 7d or 4w ago, or a date as 2026-11-01.")
@click.option("--until", metavar="DATE", help="Up to and without this date.")
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option("--parquet", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE", help="Write a parquet file.")
@HOME
@JSON
def usage(by: tuple[str, ...], since: str, until: str | None, parquet: Path | None, home: Path, *, as_csv: bool, as_json: bool) -> None:
    """Show requests, tokens, GPU time and cost, summed from the ledger. Days and dates are UTC.

    Example: inhouse usage --by team --by day --since 7d
    """
    from routing import usage as sums
    from routing.store import open_store

    by = by or ("team", "caller", "model")
    store = open_store(home)
    lines = sums.usage(store, by, since=_moment(since), until=_moment(until) if until else float("inf"))
    store.dispose()
    records = sums.as_records(by, lines)
    if parquet is not None:
        sums.write_parquet(parquet, by, lines)
        click.echo(f"wrote {len(lines)} lines to {parquet}", err=True)
    if as_json:
        click.echo(json.dumps(records, indent=1))
    elif as_csv:
        writer = csv.DictWriter(sys.stdout, [*by, *(name for name in sums.Usage._fields if name != "group")])
        writer.writeheader()
        writer.writerows(records)
    elif parquet is None:
        head = (*(name.upper() for name in by), "REQUESTS", "REFUSED", "FAILED", "TOKENS IN", "TOKENS OUT", "GPU S", "USD")
        print_table(head, [(*(name or "-" for name in line.group), str(line.requests), str(line.refused), str(line.failed),
                            str(line.prompt_tokens), str(line.completion_tokens), f"{line.gpu_ms / 1e3:.1f}",
                            f"{line.cost_nanousd / 1e9:.6f}") for line in lines])  # fmt: skip


def _moment(text: str) -> float:
    """A time before now, or the start of a date in UTC, as Unix seconds."""
    if found := _SPAN.fullmatch(text):
        return time.time() - int(found[1]) * _UNITS_S[found[2]]
    try:
        import calendar

        return float(calendar.timegm(time.strptime(text, "%Y-%m-%d")))
    except ValueError:
        raise click.BadParameter(f"`{text}` is no time; write 12h, 7d, 4w or a date as 2026-11-01") from None
