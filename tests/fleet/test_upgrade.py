"""Releases and cells: another one taken into use while callers ask, one that is broken, a second cell, and what is left after a reset."""

import pytest

pytestmark = pytest.mark.fleet


def releases(fleet) -> set[str]:
    """What the machines' links, a cell's and that of all else, and the router say is in use."""
    read = "basename -a $(readlink /opt/inhouse/current /opt/inhouse/cell)"
    links = {link for name in ("node1", "node2", "node3") for link in fleet.lab.ssh(name, read).split()}
    return links | {fleet.lab.ssh("node1", "systemctl show -P StatusText inhouse-router").split("/")[-2]}


def ray_since(fleet) -> list[str]:
    """When each machine's Ray was started."""
    return [fleet.lab.ssh(name, "systemctl show -P ActiveEnterTimestampMonotonic inhouse-cell") for name in ("node1", "node2", "node3")]


@pytest.fixture(scope="module")
def cells(fleet, key):
    """node3 drained and made a cell of its own, as the README says, while callers ask."""
    with fleet.load(key) as load:
        fleet.play("drain.yml", "-l", "node3")
        fleet.with_groups(head=["node1", "node3"], router=["node1"], data=["node1"], gpu_nodes=["node2", "node3"])
        fleet.play("site.yml")
    print(f"\nsecond cell: {load.told()}")
    assert load.seen and load.failures() == []
    return fleet


def test_a_release_that_changes_nothing_for_models_leaves_them_alone(fleet, key, another):
    """The router's successor takes over, Ray goes on as it was started, and one cell is enough for no request to be lost. The first test of
    this file: after another, this checkout's release differs from the running one in what cells run, too.
    """
    before, since = releases(fleet), ray_since(fleet)
    with fleet.load(key) as load:
        fleet.play("upgrade.yml", tree=another("routing/errors.py", "# another release\n"))
    print(f"\nupgrade of the router alone: {load.told()}")
    assert load.seen and load.failures() == [] and ray_since(fleet) == since
    assert releases(fleet) - before == {fleet.lab.ssh("node1", "systemctl show -P StatusText inhouse-router").split("/")[-2]}


def test_one_cell_is_away_for_a_bounded_time(fleet, key, another):
    """Ray can't mix releases: callers are told to come again, no stream is cut, and all machines run the new release."""
    before = releases(fleet)
    with fleet.load(key) as load:
        fleet.play("upgrade.yml", tree=another("inhouse.py", "# another release\n"))
    print(f"\nupgrade of one cell: {load.told()}")
    assert set(load.failures()) <= {"502", "503"} and fleet.ask(key)[0] == 200
    assert len(releases(fleet)) == 1 and releases(fleet).isdisjoint(before)


def test_a_release_whose_models_do_not_start_goes_back(fleet, key, another):
    """The play fails, says so, and the release before answers on every machine."""
    before = releases(fleet)
    with fleet.load(key) as load:
        said = fleet.play("upgrade.yml", succeeds=False, tree=another("serving/replica.py", "raise RuntimeError('broken')\n"))
    print(f"\nbroken release: {load.told()}")
    assert "did not answer in the cell of node1" in said
    assert releases(fleet) == before and fleet.ask(key)[0] == 200


def test_an_upgrade_of_two_cells_costs_no_request(cells, key, another):
    """One cell answers while the other changes; streams end whole; the routers' successors take over."""
    with cells.load(key) as load:
        cells.play("upgrade.yml", tree=another("inhouse.py", "# yet another release\n"))
    print(f"\nupgrade of two cells: {load.told()}")
    assert load.seen and load.failures() == [] and len(releases(cells)) == 1


def test_a_router_whose_release_does_not_start_goes_on_with_the_one_before(cells, key, another):
    """Its successor never gets the port: no caller notices, and the play says what happened."""
    before = cells.lab.ssh("node1", "systemctl show -P StatusText inhouse-router")
    with cells.load(key) as load:
        said = cells.play("upgrade.yml", succeeds=False, tree=another("routing/server.py", "raise RuntimeError('broken')\n"))
    print(f"\nbroken router: {load.told()}")
    assert load.failures() == [] and "did not answer on node1" in said
    assert cells.lab.ssh("node1", "systemctl show -P StatusText inhouse-router") == before


def test_a_lost_head_of_two_costs_no_more_than_the_streams_on_it(cells, key):
    """Ray is killed on one head: who was being streamed to is told of the cut, everybody else is answered by the other cell."""
    with cells.load(key) as load:
        cells.lab.ssh("node1", "systemctl kill --signal=KILL inhouse-cell")
        is_back = "for i in $(seq 300); do sleep 1; systemctl is-active -q inhouse-models && exit; done; exit 1"
        cells.lab.ssh("node1", is_back, patience_s=400)
    print(f"\none head of two lost: {load.told()}")
    assert set(load.failures()) <= {"cut stream"} and len(load.failures()) <= load.streams


def test_old_releases_are_removed_and_those_in_use_are_not(cells, key):
    """Ray's and the routers' stay, and what is asked or started anew afterwards still answers."""
    used = releases(cells)
    cells.play("prune.yml", "-e", "release_keep=1")
    left = [cells.lab.ssh(name, "ls /opt/inhouse/releases").split() for name in ("node1", "node2", "node3")]
    assert all(set(there) <= used and there for there in left)
    cells.lab.ssh("node1", "systemctl restart inhouse-router")
    cells.await_answer(key)


def test_reset_leaves_nothing_of_ours(cells, key):
    """The last test: a machine is bare again, the other cell answers, and the play refuses without the word. What a bare machine would
    get is told by check mode, too.
    """
    assert "if you mean it" in cells.play("reset.yml", "-l", "node3", succeeds=False)
    cells.play("reset.yml", "-l", "node3", "-e", "reset=yes")
    left = ("ls -d /opt/inhouse /etc/inhouse /var/lib/inhouse /etc/systemd/system/*inhouse* /etc/systemd/system/*/*inhouse* 2>/dev/null; "
            "nft list tables; pgrep -l raylet; getent passwd | grep inhouse")
    assert cells.lab.ssh("node3", left, check=False).strip() == ""
    assert cells.ask(key)[0] == 200
    would = cells.changed(cells.play("site.yml", "--check"))
    assert would["node3"] > would["node1"]
