"""The statistics against statsmodels, scipy and brute force, and what they promise for any data."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats as scipy_stats
from statsmodels.regression.linear_model import OLS
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import NormalIndPower

from evals import power, stats


def binary(n, seed, discordant=0.2):
    """Two models' 0/1 scores that differ on a share of the cases."""
    random = np.random.default_rng(seed)
    first = (random.random(n) < 0.8).astype(float)
    return first, np.where(random.random(n) < discordant, 1 - first, first)


def test_agresti_min_is_the_published_interval():
    """With every pair its own cluster the interval is Wald's after half a pair is added to each of the four cells."""
    first, second = binary(180, 1)
    gained, lost = int(((second - first) > 0).sum()) + 0.5, int(((second - first) < 0).sum()) + 0.5
    n = 182
    half = 1.959963984540054 * math.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    low, high = stats.paired(first, second, range(180)).interval(0.05)
    assert (low, high) == pytest.approx(((gained - lost) / n - half, (gained - lost) / n + half), abs=1e-12)


def test_clustered_variance_is_statsmodels():
    """The cluster-robust variance of the mean equals that of a regression on a constant in statsmodels."""
    random = np.random.default_rng(2)
    clusters = random.integers(0, 37, 400)
    values = random.standard_normal(400) + clusters % 5
    fitted = OLS(values, np.ones(400)).fit(cov_type="cluster", cov_kwds={"groups": clusters, "use_correction": False})
    groups = len(set(clusters))
    assert stats.clustered(values, clusters).variance == pytest.approx(fitted.cov_params()[0, 0] * groups / (groups - 1), rel=1e-10)


def test_bootstrap_agrees_with_scipy_on_quiet_data():
    """On large normal data the bootstrap's interval is Student's to a twentieth of its width."""
    random = np.random.default_rng(3)
    first, second = random.random(800), random.random(800)
    made = stats.paired(first, second, range(800))
    exact = scipy_stats.ttest_rel(second, first).confidence_interval(0.95)
    assert made.interval(0.05) == pytest.approx((exact.low, exact.high), abs=(exact.high - exact.low) / 20)
    assert made.p_above(0) == pytest.approx(scipy_stats.ttest_rel(second, first, alternative="greater").pvalue, abs=0.03)


def test_the_bootstrap_matrix_product_is_the_loop():
    """The vectorised draws give what drawing clusters one by one gives."""
    random = np.random.default_rng(4)
    clusters = random.integers(0, 12, 60)
    joined = stats.clustered(random.standard_normal(60) + 50, clusters)
    made = stats._pivots(joined, 5)
    generator = np.random.default_rng(stats.SEED)
    groups = len(joined.sums)
    drawn = generator.integers(0, groups, (5, groups), dtype=np.int32)
    for pivot, one in zip(made, drawn, strict=True):
        again = stats.Clustered(joined.sums[one], joined.counts[one], int(joined.counts[one].sum()))
        assert pivot == pytest.approx((again.mean - joined.mean) / math.sqrt(again.variance), rel=1e-6)


def test_holm_rejects_what_statsmodels_rejects():
    """A p-value at or below its level is a rejection of Holm's procedure, and no other is."""
    random = np.random.default_rng(5)
    for _ in range(20):
        p_values = list(random.random(6) ** 3)
        levels = stats.holm(p_values, 0.05)
        reject = multipletests(p_values, alpha=0.05, method="holm")[0]
        assert [p <= level for p, level in zip(p_values, levels, strict=True)] == list(reject)


@given(arrays.arrays(float, st.integers(4, 40), elements=st.sampled_from([0.0, 0.25, 1.0])), st.integers(1, 4), st.randoms())
@settings(max_examples=60, deadline=None)
def test_swapping_the_models_mirrors_everything(first, size, random):
    """Second against first is first against second with the sign turned."""
    second = np.array([random.choice([0.0, 0.5, 1.0]) for _ in first])
    clusters = [index // size for index in range(len(first))]
    if len(set(clusters)) < 2:
        return
    made, swapped = stats.paired(first, second, clusters), stats.paired(second, first, clusters)
    assert made.effect == pytest.approx(-swapped.effect)
    low, high = swapped.interval(0.05)
    assert made.interval(0.05) == pytest.approx((-high, -low), abs=1e-9)


@given(arrays.arrays(float, st.integers(2, 60), elements=st.sampled_from([0.0, 1.0])), st.floats(0.001, 0.2), st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_interval_and_p_value_agree(first, alpha, size):
    """The p-value against a bound is below alpha / 2 where the interval lies above the bound, and an identical model is never certain.

    The interval ends where differences of shares do.
    """
    second = np.roll(first, 1)
    clusters = [index // size for index in range(len(first))]
    if len(set(clusters)) < 2:
        return
    made = stats.paired(first, second, clusters)
    low, high = made.interval(alpha)
    assert -1 <= low < made.effect < high <= 1
    assert low == -1 or made.p_above(low - 1e-9) <= alpha / 2
    assert alpha / 2 <= made.p_above(low + 1e-9)
    same = stats.paired(first, first, clusters).interval(alpha)
    assert same[0] < 0 < same[1]


def test_graded_scores_without_differences_are_not_certain():
    """Graded scores that all agree get an interval of about two cases' width, not a point."""
    values = np.full(100, 0.5)
    low, high = stats.paired(values, values, range(100)).interval(0.05)
    assert high == -low == pytest.approx(1.96 / 102, abs=1e-4)


def test_clusters_widen_and_one_is_refused():
    """Cases that agree within their clusters count as less evidence; one cluster counts as none."""
    first, second = binary(40, 6)
    first, second = np.repeat(first, 5), np.repeat(second, 5)
    alone, joined = stats.paired(first, second, range(200)), stats.paired(first, second, np.repeat(range(40), 5))
    assert joined.design_effect == pytest.approx(5, rel=0.05)
    assert np.ptp(joined.interval(0.05)) > 2 * np.ptp(alone.interval(0.05))
    with pytest.raises(ValueError, match="1 clusters; a difference"):
        stats.paired(first, second, ["one"] * 200)


def test_ten_thousand_pairs_fit_in_memory():
    """The draws are made in chunks: no matrix is larger than 32 MB."""
    assert max(stats._chunks(4000, 10_000)) * 10_000 <= 2**22
    assert sum(stats._chunks(4000, 10_000)) == 4000


@pytest.mark.parametrize(("margin", "discordant", "expected"), [(0.03, 0.1, 863), (0.03, 0.2, 1734), (0.05, 0.2, 619), (0.02, 0.2, 3912)])
def test_cases_needed_are_those_of_the_literature(margin, discordant, expected):
    """The sizes for alpha 0.05 and power 0.8 are the known ones, and statsmodels' power at that size is 0.8."""
    variance = power.discordant_variance(discordant, margin)
    n = power.cases_needed(margin, variance)
    assert n == pytest.approx(expected, rel=0.005)
    theirs = NormalIndPower(ddof=0).power(margin / math.sqrt(variance), n, 0.025, ratio=0, alternative="larger")
    assert power.power_of(n, margin, variance) == pytest.approx(theirs, abs=1e-9) == pytest.approx(0.8, abs=0.001)
    assert power.margin_shown(n, variance) == pytest.approx(margin, rel=0.002)


def test_no_number_of_cases_shows_what_is_not_so():
    """A model that is worse by the margin is never shown to be within it; correlated clusters need more cases."""
    assert power.cases_needed(0.05, 0.2, effect=-0.05) is None
    assert power.design_effect(5, 0.25) == 2
