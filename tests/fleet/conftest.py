"""Fleets of real systemd machines for the tests marked `fleet`, provisioned over SSH with the shipped playbook."""

import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lab
import pytest
import yaml
from load import Load

ANSIBLE = Path(__file__).parents[2] / "ansible"
SOURCES = ("ansible", "serving", "routing", "evals", "requirements", "inhouse.py", "pyproject.toml", "README.md", "LICENSE")
PACKAGES = ("acl", "ca-certificates", "haproxy", "libnuma1", "nftables", "openssl", "postgresql", "python3-venv", "rsync")
ASKED = [22, 80, 443, 3000, 5000, 5001, 5432, 5443, 6379, *range(6800, 6806), 8000, 8100, 8265, 8404, 8443, 8500, 8801, 8802, 9090, 9093,
         9100, 9101, 9400, 10001, 44217, 44227, *range(11000, 12000), *range(30000, 30010)]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Machines are booted only where they are asked for by name: `-m fleet`."""
    if "fleet" not in config.option.markexpr:
        kept = [item for item in items if item.get_closest_marker("fleet") is None]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


@dataclass(frozen=True)
class Fleet:
    """Provisioned machines; node1 is head and data, and the router where none is named."""

    lab: Any
    inventory: Path
    folder: Path
    ansible: Path = ANSIBLE
    python: Path = Path(sys.executable)  # the controller's
    router: str = "node1"  # whom callers ask

    def with_groups(self, **groups: list[str]) -> None:
        """Writes an administrator's hosts.yml, with what is the lab's own."""
        variables = {"ansible_user": "root", "ansible_ssh_private_key_file": str(self.lab.key), "base_update_cache": False,
                     "ansible_ssh_common_args": " ".join(self.lab.options()[2:]), "release_build": str(lab.CACHE / "build"),
                     "preflight_report": str(self.folder / "preflight.json")}
        children = {group: {"hosts": {name: {"ansible_host": self.lab.address(name)} for name in names}} for group, names in groups.items()}
        self.inventory.write_text(yaml.safe_dump({"all": {"vars": variables, "children": children}}))

    def play(self, playbook: str, *arguments: str, succeeds: bool = True, tree: Path | None = None) -> str:
        """What ansible-playbook prints, run from a checkout's `ansible`; it must end as `succeeds` says."""
        program = self.python.parent / "ansible-playbook"
        said = subprocess.run([program, "-i", self.inventory, playbook, *arguments], capture_output=True, text=True, check=False,
                              cwd=tree or self.ansible, env={**os.environ, "ANSIBLE_NOCOLOR": "1"}, timeout=2400)
        assert (said.returncode == 0) == succeeds, said.stdout[-6000:] + said.stderr[-2000:]
        return said.stdout

    def changed(self, said: str) -> dict[str, int]:
        """Changes by machine, from a play's recap."""
        recap = said.partition("PLAY RECAP")[2].splitlines()[1:]
        return {line.split()[0]: int(line.split("changed=")[1].split()[0]) for line in recap if "changed=" in line}

    def times(self, said: str) -> str:
        """Seconds by machine and by the clock, from what a play said last."""
        return next(line for line in reversed(said.splitlines()) if line.startswith("times: "))

    def ask(self, key: str, timeout_s: float = 60, name: str = "") -> tuple[int, Any]:
        """(status, headers) of a completion, as a caller asks a router: over TLS, checking the fleet's authority."""
        trusted = ssl.create_default_context(cadata=self.lab.ssh(self.router, "cat /etc/inhouse/ca.crt"))
        body = {"model": "auto", "max_tokens": 64, "messages": [{"role": "user", "content": "Please confirm AB-4711. 12 pumps go to "
                "Ann Keller at our Leeds site before 3 May 2027; we pay EUR 980.50."}]}
        request = urllib.request.Request(f"https://{self.lab.address(name or self.router)}/v1/chat/completions", json.dumps(body).encode(),
                                         {"Content-Type": "application/json", "Authorization": f"Bearer {key}"})
        try:
            with urllib.request.urlopen(request, context=trusted, timeout=timeout_s) as answer:
                return answer.status, dict(answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers)

    def reachable(self, name: str) -> list[int]:
        """The ports of a machine that take a connection from outside the fleet."""
        def knock(port: int) -> bool:
            try:
                with socket.create_connection((self.lab.address(name), port), timeout=2):
                    return True
            except OSError:
                return False

        with ThreadPoolExecutor(400) as pool:
            return [port for port, is_open in zip(ASKED, pool.map(knock, ASKED), strict=True) if is_open]

    def load(self, key: str) -> Any:
        """Callers who go on asking inside a `with`; see `load.py`."""
        return Load(self.lab.address(self.router), key, self.lab.ssh(self.router, "cat /etc/inhouse/ca.crt"))

    def replicas(self, name: str = "node1") -> dict[str, list[dict[str, Any]]]:
        """Each model's replicas that answer, as the head of a cell tells."""
        code = ("import json, urllib.request as u; r = u.Request('http://127.0.0.1:8265/api/serve/applications/', "
                "headers={'Authorization': 'Bearer ' + open('/etc/inhouse/ray-token').read().strip()}); "
                "print(u.urlopen(r).read().decode())")
        told = json.loads(self.lab.ssh(name, f'python3 -c "{code}"'))["applications"]
        return {model: [replica for one in application["deployments"].values() for replica in one["replicas"]
                        if replica["state"] == "RUNNING"] for model, application in told.items()}

    def books(self, name: str = "node1") -> dict[str, str]:
        """A digest of every row of keys, teams, budgets, runs and ledger in a machine's database, without what workers hold for now."""
        rows = dict.fromkeys(("keys", "teams", "runs", "ledger"), "t.*") | {"accounts": "kind, scope, unit, every, most, spent, since"}
        query = " UNION ALL ".join(
            f"SELECT '{table}', count(*) || ' ' || md5(coalesce(string_agg(r::text, ',' ORDER BY r::text), '')) "
            f"FROM (SELECT {columns} FROM {table} t) r" for table, columns in rows.items())
        said = self.lab.ssh(name, f'cd /tmp && runuser -u postgres -- psql -XAtq -F = inhouse -c "{query}"')
        return dict(line.split("=") for line in said.splitlines())

    def await_answer(self, key: str, patience_s: float = 600) -> float:
        """Seconds until a completion succeeds."""
        began = time.monotonic()
        while True:
            try:
                if self.ask(key)[0] == 200:
                    return time.monotonic() - began
            except OSError:
                pass
            assert time.monotonic() - began < patience_s, "no model answers"
            time.sleep(1)


def kept(folder: Path) -> Path:
    """Where a lab's folder lies: INHOUSE_FLEET names a place where machines are kept for the next run; `python tests/fleet/lab.py PLACE`
    ends those.
    """
    place = os.environ.get("INHOUSE_FLEET")
    return Path(place) / folder.name if place else folder


@contextmanager
def provisioned(folder: Path, groups: dict[str, list[str]], *, packages: tuple[str, ...] = PACKAGES, ansible: Path = ANSIBLE,
                python: Path = Path(sys.executable), variables: Callable[[Any], dict[str, Any]] = lambda _: {},
                roles: str = "all") -> Iterator[Fleet]:
    """Machines booted and provisioned, which end with the block. They have no way out: everything comes from the controller and the base
    image's package cache. `variables` are the administrator's, given the lab; `roles` are tags of `site.yml`.
    """
    if reason := lab.missing():
        pytest.fail(f"can't boot nodes here: {reason}")
    folder = kept(folder)
    machines = lab.Lab(folder / "lab", lab.base_image(packages))
    try:
        machines.up(len({name for names in groups.values() for name in names}))
        fleet = Fleet(machines, folder / "hosts.yml", folder, ansible, python, min(groups["router"]))
        fleet.with_groups(**groups)
        (folder / "group_vars").mkdir(exist_ok=True)
        (folder / "group_vars/all.yml").write_text(yaml.safe_dump(variables(machines)))
        if not (folder / "provisioned").exists():
            print(f"\n{folder.name}, bare to answering: {fleet.times(fleet.play('site.yml', '--tags', roles))}")
            (folder / "provisioned").touch()
        yield fleet
    finally:
        if "INHOUSE_FLEET" not in os.environ:
            machines.down()


@pytest.fixture(scope="session")
def provision() -> Callable[..., Any]:
    """`provisioned`, for tests with machines of their own."""
    return provisioned


@pytest.fixture(scope="session")
def place() -> Callable[[Path], Path]:
    """`kept`, for what such tests make beside their machines."""
    return kept


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three machines: one cell with two workers."""
    groups = {"head": ["node1"], "router": ["node1"], "data": ["node1"], "gpu_nodes": ["node2", "node3"]}
    with provisioned(tmp_path_factory.mktemp("three", numbered=False), groups) as fleet:
        yield fleet


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Two machines: node1 is all but the router, which has a machine of its own."""
    groups = {"head": ["node1"], "data": ["node1"], "gpu_nodes": ["node1"], "router": ["node2"]}
    with provisioned(tmp_path_factory.mktemp("apart", numbered=False), groups) as fleet:
        yield fleet


@pytest.fixture(scope="session")
def key(fleet: Fleet) -> str:
    """A caller's key, made as the README says."""
    return str(fleet.lab.ssh("node1", "inhouse keys create tests").strip().splitlines()[-1])


@pytest.fixture
def another(tmp_path: Path) -> Callable[[str, str], Path]:
    """The playbooks of a checkout whose file, the first argument, ends with a change, the second."""
    def made(file: str, change: str) -> Path:
        for name in SOURCES:
            source = ANSIBLE.parent / name
            if source.is_dir():
                shutil.copytree(source, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, tmp_path / name)
        with (tmp_path / file).open("a", encoding="utf-8") as stream:
            stream.write(change)
        return tmp_path / "ansible"

    return made
