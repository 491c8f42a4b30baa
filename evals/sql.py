"""Scores SQL by what it returns: the answer and the expected statement run on the same SQLite databases, read-only and within a deadline.

Databases are scripts: `shop-1.sql`, `shop-2.sql` ... are instances of `shop`, and the results must be equal on every one, as on a single
instance a wrong statement is too often right by chance. Not here: other dialects, statements that change data.
"""

import re
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import Any

from evals.case import Answer, Case
from evals.scorers import RIGHT, Mark, ScorerError

MAX_ROWS = 10_000
_STEPS = 2000  # of SQLite's virtual machine between two looks at the clock: well under a millisecond
_FENCE = re.compile(r"\s*```(?:sql|sqlite)?\s*\n(.*?)\n?```\s*", re.DOTALL | re.IGNORECASE)
_ALLOWED = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}
_FORBIDDEN_FUNCTIONS = {"load_extension", "randomblob", "zeroblob", "random", "readfile", "writefile", "edit", "fts3_tokenizer"}
_LIMITS = {sqlite3.SQLITE_LIMIT_LENGTH: 50_000, sqlite3.SQLITE_LIMIT_SQL_LENGTH: 20_000, sqlite3.SQLITE_LIMIT_EXPR_DEPTH: 200,
           sqlite3.SQLITE_LIMIT_COMPOUND_SELECT: 50, sqlite3.SQLITE_LIMIT_ATTACHED: 0}  # fmt: skip

Result = tuple[int, list[tuple[Any, ...]]]  # columns, rows


def sql_equal(folder: Path, *, deadline_s: float) -> Callable[[Case, Answer], Mark]:
    """A scorer for cases whose `expected` is {"sql": ..., "database": NAME}; the databases are the scripts of `folder`.

    Rows are compared as a bag, in order where the expected statement orders them; columns by place, numbers to 6 digits. A statement
    that fails, writes or takes longer than `deadline_s` on one database is wrong. Raises `ScorerError` where the folder has no scripts.
    """
    if not any(folder.glob("*.sql")):
        raise ScorerError(f"no databases: {folder} has no .sql scripts; `databases` is a folder with NAME-1.sql and so on")

    @cache
    def opened(name: str) -> list[sqlite3.Connection]:
        scripts = sorted(folder.glob(f"{name}-*.sql"))
        if not scripts:
            raise ScorerError(f"no database `{name}`: there is no {folder}/{name}-*.sql")
        return [open_database(script.read_text(encoding="utf-8")) for script in scripts]

    def score(case: Case, answer: Answer) -> Mark:
        for database in opened(case.expected["database"]):
            wanted = execute(database, case.expected["sql"], deadline_s)
            try:
                found = execute(database, statement(answer.text), deadline_s)
            except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
                return Mark(0.0, f"does not run: {error}"[:300])
            if not _equal(found, wanted, ordered=_orders(case.expected["sql"])):
                return Mark(0.0, "another result")
        return RIGHT

    return score


def open_database(script: str) -> sqlite3.Connection:
    """A database in memory, made by a script of ours and from then on read-only."""
    database = sqlite3.connect(":memory:", check_same_thread=False)
    database.executescript(script)
    for limit, value in _LIMITS.items():
        database.setlimit(limit, value)
    database.execute("PRAGMA query_only = ON")
    database.set_authorizer(_authorise)
    return database


def _authorise(action: int, _one: str | None, two: str | None, _database: str | None, _trigger: str | None) -> int:
    """Reading is allowed; writing, attaching, pragmas and functions that reach out or are not repeatable are not."""
    forbidden = action not in _ALLOWED or (action == sqlite3.SQLITE_FUNCTION and (two or "").lower() in _FORBIDDEN_FUNCTIONS)
    return sqlite3.SQLITE_DENY if forbidden else sqlite3.SQLITE_OK


def statement(text: str) -> str:
    """The SQL of an answer: all of it, or what stands in the one fence that is all of it."""
    found = _FENCE.fullmatch(text)
    return (found.group(1) if found else text).strip()


def execute(database: sqlite3.Connection, sql: str, deadline_s: float) -> Result:
    """Runs one statement. Raises sqlite3's errors (`interrupted` past the deadline) and ValueError for too many rows."""
    until = time.monotonic() + deadline_s
    database.set_progress_handler(lambda: time.monotonic() > until, _STEPS)
    with closing(database.cursor()) as cursor:
        cursor.execute(sql)
        rows = cursor.fetchmany(MAX_ROWS + 1)
        if len(rows) > MAX_ROWS:
            raise ValueError(f"more than {MAX_ROWS} rows")
        if cursor.description is None:
            raise ValueError("no statement that returns rows")
        return len(cursor.description), rows


def _orders(sql: str) -> bool:
    """Whether a statement orders its rows: ORDER BY outside of all brackets."""
    depth, outside = 0, []
    for letter in sql:
        depth += (letter == "(") - (letter == ")")
        outside.append(letter if depth == 0 else " ")
    return re.search(r"\border\s+by\b", "".join(outside), re.IGNORECASE) is not None


def _equal(found: Result, wanted: Result, *, ordered: bool) -> bool:
    if found[0] != wanted[0] or len(found[1]) != len(wanted[1]):
        return False
    one, two = ([tuple(map(_plain, row)) for row in rows] for _, rows in (found, wanted))
    return one == two if ordered else Counter(one) == Counter(two)


def _plain(value: Any) -> Any:
    """Numbers to six significant digits after the point, so that sums in another order are the same; texts apart from numbers."""
    return round(float(value), 6) if isinstance(value, int | float) else ("text", value) if isinstance(value, str) else value
