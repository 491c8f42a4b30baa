"""The air-gap bundle: what was signed is what is installed, and nothing else; with real ssh-keygen, tar and dpkg, without a mirror."""

import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml
from rehearsal import ANSIBLE, inventory, tool

PROBE = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import bundle
built, folder = json.loads(sys.argv[2]), Path(sys.argv[3])
bundle.create(folder / "b.tar", built, signer=folder / "signer", packages=folder / "debs.tar", controller=folder / "wheels.tar")
"""


def bundle_py(*arguments: str) -> "subprocess.CompletedProcess[str]":
    """Runs the command of the playbooks."""
    return subprocess.run([sys.executable, ANSIBLE / "bundle.py", *arguments], capture_output=True, text=True, check=False)


def signer(path: Path) -> str:
    """Makes a key; its line of allowed signers."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", path], check=True)
    return f"inhouse {path.with_name(f'{path.name}.pub').read_text()}"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a bundle of stand-in parts, unpacked, and the file of trusted signers."""
    folder = tmp_path_factory.mktemp("bundle")
    for name in ("e.tar", "r.tar", "m.tar", "debs.tar", "wheels.tar"):
        (folder / name).write_bytes(name.encode() * 1000)
    built = {"environment": {"id": "e", "tar": str(folder / "e.tar")}, "release": {"id": "r", "tar": str(folder / "r.tar")},
             "models": [{"name": "m", "tar": str(folder / "m.tar")}], "changed": True}
    (folder / "signers").write_text(signer(folder / "signer"))
    subprocess.run([sys.executable, "-c", PROBE, ANSIBLE, json.dumps(built), folder], check=True)
    with tarfile.open(folder / "b.tar") as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.fixture
def copy(made, tmp_path):
    """A copy of the unpacked bundle to spoil."""
    return Path(shutil.copytree(made / "b", tmp_path / "b"))


def test_a_whole_bundle_is_read_as_a_build_would_be(made):
    """Parts are named by where they lie now; the same document that the playbooks read of a build."""
    said = bundle_py("verify", str(made / "b"), "--signers", str(made / "signers"))
    told = json.loads(said.stdout)
    assert said.returncode == 0 and told["environment"] == {"id": "e", "tar": str(made / "b/environments/e.tar")}
    assert Path(told["models"][0]["tar"]).read_bytes() == b"m.tar" * 1000 and told["packages"] == str(made / "b/packages.tar")
    assert json.loads(bundle_py("read", str(made / "b"), "--signers", str(made / "signers")).stdout) == told


def test_the_playbooks_travel_and_this_sites_inventory_does_not(made):
    """The checkout in the bundle holds the playbooks, the code and the pins; no inventory with this site's secrets, nothing built."""
    with tarfile.open(made / "b/project.tar") as archive:
        names = archive.getnames()
    wanted = ("ansible/site.yml", "ansible/bundle.py", "requirements/gpu.txt", "routing/routes.yaml")
    assert {f"inhouse/{name}" for name in wanted} <= set(names)
    assert not [name for name in names if "inventory/fleet" in name or "__pycache__" in name or "/build/" in name]


def alter(folder):
    (folder / "models/m.tar").write_bytes(b"M.tar" * 1000)


def lose(folder):
    (folder / "packages.tar").unlink()


def add(folder):
    (folder / "models/evil.tar").write_bytes(b"evil")


def link(folder):
    (folder / "models/m.tar").unlink()
    (folder / "models/m.tar").symlink_to("/etc/hostname")


def list_differently(folder):
    alter(folder)
    sums = (folder / "SHA256SUMS").read_text().splitlines()
    digest = subprocess.run(["sha256sum", folder / "models/m.tar"], capture_output=True, text=True, check=True).stdout.split()[0]
    (folder / "SHA256SUMS").write_text("".join(f"{digest}  models/m.tar\n" if "m.tar" in line else f"{line}\n" for line in sums))


def drop_signature(folder):
    (folder / "SHA256SUMS.sig").unlink()


@pytest.mark.parametrize(("spoil", "said"), [
    (alter, "models/m.tar is not what was signed"), (lose, "lacks `packages.tar`"),
    (add, "`models/evil.tar`, which the signed list does not"),
    (link, "models/m.tar is a link"), (list_differently, "not by a key that you trust"), (drop_signature, "not by a key that you trust")])
def test_what_was_not_signed_is_refused(made, copy, spoil, said):
    """Altered, missing, too much, a link, another list, no signature: one line that says which, and no document for the playbooks."""
    spoil(copy)
    told = bundle_py("verify", str(copy), "--signers", str(made / "signers"))
    assert told.returncode == 1 and said in told.stderr and told.stdout == "" and len(told.stderr.splitlines()) == 1


def test_another_signer_is_refused(made, copy, tmp_path):
    """A good signature by a key that this site does not trust, under the right name; and a site that trusts nobody yet."""
    (tmp_path / "others").write_text(signer(tmp_path / "other"))
    assert "not by a key that you trust" in bundle_py("verify", str(copy), "--signers", str(tmp_path / "others")).stderr
    assert "not by a key that you trust" in bundle_py("read", str(copy), "--signers", str(tmp_path / "others")).stderr
    assert "name it with release_signers" in bundle_py("verify", str(copy), "--signers", str(tmp_path / "none")).stderr


def test_preflight_refuses_a_spoilt_bundle_before_a_machine_is_touched(made, copy, tmp_path):
    """It is a failure of the verdict, beside what is wrong with machines."""
    alter(copy)
    hosts = inventory(tmp_path, {"n1": {"ansible_host": "127.0.0.1", "ansible_port": 1}},
                      {group: ["n1"] for group in ("head", "router", "data", "gpu_nodes")})
    extra = {"release_bundle": str(copy), "release_signers": str(made / "signers"), "preflight_report": str(tmp_path / "verdict.json")}
    said = tool("ansible-playbook", "preflight.yml", "-i", hosts, "-e", json.dumps(extra))
    failures = json.loads((tmp_path / "verdict.json").read_text())["failures"]
    assert said.returncode and "models/m.tar is not what was signed" in failures[0] and "n1: does not answer" in failures[1]


def test_every_package_that_a_role_installs_is_in_the_bundle():
    """A role that asks apt for more than the bundle carries would fail on the site without internet only."""
    carried = set(yaml.safe_load((ANSIBLE / "roles/bundle/defaults/main.yml").read_text())["bundle_packages"])
    asked = set(yaml.safe_load((ANSIBLE / "roles/base/defaults/main.yml").read_text())["base_packages"]) | {"chrony"}
    for file in (ANSIBLE / "roles").glob("[!g]*/tasks/*.yml"):  # gpu's come from NVIDIA's repository
        for task in yaml.safe_load(file.read_text()) or ():
            names = task.get("ansible.builtin.apt", {}).get("name", [])
            asked |= {name for name in ([names] if isinstance(names, str) else names) if "{" not in name}
    assert asked - {"grafana"} <= carried  # that one is asked for only where apt has it


@pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="no dpkg-deb: bundles are made on Debian or Ubuntu")
def test_apt_can_read_the_index(tmp_path):
    """The index of a folder names the package, its file and its digest."""
    (tmp_path / "p/DEBIAN").mkdir(parents=True)
    (tmp_path / "p/DEBIAN/control").write_text("Package: p\nVersion: 1\nArchitecture: all\nMaintainer: x <x@x>\nDescription: d\n")
    subprocess.run(["dpkg-deb", "--build", "--root-owner-group", tmp_path / "p", tmp_path / "p_1_all.deb"], check=True, capture_output=True)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import bundle; print(*bundle._stanzas(bundle.Path(sys.argv[2])))"
    said = subprocess.run([sys.executable, "-c", code, ANSIBLE, tmp_path], capture_output=True, text=True, check=True).stdout
    assert "Package: p\n" in said and "Filename: ./p_1_all.deb\n" in said and "SHA256: " in said


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt-get: bundles are made on Debian or Ubuntu")
def test_packages_come_from_where_this_machine_gets_them(tmp_path):
    """The controller's own sources, with the nodes' release in its own's place and no backports; a named mirror alone; none is said."""
    own = platform.freedesktop_os_release()["VERSION_CODENAME"]
    (tmp_path / "none.list").write_text("")
    suites = (own, f"{own}-updates", f"{own}-backports", "elsewhere")
    (tmp_path / "mirror.list").write_text("".join(f"deb http://mirror.example/d {suite} main contrib\n" for suite in suites))
    code = ("import sys; sys.path.insert(0, sys.argv[1]); import bundle\n"
            "print(*bundle.sources('next', mirror=sys.argv[2], keyring=sys.argv[3]), sep='\\n')")

    def said(listed: str, mirror: str = "", keyring: str = "K") -> "subprocess.CompletedProcess[str]":
        (tmp_path / "apt.conf").write_text(f'Dir::Etc::sourcelist "{tmp_path}/{listed}.list";\nDir::Etc::sourceparts "-";\n')
        return subprocess.run([sys.executable, "-c", code, ANSIBLE, mirror, keyring], capture_output=True, text=True, check=False,
                              env={**os.environ, "APT_CONFIG": str(tmp_path / "apt.conf")})

    both = ("next", "next-updates")
    assert said("mirror").stdout.splitlines() == [f"deb [signed-by=K] http://mirror.example/d/ {suite} main" for suite in both]
    named = said("none", "http://mirror.example/ubuntu/").stdout.splitlines()
    assert named == [f"deb [signed-by=K] http://mirror.example/ubuntu {suite} main universe" for suite in both]
    assert "name a mirror of the machines' distribution, -e bundle_mirror=" in said("none").stderr
    assert Path(said("mirror", keyring="").stdout.split("signed-by=")[1].split("]")[0]).is_file()
