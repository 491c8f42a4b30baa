"""One fleet of three real systemd machines for the tests marked `fleet`, provisioned over SSH with the shipped playbook."""

import importlib.util
import json
import os
import ssl
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ANSIBLE = Path(__file__).parents[2] / "ansible"
PACKAGES = ("acl", "ca-certificates", "haproxy", "libnuma1", "nftables", "openssl", "postgresql", "python3-venv", "rsync")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Machines are booted only where they are asked for by name: `-m fleet`."""
    if "fleet" not in config.option.markexpr:
        kept = [item for item in items if item.get_closest_marker("fleet") is None]
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = kept


def lab_module() -> ModuleType:
    """`lab.py`; pytest's importlib mode leaves test folders off the path."""
    spec = importlib.util.spec_from_file_location("lab", Path(__file__).parent / "lab.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["lab"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def lab_file() -> ModuleType:
    """The same, for tests with a machine of their own."""
    return lab_module()


@dataclass(frozen=True)
class Fleet:
    """Three machines: node1 is head, router and data, the models run on node2 and node3."""

    lab: Any
    inventory: Path
    folder: Path

    def play(self, playbook: str, *arguments: str, succeeds: bool = True) -> str:
        """What ansible-playbook prints; it must end as `succeeds` says."""
        program = Path(sys.executable).parent / "ansible-playbook"
        said = subprocess.run([program, "-i", self.inventory, playbook, *arguments], capture_output=True, text=True, check=False,
                              cwd=ANSIBLE, env={**os.environ, "ANSIBLE_NOCOLOR": "1"}, timeout=2400)
        assert (said.returncode == 0) == succeeds, said.stdout[-6000:] + said.stderr[-2000:]
        return said.stdout

    def changed(self, said: str) -> dict[str, int]:
        """Changes by machine, from a play's recap."""
        recap = said.partition("PLAY RECAP")[2].splitlines()[1:]
        return {line.split()[0]: int(line.split("changed=")[1].split()[0]) for line in recap if "changed=" in line}

    def ask(self, key: str, timeout_s: float = 60) -> tuple[int, Any]:
        """(status, headers) of a completion, as a caller asks: over TLS, checking the fleet's authority."""
        trusted = ssl.create_default_context(cadata=self.lab.ssh("node1", "cat /etc/inhouse/ca.crt"))
        body = {"model": "auto", "max_tokens": 64, "messages": [{"role": "user", "content": "Please confirm AB-4711. 12 pumps go to "
                "Ann Keller at our Leeds site before 3 May 2027; we pay EUR 980.50."}]}
        request = urllib.request.Request(f"https://{self.lab.address('node1')}/v1/chat/completions", json.dumps(body).encode(),
                                         {"Content-Type": "application/json", "Authorization": f"Bearer {key}"})
        try:
            with urllib.request.urlopen(request, context=trusted, timeout=timeout_s) as answer:
                return answer.status, dict(answer.headers)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers)

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


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """The provisioned fleet. Nodes have no way out: everything comes from the controller and the base image's package cache."""
    lab_file = lab_module()
    if reason := lab_file.missing():
        pytest.fail(f"can't boot nodes here ({reason}); on Debian as root: apt install mmdebstrap systemd-container nftables iproute2")
    folder = tmp_path_factory.mktemp("fleet")
    lab = lab_file.Lab(folder / "lab", lab_file.base_image(PACKAGES))
    try:
        names = lab.up(3)
        hosts = {name: {"ansible_host": lab.address(name)} for name in names}
        variables = {"ansible_user": "root", "ansible_ssh_private_key_file": str(lab.key), "base_update_cache": False,
                     "ansible_ssh_common_args": " ".join(lab.options()[2:]), "release_build": str(lab_file.CACHE / "build"),
                     "preflight_report": str(folder / "preflight.json")}
        groups = {"head": ["node1"], "router": ["node1"], "data": ["node1"], "gpu_nodes": ["node2", "node3"]}
        children = {group: {"hosts": {name: hosts[name] for name in members}} for group, members in groups.items()}
        inventory = folder / "hosts.yml"
        inventory.write_text(yaml.safe_dump({"all": {"vars": variables, "children": children}}))
        fleet = Fleet(lab, inventory, folder)
        fleet.play("site.yml")
        yield fleet
    finally:
        lab.down()


@pytest.fixture(scope="session")
def key(fleet: Fleet) -> str:
    """A caller's key, made as the README says."""
    return str(fleet.lab.ssh("node1", "inhouse keys create tests").strip().splitlines()[-1])
