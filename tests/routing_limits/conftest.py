"""The databases of these tests: a SQLite file, and a real PostgreSQL that is started for the session and thrown away after it."""

import asyncio
import importlib.util
import os
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Engine, create_engine, select

from routing import keys
from routing.budgets import budgets_of
from routing.keys import Allowed
from routing.store import ACCOUNTS, open_store


def _doors() -> ModuleType:
    """`tests/routing/conftest.py`, where routers and upstreams are made; pytest's importlib mode leaves test folders off the path."""
    spec = importlib.util.spec_from_file_location("doors", Path(__file__).parents[1] / "routing" / "conftest.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_shared = _doors()
upstream, start_shared, say = _shared.upstream, _shared.start_shared, _shared.say
chat, wait_until, tag = _shared._chat, _shared._wait_until, _shared.tag
PRICE = {"usd_per_million_input_tokens": 20, "usd_per_million_output_tokens": 20}  # 20,000 nano-USD a token


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


def _program(name: str) -> str | None:
    folders = [str(folder) for folder in sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)]
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), *folders]))


@pytest.fixture(scope="session")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a PostgreSQL of the tests' own, on a socket in a temporary folder. Without its programs: skipped, but not in CI."""
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
            server.send_signal(signal.SIGINT)  # without waiting for those who are connected
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
def write_site() -> Callable[..., None]:
    """Writes `models.yaml` and `routes.yaml`."""
    write: Callable[..., None] = _shared.write_site
    return write


@pytest.fixture(scope="session", params=["sqlite", "postgresql"])
def toll(request: pytest.FixtureRequest, start_shared: Callable[..., Any]) -> Iterator[Any]:
    """A router of three workers over each kind of database, whose models cost 20 dollars a million tokens."""
    url = "" if request.param == "sqlite" else _database(request.getfixturevalue("postgresql"))
    each = {"model": "beta-adapter", "each_caller": ["4calls/minute", "3000tokens/hour", "1concurrent"]}
    router = start_shared(workers=3, database=url, price=PRICE, model_limits=[each])
    router.extra["place"] = Place(router.home, url)
    yield router
    router.stop()  # before its database


@pytest.fixture
def make_caller(toll: Any) -> Callable[..., Any]:
    """Makes callers of the toll with budgets: (name, client)."""

    async def _make(*budgets: str, **allowed: Any) -> tuple[str, Any]:
        name = f"caller-{uuid.uuid4().hex[:8]}"
        key = await asyncio.to_thread(keys.create, toll.engine, name, allowed=Allowed(limits=budgets_of(budgets), **allowed))
        return name, _shared.Client(toll.port, key)

    return _make


@pytest.fixture
def books(toll: Any) -> Callable[..., list[tuple[int, int, int]]]:
    """(spent, held, limit) of the toll's accounts of a kind, as of one moment: all of them, or one scope's, or one unit's."""

    def _books(kind: str, scope: str = "", unit: str = "") -> list[tuple[int, int, int]]:
        asked = select(ACCOUNTS.c.spent, ACCOUNTS.c.held, ACCOUNTS.c.most).where(ACCOUNTS.c.kind == kind)
        asked = asked.where(ACCOUNTS.c.scope == scope) if scope else asked
        with toll.engine.connect() as connection:
            return [tuple(map(int, row)) for row in connection.execute(asked.where(ACCOUNTS.c.unit == unit) if unit else asked)]

    return _books


@pytest.fixture
def store(place: Place) -> Iterator[Engine]:
    """The store in it."""
    engine = place.open()
    yield engine
    engine.dispose()
