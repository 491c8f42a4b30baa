"""What a refusal looks like to OpenAI's and Anthropic's clients."""

import json

import pytest

from routing import errors
from routing.errors import Refusal

ALL = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Refusal)]


@pytest.mark.parametrize("kind", ALL)
def test_every_refusal_has_both_shapes(kind):
    """Each refusal gives OpenAI's four fields and Anthropic's envelope, as JSON, with a status that fits."""
    refusal = kind("what, why, what next", param="model", retry_after_s=3)
    assert json.loads(refusal.body()) == {
        "error": {"message": "what, why, what next", "type": kind.type, "param": "model", "code": kind.code}
    }
    assert json.loads(refusal.body(anthropic=True)) == {
        "type": "error",
        "error": {"type": kind.anthropic_type, "message": "what, why, what next"},
    }
    assert 400 <= kind.status < 600
    assert refusal.headers() == {"retry-after": "3"}
    assert kind("x").headers() == {}


def test_the_tree_in_the_docstring_is_the_tree():
    """The file's opening names every refusal and its status."""
    for kind in ALL:
        if kind is not Refusal:
            assert f"{kind.__name__} {kind.status}" in " ".join(errors.__doc__.split())


@pytest.mark.parametrize("text", ['"', "\n", "\u2028", "é", "</script>", "\x00"])
def test_a_message_can_hold_anything(text):
    """Whatever a message quotes of a request, the body stays JSON on one line, as a stream's event needs."""
    body = Refusal(text).body()
    assert json.loads(body)["error"]["message"] == text
    assert b"\n" not in body
