"""The router's state on disk: one SQLite file (WAL), one schema. Keys are here; the ledger is too.

Only tables and connections live here; what rows mean belongs to `keys` and `ledger`.
"""

from pathlib import Path

from sqlalchemy import Column, Engine, Float, Integer, MetaData, String, Table, create_engine, event

METADATA = MetaData()

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
)

LEDGER = Table(
    "ledger",
    METADATA,
    Column("id", Integer, primary_key=True),
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
)


def open_store(home: Path) -> Engine:
    """The database under `home`, made where there is none. Safe to call from several processes at once."""
    folder = home / "state"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    engine = create_engine(f"sqlite:///{folder / 'inhouse.db'}", connect_args={"timeout": 10})

    @event.listens_for(engine, "connect")
    def _pragmas(connection: object, _record: object) -> None:
        cursor = connection.cursor()  # type: ignore[attr-defined]  # a DBAPI connection
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # a committed row survives a power cut; one commit per 50 ms carries it
        cursor.close()

    METADATA.create_all(engine)
    return engine
