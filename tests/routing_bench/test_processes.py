"""Processes under test: their CPU time is charged to them, and none of them stays."""

import os
import sys
import time
from pathlib import Path

import pytest

from routing.bench.processes import BenchError, Cores, Weather, cpu_seconds, is_alive, peak_rss_mib, pss_mib, rss_mib, started

BURN = """
import subprocess, sys, time
if len(sys.argv) > 1:
    subprocess.Popen([sys.executable, __file__], start_new_session=True)
while time.process_time() < 0.4:
    pass
print("done", flush=True)
time.sleep(60)
"""


def test_a_tree_s_cpu_time_is_its_own(tmp_path: Path) -> None:
    """Two processes that use 0.4 s of CPU each, one of them detached, are charged about 0.8 s, and idle ones nothing more."""
    script = tmp_path / "burn.py"
    script.write_text(BURN)
    with started([sys.executable, str(script), "twice"]) as process:
        process.wait_until(lambda: process.log_tail().count("done") == 2, timeout_s=30)
        pids = process.pids()
        used = cpu_seconds(pids)
        assert len(pids) == 2
        assert 0.6 < used < 1.6
        time.sleep(0.2)
        assert cpu_seconds(pids) - used < 0.1
        assert 1 < pss_mib(pids) <= rss_mib(pids) <= peak_rss_mib(pids) < 200
    assert not any(is_alive(pid) for pid in pids)


def test_a_command_that_ends_early_says_why() -> None:
    """Waiting for a process that has failed ends at once, with its own words."""
    with started([sys.executable, "-c", "raise SystemExit('no such model')"]) as process, pytest.raises(BenchError, match="no such model"):
        process.wait_until(lambda: False, timeout_s=30)


def test_an_unknown_command_is_one_line() -> None:
    """A program that does not exist is named."""
    with pytest.raises(BenchError, match="no-such-program"), started(["no-such-program"]):
        pass


def test_processes_run_where_they_are_put() -> None:
    """What is started on a core runs on that core, and we stay where we were."""
    cores = Cores.of_this_machine()
    if cores.measured is None:
        pytest.skip("one core")
    ours = os.sched_getaffinity(0)
    script = "import os, time; print(os.sched_getaffinity(0), flush=True); time.sleep(30)"
    with started([sys.executable, "-c", script], core=cores.measured) as process:
        process.wait_until(lambda: "}" in process.log_tail(), timeout_s=30)
        assert process.log_tail() == str({cores.measured})
    assert os.sched_getaffinity(0) == ours


def test_the_weather_is_told() -> None:
    """Load and steal of a span are there and sane."""
    weather = Weather.now().since(Weather.now())
    assert weather["load_before"] >= 0
    assert 0 <= weather["steal_percent"] <= 100
