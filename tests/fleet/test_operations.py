"""The README's day-two table on real machines, line by line while callers ask; what they saw is printed. Minutes each."""

import json
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.fleet
ROOT = Path(__file__).parents[2]


def machines(fleet) -> set[str]:
    """The addresses of all machines with a running replica."""
    return {replica["node_ip"] for replicas in fleet.replicas().values() for replica in replicas}


def test_a_drained_worker_costs_no_request(fleet, key):
    """Its models start elsewhere before they stop there: while `drain.yml` runs every request is answered; afterwards it comes back."""
    with fleet.load(key) as load:
        fleet.play("drain.yml", "-l", "node2")
    print(f"\ndrain: {load.told()}")
    assert load.seen and load.failures() == []
    assert machines(fleet) == {fleet.lab.address("node3")}
    assert fleet.lab.ssh("node2", "systemctl is-active inhouse-cell", check=False).strip() == "inactive"
    fleet.play("resume.yml", "-l", "node2")


def test_a_worker_without_power_is_replaced_by_another(fleet, key):
    """One replica of each model, all on the machine that goes: a bounded outage, nothing to do; when it is back it joins again."""
    assert machines(fleet) == {fleet.lab.address("node3")}
    with fleet.load(key) as load:
        fleet.lab.cut_power("node3")
        fleet.await_answer(key)
    print(f"\nworker lost: {load.told()}")
    assert "TimeoutError" not in load.failures()  # nobody waits for a machine that is gone until patience ends
    assert machines(fleet) == {fleet.lab.address("node2")}
    fleet.lab.start("node3")
    fleet.lab.wait("node3")
    assert "running" in fleet.lab.ssh("node3", "systemctl is-system-running --wait; systemctl is-active inhouse-cell", check=False)


def test_a_lost_head_comes_back_with_its_models(fleet, key):
    """One cell has a bounded outage: Ray's processes are killed on the head, the unit starts them and the models are deployed again."""
    with fleet.load(key) as load:
        fleet.lab.ssh("node1", "systemctl kill --signal=KILL inhouse-cell")
        fleet.await_answer(key)
    print(f"\nhead lost: {load.told()}")


def test_a_router_is_replaced_without_a_lost_request(fleet, key):
    """A reload starts its successor on the same socket, a restart keeps the socket open: either way every request is answered."""
    for command in ("reload", "reload", "restart"):
        before = fleet.lab.ssh("node1", "systemctl show -P MainPID inhouse-router")
        with fleet.load(key) as load:
            fleet.lab.ssh("node1", f"systemctl {command} inhouse-router && for i in $(seq 60); do sleep 1; "
                                   f"[ $(systemctl show -P MainPID inhouse-router) != {before.strip()} ] && exit; done; exit 1")
        print(f"\nrouter, {command}: {load.told()}")
        assert load.seen and load.failures() == []


def test_a_changed_password_of_the_database_costs_no_request(fleet, key):
    """The database takes the new one, and a successor of the router has it; the old one is refused."""
    old = fleet.lab.ssh("node1", "cat /etc/inhouse/database-password").strip()
    with fleet.load(key) as load:
        fleet.play("site.yml", "-e", "postgresql_password=Tested4AChange")
    print(f"\ndatabase's password: {load.told()}")
    assert load.seen and load.failures() == []
    assert fleet.lab.ssh("node1", "cat /etc/inhouse/database-password") != old
    address = fleet.lab.address("node1")
    refused = fleet.lab.ssh("node1", f"PGPASSWORD={old} psql -h {address} -U inhouse inhouse -c 'SELECT 1' 2>&1 || true")
    assert "password authentication failed" in refused


def test_certificates_are_renewed_by_the_line_for_cron(fleet, key):
    """The edge and the database show new ones, and no request is lost; a day later the same line changes nothing."""
    address, line = fleet.lab.address("node1"), ("site.yml", "--tags", "pki,postgresql,edge,monitoring")
    shown = [f"openssl s_client -connect {address}:{port} </dev/null 2>/dev/null | openssl x509 -noout -serial"
             for port in ("443", "5432 -starttls postgres")]
    before = [fleet.lab.ssh("node1", command) for command in shown]
    with fleet.load(key) as load:
        fleet.play(*line, "-e", "pki_renew_days=400")
    print(f"\ncertificates renewed: {load.told()}")
    after = [fleet.lab.ssh("node1", command) for command in shown]
    assert load.seen and load.failures() == [] and after[0] == after[1] != before[0]
    assert set(fleet.changed(fleet.play(*line)).values()) == {0}


def test_a_new_token_is_taken_into_use(fleet, key):
    """`site.yml` installs it and interrupts nothing; `upgrade.yml` restarts the cell with it, and the old one is refused."""
    old = fleet.lab.ssh("node1", "cat /etc/inhouse/ray-token").strip()
    with fleet.load(key) as load:
        said = fleet.play("site.yml", "-e", "cell_token=00112233445566778899aabbccddeeff")
    print(f"\nnew token installed: {load.told()}")
    assert load.failures() == [] and "upgrade.yml" in said
    with fleet.load(key) as load:
        fleet.play("upgrade.yml")
    print(f"\none cell restarted for it: {load.told()}")
    assert fleet.ask(key)[0] == 200
    ask = ("import urllib.request as u, urllib.error as e\ntry: print(u.urlopen(u.Request('http://127.0.0.1:8265/api/serve/applications/', "
           f"headers={{'Authorization': 'Bearer {old}'}})).status)\nexcept e.HTTPError as x: print(x.code)")
    assert fleet.lab.ssh("node1", f'python3 -c "{ask}"').strip() in ("401", "403")


def test_a_model_is_removed_after_its_routes(fleet, key):
    """First the routes, then the model: no request of another model is lost, and its replica is gone. And back, the other way round."""
    routes = yaml.safe_load((ROOT / "routing/routes.yaml").read_text())
    for task in routes["tasks"]:
        task["candidates"], task["fallbacks"] = [{"model": "demo-extractor"}], []
    catalog = yaml.safe_load((ROOT / "serving/models.yaml").read_text())
    catalog["models"] = [{**model, "path": str(ROOT / "serving" / model["path"])} for model in catalog["models"][:1]]
    (fleet.folder / "routes.yaml").write_text(yaml.safe_dump(routes))
    (fleet.folder / "models.yaml").write_text(yaml.safe_dump(catalog))
    fewer_routes, fewer_models = f"router_routes={fleet.folder}/routes.yaml", f"release_catalog={fleet.folder}/models.yaml"
    with fleet.load(key) as load:
        fleet.play("site.yml", "-e", fewer_routes)
        fleet.play("site.yml", "-e", fewer_routes, "-e", fewer_models)
    print(f"\nmodel removed: {load.told()}")
    assert load.seen and load.failures() == []
    assert list(fleet.replicas()) == ["demo-extractor"]
    fleet.play("site.yml", "-e", fewer_routes)
    fleet.play("site.yml")
    assert sorted(fleet.replicas()) == ["demo-extractor", "demo-generalist"]


def test_a_full_disk_is_said_before_anything_changes(fleet):
    """A machine in use must have room for the next release: the verdict names it, and nothing was changed."""
    said = fleet.play("site.yml", "-e", "preflight_spare_gib=100000", succeeds=False)
    verdict = json.loads((fleet.folder / "preflight.json").read_text())
    assert not verdict["ok"] and len(verdict["failures"]) == 3 and "100000 are needed" in verdict["failures"][0]
    assert set(fleet.changed(said).values()) == {0}


def test_models_that_a_disk_has_no_room_for_are_not_copied(fleet):
    """A disk of their own that is too small for them: the play names it, what they take and what to do, and copies nothing."""
    store = "/var/lib/inhouse/models"
    fleet.lab.ssh("node2", f"mount -t tmpfs -o size=1m tmpfs {store}")
    try:
        said = fleet.play("site.yml", "--tags", "models", "-e", "preflight_spare_gib=0", succeeds=False)
        assert fleet.lab.ssh("node2", f"ls {store}").split() == []
    finally:
        fleet.lab.ssh("node2", f"umount {store}")
    assert f"the disk at {store} has 1 MiB free" in said and "take models out of models.yaml" in " ".join(said.split())


def test_an_unreachable_machine_is_said_before_anything_changes(fleet):
    """A machine without power: the verdict names it, and the others were not touched."""
    fleet.lab.stop("node3")
    try:
        said = fleet.play("site.yml", succeeds=False)
    finally:
        fleet.lab.start("node3")
        fleet.lab.wait("node3")
    failures = json.loads((fleet.folder / "preflight.json").read_text())["failures"]
    assert [failure.split(" at ")[0] for failure in failures] == ["node3: does not answer"]
    assert set(fleet.changed(said).values()) == {0}


def test_a_backup_brings_keys_budgets_and_ledger_back(fleet, key):
    """All rows are equal after everything was deleted and restored; a key made since the backup does not open anything."""
    dumps = fleet.folder / "backups"
    limited = fleet.lab.ssh("node1", "inhouse keys create limited --budget 1usd/day").strip().splitlines()[-1]
    assert fleet.ask(limited)[0] == 200
    fleet.lab.ssh("node1", "systemctl reload inhouse-router")  # who leaves has written all its rows
    fleet.await_answer(key)
    before = fleet.books()
    fleet.play("backup.yml", "-e", f"backup_folder={dumps}")
    later = fleet.lab.ssh("node1", "inhouse keys create later").strip().splitlines()[-1]
    fleet.lab.ssh("node1", "cd /tmp && runuser -u postgres -- psql -q inhouse -c 'TRUNCATE keys, teams, ledger, accounts, allotments'")
    assert fleet.books() != before
    dump = max(dumps.glob("*.dump"), key=lambda path: path.stat().st_mtime)
    fleet.play("restore.yml", "-e", f"backup_file={dump}")
    assert fleet.books() == before
    fleet.await_answer(key)
    assert fleet.ask(limited)[0] == 200 and fleet.ask(later)[0] == 401


def test_backups_are_made_by_themselves_and_old_ones_end(fleet):
    """The nightly unit makes a dump, and removes what is older than two weeks."""
    folder = "/var/backups/inhouse"
    fleet.lab.ssh("node1", f"cd {folder} && touch -d '15 days ago' inhouse-old.dump && touch -d '13 days ago' inhouse-kept.dump")
    before = fleet.lab.ssh("node1", f"ls {folder}").split()
    fleet.lab.ssh("node1", "systemctl start inhouse-backup && systemctl is-enabled inhouse-backup.timer")
    after = fleet.lab.ssh("node1", f"ls {folder}").split()
    assert set(before) - set(after) == {"inhouse-old.dump"} and len(set(after) - set(before)) == 1


def test_a_dump_that_is_none_leaves_the_books_as_they_are(fleet, key):
    """A restore that fails restores nothing, and the routers answer again."""
    broken = fleet.folder / "broken.dump"
    broken.write_bytes(b"no dump")
    before = fleet.books()["keys"]
    fleet.play("restore.yml", "-e", f"backup_file={broken}", succeeds=False)
    assert fleet.books()["keys"] == before
    fleet.await_answer(key)
