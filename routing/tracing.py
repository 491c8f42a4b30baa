"""OpenTelemetry spans of the attempts to answer, made from ledger rows off the request path; off unless an OTLP endpoint is named.

All names are here: the GenAI conventions are in development and move (semantic-conventions-genai has no release). Prompts and answers are
in no span. A request's attempts share a trace; its spans hang under the caller's own where it sent `traceparent`.
"""

import hashlib
import logging
import os
import re
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from routing.ledger import Row

log = logging.getLogger("inhouse.tracing")
ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")  # OpenTelemetry's own; its other OTEL_ names work too
_SERVICE = "inhouse-router"
_OPERATIONS = {"/v1/chat/completions": "chat", "/v1/messages": "chat", "/v1/responses": "chat", "/v1/completions": "text_completion",
               "/v1/embeddings": "embeddings"}  # fmt: skip
_COLUMNS = {  # of a row, by what the conventions call them; ours begin with inhouse
    "gen_ai.request.model": "model",
    "gen_ai.usage.input_tokens": "prompt_tokens",
    "gen_ai.usage.output_tokens": "completion_tokens",
    "gen_ai.conversation.id": "run_id",
    "http.response.status_code": "status",
    "url.path": "endpoint",
    "error.type": "error",
    "inhouse.request.id": "request_id",
    "inhouse.attempt": "attempt",
    "inhouse.task": "task",
    "inhouse.why": "why",
    "inhouse.caller": "caller",
    "inhouse.team": "team",
    "inhouse.data_class": "data_class",
    "inhouse.zone": "zone",
    "inhouse.cost_nanousd": "cost_nanousd",
    "inhouse.gpu_ms": "gpu_ms",
    "inhouse.usage.exact": "exact",
    "inhouse.policy_hash": "policy_hash",
    "inhouse.config_version": "config_version",
}
_TTFT_S = "gen_ai.response.time_to_first_chunk"
_OPERATION = "gen_ai.operation.name"
_PROVIDER = "gen_ai.provider.name"
_OWN = "vllm"  # the provider of models in our own zones; a hosted target's is its zone
_OWN_ZONES = ("", "onprem")
_TRACEPARENT = re.compile(rb"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
_REMEMBERED = 8192


def is_on() -> bool:
    """Whether the environment names an endpoint. Nothing of OpenTelemetry is imported where it does not."""
    return any(os.environ.get(name) for name in ENDPOINTS)


def attributes_of(row: Row) -> dict[str, Any]:
    """A row as span attributes; what is empty is left out, zero is not."""
    found = {name: value for name, column in _COLUMNS.items() if (value := getattr(row, column)) not in ("", None)}
    found[_OPERATION] = _operation(row.endpoint)
    found[_PROVIDER] = _OWN if row.zone in _OWN_ZONES else row.zone
    if row.ttft_ms is not None:
        found[_TTFT_S] = row.ttft_ms / 1e3
    return found


def _operation(endpoint: str) -> str:
    return _OPERATIONS.get(endpoint, endpoint.rpartition("/")[2])


class Tracing:
    """Exports spans for ledger rows. `observe` goes beside the metrics' into the ledger's `also`; it never waits for the network.

    Spans go out in batches from a thread of the SDK, which drops them where the endpoint is slow and its queue of 2,048 is full.
    """

    def __init__(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        resource = Resource.create({} if os.environ.get("OTEL_SERVICE_NAME") else {"service.name": _SERVICE})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("inhouse.routing")
        self._parents: OrderedDict[str, bytes] = OrderedDict()

    def remember(self, request_id: str, traceparent: bytes) -> None:
        """The caller's `traceparent` of a request that is beginning. A dictionary's work: it may be called on the request path."""
        self._parents[request_id] = traceparent
        if len(self._parents) > _REMEMBERED:
            self._parents.popitem(last=False)

    def observe(self, rows: Sequence[Row]) -> None:
        """Makes the spans of a batch of ledger rows, 50 us each (measured), in the ledger's thread."""
        from opentelemetry.trace import SpanKind, StatusCode

        for row in rows:
            start_ns = int(row.at * 1e9)
            name = f"{_operation(row.endpoint)} {row.model}".strip()
            span = self._tracer.start_span(name, self._context(row), SpanKind.CLIENT, attributes_of(row), start_time=start_ns)
            if row.status >= 400:
                span.set_status(StatusCode.ERROR, row.error)
            span.end(start_ns + int(row.total_ms * 1e6))

    def close(self) -> None:
        """Sends what is left, for some seconds at most, and stops."""
        self._provider.shutdown()

    def _context(self, row: Row) -> Any:
        """The caller's span as parent; without one, a parent that nobody sees, made from the request's id: it joins the attempts."""
        from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context

        given = _TRACEPARENT.fullmatch(self._parents.get(row.request_id, b""))
        if given and int(given[1], 16) and int(given[2], 16):
            ids = int(given[1], 16), int(given[2], 16)
        else:
            digest = hashlib.sha256(row.request_id.encode()).digest()
            ids = int.from_bytes(digest[:16]), int.from_bytes(digest[16:24])
        return set_span_in_context(NonRecordingSpan(SpanContext(*ids, is_remote=True, trace_flags=TraceFlags(TraceFlags.SAMPLED))))
