"""Interactive before batch: what a batch key asks reaches our models with a priority that is served last, whatever the body says."""

import json
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from routing import keys
from routing.batch import PRIORITY, check_sorted, stand_back
from routing.errors import Denied
from routing.request import ENDPOINTS, Asked, read_asked

PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/rerank", "/v1/score", "/v1/systemone")


@pytest.fixture
def batch(toll, make_caller):
    """A client with a batch key."""

    async def _make():
        name, client = await make_caller("1usd/day")
        client.key = keys.create(toll.engine, name, is_batch=True)
        return client

    return _make


@pytest.mark.parametrize("given", [{}, {"priority": 0}, {"priority": 3}, {"priority": 50}])
async def test_a_batch_key_stands_back_and_may_stand_back_further(batch, upstream, chat, given):
    """The model gets at least the batch priority for each path that takes one; an interactive key's word goes through as it is
    (AISVS C9.1: no caller takes more than its share)."""
    client = await batch()
    for path in PATHS[:5]:
        asked = chat(max_tokens=5, max_output_tokens=5, prompt="hi", input="hi", query="hi", documents=["hi"], **given)
        assert (await client.ask(asked, path, headers={"x-vllm-priority": "0"})).status == 200
        (seen,) = upstream.got(asked["tag"])
        assert seen.json == {**asked, "priority": max(PRIORITY, given.get("priority", 0))}, "and nothing else is changed"
        assert seen.header("x-vllm-priority") is None


async def test_anthropics_messages_carry_it_in_a_header(batch, make_caller, upstream, chat):
    """Their body has no field for it; the header is the router's own, a caller's never passes."""
    client = await batch()
    asked = chat(max_tokens=5)
    assert (await client.ask(asked, "/v1/messages", headers={"x-vllm-priority": "-5"})).status == 200
    (seen,) = upstream.got(asked["tag"])
    assert seen.header("x-vllm-priority") == str(PRIORITY) and "priority" not in seen.json
    _, other = await make_caller("1usd/day")
    asked = chat(max_tokens=5)
    assert (await other.ask(asked, "/v1/messages", headers={"x-vllm-priority": "-5"})).status == 200
    assert upstream.got(asked["tag"])[0].header("x-vllm-priority") is None


async def test_what_models_can_not_sort_is_refused_to_a_batch_key(batch):
    """Sound goes through no queue that sorts: 403, with what to do."""
    client = await batch()
    edge = uuid.uuid4().hex
    form = f'--{edge}\r\ncontent-disposition: form-data; name="model"\r\n\r\nalpha\r\n--{edge}--\r\n'.encode()
    got = await client.ask(form, "/v1/audio/transcriptions", headers={"content-type": f"multipart/form-data; boundary={edge}"})
    assert (got.status, got.error["code"]) == (403, "batch_not_served") and "--batch" in got.error["message"]
    for path, endpoint in ENDPOINTS.items():
        if endpoint.form:
            with pytest.raises(Denied):
                check_sorted(endpoint)
        else:
            assert (path in (*PATHS, "/v1/chat/completions/batch", "/v1/messages")) or endpoint.is_free, "is it sorted?"


def asked_of(path):
    """A batch key's body for vLLM."""
    endpoint = ENDPOINTS[path]
    said = {"/v1/chat/completions": {"messages": [{"role": "user", "content": "x"}]}, "/v1/completions": {"prompt": "x"}}
    body = json.dumps({"model": "m", "priority": 1, **said.get(path, {"input": "x"})}).encode()
    asked: Asked = read_asked(endpoint, body, json_depth=9, media_domains=())
    return json.loads(stand_back(asked, body)[1])


@pytest.mark.slow
def test_the_engine_reads_what_is_sent():
    """vLLM's own request classes take the field, its server the header, and its queue serves the lower number first; our engines sort."""
    script = Path(__file__).with_name("priority_probe.py")
    bodies = {path: asked_of(path) for path in PATHS[:4]}
    done = subprocess.run([sys.executable, str(script)], input=json.dumps(bodies), capture_output=True, text=True, timeout=300, check=False)
    told = json.loads(next((line for line in done.stdout.splitlines() if line.startswith('{"read"')), "null"))
    assert told is not None, done.stderr[-3000:]
    assert told["read"] == dict.fromkeys(PATHS[:4], PRIORITY)
    assert (told["header"], told["policy"], told["order"]) == (PRIORITY, "priority", ["interactive", "late interactive", "batch"])
