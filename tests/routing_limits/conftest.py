"""The databases of these tests: a SQLite file, and a real PostgreSQL that is started for the session and thrown away after it."""

import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import settings
from sqlalchemy import Engine, create_engine

from routing.store import open_store

settings.register_profile("house", deadline=None, max_examples=60)  # a busy machine is no failure
settings.load_profile("house")


class Place(NamedTuple):
    """A database by what a process needs to open it: a home, and a URL where it is not in the home."""

    home: Path
    url: str

    def open(self) -> Engine:
        """The store in it."""
        return open_store(self.home, self.url or None)

    @property
    def environment(self) -> dict[str, str]:
        """For a process of its own."""
        return {**os.environ, "INHOUSE_HOME": str(self.home), "INHOUSE_DATABASE": self.url}


@pytest.fixture
def wait_until() -> Callable[..., Any]:
    """Waits for a claim to become true and returns its value."""

    def _wait(claim: Callable[[], Any], within_s: float = 20.0) -> Any:
        deadline = time.monotonic() + within_s
        while not (value := claim()):
            assert time.monotonic() < deadline, f"not so within {within_s} s"
            time.sleep(0.02)
        return value

    return _wait


def _program(name: str) -> str | None:
    folders = [str(folder) for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *folders]))


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL of this session's own, on a socket in a temporary folder. Without its programs: skipped, but not in CI."""
    initdb, postgres = _program("initdb"), _program("postgres")
    if initdb is None or postgres is None:
        if os.environ.get("CI") == "true":
            pytest.fail("no PostgreSQL on this machine: CI must have one (apt-get install postgresql)")
        pytest.skip("NO POSTGRESQL on this machine: budgets, keys and ledger are NOT tested on it (apt-get install postgresql)")
    folder = Path("/tmp") / f"inhouse-pg-{uuid.uuid4().hex[:8]}"  # a socket's path has room for 107 bytes
    folder.mkdir(mode=0o700)
    user: dict[str, Any] = {}
    if os.geteuid() == 0:  # it refuses to run as root
        shutil.chown(folder, "nobody", "nogroup")
        user = {"user": "nobody", "group": "nogroup", "extra_groups": []}
    data = folder / "data"
    server = None
    try:
        subprocess.run([initdb, "-D", data, "-U", "inhouse", "-A", "trust", "-E", "UTF8", "--locale=C", "-N"], check=True, cwd=folder,
                       stdout=subprocess.DEVNULL, **user)  # fmt: skip
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen([postgres, "-D", data, "-k", folder, "-c", "listen_addresses=", "-c", "fsync=off"], cwd=folder,
                                      stdout=log, stderr=log, **user)  # fmt: skip
        url = f"postgresql://inhouse@/postgres?host={folder}"
        _await(url, server, folder / "log")
        yield url
    finally:
        if server is not None:
            server.terminate()
            server.wait(20)
        shutil.rmtree(folder, ignore_errors=True)


def _await(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    import psycopg

    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(url).close()
            return
        except psycopg.OperationalError:
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)


def _database(url: str) -> str:
    name = f"d{uuid.uuid4().hex}"
    engine = create_engine(url.replace("postgresql://", "postgresql+psycopg://"), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return url.replace("/postgres?", f"/{name}?")


@pytest.fixture(params=["sqlite", "postgresql"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    """An empty database of each kind."""
    return Place(tmp_path, "" if request.param == "sqlite" else _database(request.getfixturevalue("postgresql")))


@pytest.fixture
def store(place: Place) -> Iterator[Engine]:
    """The store in it."""
    engine = place.open()
    yield engine
    engine.dispose()
