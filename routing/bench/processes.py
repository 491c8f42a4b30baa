"""Processes under test: starting them on chosen cores, stopping all of them, and what they cost in CPU time and memory (Linux's /proc).

CPU time is what the kernel charged to a whole process tree, so that a busy neighbour on the machine changes it little.
"""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_NICE = -10  # a gateway that waits for its core reads chunks in heaps, which makes them look cheap
_TAG = "INHOUSE_BENCH_TAG"
_NOT_PASSED_ON = {"PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "PYTHONDEVMODE"}  # the first makes every start compile every module again


class BenchError(Exception):
    """A benchmark could not be run. The message says what to do."""


def _stat(pid: int) -> list[str]:
    """The fields of /proc/<pid>/stat from the third on; empty where there is no such process any more."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return []
    return text[text.rindex(")") + 2 :].split()


def _pids() -> list[int]:
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]  # noqa: PTH208 (names only, of hundreds)


def carrying(words: str) -> frozenset[int]:
    """The processes whose environment at their start held `words` (such as `NAME=value`) and their descendants, this one aside.

    Descendants, as programs that set their title may overwrite what others can read of their environment; `SPT_NOENV=1` forbids it to some.
    """
    found: set[int] = set()
    for pid in _pids():
        with contextlib.suppress(OSError):
            if words.encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.add(pid)
    return _with_descendants(found - {os.getpid()}) - {os.getpid()}


def tree(root: int) -> frozenset[int]:
    """`root` and all its descendants that live now."""
    return _with_descendants({root})


def _with_descendants(roots: Collection[int]) -> frozenset[int]:
    parents = {pid: int(fields[1]) for pid in _pids() if (fields := _stat(pid))}
    found = set(roots) & parents.keys()
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return frozenset(found)


def cpu_seconds(pids: Collection[int]) -> float:
    """CPU time, user and system, that these processes have used so far, threads included. In steps of 10 ms on most kernels."""
    ticks = 0
    for pid in pids:
        if fields := _stat(pid):
            ticks += int(fields[11]) + int(fields[12])
    return ticks / _TICKS_A_SECOND


def _kib(pid: int, file: str, field: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/{file}").read_text(encoding="utf-8").splitlines():
            if line.startswith(field):
                return int(line.split()[1])
    return 0


def rss_mib(pids: Collection[int]) -> float:
    """Resident memory now; pages that processes share count in each of them."""
    return sum(_kib(pid, "status", "VmRSS:") for pid in pids) / 1024


def peak_rss_mib(pids: Collection[int]) -> float:
    """The most resident memory that each of the processes ever had, added up."""
    return sum(_kib(pid, "status", "VmHWM:") for pid in pids) / 1024


def pss_mib(pids: Collection[int]) -> float:
    """Resident memory now, with shared pages divided among those who share them: what the processes cost together."""
    return sum(_kib(pid, "smaps_rollup", "Pss:") for pid in pids) / 1024


def free_port() -> int:
    """A loopback port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Cores:
    """Who runs where: what is measured on one core, what measures it on another. None where there are too few cores to choose."""

    measured: int | None
    measuring: int | None

    @classmethod
    def of_this_machine(cls) -> "Cores":
        """The first two cores that we may use."""
        allowed = sorted(os.sched_getaffinity(0))
        return cls(allowed[0], allowed[1]) if len(allowed) > 1 else cls(None, None)

    @property
    def note(self) -> str:
        """One line on the placement."""
        if self.measured is None:
            return "one core: what is measured shares it with the load generator; requests/s and latencies mean little here"
        return f"each gateway on core {self.measured}, mock upstream and load generator on core {self.measuring}"


@contextlib.contextmanager
def _on_core(core: int | None) -> Iterator[None]:
    """What is started inside runs on that core, its children too."""
    before = os.sched_getaffinity(0)
    if core is not None:
        os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def _prefer(pid: int) -> None:
    """Lets a process that leads its session, and those it will start, go before other work where we are allowed to ask for that."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, pid, _NICE)
    with contextlib.suppress(OSError):  # sessions are scheduled as groups on desktops and many servers: there only this counts
        Path(f"/proc/{pid}/autogroup").write_text(str(_NICE), encoding="utf-8")


class Process:
    """A started command with all its descendants."""

    def __init__(self, command: Sequence[str], process: "subprocess.Popen[bytes]", log: IO[bytes], tag: str) -> None:
        self._command = command
        self._process = process
        self._log = log
        self._tag = tag

    def pids(self) -> frozenset[int]:
        """The command's processes: its descendants, and whoever detached from them but kept their environment."""
        return tree(self._process.pid) | carrying(f"{_TAG}={self._tag}")

    def has_ended(self) -> bool:
        """Whether the command itself is over."""
        return self._process.poll() is not None

    def log_tail(self) -> str:
        """The end of what it printed."""
        self._log.seek(0)
        return self._log.read().decode("utf-8", "replace")[-1500:].strip()

    def wait_until(self, is_so: Callable[[], bool], *, timeout_s: float) -> float:
        """Seconds until `is_so()`. Raises `BenchError`, with what the command printed, where it ends before or takes too long."""
        began = time.monotonic()
        while not is_so():
            if self.has_ended() or time.monotonic() - began > timeout_s:
                how = f"ended with status {self._process.returncode}" if self.has_ended() else f"was not ready after {timeout_s:.0f} s"
                raise BenchError(f"`{' '.join(self._command)[:200]}` {how}. It said: {self.log_tail() or 'nothing'}")
            time.sleep(0.02)
        return time.monotonic() - began

    def stop(self) -> None:
        """Ends all of it: SIGTERM, and SIGKILL for what is still there after 5 s."""
        for number, patience_s in ((signal.SIGTERM, 5.0), (signal.SIGKILL, 2.0)):
            pids = self.pids()
            for pid in pids:
                with contextlib.suppress(OSError):
                    os.kill(pid, number)
            until = time.monotonic() + patience_s
            while time.monotonic() < until and (not self.has_ended() or any(is_alive(pid) for pid in pids)):
                time.sleep(0.02)
        self._process.wait()
        self._log.close()


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that has ended but that nobody has asked about does not."""
    fields = _stat(pid)
    return bool(fields) and fields[0] != "Z"


@contextlib.contextmanager
def started(
    command: Sequence[str], *, env: Mapping[str, str] | None = None, core: int | None = None, preferred: bool = True
) -> Iterator[Process]:
    """Runs a command for the duration of the block, on `core` where one is given, `preferred` over other work. `env` is added to ours."""
    with tempfile.TemporaryFile() as log, contextlib.ExitStack() as stack:
        tag = os.urandom(8).hex()
        whole = {k: v for k, v in os.environ.items() if k not in _NOT_PASSED_ON} | {_TAG: tag, "SPT_NOENV": "1"} | dict(env or {})
        try:
            with _on_core(core):
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=whole, start_new_session=True)
        except OSError as error:
            raise BenchError(f"cannot start `{command[0]}`: {error.strerror}") from error
        if preferred:
            _prefer(process.pid)
        running = Process(command, process, log, tag)
        stack.callback(running.stop)
        yield running


def run_json(command: Sequence[str], given: bytes, *, core: int | None = None) -> bytes:
    """What a command that reads `given` printed. It goes before other work, too. Raises `BenchError` where it fails."""
    with _on_core(core):
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                   start_new_session=True)  # fmt: skip
    _prefer(process.pid)
    try:
        printed, complaints = process.communicate(given)
    except BaseException:
        process.kill()
        raise
    if process.returncode:
        raise BenchError(f"`{' '.join(command)}` failed: {complaints.decode('utf-8', 'replace')[-800:].strip()}")
    return printed


@dataclass(frozen=True)
class Weather:
    """How busy the machine was at a moment: jiffies stolen by the hypervisor and in all, and the load average of the last minute."""

    stolen: int
    total: int
    load: float

    @classmethod
    def now(cls) -> "Weather":
        """From /proc/stat."""
        jiffies = [int(word) for word in Path("/proc/stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:9]]
        return cls(jiffies[7], sum(jiffies), os.getloadavg()[0])

    def since(self, before: "Weather") -> dict[str, float]:
        """The weather between two moments, for reports."""
        steal = 100 * (self.stolen - before.stolen) / max(1, self.total - before.total)
        return {"load_before": round(before.load, 2), "load_after": round(self.load, 2), "steal_percent": round(steal, 2)}


def machine() -> dict[str, Any]:
    """What the numbers were taken on."""
    models = [line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
              if line.startswith("model name")]  # fmt: skip
    about = os.uname()
    return {"cpu": models[0] if models else about.machine, "cores": os.cpu_count(), "kernel": about.release}
