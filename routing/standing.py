"""Whether the evidence of the routes still stands: what it was about against what is there now. Says so; changes nothing."""

import datetime
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from routing.config import Site
from routing.evidence import Evidence, Paper, newest
from serving.catalog import Model


class Known(NamedTuple):
    """What evidence is held against: the digests of our models by name, and each task's newest comparison."""

    digests: dict[str, str]
    papers: dict[str, Paper]


def known(site: Site, home: Path, models_file: Path) -> Known:
    """Reads model folders, which may take seconds the first time."""
    return Known(digests_of(site, home, models_file), newest(home))


def digests_of(site: Site, home: Path, models_file: Path) -> dict[str, str]:
    """By name of model or adapter; empty where the weights can't be read here."""
    ours: dict[str, Model] = {model.name: model for model in site.models.values()}
    found: dict[str, str] = {}
    for model in ours.values():
        found |= model.digests(home, models_file.parent)
    return found


def stale(site: Site, there: Known, now: float) -> list[str]:
    """One sentence for each reason for which a route's evidence stands no longer. `now` is in seconds since 1970."""
    return [
        f"{task.name}: the evidence for {candidate.model} ({evidence.id}) is stale: {reason}"
        for task in site.tasks.values()
        for candidate in task.candidates
        if (evidence := candidate.evidence) is not None
        for reason in _reasons(evidence, there.digests.get(candidate.model, ""), there.papers.get(task.name),
                               age_days=_age_days(evidence, now), most_days=site.routes.evidence_days)
    ]  # fmt: skip


def _reasons(evidence: Evidence, digest: str, paper: Paper | None, *, age_days: float | None, most_days: float | None) -> Iterator[str]:
    if evidence.model_digest and digest and evidence.model_digest != digest:
        yield f"the model has changed (digest {digest[:12]}, evidence of {evidence.model_digest[:12]})"
    if paper is not None and paper.date > evidence.date:
        for name in ("data", "prompt", "judge"):
            if getattr(paper, f"{name}_sha256") != getattr(evidence, f"{name}_sha256"):
                yield f"the {name} has changed (comparison {paper.id} is newer)"
    if age_days is None:
        yield f"its date `{evidence.date}` can't be read"
    elif most_days is not None and age_days > most_days:
        yield f"it is {age_days:.0f} days old and evidence_days is {most_days:g}"


def _age_days(evidence: Evidence, now: float) -> float | None:
    try:
        made = datetime.datetime.fromisoformat(evidence.date)
    except ValueError:
        return None
    return (now - (made if made.tzinfo else made.replace(tzinfo=datetime.UTC)).timestamp()) / 86400
