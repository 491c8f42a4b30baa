"""How many cases a comparison needs, before it is run. Normal approximation of paired differences; no data is read here."""

import math

from scipy.special import ndtr, ndtri


def cases_needed(margin: float, variance: float, *, effect: float = 0.0, alpha: float = 0.05, power: float = 0.8) -> int | None:
    """Cases that show "not worse by more than `margin`" with this power, if the true difference is `effect`. None: no number does.

    `variance` is that of one paired difference: `discordant_variance` for 0/1 scores, times the design effect of clusters.
    n = (z(1 - alpha / 2) + z(power))^2 variance / (margin + effect)^2, for example Julious 2004, 5.2.
    """
    distance = margin + effect
    if distance <= 0:
        return None
    return math.ceil(_reach(alpha, power) ** 2 * variance / distance**2)


def power_of(n: float, margin: float, variance: float, *, effect: float = 0.0, alpha: float = 0.05) -> float:
    """The chance that n cases show it."""
    return float(ndtr((margin + effect) / math.sqrt(variance / n) - ndtri(1 - alpha / 2)))


def margin_shown(n: float, variance: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest margin that n cases of an equally good model show with this power."""
    return _reach(alpha, power) * math.sqrt(variance / n)


def discordant_variance(discordant: float, effect: float = 0.0) -> float:
    """The variance of a paired 0/1 difference: the share of cases on which the models differ, less the effect squared."""
    return discordant - effect**2


def design_effect(cluster_size: float, correlation: float) -> float:
    """How many dependent cases are worth one independent (Kish 1965)."""
    return 1 + (cluster_size - 1) * correlation


def _reach(alpha: float, power: float) -> float:
    return float(ndtri(1 - alpha / 2) + ndtri(power))
