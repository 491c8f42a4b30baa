"""Comparing two stored runs: what pairs, what decides, what is refused, and what the verdict's file says."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from evals import stats, stats_bench
from evals.compare import CompareError, compare, decide, measures, more_cases, pair, slices, usd_per_success
from evals.comparison import keep
from evals.cost import Own, Price, Prices
from evals.verdict import read_verdict

OWN = Own(usd_per_gpu_hour=3.6, input_tokens_per_s=1000, output_tokens_per_s=100, prefill_share=0.5, utilisation=0.5)
PRICES = Prices(date="2026-11-25", hosted={"openai/new": Price(input=1.0, output=10.0)}, own={"old": OWN})


@pytest.fixture
def runs(tmp_path, keep_run):
    """`runs(first, second)`: the pairs of two runs of these values; `old` is the incumbent."""

    def made(first, second, **more):
        return pair(keep_run(tmp_path, "old", first, **more), keep_run(tmp_path, "new", second, **more))

    return made


def only(pairs, **asked):
    """The comparison of one task."""
    return compare([pairs], **({"margin": 0.02} | asked))[0]


def test_each_verdict_is_read_off_the_interval():
    """The four verdicts are the four places where the interval can lie."""
    assert decide((0.01, 0.05), 0.02) == "better"
    assert decide((-0.01, 0.05), 0.02) == decide((-0.019, -0.001), 0.02) == "not worse"
    assert decide((-0.09, -0.01), 0.02) == decide((-0.021, -0.001), 0.02) == "worse"
    assert decide((-0.03, 0.01), 0.02) == "not enough evidence"


@given(st.tuples(st.floats(-1, 1), st.floats(-1, 1)).map(sorted), st.floats(0.001, 0.2), st.floats(0.001, 0.2))
def test_a_wider_margin_never_takes_a_pass_away(interval, one, other):
    """What passes a margin passes any wider one."""
    passes = [decide(tuple(interval), margin) in ("better", "not worse") for margin in sorted((one, other))]
    assert passes[0] <= passes[1]


def test_a_better_model_passes_and_a_worse_one_does_not(runs):
    """A candidate that wins on a fifth of 300 cases is better; the same data swapped is worse."""
    weak = [0.0 if at % 5 == 0 else 1.0 for at in range(300)]
    made = only(runs(weak, [1.0] * 300))
    assert (made.word, made.more_cases, made.reasons) == ("better", None, ())
    assert made.estimate.effect == pytest.approx(0.2)


def test_a_failed_request_counts_as_wrong(runs):
    """Failures lower the candidate: a model that fails on 1% is compared as wrong there, not as if it had not been asked."""
    made = only(runs([1.0] * 300, ["failed"] * 3 + [1.0] * 297), margin=0.05)
    assert made.estimate.effect == pytest.approx(-0.01)
    assert made.estimate.n == 300
    assert made.word == "not worse"


def test_many_failures_of_either_decide_nothing(runs):
    """A run that completed less than 99% is void, as an outage of the incumbent must not promote the candidate."""
    made = only(runs(["failed"] * 60 + [1.0] * 240, [1.0] * 300))
    assert made.estimate.effect == pytest.approx(0.2)
    assert made.word == "not enough evidence"
    assert made.more_cases is None
    assert made.reasons == ("the incumbent completed 80.0% of its requests and 99% are needed; see why: inhouse eval report old",)


def test_unscored_pairs_are_left_out_and_counted(runs):
    """An unscored answer of either model takes the pair out; more than a twentieth of them void the comparison."""
    pairs = runs([None, *[1.0] * 299], [1.0, None, *[1.0] * 298])
    assert (len(pairs.rows), pairs.unscored) == (298, 2)
    assert only(pairs).word == "not worse"


def test_much_unscored_decides_nothing(tmp_path, keep_run):
    """A scorer that could not judge a tenth of the answers is the thing to mend first."""
    pairs = pair(keep_run(tmp_path, "old", [1.0] * 300), keep_run(tmp_path, "new", [None] * 30 + [1.0] * 270))
    assert only(pairs).word == "not enough evidence"
    assert "30 of 300 pairs are unscored and 5% may be" in only(pairs).reasons[0]


def test_few_clusters_decide_nothing(runs):
    """Three clusters are three pieces of evidence however many cases they have."""
    made = only(runs([0.0, 1.0] * 150, [1.0] * 300, clusters=[f"t{at % 3}" for at in range(300)]))
    assert "3 clusters and 5 are needed" in made.reasons[0]


def test_not_enough_says_how_many_more(runs):
    """With few cases that differ both ways it asks for more; with so many, the same difference passes."""
    random = np.random.default_rng(1)
    first = (random.random(300) < 0.8).astype(float)
    second = np.where(random.random(300) < 0.1, 1 - first, first)
    made = only(runs(first.tolist(), second.tolist()), margin=0.03)
    assert made.word in ("not enough evidence", "worse")
    assert made.more_cases
    times = math.ceil((made.more_cases + 300) / 300)
    again = stats.paired(np.tile(first, times), np.tile(second, times), range(300 * times))
    assert decide(again.interval(0.05), 0.03) != "not enough evidence"


def test_no_more_cases_are_asked_for_where_it_is_hopeless():
    """A candidate that is certainly worse than the margin is not asked to try again."""
    first = np.ones(300)
    second = np.where(np.arange(300) % 5 == 0, 0.0, 1.0)
    assert more_cases(stats.paired(first, second, range(300)), 0.02, 0.05) is None


@pytest.mark.parametrize("changed", [{"data_sha256": "x"}, {"prompt_sha256": "x"}, {"scorer": "x"}, {"judge": {"model": "x"}}])
def test_runs_of_other_data_prompt_scorer_or_judge_are_refused(tmp_path, keep_run, changed):
    """Scores that were not made alike are not paired, and the message says what differs."""
    one, two = keep_run(tmp_path, "old", [1.0] * 9), keep_run(tmp_path, "new", [1.0] * 9, **changed)
    with pytest.raises(CompareError, match=f"differ in their {next(iter(changed)).removesuffix('_sha256')}"):
        pair(one, two)


def test_runs_without_cases_in_common_are_refused(tmp_path, keep_run):
    """Two runs that share fewer than two independent scored cases can't be compared."""
    one, two = keep_run(tmp_path, "old", [1.0] * 9), keep_run(tmp_path, "new", [None] * 9)
    with pytest.raises(CompareError, match="9 cases are in both runs and 0 of them are scored"):
        pair(one, two)


def test_rows_without_a_partner_are_counted(tmp_path, keep_run):
    """A run that was limited is compared on what both have."""
    pairs = pair(keep_run(tmp_path, "old", [1.0] * 30), keep_run(tmp_path, "new", [1.0] * 20))
    assert (len(pairs.rows), pairs.unpaired) == (20, 10)


def test_samples_of_one_case_are_one_cluster(runs):
    """Asking each case five times is not five times the evidence."""
    first = [float(at % 10 != 0) for at in range(100)]
    pairs = runs(first, [1.0] * 100)
    asked_again = [(structs.replace(one, sample=at), structs.replace(two, sample=at)) for one, two in pairs.rows for at in range(5)]
    often = replace(pairs, rows=asked_again)
    assert (only(often).estimate.n, only(often).estimate.clusters) == (500, 100)
    assert only(often).estimate.se == pytest.approx(only(pairs).estimate.se, rel=0.1)


def test_several_tasks_share_the_error_rate(tmp_path, keep_run):
    """Two tasks are tested at half the level until one passes; a lone one keeps the whole."""
    weak, strong = [float(at % 9 != 0) for at in range(300)], [1.0] * 300
    first = pair(keep_run(tmp_path, "old", weak), keep_run(tmp_path, "new", strong))
    second = pair(keep_run(tmp_path, "old2", strong, suite="chat"), keep_run(tmp_path, "new2", weak, suite="chat"))
    both = compare([second, first], margin=0.02)
    assert [made.word for made in both] == ["worse", "better"]
    assert [made.level for made in both] == [0.05, 0.025]


def test_cost_is_per_success_and_time_per_request(runs):
    """What was paid for wrong answers is part of what right ones cost; own and hosted models are priced from one file."""
    pairs = runs([1.0, 0.0] * 50, [1.0] * 100)
    own = (100 * 3.6 / 3600 / 0.5 * 0.5 / 1000 + 20 * 3.6 / 3600 / 0.5 * 0.5 / 100) * 100 / 50
    assert usd_per_success(pairs, PRICES) == pytest.approx((own, 100 / 1e6 + 200 / 1e6))
    found = {one.name: one for one in measures(pairs, PRICES)}
    assert found["whole answer, s"].incumbent == pytest.approx(1.2)
    assert found["cost per request, USD"].interval[0] <= found["cost per request, USD"].effect <= found["cost per request, USD"].interval[1]
    assert usd_per_success(pairs, Prices(date="today")) == (None, None)


def test_times_from_the_cache_are_left_out(runs):
    """An answer from the cache was timed at another hour, so no time is compared."""
    pairs = runs([1.0] * 10, [1.0] * 10, changes={"cached": True})
    assert [one.name for one in measures(pairs, PRICES)] == ["cost per request, USD"]


def test_times_under_other_load_are_left_out(tmp_path, keep_run):
    """A model that was asked by eight at once is not called faster than one that was asked by sixty-four."""
    one, two = (keep_run(tmp_path, name, [1.0] * 10, settings={"at_once": n}) for name, n in (("old", 8), ("new", 64)))
    assert [one.name for one in measures(pair(one, two), PRICES)] == ["cost per request, USD"]


def test_slices_are_told(runs):
    """Each slice has its pairs and both means."""
    assert slices(runs([1.0, 0.0] * 5, [1.0] * 10)) == {"even": (5, 1.0, 1.0), "odd": (5, 0.0, 1.0)}


def test_the_verdict_is_a_file_that_reads_back(tmp_path, runs):
    """verdict.json holds what a route needs as evidence, and reading it gives the same document."""
    kept = keep(tmp_path, only(runs([1.0] * 300, [1.0] * 300)), PRICES, mlflow_run="abc")
    again = read_verdict(kept.folder / "verdict.json")
    assert again == kept.verdict
    assert (again.promotes, again.sentence) == (True, "not worse by more than 2 points")
    plain = json.loads((kept.folder / "verdict.json").read_text())
    expected = {"task": "extraction", "incumbent": "old", "candidate": "new", "n": 300, "data_sha256": "d" * 64, "verdict": "not worse",
                "candidate_digest": "sha256:new", "incumbent_run": "old", "candidate_run": "new", "mlflow_run": "abc", "judge_sha256": None}
    assert plain | expected == plain
    assert sorted(file.name for file in kept.folder.iterdir()) == ["pairs.parquet", "report.html", "verdict.json"]


def test_the_page_escapes_what_models_wrote(tmp_path, runs):
    """A model's HTML is text on the page, and the interval is drawn."""
    kept = keep(tmp_path, only(runs([0.0] * 5 + [1.0] * 295, [1.0] * 300)), PRICES)
    html = (kept.folder / "report.html").read_text()
    assert "&lt;b&gt;said 0&lt;/b&gt;" in html
    assert "<b>said" not in html
    assert '<svg width="600"' in html


def test_what_models_wrote_about_sensitive_data_stays_in_the_runs(tmp_path, runs):
    """The comparison's folder, which is passed on, has no text where the data is sensitive."""
    kept = keep(tmp_path, only(runs([0.0] * 5 + [1.0] * 295, [1.0] * 300, settings={"sensitive": True})), PRICES)
    assert all(b"said" not in file.read_bytes() for file in kept.folder.iterdir())
    import pyarrow.parquet as pq

    table = pq.read_table(kept.folder / "pairs.parquet")
    assert "text" not in table.column_names
    assert table.num_rows == 600


def test_simulated_comparisons_err_as_rarely_as_stated():
    """Over 200 comparisons each: a planted 5-point worse model is refused, an equal one is let pass, one at the margin hardly ever."""
    found = {one.name: one.found for one in stats_bench.errors(200)}
    equal = next(share for name, share in found.items() if name.endswith("pass with margin 2 points"))
    better = next(share for name, share in found.items() if name.endswith("called better"))
    assert found["worse by 5 points: pass"] == 0
    assert equal >= 0.9
    assert max(better, found["worse by exactly the margin: pass"], found["five tasks, all worse by the margin: any passes"]) <= 0.05


def test_simulated_intervals_cover_what_they_claim():
    """Over 200 simulated 0/1 comparisons of each kind a 95% interval misses the truth at most 16 times, 3 standard errors."""
    kinds = [kind for kind in stats_bench.COVERAGE if kind[0].startswith("0/1")]
    assert all(one.found >= 0.92 for one in stats_bench.coverage(200, kinds))


def test_a_false_claim_of_the_simulation_is_an_offence():
    """A share outside its bounds is reported as such, so that the benchmark can fail."""
    good, bad = stats_bench.Finding("x", 0.95, 10, 0.94, 1.0), stats_bench.Finding("y", 0.5, 10, 0.94, 1.0)
    assert stats_bench.offences([good, bad]) == [bad]
    assert stats_bench.lines([good, bad])[1].startswith("NOT y")
