"""The ledger: a row for every attempt, through full disks, locked files and kills."""

import os
import signal
import subprocess
import sys
import time

from msgspec.structs import replace
from sqlalchemy import select, text

from routing.ledger import _HELD_ROWS, Ledger, Row
from routing.store import LEDGER, open_store

CHILD = """
import sys, time
from pathlib import Path
from routing.ledger import Ledger, Row
from routing.store import open_store
ledger = Ledger(open_store(Path(sys.argv[1])))
n = 0
while True:
    n += 1
    ledger.append(Row(time.time(), f"r{n}", 1, "k", "c", "/v1", "t", "m", "w", 200, "", 1, 1, True, 1.0, 1.0))
    sys.stdout.write(f"{n} {time.time()}\\n")
    sys.stdout.flush()
    time.sleep(0.0005)
"""


def row(request_id="r", status=200, **more):
    return replace(Row(1.0, request_id, 1, "k", "c", "/v1", "t", "m", "w", status, "", 7, 3, True, 1.5, 2.5), **more)


def stored(engine):
    with engine.connect() as connection:
        return connection.execute(select(LEDGER).order_by(LEDGER.c.id)).mappings().all()


def test_rows_arrive_as_they_were(store):
    """Every column comes back, absent counts as absent, and the batch is told to whoever counts."""
    seen = []
    ledger = Ledger(store, seen.extend)
    rows = [row(f"r{i}", prompt_tokens=None if i % 2 else i, ttft_ms=None) for i in range(100)]
    for one in rows:
        ledger.append(one)
    ledger.close()
    got = [Row(**{k: v for k, v in one.items() if k != "id"}) for one in stored(store)]
    assert [replace(one, exact=bool(one.exact)) for one in got] == rows
    assert seen == rows


def test_rows_are_written_without_closing(store, wait_until):
    """A row is in the database soon after, with nobody waiting for it."""
    ledger = Ledger(store)
    ledger.append(row())
    wait_until(lambda: stored(store))
    ledger.close()
    ledger.close()
    assert len(stored(store)) == 1


def test_a_locked_database_keeps_rows_until_it_opens(store, wait_until):
    """While the disk refuses nothing is lost, readiness can see it, and all rows arrive once it takes them again."""
    with store.begin() as connection:
        connection.execute(text("alter table ledger rename to away"))
    ledger = Ledger(store)
    for i in range(500):
        ledger.append(row(f"r{i}"))
    wait_until(lambda: ledger.failing)
    with store.begin() as connection:
        connection.execute(text("alter table away rename to ledger"))
    wait_until(lambda: len(stored(store)) == 500)
    wait_until(lambda: not ledger.failing)
    ledger.close()
    assert [one["request_id"] for one in stored(store)] == [f"r{i}" for i in range(500)]


def test_a_disk_that_stays_full_does_not_fill_memory(store, wait_until):
    """Beyond the limit the oldest rows are given up, not the process."""
    with store.begin() as connection:
        connection.execute(text("alter table ledger rename to away"))
    ledger = Ledger(store)
    for i in range(_HELD_ROWS + 500):
        ledger.append(row(f"r{i}"))
    wait_until(lambda: len(ledger._rows) == _HELD_ROWS)
    assert ledger._rows[0].request_id == "r500"
    ledger.close()


def test_somebody_who_counts_wrongly_does_not_stop_the_ledger(store, wait_until):
    """Rows go on being written when whoever is told about them raises."""

    def broken(rows):
        raise ValueError("no")

    ledger = Ledger(store, broken)
    ledger.append(row("a"))
    wait_until(lambda: len(stored(store)) == 1)
    ledger.append(row("b"))
    wait_until(lambda: len(stored(store)) == 2)
    ledger.close()


def test_a_value_that_no_database_holds_does_not_stop_the_ledger(store, wait_until):
    """One impossible row is given up by itself; those before and after it are written."""
    ledger = Ledger(store)
    for one in (row("a"), row("bad", prompt_tokens=1 << 70), row("b")):
        ledger.append(one)
    wait_until(lambda: [one["request_id"] for one in stored(store)] == ["a", "b"])
    assert not ledger.failing
    ledger.close()


def test_a_kill_loses_at_most_the_last_moment(tmp_path):
    """After kill -9 all rows are there but those of the last 50 ms (on a busy machine: of the last second)."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE)
    for _ in range(1000):
        line = child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL)
    last = float(line.split()[1])
    for line in child.stdout.read().splitlines():
        if len(line.split()) == 2:
            last = max(last, float(line.split()[1]))
    child.stdout.close()
    child.wait()
    engine = open_store(tmp_path)
    rows = stored(engine)
    engine.dispose()
    assert [one["request_id"] for one in rows] == [f"r{i + 1}" for i in range(len(rows))], "no gap before the end"
    assert last - rows[-1]["at"] < 1.0


def test_two_processes_write_one_ledger(store, tmp_path):
    """Two writers on one file lose nothing to each other."""
    ledgers = [Ledger(store), Ledger(other := open_store(tmp_path))]
    for i in range(2000):
        ledgers[i % 2].append(row(f"r{i}"))
        if i % 200 == 0:
            time.sleep(0.02)
    for ledger in ledgers:
        ledger.close()
    assert len(stored(store)) == 2000
    other.dispose()
