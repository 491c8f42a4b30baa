"""One bare machine without a way out, installed from a bundle alone by the bundle's own playbooks and Ansible: a whole fleet in one, whose
models, MLflow, notebooks, alerts and backups are asked as their users ask them. Minutes; the others start from what it made.
"""

import base64
import json
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import lab
import pytest
import yaml
from watch import awaited, figures, prometheus, received

pytestmark = pytest.mark.fleet
GROUPS = ("head", "gpu_nodes", "router", "data", "monitoring", "mlflow", "jupyterlab")
UNITS = ("inhouse-cell", "inhouse-models", "inhouse-router", "inhouse-mlflow", "inhouse-jupyterlab@ann", "inhouse-jupyterlab@bob",
         "inhouse-backup", "nftables-inhouse", "haproxy", "postgresql@15-main", "prometheus", "prometheus-alertmanager",
         "prometheus-node-exporter")
THE_SYSTEMS = ("systemd-", "dbus", "console-getty", "getty@", "ssh", "user@")  # a bare machine runs these, and an administrator needs them
CLOSED = "  $ANSIBLE_VAULT;1.1;AES256\n" + "  3132\n"  # nobody has its password
LOGGED = """
import mlflow, pathlib
mlflow.set_experiment("airgap")
with mlflow.start_run() as run:
    mlflow.log_metric("exact", 0.5)
    mlflow.log_text("a case", "cases/one.txt")
back = mlflow.artifacts.load_text(f"runs:/{run.info.run_id}/cases/one.txt")
print(mlflow.get_run(run.info.run_id).data.metrics["exact"], back)
"""


@pytest.fixture(scope="module")
def carried(tmp_path_factory, place):
    """The site's controller, which has Python and ssh: the bundle unpacked, its project beside it, Ansible from it, as README says."""
    folder = place(tmp_path_factory.mktemp("carried", numbered=False))
    if (folder / "ready").exists():
        return folder
    began, build = time.monotonic(), lab.CACHE / "build"
    program = Path(sys.executable).parent / "ansible-playbook"
    made = run(Path(__file__).parents[2] / "ansible", program, "bundle.yml", "-e", f"release_build={build}")
    newest = max(build.glob("inhouse-bundle-*.tar"), key=lambda path: path.stat().st_mtime)
    print(f"\nbundle: {newest.stat().st_size / 1e9:.2f} GB, made in {time.monotonic() - began:.0f} s")
    assert str(newest.name) in made
    folder.mkdir(parents=True, exist_ok=True)
    run(folder, "tar", "-xf", newest)
    bundle = folder / newest.stem
    signers = build / "bundle.signers"
    run(bundle, "bash", "-c", f"ssh-keygen -Y verify -f {signers} -I inhouse -n inhouse-bundle -s SHA256SUMS.sig < SHA256SUMS "
                              "&& sha256sum --check --quiet --strict SHA256SUMS")
    (folder / "wheels").mkdir(exist_ok=True)
    run(bundle, "tar", "-xf", "project.tar", "-C", folder)
    run(bundle, "tar", "-xf", "controller.tar", "-C", folder / "wheels")
    run(folder, "python3", "-m", "venv", "inhouse/.venv")
    run(folder, "inhouse/.venv/bin/pip", "install", "-q", "--no-index", "--find-links", "wheels", "ansible-core")
    (folder / "variables.json").write_text(json.dumps({"release_bundle": str(bundle), "release_signers": str(signers)}))
    (folder / "ready").touch()
    return folder


def run(folder: Path, *command) -> str:
    """What a program on the controller says."""
    said = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder, timeout=1200)
    assert said.returncode == 0, f"{command}: {said.stdout[-4000:]}{said.stderr[-2000:]}"
    return said.stdout


@pytest.fixture(scope="module")
def site(carried, tmp_path_factory, provision):
    """The machine, provisioned from the bundle."""
    def variables(machines):
        return json.loads((carried / "variables.json").read_text()) | {
            "monitoring_webhook": f"http://{outside(machines)}:8099/",
            "jupyterlab_users": [{"name": "ann", "port": 8801}, {"name": "bob", "port": 8802}]}

    began = time.monotonic()
    with provision(tmp_path_factory.mktemp("airgap", numbered=False), {group: ["node1"] for group in GROUPS}, packages=("ca-certificates",),
                   ansible=carried / "inhouse/ansible", python=carried / "inhouse/.venv/bin/python", variables=variables) as fleet:
        print(f"\nsite.yml from the bundle: {time.monotonic() - began:.0f} s with the machine's boot")
        yield fleet


def outside(machines) -> str:
    """This machine's address on their network."""
    return f"{machines.address('node1').rpartition('.')[0]}.1"


def status(site, url: str, **headers: str) -> int:
    """What a caller on the network gets, over TLS, checking the fleet's authority."""
    trusted = ssl.create_default_context(cadata=site.lab.ssh("node1", "cat /etc/inhouse/ca.crt"))
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=headers), context=trusted, timeout=60) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def verdict(site) -> tuple[int, dict]:
    """Exit code and verdict of the validator, run from the bundle's controller."""
    said = subprocess.run([site.python, "verdict.py", "validate", "-i", site.inventory], capture_output=True, text=True, check=False,
                          cwd=site.ansible, timeout=600)
    return said.returncode, json.loads(said.stdout)


def test_a_model_answers_over_tls_on_a_machine_without_a_way_out(site):
    """No mirror can be reached, and a created key is answered by the right model; a stranger is not."""
    closed = "apt-get -qq -oAcquire::Retries=0 -oAPT::Update::Error-Mode=any update >/dev/null 2>&1 && echo open || echo closed"
    assert site.lab.ssh("node1", closed).strip() == "closed"
    key = site.lab.ssh("node1", "inhouse keys create site").strip().splitlines()[-1]
    code, headers = site.ask(key)
    assert code == 200 and headers["inhouse-model"] == "demo-extractor" and site.ask("ihk_nobody")[0] == 401


def test_a_second_run_changes_nothing(site):
    """With every role on one machine; check mode says the same."""
    began = time.monotonic()
    assert site.changed(site.play("site.yml")) == {"node1": 0}
    print(f"\nagain: {time.monotonic() - began:.0f} s")
    assert site.changed(site.play("site.yml", "--check", "--diff")) == {"node1": 0}


def test_the_validator_finds_all_well(site):
    """Its verdict, run from the bundle's controller: nothing is wrong, nothing was left out; with a unit stopped it is not."""
    code, told = verdict(site)
    assert (code, told["failures"], told["unchecked"]) == (0, [], []), told
    assert {"inhouse-mlflow", "inhouse-jupyterlab@ann", "prometheus", "completions over TLS", "ports"} <= set(told["checked"]["node1"])
    site.lab.ssh("node1", "systemctl stop inhouse-jupyterlab@bob")
    code, told = verdict(site)
    site.lab.ssh("node1", "systemctl start inhouse-jupyterlab@bob")
    assert code == 1 and len(told["failures"]) == 1 and "inhouse-jupyterlab@bob not active (inactive)" in told["failures"][0]


def test_preflight_reads_the_machine_itself(site):
    """Pins for cards on a machine without, a vault that stays closed, and an earlier run that did not end: told, and nothing is changed."""
    release = site.lab.ssh("node1", "readlink /opt/inhouse/current").strip()
    site.lab.ssh("node1", f"mv {release}/complete {release}/was-complete")
    (site.folder / "closed.yml").write_text(f"edge_key: !vault |\n{CLOSED}")
    try:
        bad = ("-e", "release_requirements=../requirements/gpu.txt", "-e", f"@{site.folder}/closed.yml")
        said = site.play("site.yml", *bad, succeeds=False)
    finally:
        site.lab.ssh("node1", f"mv {release}/was-complete {release}/complete")
    verdict = json.loads((site.folder / "preflight.json").read_text())
    assert ["can't be read without" in verdict["failures"][0], "has no NVIDIA card" in verdict["failures"][1]] == [True, True], verdict
    assert verdict["notes"] == [f"node1: an earlier run did not end: {release} is incomplete; site.yml installs it anew"]
    assert len(verdict["failures"]) == 2 and site.changed(said) == {"node1": 0}


def test_a_run_that_was_cut_short_is_finished_by_the_next(site):
    """A release of which half is there and no mark says that it is whole is installed again, under the services that run from it."""
    release = site.lab.ssh("node1", "readlink /opt/inhouse/current").strip()
    site.lab.ssh("node1", f"rm -r {release}/complete {release}/lib/routing")
    site.play("site.yml", "--tags", "release")
    assert site.lab.ssh("node1", f"cat {release}/complete").strip() == release.rpartition("/")[2]
    assert "site" in site.lab.ssh("node1", "inhouse keys list")


def test_mlflow_keeps_a_run_for_who_has_the_password(site):
    """401 without it, 200 with it; a run logged from the machine goes through the artifact proxy and is read back whole."""
    url = f"https://{site.lab.address('node1')}:5443"
    password = site.lab.ssh("node1", "cat /etc/inhouse/mlflow-password").strip()
    search = f"{url}/api/2.0/mlflow/experiments/search?max_results=1"
    basic = base64.b64encode(f"admin:{password}".encode()).decode()
    assert status(site, search) == 401 and status(site, search, Authorization=f"Basic {basic}") == 200
    settings = (f"MLFLOW_TRACKING_URI={url} MLFLOW_TRACKING_USERNAME=admin MLFLOW_TRACKING_SERVER_CERT_PATH=/etc/inhouse/ca.crt "
                "MLFLOW_TRACKING_PASSWORD=$(cat /etc/inhouse/mlflow-password) HOME=/tmp")
    said = site.lab.ssh("node1", f"cd /tmp && {settings} /opt/inhouse/current/bin/python -W ignore - <<'PYTHON'\n{LOGGED}\nPYTHON")
    assert said.strip().splitlines()[-1] == "0.5 a case"
    assert site.lab.ssh("node1", "find /var/lib/inhouse/mlflow/artifacts -path '*cases/one.txt' | wc -l").strip() == "1"


def test_an_unhardened_mlflow_shows_itself(site):
    """The test before can fail: one that is started as its manual says, with no firewall before it, tells everybody of its experiments."""
    bare = ("systemd-run -q --unit=bare-mlflow -E HOME=/tmp -p RuntimeMaxSec=400 /opt/inhouse/current/bin/python -m mlflow server "
            "--host 0.0.0.0 --port 5001 --workers 1 --backend-store-uri sqlite:////tmp/bare.db")
    site.lab.ssh("node1", f"{bare}; systemctl stop nftables-inhouse")
    try:
        awaited(lambda: 5001 in site.reachable("node1"))
        search = f"http://{site.lab.address('node1')}:5001/api/2.0/mlflow/experiments/search?max_results=1"
        with urllib.request.urlopen(search, timeout=60) as answer:
            assert answer.status == 200 and "experiments" in json.load(answer)
    finally:
        site.lab.ssh("node1", "systemctl start nftables-inhouse; systemctl stop bare-mlflow")


def test_a_notebook_opens_for_its_own_user_alone(site):
    """403 without a token and with another user's; no path leads to what is nobody's; each kernel runs the bundle's environment."""
    url = f"https://{site.lab.address('node1')}:8443"
    ann, bob = (site.lab.ssh("node1", f"cat /etc/inhouse/jupyterlab/{name}.token").strip() for name in ("ann", "bob"))
    contents = f"{url}/ann/api/contents"
    assert status(site, contents) == 403 and status(site, contents, Authorization=f"token {bob}") == 403
    assert status(site, contents, Authorization=f"token {ann}") == 200
    assert status(site, f"{url}/ann/lab", Authorization=f"token {ann}") == 200 and status(site, f"{url}/carl/lab") == 404
    started = site.lab.ssh("node1", "systemctl show -P MainPID inhouse-jupyterlab@ann inhouse-mlflow").split()
    for pid in started:
        assert site.lab.ssh("node1", f"readlink -f /proc/{pid}/cwd; tr '\\0' '\\n' < /proc/{pid}/cmdline").count("/opt/inhouse/") >= 1


def test_what_is_watched_is_up_and_an_alert_reaches_its_receiver(site):
    """Prometheus reaches every target: machine, router over TLS, each model; a unit that fails is an alert, which the webhook gets."""
    def targets():
        return {(one["labels"]["job"], one["health"]) for one in prometheus(site, "targets")["activeTargets"]}

    wanted = {(job, "up") for job in ("machine", "router", "model-demo-extractor", "model-demo-generalist")}
    awaited(lambda: targets() == wanted)
    with received(outside(site.lab)) as alerts:
        began = time.monotonic()
        site.lab.ssh("node1", "systemd-run --quiet --unit=inhouse-planted false")
        try:
            awaited(lambda: "UnitFailed" in alerts)
        finally:
            site.lab.ssh("node1", "systemctl reset-failed inhouse-planted")
    print(f"\nalert received after {time.monotonic() - began:.0f} s")


def test_every_alert_is_loaded_and_asks_for_figures_that_are_there(site):
    """The machine's own promtool takes the rules, Prometheus evaluates each without an error, and the certificates' figures that node
    exporter reads from a file are what openssl says of these files.
    """
    assert "SUCCESS" in site.lab.ssh("node1", "promtool check rules /etc/prometheus/inhouse-rules.yml 2>&1")
    written = yaml.safe_load((site.ansible / "roles/monitoring/files/rules.yml").read_text())["groups"][0]["rules"]
    rules = awaited(lambda: [rule for group in prometheus(site, "rules")["groups"] for rule in group["rules"]])
    awaited(lambda: {rule["health"] for rule in prometheus(site, "rules")["groups"][0]["rules"]} == {"ok"})
    assert [rule["name"] for rule in rules] == [rule["alert"] for rule in written]
    ends = {labels["file"]: end for labels, end in figures(site, "fleet_certificate_end_seconds")}
    assert ends.keys() == {"/etc/inhouse/tls/node.crt", "/etc/haproxy/inhouse.pem"}
    for file, end in ends.items():
        assert site.lab.ssh("node1", f"date +%s -d \"$(openssl x509 -in {file} -noout -enddate | cut -d= -f2)\"").strip() == f"{end:.0f}"
    for figure in ("fleet_certificate_made_seconds", 'node_systemd_unit_start_time_seconds{name="inhouse-cell.service"}',
                   "node_filesystem_avail_bytes", "node_timex_offset_seconds", 'node_systemd_unit_state{state="failed"}'):
        assert figures(site, figure), figure


def test_the_nightly_backup_keeps_what_it_should_and_is_restored(site):
    """Dumps older than the retention go, younger ones stay; the newest brings every row back, and a key made since opens nothing."""
    folder = "/var/backups/inhouse"
    site.lab.ssh("node1", f"cd {folder} && for days in 13 15; do touch -d \"$days days ago\" inhouse-$days.dump; done")
    key = site.lab.ssh("node1", "inhouse keys create limited --budget 1usd/day").strip().splitlines()[-1]
    assert site.ask(key)[0] == 200
    site.lab.ssh("node1", "systemctl reload inhouse-router")  # who leaves has written all its rows
    site.await_answer(key)
    before = site.books()
    site.lab.ssh("node1", "systemctl start inhouse-backup")
    there = site.lab.ssh("node1", f"ls -t {folder}").split()
    assert "inhouse-13.dump" in there and "inhouse-15.dump" not in there
    assert {name.partition("-20")[0] for name in there} >= {"inhouse", "mlflow", "mlflow_auth"}
    newest = next(name for name in there if name.startswith("inhouse-20"))
    dump = site.folder / newest
    dump.write_bytes(base64.b64decode(site.lab.ssh("node1", f"base64 {folder}/{newest}")))
    later = site.lab.ssh("node1", "inhouse keys create later").strip().splitlines()[-1]
    site.lab.ssh("node1", "cd /tmp && runuser -u postgres -- psql -q inhouse -c 'TRUNCATE keys, teams, ledger, accounts, allotments'")
    assert site.books() != before
    site.play("restore.yml", "-e", f"backup_file={dump}")
    assert site.books() == before
    site.await_answer(key)
    assert site.ask(later)[0] == 401


def test_only_ssh_and_the_tls_ports_are_reachable(site):
    """From outside nothing else answers; with the firewall stopped the database, Ray and Serve do, so this can fail."""
    assert site.reachable("node1") == [22, 443, 5443, 8443]
    site.lab.ssh("node1", "systemctl stop nftables-inhouse")
    try:
        assert {5432, 6379, 8100, 9100} <= set(site.reachable("node1"))
    finally:
        site.lab.ssh("node1", "systemctl start nftables-inhouse")


def test_every_unit_is_hardened(site):
    """systemd's own score, 10 is bare: at most 2.5 for each service that answers somebody or that we bring, Debian's among them."""
    said = site.lab.ssh("node1", f"for unit in {' '.join(UNITS)}; do systemd-analyze security --no-pager $unit | tail -1; done")
    scores = {line.split()[5].rstrip(":"): float(line.split()[6]) for line in said.splitlines()}
    print(f"\n{scores}")
    assert len(scores) == len(UNITS) and {unit: score for unit, score in scores.items() if score > 2.5} == {}
    running = site.lab.ssh("node1", "systemctl list-units --type=service --state=running --no-legend --plain").splitlines()
    listen = {line.split()[0].removesuffix(".service") for line in running}
    assert {unit for unit in listen - set(UNITS) if not unit.startswith(THE_SYSTEMS)} == set()


def test_a_full_disk_loses_nothing(site):
    """/var/lib on a disk of its own, with database, router, Ray and Prometheus. Nearly full, it is an alert. Full, the database ends, and
    callers are answered all the same, but those with a budget; readiness, validator and preflight say what is wrong, and nothing is
    changed. Freed, everything goes on by itself, and the ledger has every request.
    """
    site.lab.stop("node1")
    site.lab.give_disk("node1", "/var/lib", spare_mib=2600)
    site.lab.start("node1")
    site.lab.wait("node1")
    key, budgeted = (site.lab.ssh("node1", f"inhouse keys create {caller}").strip().splitlines()[-1]
                     for caller in ("full", "thrifty --budget 1usd/day"))
    site.await_answer(key)
    awaited(lambda: readiness(site)["ready"])
    began = time.monotonic()
    site.lab.ssh("node1", "fallocate -l $(($(df --output=avail -B1M /var/lib | tail -1) - 30))M /var/lib/filler.1")
    awaited(lambda: ("DiskFull", "firing") in {(one["labels"]["alertname"], one["state"]) for one in prometheus(site, "alerts")["alerts"]})
    print(f"\nalert of the disk after {time.monotonic() - began:.0f} s")
    before = counted(site, "full")
    with site.load(key) as load:
        site.lab.ssh("node1", "cat /dev/zero > /var/lib/filler.2", check=False)
        log = "SELECT count(pg_logical_emit_message(false, 'full', repeat('x', 1000000))) FROM generate_series(1, 200)"
        site.lab.ssh("node1", f'cd /tmp && runuser -u postgres -- psql -q inhouse -c "{log}"', check=False)
        site.lab.ssh("node1", "cat /dev/zero > /var/lib/filler.3", check=False)
        awaited(lambda: {readiness(site)[book] for book in ("ledger", "audit")} == {"cannot write"})
        code, told = verdict(site)
        said = site.play("site.yml", succeeds=False)
        assert site.ask(budgeted)[0] == 503
    print(f"\nfull: {load.told()}; {told['failures']}")
    assert load.seen and load.failures() == []
    assert code == 1 and all(any(part in line for line in told["failures"]) for part in (
        "the disk at /var/lib has 0 MiB free", "PostgreSQL does not answer", "can't write its ledger and audit", "no key could be made"))
    assert "the disk at /var/lib has 0 GiB free" in said and site.changed(said) == {"node1": 0}
    began = time.monotonic()
    site.lab.ssh("node1", "rm /var/lib/filler.*")
    awaited(lambda: readiness(site)["ready"])
    print(f"\nfreed: ready again after {time.monotonic() - began:.0f} s")
    awaited(lambda: counted(site, "full") == before + len(load.seen))
    assert site.lab.ssh("node1", "inhouse audit verify >/dev/null && echo whole").strip() == "whole"
    assert verdict(site)[0] == 0 and site.ask(budgeted)[0] == 200


def readiness(site) -> dict:
    """What the router says of itself; nothing where it does not answer."""
    code = ("import urllib.request as u, urllib.error as e\ntry: r = u.urlopen('http://" + site.lab.address("node1") + ":8000/readyz')\n"
            "except e.HTTPError as x: r = x\nprint(r.read().decode())")
    return json.loads(site.lab.ssh("node1", f'python3 -c "{code}"'))


def counted(site, caller: str) -> int:
    """How many requests of a caller the ledger has."""
    query = f"SELECT count(DISTINCT request_id) FROM ledger WHERE caller = '{caller}'"
    said = site.lab.ssh("node1", f'cd /tmp && runuser -u postgres -- psql -XAtq inhouse -c "{query}"', check=False).strip()
    return int(said or -1)
