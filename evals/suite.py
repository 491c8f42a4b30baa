"""A data set with what to do with it: reads a shipped suite, a folder like one, or a JSONL, CSV or parquet file of your own.

Not here: making the shipped cases (suites/generate.py), asking, scoring.
"""

import csv
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import yaml

from evals.case import Case

SUITES = Path(__file__).parent / "suites"
_EXPECTED = ("expected", "accept", "target")  # the first that a row has; the trained suites say what counts as `accept` or `target`


class SuiteError(Exception):
    """A data set that can't be used as it is."""


class Suite(msgspec.Struct, frozen=True, kw_only=True):
    """Cases, and how they are put and scored. `data_sha256` is of the files' bytes: another byte is another version.

    `system` is a message put before every case (empty: none); `request` are fields of the request's body, such as `tools`. Data is
    sensitive unless it is declared not to be.
    """

    name: str
    cases: list[Case]
    data_sha256: str
    scorer: dict[str, Any]
    folder: Path
    system: str = ""
    request: dict[str, Any] = msgspec.field(default_factory=dict)
    sensitive: bool = True

    @property
    def prompt_sha256(self) -> str:
        """Of all that is sent around the cases: the system message and the request's fields."""
        return hashlib.sha256(msgspec.json.encode([self.system, self.request], order="deterministic")).hexdigest()

    def messages(self, case: Case) -> list[dict[str, Any]]:
        """A case as it is asked: `system` goes before the case's own system message, in one, as some chat templates refuse two."""
        if not self.system:
            return case.messages
        first, *rest = case.messages
        if first["role"] != "system":
            return [{"role": "system", "content": self.system}, *case.messages]
        return [{"role": "system", "content": f"{self.system}\n\n{first.get('content', '')}"}, *rest]


class Task(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One task.yaml. `instruct`: the prompt is sent as a system message; without it the model is meant to know the task.

    `generator`, `seed` and `held_out` say how the cases were made; a folder of your own has none.
    """

    name: str
    scorer: str | dict[str, Any]
    description: str = ""
    prompt: str = ""
    instruct: bool = False
    request: dict[str, Any] = msgspec.field(default_factory=dict)
    sensitive: bool = True
    licence: str = ""
    generator: str = ""
    seed: int = 0
    held_out: int = 0


def read_task(folder: Path) -> Task:
    """The task.yaml of a suite's folder. Raises `SuiteError` where it is missing or has what a task has not."""
    file = folder / "task.yaml"
    try:
        return msgspec.convert(yaml.safe_load(file.read_text(encoding="utf-8")), Task)
    except FileNotFoundError:
        raise SuiteError(f"{folder} is no suite: it has no task.yaml (see {SUITES / 'intent'} for one)") from None
    except (msgspec.ValidationError, yaml.YAMLError) as error:
        raise SuiteError(f"{file}: {error}. A task has: {', '.join(Task.__struct_fields__)}") from None


def shipped() -> list[str]:
    """The names of the suites that come with inhouse."""
    return sorted(file.parent.name for file in SUITES.glob("*/task.yaml"))


def read_suite(asked: str, *, scorer: str | None = None, instruct: bool | None = None, sensitive: bool | None = None) -> Suite:
    """A shipped suite by name, a folder with task.yaml and cases.jsonl, or a data file. The keywords overrule what task.yaml says.

    `scorer` is a name or YAML such as `{use: numeric, relative: 0.01}`; a data file has none of its own.
    """
    path = SUITES / asked if asked in shipped() else Path(asked)
    if not path.exists():
        raise SuiteError(f"no suite and no file `{asked}`. The shipped suites: {', '.join(shipped())}; a file is .jsonl, .csv or .parquet")
    file = path / "cases.jsonl" if path.is_dir() else path
    task = read_task(path) if path.is_dir() else Task(name=path.stem, scorer="")
    how = yaml.safe_load(scorer) if scorer else task.scorer
    if not how:
        raise SuiteError(f"{asked}: how is an answer scored? Say it: --scorer exact, or --scorer '{{use: numeric, relative: 0.01}}'")
    return Suite(
        name=task.name,
        cases=read_cases(file),
        data_sha256=_digest(file, path),
        scorer={"use": how} if isinstance(how, str) else how,
        folder=file.parent,
        system=task.prompt.strip() if (task.instruct if instruct is None else instruct) else "",
        request=task.request,
        sensitive=task.sensitive if sensitive is None else sensitive,
    )


def _digest(file: Path, path: Path) -> str:
    """Of the cases, and of the databases that a suite's answers are executed on."""
    scripts = sorted(path.rglob("*.sql")) if path.is_dir() else []
    digest = hashlib.sha256(file.read_bytes())
    for script in scripts:
        digest.update(hashlib.sha256(script.read_bytes()).digest())
    return digest.hexdigest()


def read_cases(file: Path) -> list[Case]:
    """The cases of a file. A row has `prompt` or `messages`, and may have id, expected, slice, cluster; other columns are let be.

    Raises `SuiteError` with the row's number for one that can't be asked, and for an id that comes twice.
    """
    cases: list[Case] = []
    seen: set[str] = set()
    try:
        for number, found in enumerate(_rows(file), 1):
            case = _case(found, number, file)
            if case.id in seen:
                raise SuiteError(f"{file}: row {number}: the id `{case.id}` comes twice; an id names one case")
            seen.add(case.id)
            cases.append(case)
    except (ValueError, csv.Error) as error:  # not UTF-8, no parquet
        raise SuiteError(f"{file}: {error}") from None
    if not cases:
        raise SuiteError(f"{file}: there are no cases in it")
    return cases


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    if file.suffix == ".parquet":
        import pyarrow.parquet as pq

        yield from pq.read_table(file).to_pylist()
    elif file.suffix == ".csv":
        csv.field_size_limit(1 << 26)  # a document in a field; the usual limit is 128 KiB
        with file.open(encoding="utf-8-sig", newline="") as lines:
            yield from ({key: value for key, value in found.items() if value not in ("", None)} for found in csv.DictReader(lines))
    elif file.suffix == ".jsonl":
        for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), 1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise SuiteError(f"{file}:{number}: not JSON: {error}") from None
    else:
        raise SuiteError(f"{file}: a data file is .jsonl, .csv or .parquet")


def _case(found: Any, number: int, file: Path) -> Case:
    if not isinstance(found, dict):
        raise SuiteError(f"{file}: row {number}: a case is an object, not {type(found).__name__}")
    messages = found.get("messages")
    if isinstance(messages, str):
        try:
            messages = json.loads(messages)
        except ValueError as error:
            raise SuiteError(f"{file}: row {number}: `messages` is not JSON: {error}") from None
    if messages is None and isinstance(found.get("prompt"), str):
        messages = [{"role": "user", "content": found["prompt"]}]
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) and "role" in one for one in messages):
        raise SuiteError(f"{file}: row {number}: needs `prompt` (text) or `messages` (a list of objects with role and content)")
    return Case(
        id=str(found.get("id", f"{file.stem}-{number:04d}")),
        messages=[{key: value for key, value in one.items() if value is not None} for one in messages],  # parquet fills in nulls
        expected=next((found[key] for key in _EXPECTED if key in found), None),
        slice=str(found.get("slice") or ""),
        cluster=str(found.get("cluster") or ""),
    )
