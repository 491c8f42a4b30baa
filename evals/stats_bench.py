"""Comparisons simulated with a known truth: do 95% intervals cover it, and do verdicts err as rarely as they state?

Data have what real evals have: few differences, clusters, skewed costs. Fixed seeds; the whole path from rows' values to verdict is ours
(stats.paired, compare.decide), so a mistake in either shows here.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr

from evals import power, stats
from evals.compare import decide
from evals.stats import Floats

MARGIN = 0.02
Data = tuple[Floats, Floats, Sequence[int]]
Make = Callable[[np.random.Generator], Data]


class Finding(NamedTuple):
    """A share that was counted, over how many comparisons, and what it has to be: `least` or `most`."""

    name: str
    found: float
    repeats: int
    least: float
    most: float

    @property
    def holds(self) -> bool:
        return self.least <= self.found <= self.most


def binary(random: np.random.Generator, *, groups: int, size: int = 1, gained: float, lost: float, correlation: float = 0.0) -> Data:
    """0/1 scores of two models: the second is right alone with probability `gained`, the first with `lost`.

    `correlation` is that of the latent normals of cases in one cluster.
    """
    latent = np.sqrt(correlation) * random.standard_normal((groups, 1)) + np.sqrt(1 - correlation) * random.standard_normal((groups, size))
    place = ndtr(latent).ravel()
    wins, losses = place > 1 - gained, place < lost
    first = np.where(wins, 0.0, np.where(losses, 1.0, random.random(groups * size) < 0.85))
    return first, first + wins - losses, np.repeat(np.arange(groups), size).tolist()


def graded(random: np.random.Generator, *, groups: int, size: int = 1, shift: float = 0.0, spread: float = 0.5) -> Data:
    """Partial scores such as field F1: many are 1, the rest anywhere below; `spread` is how much of a case its cluster decides."""
    hard = random.beta(2, 5, groups * size) * (1 - spread) + np.repeat(random.beta(2, 5, groups), size) * spread
    one, two = (np.where(random.random(groups * size) < 0.6, 0.0, hard * random.random(groups * size)) for _ in range(2))
    return 1 - one, 1 - two + shift, np.repeat(np.arange(groups), size).tolist()


def skewed(random: np.random.Generator, *, groups: int, factor: float) -> Data:
    """Costs or times: lognormal, the second model's `factor` times the first's on average."""
    case = random.lognormal(0, 0.6, groups)
    return case * random.lognormal(0, 0.5, groups), factor * case * random.lognormal(0, 0.5, groups), range(groups)


Kind = tuple[str, Make, float, bool]  # name, data, the true difference, whether values lie in [0, 1]
COVERAGE: tuple[Kind, ...] = (
    ("0/1, 100 cases, 3% differ", partial(binary, groups=100, gained=0.015, lost=0.015), 0.0, True),
    ("0/1, 300 cases, 15% differ", partial(binary, groups=300, gained=0.05, lost=0.1), -0.05, True),
    ("0/1, 60 clusters of 5, 7% differ", partial(binary, groups=60, size=5, gained=0.01, lost=0.06, correlation=0.7), -0.05, True),
    ("0/1, 100 clusters of 5, 20% differ", partial(binary, groups=100, size=5, gained=0.1, lost=0.1, correlation=0.4), 0.0, True),
    ("graded, 200 cases", partial(graded, groups=200), 0.0, True),
    ("graded, 40 clusters of 5", partial(graded, groups=40, size=5, shift=-0.03), -0.03, False),
    ("cost, 200 cases, skewed", partial(skewed, groups=200, factor=0.5), -0.5 * float(np.exp((0.36 + 0.25) / 2)), False),
)


def run(repeats: int) -> list[Finding]:
    """All simulations."""
    return [*coverage(repeats), *errors(repeats)]


def coverage(repeats: int, kinds: Sequence[Kind] = COVERAGE) -> Iterator[Finding]:
    """How often a 95% interval holds the true difference."""
    for seed, (name, make, truth, bounded) in enumerate(kinds):
        random = np.random.default_rng(seed)
        intervals = np.array([_interval(make(random), 0.05, bounded=bounded) for _ in range(repeats)])
        covered = float(np.mean((intervals[:, 0] <= truth) & (truth <= intervals[:, 1])))
        yield Finding(f"95% interval covers: {name}", covered, repeats, 0.94, 1.0)


def errors(repeats: int) -> Iterator[Finding]:
    """How often verdicts are what they should be: 15% of the cases differ, and there are as many as 95% power asks for."""
    n = power.cases_needed(MARGIN, power.discordant_variance(0.15), power=0.95) or 0
    equal, bad = partial(binary, groups=n, gained=0.075, lost=0.075), partial(binary, groups=n, gained=0.05, lost=0.1)
    edge = partial(binary, groups=n, gained=0.065, lost=0.085)
    words = {name: _words(make, repeats, seed) for seed, (name, make) in enumerate((("equal", equal), ("bad", bad), ("edge", edge)), 100)}
    passed = {name: np.isin(found, ("better", "not worse")) for name, found in words.items()}
    yield Finding(f"equal models, {n} cases: called better", float(np.mean(words["equal"] == "better")), repeats, 0.0, 0.05)
    yield Finding(f"equal models, {n} cases: pass with margin 2 points", float(passed["equal"].mean()), repeats, 0.94, 1.0)
    yield Finding("worse by exactly the margin: pass", float(passed["edge"].mean()), repeats, 0.0, 0.05)
    yield Finding("worse by 5 points: pass", float(passed["bad"].mean()), repeats, 0.0, 0.01)
    fewer = max(repeats // 5, 10)
    yield Finding("five tasks, all worse by the margin: any passes", _any_of_five(edge, fewer), fewer, 0.0, 0.05)


def _interval(data: Data, alpha: float, *, bounded: bool = True) -> tuple[float, float]:
    first, second, clusters = data
    return stats.paired(first, second, clusters, bounded=bounded).interval(alpha)


def _words(make: Make, repeats: int, seed: int) -> np.ndarray[tuple[int], np.dtype[np.str_]]:
    random = np.random.default_rng(seed)
    return np.array([decide(_interval(make(random), 0.05), MARGIN) for _ in range(repeats)])


def _any_of_five(make: Make, repeats: int) -> float:
    random = np.random.default_rng(200)
    passed = 0
    for _ in range(repeats):
        five = [stats.paired(*make(random)) for _ in range(5)]
        levels = stats.holm([one.p_above(-MARGIN) for one in five], 0.025)
        passed += any(decide(one.interval(2 * level), MARGIN) in ("better", "not worse") for one, level in zip(five, levels, strict=True))
    return passed / repeats


def offences(found: Sequence[Finding]) -> list[Finding]:
    """What does not hold."""
    return [one for one in found if not one.holds]


def lines(found: Sequence[Finding]) -> list[str]:
    """The findings as text."""
    width = max(len(one.name) for one in found)
    return [f"{'ok ' if one.holds else 'NOT'} {one.name:<{width}} {one.found:7.2%} of {one.repeats} "
            + (f"(at least {one.least:.0%})" if one.least else f"(at most {one.most:.0%})") for one in found]  # fmt: skip
