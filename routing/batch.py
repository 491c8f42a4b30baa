"""Batch work stands back: what a batch key asks of our models carries a priority that is served after all that interactive callers ask.

vLLM serves the lower number first where its scheduler sorts, which `serving.engine` asks it to. A caller may stand back further, never
push in: what it sends itself counts only where it is more.
"""

import msgspec

from routing.errors import Denied
from routing.request import Asked, Endpoint

PRIORITY = 10  # at least; vLLM 0.32 takes one off for what follows a tool call in `/v1/responses`, and interactive work has 0
_HEADER = "/v1/messages"  # Anthropic's body has no such field; vLLM reads the header there, and with others both
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def check_sorted(endpoint: Endpoint) -> None:
    """Raises `Denied` for what vLLM can't put behind other work: a batch key would be served there like an interactive one."""
    if endpoint.form:
        raise Denied(f"a batch key can't ask {endpoint.path}: models take no priority there, and it would go before interactive callers; "
                     "ask with a key that was made without --batch", code="batch_not_served")  # fmt: skip


def stand_back(asked: Asked, body: bytes) -> tuple[bytes, bytes]:
    """Header lines and the body for a model of ours, from a body that is ready but for this."""
    given = asked.head.priority
    priority = PRIORITY if given is None else max(PRIORITY, given)
    if asked.endpoint.path == _HEADER:
        return b"x-vllm-priority: %d\r\n" % priority, body
    fields = _decode_fields(body)
    fields["priority"] = msgspec.Raw(b"%d" % priority)
    return b"", msgspec.json.encode(fields)
