"""What a benchmark found, as a table for people and as JSON for programs."""

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table


class Range(NamedTuple):
    """A metric over the rounds: its median, least and most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Range | None":
        """None where there are no values."""
        found = sorted(values)
        return cls(statistics.median(found), found[0], found[-1]) if found else None

    def __str__(self) -> str:
        return number(self.median) if self.least == self.most else f"{number(self.median)} ({number(self.least)}-{number(self.most)})"


def number(value: float) -> str:
    """A figure with no more digits than it deserves: three that count."""
    size = abs(value)
    return f"{value:,.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


@dataclass(frozen=True)
class Grid:
    """One table: a name for each column, and rows of cells; None is an empty cell."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]


@dataclass(frozen=True)
class Report:
    """All that a benchmark says. It failed where `failures` is not empty: an answer was missing or wrong."""

    kind: str
    data: dict[str, Any]
    grids: Sequence[Grid]
    notes: Sequence[str] = ()
    failures: Sequence[str] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> str:
        """The whole report as JSON, without its tables: those are made of `data`."""
        whole = {"kind": self.kind, "settings": self.settings, **self.data, "notes": list(self.notes), "failures": list(self.failures)}
        return json.dumps(_plain(whole), indent=2)

    def show(self, console: Console) -> None:
        """Prints the tables, the notes and the failures."""
        for grid in self.grids:
            table = Table(title=grid.title, title_justify="left", header_style="bold")
            for i, column in enumerate(grid.columns):
                table.add_column(column, justify="right" if i else "left", no_wrap=not i)
            for row in grid.rows:
                table.add_row(*("" if cell is None else cell if isinstance(cell, str) else _figure(cell) for cell in row))
            console.print(table)
        for note in self.notes:
            console.print(f"[dim]- {note}[/dim]", highlight=False)
        for failure in self.failures:
            console.print(f"[bold red]FAILED[/bold red] {failure}", highlight=False)

    def deliver(self, *, as_json: bool, out: Path | None) -> None:
        """To the terminal, and to a file where one is named."""
        if out is not None:
            out.write_text(self.as_json() + "\n", encoding="utf-8")
        if as_json:
            print(self.as_json())
        else:
            console = Console()
            self.show(console if console.is_terminal else Console(width=140))


def _figure(cell: object) -> str:
    return str(cell) if isinstance(cell, Range) else number(cell) if isinstance(cell, float) else str(cell)


def _plain(value: Any) -> Any:
    """JSON's types: ranges become objects, floats keep four digits that count."""
    if isinstance(value, Range):
        return {name: _plain(part) for name, part in value._asdict().items()}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.4g}")
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value
