"""Listings on the terminal: aligned columns for people, JSON for programs."""

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from serving.fit import Fit


def fit_row(answer: "Fit") -> dict[str, Any]:
    """One answer of `fit`, sizes readable."""
    from serving.fit import gib

    if not answer.weights_bytes:
        return {"model": answer.model, "node": answer.node, "verdict": answer.verdict}
    best = f" to {answer.kv_tokens_at_best:,}" if answer.kv_tokens_at_best != answer.kv_tokens else ""
    return {"model": answer.model, "node": answer.node, "verdict": answer.verdict, "weights": gib(answer.weights_bytes),
            "runtime": f"{gib(answer.other_low_bytes)} to {gib(answer.other_high_bytes)}", "cache": gib(answer.kv_low_bytes),
            "per token": f"{answer.kv_bytes_per_token / 1024:.4g} KiB", "tokens": f"{answer.kv_tokens:,}{best}",
            "requests": f"{answer.requests:.2f}"}


def scaled(number: int | None) -> str:
    """1234567 as 1.23M."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number is not None and number >= size:
            return f"{number / size:.3g}{unit}"
    return "" if number is None else str(number)


def show(rows: list[dict[str, Any]], as_json: bool, columns: list[str]) -> None:
    """A table for people, or the rows as JSON. Pipes get full width, so nothing is cut off."""
    if as_json:
        click.echo(json.dumps(rows, indent=1))
        return
    if not rows:
        click.echo("nothing found")
        return
    texts = [[_text(row.get(column)) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in [columns, *texts]) for i in range(len(columns))]
    for line in [columns, *texts]:
        click.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _text(value: Any) -> str:
    return {True: "yes", False: "no", None: ""}.get(value, str(value)) if isinstance(value, bool | None) else str(value)
