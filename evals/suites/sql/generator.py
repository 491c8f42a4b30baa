"""Makes questions about small databases with the statement that answers each, and the databases. Pure: the same rng gives the same case.

`python -m evals.suites.sql.generator` writes databases/NAME-1.sql and so on: every database twice with other rows, so that a statement that
is right by chance on one is found out on the other. Not covered: window functions, dialects other than SQLite's.
"""

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
WORDS = yaml.safe_load((FOLDER / "words.yaml").read_text(encoding="utf-8"))
VALUES = WORDS["values"]
_NUMBER = "INTEGER NOT NULL"
_TYPES = {
    "serial": "INTEGER PRIMARY KEY",
    "ref": _NUMBER,
    "count": _NUMBER,
    "year": _NUMBER,
    "km": _NUMBER,
    "price": "REAL NOT NULL",
    "maybe": "TEXT",
}
_LOOKS = ("Red", "Blue", "Old", "Small", "Grand")
_THINGS = ("River", "Lamp", "House", "Garden", "Clock", "Road")


def case(rng: random.Random, *, unseen: bool = False) -> dict[str, Any]:
    """One question below its schema, and the statement."""
    at = rng.randrange(len(WORDS["questions"]))
    question = WORDS["questions"][at]
    slots = _slots(rng)
    ask = rng.choice(question["unseen" if unseen else "say"]).format(**slots)
    sql = question["sql"].format(**slots)
    return {
        "prompt": f"{schema(question['db'])}\nQuestion: {ask[0].upper()}{ask[1:]}",
        "completion": sql,
        "expected": {"sql": sql, "database": question["db"]},
        "slice": "unseen-phrasing" if unseen else question["kind"],
        "cluster": f"{question['db']}-{question['kind']}-{at}",
    }


def _slots(rng: random.Random) -> dict[str, Any]:
    return {
        "city": rng.choice(VALUES["cities"]),
        "category": rng.choice(VALUES["categories"]),
        "status": rng.choice(VALUES["statuses"]),
        "genre": rng.choice(VALUES["genres"]),
        "field": rng.choice(VALUES["fields"]),
        "date": f"{rng.randint(2021, 2024)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}",
        "year": rng.randint(1960, 2015),
        "amount": rng.randint(5, 80),
        "km": rng.randint(100, 700),
        "k": rng.randint(2, 5),
    }


def schema(database: str) -> str:
    """The CREATE TABLE statements of a database, one a line."""
    return "\n".join(
        f"CREATE TABLE {table} ({', '.join(_column(name, kind) for name, kind in made['columns'].items())});"
        for table, made in WORDS["databases"][database].items()
    )


def _column(name: str, kind: str) -> str:
    word, _, other = kind.partition(" ")
    points_to = f" REFERENCES {other}(id)" if word == "ref" else ""
    return f"{name} {_TYPES.get(word, 'TEXT NOT NULL')}{points_to}"


def databases() -> Iterator[tuple[str, str]]:
    """(file name, script) of every instance of every database."""
    for database in WORDS["databases"]:
        for instance in range(1, WORDS["instances"] + 1):
            yield f"{database}-{instance}.sql", "\n".join([schema(database), *_inserts(database, instance)]) + "\n"


def _inserts(database: str, instance: int) -> Iterator[str]:
    rng = random.Random(f"{database} {instance}")  # noqa: S311  # repeatable on purpose
    tables = WORDS["databases"][database]
    for table, made in tables.items():
        for number in range(1, made["rows"] + 1):
            values = [_value(rng, kind, number, tables) for kind in made["columns"].values()]
            yield f"INSERT INTO {table} VALUES ({', '.join(values)});"  # noqa: S608  # all of it is ours


def _value(rng: random.Random, kind: str, number: int, tables: dict[str, Any]) -> str:
    """A value as it stands in SQL."""
    word, _, other = kind.partition(" ")
    if word == "maybe" and rng.random() < 0.3:
        return "NULL"
    numbers: dict[str, Any] = {
        "serial": lambda: number,
        "ref": lambda: rng.randint(1, tables[other]["rows"]),
        "count": lambda: rng.randint(1, 9),
        "year": lambda: rng.randint(1950, 2022),
        "km": lambda: rng.randint(20, 900),
        "price": lambda: rng.randint(200, 9999) / 100,
    }
    if word in numbers:
        return str(numbers[word]())
    texts: dict[str, Any] = {
        "name": lambda: f"{rng.choice(VALUES['first'])} {rng.choice(VALUES['last'])}",
        "thing": lambda: (
            f"{rng.choice(['Red', 'Blue', 'Old', 'Small', 'Grand'])} {rng.choice(['River', 'Lamp', 'House', 'Garden', 'Clock', 'Road'])}"
        ),
        "plate": lambda: f"{rng.choice('ABCD')}{rng.choice('KLMN')}-{rng.randint(100, 999)}",
    }
    if word in VALUES:
        return f"'{rng.choice(VALUES[word])}'"
    return f"'{texts[word]() if word in texts else _date(rng)}'"


def _date(rng: random.Random) -> str:
    return f"{rng.randint(2020, 2025)}-{rng.randint(1, 12):02d}-{rng.randint(1, 28):02d}"


def _main() -> None:
    for name, script in databases():
        (FOLDER / "databases" / name).write_text(script, encoding="utf-8")


if __name__ == "__main__":
    _main()
