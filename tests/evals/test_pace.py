"""The pace: halves once a burst, grows back, never locks itself out; Retry-After in all its forms."""

import asyncio
import time
from email.utils import formatdate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evals.pace import Pace, retry_after_s


def test_a_burst_of_refusals_halves_once_and_answers_bring_it_back():
    """Ten refusals of one burst are one sign; a round of answers adds one place; the most is never passed."""
    pace = Pace(16)
    for _ in range(10):
        pace.refused(5.0)
    assert (pace.limit, pace.refusals) == (8.0, 10)
    for _ in range(8):
        pace.answered()
    assert 8.9 < pace.limit < 9.1
    for _ in range(1000):
        pace.answered()
    assert pace.limit == 16


@given(st.lists(st.sampled_from(["refused", "answered"]), max_size=60), st.integers(1, 20))
def test_there_is_always_a_place_and_never_one_too_many(signs, most):
    """However refusals and answers come, between one and `most` requests may be under way."""
    pace = Pace(most)
    for sign in signs:
        pace.refused(0.0) if sign == "refused" else pace.answered()
        assert 1 <= pace.limit <= most


async def test_all_get_their_turn_although_the_limit_fell():
    """Forty workers at a limit of one: each has its turn, one at a time, and nobody waits for ever."""
    pace = Pace(8)
    for _ in range(5):
        pace.refused(0.0)
    under_way = most = done = 0

    async def work():
        nonlocal under_way, most, done
        await pace.turn()
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        done += 1
        pace.over()

    async with asyncio.timeout(30), asyncio.TaskGroup() as group:
        for _ in range(40):
            group.create_task(work())
    assert (done, most) == (40, 1)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("3", 3.0), ("0.5", 0.5), ("-4", 0.0), ("99999", 600.0), ("soon", None), ("", None), (None, None), ("nan", None), ("inf", None)],
)
def test_retry_after_is_read_with_bounds(value, seconds):
    """Seconds up to ten minutes; what can't be read says nothing."""
    assert retry_after_s(value) == seconds


def test_retry_after_may_be_a_date():
    """An HTTP date is so many seconds from now; one that is past is now."""
    assert 50 < retry_after_s(formatdate(time.time() + 60, usegmt=True)) <= 60
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
