"""One bare machine with systemd and SSH, prepared by the shipped playbook as far as it needs no release: what CI boots of a fleet."""

import json
from contextlib import contextmanager

import lab
import pytest
from rehearsal import read

pytestmark = pytest.mark.slow
GROUPS = ("head", "gpu_nodes", "router", "data")
PACKAGES = tuple(read("base", "defaults/main.yml")["base_packages"])
ROLES = "base,firewall,pki"


@pytest.fixture(scope="module")
def machine(tmp_path_factory, provision):
    """Prepared; a machine that can't boot another skips these tests, and says why."""
    reason = lab.missing()
    if not reason:
        try:
            lab.base_image(PACKAGES)
        except AssertionError as error:
            reason = str(error)
    if reason:
        pytest.skip(f"NO MACHINE WAS BOOTED: {reason}")
    with provision(tmp_path_factory.mktemp("one"), {group: ["node1"] for group in GROUPS}, packages=PACKAGES, roles=ROLES) as fleet:
        yield fleet


@contextmanager
def listening(machine, port: int):
    """Something on the machine answers there on every address."""
    machine.lab.ssh("node1", f"systemd-run -q --unit=planted python3 -m http.server {port}; "
                             f"for i in $(seq 100); do ss -ltnH | grep -q :{port} && exit; sleep .1; done; exit 1")
    try:
        yield
    finally:
        machine.lab.ssh("node1", "systemctl stop planted")


def test_preflight_found_nothing_wrong(machine):
    """Its verdict of the machine as it was booted."""
    assert json.loads((machine.folder / "preflight.json").read_text()) == {"ok": True, "failures": [], "notes": []}


def test_a_second_run_changes_nothing(machine):
    """Every task sees that its work is done."""
    assert machine.changed(machine.play("site.yml", "--tags", ROLES)) == {"node1": 0}


def test_only_ssh_and_the_tls_endpoint_may_be_reached(machine):
    """What listens on another port is silent to the network, and is seen as soon as the firewall is stopped."""
    with listening(machine, 8000):
        assert machine.reachable("node1") == [22]
        machine.lab.ssh("node1", "systemctl stop nftables-inhouse")
        assert machine.reachable("node1") == [22, 8000]
        machine.lab.ssh("node1", "systemctl start nftables-inhouse")
    with listening(machine, 443):
        assert machine.reachable("node1") == [22, 443]


def test_its_certificate_is_its_own_authority_s(machine):
    """Signed for its address, with a key that no other user reads."""
    checked = machine.lab.ssh("node1", "openssl verify -CAfile /etc/inhouse/tls/ca.crt /etc/inhouse/tls/node.crt; "
                                       "openssl x509 -in /etc/inhouse/tls/node.crt -noout -ext subjectAltName")
    assert "node.crt: OK" in checked and f"IP Address:{machine.lab.address('node1')}" in checked
    assert "denied" in machine.lab.ssh("node1", "setpriv --reuid nobody --clear-groups cat /etc/inhouse/tls/node.key 2>&1 || true")


def test_check_mode_goes_through_on_a_machine_without_anything(machine):
    """It says what a new machine would get, handlers of units that are not there yet included, and leaves it bare."""
    machine.lab.up(2)
    machine.with_groups(**{group: ["node1"] for group in GROUPS} | {"gpu_nodes": ["node1", "node2"]})
    assert machine.changed(machine.play("site.yml", "--tags", ROLES, "--check"))["node2"] > 10
    assert machine.lab.ssh("node2", "ls -d /etc/inhouse /opt/inhouse /etc/systemd/system/*inhouse* 2>/dev/null", check=False) == ""
