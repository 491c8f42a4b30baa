"""What a report says: failures count, the unscored do not, intervals are honest, cached answers lend no latency."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from evals.case import Answer, Case, Score, row
from evals.report import lines, quality, report, share, spread, wilson


def made(at, value=1.0, *, error="", cluster="", slice_="", **more):
    case = Case(f"c{at}", [], "x", slice_, cluster)
    return row(case, Answer(case_id=case.id, error=error, **({"total_s": 1.0} | more)), Score(case.id, 0, value))


def test_failures_are_failures_and_the_unscored_are_neither():
    """Of ten: four right, two wrong, three failed, one unscored. Failing half of the time must not look like quality."""
    rows = [
        *(made(at) for at in range(4)),
        *(made(at, 0.0) for at in range(4, 6)),
        *(made(at, error="cut: x") for at in range(6, 9)),
        made(9, None),
    ]
    found = quality(rows)
    assert (found.rows, found.failed, found.unscored) == (10, 3, 1)
    assert (found.quality.value, found.quality.n) == (pytest.approx(4 / 6), 6)
    assert (found.completion.value, found.completion.n) == (pytest.approx(0.7), 10)
    assert (found.effective.value, found.effective.n) == (pytest.approx(4 / 9), 9)


@given(st.integers(1, 500), st.data())
def test_the_interval_is_scipys_wilson(n, data):
    """The same bounds as scipy's for every share of every size."""
    hits = data.draw(st.integers(0, n))
    wanted = binomtest(hits, n).proportion_ci(0.95, method="wilson")
    assert wilson(hits / n, n) == pytest.approx((wanted.low, wanted.high), abs=1e-6)


def test_dependent_rows_widen_the_interval():
    """Ten clusters of ten equal rows say as much as ten rows; samples of one case are a cluster without being told."""
    alone = share([made(at, float(at % 2)) for at in range(100)], lambda one: one.value)
    clustered = share([made(at, float(at // 10 % 2), cluster=f"k{at // 10}") for at in range(100)], lambda one: one.value)
    repeated = share([made(at // 10, float(at // 10 % 2)) for at in range(100)], lambda one: one.value)
    assert alone.value == clustered.value == repeated.value == 0.5
    assert clustered[1:] == repeated[1:]
    assert clustered.high - clustered.low > 2.5 * (alone.high - alone.low)


@given(st.lists(st.tuples(st.floats(0, 1), st.sampled_from("abc")), min_size=1, max_size=40))
def test_an_interval_holds_its_mean_and_stays_within_bounds(values):
    """Whatever the grades and clusters."""
    found = share([made(at, value, cluster=cluster) for at, (value, cluster) in enumerate(values)], lambda one: one.value)
    assert -1e-9 <= found.low <= found.value + 1e-9 and found.value - 1e-9 <= found.high <= 1 + 1e-9


def test_slices_latency_tokens_and_cost():
    """Each slice on its own; percentiles by nearest rank; cached and failed answers lend no latency; unknown cost stays unknown."""
    rows = [made(at, slice_="ab"[at % 2], ttft_s=at / 100, total_s=at / 10, completion_tokens=2, prompt_tokens=3, itl_s=(0.01, 0.02, 0.03))
            for at in range(1, 101)]  # fmt: skip
    rows += [made(200, ttft_s=99.0, cached=True, cost_usd=0.5), made(201, error="http_500: it broke", ttft_s=88.0)]
    rows += [made(202, finish_reason="length", cached=True)]
    found = report(rows)
    assert found.ttft[:4] == (0.5, 0.95, 0.99, 1.0) and found.ttft.n == 100
    assert found.total.longest == 10.0 and found.gap.p50 == 0.01
    assert {name: part.rows for name, part in found.slices.items()} == {"a": 50, "b": 50}
    assert (found.prompt_tokens, found.completion_tokens, found.cost_usd, found.cached) == (300, 200, 0.5, 2)
    assert (found.errors, found.an_error, found.truncated) == ({"http_500": 1}, "http_500: it broke", 1)
    assert report(rows[:3]).cost_usd is None
    facts = {"suite": "s", "model": "m", "host": "h", "started": "now", "data_sha256": "0" * 64}
    text = "\n".join(lines(facts, found))
    assert "1 http_500" in text and "2 of 103" in text and "p95 950.0 ms" in text


def test_nothing_measured_is_nothing_said():
    """No rows, no scores, no times: no numbers are made up."""
    assert spread([]) is None and spread([None]) is None
    found = report([made(1, None)])
    assert found.overall.quality.value is None and found.overall.effective.n == 0 and found.ttft is None
