"""Finds, measures and ends the processes of one node, by a mark in their environment (Linux's /proc; nothing is guessed by name).

A mark is inherited by every process that Ray, Serve, HAProxy and vLLM start, also when their parent is long dead, and belongs to one
INHOUSE_HOME: another Ray cluster of the same user is never touched.
"""

import contextlib
import os
import re
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

MARK = "INHOUSE_NODE"
_PROC = Path("/proc")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, kw_only=True)
class Process:
    """One process of a node and its resident memory."""

    pid: int
    name: str
    rss_bytes: int


def marked(mark: str) -> list[int]:
    """The pids of all living processes that carry a mark, and of their descendants (some programs overwrite their environment)."""
    wanted = f"{MARK}={mark}\0".encode()
    parents: dict[int, int] = {}
    found: set[int] = set()
    for entry in _PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError, ValueError, IndexError):
            state, parent = (entry / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[:2]
            if state in "ZX":
                continue
            parents[int(entry.name)] = int(parent)
            if wanted in (entry / "environ").read_bytes() + b"\0":
                found.add(int(entry.name))
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return sorted(found)


def describe(pids: Iterable[int]) -> tuple[Process, ...]:
    """Name and memory of those that still live."""
    processes = []
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            words = (_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            rss = int((_PROC / str(pid) / "statm").read_text(encoding="ascii").split()[1]) * _PAGE
            processes.append(Process(pid=pid, name=_short(words), rss_bytes=rss))
    return tuple(processes)


def end(mark: str, patience_s: float = 3.0) -> int:
    """Ends every process that carries a mark: asks first, then kills; returns how many there were.

    Returns only when none is left, however fast they start new ones; raises `TimeoutError` naming those that can't be killed.
    """
    seen: set[int] = set()
    start = time.monotonic()
    while pids := marked(mark) or _looked_again(mark):
        waited = time.monotonic() - start
        for pid in pids:
            if waited >= patience_s or pid not in seen:
                _signal(pid, signal.SIGKILL if waited >= patience_s else signal.SIGTERM)
        seen |= set(pids)
        if waited > patience_s + 20:
            raise TimeoutError(f"processes {', '.join(map(str, pids))} did not end; kill them as their owner or root")
        time.sleep(0.05)
    return len(seen)


def _looked_again(mark: str) -> list[int]:
    """A second look, a moment later: a process that is just starting a program shows no environment for that moment."""
    time.sleep(0.2)
    return marked(mark)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def _short(command: str) -> str:
    """What a person knows a process by: Ray's and vLLM's titles as they are, programs by their own name."""
    if command.startswith(("ray::", "VLLM::", "ray-dashboard-")):
        return re.split(r" \(|#|\.", command, maxsplit=1)[0]
    for word in command.split():
        name = word.rpartition("/")[2]
        if not name.startswith(("python", "-")) or name.endswith(".py"):
            return name
    return command[:40]
