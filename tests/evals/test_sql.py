"""Statements that a model writes are executed: they can read what they are given, for a while, and nothing else."""

import sqlite3

import pytest

from evals.case import Answer, Case
from evals.sql import execute, open_database, sql_equal

SCRIPT = "CREATE TABLE t (a INTEGER, b TEXT); INSERT INTO t VALUES (1, 'x'), (2, 'y'), (2, 'y'), (3, NULL);"


@pytest.fixture
def database():
    opened = open_database(SCRIPT)
    yield opened
    opened.close()


@pytest.mark.parametrize(
    "statement",
    [
        "INSERT INTO t VALUES (4, 'z')",
        "DELETE FROM t",
        "DROP TABLE t",
        "CREATE TABLE u (a)",
        "CREATE TEMP TABLE u (a)",
        "ATTACH '{file}' AS other",
        "VACUUM INTO '{file}'",
        "PRAGMA query_only = OFF",
        "PRAGMA table_info(t)",
        "SELECT load_extension('{file}')",
        "SELECT writefile('{file}', 'x')",
        "SELECT random()",
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n",
        "SELECT zeroblob(900000000)",
        "BEGIN",
        "",
    ],
)
def test_a_statement_can_only_read_and_not_for_long(database, statement, tmp_path):
    """Writing, attaching, pragmas, files, extensions, chance and endless loops all end in an error, and the data is as it was."""
    file = tmp_path / "stolen"
    with pytest.raises((sqlite3.Error, ValueError)):
        execute(database, statement.format(file=file), 0.3)
    assert not file.exists()
    assert execute(database, "SELECT count(*) FROM t", 5) == (1, [(4,)])


def test_an_answer_right_on_one_instance_alone_is_wrong(tmp_path):
    """On the first database both statements return the same; the second tells them apart."""
    for number, more in (("1", ""), ("2", "INSERT INTO t VALUES (9, 'y');")):
        (tmp_path / f"d-{number}.sql").write_text(SCRIPT + more)
    case = Case("c", [], {"sql": "SELECT DISTINCT b FROM t WHERE a = 2", "database": "d"})
    lucky = "SELECT DISTINCT b FROM t WHERE b = 'y' AND a < 9 OR a = 9 AND 'y' <> 'y'"
    luckier = "SELECT b FROM t WHERE b = 'y' GROUP BY a"
    score = sql_equal(tmp_path, deadline_s=5)
    assert score(case, Answer(case_id="c", text=lucky)).value == 1
    assert score(case, Answer(case_id="c", text=luckier)).value == 0


def test_rows_are_a_bag_unless_the_expected_statement_orders_them(tmp_path):
    """Order counts only where it is asked for; how often a row comes always counts; an ORDER BY inside brackets asks for nothing."""
    (tmp_path / "d-1.sql").write_text(SCRIPT)
    score = sql_equal(tmp_path, deadline_s=5)

    def value(expected, said):
        return score(Case("c", [], {"sql": expected, "database": "d"}), Answer(case_id="c", text=said)).value

    assert value("SELECT a FROM t", "SELECT a FROM t ORDER BY a DESC") == 1
    assert value("SELECT a FROM t ORDER BY a", "SELECT a FROM t ORDER BY a DESC") == 0
    assert value("SELECT a FROM t", "SELECT DISTINCT a FROM t") == 0
    assert value("SELECT a FROM (SELECT a FROM t ORDER BY a)", "SELECT a FROM t ORDER BY a DESC") == 1
    assert value("SELECT avg(a) FROM t", "SELECT sum(a) * 1.0 / count(*) FROM t") == 1
    assert value("SELECT a FROM t WHERE a = 1", "SELECT '1'") == 0
    assert value("SELECT b FROM t WHERE a = 3", "SELECT NULL") == 1
