"""A router of its own beside the house, for tests of what the house's own does not have."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from routing import keys
from routing.store import open_store


@contextmanager
def router_of(folder: Path) -> Iterator[tuple[str, str]]:
    """A router of the models.yaml and routes.yaml in a folder, which is its home, too: its address and a key of it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    environment = {**os.environ, "INHOUSE_HOME": str(folder), "INHOUSE_PORT": str(port), "PROVIDER_KEY": "any",
                   "INHOUSE_MODELS": str(folder / "models.yaml"), "INHOUSE_ROUTES": str(folder / "routes.yaml")}  # fmt: skip
    engine = open_store(folder)
    process = subprocess.Popen([sys.executable, "-m", "routing.server"], env=environment)
    try:
        deadline = time.monotonic() + 60
        while not _is_up(port):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", keys.create(engine, "tester")
    finally:
        process.terminate()
        process.wait(20)
        engine.dispose()


def _is_up(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False
