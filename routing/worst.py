"""The most that a request can make a model read and write, from its body alone, and the body that asks for less.

What is not understood counts as the model's whole context: a call is never reserved for less than it can use.
"""

import re
from typing import Any, NamedTuple

import msgspec

from routing.prices import prompt_bound

_WRITES = {  # what limits an answer's length, by path; every path that is not here writes nothing
    "/v1/chat/completions": ("max_completion_tokens", "max_tokens"),
    "/v1/chat/completions/batch": ("max_completion_tokens", "max_tokens"),
    "/v1/completions": ("max_tokens",),
    "/v1/responses": ("max_output_tokens",),
    "/v1/messages": ("max_tokens",),
    "/v1/audio/transcriptions": (),
    "/v1/audio/translations": (),
}
_LIST = re.compile(rb"\s*\[\s*(.)", re.DOTALL)
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class _Head(msgspec.Struct):
    max_tokens: Any = None
    max_completion_tokens: Any = None
    max_output_tokens: Any = None
    n: Any = None
    best_of: Any = None
    prompt: msgspec.Raw = msgspec.Raw(b"null")
    messages: msgspec.Raw = msgspec.Raw(b"null")


_decode_head = msgspec.json.Decoder(_Head).decode


class Worst(NamedTuple):
    """Tokens that are read, and written for each of so many answers. `max_tokens` is 0 where nothing is written."""

    prompt_tokens: int
    max_tokens: int
    answers: int = 1


def writes(path: str) -> bool:
    """Whether a model writes tokens for this path."""
    return path in _WRITES


def worst_of(path: str, body: bytes, context: int) -> Worst:
    """The worst case of a body that was read as JSON before. `context` is the model's `max_model_len`."""
    names = _WRITES.get(path)
    if body[:1] != b"{" and not body.lstrip().startswith(b"{"):  # a form, with sound in it
        return Worst(context, context if names is not None else 0)
    prompt_tokens = prompt_bound(body)
    if names is None:
        return Worst(prompt_tokens, 0)
    head = _decode_head(body)
    inputs = max(_inputs(head.prompt, of_lists=False), _inputs(head.messages, of_lists=True))
    given = [min(context, _whole(value, context)) for name in names if (value := getattr(head, name)) is not None]
    return Worst(min(prompt_tokens, inputs * context), max(given, default=context),  # which of two names holds differs between engines
                 inputs * max(_whole(head.n, 1), _whole(head.best_of, 1)))  # fmt: skip


def _whole(value: Any, otherwise: int) -> int:
    """A number as engines read it, who take "9" and 9.0 for 9; `otherwise` for what they refuse."""
    try:
        number = value if isinstance(value, int) else int(float(value))
    except (TypeError, ValueError, OverflowError):
        return otherwise
    return max(1, number)


def _inputs(raw: msgspec.Raw, *, of_lists: bool) -> int:
    """How many prompts a field holds: a list of texts or of lists is as many, a list of token ids or of messages is one."""
    start = _LIST.match(raw)
    if start is None or start[1] not in ((b"[",) if of_lists else (b'"', b"[")):
        return 1
    items = msgspec.json.decode(raw)
    several = isinstance(items[0], list) or (isinstance(items[0], str) and not of_lists) if items else False
    return len(items) if several else 1


def lowered(path: str, body: bytes, max_tokens: int) -> bytes:
    """The body that asks for answers of at most `max_tokens` each."""
    fields = _decode_fields(body)
    names = [name for name in _WRITES[path] if name in fields] or _WRITES[path][-1:]
    for name in names:
        fields[name] = msgspec.Raw(b"%d" % max_tokens)
    return msgspec.json.encode(fields)
