"""The ledger against the engine's own counters: what vLLM says that it did is what callers are billed for."""

import asyncio

import anthropic
import openai
import pytest

pytestmark = pytest.mark.slow
MODEL = "demo-generalist"
HELLO = [{"role": "user", "content": "Hello, how are you?"}]
COUNTERS = ("vllm:request_success_total", "vllm:prompt_tokens_total", "vllm:generation_tokens_total")


async def mixed_load(house):
    """48 calls of every kind at once, of different lengths; one in six is refused by the engine and must not count."""
    with_openai = openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=house.key, max_retries=0, timeout=120)
    with_anthropic = anthropic.AsyncAnthropic(base_url=house.url, api_key=house.key, max_retries=0, timeout=120)

    async def one(i, sdk, other):
        way, most = i % 6, 3 + i
        if way == 0:
            await sdk.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=most)
        elif way == 1:
            stream = await sdk.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=most, stream=True)
            assert [chunk async for chunk in stream]
        elif way == 2:
            await sdk.completions.create(model=MODEL, prompt="Hello", max_tokens=most)
        elif way == 3:
            await sdk.responses.create(model="task/chat", input="Hello", max_output_tokens=most)
        elif way == 4:
            async with other.messages.stream(model=MODEL, messages=HELLO, max_tokens=most) as stream:
                await stream.get_final_message()
        else:
            with pytest.raises(openai.BadRequestError):
                await sdk.completions.create(model=MODEL, prompt="Hello " * 2000, max_tokens=most)

    async with with_openai as sdk, with_anthropic as other:
        await asyncio.gather(*(one(i, sdk, other) for i in range(48)))


async def test_the_ledger_agrees_with_the_engine(house):
    """Over a mixed load the ledger's rows and tokens are vLLM's requests and tokens, exactly."""
    before = [house.gauge(MODEL, name) for name in COUNTERS]
    (newest,) = house.rows("select coalesce(max(id), 0) from ledger")[0]
    await mixed_load(house)

    def _counted():
        return [int(house.gauge(MODEL, name) - was) for name, was in zip(COUNTERS, before, strict=True)]

    def _billed():
        return list(house.rows("select count(*), sum(prompt_tokens), sum(completion_tokens) from ledger "
                               f"where id > {newest} and model = '{MODEL}' and status = 200 and exact = 1")[0])  # fmt: skip

    assert house.eventually(lambda: _billed()[0] == 40, 10), _billed()
    assert house.eventually(lambda: _counted() == _billed(), 10), (_counted(), _billed())
    assert house.rows(f"select count(*), sum(cost_nanousd) from ledger where id > {newest} and status = 400") == [(8, 0)]
