"""The house as a user starts it: `inhouse up` in a folder of its own, on free ports; everything real."""

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from routing.config import SHIPPED


@dataclass(frozen=True)
class House:
    """A running house."""

    home: Path
    port: int
    models_port: int
    mlflow_port: int
    said: str

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def routes(self) -> Path:
        """Its own copy of the shipped routes."""
        return self.home / "routes.yaml"

    @property
    def key(self) -> str:
        return (self.home / "key").read_text().strip()

    def command(self, *words: str, **kwargs: Any) -> subprocess.CompletedProcess[str]:
        """Runs `inhouse ...` against this house."""
        return subprocess.run(["inhouse", *words], env=self.environment, capture_output=True, text=True, timeout=300, check=False, **kwargs)

    @property
    def environment(self) -> dict[str, str]:
        bin_folder = str(Path(sys.executable).parent)
        return {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}", "INHOUSE_HOME": str(self.home), "INHOUSE_PORT": str(self.port),
                "INHOUSE_MODELS_PORT": str(self.models_port), "INHOUSE_MLFLOW_PORT": str(self.mlflow_port), "INHOUSE_WORKERS": "2",
                "INHOUSE_ROUTES": str(self.routes)}  # fmt: skip

    def rows(self, sql: str) -> list[tuple[Any, ...]]:
        """Rows of the ledger."""
        with sqlite3.connect(self.home / "state" / "inhouse.db") as connection:
            return connection.execute(sql).fetchall()

    @staticmethod
    def eventually(claim: Callable[[], bool], seconds: float) -> bool:
        """Whether a claim comes true within some seconds."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if claim():
                return True
            time.sleep(0.05)
        return claim()

    def gauge(self, model: str, name: str) -> float:
        """One of vLLM's own metrics, added up over labels."""
        text = urllib.request.urlopen(f"http://127.0.0.1:{self.models_port}/models/{model}/metrics", timeout=10).read().decode()
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith((f"{name}{{", f"{name} ")))

    def pids(self, word: str) -> list[int]:
        """The pids of this house's processes whose name holds a word."""
        status = json.loads(self.command("status", "--json").stdout)
        return [process["pid"] for process in status["node"]["processes"] if word in process["name"]]


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Two workers of the router, Ray and both demo models; started once for all tests that ask."""
    unstarted = House(tmp_path_factory.mktemp("house"), free_port(), free_port(), free_port(), "")
    shutil.copy(SHIPPED, unstarted.routes)
    up = unstarted.command("up")
    assert up.returncode == 0, up.stdout + up.stderr
    try:
        yield House(unstarted.home, unstarted.port, unstarted.models_port, unstarted.mlflow_port, up.stdout)
    finally:
        unstarted.command("down")


@contextmanager
def _router_in(folder: Path) -> Iterator[str]:
    port = free_port()
    environment = {**os.environ, "INHOUSE_HOME": str(folder), "INHOUSE_PORT": str(port), "INHOUSE_DATABASE": "", "PROVIDER_KEY": "any",
                   "INHOUSE_MODELS": str(folder / "models.yaml"), "INHOUSE_ROUTES": str(folder / "routes.yaml")}  # fmt: skip
    process = subprocess.Popen([sys.executable, "-m", "routing.server"], env=environment)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 60
        while not _is_up(url):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        yield url
    finally:
        process.terminate()
        process.wait(20)


def _is_up(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/healthz", timeout=2):
            return True
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


@pytest.fixture(scope="session")
def router_in() -> Callable[[Path], AbstractContextManager[str]]:
    """Runs a router beside the house's, on the models.yaml and routes.yaml in a folder, which is its home; gives its address."""
    return _router_in
