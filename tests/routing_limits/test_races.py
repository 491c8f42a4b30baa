"""Eight real processes and one cap, on SQLite and on PostgreSQL, with kills; and the way that everybody does it, which loses.

OWASP AISVS C9.1.1 and C9.1.3: a limit holds under concurrency and across processes. C9.8.6: a dead process keeps nothing for ever.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from sqlalchemy import select

from routing.store import ACCOUNTS, ALLOTMENTS

RACER = Path(__file__).with_name("racer.py")
CENTS = 10_000_000


def start(place, how, n):
    """`n` racers, each at the line."""
    racers = [subprocess.Popen([sys.executable, RACER, how], env={**place.environment, "PYTHONPATH": os.pathsep.join(sys.path)}, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(n)]  # fmt: skip
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    return racers


def go(racers):
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()


def result(racer):
    told = racer.communicate(timeout=120)[0]
    assert racer.returncode == 0
    return json.loads(told.splitlines()[-1])


def money(place):
    engine = place.open()
    with engine.connect() as connection:
        spent, held = connection.execute(select(ACCOUNTS.c.spent, ACCOUNTS.c.held).where(ACCOUNTS.c.unit == "nanousd")).one()
        allotted = connection.execute(select(ALLOTMENTS)).all()
    engine.dispose()
    return spent, held, allotted


def test_eight_processes_spend_exactly_the_cap(place):
    """Eighty tasks in eight processes against a dollar: fifty calls of two cents are made, not one more and not one less."""
    racers = start(place, "purse", 8)
    go(racers)
    charged = [result(racer) for racer in racers]
    assert sum(map(sum, charged)) == 100 * CENTS
    assert money(place) == (100 * CENTS, 0, [])


def test_check_then_record_passes_the_cap(place):
    """The same race by the usual way spends more than the dollar: the test above is able to fail."""
    racers = start(place, "naive", 4)
    go(racers)
    assert sum(sum(result(racer)) for racer in racers) > 100 * CENTS


def test_a_killed_process_gives_back_by_its_lease(place):
    """kill -9 of a process that holds all of it: nobody gets more than the cap before the lease ends, and all of it after."""
    (holder,) = start(place, "hold", 1)
    go([holder])
    assert holder.stdout.readline() == "holding\n"
    os.kill(holder.pid, signal.SIGKILL)
    holder.communicate()
    assert money(place)[:2] == (0, 100 * CENTS)
    deadline = time.monotonic() + 60
    spent = 0
    while spent < 100 * CENTS:
        assert time.monotonic() < deadline
        (racer,) = start(place, "purse", 1)
        go([racer])
        spent += sum(result(racer))
        assert money(place)[0] == spent <= 100 * CENTS
    assert money(place) == (100 * CENTS, 0, [])


def test_processes_that_are_killed_while_they_spend_do_not_raise_the_cap(place):
    """Two racers of four are killed as they spend; what was recorded and what the others spent stays within the dollar."""
    racers = start(place, "purse", 4)
    go(racers)
    for racer in racers[:2]:
        time.sleep(0.02)
        racer.kill()
    charged = [sum(result(racer)) for racer in racers[2:]]
    for racer in racers[:2]:
        racer.communicate()
    spent, held, _ = money(place)
    assert sum(charged) <= spent <= spent + held <= 100 * CENTS


