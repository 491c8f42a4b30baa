"""A bare machine without a way out, installed from a bundle alone: packages and wheels. What runs on them is test_fleet.py's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.fleet
ANSIBLE = Path(__file__).parents[2] / "ansible"
TAGS = "base,firewall,pki,release,postgresql,backup"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory, lab_file):
    """(unpacked bundle, trusted signers), made by `bundle.yml`; needs a mirror and a package index, as the README says."""
    said = play("bundle.yml", "-e", f"release_build={lab_file.CACHE / 'build'}")
    assert said.returncode == 0, said.stdout + said.stderr
    build, folder = lab_file.CACHE / "build", tmp_path_factory.mktemp("carried")
    newest = max(build.glob("inhouse-bundle-*.tar"), key=lambda path: path.stat().st_mtime)
    subprocess.run(["tar", "-xf", newest, "-C", folder], check=True)
    return folder / newest.stem, build / "bundle.signers"


@pytest.fixture(scope="module")
def lab(tmp_path_factory, lab_file):
    """One machine of an image with nothing downloaded."""
    if reason := lab_file.missing():
        pytest.fail(f"can't boot nodes here ({reason}); on Debian as root: apt install mmdebstrap systemd-container nftables iproute2")
    lab = lab_file.Lab(tmp_path_factory.mktemp("airgap") / "lab", lab_file.base_image(("ca-certificates",)))
    try:
        lab.up(1)
        yield lab
    finally:
        lab.down()


def play(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs ansible-playbook."""
    return subprocess.run([Path(sys.executable).parent / "ansible-playbook", *arguments], capture_output=True, text=True, check=False,
                          cwd=ANSIBLE, timeout=2400)


def test_a_machine_without_a_way_out_is_installed_from_the_bundle(bundle, lab, tmp_path):
    """The mirror is out of reach, and PostgreSQL runs and is backed up, every wheel is installed; a second run changes nothing."""
    host = {"ansible_host": lab.address("node1"), "ansible_user": "root", "ansible_ssh_private_key_file": str(lab.key),
            "ansible_ssh_common_args": " ".join(lab.options()[2:])}
    (tmp_path / "hosts.yml").write_text(yaml.safe_dump({"all": {"children": {
        name: {"hosts": {"node1": host}} for name in ("head", "router", "data", "gpu_nodes")}}}))
    extra = json.dumps({"release_bundle": str(bundle[0]), "release_signers": str(bundle[1]), "preflight_report": str(tmp_path / "v.json")})
    site = ("site.yml", "-i", str(tmp_path / "hosts.yml"), "--tags", TAGS, "-e", extra)
    assert lab.ssh("node1", "getent hosts deb.debian.org || echo closed").strip() == "closed"
    first = play(*site)
    assert first.returncode == 0, first.stdout[-6000:]
    assert lab.ssh("node1", "systemctl is-active postgresql").strip() == "active"
    assert "inhouse" in lab.ssh("node1", "/opt/inhouse/current/bin/inhouse --help")
    assert lab.ssh("node1", "ls /var/backups/inhouse/*.dump").count("inhouse-") == 1
    second = play(*site)
    assert "changed=0" in second.stdout.partition("PLAY RECAP")[2], second.stdout[-6000:]
