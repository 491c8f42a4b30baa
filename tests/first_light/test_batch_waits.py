"""Interactive before batch at a real engine that is full: who may wait, waits."""

import asyncio
import time

import openai
import pytest

from routing import keys
from routing.store import open_store

pytestmark = pytest.mark.slow
MODEL = "demo-generalist"
PLACES = 32  # `max_num_seqs` of the demo models
WAITING = 6


async def test_an_interactive_call_goes_before_the_batch_that_waits(house):
    """32 batch calls of different lengths fill the engine and six more wait: an interactive one, sent last, gets the first place that is
    free. In order of arrival it would get the seventh, and with a batch key it does."""
    engine = open_store(house.home)
    key = keys.create(engine, "nightly", is_batch=True)
    engine.dispose()
    lengths = [300 + 19 * i for i in range(PLACES)] + [900] * WAITING
    async with openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=key, max_retries=0, timeout=300) as sdk:

        async def one(n):
            more = {"ignore_eos": True, "priority": 0}  # which does not help it
            return await sdk.completions.create(model=MODEL, prompt="Hello", max_tokens=n, extra_body=more)

        batch = [asyncio.create_task(one(n)) for n in lengths]
        try:
            deadline = time.monotonic() + 60
            while await asyncio.to_thread(house.gauge, MODEL, "vllm:num_requests_waiting") < WAITING:
                assert time.monotonic() < deadline and not any(task.done() for task in batch), [task for task in batch if task.done()]
                await asyncio.sleep(0.05)
            answer = await sdk.with_options(api_key=house.key).completions.create(model=MODEL, prompt="Hello", max_tokens=1)
            ended = sum(task.done() for task in batch)
        finally:
            for task in batch:
                task.cancel()
            await asyncio.gather(*batch, return_exceptions=True)
    assert answer.usage.completion_tokens == 1
    assert ended <= 4, f"{ended} of the batch had ended"
