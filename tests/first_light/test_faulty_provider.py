"""Hosted targets that fail in every way, over real vLLM in both dialects: callers get the fallback's answer, the books what was used."""

import json

import anthropic
import httpx
import openai
import pytest
from faulty import FAULTS, proxy
from running import router_of

from routing.store import open_store

pytestmark = pytest.mark.slow
HELLO = [{"role": "user", "content": "hello"}]
PRICE = {"usd_per_million_input_tokens": 3, "usd_per_million_output_tokens": 15, "as_of": "2026-11-01", "source": "none: it is ours"}
DIALECTS = ("openai", "anthropic")


def write_site(folder, proxy_url):
    """For each fault and dialect a provider that is spoiled by it, and a task that falls back from it to one that is not."""
    providers, tasks = [], []
    for dialect in DIALECTS:
        for fault in (*FAULTS, "cut", "plain"):
            model = {"name": f"{fault}-{dialect}", "id": "demo-generalist", "price": PRICE, "context": 1024}
            providers.append({"name": model["name"], "url": f"{proxy_url}/{fault}", "dialect": dialect, "key_env": "PROVIDER_KEY",
                              "models": [model]})  # fmt: skip
            tasks.append({"name": model["name"], "candidates": [{"model": model["name"]}], "fallbacks": [f"plain-{dialect}", "local"]})
    tasks = [task for task in tasks if task["candidates"][0]["model"] not in task["fallbacks"]]
    models = [{"name": "local", "path": ".", "license": "x", "price": {"usd_per_gpu_hour": 1}}]
    routes = {"default_task": tasks[0]["name"], "cells": [{"name": "none", "url": "http://127.0.0.1:9"}], "providers": providers,
              "tasks": tasks, "zones": [{"name": "onprem", "teams": ["*"]}, {"name": "hosted", "teams": ["*"]}],
              "limits": {"first_byte_timeout_s": 5}}  # fmt: skip
    (folder / "models.yaml").write_text(json.dumps({"models": models}))
    (folder / "routes.yaml").write_text(json.dumps(routes))


@pytest.fixture(scope="module")
def site(house, tmp_path_factory):
    """(the router's address, a key, the proxy, the router's database)."""
    folder = tmp_path_factory.mktemp("faulty")
    with proxy(f"http://127.0.0.1:{house.models_port}/models/demo-generalist") as faulty:
        write_site(folder, faulty.url)
        with router_of(folder) as (url, key):
            engine = open_store(folder)
            yield url, key, faulty, engine
            engine.dispose()


def ask(url, key, dialect, task, *, stream=False):
    """The answer's text and headers."""
    path = "/v1/messages" if dialect == "anthropic" else "/v1/chat/completions"
    body = {"model": f"task/{task}", "messages": HELLO, "max_tokens": 40, "stream": stream}
    answer = httpx.post(url + path, headers={"authorization": f"Bearer {key}"}, json=body, timeout=60)
    assert answer.status_code == 200, answer.text
    return answer.text, answer.headers


def attempts(house, engine, request_id, n):
    """(attempt, model, status, error, tokens written) of a request, once so many rows are there."""
    def rows():
        with engine.connect() as connection:
            return connection.exec_driver_sql("select attempt, model, status, error, completion_tokens from ledger where request_id = ? "
                                              "order by attempt", (request_id,)).fetchall()  # fmt: skip

    assert house.eventually(lambda: len(rows()) == n, 20), rows()
    return rows()


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_before_the_first_byte_falls_back(house, site, fault, dialect):
    """Refused, failing, hung up, silent or half a head: the caller sees the fallback's whole stream, the ledger both attempts, the failed
    one unbilled where no model worked for it. Then the target is left alone: the next call does not go there first."""
    url, key, faulty, engine = site
    task = f"{fault}-{dialect}"
    text, headers = ask(url, key, dialect, task, stream=True)
    assert headers["inhouse-model"] == f"plain-{dialect}"
    assert "[DONE]" in text if dialect == "openai" else "message_stop" in text
    first, second = attempts(house, engine, headers["x-request-id"], 2)
    assert first[1] == task and first[2] >= 400 and first[3] and second[1:4] == (f"plain-{dialect}", 200, "") and second[4] > 0
    seen = faulty.seen[fault]
    assert ask(url, key, dialect, task)[1]["inhouse-model"] == f"plain-{dialect}" and faulty.seen[fault] == seen


def test_a_stream_that_is_cut_ends_with_an_error_and_counts_what_came(house, site):
    """Bytes have gone to the caller, so nothing falls back: both SDKs raise after the text that came, and the row has its tokens."""
    url, key, _, engine = site
    with openai.OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0) as client:
        stream = client.chat.completions.with_raw_response.create(model="task/cut-openai", messages=HELLO, max_tokens=40, stream=True)
        with pytest.raises(openai.APIError):
            list(stream.parse())
        openai_id = stream.headers["x-request-id"]
    with (anthropic.Anthropic(base_url=url, api_key=key, max_retries=0) as client, pytest.raises(anthropic.APIError),
          client.messages.stream(model="task/cut-anthropic", messages=HELLO, max_tokens=40) as events):  # fmt: skip
        anthropic_id = events.response.headers["x-request-id"]
        list(events)
    for request_id in (openai_id, anthropic_id):
        ((_, _, status, error, written),) = attempts(house, engine, request_id, 1)
        assert status == 502 and error in ("upstream_truncated", "upstream_closed") and 0 < written < 40
