"""The router's state: one schema, in a SQLite file (WAL) under the home or in the PostgreSQL that `INHOUSE_DATABASE` names.

Only tables and connections live here; what rows mean belongs to `keys`, `ledger` and their like. Migrations (Alembic) are in `migrations`.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    UniqueConstraint,
    create_engine,
    event,
    inspect,
    text,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError

METADATA = MetaData()
HEAD = "ends"  # the newest migration; a test compares it with the folder
MIGRATIONS = Path(__file__).parent / "migrations"
_LOCK = 7_220_415  # PostgreSQL's advisory lock while the schema is made
_SERIAL = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself in INTEGER keys alone


def _text(name: str, default: str = "") -> Column[str]:
    return Column(name, String, nullable=False, server_default=default)


KEYS = Table(
    "keys",
    METADATA,
    Column("id", String, primary_key=True),  # the key's first characters: enough to name it, too few to use it
    Column("hash", String, nullable=False, unique=True),  # SHA-256 of the whole key, hex
    Column("caller", String, nullable=False),
    Column("tasks", String, nullable=False),  # JSON list; ["*"] is all
    Column("models", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("expires_at", Float),
    Column("revoked_at", Float),
    _text("team"),  # empty: none
    _text("default_class"),  # the data class of a request that declares none; empty: the lowest
    _text("max_class"),  # the highest data class that the caller may send; empty: the highest
    _text("limits", "[]"),  # JSON list of what the caller may use, as in ["1usd/day", "60calls/minute"]
    Column("batch", Integer, nullable=False, server_default="0"),  # 1: served after interactive callers
)

TEAMS = Table(
    "teams",
    METADATA,
    Column("name", String, primary_key=True),
    _text("limits", "[]"),
    Column("created_at", Float, nullable=False),
)

LEDGER = Table(
    "ledger",
    METADATA,
    Column("id", _SERIAL, primary_key=True),
    Column("at", Float, nullable=False),  # Unix seconds at arrival
    Column("request_id", String, nullable=False),
    Column("attempt", Integer, nullable=False),  # from 1; 0 where no model was asked
    Column("key_id", String, nullable=False),
    Column("caller", String, nullable=False),
    Column("endpoint", String, nullable=False),
    Column("task", String, nullable=False),
    Column("model", String, nullable=False),
    Column("why", String, nullable=False),
    Column("status", Integer, nullable=False),  # 499 where the caller left
    Column("error", String, nullable=False),
    Column("prompt_tokens", Integer),
    Column("completion_tokens", Integer),
    Column("exact", Integer, nullable=False),  # 0: counted by us, as the engine did not say
    Column("ttft_ms", Float),
    Column("total_ms", Float, nullable=False),
    _text("team"),
    _text("run_id"),
    _text("data_class"),
    _text("zone"),  # where the attempt went; empty where no model was asked
    Column("cost_nanousd", BigInteger, nullable=False, server_default="0"),  # 10^-9 US dollars
    Column("gpu_ms", BigInteger, nullable=False, server_default="0"),
    _text("policy_hash"),
    _text("config_version"),
)

ACCOUNTS = Table(  # spent + held <= most, at every moment, but where somebody lowers `most`
    "accounts",
    METADATA,
    Column("id", _SERIAL, primary_key=True),
    Column("kind", String, nullable=False),  # run | caller | team | task
    Column("scope", String, nullable=False),  # the run's id, the caller's, team's or task's name
    Column("unit", String, nullable=False),
    Column("every", String, nullable=False),  # minute | hour | day | month | total
    Column("most", BigInteger, nullable=False),
    Column("spent", BigInteger, nullable=False),  # in the period that began at `since`
    Column("held", BigInteger, nullable=False),  # the sum of the account's allotments
    Column("since", BigInteger, nullable=False),  # Unix seconds; 0 for `total`
    UniqueConstraint("kind", "scope", "unit", "every"),
)

LEASES = Table(  # a worker that holds something; what it held returns when it does not renew in time
    "leases",
    METADATA,
    Column("id", String, primary_key=True),
    Column("expires_at", Float, nullable=False),  # Unix seconds by the database's clock
    Column("flushed", BigInteger, nullable=False),  # the number of the last batch that was taken in: none is taken twice
    Column("ended_at", Float),  # when its allotments were given back; the row stays for a day, as its worker may come back and ask
)

ALLOTMENTS = Table(  # what a worker holds of an account
    "allotments",
    METADATA,
    Column("lease", String, primary_key=True),
    Column("account", BigInteger, primary_key=True, autoincrement=False),
    Column("held", BigInteger, nullable=False),
)

RUNS = Table(
    "runs",
    METADATA,
    Column("id", String, primary_key=True),  # without the signature that callers have on it
    Column("parent", String, nullable=False),  # empty for a run of its own
    Column("caller", String, nullable=False),
    Column("state", String, nullable=False),  # open | stopped
    Column("reason", String, nullable=False),  # why it was stopped
    Column("stopped_by", String, nullable=False),  # the run that was stopped, this one or one above it
    Column("limits", String, nullable=False),  # JSON, as asked for
    Column("created_at", Float, nullable=False),
    Column("deadline", Float),  # Unix seconds; the earliest of its own and those above it
    Column("depth", Integer, nullable=False),  # generations that may still come below it
    Column("fanout", Integer, nullable=False),  # children that it may have
    Column("data_class", String, nullable=False),  # of a run without parent: the highest class seen in it and all below it
    Column("raised", Integer, nullable=False),  # how often a person has let it go on
    Column("ended_at", Float),  # Unix seconds, where it was stopped
    Index("runs_parent", "parent"),
)

SECRETS = Table("secrets", METADATA, Column("name", String, primary_key=True), Column("value", String, nullable=False))

VERSIONS = Table(  # one row for each thing that workers keep in memory; counted up with every change, and polled
    "versions",
    METADATA,
    Column("name", String, primary_key=True),
    Column("version", BigInteger, nullable=False, server_default="0"),
)


def open_store(home: Path, url: str | None = None) -> Engine:
    """The database of `url`, of `INHOUSE_DATABASE`, or under `home`; made where there is none, brought up to date where it is older.

    Safe to call from several processes at once.
    """
    url = url or os.environ.get("INHOUSE_DATABASE", "")
    engine = _postgresql(url) if url else _sqlite(home / "state")
    with engine.connect() as connection:
        version = _version(connection)
    if version != HEAD:
        _migrate(engine)
    return engine


def _postgresql(url: str) -> Engine:
    scheme, _, rest = url.partition("://")
    if scheme not in ("postgresql", "postgres") or not rest:
        raise ValueError(f"INHOUSE_DATABASE is `{scheme}://...`; it takes postgresql://user:password@host:port/name, or nothing for SQLite")
    return create_engine(f"postgresql+psycopg://{rest}", pool_size=4, pool_pre_ping=True, connect_args={"connect_timeout": 10})


def _sqlite(folder: Path) -> Engine:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = create_engine(f"sqlite:///{folder / 'inhouse.db'}", connect_args={"timeout": 10})

    @event.listens_for(engine, "connect")
    def _pragmas(connection: Any, _record: object) -> None:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # a committed row survives a power cut; one commit per 50 ms carries it
        cursor.close()

    return engine


@contextmanager
def locked(engine: Engine) -> Iterator[Connection]:
    """A transaction that writes: SQLite's write lock is taken at once, not at the first write, where it would fail instead of waiting.

    On PostgreSQL an ordinary transaction.
    """
    with engine.begin() as connection:
        if engine.dialect.name == "sqlite":
            direct(connection, "BEGIN IMMEDIATE")
        yield connection


def direct(connection: Connection, sql: str, values: Sequence[Any] = ()) -> Any:
    """A statement with `?` for its values, straight to the driver; returns the driver's cursor. Raises what SQLAlchemy would.

    For what workers do 20 times a second: SQLAlchemy's own way costs 60 us more a statement, while requests wait for the interpreter.
    """
    dialect, driver = connection.dialect, connection.connection.driver_connection
    assert dialect.dbapi is not None and driver is not None, "it is connected"
    try:
        return driver.execute(sql if dialect.paramstyle == "qmark" else sql.replace("?", "%s"), values)
    except dialect.dbapi.Error as error:
        raise DBAPIError.instance(sql, None, error, dialect.dbapi.Error, hide_parameters=True, dialect=dialect) from error


@contextmanager
def changing(engine: Engine, name: str) -> Iterator[Connection]:
    """A transaction that changes what workers keep in memory under this name of `VERSIONS`: they see that it did."""
    with locked(engine) as connection:
        yield connection
        insert_missing(connection, VERSIONS, [{"name": name, "version": 0}])
        connection.execute(update(VERSIONS).where(VERSIONS.c.name == name).values(version=VERSIONS.c.version + 1))


def insert_missing(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Inserts those of the rows that are not there by any unique key; the others stay as they are."""
    new = (sqlite if connection.dialect.name == "sqlite" else postgresql).insert(table)
    connection.execute(new.on_conflict_do_nothing(), rows)


def _version(connection: Connection) -> str | None:
    """The newest migration that the database has seen; None for an empty one, and for one from before there were migrations."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(text("SELECT version_num FROM alembic_version")).scalar_one_or_none()
    return None if found is None else str(found)


def _migrate(engine: Engine) -> None:
    """Runs what migrations are missing, under a lock that makes other processes wait and then find nothing left to do."""
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with locked(engine) as connection:
        if engine.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
        if _version(connection) != HEAD:
            config.attributes["connection"] = connection
            command.upgrade(config, "head")
