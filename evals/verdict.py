"""The verdict: the document that says which of two models a task may go to, and on what evidence. Plain data, written once.

Whoever promotes a route reads this file, never MLflow and never this room. Not here: how it is reached (compare.py).
"""

from pathlib import Path
from typing import Literal

import msgspec

Word = Literal["better", "not worse", "worse", "not enough evidence"]


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """`effect` and `interval` are candidate minus incumbent in effective success, where a failed request counts as 0.

    `interval` is two-sided at 1 - `level`; `level` is `alpha` for one task and Holm's share of it where several were compared at once.
    `verdict` can be read off it: "better" lies above 0, "not worse" above -`margin`, "worse" below 0 but not above -`margin`. Of
    "not enough evidence" `reasons` says why, and `more_cases` about how many more cases would tell (null: more of the same would not).
    Costs are US dollars per successful task, null where a price is unknown or nothing succeeded. Digests are empty where nobody gave them.
    """

    schema: Literal[1] = 1
    id: str
    task: str
    incumbent: str
    candidate: str
    metric: Literal["effective success"] = "effective success"
    n: int
    clusters: int
    unscored: int
    unpaired: int
    data_sha256: str
    prompt_sha256: str
    judge_sha256: str | None
    effect: float
    interval: tuple[float, float]
    margin: float
    alpha: float
    level: float
    verdict: Word
    reasons: tuple[str, ...]
    more_cases: int | None
    incumbent_success: float
    candidate_success: float
    incumbent_digest: str
    candidate_digest: str
    incumbent_run: str
    candidate_run: str
    mlflow_run: str | None
    incumbent_usd_per_success: float | None
    candidate_usd_per_success: float | None
    prices_date: str
    date: str

    @property
    def promotes(self) -> bool:
        """Whether the candidate may take the task."""
        return self.verdict in ("better", "not worse")

    @property
    def sentence(self) -> str:
        """The verdict as a person reads it."""
        points = f"{self.margin * 100:g} points"
        words = {"better": "better", "not worse": f"not worse by more than {points}", "worse": "worse",
                 "not enough evidence": "not enough evidence"}  # fmt: skip
        more = f": about {self.more_cases:,} more cases" if self.verdict == "not enough evidence" and self.more_cases else ""
        return words[self.verdict] + more


def write_verdict(folder: Path, verdict: Verdict) -> Path:
    """Writes `verdict.json` by one rename, so that no reader sees half of it."""
    draft, file = folder / ".verdict.json", folder / "verdict.json"
    draft.write_bytes(msgspec.json.format(msgspec.json.encode(verdict), indent=1) + b"\n")
    draft.replace(file)
    return file


def read_verdict(file: Path) -> Verdict:
    """The verdict in a file. Raises `msgspec.ValidationError` where it is none, `OSError` where there is no file."""
    return msgspec.json.decode(file.read_bytes(), type=Verdict)
