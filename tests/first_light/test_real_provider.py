"""Real vLLM as the hosted provider, as it speaks both dialects: asked by the SDKs through a router whose own models are all down."""

import json
import socket

import anthropic
import openai
import pytest

from routing import keys
from routing.store import open_store

pytestmark = pytest.mark.slow
HELLO = [{"role": "user", "content": "hello"}]
PRICE = {"usd_per_million_input_tokens": 3, "usd_per_million_output_tokens": 15, "as_of": "2026-11-01", "source": "none: it is ours"}


def site(folder, provider_url):
    """A catalog of one model that nobody serves, and routes that fall back from it to two providers of a dialect each."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        dead = taken.getsockname()[1]
    models = [{"name": "local", "path": ".", "license": "x", "price": {"usd_per_gpu_hour": 1}}]
    providers = [{"name": dialect, "url": provider_url, "dialect": dialect, "key_env": "PROVIDER_KEY",
                  "models": [{"name": f"by-{dialect}", "id": "demo-generalist", "price": PRICE, "context": 1024}]}
                 for dialect in ("openai", "anthropic")]  # fmt: skip
    routes = {"default_task": "chat", "cells": [{"name": "down", "url": f"http://127.0.0.1:{dead}"}], "providers": providers,
              "tasks": [{"name": "chat", "candidates": [{"model": "local"}], "fallbacks": ["by-openai", "by-anthropic"]}],
              "zones": [{"name": "onprem", "teams": ["*"]}, {"name": "hosted", "teams": ["*"]}]}  # fmt: skip
    (folder / "models.yaml").write_text(json.dumps({"models": models}))
    (folder / "routes.yaml").write_text(json.dumps(routes))


@pytest.fixture
def router(house, router_in, tmp_path):
    """The address of such a router and a key of it."""
    site(tmp_path, f"http://127.0.0.1:{house.models_port}/models/demo-generalist")
    engine = open_store(tmp_path)
    try:
        with router_in(tmp_path) as url:
            yield url, keys.create(engine, "tester")
    finally:
        engine.dispose()


def test_both_dialects_of_a_real_engine_answer_as_providers(router):
    """Whole answers and streams, named and as the fallback of a task, come through to both SDKs; what is personal does not go out."""
    url, key = router
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        for model in ("by-openai", "task/chat"):
            answer = client.chat.completions.create(model=model, messages=HELLO, max_tokens=12)
            assert answer.choices[0].message.content and answer.usage.completion_tokens > 0
            chunks = list(client.chat.completions.create(model=model, messages=HELLO, max_tokens=12, stream=True))
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        raw = client.chat.completions.with_raw_response.create(model="task/chat", messages=HELLO, max_tokens=12)
        assert raw.headers["inhouse-model"] == "by-openai" and float(raw.headers["inhouse-cost-usd"]) > 0
        with pytest.raises(openai.BadRequestError, match="max"):
            client.chat.completions.create(model="by-openai", messages=HELLO, max_tokens=-1)
        with pytest.raises(openai.InternalServerError):  # the local model is down, and this may go nowhere else
            client.chat.completions.create(model="task/chat", messages=[{"role": "user", "content": "card 4111 1111 1111 1111"}])
    with anthropic.Anthropic(base_url=url, api_key=key, max_retries=0) as client:
        for model in ("by-anthropic", "task/chat"):
            assert client.messages.create(model=model, messages=HELLO, max_tokens=12).content[0].text
            with client.messages.stream(model=model, messages=HELLO, max_tokens=12) as stream:
                assert "".join(stream.text_stream)
