"""`inhouse bench start`: from `inhouse up` in an empty home to the first routed answer, what it weighs, and whether `down` ends it all."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from routing.bench.driver import PATH, chat, post
from routing.bench.processes import BenchError, Weather, carrying, free_port, machine, pss_mib
from routing.bench.report import Grid, Range, Report

_GONE_WITHIN_S = 20.0


def run(say: Callable[[str], None], *, rounds: int, model: str, timeout_s: float) -> Report:
    """Starts everything `rounds` times, each in a fresh home. Raises `BenchError` where it does not start."""
    before = Weather.now()
    seconds, resident, failures = [], [], []
    for i in range(rounds):
        say(f"start {i + 1} of {rounds}")
        took_s, mib, left = _once(model, timeout_s)
        seconds.append(took_s)
        resident.append(mib)
        failures += [f"`inhouse down` left processes behind: {left}"] if left else []
    weather = Weather.now().since(before)
    ranges = {"first_answer_s": Range.of(seconds), "resident_mib": Range.of(resident)}
    notes = [f"{rounds} starts; load average {weather['load_before']} before, {weather['load_after']} after; resident: proportional set "
             "size of all processes of that home"]  # fmt: skip
    grid = Grid("start", ["", "first answer s", "resident MiB"], [["inhouse up", *ranges.values()]])
    return Report("start", {"machine": {**machine(), **weather}, **ranges}, [grid], notes, failures, {"model": model, "rounds": rounds})


def _once(model: str, timeout_s: float) -> tuple[float, float, list[str]]:
    """Seconds to the first answer, MiB resident then, and what `down` left running."""
    with TemporaryDirectory(prefix="inhouse-bench-", ignore_cleanup_errors=True) as folder:
        home, port = Path(folder) / "home", free_port()
        env = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        env |= {"INHOUSE_HOME": str(home), "INHOUSE_PORT": str(port), "INHOUSE_MODELS_PORT": str(free_port()), "SPT_NOENV": "1",
                "INHOUSE_MLFLOW_PORT": str(free_port())}  # fmt: skip
        inhouse = [sys.executable, "-m", "inhouse"]
        log = Path(folder) / "up.log"
        began = time.monotonic()
        with log.open("wb") as file:
            up = subprocess.Popen([*inhouse, "up", "--home", str(home), "--port", str(port)], env=env, stdout=file, stderr=file)
        try:
            while not _answers(home, port, model):
                if up.poll() not in (None, 0) or time.monotonic() - began > timeout_s:
                    waited_s = time.monotonic() - began
                    raise BenchError(f"no routed answer after {waited_s:.0f} s. `inhouse up` said: {log.read_text()[-1500:]}")
                time.sleep(0.05)
            took_s = time.monotonic() - began
            up.wait(timeout=60)
            resident = pss_mib(carrying(f"INHOUSE_HOME={home}"))
        finally:
            subprocess.run([*inhouse, "down", "--home", str(home)], env=env, capture_output=True, timeout=120, check=False)
            if up.poll() is None:
                up.terminate()
                up.wait()
        return took_s, resident, _left(home)


def _answers(home: Path, port: int, model: str) -> bool:
    with suppress(OSError):
        key = (home / "key").read_text(encoding="utf-8").strip()
        return post(port, PATH, chat(model), {"authorization": f"Bearer {key}"})[0] == 200
    return False


def _left(home: Path) -> list[str]:
    """Processes of that home that do not end by themselves within seconds."""
    until = time.monotonic() + _GONE_WITHIN_S
    while (pids := carrying(f"INHOUSE_HOME={home}")) and time.monotonic() < until:
        time.sleep(0.2)
    names = []
    for pid in pids:
        with suppress(OSError):
            names.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")[:80])
    return names
