"""The worst case of a request is never less than what an engine may do with it (AISVS C9.1.1: reserved before, not counted after)."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from routing.request import ENDPOINTS, read_asked
from routing.worst import lowered, worst_of

CHAT = "/v1/chat/completions"


def read(path, body):
    return read_asked(ENDPOINTS[path], body, json_depth=64, media_domains=())


def worst(path, context=4096, **fields):
    found = worst_of(read(path, msgspec.json.encode({"model": "m", **fields})), context)
    return found.max_tokens, found.answers


@pytest.mark.parametrize(
    ("path", "fields", "expected"),
    [
        (CHAT, {"max_tokens": 5}, (5, 1)),
        (CHAT, {"max_tokens": 500, "max_completion_tokens": 7}, (500, 1)),
        (CHAT, {}, (4096, 1)),
        (CHAT, {"max_tokens": None}, (4096, 1)),
        (CHAT, {"max_tokens": "9"}, (9, 1)),
        (CHAT, {"max_tokens": 9.0}, (9, 1)),
        (CHAT, {"max_tokens": "many"}, (4096, 1)),
        (CHAT, {"max_tokens": -1}, (1, 1)),
        (CHAT, {"max_tokens": 10**30}, (4096, 1)),
        (CHAT, {"max_tokens": 5, "n": 3}, (5, 3)),
        (CHAT, {"max_tokens": 5, "n": "3"}, (5, 3)),
        (CHAT, {"max_output_tokens": 5}, (4096, 1)),
        ("/v1/chat/completions/batch", {"max_tokens": 5, "messages": [[{}], [{}]], "n": 2}, (5, 4)),
        ("/v1/completions", {"max_tokens": 5, "prompt": ["a", "b", "c"]}, (5, 3)),
        ("/v1/completions", {"max_tokens": 5, "prompt": [1, 2, 3]}, (5, 1)),
        ("/v1/completions", {"max_tokens": 5, "prompt": [[1], [2]], "best_of": 4}, (5, 8)),
        ("/v1/completions", {"max_tokens": 5, "prompt": []}, (5, 1)),
        ("/v1/responses", {"max_output_tokens": 6, "max_tokens": 1}, (6, 1)),
        ("/v1/messages", {"max_tokens": 8}, (8, 1)),
        ("/v1/embeddings", {"input": ["a", "b"]}, (0, 1)),
        ("/v1/rerank", {"documents": ["a"]}, (0, 1)),
    ],
)
def test_what_may_be_written(path, fields, expected):
    """Answers times tokens, as the engine counts them; what could be read in two ways counts as the larger."""
    assert worst(path, **fields) == expected


def test_the_last_of_two_keys_counts_as_it_does_for_engines():
    """A key given twice must not reserve by one of them and run by the other."""
    assert worst_of(read(CHAT, b'{"model": "m", "max_tokens": 5, "max_tokens": 900, "max\\u005ftokens": 1000}'), 4096).max_tokens == 1000


def test_a_form_with_sound_counts_as_the_whole_context():
    """Sound says nothing of its tokens."""
    asked = read("/v1/audio/transcriptions", b'--x\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n--x--')
    assert worst_of(asked, 448) == (448, 448, 1)


@given(st.integers(1, 4000), st.dictionaries(st.sampled_from(["max_tokens", "max_completion_tokens", "n", "x"]), st.integers(1, 10**6)))
def test_a_lowered_body_asks_for_no_more(most, fields):
    """What was lowered is lowered under every name, and nothing else changes."""
    fields |= {"model": "m", "max_tokens": 10**6}
    body = lowered(CHAT, msgspec.json.encode(fields), most)
    assert worst_of(read(CHAT, body), 10**6).max_tokens == most
    same = msgspec.json.decode(body)
    assert {k: v for k, v in same.items() if "tokens" not in k} == {k: v for k, v in fields.items() if "tokens" not in k}


@given(st.lists(st.text(max_size=30), max_size=4), st.integers(1, 10**6))
def test_a_prompt_never_counts_less_than_its_text_or_the_context(texts, context):
    """The bound is the bytes of the text, or all that fits into the model."""
    body = msgspec.json.encode({"model": "m", "messages": [{"role": "user", "content": text} for text in texts]})
    assert worst_of(read(CHAT, body), context).prompt_tokens >= min(context, sum(len(text.encode()) for text in texts))
