"""What a caller gets when all goes well: the answer, its headers, its usage; and what the models see of the caller."""

import json

import pytest


async def test_a_request_is_answered_by_the_model_it_names(router, upstream, chat):
    """The upstream's body comes back byte for byte, and its own request was the caller's, byte for byte."""
    asked = chat(x=" spaced ")
    got = await router.ask(asked)
    assert got.status == 200
    assert got.json["choices"][0]["message"]["content"] == "hi"
    (seen,) = upstream.got(asked["tag"])
    assert (seen.model, seen.path) == ("alpha", "/v1/chat/completions")
    assert seen.body == json.dumps(asked).encode()
