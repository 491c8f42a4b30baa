"""Runs on disk: `<home>/evals/<run id>/` with rows.parquet and, written last, run.json. A folder without run.json is no run.

Not here: the answers' cache (cache.py), MLflow (tracking.py).
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from evals.case import Row


class StoreError(Exception):
    """A run that was asked for is not there or can't be read."""


class Stored(NamedTuple):
    """A run as it was stored. `facts` is run.json: suite, hashes of data and prompt, model, its digest, served, host, n, settings."""

    id: str
    folder: Path
    facts: dict[str, Any]
    rows: list[Row]


def folder_of(home: Path) -> Path:
    """Where a home keeps its runs."""
    return home / "evals"


def write_run(home: Path, run_id: str, facts: dict[str, Any], rows: list[Row]) -> Path:
    """Writes both files and returns the folder. run.json comes last and by one rename, so that no reader sees half a run."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = folder_of(home) / run_id
    folder.mkdir(parents=True, mode=0o700)  # answers may be confidential
    columns = {field: [getattr(row, field) for row in rows] for field in Row.__struct_fields__}
    pq.write_table(pa.table(columns, schema=_schema()), folder / "rows.parquet", compression="zstd")
    draft = folder / ".run.json"
    draft.write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    draft.replace(folder / "run.json")
    return folder


def _schema() -> Any:
    import pyarrow as pa

    kinds = {str: pa.string(), int: pa.int64(), float: pa.float64(), bool: pa.bool_(), tuple[float, ...]: pa.list_(pa.float64())}
    fields = msgspec.structs.fields(Row)
    return pa.schema([(field.name, next(kinds[kind] for kind in kinds if field.type in (kind, kind | None))) for field in fields])


def read_run(home: Path, run_id: str) -> Stored:
    """A run by its id or by a beginning of it that only one has. Raises `StoreError` with the newest ids where there is none."""
    import pyarrow.parquet as pq

    folder = _find(home, run_id)
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    rows = msgspec.convert(pq.read_table(folder / "rows.parquet").to_pylist(), list[Row])
    return Stored(folder.name, folder, facts, rows)


def run_ids(home: Path) -> list[str]:
    """All finished runs, newest first."""
    found = folder_of(home).glob("*/run.json")
    return [file.parent.name for file in sorted(found, key=os.path.getmtime, reverse=True)]


def _find(home: Path, run_id: str) -> Path:
    ids = run_ids(home)
    fitting = [run_id] if run_id in ids else [one for one in ids if one.startswith(run_id)]
    if len(fitting) == 1:
        return folder_of(home) / fitting[0]
    if fitting:
        raise StoreError(f"{len(fitting)} runs begin with `{run_id}`: {', '.join(fitting[:5])}; write more of the id")
    newest = f"; the newest are {', '.join(ids[:3])}" if ids else ""
    raise StoreError(f"no run `{run_id}` in {folder_of(home)}{newest}. Make one: inhouse eval run SUITE --model NAME")
