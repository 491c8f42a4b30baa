"""Machines for the fleet's tests: real systemd nodes on this one, each with its own root, network and SSH server.

A node is `systemd-nspawn --boot` over an overlay of a base image that `base_image` makes from Debian packages and keeps in a cache
folder. What it can't show: kernel settings but the network's, GPUs and resource limits (cgroup controllers are not handed to the
nodes). A lab is its folder: another process goes on with it, and `python tests/fleet/lab.py FOLDER` ends it.
"""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "inhouse-fleet"
_CGROUPS = [Path("/sys/fs/cgroup") / name for name in ("systemd", "unified")]
_BARE = ("systemd", "systemd-sysv", "dbus", "openssh-server", "python3", "python3-apt", "sudo", "iproute2", "ca-certificates", "procps")
# Writes down who it is, restarts a node that asks for a reboot (133), and passes our end on to it.
_LOOP = """echo $$ > $PIDFILE; for cgroup in $CGROUPS; do echo $$ > $cgroup/cgroup.procs; done
trap 'stop=1; kill -TERM $child' TERM; stop=
while :; do "$@" & child=$!; wait $child; code=$?; [ -n "$stop" ] && { wait $child; exit; }; [ $code = 133 ] || exit $code; done"""


def missing() -> str:
    """Why this machine can't boot nodes; empty where it can."""
    if os.geteuid():
        return "not root"
    programs = [name for name in ("systemd-nspawn", "mmdebstrap", "nft", "ssh", "ip") if shutil.which(name) is None]
    return f"not installed: {' '.join(programs)}; on Debian: apt install mmdebstrap systemd-container nftables iproute2" if programs else ""


def base_image(packages: tuple[str, ...], suite: str = "bookworm") -> Path:
    """A bare Debian, made once. It has an SSH server and Python; `packages` lie downloaded in apt's cache, as from a mirror nearby."""
    image = CACHE / f"{suite}-{hashlib.sha256(' '.join((*_BARE, *packages)).encode()).hexdigest()[:8]}"
    if not image.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        draft = CACHE / f"{suite}.draft"
        shutil.rmtree(draft, ignore_errors=True)
        download = f'chroot "$1" apt-get install -y --download-only --no-install-recommends {" ".join(packages)}'
        _run("mmdebstrap", "--quiet", "--variant=apt", f"--include={','.join(_BARE)}", "--format=directory", "--skip=cleanup/apt",
             "--aptopt=Binary::apt-get::APT::Keep-Downloaded-Packages \"true\"",
             f"--customize-hook={download}", suite, str(draft))
        draft.rename(image)
    return image


@dataclass(frozen=True)
class Lab:
    """Up to nine nodes, reached with the key in `folder`. Two labs are apart: the folder's name gives network and names."""

    folder: Path
    base: Path
    open_internet: bool = False

    @property
    def _number(self) -> int:
        return zlib.crc32(str(self.folder.resolve()).encode()) % 200

    @property
    def _net(self) -> str:
        return f"10.77.{self._number}"

    @property
    def _bridge_name(self) -> str:
        return f"ih{self._number}"

    def address(self, name: str) -> str:
        return f"{self._net}.{10 + int(name.removeprefix('node'))}"

    @property
    def key(self) -> Path:
        return self.folder / "id_ed25519"

    def up(self, count: int) -> list[str]:
        """Boots nodes that are not up and returns the names of all when SSH answers on them."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.key.exists():
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
        self._bridge()
        names = [f"node{i}" for i in range(1, count + 1)]
        for name in names:
            self._root(name)
            self._wire(name)
            if not self._pids(name):
                self.start(name)
        for name in names:
            self.wait(name)
        return names

    def ssh(self, name: str, command: str, check: bool = True, patience_s: float = 300) -> str:
        """What a command says on a node."""
        said = subprocess.run(["ssh", *self.options(), "-o", "ConnectTimeout=2", f"root@{self.address(name)}", command],
                              capture_output=True, text=True, check=False, timeout=patience_s)
        if check and said.returncode:
            raise AssertionError(f"{name}: {command}: {said.stdout[-2000:]}{said.stderr[-2000:]}")
        return said.stdout

    def options(self) -> list[str]:
        return ["-i", str(self.key), "-o", "StrictHostKeyChecking=no", "-o", f"UserKnownHostsFile={self.folder}/known_hosts",
                "-o", "LogLevel=ERROR"]

    def wait(self, name: str) -> None:
        deadline = time.monotonic() + 90
        while "up" not in self.ssh(name, "echo up", check=False):
            assert time.monotonic() < deadline, f"{name} does not answer; see {self.folder / name}/console.log"
            time.sleep(0.2)

    def start(self, name: str) -> None:
        """Powers a node on; its disk is as it was left."""
        folder, groups = self.folder / name, self._groups(name)
        for group in groups:
            group.mkdir(parents=True, exist_ok=True)
        (folder / "pid").unlink(missing_ok=True)
        _run("ip", "link", "set", f"v-{self._bridge_name}-{name}", "up")
        command = ["setsid", "--fork", "bash", "-c", _LOOP, "_", "systemd-nspawn", "--quiet", "-D", str(folder / "root"),
                   f"--machine={self._bridge_name}-{name}", "--register=no", "--keep-unit",
                   f"--network-namespace-path=/run/netns/{self._bridge_name}-{name}", "--resolv-conf=off", "--timezone=off",
                   "--kill-signal=SIGRTMIN+3", "--capability=CAP_NET_ADMIN", "--system-call-filter=adjtimex",
                   "--console=pipe", "--boot"]
        environment = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1",
                       "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network", "CGROUPS": " ".join(map(str, groups)),
                       "PIDFILE": str(folder / "pid")}
        with (folder / "console.log").open("ab") as console:
            subprocess.run(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=environment, check=True)
        while not self._pids(name):  # the loop is in the node's group from its first line on
            time.sleep(0.05)

    def stop(self, name: str) -> None:
        """Shuts a node down in order."""
        os.kill(int((self.folder / name / "pid").read_text()), signal.SIGTERM)
        deadline = time.monotonic() + 60
        while self._pids(name) and time.monotonic() < deadline:
            time.sleep(0.1)
        self.cut_power(name)

    def cut_power(self, name: str) -> None:
        """Ends a node at once: its cable first, so that nobody is told, then nspawn and every process, which outlive a killed nspawn."""
        subprocess.run(["ip", "link", "set", f"v-{self._bridge_name}-{name}", "down"], check=False, capture_output=True)
        with contextlib.suppress(ProcessLookupError, FileNotFoundError, ValueError):
            os.killpg(int((self.folder / name / "pid").read_text()), signal.SIGKILL)
        while pids := self._pids(name):
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)
        (self.folder / name / "pid").unlink(missing_ok=True)

    def give_disk(self, name: str, place: str, spare_mib: int) -> None:
        """Moves a folder of a node that is off onto a disk of its own (ext4), with so much room beside what lies there."""
        there, draft, image = self.folder / name / f"root{place}", self.folder / name / "draft", self.folder / name / "disk.img"
        if there.is_mount():  # of an earlier run with these machines
            return
        draft.mkdir()
        used = subprocess.run(["du", "-sm", str(there)], capture_output=True, text=True, check=True).stdout.split()[0]
        with image.open("wb") as file:
            file.truncate((int(used) * 12 // 10 + spare_mib) << 20)  # a file system needs some for itself
        _run("mkfs.ext4", "-q", "-m", "0", str(image))
        _run("mount", "-o", "loop", str(image), str(draft))
        _run("cp", "-a", f"{there}/.", str(draft))
        _run("umount", str(draft))
        _run("mount", "-o", "loop", str(image), str(there))
        draft.rmdir()

    def down(self) -> None:
        """Ends everything that `up` made, the disks included."""
        for node in self.folder.glob("node*"):
            self.cut_power(node.name)
            space = f"{self._bridge_name}-{node.name}"
            subprocess.run(["umount", "-R", node / "root"], check=False, capture_output=True)
            subprocess.run(["ip", "link", "del", f"v-{space}"], check=False, capture_output=True)
            subprocess.run(["ip", "netns", "del", space], check=False, capture_output=True)
            for group in self._groups(node.name):
                for inner in sorted((path for path in [group, *group.rglob("*")] if path.is_dir()), reverse=True):
                    with contextlib.suppress(OSError):
                        inner.rmdir()
        for group in self._groups("all"):
            with contextlib.suppress(OSError):
                group.parent.rmdir()
        subprocess.run(["ip", "link", "del", self._bridge_name], check=False, capture_output=True)
        subprocess.run(["nft", "delete", "table", "ip", self._bridge_name], check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _groups(self, name: str) -> list[Path]:
        """A node's control groups. Without its own, nodes share the caller's, and one can't stop a unit that another has too."""
        return [group / f"inhouse-{self._number}" / name for group in _CGROUPS if group.is_dir()]

    def _pids(self, name: str) -> set[int]:
        """Every process of a node, the loop around it included."""
        files = [Path(inner) / "cgroup.procs" for group in self._groups(name) for inner, _, _ in os.walk(group)]  # some vanish meanwhile
        found: set[int] = set()
        for file in files:
            with contextlib.suppress(OSError):  # the group was removed meanwhile
                found |= {int(pid) for pid in file.read_text().split()}
        return found

    def _bridge(self) -> None:
        bridge, net = self._bridge_name, self._net
        if not Path(f"/sys/class/net/{bridge}").exists():
            _run("ip", "link", "add", bridge, "type", "bridge")
            _run("ip", "addr", "add", f"{net}.1/24", "dev", bridge)
            _run("ip", "link", "set", bridge, "up")
        if self.open_internet:
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            rules = (f"table ip {bridge}\ndelete table ip {bridge}\n"
                     f"table ip {bridge} {{ chain post {{ type nat hook postrouting priority 100; "
                     f"ip saddr {net}.0/24 ip daddr != {net}.0/24 masquerade; }} }}")
            subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)

    def _root(self, name: str) -> None:
        """A node's disk: an overlay over the image, made once."""
        folder = self.folder / name
        root = folder / "root"
        is_new = not (folder / "up").exists()
        for inner in ("up", "work", "root"):
            (folder / inner).mkdir(parents=True, exist_ok=True)
        if not root.is_mount():
            _run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={self.base},upperdir={folder}/up,workdir={folder}/work", str(root))
        if not is_new:
            return
        (root / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
        (root / "root/.ssh/authorized_keys").write_text(self.key.with_suffix(".pub").read_text())
        (root / "etc/hostname").write_text(f"{name}\n")
        (root / "etc/machine-id").write_text("")
        (root / "etc/hosts").write_text("127.0.0.1 localhost\n")
        resolver = root / "etc/resolv.conf"
        resolver.unlink(missing_ok=True)
        resolver.write_text(Path("/etc/resolv.conf").read_text() if self.open_internet else "")
        for old in (root / "etc/ssh").glob("ssh_host_*"):
            old.unlink()
        _run("ssh-keygen", "-q", "-A", "-f", str(root))

    def _wire(self, name: str) -> None:
        """A node's network: a namespace with one cable to the bridge."""
        space = f"{self._bridge_name}-{name}"
        if not Path(f"/run/netns/{space}").exists():
            _run("ip", "netns", "add", space)
            _run("ip", "link", "add", f"v-{space}", "type", "veth", "peer", "name", "eth0", "netns", space)
            _run("ip", "link", "set", f"v-{space}", "master", self._bridge_name, "up")
            _run("ip", "-n", space, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
            _run("ip", "-n", space, "link", "set", "lo", "up")
            _run("ip", "-n", space, "link", "set", "eth0", "up")
            _run("ip", "-n", space, "route", "add", "default", "via", f"{self._net}.1")


def _run(*command: str) -> None:
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    if said.returncode:
        raise AssertionError(f"{' '.join(command)}: {said.stderr[-2000:]}")


if __name__ == "__main__":
    for kept in Path(sys.argv[1]).glob("*/lab"):
        Lab(kept, CACHE).down()
