"""One machine in every group is a fleet, too; and what one fleet backed up, another one goes on with."""

import pytest

pytestmark = pytest.mark.fleet


def test_a_backup_is_restored_on_another_fleet(fleet, key, one):
    """Keys, teams, budgets, runs and ledger are equal, and a key that was made on the one fleet opens the other."""
    dumps = fleet.folder / "to-another"
    assert fleet.ask(key)[0] == 200 and one.ask(key)[0] == 401
    fleet.lab.ssh("node1", "systemctl reload inhouse-router")  # who leaves has written all its rows
    fleet.await_answer(key)
    fleet.play("backup.yml", "-e", f"backup_folder={dumps}")
    dump = max(dumps.glob("*.dump"), key=lambda path: path.stat().st_mtime)
    one.play("restore.yml", "-e", f"backup_file={dump}")
    assert one.books() == fleet.books()
    one.await_answer(key)


def test_a_machine_is_added(one, key):
    """As a worker and a second router, whose endpoint answers at once; callers of the first one wait for its port, which moves to the
    network, and are not refused.
    """
    one.lab.up(2)
    one.with_groups(head=["node1"], data=["node1"], router=["node1", "node2"], gpu_nodes=["node1", "node2"])
    with one.load(key) as load:
        print(f"\na machine added: {one.times(one.play('site.yml'))}")
    print(f"while it was added: {load.told()}")
    assert load.seen and load.failures() == []
    assert one.ask(key, name="node2")[0] == 200
    assert set(one.changed(one.play("site.yml")).values()) == {0}
