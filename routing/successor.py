"""Changing the router for another release or other settings without closing its door: the successor answers on the same socket.

SIGUSR2 starts one, of the release that `program` leads to by then. When all its workers are ready it becomes systemd's main process and
tells its predecessor to stop, which lets its open streams end. One that does not come up changes nothing. Opens no socket itself.
"""

import argparse
import logging
import os
import signal
import subprocess
import sys
from typing import NamedTuple

log = logging.getLogger("inhouse.router")
_SYSTEMDS_FIRST = 3  # sd_listen_fds(3)


class Place(NamedTuple):
    """Where a router comes in: the program that starts its successor, the listening socket and the predecessor it was given, if any."""

    program: str
    listener: int | None
    predecessor: int | None

    @classmethod
    def from_arguments(cls, arguments: list[str]) -> "Place":
        """From the command line; without `--listener` the socket that systemd holds for this process, or none."""
        parser = argparse.ArgumentParser(prog="python -m routing.server", description="Run the router.")
        parser.add_argument("--program", default=sys.executable, help="the Python that a successor is started with")
        parser.add_argument("--listener", type=int, help="a listening socket, from a predecessor")
        parser.add_argument("--predecessor", type=int, help="whom to stop when this one is ready")
        asked = parser.parse_args(arguments)
        held = os.environ.get("LISTEN_PID") == str(os.getpid())
        return cls(asked.program, asked.listener or (_SYSTEMDS_FIRST if held else None), asked.predecessor)

    def take(self) -> None:
        """All workers are ready: systemd and the predecessor are told."""
        if "NOTIFY_SOCKET" in os.environ:
            subprocess.run(["systemd-notify", "READY=1", f"MAINPID={os.getpid()}", f"STATUS=runs in {sys.prefix}"], check=False)
        if self.predecessor is not None:
            os.kill(self.predecessor, signal.SIGTERM)

    def hand_over(self, listener: int) -> "subprocess.Popen[bytes]":
        """Starts the successor."""
        own = [f"--program={self.program}", f"--listener={listener}", f"--predecessor={os.getpid()}"]
        log.info("a successor is started with %s", self.program)
        return subprocess.Popen([self.program, "-m", "routing.server", *own], pass_fds=(listener,))
