"""Bad input is told before anything changes: what preflight makes of inventories and of recorded machines; no machine is asked."""

import json

import pytest
from rehearsal import ROLES, inventory, play, tool

GROUPS = {"head": ["n1"], "router": ["n1"], "data": ["n1"], "gpu_nodes": ["n1"]}
FACTS = {"distribution": "Debian", "distribution_major_version": "12", "distribution_version": "12.8", "architecture": "x86_64",
         "service_mgr": "systemd", "python": {"version": {"major": 3, "minor": 11}}, "memtotal_mb": 16000}
RELEASES, ENVIRONMENTS = "/opt/inhouse/releases/r", "/opt/inhouse/environments/e"
HEADING, GIB = "Avail File Mounted on", 1 << 30
WELL = {
    "ansible_facts": FACTS,
    "inhouse_ip": "10.0.0.1",
    "__preflight_disk": {"stdout_lines": [HEADING, f"{50 * GIB} /opt /", f"{50 * GIB} /var/lib /", f"{3 * GIB} /var/lib/postgresql /pg"]},
    "__preflight_avx2": {"rc": 0},
    "__preflight_listeners": {"stdout_lines": ["LISTEN 0 128 0.0.0.0:22 0.0.0.0:*"]},
    "__preflight_installed": {"stat": {"exists": False}},
    "__preflight_parts": {"stdout_lines": []},
    "__preflight_secrets": 0,
}
ILL = {
    "another system": ({"ansible_facts": FACTS | {"distribution": "Fedora"}}, "runs Fedora 12; supported are Debian 12"),
    "another processor": ({"ansible_facts": FACTS | {"architecture": "aarch64"}}, "is aarch64; the wheels are for x86_64"),
    "no systemd": ({"ansible_facts": FACTS | {"service_mgr": "openrc"}}, "is not started by systemd"),
    "another Python": ({"ansible_facts": FACTS | {"python": {"version": {"major": 3, "minor": 13}}}}, "set release_python to it"),
    "no address": ({"inhouse_ip": "node1.example"}, "`node1.example` is no IPv4 address; set inhouse_ip"),
    "too small a disk": ({"__preflight_disk": {"stdout_lines": [HEADING, f"{50 * GIB} /opt /", f"{4 * GIB} /var/lib /var"]}},
                         "the disk at /var has 4 GiB free and 10 are needed"),
    "a full disk of the database's": ({"__preflight_disk": {"stdout_lines": [HEADING, f"{50 * GIB} /opt /", "9 /var/lib/postgresql /pg"]}},
                                      "the disk at /pg has 0 GiB free and 2 are needed"),
    "little memory": ({"ansible_facts": FACTS | {"memtotal_mb": 2000}}, "has 2000 MiB of memory; models need 4 GiB"),
    "an old processor": ({"__preflight_avx2": {"rc": 1}}, "its CPU has no AVX2"),
    "a port in use": ({"__preflight_listeners": {"stdout_lines": ["LISTEN 0 5 0.0.0.0:443 0.0.0.0:*"]}}, "something listens on port 443"),
    "a closed vault": ({"__preflight_secrets": -1}, "can't be read without its vault's password"),
    "no certificate": ({"edge_certificate": "/none.crt", "edge_key": "k"}, "edge_certificate /none.crt is no file on the controller"),
    "a missing secret": ({"edge_certificate": __file__}, "edge_certificate has no key; put edge_key into a vault"),
    "a half-finished run with little room": (
        {"__preflight_disk": {"stdout_lines": [HEADING, f"{4 * GIB} /opt /"]}, "__preflight_installed": {"stat": {"exists": True}},
         "__preflight_parts": {"stdout_lines": [f"{ENVIRONMENTS} half", f"{RELEASES} whole"]}}, "10 are needed"),
    "what is wrong with cards": ({"gpu_wrong": ["has an unknown card"]}, "has an unknown card"),
}
USER = {"name": "a", "port": 8801}
INVENTORIES = {
    "no router": (GROUPS | {"router": []}, {}, "the inventory has no machine in `router`; inventory/example shows one"),
    "a misspelt group": (GROUPS | {"gpu_node": ["n2"]}, {}, "n2 is in none of the groups that site.yml knows"),
    "a head that is none": (GROUPS | {"gpu_nodes": ["n2"]}, {"n2": {"cell_head": "n9"}}, "cell_head of n2 names n9, which"),
    "one address twice": (GROUPS | {"gpu_nodes": ["n2"]}, {"n2": {"inhouse_ip": "10.0.0.1"}}, "two machines have one address"),
    "MLflow without its database": (GROUPS | {"mlflow": ["n2"]}, {}, "put n2 into `data` too"),
    "two notebooks on a port": (GROUPS, {"n1": {"jupyterlab_users": [USER, USER | {"name": "b"}]}}, "a port of its own"),
    "a user who would be a path": (GROUPS, {"n1": {"jupyterlab_users": [USER | {"name": "../a"}]}}, "a name of letters and digits"),
    "no catalog": (GROUPS, {"n1": {"release_catalog": "/none.yaml"}}, "/none.yaml is no file on the controller; see release_requirements"),
}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """(failures, notes) of the role, of each of several recorded machines."""
    folder = tmp_path_factory.mktemp("preflight")
    role = ROLES / "preflight"
    hosts = {"n1": WELL, "half": WELL | {"__preflight_parts": {"stdout_lines": [f"{ENVIRONMENTS} whole", f"{RELEASES} half"]}}}
    hosts |= {name.replace(" ", "_"): WELL | found for name, (found, _) in ILL.items()}
    groups = {group: list(hosts) if group in ("gpu_nodes", "router") else names for group, names in GROUPS.items()}
    copy = {"content": "{{ {'failures': __preflight_wrong, 'notes': __preflight_half} | to_json }}",
            "dest": f"{folder}/{{{{ inventory_hostname }}}}"}
    recorded = {name: {key.replace("ansible_", "recorded_"): value for key, value in found.items()} for name, found in hosts.items()}
    play(folder, [{"vars": {"ansible_facts": "{{ recorded_facts }}"}, "tasks": [{"ansible.builtin.copy": copy}],
                   "vars_files": [str(role / "defaults/main.yml"), str(role / "vars/main.yml")]}], recorded, groups)
    return {name: json.loads((folder / name).read_text()) for name in hosts}


def test_a_machine_that_is_as_it_must_be_passes(told):
    """Nothing is said of it."""
    assert told["n1"] == {"failures": [], "notes": []}


@pytest.mark.parametrize("name", ILL)
def test_each_thing_that_is_wrong_with_a_machine_is_told(told, name):
    """A single fault is a single failure, with what to do."""
    failures = told[name.replace(" ", "_")]["failures"]
    assert len(failures) == 1 and ILL[name][1] in failures[0]


def test_an_earlier_run_that_did_not_end_is_noted(told):
    """It is no failure: the next run goes on with it."""
    assert told["half"] == {"failures": [], "notes": [f"an earlier run did not end: {RELEASES} is incomplete; site.yml installs it anew"]}


def asked(folder, groups, variables):
    """(failures, whether machines can be looked at at all) of an inventory."""
    root = ROLES.parents[1]
    own = {"release_catalog": f"{root}/serving/models.yaml", "router_routes": f"{root}/routing/routes.yaml",
           "release_requirements": f"{root}/requirements/cpu.txt"}
    used = {host for names in groups.values() for host in names}
    hosts = {host: own | {"inhouse_ip": f"10.0.0.{host[1]}"} | variables.get(host, {}) for host in used}
    copy = {"content": "{{ [preflight_inventory, preflight_has_groups] | to_json }}", "dest": f"{folder}/told"}
    play(folder, [{"tasks": [{"ansible.builtin.include_role": {"name": "preflight", "tasks_from": "inventory"}},
                             {"ansible.builtin.copy": copy, "run_once": True}]}], hosts, groups)
    return json.loads((folder / "told").read_text())


def test_a_router_may_have_a_machine_of_its_own(tmp_path):
    """Neither head nor worker nor database: nothing is wrong with that."""
    assert asked(tmp_path, GROUPS | {"router": ["n2"]}, {}) == [[], True]


@pytest.mark.parametrize("name", INVENTORIES)
def test_a_wrong_inventory_is_told(tmp_path, name):
    """A single fault is a single failure, with what to do."""
    groups, variables, said = INVENTORIES[name]
    failures, has_groups = asked(tmp_path, groups, variables)
    assert len(failures) == 1 and said in failures[0] and has_groups == (name != "no router")


def test_a_wrong_inventory_ends_the_play_before_anything_changes(tmp_path):
    """The verdict names it, beside a machine that does not answer, and `site.yml` goes no further."""
    file = inventory(tmp_path, {"n1": {"ansible_host": "127.0.0.1", "ansible_port": 1}}, GROUPS | {"router": []})
    said = tool("ansible-playbook", "site.yml", "-i", file, "-e", f"preflight_report={tmp_path}/verdict.json")
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    assert said.returncode and not verdict["ok"] and "Prepare every machine" not in said.stdout
    assert "no machine in `router`" in verdict["failures"][0] and verdict["failures"][1] == "n1: does not answer at 127.0.0.1"
