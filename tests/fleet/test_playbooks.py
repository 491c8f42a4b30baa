"""What can be known about the playbooks without a machine: they lint, parse, and say of themselves what is so."""

import json
import sys

import pytest
import yaml
from rehearsal import ANSIBLE, inventory, read, rendered, tool

EXAMPLE = ANSIBLE / "inventory" / "example" / "hosts.yml"
ROLES = sorted(path.name for path in (ANSIBLE / "roles").iterdir())
PLAYBOOKS = sorted(path.name for path in ANSIBLE.glob("*.yml"))
ENTRIES = [(role, entry.name) for role in ROLES for entry in sorted((ANSIBLE / "roles" / role / "tasks").glob("*.yml"))]


def steps_of(steps):
    """Every task, those in blocks included."""
    for step in steps or ():
        yield step
        for inner in ("block", "rescue", "always"):
            yield from steps_of(step.get(inner))


def test_everything_lints_at_the_strictest_profile():
    """ansible-lint's `production` profile finds nothing, with no rule skipped."""
    said = tool("ansible-lint", "--profile", "production", "--offline", "--strict", ".")
    assert said.returncode == 0, said.stdout + said.stderr


def test_the_linter_can_fail(tmp_path):
    """A planted offence is found, so that a clean run means something."""
    (tmp_path / "bad.yml").write_text("---\n- hosts: all\n  tasks:\n    - shell: ls | wc -l\n")
    said = tool("ansible-lint", "--profile", "production", "--offline", "--strict", "bad.yml", folder=tmp_path)
    assert said.returncode != 0 and "fqcn" in said.stdout


@pytest.mark.parametrize("playbook", PLAYBOOKS)
def test_a_playbook_parses_against_the_example_inventory(playbook):
    """Syntax, roles and included files are there."""
    said = tool("ansible-playbook", "--syntax-check", "-i", EXAMPLE, playbook)
    assert said.returncode == 0, said.stderr


@pytest.mark.parametrize("role", ROLES)
def test_a_roles_defaults_are_what_its_documentation_says(role):
    """argument_specs and defaults name the same variables with the same values, each described and prefixed with the role's name."""
    defaults = read(role, "defaults/main.yml")
    for entry in read(role, "meta/argument_specs.yml")["argument_specs"].values():
        assert {name: option["default"] for name, option in entry["options"].items()} == defaults
        assert all(option["description"] and name.startswith(f"{role}_") for name, option in entry["options"].items())


@pytest.mark.parametrize("role", ROLES)
def test_secrets_are_not_shown(role):
    """A variable that holds a secret is marked so that Ansible keeps it out of its output."""
    for entry in read(role, "meta/argument_specs.yml")["argument_specs"].values():
        for name, option in entry["options"].items():
            assert option.get("no_log", False) == name.endswith(("_token", "_password", "_key")), name


@pytest.mark.parametrize(("role", "tasks"), ENTRIES, ids=lambda value: value)
def test_every_file_has_an_owner_and_a_mode(role, tasks):
    """What is written on a machine says whose it is and who may read it; ansible-lint asks only for the mode."""
    for step in steps_of(read(role, f"tasks/{tasks}")):
        for module in ("copy", "template"):
            if f"ansible.builtin.{module}" in step:
                assert {"owner", "group", "mode"} <= step[f"ansible.builtin.{module}"].keys(), step["name"]


def names_in(step, word: str) -> set[str]:
    """What a task's `notify` or a handler's `listen` names."""
    named = step.get(word, [])
    return set(named if isinstance(named, list) else [named])


def test_every_notification_is_heard():
    """In each play of site.yml: Ansible ends a machine's run with an error where a task notifies what no role of its play handles."""
    for play in yaml.safe_load((ANSIBLE / "site.yml").read_text(encoding="utf-8")):
        roles = [role["role"] for role in play.get("roles", ())]
        handlers = [step for role in roles if (ANSIBLE / "roles" / role / "handlers").is_dir() for step in read(role, "handlers/main.yml")]
        heard = {step["name"] for step in handlers}.union(*(names_in(step, "listen") for step in handlers))
        said = set().union(*(names_in(step, "notify") for role, file in ENTRIES if role in roles
                             for step in steps_of(read(role, f"tasks/{file}"))))
        assert said <= heard, (play["name"], said - heard)


def test_every_service_is_under_the_sandbox():
    """The units' names begin with what the drop-in of `base` applies to, and none names root."""
    units = sorted((ANSIBLE / "roles").rglob("templates/*.service.j2"))
    assert len(units) >= 3
    for unit in units:
        text = unit.read_text(encoding="utf-8")
        assert unit.name.startswith("inhouse-") and "\nUser=inhouse-" in text, unit
        assert not any(line.startswith(("Capability", "Ambient", "ProtectSystem", "NoNewPrivileges")) for line in text.splitlines()), unit


def test_a_unit_of_anothers_user_leaves_its_shared_memory():
    """systemd removes the shared memory of a sandboxed unit's user when it ends; PostgreSQL's goes on, and would answer nobody."""
    for unit in (ANSIBLE / "roles").rglob("files/*.service"):
        user = next((line for line in unit.read_text(encoding="utf-8").splitlines() if line.startswith("User=")), "User=inhouse-")
        if not user.startswith("User=inhouse-"):
            after = [path for path in unit.parent.glob("*.conf") if path.name > "sandbox.conf"]
            assert any("RemoveIPC=no" in path.read_text(encoding="utf-8") for path in after), unit


def test_the_example_has_every_group():
    """A copied inventory passes the preflight's first question."""
    groups = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))["all"]["children"]
    assert {"head", "gpu_nodes", "router", "data"} <= groups.keys()


def test_a_cells_ports_are_open_to_its_own_machines_alone(tmp_path):
    """Of two cells none reaches the other's Ray; routers reach Serve on heads and the database, a worker opens SSH and its cell's ports."""
    hosts = {name: {"inhouse_ip": f"10.0.0.{i}"} for i, name in enumerate(("a1", "a2", "b1", "b2", "r1"), start=1)}
    hosts["b2"]["cell_head"] = "b1"
    groups = {"head": ["a1", "b1"], "gpu_nodes": ["a1", "a2", "b2"], "router": ["r1"], "data": ["r1"]}
    texts = rendered(tmp_path, [("firewall", "firewall.nft.j2")], hosts, groups)
    rules = {host: texts["firewall.nft.j2", host] for host in hosts}
    assert "30000-31000 } ip saddr { 10.0.0.1, 10.0.0.2 } accept" in rules["a2"] and rules["a2"].count("dport") == 2
    assert "30000-31000 } ip saddr { 10.0.0.3, 10.0.0.4 } accept" in rules["b1"]
    assert "tcp dport 8100 ip saddr { 10.0.0.5 } accept" in rules["b1"] and "tcp dport 5432 ip saddr { 10.0.0.5 } accept" in rules["r1"]
    assert "6379" not in rules["r1"] and "policy drop" in rules["r1"]


def test_each_machines_time_is_told(tmp_path):
    """After the recap, and as JSON: seconds by machine and by the clock; a failed task's count, too."""
    (tmp_path / "ansible").mkdir()
    (tmp_path / "ansible" / "callback_plugins").symlink_to(ANSIBLE / "callback_plugins")
    hosts = {name: {"ansible_connection": "local", "ansible_python_interpreter": sys.executable} for name in ("n1", "n2")}
    steps = [{"ansible.builtin.command": "sleep 0.2"}, {"ansible.builtin.command": "false", "when": "inventory_hostname == 'n2'"}]
    (tmp_path / "ansible" / "play.yml").write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, "tasks": steps}]))
    said = tool("ansible-playbook", "-i", inventory(tmp_path, hosts, {}), "play.yml", folder=tmp_path / "ansible")
    told = json.loads((tmp_path / "build" / "fleet" / "times.json").read_text())
    assert said.stdout.rstrip().endswith(f"all {told['seconds']} s by the clock") and told["playbook"] == "play.yml"
    assert told["machines"].keys() == hosts.keys() and all(0.2 <= spent <= told["seconds"] for spent in told["machines"].values())
