"""Lets vLLM stop a model that repeats itself, and tells the caller in OpenAI's words. Only bytes are touched; nothing is decoded.

vLLM 0.32 takes `repetition_detection` on chat completions and completions alone; Responses and Anthropic's messages have no such field.
"""

import re

_PATHS = frozenset(("/v1/chat/completions", "/v1/completions"))
# Patterns of 16 tokens at least: a loop of period 3 is one of period 18 too, while a table's equal rows or a rule of dashes pass.
# Of 64 at most: vLLM looks with Python code, for every token and length (76 us a token with 113 lengths, measured on vLLM 0.32).
_FIELD = b'"repetition_detection":{"max_pattern_size":64,"min_pattern_size":16,"min_count":4},'
_FINISH = re.compile(rb'("finish_reason"\s*:\s*)"repetition"')
CAUSE = "repetition"


def with_detection(path: str, body: bytes) -> bytes:
    """The body of a request to a vLLM of ours, with detection asked for where the path takes it. Send it to no other kind of server.

    The field comes first: of a key given twice the last counts, so a caller who sets it keeps it.
    """
    if path not in _PATHS:
        return body
    start = body.index(b"{") + 1
    return body[:start] + _FIELD + body[start:]


def in_openai_words(data: bytes) -> tuple[bytes, bool]:
    """An answer, or whole events of a stream, with finish reason `length` for `repetition`, and whether there was one.

    `length`, as SDKs take it for what it is: a text that was cut. vLLM's own `stop_reason: repetition_detected` stays beside it. Text in
    which a model writes such words is let be: its quotes are escaped.
    """
    if b'"repetition"' not in data:
        return data, False
    data, n = _FINISH.subn(rb'\1"length"', data)
    return data, bool(n)
