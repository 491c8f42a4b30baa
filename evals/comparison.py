"""Keeps a comparison: `<home>/evals/<id>/` with pairs.parquet, report.html and, written last, verdict.json. Nothing there is changed later.

What models wrote about sensitive data is not in it, so that all of it may be passed on. Not here: the decision (compare.py), MLflow
(tracking.py).
"""

import datetime
import re
import secrets
from pathlib import Path
from typing import Any, NamedTuple

from evals import page, store
from evals.compare import Comparison, judge_sha256, measures, usd_per_success
from evals.cost import Prices
from evals.verdict import Verdict, write_verdict

_TEXTS = ("text", "tool_calls", "reason", "error")  # columns in which a model's words, or a quote of them, may stand


class Kept(NamedTuple):
    """A comparison on disk."""

    folder: Path
    verdict: Verdict
    made: Comparison


def keep(home: Path, made: Comparison, prices: Prices, mlflow_run: str | None = None) -> Kept:
    """Writes a comparison's folder and returns it."""
    now = datetime.datetime.now(datetime.UTC)
    verdict = verdict_of(made, prices, now, mlflow_run)
    folder = store.folder_of(home) / verdict.id
    folder.mkdir(parents=True, mode=0o700)  # as the runs'
    write_rows(made, folder / "pairs.parquet")
    html = page.page(verdict, made, measures(made.pairs, prices))
    (folder / "report.html").write_text(html, encoding="utf-8")
    write_verdict(folder, verdict)
    return Kept(folder, verdict, made)


def verdict_of(made: Comparison, prices: Prices, now: datetime.datetime, mlflow_run: str | None) -> Verdict:
    """The document of a comparison."""
    pairs, facts = made.pairs, made.pairs.candidate.facts
    incumbent, candidate = pairs.incumbent, pairs.candidate
    first, second = pairs.values()
    costs = usd_per_success(pairs, prices)
    names = f"{_slug(facts['suite'])}-{_slug(facts['model'])}-against-{_slug(incumbent.facts['model'])}"
    return Verdict(
        id=f"{now:%Y%m%d-%H%M%S}-{names}-{secrets.token_hex(2)}", task=facts["suite"],
        incumbent=incumbent.facts["model"], candidate=facts["model"], n=made.estimate.n, clusters=made.estimate.clusters,
        unscored=pairs.unscored, unpaired=pairs.unpaired, data_sha256=facts["data_sha256"], prompt_sha256=facts["prompt_sha256"],
        judge_sha256=judge_sha256(facts), effect=made.estimate.effect, interval=made.interval, margin=made.margin, alpha=made.alpha,
        level=made.level, verdict=made.word, reasons=made.reasons, more_cases=made.more_cases, incumbent_success=float(first.mean()),
        candidate_success=float(second.mean()), incumbent_digest=incumbent.facts.get("model_digest", ""),
        candidate_digest=facts.get("model_digest", ""), incumbent_run=incumbent.id, candidate_run=candidate.id, mlflow_run=mlflow_run,
        incumbent_usd_per_success=costs[0], candidate_usd_per_success=costs[1], prices_date=prices.date,
        date=now.isoformat(timespec="seconds"))  # fmt: skip


def write_rows(made: Comparison, file: Path) -> None:
    """One parquet of the rows of both runs, with the role and run of each."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    tables = []
    for role, run in (("incumbent", made.pairs.incumbent), ("candidate", made.pairs.candidate)):
        table: Any = pq.read_table(run.folder / "rows.parquet")
        for name, value in (("role", role), ("run", run.id)):
            table = table.append_column(name, pa.array([value] * len(table), pa.string()))
        tables.append(table.drop_columns(list(_TEXTS)) if made.pairs.is_sensitive else table)
    pq.write_table(pa.concat_tables(tables), file, compression="zstd")


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:30] or "x"
