"""The schema: one for both databases, made once by however many processes, and an older one brought up to date with its rows."""

import sqlite3
import subprocess
import sys
from contextlib import closing

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from msgspec.structs import replace
from sqlalchemy import select, text

from routing.ledger import Ledger, Row
from routing.store import HEAD, LEDGER, METADATA, MIGRATIONS, locked, open_store

OLD = """
CREATE TABLE keys (id VARCHAR NOT NULL, hash VARCHAR NOT NULL, caller VARCHAR NOT NULL, tasks VARCHAR NOT NULL, models VARCHAR NOT NULL,
  created_at FLOAT NOT NULL, expires_at FLOAT, revoked_at FLOAT, PRIMARY KEY (id), UNIQUE (hash));
CREATE TABLE ledger (id INTEGER NOT NULL, at FLOAT NOT NULL, request_id VARCHAR NOT NULL, attempt INTEGER NOT NULL,
  key_id VARCHAR NOT NULL, caller VARCHAR NOT NULL, endpoint VARCHAR NOT NULL, task VARCHAR NOT NULL, model VARCHAR NOT NULL,
  why VARCHAR NOT NULL, status INTEGER NOT NULL, error VARCHAR NOT NULL, prompt_tokens INTEGER, completion_tokens INTEGER,
  exact INTEGER NOT NULL, ttft_ms FLOAT, total_ms FLOAT NOT NULL, PRIMARY KEY (id));
INSERT INTO keys VALUES ('ihk_old', 'aa', 'ann', '["*"]', '["*"]', 1.0, NULL, NULL);
INSERT INTO ledger VALUES (1, 1.0, 'r', 1, 'ihk_old', 'ann', '/v1', 't', 'm', 'w', 200, '', 7, 3, 1, 1.5, 2.5);
"""
OPEN = "import os; from pathlib import Path; from routing.store import open_store; open_store(Path(os.environ['INHOUSE_HOME']))"
ROW = Row(1.0, "r", 1, "k", "c", "/v1", "t", "m", "w", 200, "", 7, None, True, 1.5, 2.5, team="team", run_id="run", data_class="pii",
          zone="onprem", cost_nanousd=1 << 40, gpu_ms=12, policy_hash="p", config_version="v")


def differences(engine):
    """What the migrated database has that the tables of `store` don't say, and the reverse."""
    with engine.connect() as connection:
        return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), METADATA)


def test_the_migrations_make_what_the_tables_say(store):
    """The folder's newest migration is the one that `store` expects, and its result is the schema as declared."""
    assert ScriptDirectory(str(MIGRATIONS)).get_heads() == [HEAD]
    assert differences(store) == []


def test_a_database_from_before_migrations_is_brought_up_to_date(tmp_path):
    """Keys and rows of the first release are still there, with the defaults in the new columns."""
    (tmp_path / "state").mkdir()
    with closing(sqlite3.connect(tmp_path / "state" / "inhouse.db")) as connection:
        connection.executescript(OLD)
    engine = open_store(tmp_path)
    assert differences(engine) == []
    with engine.connect() as connection:
        assert connection.execute(text("SELECT caller, team, limits FROM keys")).one() == ("ann", "", "[]")
        assert connection.execute(text("SELECT request_id, cost_nanousd, zone FROM ledger")).one() == ("r", 0, "")
    engine.dispose()


def test_many_processes_may_make_one_schema(place):
    """Four processes that start at once on an empty database all find it made."""
    starts = [subprocess.Popen([sys.executable, "-c", OPEN], env=place.environment, stderr=subprocess.PIPE) for _ in range(4)]
    told = [start.communicate(timeout=120)[1].decode() for start in starts]
    assert [start.returncode for start in starts] == [0] * 4, told
    engine = place.open()
    assert differences(engine) == []
    engine.dispose()


def test_a_failed_migration_leaves_nothing(store):
    """What is written under the lock is there whole or not at all."""

    def _half(connection):
        connection.execute(text("CREATE TABLE half (id INTEGER)"))
        raise OSError("the power went")

    with pytest.raises(OSError, match="power"), locked(store) as connection:
        _half(connection)
    assert differences(store) == []


def test_ledger_rows_are_the_same_in_both(store):
    """All columns come back from either database, in batches of any size, in order; a row that no database holds is given up alone."""
    ledger = Ledger(store)
    rows = [replace(ROW, request_id=f"r{i}") for i in range(1300)]
    for i, row in enumerate(rows):
        ledger.append(row)
        if i == 700:
            ledger.append(replace(row, prompt_tokens=1 << 70))
            ledger.append(replace(row, error="\0\ud800"))
    ledger.close()
    with store.connect() as connection:
        found = connection.execute(select(LEDGER).order_by(LEDGER.c.id)).mappings().all()
    got = [Row(**{name: value for name, value in row.items() if name != "id"}) for row in found]
    assert [replace(row, exact=bool(row.exact)) for row in got] == rows


def test_a_wrong_address_is_told(tmp_path):
    """An address of something else is refused with what would be right."""
    with pytest.raises(ValueError, match=r"it takes postgresql://"):
        open_store(tmp_path, "mysql://somewhere/x")
