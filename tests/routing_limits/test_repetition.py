"""Repetition detection is asked of vLLM in its own words, and its finish reason comes back in OpenAI's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from routing.repetition import in_openai_words, with_detection


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_the_engine_takes_the_field(path):
    """vLLM's own request classes read what is sent, with these bounds."""
    vllm = pytest.importorskip("vllm.entrypoints.openai.chat_completion.protocol")
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest

    body = with_detection(path, json.dumps({"model": "m", "messages": [{"role": "user", "content": "x"}], "prompt": "x"}).encode())
    request = (vllm.ChatCompletionRequest if "chat" in path else CompletionRequest)(**json.loads(body))
    found = request.to_sampling_params(10, {}).repetition_detection
    assert (found.min_pattern_size, found.max_pattern_size, found.min_count) == (16, 64, 4)


@pytest.mark.slow
def test_the_engine_stops_a_model_that_repeats_itself(tmp_path):
    """A real vLLM on a tiny model that goes round: 1,500 tokens without, some hundred with, and its own word for why."""
    probe = Path(__file__).with_name("repetition_probe.py")
    done = subprocess.run([sys.executable, str(probe), str(tmp_path)], capture_output=True, text=True, timeout=900, check=False)
    told = json.loads(next((line for line in done.stdout.splitlines() if line.startswith('{"plain"')), "null"))
    assert told is not None, done.stderr[-3000:]
    assert told["plain"] == {"finish": "length", "stop": None, "tokens": 1500}
    assert (told["detected"]["finish"], told["detected"]["stop"]) == ("repetition", "repetition_detected")
    assert told["detected"]["tokens"] < 300


def test_a_callers_own_setting_wins_and_other_paths_stay_untouched():
    """Of two settings the later counts, which is the caller's."""
    mine = {"max_pattern_size": 0, "min_pattern_size": 0, "min_count": 0}
    body = json.dumps({"model": "m", "repetition_detection": mine}).encode()
    assert json.loads(with_detection("/v1/chat/completions", body))["repetition_detection"] == mine
    assert with_detection("/v1/messages", body) is body


@pytest.mark.parametrize("gap", ["", " "])
def test_the_finish_reason_is_mapped_and_nothing_else(gap):
    """In a body and in an event; what a model writes about it stays as written."""
    text = json.dumps('"finish_reason":"repetition"')
    event = b'data: {"choices":[{"delta":{"content":%b},"finish_reason":%b"repetition","stop_reason":"repetition_detected"}]}\n\n' % (
        text.encode(), gap.encode())  # fmt: skip
    mapped, was = in_openai_words(event)
    assert was
    choice = json.loads(mapped[6:])["choices"][0]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("length", "repetition_detected")
    assert choice["delta"]["content"] == json.loads(text)
    assert in_openai_words(b'{"finish_reason":"stop"}') == (b'{"finish_reason":"stop"}', False)
    assert in_openai_words(b"{\"a\":" + text.encode() + b"}")[1] is False
