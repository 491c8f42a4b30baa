"""Runs the mock upstream and the load generator as processes of their own, and reads what they say."""

import http.client
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from routing.bench.peers import Gateway
from routing.bench.plan import Outcome, Plan
from routing.bench.processes import Cores, Process, free_port, run_json, started

PATH = "/v1/chat/completions"
_TICKET = "Summarise the following ticket and extract customer, product, severity and next action as JSON. "
_OUTCOME = msgspec.json.Decoder(Outcome).decode


def get(port: int, path: str, *, timeout_s: float = 5.0) -> tuple[int, bytes]:
    """Status and body of a GET on loopback; status 0 where nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


def post(
    port: int, path: str, body: str, headers: dict[str, str], *, host: str = "127.0.0.1", timeout_s: float = 30.0
) -> tuple[int, bytes]:
    """Status and body of a JSON POST; status 0 where nobody answers."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request("POST", path, body.encode(), {"content-type": "application/json", **headers})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException):
        return 0, b""
    finally:
        connection.close()


class Upstream:
    """The mock upstream, running."""

    def __init__(self, port: int) -> None:
        self.port = port

    def pace(self, *, interval_us: int = 0, ttft_us: int = 0, chunks: int = 64) -> None:
        """How it streams from now on."""
        get(self.port, f"/ctl?interval_us={interval_us}&ttft_us={ttft_us}&chunks={chunks}")

    def requests(self) -> int:
        """How many POSTs it has taken."""
        return int(json.loads(get(self.port, "/ctl")[1])["requests"])


@contextmanager
def upstream(cores: Cores) -> Iterator[Upstream]:
    """A mock upstream for the duration of the block."""
    port = free_port()
    with started([sys.executable, "-m", "routing.bench.mock", str(port)], core=cores.measuring) as process:
        process.wait_until(lambda: get(port, "/health")[0] == 200, timeout_s=20)
        yield Upstream(port)


@contextmanager
def gateway_running(gateway: Gateway, cores: Cores) -> Iterator[Process | None]:
    """The gateway for the duration of the block, once it answers a request. None where it needs no starting."""
    if not gateway.command:
        yield None
        return
    with started(gateway.command, env=gateway.env, core=cores.measured) as process:
        process.wait_until(lambda: is_answering(gateway), timeout_s=gateway.start_timeout_s)
        yield process


def is_answering(gateway: Gateway) -> bool:
    """Whether one whole answer comes through."""
    status, body = post(gateway.port, PATH, chat(gateway.model), gateway.headers)
    return status == 200 and b'"completion_tokens"' in body


def generate(plan: Plan, cores: Cores) -> Outcome:
    """Carries out a plan in a process of its own."""
    return _OUTCOME(run_json([sys.executable, "-m", "routing.bench.load"], msgspec.json.encode(plan), core=cores.measuring))


def chat(model: str, *, stream: bool = False, body_bytes: int = 1024) -> str:
    """A chat request of about that size, as a client library would write it."""
    system = {"role": "system", "content": "You are a helpful assistant on a company's own machines."}
    body = {"model": model, "messages": [system, {"role": "user", "content": ""}], "temperature": 0.2, "max_tokens": 64}
    if stream:
        body |= {"stream": True, "stream_options": {"include_usage": True}}
    missing = body_bytes - len(json.dumps(body))
    body["messages"] = [system, {"role": "user", "content": (_TICKET * (missing // len(_TICKET) + 1))[: max(missing, 1)]}]
    return json.dumps(body)
