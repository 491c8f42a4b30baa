"""Spans reach a real OTLP receiver, carry what the ledger knows, and never hold up the ledger."""

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from msgspec.structs import astuple, replace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from routing.ledger import Row
from routing.tracing import attributes_of, is_on

ROW = Row(1_700_000_000.5, "r1", 1, "ihk_x", "bot", "/v1/chat/completions", "extraction", "small", "task named", 200, "", 10, 0, True,
          120.0, 450.0, team="red", run_id="run7", data_class="internal", zone="onprem", cost_nanousd=5, gpu_ms=0)  # fmt: skip

EXPORT = """
import json, sys
from routing.ledger import Row
from routing.tracing import Tracing
tracing = Tracing()
tracing.remember("r1", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
tracing.remember("bad", b"00-" + b"0" * 32 + b"-zzz")
tracing.observe([Row(*one) for one in json.load(sys.stdin)])
print("observed", flush=True)
tracing.close()
"""


@pytest.fixture
def receiver():
    """An OTLP/HTTP receiver that keeps what it is sent."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append((self.path, dict(self.headers), self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}", got
    server.shutdown()
    server.server_close()


def export(rows, endpoint, **environment):
    """A process that exports these rows, as a worker would, and its exit status."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    told = json.dumps([astuple(row) for row in rows])
    return subprocess.run([sys.executable, "-c", EXPORT], input=told, text=True, capture_output=True, timeout=60, check=False,
                          env={**clean, "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, **environment})  # fmt: skip


def value_of(value):
    """An OTLP value as Python's."""
    return getattr(value, value.WhichOneof("value"))


def test_rows_arrive_as_spans(receiver):
    """One span an attempt: times, names, tokens and cost; attempts share a trace; the caller's own trace is gone on with."""
    endpoint, got = receiver
    failed = replace(ROW, request_id="r2", status=503, error="connect_failed", completion_tokens=None, ttft_ms=None)
    rows = [ROW, failed, replace(failed, attempt=2, model="large", zone="acme"), replace(ROW, request_id="bad", endpoint="/v1/rerank")]
    done = export(rows, endpoint, OTEL_EXPORTER_OTLP_HEADERS="x-mlflow-experiment-id=7")
    assert done.returncode == 0, done.stderr
    ((path, headers, body),) = got
    assert path == "/v1/traces" and headers["x-mlflow-experiment-id"] == "7"
    (of_resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    assert {one.key: value_of(one.value) for one in of_resource.resource.attributes}["service.name"] == "inhouse-router"
    first, second, third, fourth = of_resource.scope_spans[0].spans
    assert (first.name, first.trace_id.hex(), first.parent_span_id.hex()) == (
        "chat small", "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")  # fmt: skip
    assert (first.start_time_unix_nano, first.end_time_unix_nano) == (1_700_000_000_500_000_000, 1_700_000_000_950_000_000)
    told = {one.key: value_of(one.value) for one in first.attributes}
    assert told["gen_ai.operation.name"] == "chat" and told["gen_ai.provider.name"] == "vllm" and told["gen_ai.conversation.id"] == "run7"
    assert (told["gen_ai.usage.input_tokens"], told["gen_ai.usage.output_tokens"], told["inhouse.cost_nanousd"]) == (10, 0, 5)
    assert told["gen_ai.response.time_to_first_chunk"] == 0.12
    assert second.trace_id == third.trace_id != first.trace_id and second.status.code == 2 and second.status.message == "connect_failed"
    assert {one.key: value_of(one.value) for one in third.attributes}["gen_ai.provider.name"] == "acme"
    assert fourth.name == "rerank small" and len({first.trace_id, second.trace_id, fourth.trace_id}) == 3


def test_every_column_but_keys_is_told():
    """A new column of the ledger must be given a name here, or be left out on purpose."""
    filled = replace(ROW, error="e", why="w", policy_hash="p", config_version="c")
    told = attributes_of(filled)
    assert len(told) == len(Row.__struct_fields__) - 3 + 2  # not: key_id, at, total_ms; besides: operation, provider
    assert "key_id" not in str(told) and "ihk_x" not in told.values()


def test_a_dead_endpoint_holds_up_nobody():
    """The ledger's thread hands its spans over and goes on; closing gives up on what nobody takes, and the process ends well."""
    done = export([ROW] * 5000, "http://127.0.0.1:9", OTEL_EXPORTER_OTLP_TIMEOUT="1", OTEL_BSP_EXPORT_TIMEOUT="1000")
    assert done.returncode == 0 and "observed" in done.stdout, done.stderr


def test_it_is_off_where_no_endpoint_is_named():
    """Nothing of OpenTelemetry is loaded by the module itself."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OTEL_")}
    code = "import sys, routing.tracing as t; print(t.is_on(), any(m.startswith('opentelemetry') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=clean, check=True).stdout == "False False\n"
    assert is_on() == any(name in os.environ for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))
