"""Budgets as people write them, their periods, and what a call costs."""

from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.budgets import Budget, amount, budget_of, budgets_of, period_start, renews_at
from routing.prices import TEMPLATE_TOKENS, price_of, priced, prompt_bound
from serving.catalog import Model, Price, read_catalog


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("1usd/day", Budget("nanousd", "day", 1_000_000_000)),
        ("0.000000001 usd", Budget("nanousd", "total", 1)),
        ("2.5usd/month", Budget("nanousd", "month", 2_500_000_000)),
        ("20000tokens/minute", Budget("tokens", "minute", 20_000)),
        ("60000gpu_ms/hour", Budget("gpu_ms", "hour", 60_000)),
        ("8concurrent", Budget("concurrent", "total", 8)),
        ("0calls", Budget("calls", "total", 0)),
    ],
)
def test_budgets_are_read_and_written(text, budget):
    """What is written is what is meant, and comes back as it was."""
    assert budget_of(text) == budget
    assert budget_of(str(budget)) == budget


@pytest.mark.parametrize(
    "text",
    ["", "1", "usd", "-1usd/day", "1eur/day", "1usd/week", "1.5calls", "0.0000000001usd", "1e9usd", "8concurrent/day", "9" * 30 + "usd"],
)
def test_nonsense_is_refused(text):
    """What is no budget is told, not guessed at."""
    with pytest.raises(ValueError, match="`"):
        budget_of(text)


def test_two_budgets_about_the_same_are_refused():
    """One of them would be the wrong one."""
    with pytest.raises(ValueError, match="both about the same"):
        budgets_of(["1usd/day", "5calls", "2usd/day"])


@given(st.sampled_from(["minute", "hour", "day", "month"]), st.floats(0, 4e9))
def test_periods_follow_one_another_without_a_gap(every, now):
    """A moment lies in its period; the period's end is the next one's start."""
    start, end = period_start(every, now), renews_at(every, now)
    assert start <= now < end
    assert period_start(every, end) == end
    assert period_start(every, end - 1) == start


def test_months_are_calendar_months():
    """A budget per month renews on the first, in UTC."""
    assert renews_at("month", datetime(2026, 12, 31, 23, 59, tzinfo=UTC).timestamp()) == datetime(2027, 1, 1, tzinfo=UTC).timestamp()
    assert renews_at("total", 1e9) == 0


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.floats(0, 1e4), st.floats(0, 1e4))
def test_a_charge_is_never_less_than_the_price(prompt, completion, usd_in, usd_out):
    """Amounts round up, by less than one nano-USD for the call and what the price itself was rounded by; more tokens never cost less."""
    price = priced(usd_in, usd_out)
    charge = price.charge(prompt, completion)
    exact = (prompt * usd_in + completion * usd_out) * 1000
    assert exact * (1 - 1e-12) <= charge.nanousd <= exact * (1 + 1e-12) + 2 + (prompt + completion) / 1e6
    assert price.charge(prompt, completion + 1) >= charge
    for number, (fixed, per, scale) in zip(charge, price.linear(prompt, 1), strict=True):
        assert number == -(-(fixed + completion * per) // scale)


def test_every_shipped_model_has_a_price_per_token():
    """No model of the catalog is free by accident (AISVS 9.1.1: what costs nothing on paper is never stopped)."""
    for model in read_catalog().models:
        price = price_of(model)
        assert price.prompt > 0 and price.gpu_ns > 0 and not price.wall_gpus


def test_an_hour_of_gpus_becomes_a_price_per_token():
    """2 GPUs at 3.60 USD an hour that read and write 1,000 tokens a second: 2 USD per million tokens, 2 ms of GPU for each."""
    model = Model(name="m", license="x", path="x", gpus=2, price=Price(usd_per_gpu_hour=3.6, tokens_per_s=1000))
    charge = price_of(model).charge(600_000, 400_000)
    assert (amount("nanousd", charge.nanousd), charge.gpu_ms) == ("2usd", 2_000_000)


def test_without_a_throughput_time_is_charged_up_to_the_worst_case():
    """A model whose speed nobody measured is charged by the clock, at most what was reserved."""
    price = price_of(Model(name="m", license="x", path="x", gpus=1, price=Price(usd_per_gpu_hour=3.6)))
    worst = price.charge(50, 50)
    assert worst.gpu_ms == 10_000
    assert price.wall(worst, 2.5) == worst._replace(gpu_ms=2500, nanousd=2_500_000)
    assert price.wall(worst, 99).nanousd == worst.nanousd


@given(st.text(), st.booleans())
def test_a_prompt_is_never_bounded_below_its_bytes(text, is_ascii):
    """Every token of a byte-level tokenizer stands for a byte or more: the bound is at least the UTF-8 bytes of what was said."""
    body = msgspec.json.encode({"messages": [{"role": "user", "content": text.encode(errors="replace").decode()}]})
    if is_ascii:  # as Python's own json spells it
        body = "".join(chr(b) if b < 128 else "?" for b in body).encode()
    assert prompt_bound(body) >= len(text.encode(errors="replace")) * (not is_ascii) + TEMPLATE_TOKENS


def test_media_count_by_the_part_however_they_are_spelled():
    """A tiny picture may be thousands of tokens, and a key may hide behind an escape."""
    for key in ('"image_url"', '"im\\u0061ge_url"'):
        body = b'{"messages": [{"role": "user", "content": [{%b: {"url": "data:,"}}]}]}' % key.encode()
        assert prompt_bound(body) > 16_384
