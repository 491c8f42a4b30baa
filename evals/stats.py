"""Paired, clustered statistics of the difference between two models: estimate, interval, one-sided p-value. Pure numpy and scipy.special.

A 0/1 score takes Agresti and Min's interval, anything else a studentised cluster bootstrap. Not here: what is compared and what follows
from it (compare.py), how many cases are needed (power.py).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri, stdtr, stdtrit

Floats = NDArray[np.float64]
DRAWS = 4000  # of a bootstrap: the 0.25% tail, for ten tasks under Holm, rests on ten draws
SEED = 20261125  # fixed: the same rows give the same verdict, wherever and whenever they are compared
_CHUNK = 2**22  # weights held at once: 32 MB


@dataclass(frozen=True)
class Estimate:
    """A mean paired difference, second minus first. `centre` and `se` carry the interval, `effect` is what was observed.

    `pivots` are a bootstrap's studentised draws, sorted; without them the pivot is Student's with `df` degrees of freedom (infinite:
    normal). `floor` is the least standard error that a bounded score can claim: no differences seen does not prove that there are none.
    `most` is how far apart two means of bounded scores can be: an interval ends there, and covers no less by it.
    """

    effect: float
    centre: float
    se: float
    n: int
    clusters: int
    design_effect: float
    df: float = np.inf
    pivots: Floats | None = None
    floor: float = 0.0
    most: float = np.inf

    def interval(self, alpha: float) -> tuple[float, float]:
        """The two-sided interval of level 1 - alpha."""
        low, high = self.centre - self._quantile(1 - alpha / 2) * self.se, self.centre - self._quantile(alpha / 2) * self.se
        least = float(ndtri(1 - alpha / 2)) * self.floor
        return max(min(low, self.effect - least), -self.most), min(max(high, self.effect + least), self.most)

    def p_above(self, bound: float) -> float:
        """The one-sided p-value against "the difference is `bound` or less"; below alpha / 2 exactly where the interval is above it."""
        p = self._tail((self.centre - bound) / self.se) if self.se else float(self.centre <= bound)
        return max(p, float(ndtr((bound - self.effect) / self.floor))) if self.floor else p

    def _quantile(self, p: float) -> float:
        if self.pivots is not None:
            return float(np.quantile(self.pivots, p))
        return float(ndtri(p) if np.isinf(self.df) else stdtrit(self.df, p))

    def _tail(self, t: float) -> float:
        if self.pivots is not None:
            return float(np.searchsorted(-self.pivots[::-1], -t, side="right") + 1) / (len(self.pivots) + 1)
        return float(ndtr(-t) if np.isinf(self.df) else stdtr(self.df, -t))


@dataclass(frozen=True)
class Clustered:
    """Differences added up by cluster: sum and number of each, n in all."""

    sums: Floats
    counts: Floats
    n: int

    @property
    def mean(self) -> float:
        return float(self.sums.sum() / self.n)

    @property
    def variance(self) -> float:
        """Of the mean, cluster-robust with the small-sample factor G / (G - 1) (Liang and Zeger 1986; Miller 2024, arXiv 2411.00640)."""
        groups = len(self.sums)
        return float(groups / (groups - 1) * ((self.sums - self.counts * self.mean) ** 2).sum() / self.n**2)


def paired(first: Floats, second: Floats, clusters: Sequence[Any], *, bounded: bool = True) -> Estimate:
    """The estimate of mean(second - first) over pairs; pairs of one cluster count as dependent.

    Two 0/1 scores take `agresti_min`; everything else `bootstrap`, where `bounded` says that values lie in [0, 1]. Needs two clusters.
    """
    difference = second - first
    joined = clustered(difference, clusters)
    if bounded and is_binary(first) and is_binary(second):
        return agresti_min(joined, float(np.abs(difference).mean()), naive_variance(difference))
    return bootstrap(joined, naive_variance(difference), bounded=bounded)


def is_binary(values: Floats) -> bool:
    """Whether all values are 0 or 1."""
    return bool(np.isin(values, (0.0, 1.0)).all())


def clustered(difference: Floats, clusters: Sequence[Any]) -> Clustered:
    """Adds differences up by cluster. Raises `ValueError` below two clusters: nothing can be said of one."""
    names, index = np.unique(np.asarray(clusters), return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"{len(names)} clusters; a difference between models needs two at least")
    counts = np.bincount(index).astype(np.float64)
    sums = np.bincount(index, weights=difference).astype(np.float64)
    return Clustered(sums, counts, len(difference))


def naive_variance(difference: Floats) -> float:
    """Of the mean, as if all pairs were independent."""
    return Clustered(difference, np.ones_like(difference), len(difference)).variance


def design_effect(joined: Clustered, naive: float) -> float:
    """How many dependent pairs are worth one independent, 1 at least: clusters that happen to balance prove nothing."""
    if len(joined.sums) == joined.n or naive == 0:
        return 1.0
    return max(1.0, joined.variance / naive)


def agresti_min(joined: Clustered, discordant: float, naive: float) -> Estimate:
    """For 0/1 scores: half a pair added to each of the four cells (Agresti and Min 2005), at the effective number of pairs.

    `discordant` is the share of pairs that differ. Without repeated clusters this is the published interval. With them, pairs / design
    effect stand for the pairs and Student's t replaces the normal; its degrees of freedom are those of the clusters that differ, plus two,
    as a variance from three clusters is no better known when a hundred others agree. (Simulated, 30 to 100 clusters of 5, 1 to 20%
    discordant, latent correlation 0 to 0.7: covers 94.6 to 100%; without the last rule 92.7%. 20 clusters of 15 at 0.7 and 7%: 90.7%.)
    """
    groups = len(joined.sums)
    effect, spread = joined.mean, design_effect(joined, naive)
    pairs = joined.n / spread
    centre = effect * pairs / (pairs + 2)
    variance = (discordant * pairs + 1 - (pairs + 2) * centre**2) / (pairs + 2) ** 2
    df = np.inf if groups == joined.n else float(min(groups - 1, int(np.count_nonzero(joined.sums)) + 2))
    return Estimate(effect, centre, float(np.sqrt(variance)), joined.n, groups, spread, df=df, most=1.0)


def bootstrap(joined: Clustered, naive: float, *, bounded: bool, draws: int = DRAWS) -> Estimate:
    """For graded scores, cost and time: clusters drawn with replacement, each draw divided by its own standard error (bootstrap-t).

    Studentised, as skewed values make the plain percentile interval too short (Efron and Tibshirani 1993, 12.5). Without any variance
    the interval of an unbounded value is a point.
    """
    groups = len(joined.sums)
    se = float(np.sqrt(joined.variance))
    spread = design_effect(joined, naive)
    floor = 1 / (joined.n / spread + 2) if bounded else 0.0
    pivots = np.sort(_pivots(joined, draws)) if se else None
    return Estimate(joined.mean, joined.mean, se, joined.n, groups, spread, df=groups - 1.0, pivots=pivots, floor=floor,
                    most=1.0 if bounded else np.inf)  # fmt: skip


def _pivots(joined: Clustered, draws: int) -> Floats:
    """(mean* - mean) / se* of each draw. All draws are one matrix product: the sums below are linear in how often a cluster is drawn."""
    groups = len(joined.sums)
    rest = joined.sums - joined.counts * joined.mean  # centred first: the products below must not cancel large means
    terms = np.stack([rest, joined.counts, rest**2, rest * joined.counts, joined.counts**2], axis=1)
    generator = np.random.default_rng(SEED)
    parts = [_drawn(generator, groups, rows) @ terms for rows in _chunks(draws, groups)]
    shift, n, square, cross, count = np.concatenate(parts).T
    mean = shift / n
    variance = groups / (groups - 1) * (square - 2 * mean * cross + mean**2 * count) / n**2
    least = joined.variance * 1e-9  # a draw of one cluster over and over has no spread; its pivot is a large one, not a division by zero
    pivots: Floats = mean / np.sqrt(np.maximum(variance, least))
    return pivots


def _chunks(draws: int, groups: int) -> list[int]:
    size = max(1, _CHUNK // groups)
    return [min(size, draws - start) for start in range(0, draws, size)]


def _drawn(generator: np.random.Generator, groups: int, rows: int) -> Floats:
    """How often each cluster is drawn, by draw."""
    picked = generator.integers(0, groups, (rows, groups), dtype=np.int32) + groups * np.arange(rows)[:, None]
    return np.bincount(picked.ravel(), minlength=rows * groups).reshape(rows, groups).astype(np.float64)


def holm(p_values: Sequence[float], alpha: float) -> list[float]:
    """The level at which each of several hypotheses is tested in Holm's procedure (1979), so that all together err at most at `alpha`.

    The smallest p-value is tested at alpha / k, the next at alpha / (k - 1), ...; after the first that fails, all others stay at its level.
    """
    k = len(p_values)
    levels = [0.0] * k
    level, going = alpha / max(k, 1), True
    for rank, index in enumerate(sorted(range(k), key=lambda one: p_values[one])):
        level = alpha / (k - rank) if going else level
        levels[index] = level
        going = going and p_values[index] <= level
    return levels
