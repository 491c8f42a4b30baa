"""Which TCP sockets listen on this machine and which process holds them (Linux's /proc/net)."""

import contextlib
import ipaddress
import re
import socket
from dataclasses import dataclass
from pathlib import Path

_LISTEN = "0A"


@dataclass(frozen=True, kw_only=True)
class Listener:
    """A listening TCP socket. `inode` ties it to a process."""

    address: str
    port: int
    inode: int

    @property
    def is_loopback(self) -> bool:
        ip = ipaddress.ip_address(self.address)
        mapped = getattr(ip, "ipv4_mapped", None)
        return bool((mapped or ip).is_loopback)


def listeners() -> list[Listener]:
    """All listening TCP sockets of this network namespace."""
    found = []
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        with contextlib.suppress(FileNotFoundError):
            for line in table.read_text(encoding="ascii").splitlines()[1:]:
                words = line.split()
                if words[3] == _LISTEN:
                    address, port = words[1].split(":")
                    found.append(Listener(address=_address(address), port=int(port, 16), inode=int(words[9])))
    return found


def held_by(pid: int) -> set[int]:
    """The inodes of a process's sockets; none where it is gone or someone else's."""
    inodes = set()
    with contextlib.suppress(OSError):
        for link in (Path("/proc") / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):
                if found := re.fullmatch(r"socket:\[(\d+)\]", str(link.readlink())):
                    inodes.add(int(found.group(1)))
    return inodes


def owner(port: int) -> str | None:
    """`name (pid 123)` of the process that listens on a port, "another user's process" where it can't be seen, None where nobody does."""
    inodes = {listener.inode for listener in listeners() if listener.port == port}
    if not inodes:
        return None
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and inodes & held_by(int(folder.name)):
            with contextlib.suppress(OSError):
                return f"{(folder / 'comm').read_text(encoding='utf-8').strip()} (pid {folder.name})"
    return "another user's process"


def free_ports(count: int) -> list[int]:
    """Ports on loopback that nobody listens on now. Somebody may take one before it is used; callers fail then and are started again."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def _address(text: str) -> str:
    """The kernel writes addresses as 32-bit words in the machine's byte order."""
    words = [bytes.fromhex(text[i:i + 8])[::-1] for i in range(0, len(text), 8)]
    return str(ipaddress.ip_address(b"".join(words)))
