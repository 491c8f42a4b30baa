"""Compares two runs of the same data: pairs their rows, estimates the difference, decides. Pure; no I/O.

The question is non-inferiority: "is the candidate at most `margin` worse?", as a cheaper model that is as good should win. The gate is
effective success. Several tasks share one error rate by Holm's procedure. Not here: formulas (stats.py), files (comparison.py).
"""

import hashlib
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from scipy.special import ndtri

from evals import stats
from evals.case import Row
from evals.cost import Price, Prices, costs_of
from evals.stats import Estimate, Floats
from evals.store import Stored
from evals.verdict import Word

COMPLETION = 0.99  # below, a run says more about the day than about the model
SCORED = 0.95  # of the pairs; what no scorer could judge is not missing at random
CLUSTERS = 5  # below, an interval is only as good as the belief that clusters are alike


class CompareError(Exception):
    """Two runs that can't be compared."""


class Measure(NamedTuple):
    """One secondary figure of both models, their difference and its 95% interval (None: unknown), over n pairs."""

    name: str
    incumbent: float
    candidate: float
    effect: float
    interval: tuple[float, float] | None
    n: int


@dataclass(frozen=True)
class Pairs:
    """Rows of two runs that answer the same sample of the same case, in one order. Values are effective success: failed is 0."""

    incumbent: Stored
    candidate: Stored
    rows: list[tuple[Row, Row]]
    unscored: int
    unpaired: int

    @property
    def clusters(self) -> list[str]:
        """What is dependent: cases of one cluster, and samples of one case in any event."""
        return [row.cluster or f"\0{row.case_id}" for row, _ in self.rows]

    @property
    def is_sensitive(self) -> bool:
        """Whether what the models wrote stays in the runs' own folders."""
        return any(run.facts.get("settings", {}).get("sensitive", True) for run in (self.incumbent, self.candidate))

    @property
    def equal_load(self) -> bool:
        """Whether both were asked as fast: only then do their times compare."""
        one, other = (run.facts.get("settings", {}) for run in (self.incumbent, self.candidate))
        return all(one.get(name) == other.get(name) for name in ("at_once", "load"))

    def values(self) -> tuple[Floats, Floats]:
        first, second = (np.array([row.value or 0.0 for row in side]) for side in zip(*self.rows, strict=True))
        return first, second


@dataclass(frozen=True)
class Comparison:
    """What comparing two runs says. `level` is the share of `alpha` that this task was tested at."""

    pairs: Pairs
    estimate: Estimate
    margin: float
    alpha: float
    level: float
    word: Word
    reasons: tuple[str, ...]
    more_cases: int | None

    @property
    def interval(self) -> tuple[float, float]:
        return self.estimate.interval(self.level)


def pair(incumbent: Stored, candidate: Stored) -> Pairs:
    """Joins two runs by case and sample. Raises `CompareError` where data, prompt, scorer or judge differ, or nothing is left to pair."""
    for word, fact in _SAME.items():
        one, other = fact(incumbent.facts), fact(candidate.facts)
        if one != other:
            raise CompareError(f"these runs differ in their {word} ({_short(one)} and {_short(other)}), so their scores can't be paired. "
                               f"Run both models on the same: inhouse eval run SUITE --model NAME")  # fmt: skip
    first, second = ({(row.case_id, row.sample): row for row in run.rows} for run in (incumbent, candidate))
    both = [(row, second[key]) for key, row in first.items() if key in second]
    scored = [(one, two) for one, two in both if _is_scored(one) and _is_scored(two)]
    if len({one.cluster or one.case_id for one, _ in scored}) < 2:
        raise CompareError(f"{len(both)} cases are in both runs and {len(scored)} of them are scored; two independent ones are needed. "
                           f"See them: inhouse eval report {candidate.id}")  # fmt: skip
    return Pairs(incumbent, candidate, scored, len(both) - len(scored), len(first.keys() ^ second.keys()))


def judge_sha256(facts: dict[str, Any]) -> str | None:
    """What identifies a run's judge; None where nobody judged."""
    judge = facts.get("judge")
    if judge is None:
        return None
    return hashlib.sha256(json.dumps([judge.get(name) for name in ("model", "host", "digest", "request")]).encode()).hexdigest()


_SAME: dict[str, Callable[[dict[str, Any]], Any]] = {  # what two runs have to share
    "data": lambda facts: facts.get("data_sha256"),
    "prompt": lambda facts: facts.get("prompt_sha256"),
    "scorer": lambda facts: facts.get("scorer"),
    "judge": judge_sha256,
}


def compare(several: Sequence[Pairs], *, margin: float, alpha: float = 0.05) -> list[Comparison]:
    """Decides each of several tasks so that all together let a model pass that is worse by the margin in at most alpha / 2."""
    estimates = [stats.paired(*pairs.values(), pairs.clusters, bounded=_is_bounded(pairs)) for pairs in several]
    levels = stats.holm([made.p_above(-margin) for made in estimates], alpha / 2)
    return [_decided(pairs, made, margin, alpha, 2 * level) for pairs, made, level in zip(several, estimates, levels, strict=True)]


def _decided(pairs: Pairs, made: Estimate, margin: float, alpha: float, level: float) -> Comparison:
    reasons = void_reasons(pairs, made)
    word: Word = "not enough evidence" if reasons else decide(made.interval(level), margin)
    more = None if reasons or word in ("better", "not worse") else more_cases(made, margin, level)
    if word == "not enough evidence" and not reasons:
        reasons = ("the interval holds both a difference that is let pass and one that is not",)
    return Comparison(pairs, made, margin, alpha, level, word, reasons, more)


def decide(interval: tuple[float, float], margin: float) -> Word:
    """The verdict that an interval of the difference (candidate minus incumbent) carries."""
    low, high = interval
    if low > 0:
        return "better"
    if low > -margin:
        return "not worse"
    return "worse" if high < 0 else "not enough evidence"


def more_cases(made: Estimate, margin: float, level: float, power: float = 0.8) -> int | None:
    """About how many more cases would let the candidate pass, or show that it is worse, if the difference is the one observed.

    Two digits, as the difference is itself uncertain. None where it is certain already that it can't pass.
    """
    if made.interval(level)[1] < -margin:
        return None
    distance = max(margin + made.effect, -made.effect)
    needed = made.n * (float(ndtri(1 - level / 2) + ndtri(power)) * made.se / distance) ** 2
    more = max(needed - made.n, 1.0)
    unit = int(10 ** max(0, math.floor(math.log10(more)) - 1))
    return math.ceil(more / unit) * unit


def void_reasons(pairs: Pairs, made: Estimate) -> tuple[str, ...]:
    """Why these runs decide nothing, whatever their difference: too many failures or unscored answers, too few clusters."""
    found = []
    for role, run in (("incumbent", pairs.incumbent), ("candidate", pairs.candidate)):
        completed = sum(not row.failed for row in run.rows) / len(run.rows)
        if completed < COMPLETION:
            found.append(f"the {role} completed {completed:.1%} of its requests and {COMPLETION:.0%} are needed; "
                         f"see why: inhouse eval report {run.id}")  # fmt: skip
    share = made.n / (made.n + pairs.unscored)
    if share < SCORED:
        found.append(f"{pairs.unscored} of {made.n + pairs.unscored} pairs are unscored and {1 - SCORED:.0%} may be; mend the scorer first")
    if made.clusters < CLUSTERS:
        found.append(f"the cases are of {made.clusters} clusters and {CLUSTERS} are needed; add cases of other kinds")
    return tuple(found)


def measures(pairs: Pairs, prices: Prices) -> list[Measure]:
    """Time and cost of both models on the same requests: means, differences and their 95% cluster-bootstrap intervals.

    Times leave out what failed or came from the cache, as it was measured at another hour; without equal load there are none.
    """
    fresh = [(one, two) for one, two in pairs.rows if not (one.failed or two.failed or one.cached or two.cached)]
    found = [_timed(name, fresh, field) for name, field in _TIMES if pairs.equal_load]
    costs = [costs_of((pair[side] for pair in pairs.rows), prices.of_run(run.facts))
             for side, run in enumerate((pairs.incumbent, pairs.candidate))]  # fmt: skip
    if costs[0] is not None and costs[1] is not None:
        found.append(_measured("cost per request, USD", np.array(costs[0]), np.array(costs[1]), pairs.clusters))
    return [one for one in found if one is not None]


_TIMES: tuple[tuple[str, Callable[[Row], float | None]], ...] = (
    ("time to first token, s", lambda row: row.ttft_s),
    ("whole answer, s", lambda row: row.total_s),
)


def _timed(name: str, rows: list[tuple[Row, Row]], field: Callable[[Row], float | None]) -> Measure | None:
    values = ((one.cluster or one.case_id, field(one), field(two)) for one, two in rows)
    known = [(cluster, first, second) for cluster, first, second in values if first is not None and second is not None]
    if not known:
        return None
    clusters, firsts, seconds = zip(*known, strict=True)
    return _measured(name, np.array(firsts), np.array(seconds), clusters)


def _measured(name: str, first: Floats, second: Floats, clusters: Sequence[Any]) -> Measure:
    several = len(set(clusters)) > 1
    interval = stats.paired(first, second, clusters, bounded=False).interval(0.05) if several else None
    return Measure(name, float(first.mean()), float(second.mean()), float((second - first).mean()), interval, len(first))


def usd_per_success(pairs: Pairs, prices: Prices) -> tuple[float | None, float | None]:
    """Cost per successful task of both models: all that was paid over all that succeeded. None: unpriced, or nothing succeeded."""
    sides = zip((pairs.incumbent, pairs.candidate), zip(*pairs.rows, strict=True), strict=True)
    first, second = (_per_success(rows, prices.of_run(run.facts)) for run, rows in sides)
    return first, second


def _per_success(rows: Sequence[Row], price: Price | None) -> float | None:
    costs, successes = costs_of(rows, price), math.fsum(row.value or 0.0 for row in rows)
    return math.fsum(costs) / successes if costs is not None and successes else None


def slices(pairs: Pairs) -> dict[str, tuple[int, float, float]]:
    """Pairs and mean effective success of both models, by slice. Too small to decide on; they say where to look."""
    found: dict[str, list[tuple[float, float]]] = {}
    for one, two in pairs.rows:
        if one.slice:
            found.setdefault(one.slice, []).append((one.value or 0.0, two.value or 0.0))
    return {name: (len(values), statistics.fmean(first for first, _ in values), statistics.fmean(second for _, second in values))
            for name, values in sorted(found.items())}  # fmt: skip


def _is_scored(row: Row) -> bool:
    return row.failed or row.value is not None


def _is_bounded(pairs: Pairs) -> bool:
    return all(0 <= (row.value or 0.0) <= 1 for both in pairs.rows for row in both)


def _short(fact: Any) -> str:
    return str(fact)[:40] if fact is not None else "none"
