"""Callers, teams and their keys on both databases: what belongs to whom, and that a revoked key ends everywhere."""

import json
import os
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from sqlalchemy import select

import inhouse
from routing import keys, teams
from routing.budgets import budgets_of
from routing.errors import Unauthorized
from routing.keys import Allowed, KeyRing
from routing.store import ACCOUNTS

DAY = budgets_of(["1usd/day"])
WATCH = """
import os, sys, time
from pathlib import Path
from routing.errors import Unauthorized
from routing.keys import KeyRing
from routing.store import open_store
ring = KeyRing(open_store(Path(os.environ["INHOUSE_HOME"])))
ring.identify(sys.argv[1].encode())
print("known", flush=True)
while True:
    ring.refresh()
    try:
        ring.identify(sys.argv[1].encode())
    except Unauthorized:
        print(time.time())
        break
    time.sleep(0.25)
"""


@pytest.fixture
def ring(store):
    """A ring over the test's database."""
    made = KeyRing(store)
    yield made
    if made._connection is not None:
        made._connection.close()


def limits(store):
    with store.connect() as connection:
        return {(row.kind, row.scope, row.unit): row.most for row in connection.execute(select(ACCOUNTS))}


def test_a_key_says_who_calls_and_what_they_may_use(store, ring):
    """Team, data classes, budgets of caller and team come with the key, and are in the books."""
    assert teams.create_team(store, "finance", budgets_of(["100usd/month"]))
    key = keys.create(store, "ann", allowed=Allowed("finance", "internal", "pii", DAY))
    ring.refresh()
    caller = ring.identify(key.encode())
    assert caller[5:-1] == ("finance", "internal", "pii", DAY, budgets_of(["100usd/month"]))
    assert limits(store) == {("caller", "ann", "nanousd"): 10**9, ("team", "finance", "nanousd"): 10**11}


def test_a_callers_keys_share_what_is_the_callers(store, ring):
    """A second key has the team and budgets of the first; what it is given counts for both."""
    teams.create_team(store, "finance", ())
    first = keys.create(store, "ann", allowed=Allowed("finance", limits=DAY))
    second = keys.create(store, "ann", tasks=["chat"], allowed=Allowed(max_class="pii"))
    ring.refresh()
    one, other = (ring.identify(key.encode()) for key in (first, second))
    assert one[5:] == other[5:] == ("finance", "", "pii", DAY, (), False)
    assert other.tasks == {"chat"}


def test_a_rotated_key_is_the_same_caller(store, ring):
    """A new key opens what the old one did and counts in the same books; the old one ends at once, or after the overlap."""
    old = keys.create(store, "ann", tasks=["chat"], is_batch=True, allowed=Allowed(limits=DAY))
    new = keys.rotate(store, old[:12])
    ring.refresh()
    assert ring.identify(new.encode())[1:] == ("ann", {"chat"}, {"*"}, float("inf"), "", "", "", DAY, (), True)
    with pytest.raises(Unauthorized):
        ring.identify(old.encode())
    newer = keys.rotate(store, new[:12], overlap_s=3600)
    ring.refresh()
    assert ring.identify(newer.encode()).name == "ann"
    assert 3500 < ring.identify(new.encode()).expires_at - time.time() < 3700
    assert keys.rotate(store, old[:12]) is None
    assert len(limits(store)) == 1


def test_an_unknown_team_is_told(store):
    """A key for a team that is not there is not made."""
    with pytest.raises(LookupError, match="no team `nobody`"):
        keys.create(store, "ann", allowed=Allowed("nobody"))
    assert keys.listed(store) == []
    assert not teams.set_team(store, "nobody", DAY)


def test_a_teams_new_limit_reaches_every_ring(store, ring):
    """`teams set` changes the books and what workers know; a second team of the name is refused."""
    teams.create_team(store, "finance", DAY)
    key = keys.create(store, "ann", allowed=Allowed("finance"))
    assert not teams.create_team(store, "finance", DAY)
    assert teams.set_team(store, "finance", budgets_of(["2usd/day"]))
    ring.refresh()
    assert ring.identify(key.encode()).team_limits == budgets_of(["2usd/day"])
    assert limits(store)["team", "finance", "nanousd"] == 2 * 10**9
    assert [team["callers"] for team in teams.listed_teams(store)] == [["ann"]]


def test_a_revoked_key_ends_in_every_process(place):
    """Two processes that watch as routers do refuse the key after it is revoked (AISVS C9.8.6: what is stopped stays stopped)."""
    engine = place.open()
    key = keys.create(engine, "ann")
    environment = {**place.environment, "PYTHONPATH": os.pathsep.join(sys.path)}
    watchers = [subprocess.Popen([sys.executable, "-c", WATCH, key], env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for watcher in watchers:
        assert watcher.stdout.readline() == "known\n"
    assert keys.revoke(engine, key[:12])
    for watcher in watchers:
        watcher.communicate(timeout=60)
        assert watcher.returncode == 0
    engine.dispose()


def test_the_commands_make_and_show_callers_and_teams(place):
    """A platform engineer's first five minutes, on either database; wrong input is one line that says what is right."""
    home = ["--home", str(place.home)]

    def _run(*words, code=0):
        result = CliRunner().invoke(inhouse.main, [*words, *home], env={"INHOUSE_DATABASE": place.url})
        assert result.exit_code == code, result.output
        return result.output

    _run("teams", "create", "finance", "--budget", "100usd/month")
    assert "no team `hr`" in _run("keys", "create", "ann", "--team", "hr", code=1)
    assert "is not a budget; write" in _run("keys", "create", "ann", "--budget", "1eur", code=2)
    key = _run("keys", "create", "ann", "--team", "finance", "--budget", "1usd/day", "--limit", "60calls/minute").strip()
    assert "no data class `confidental`; did you mean `confidential`?" in _run("keys", "create", "eve", "--class", "confidental", code=2)
    assert "no data class `pii`; known here: confidential" in _run("keys", "set", "ann", "--max-class", "pii", code=2)
    _run("keys", "set", "ann", "--budget", "2usd/day", "--max-class", "confidential")
    assert "no caller `bob`" in _run("keys", "set", "bob", code=1)
    new = _run("keys", "rotate", key[:12]).strip()
    assert "batch" not in _run("keys", "list")
    (old, row) = json.loads(_run("keys", "list", "--json"))
    assert (row["id"], row["team"], row["limits"], row["max_class"]) == (new[:12], "finance", ["2usd/day"], "confidential")
    assert old["revoked_at"] and row["used"] == {"2usd/day": "0usd", "60calls/minute": "0calls"}
    assert "0usd of 2usd/day" in _run("keys", "list")
    assert "0usd of 100usd/month" in _run("teams", "list")
    assert "no key in force" in _run("keys", "rotate", key[:12], code=1)
    night = _run("keys", "create", "ann", "--batch").strip()
    assert [(row["id"], row["team"]) for row in json.loads(_run("keys", "list", "--json")) if row["batch"]] == [(night[:12], "finance")]
