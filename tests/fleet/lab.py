"""Machines for the fleet's tests: real systemd nodes on this one, each with its own root, network and SSH server.

A node is `systemd-nspawn --boot` over an overlay of a base image that `base_image` makes from Debian packages and keeps in a cache
folder. What it can't show: kernel settings, GPUs and resource limits (cgroup controllers are not handed to the nodes).
"""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "inhouse-fleet"
_NET, _BRIDGE, _TABLE = "10.77.8", "inhouse0", "inhouse_fleet"
_CGROUPS = [Path("/sys/fs/cgroup") / name for name in ("systemd", "unified")]
_BARE = ("systemd", "systemd-sysv", "dbus", "openssh-server", "python3", "python3-apt", "sudo", "iproute2", "ca-certificates", "procps")
_SUITE = "bookworm"
# Restarts a node that asks for a reboot (133), and passes our end on to it.
_LOOP = """for cgroup in $CGROUPS; do echo $$ > $cgroup/cgroup.procs; done
trap 'stop=1; kill -TERM $child' TERM; stop=
while :; do "$@" & child=$!; wait $child; code=$?; [ -n "$stop" ] && { wait $child; exit; }; [ $code = 133 ] || exit $code; done"""


def missing() -> str:
    """Why this machine can't boot nodes; empty where it can."""
    if os.geteuid():
        return "not root"
    programs = [name for name in ("systemd-nspawn", "mmdebstrap", "nft", "ssh", "ip") if shutil.which(name) is None]
    return f"not installed: {' '.join(programs)}" if programs else ""


def base_image(packages: tuple[str, ...]) -> Path:
    """A bare Debian, made once. It has an SSH server and Python; `packages` lie downloaded in apt's cache, as from a mirror nearby."""
    image = CACHE / f"{_SUITE}-{hashlib.sha256(' '.join((*_BARE, *packages)).encode()).hexdigest()[:8]}"
    if not image.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        draft = CACHE / f"{_SUITE}.draft"
        shutil.rmtree(draft, ignore_errors=True)
        download = f'chroot "$1" apt-get install -y --download-only --no-install-recommends {" ".join(packages)}'
        _run("mmdebstrap", "--quiet", "--variant=apt", f"--include={','.join(_BARE)}", "--format=directory", "--skip=cleanup/apt",
             "--aptopt=Binary::apt-get::APT::Keep-Downloaded-Packages \"true\"",
             f"--customize-hook={download}", _SUITE, str(draft))
        draft.rename(image)
    return image


@dataclass
class Lab:
    """Up to nine nodes, `node1` at 10.77.8.11 and so on, reached with the key in `folder`."""

    folder: Path
    base: Path
    open_internet: bool = False
    processes: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    def address(self, name: str) -> str:
        return f"{_NET}.{10 + int(name.removeprefix('node'))}"

    @property
    def key(self) -> Path:
        return self.folder / "id_ed25519"

    def up(self, count: int) -> list[str]:
        """Boots nodes and returns their names when SSH answers on all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if not self.key.exists():
            _run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key))
        self._bridge()
        names = [f"node{i}" for i in range(1, count + 1)]
        for name in names:
            self._root(name)
            self.start(name)
        for name in names:
            self.wait(name)
        return names

    def ssh(self, name: str, command: str, check: bool = True) -> str:
        """What a command says on a node."""
        said = subprocess.run(["ssh", *self.options(), "-o", "ConnectTimeout=2", f"root@{self.address(name)}", command],
                              capture_output=True, text=True, check=False, timeout=300)
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
        folder, groups = self.folder / name, _groups(name)
        for group in groups:
            group.mkdir(parents=True, exist_ok=True)
        command = ["bash", "-c", _LOOP, "_", "systemd-nspawn", "--quiet", "-D", str(folder / "root"), f"--machine=ih-{name}",
                   "--register=no", "--keep-unit", f"--network-namespace-path=/run/netns/ih-{name}", "--resolv-conf=off", "--timezone=off",
                   "--kill-signal=SIGRTMIN+3", "--capability=CAP_NET_ADMIN", "--console=pipe", "--boot"]
        environment = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1", "CGROUPS": " ".join(map(str, groups))}
        with (folder / "console.log").open("ab") as console:
            self.processes[name] = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console, env=environment,
                                                    start_new_session=True)

    def stop(self, name: str) -> None:
        """Shuts a node down in order."""
        process = self.processes[name]
        process.terminate()
        try:
            process.wait(60)
            del self.processes[name]
        except subprocess.TimeoutExpired:
            self._kill(name)

    def cut_power(self, name: str) -> None:
        """Ends a node at once, as a power cut does."""
        self._kill(name)

    def down(self) -> None:
        """Ends everything that `up` made, the disks included."""
        for name in list(self.processes):
            self._kill(name)
        for node in self.folder.glob("node*"):
            subprocess.run(["umount", node / "root"], check=False, capture_output=True)
            subprocess.run(["ip", "link", "del", f"v-ih-{node.name}"], check=False, capture_output=True)
            subprocess.run(["ip", "netns", "del", f"ih-{node.name}"], check=False, capture_output=True)
            for group in _groups(node.name):
                for inner in sorted((path for path in group.rglob("*") if path.is_dir()), reverse=True):
                    with contextlib.suppress(OSError):
                        inner.rmdir()
        subprocess.run(["ip", "link", "del", _BRIDGE], check=False, capture_output=True)
        subprocess.run(["nft", "delete", "table", "ip", _TABLE], check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _kill(self, name: str) -> None:
        """The loop, its nspawn, and every process of the node: these outlive a killed nspawn."""
        process = self.processes.pop(name)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
        while pids := {int(pid) for group in _groups(name) for file in group.rglob("cgroup.procs") for pid in file.read_text().split()}:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.1)

    def _bridge(self) -> None:
        if not Path(f"/sys/class/net/{_BRIDGE}").exists():
            _run("ip", "link", "add", _BRIDGE, "type", "bridge")
            _run("ip", "addr", "add", f"{_NET}.1/24", "dev", _BRIDGE)
            _run("ip", "link", "set", _BRIDGE, "up")
        if self.open_internet:
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            rules = (f"table ip {_TABLE}\ndelete table ip {_TABLE}\n"
                     f"table ip {_TABLE} {{ chain post {{ type nat hook postrouting priority 100; "
                     f"ip saddr {_NET}.0/24 ip daddr != {_NET}.0/24 masquerade; }} }}")
            subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)

    def _root(self, name: str) -> None:
        folder = self.folder / name
        root = folder / "root"
        for inner in ("up", "work", "root"):
            (folder / inner).mkdir(parents=True, exist_ok=True)
        if not root.is_mount():
            _run("mount", "-t", "overlay", "overlay", "-o", f"lowerdir={self.base},upperdir={folder}/up,workdir={folder}/work", str(root))
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
        space = f"ih-{name}"
        if not Path(f"/run/netns/{space}").exists():
            _run("ip", "netns", "add", space)
            _run("ip", "link", "add", f"v-{space}", "type", "veth", "peer", "name", "eth0", "netns", space)
            _run("ip", "link", "set", f"v-{space}", "master", _BRIDGE, "up")
            _run("ip", "-n", space, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
            _run("ip", "-n", space, "link", "set", "lo", "up")
            _run("ip", "-n", space, "link", "set", "eth0", "up")
            _run("ip", "-n", space, "route", "add", "default", "via", f"{_NET}.1")


def _groups(name: str) -> list[Path]:
    """A node's control groups. Without its own, nodes share the caller's, and one can't stop a unit that another has too."""
    return [group / "inhouse-fleet" / name for group in _CGROUPS if group.is_dir()]


def _run(*command: str) -> None:
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    if said.returncode:
        raise AssertionError(f"{' '.join(command)}: {said.stderr[-2000:]}")
