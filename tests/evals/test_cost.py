"""What answers cost: hosted by the token, own by the hour; the shipped snapshot against the catalogs it came from."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals import price_check
from evals.case import Row
from evals.cost import CostError, Own, Price, break_even, costs_of, curve, own_price, prefill_share_of, read_prices, usd

H100 = Own(usd_per_gpu_hour=2.5, gpus=2, input_tokens_per_s=20_000, output_tokens_per_s=2_000, prefill_share=0.4, utilisation=0.3)
HOSTED = Price(input=0.25, output=2.0)


def row(**changes):
    """A row of 1,000 tokens in and 100 out."""
    known = {"case_id": "c", "sample": 0, "slice": "", "cluster": "", "value": 1.0, "failed": False, "ttft_s": None, "total_s": 1.0,
             "prompt_tokens": 1000, "completion_tokens": 100, "cost_usd": None, "text": "", "error": ""}  # fmt: skip
    return Row(**known | changes)


@given(st.floats(0.05, 1), st.floats(0, 1), st.floats(10, 1e5), st.floats(10, 1e5))
def test_the_fleet_is_paid_exactly(busy, share, tokens_in, tokens_out):
    """An hour of the workload at any utilisation, priced by the token, costs what the accelerators cost in that hour."""
    own = Own(usd_per_gpu_hour=2.5, gpus=4, input_tokens_per_s=tokens_in, output_tokens_per_s=tokens_out, prefill_share=share,
              utilisation=busy)  # fmt: skip
    assert usd(own_price(own), tokens_in * busy * 3600, tokens_out * busy * 3600) == pytest.approx(10.0)


def test_prefill_share_is_of_time():
    """A prompt of 1,000 tokens at 20,000 a second takes 50 ms, 100 tokens out at 500 a second 200 ms: a fifth is prefill."""
    assert prefill_share_of(1000, 100, 20_000, 500) == pytest.approx(0.2)


def test_the_curve_falls_with_use_and_crosses_at_break_even():
    """Twice the use is half the price, and at the break-even utilisation own and hosted cost the same per task."""
    points = curve(H100, 1000, 100)
    assert [point.utilisation for point in points][:2] == [0.05, 0.1]
    assert points[0].usd_per_task == pytest.approx(2 * points[1].usd_per_task)
    at = break_even(H100, HOSTED, 1000, 100)
    assert 0 < at < 1
    assert usd(own_price(H100, at), 1000, 100) == pytest.approx(usd(HOSTED, 1000, 100))


def test_break_even_counts_success():
    """A model that is right half as often has to be twice as busy; one that is never right never pays, one that can't pay says so."""
    one = break_even(H100, HOSTED, 1000, 100)
    assert break_even(H100, HOSTED, 1000, 100, own_success=0.5, hosted_success=1.0) == pytest.approx(2 * one)
    assert break_even(H100, HOSTED, 1000, 100, own_success=0.0) is None
    assert break_even(H100, HOSTED, 1000, 100, hosted_success=0.0) == 0.0
    assert break_even(H100, Price(input=0.001, output=0.001), 1000, 100) is None


def test_rows_are_priced_by_the_router_first():
    """The router's own account wins over tokens; a failed request without tokens is free; an unpriced answer makes the sum unknown."""
    priced = [row(cost_usd=0.5), row(), row(failed=True, prompt_tokens=None, completion_tokens=None)]
    assert costs_of(priced, HOSTED) == pytest.approx([0.5, 0.00045, 0.0])
    assert costs_of(priced, None) is None
    assert costs_of([row(prompt_tokens=None, completion_tokens=None)], HOSTED) is None


def test_a_model_has_one_price_or_none():
    """A full name is exact; a bare name counts where all providers that have it agree; anything else is unknown, not free."""
    prices = read_prices()
    assert prices.price("openai/gpt-5-mini") == prices.price("gpt-5-mini") is not None
    assert prices.price("demo-extractor") is None
    differing = {"a/m": Price(input=1, output=1), "b/m": Price(input=2, output=1)}
    assert type(prices)(date="today", hosted=differing).price("m") is None


def test_a_run_is_priced_by_the_file_else_by_its_router():
    """The price file's word counts where it has one; a model on premises costs what its router said when it ran; else it is unknown."""
    prices = read_prices()
    told = {"price": {"usd_per_million_input_tokens": 0.1, "usd_per_million_output_tokens": 0.2}}
    assert prices.of_run({"model": "demo-extractor", "served": told}) == Price(input=0.1, output=0.2)
    assert prices.of_run({"model": "gpt-5-mini", "served": told}) == prices.price("gpt-5-mini")
    assert prices.of_run({"model": "demo-extractor", "served": {"price": {}}}) is None
    assert prices.of_run({"model": "demo-extractor"}) is None


def test_every_disagreement_of_the_catalogs_is_listed():
    """Where genai-prices differs from the snapshot by more than 1%, the file says so, for a person to settle."""
    shipped = read_prices()
    listed = {(one.model, one.field) for one in shipped.disagreements}
    assert {(one.model, one.field) for one in price_check.disagreements(shipped.hosted, shipped.date)} <= listed
    assert listed


def test_a_planted_disagreement_is_found():
    """A price that is 2% off is a disagreement, one that is half a percent off is not."""
    real = read_prices().hosted["openai/gpt-5-mini"]
    planted = {"openai/gpt-5-mini": Price(input=real.input * 1.02, output=real.output * 1.005)}
    found = price_check.disagreements(planted, read_prices().date)
    assert [(one.model, one.field, one.other) for one in found] == [("openai/gpt-5-mini", "input", real.input)]


def test_the_snapshot_can_be_made_again(tmp_path):
    """The file's own text, written and read, is the same snapshot."""
    shipped = read_prices()
    file = tmp_path / "prices.yaml"
    file.write_text(price_check.as_yaml(shipped))
    assert read_prices(file) == shipped


@pytest.mark.parametrize(("text", "said"), [
    ("date: today\nhostd: {}\n", "unknown field `hostd`"),
    ("- 1\n", "no price file"),
    ("date: today\nown: {m: {usd_per_gpu_hour: 1, input_tokens_per_s: 1, output_tokens_per_s: 1, prefill_share: 0.5, utilisation: 30}}\n",
     "own model `m`: utilisation is above 0 and at most 1"),
    ("date: today\nown: {m: {usd_per_gpu_hour: 1, input_tokens_per_s: 0, output_tokens_per_s: 1, prefill_share: 0.5, utilisation: 1}}\n",
     "tokens per second are above 0"),
])  # fmt: skip
def test_a_bad_price_file_is_refused(tmp_path, text, said):
    """Unknown keys and senseless figures are errors that name the file and the key."""
    file = tmp_path / "prices.yaml"
    file.write_text(text)
    with pytest.raises(CostError) as error:
        read_prices(file)
    assert said in str(error.value)
    assert str(file) in str(error.value)
