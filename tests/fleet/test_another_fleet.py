"""A fleet whose router is on a machine of its own: callers see no other, and it goes on with what another fleet backed up."""

from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.fleet
SERVING = Path(__file__).parents[2] / "serving"


def test_a_router_on_a_machine_of_its_own_answers(apart):
    """From outside it alone has an endpoint; it runs no Ray and no database, and the head of the cell runs no router."""
    key = apart.lab.ssh("node2", "inhouse keys create callers").strip().splitlines()[-1]
    status, headers = apart.ask(key)
    assert status == 200 and headers["inhouse-model"] == "demo-extractor" and apart.ask("ihk_nobody")[0] == 401
    assert {name: apart.reachable(name) for name in ("node1", "node2")} == {"node1": [22], "node2": [22, 443]}
    listed = "systemctl list-units --plain --no-legend --state=running 'inhouse-*.service' haproxy.service 'postgresql@*' | cut -d. -f1"
    assert apart.lab.ssh("node2", listed).split() == ["haproxy", "inhouse-router"]
    assert apart.lab.ssh("node1", listed).split() == ["inhouse-cell", "postgresql@15-main"]


def test_models_alone_are_deployed_anew(apart):
    """`--tags models` with another catalog, on a head that was never restarted: each model is started anew with it, and answers."""
    key = apart.lab.ssh("node2", "inhouse keys create models").strip().splitlines()[-1]
    catalog = yaml.safe_load((SERVING / "models.yaml").read_text())
    catalog["models"] = [{**model, "path": str(SERVING / model["path"]), "engine": {**model["engine"], "max_num_seqs": 7}}
                         for model in catalog["models"]]
    (apart.folder / "seven.yaml").write_text(yaml.safe_dump(catalog))

    def running() -> set[str]:
        return {replica["replica_id"] for replicas in apart.replicas().values() for replica in replicas}

    before = running()
    apart.play("site.yml", "--tags", "models", "-e", f"release_catalog={apart.folder}/seven.yaml")
    assert len(running()) == 2 and running().isdisjoint(before) and apart.ask(key)[0] == 200
    apart.play("site.yml", "--tags", "models")


def test_its_router_is_upgraded_alone(apart, another):
    """Callers notice nothing, Ray goes on with its own release, and the validator finds that right."""
    key = apart.lab.ssh("node2", "inhouse keys create upgrade").strip().splitlines()[-1]
    before = apart.lab.ssh("node1", "readlink /opt/inhouse/cell; systemctl show -P ActiveEnterTimestampMonotonic inhouse-cell")
    with apart.load(key) as load:
        apart.play("upgrade.yml", tree=another("routing/errors.py", "# another release\n"))
    print(f"\nupgrade of a router apart: {load.told()}")
    assert load.seen and load.failures() == []
    assert apart.lab.ssh("node1", "readlink /opt/inhouse/cell; systemctl show -P ActiveEnterTimestampMonotonic inhouse-cell") == before
    assert apart.lab.ssh("node2", "readlink /opt/inhouse/current").strip() not in before
    apart.play("validate.yml", "-e", f"validate_report={apart.folder}/validate.json")


def test_a_backup_is_restored_on_another_fleet(fleet, key, apart):
    """Keys, teams, budgets, runs and ledger are equal, and a key that was made on the one fleet opens the other."""
    dumps = fleet.folder / "to-another"
    assert fleet.ask(key)[0] == 200 and apart.ask(key)[0] == 401
    fleet.lab.ssh("node1", "systemctl reload inhouse-router")  # who leaves has written all its rows
    fleet.await_answer(key)
    fleet.play("backup.yml", "-e", f"backup_folder={dumps}")
    dump = max(dumps.glob("*.dump"), key=lambda path: path.stat().st_mtime)
    apart.play("restore.yml", "-e", f"backup_file={dump}")
    assert apart.books() == fleet.books()
    apart.await_answer(key)


def test_a_machine_is_added(apart, key):
    """As a worker and a second router, whose endpoint answers at once; callers of the first one are not refused."""
    apart.lab.up(3)
    apart.with_groups(head=["node1"], data=["node1"], router=["node2", "node3"], gpu_nodes=["node1", "node3"])
    with apart.load(key) as load:
        print(f"\na machine added: {apart.times(apart.play('site.yml'))}")
    print(f"while it was added: {load.told()}")
    assert load.seen and load.failures() == []
    assert apart.ask(key, name="node3")[0] == 200
    assert set(apart.changed(apart.play("site.yml")).values()) == {0}
