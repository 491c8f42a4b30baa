"""Evidence: what a comparison of two models said, as its document has it and as a route keeps it. Plain data, read from JSON alone.

Not here: how evidence is made, which is nothing that the router knows; and what follows from it (promote.py, standing.py).
"""

import re
from functools import lru_cache
from pathlib import Path
from typing import Literal

import msgspec

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
Word = Literal["better", "not worse", "worse", "not enough evidence"]


class EvidenceError(Exception):
    """The document is not there or is none. The message says what to do."""


class Evidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Why a model has a task. `effect` and `interval` are in effective success, the model minus the one it took the task from.

    `date` is when the comparison was made, in ISO 8601 with its offset. Digests are empty where nobody gave them.
    """

    id: str
    verdict: Literal["better", "not worse"]
    n: int
    effect: float
    interval: tuple[float, float]
    margin: float
    date: str
    data_sha256: str
    prompt_sha256: str
    judge_sha256: str | None = None
    model_digest: str = ""
    mlflow_run_id: str | None = None


class Paper(msgspec.Struct, frozen=True, kw_only=True):
    """A comparison's `verdict.json`, of which the router needs this much."""

    schema: Literal[1]
    id: str
    task: str
    incumbent: str
    candidate: str
    n: int
    effect: float
    interval: tuple[float, float]
    margin: float
    verdict: Word
    date: str
    data_sha256: str
    prompt_sha256: str
    judge_sha256: str | None
    candidate_digest: str
    incumbent_digest: str
    mlflow_run: str | None

    def evidence(self) -> Evidence:
        """What a route keeps of it, shares to six digits. Only of a verdict that promotes."""
        assert self.verdict in ("better", "not worse"), "a route never keeps a verdict that refuses it"
        low, high = self.interval
        return Evidence(id=self.id, verdict=self.verdict, n=self.n, effect=round(self.effect, 6), interval=(round(low, 6), round(high, 6)),
                        margin=round(self.margin, 6), date=self.date, data_sha256=self.data_sha256, prompt_sha256=self.prompt_sha256,
                        judge_sha256=self.judge_sha256, model_digest=self.candidate_digest, mlflow_run_id=self.mlflow_run)  # fmt: skip


def read_paper(home: Path, evidence_id: str) -> Paper:
    """The document of that id. Raises `EvidenceError`."""
    if not _ID.fullmatch(evidence_id):
        raise EvidenceError(f"`{evidence_id}` is no evidence id; `inhouse eval compare` prints it")
    file = home / "evals" / evidence_id / "verdict.json"
    try:
        paper = msgspec.json.decode(file.read_bytes(), type=Paper)
    except OSError as error:
        raise EvidenceError(f"no evidence {evidence_id}: {file} can't be read ({error.strerror}); "
                            "`inhouse eval compare` makes it and prints its id") from error  # fmt: skip
    except msgspec.DecodeError as error:
        raise EvidenceError(f"{file} is no verdict of this version ({error}); compare the runs again: inhouse eval compare") from error
    if paper.id != evidence_id:
        raise EvidenceError(f"{file} says that it is {paper.id}; put the folder back under its own name")
    return paper


def newest(home: Path) -> dict[str, Paper]:
    """The newest document of each task; those that can't be read count as not there."""
    found: dict[str, Paper] = {}
    for file in sorted((home / "evals").glob("*/verdict.json")):
        try:
            paper = _unchanged(home, file.parent.name, file.stat().st_mtime_ns)
        except (EvidenceError, OSError):
            continue
        if paper.task not in found or found[paper.task].date <= paper.date:
            found[paper.task] = paper
    return found


@lru_cache(maxsize=4096)
def _unchanged(home: Path, evidence_id: str, _mtime_ns: int) -> Paper:
    """A document that was read before is not read again: a router looks every few seconds, and comparisons are kept for good."""
    return read_paper(home, evidence_id)
