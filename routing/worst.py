"""The most that a request can make a model read and write, from its body alone, and the body that asks for less.

What is not understood counts as the model's whole context: a call is never reserved for less than it can use.
"""

from typing import Any, NamedTuple

import msgspec

from routing.prices import prompt_bound
from routing.request import Asked

_WRITES = {  # what limits an answer's length, by path; every path that is not here writes nothing
    "/v1/chat/completions": ("max_completion_tokens", "max_tokens"),
    "/v1/chat/completions/batch": ("max_completion_tokens", "max_tokens"),
    "/v1/completions": ("max_tokens",),
    "/v1/responses": ("max_output_tokens",),
    "/v1/messages": ("max_tokens",),
    "/v1/audio/transcriptions": (),
    "/v1/audio/translations": (),
}
_SEVERAL = frozenset(("/v1/completions", "/v1/chat/completions/batch"))  # the paths that take more than one prompt
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Prompts(msgspec.Struct):
    prompt: Any = None
    messages: Any = None


_decode_prompts = msgspec.json.Decoder(_Prompts).decode


class Worst(NamedTuple):
    """Tokens that are read, and written for each of so many answers. `max_tokens` is 0 where nothing is written."""

    prompt_tokens: int
    max_tokens: int
    answers: int = 1


def writes(path: str) -> bool:
    """Whether a model writes tokens for this path."""
    return path in _WRITES


def worst_of(asked: Asked, context: int) -> Worst:
    """The worst case of a request. `context` is the model's `max_model_len`."""
    path, body = asked.endpoint.path, asked.body
    names = _WRITES.get(path)
    if asked.endpoint.form:  # with sound in it
        return Worst(context, context if names is not None else 0)
    prompt_tokens = prompt_bound(body)
    if names is None:
        return Worst(prompt_tokens, 0)
    head = asked.head
    most = 0
    for name in names:  # which of two names holds differs between engines
        if (given := getattr(head, name)) is not None:
            most = max(most, _whole(given, context))
    answers = 1 if head.n is None and head.best_of is None else max(_whole(head.n, 1), _whole(head.best_of, 1))
    inputs = _inputs(body) if path in _SEVERAL else 1
    return Worst(min(prompt_tokens, inputs * context), min(most, context) or context, inputs * answers)


def _whole(value: Any, otherwise: int) -> int:
    """A number as engines read it, who take "9" and 9.0 for 9; `otherwise` for what they refuse."""
    try:
        number = value if isinstance(value, int) else int(float(value))
    except (TypeError, ValueError, OverflowError):
        return otherwise
    return max(1, number)


def _inputs(body: bytes) -> int:
    """How many prompts a body holds: a list of texts, of token ids' lists or of conversations is as many, all else is one."""
    found = _decode_prompts(body)
    return max(_several(found.prompt, (str, list)), _several(found.messages, (list,)))


def _several(given: Any, kinds: tuple[type, ...]) -> int:
    return len(given) if isinstance(given, list) and given and isinstance(given[0], kinds) else 1


def lowered(path: str, body: bytes, max_tokens: int) -> bytes:
    """The body that asks for answers of at most `max_tokens` each."""
    fields = _decode_fields(body)
    names = [name for name in _WRITES[path] if name in fields] or _WRITES[path][-1:]
    for name in names:
        fields[name] = msgspec.Raw(b"%d" % max_tokens)
    return msgspec.json.encode(fields)
