"""Says at the end of every play how long each machine's tasks took and how long all took by the clock, and keeps it as
build/fleet/times.json. Machines work side by side: what more of them cost is the difference of the second figure, not of the first.
"""

import json
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

DOCUMENTATION = """
name: times
type: aggregate
short_description: seconds by machine, and of all by the clock
description: Prints one line after the recap and writes it as JSON beside what else the playbooks tell the controller.
"""


class CallbackModule(CallbackBase):  # the name that Ansible looks for
    """Takes a machine's time from a task's start to its result there."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "times"

    def __init__(self) -> None:
        super().__init__()
        self._began = time.monotonic()
        self._started: dict[tuple[str, str], float] = {}
        self._seconds: dict[str, float] = defaultdict(float)
        self._playbook = Path()

    def v2_playbook_on_start(self, playbook: Any) -> None:
        self._playbook = Path(playbook._basedir) / Path(playbook._file_name).name

    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        self._started[host.get_name(), task._uuid] = time.monotonic()

    def v2_runner_on_ok(self, result: Any) -> None:
        name = result._host.get_name()
        self._seconds[name] += time.monotonic() - self._started.pop((name, result._task._uuid), time.monotonic())

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        self.v2_runner_on_ok(result)

    def v2_runner_on_skipped(self, result: Any) -> None:
        self.v2_runner_on_ok(result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        self.v2_runner_on_ok(result)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        machines = {name: round(seconds, 1) for name, seconds in sorted(self._seconds.items())}
        whole = round(time.monotonic() - self._began, 1)
        each = ", ".join(f"{name} {seconds} s" for name, seconds in machines.items())
        self._display.display(f"times: {each}; all {whole} s by the clock")
        kept = self._playbook.parent.parent / "build" / "fleet" / "times.json"
        try:
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps({"playbook": self._playbook.name, "seconds": whole, "machines": machines}, indent=1) + "\n",
                            encoding="utf-8")
        except OSError as error:
            self._display.warning(f"{kept} was not written: {error}")
