"""What the ledger adds up to, on both databases: by any group, as a table, JSON, CSV and parquet; and how fast runs spend."""

import csv
import io
import json

import pyarrow.parquet
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from routing.audit_verify import ledger_requests
from routing.ledger import Ledger, Row
from routing.pace import Pace, hasty_runs, pace_of, paces, per_minute, spend_velocity
from routing.usage import GROUPS, as_records, usage
from routing.usage_cli import usage as command

DAY = 86400
AT = 20_000 * DAY + 100.0  # 4 October 2024, UTC


def row(at=AT, request_id="r", attempt=1, **more):
    """An answered attempt of team red's caller."""
    one = Row(at, request_id, attempt, "k", "bot", "/v1", "extraction", "small", "w", 200, "", 10, 5, True, 1.0, 2.0, team="red",
              run_id="run", data_class="internal", zone="onprem", cost_nanousd=1000, gpu_ms=7)  # fmt: skip
    return replace(one, **more)


ROWS = [
    row(),
    row(request_id="s", at=AT + DAY, team="blue", cost_nanousd=10**12, gpu_ms=10**12),
    row(request_id="t", status=502, prompt_tokens=None, completion_tokens=None, exact=False),
    row(request_id="t", attempt=2, model="large"),
    row(request_id="u", attempt=0, status=402, model="", prompt_tokens=None, completion_tokens=None, cost_nanousd=0, gpu_ms=0),
]


@pytest.fixture
def filled(store):
    """A store with those rows."""
    ledger = Ledger(store)
    for one in ROWS:
        ledger.append(one)
    ledger.close()
    return store


def test_sums_are_the_rows_sums(filled):
    """Requests, attempts, refusals, failures, tokens, money and GPU time, exact beyond what a 32-bit number or a float holds."""
    (whole,) = usage(filled, ())
    assert whole == ((), 4, 4, 1, 1, 30, 15, 1, 10**12 + 3000, 10**12 + 21)


def test_groups_are_told_apart_and_ordered(filled):
    """By team the dearest first; by day the oldest first, as UTC dates; spans cut at arrival."""
    assert [(line.group, line.requests) for line in usage(filled, ("team",))] == [(("blue",), 1), (("red",), 3)]
    assert [line.group for line in usage(filled, ("day", "team"))] == [("2024-10-04", "red"), ("2024-10-05", "blue")]
    assert {line.group for line in usage(filled, ("model",), until=AT + 1)} == {("small",), ("",), ("large",)}
    assert usage(filled, ("team",), since=AT + 1, until=AT + DAY) == []
    assert [line.group for line in usage(filled, ("team",), since=AT + DAY)] == [("blue",)]


def test_every_group_adds_up_to_the_same(filled):
    """However it is split, nothing is lost or counted twice."""
    (whole,) = usage(filled, ())
    for name in GROUPS:
        lines = usage(filled, (name,))
        assert [sum(column) for column in list(zip(*lines, strict=True))[1:]] == list(whole[1:]), name


def test_the_command_tells_it_in_every_form(filled, place, tmp_path):
    """Table, JSON, CSV and parquet carry the same numbers."""
    def run(*arguments):
        done = CliRunner().invoke(command, ["--home", str(place.home), "--since", "2024-01-01", "--by", "team", "--by", "day", *arguments],
                                  env={"INHOUSE_DATABASE": place.url})  # fmt: skip
        assert done.exit_code == 0, done.output
        return done.stdout

    expected = as_records(("team", "day"), usage(filled, ("team", "day")))
    assert json.loads(run("--json")) == expected
    lines = csv.DictReader(io.StringIO(run("--csv")))
    assert [{k: v if k in ("team", "day") else int(v) for k, v in line.items()} for line in lines] == expected
    run("--parquet", str(tmp_path / "u.parquet"))
    assert pyarrow.parquet.read_table(tmp_path / "u.parquet").to_pylist() == expected
    table = run()
    assert "1000.000000" in table and "red" in table and "0.000003" in table


def test_the_audit_knows_which_requests_to_look_for(filled):
    """Each request once, however many attempts it took, refused ones too, of the span that is asked for."""
    assert ledger_requests(filled, 0, AT + 1) == {"r": 1, "t": 1, "u": 1}
    assert ledger_requests(filled, AT + 1, AT + DAY) == {"s": 1}


def test_a_wrong_time_is_told(tmp_path):
    """What can be written instead stands in the message."""
    done = CliRunner().invoke(command, ["--home", str(tmp_path), "--since", "yesterday"])
    assert done.exit_code == 2 and "2026-11-01" in done.output


def test_the_pace_of_runs_is_read_from_the_ledger(store):
    """Cost over the run's span, a minute at least; runs of one call and calls without a run say nothing."""
    ledger = Ledger(store)
    for i in range(30):
        for call in range(2):
            ledger.append(row(AT + call * 120, f"r{i}-{call}", run_id=f"run{i}", cost_nanousd=1000 * (i + 1)))
    ledger.append(row(run_id="lone", cost_nanousd=10**15))
    ledger.append(row(run_id="", cost_nanousd=10**15))
    ledger.close()
    assert paces(store, 0) == {"extraction": Pace(30, 16_000.0, 29_000.0)}
    assert paces(store, AT + DAY) == {}


def test_runs_that_spend_far_faster_than_others_are_named(store):
    """Only runs that have called lately, and with all that they have spent; a task without history has none."""
    ledger = Ledger(store)
    for i, (run, cost) in enumerate([("usual", 1000), ("dear", 50_000), ("old", 10**9), ("other", 10**9)]):
        for call in range(2):
            at = (0 if run == "old" else AT) + call * 60
            ledger.append(row(at, f"h{i}-{call}", run_id=run, cost_nanousd=cost, task="chat" if run == "other" else "extraction"))
    ledger.close()
    found = hasty_runs(store, {"extraction": Pace(50, 1000.0, 4000.0)}, AT)
    assert {run: one.severity for run, one in found.items()} == {"dear": "stop"}


def test_a_run_far_over_its_tasks_pace_is_found():
    """Three times the 99th percentile warns, ten times stops; with under twenty runs nothing is known."""
    usual = pace_of([100.0] * 50)
    found = [spend_velocity(usual, cost, 600) for cost in (2900, 3000, 9900, 10_000)]
    assert [one and one.severity for one in found] == [None, "warn", "warn", "stop"]
    assert spend_velocity(pace_of([100.0] * 19), 10**12, 60) is None
    assert spend_velocity(None, 10**12, 60) is None
    assert per_minute(100, 0) == 100


@given(st.lists(st.floats(0, 1e12), min_size=20, max_size=200))
def test_a_run_within_its_tasks_history_is_never_found(history):
    """Nothing that the task's runs did at the 99th percentile or below is far over it."""
    usual = pace_of(history)
    assert spend_velocity(usual, int(usual.p99), 60) is None
