"""Playbooks' parts without machines: plays run on this one under other machines' names, and templates as each machine would get them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

ANSIBLE = Path(__file__).parents[2] / "ansible"
ROLES = ANSIBLE / "roles"
Hosts = dict[str, dict[str, Any]]
Groups = dict[str, list[str]]


def tool(name: str, *arguments: object, folder: Path = ANSIBLE) -> "subprocess.CompletedProcess[str]":
    """Runs one of Ansible's programs from the environment of the tests."""
    program = Path(sys.executable).parent / name
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, check=False, cwd=folder,
                          env={**os.environ, "PATH": path, "ANSIBLE_NOCOLOR": "1", "NO_COLOR": "1"})


def read(role: str, file: str) -> Any:
    """A YAML file of a role."""
    return yaml.safe_load((ROLES / role / file).read_text(encoding="utf-8"))


def inventory(folder: Path, hosts: Hosts, groups: Groups, **variables: Any) -> Path:
    """A file of these machines, which are reached as their variables say."""
    file = folder / "hosts.yml"
    file.write_text(yaml.safe_dump({"all": {
        "hosts": hosts, "children": {group: {"hosts": dict.fromkeys(names)} for group, names in groups.items()}, "vars": variables}}))
    return file


def play(folder: Path, plays: list[dict[str, Any]], hosts: Hosts, groups: Groups) -> None:
    """Runs plays on this machine under other machines' names, without asking any; they must succeed."""
    file = inventory(folder, hosts, groups, ansible_connection="local", ansible_python_interpreter=sys.executable)
    (folder / "play.yml").write_text(yaml.safe_dump([{"hosts": "all", "gather_facts": False, **one} for one in plays]))
    said = tool("ansible-playbook", "-i", file, folder / "play.yml")
    assert said.returncode == 0, said.stdout + said.stderr


def rendered(folder: Path, templates: list[tuple[str, str]], hosts: Hosts, groups: Groups, **given: Any) -> dict[tuple[str, str], str]:
    """The text of each (role, template) by template and machine, with the roles' defaults and with what other tasks would have set."""
    def one(role: str, template: str) -> dict[str, Any]:
        copy = {"src": str(ROLES / role / "templates" / template), "dest": f"{folder}/{template}.{{{{ inventory_hostname }}}}"}
        files = [str(file) for file in [ROLES / role / "vars/main.yml"] if file.exists()]
        return {"vars_files": files, "vars": read(role, "defaults/main.yml") | given, "tasks": [{"ansible.builtin.template": copy}]}

    play(folder, [one(role, template) for role, template in templates], hosts, groups)
    return {(template, host): (folder / f"{template}.{host}").read_text() for _, template in templates for host in hosts}
