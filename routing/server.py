"""The router's processes: uvicorn supervises N workers on one socket, each with one event loop in one thread.

uvicorn was chosen by measurement: servers whose network threads are not Python's (granian) hand every chunk from thread to thread, and
waiting for the interpreter's lock cost more than all of our own work. What comes in is `connection`'s, what a worker holds `worker`'s.
"""

import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from uvicorn import Config
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from routing.config import ConfigError
from routing.settings import Settings
from routing.successor import Place

log = logging.getLogger("inhouse.router")
_SHUTDOWN_S = 30
_MOST_SILENT = 30  # seconds
_SETTLED_S = 20.0  # workers that can't start within this time of the first start never will


async def lifespan(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """A worker's start and stop, as ASGI tells of them; requests don't come this way."""
    from routing.worker import Worker

    assert scope["type"] == "lifespan", "requests are read by `connection`"
    log_to_stderr()
    await receive()
    try:
        worker = Worker(Settings.from_environment())
        scope["state"]["worker"] = worker
        await worker.start()
    except Exception as error:
        log.exception("the router's worker can't start")
        await send({"type": "lifespan.startup.failed", "message": str(error)})
        return
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await worker.stop()
    await send({"type": "lifespan.shutdown.complete"})


class Supervisor(Multiprocess):
    """uvicorn's supervisor: a worker that dies or hangs is replaced. SIGHUP restarts nothing: all workers read their files again.

    uvicorn ends all workers when one can't start. At the first start so do we; once the router has settled, as where a wrong file is on
    the disk, it is tried again and the others go on. SIGUSR2 starts a successor on our socket, which stops us once it is ready.
    """

    was_told_to_stop = False

    def __init__(self, config: Config, place: Place) -> None:
        super().__init__(config, [config.bind_socket()])
        self._place = place
        self._is_in_place = False
        self._successor: subprocess.Popen[bytes] | None = None
        self._settled_at = time.monotonic() + _SETTLED_S
        self._silent: dict[Process, int] = {}  # how often a worker that lives has not answered

    def keep_subprocess_alive(self) -> None:
        if not self._is_in_place and all(process.is_ready(1) for process in self.processes):
            self._is_in_place = True
            self._place.take()
        if self._successor is not None and self._successor.poll() is not None:
            log.error("the successor did not start (%d), this router goes on; its reason is above", self._successor.returncode)
            self._successor = None
        for i, process in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if not self._is_well(process):
                process.kill()
                process.join()
                if process.exitcode == STARTUP_FAILURE and time.monotonic() < self._settled_at:
                    self.should_exit.set()
                    return
                log.error("router: a worker ended (%s); starting another", process.exitcode)
                time.sleep(1 if process.exitcode == STARTUP_FAILURE else 0)
                self.processes[i] = Process(self.config, self.sockets)
                self.processes[i].start()

    def _is_well(self, process: Process) -> bool:
        """Whether a worker lives and answers, or has been silent for less than half a minute: one that starts is silent for a while."""
        if not process.process.is_alive():
            return False
        self._silent = {one: n for one, n in self._silent.items() if one in self.processes}
        self._silent[process] = 0 if process.ping(1) else self._silent.get(process, 0) + 1
        return self._silent[process] < _MOST_SILENT

    def handle_int(self) -> None:
        self.was_told_to_stop = True
        super().handle_int()

    def handle_term(self) -> None:
        self.was_told_to_stop = True
        super().handle_term()

    def handle_usr2(self) -> None:
        if self._successor is not None:  # it has not come up, or we would have been stopped
            self._successor.terminate()
            self._successor.wait()
        self._successor = self._place.hand_over(self.sockets[0].fileno())

    def handle_hup(self) -> None:
        for process in self.processes:
            if process.pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGHUP)


def run(settings: Settings, place: Place) -> int:
    """Runs the router until SIGTERM or SIGINT; the exit code, 1 where it can't start. Open streams get time to end."""
    os.environ.update(settings.environment())
    try:
        settings.site()  # a wrong file is told before any process is started
    except ConfigError as error:
        log.error("the router does not start: %s", error)
        return 1
    if place.predecessor is None:
        _fresh_metrics(settings.home / "run" / "metrics")
    config = Config(
        "routing.server:lifespan", host=settings.host, port=settings.port, fd=place.listener, workers=settings.workers,
        http="routing.connection:Connection",
        ws="none", loop="uvloop", lifespan="on", interface="asgi3", proxy_headers=False, access_log=False, log_config=None,
        log_level="warning", backlog=4096, timeout_graceful_shutdown=_SHUTDOWN_S,
    )  # fmt: skip
    supervisor = Supervisor(config, place)
    supervisor.run()
    return 0 if supervisor.was_told_to_stop else 1


def _fresh_metrics(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.db"):
        file.unlink(missing_ok=True)


def log_to_stderr() -> None:
    """One line for each thing worth telling."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)


if __name__ == "__main__":
    log_to_stderr()
    sys.exit(run(Settings.from_environment(), Place.from_arguments(sys.argv[1:])))
