"""Reports: what people see and what programs read, from the same figures."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from routing.bench.report import Grid, Range, Report, number


def a_report(failures: tuple[str, ...] = ()) -> Report:
    ranges = {"cpu": Range.of([3.0, 1.0, 2.0]), "none": Range.of([])}
    grid = Grid("a title", ["", "CPU", "none"], [["router", ranges["cpu"], ranges["none"]]])
    return Report("test", {"gateways": {"router": {"cpu": ranges["cpu"]}}}, [grid], ["a note"], failures, {"rounds": 3})


def test_a_range_is_the_median_and_its_ends() -> None:
    """Median, least and most, whatever the order; nothing of nothing."""
    assert Range.of([3.0, 1.0, 2.0]) == (2.0, 1.0, 3.0)
    assert Range.of([]) is None
    assert str(Range.of([5.0])) == "5.00"


def test_figures_have_three_digits_that_count() -> None:
    """No false precision."""
    assert [number(value) for value in (12345.6, 123.4, 12.34, 1.234)] == ["12,346", "123", "12.3", "1.23"]


def test_the_table_shows_all_of_it() -> None:
    """Title, row, range, note and failure are on the screen."""
    console = Console(file=io.StringIO(), width=120)
    a_report(failures=("router: streams: chunks_63_of_64: 2",)).show(console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    for words in ("a title", "router", "2.00 (1.00-3.00)", "a note", "FAILED", "chunks_63_of_64"):
        assert words in shown


def test_the_json_is_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The JSON on stdout and in the file are the same and carry settings, ranges, notes and failures."""
    out = tmp_path / "report.json"
    a_report().deliver(as_json=True, out=out)
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads(out.read_text())
    assert printed["gateways"]["router"]["cpu"] == {"median": 2.0, "least": 1.0, "most": 3.0}
    assert (printed["kind"], printed["settings"], printed["notes"], printed["failures"]) == ("test", {"rounds": 3}, ["a note"], [])
