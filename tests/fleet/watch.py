"""What a fleet's monitoring tells: Prometheus' API on its machine, and a receiver of Alertmanager's messages on this one."""

import contextlib
import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote


class Webhook(http.server.ThreadingHTTPServer):
    """Takes Alertmanager's messages; `alerts` are the names that fired."""

    def __init__(self, address: str) -> None:
        self.alerts: set[str] = set()
        super().__init__((address, 8099), Message)


class Message(http.server.BaseHTTPRequestHandler):
    """One message of Alertmanager's."""

    def do_POST(self):
        told = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.alerts |= {alert["labels"]["alertname"] for alert in told["alerts"] if alert["status"] == "firing"}
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        """Silent."""


@contextlib.contextmanager
def received(address: str) -> Iterator[set[str]]:
    """The names of the alerts that reach port 8099 of an address meanwhile."""
    with Webhook(address) as webhook:
        thread = threading.Thread(target=webhook.serve_forever)
        thread.start()
        try:
            yield webhook.alerts
        finally:
            webhook.shutdown()
            thread.join()


def prometheus(fleet: Any, path: str) -> Any:
    """What Prometheus tells on its machine, node1."""
    code = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:9090/api/v1/{path}').read().decode())"
    return json.loads(fleet.lab.ssh("node1", f'python3 -c "{code}"'))["data"]


def figures(fleet: Any, query: str) -> list[tuple[dict[str, str], float]]:
    """(labels, value) of each series that Prometheus answers a query with."""
    return [(one["metric"], float(one["value"][1])) for one in prometheus(fleet, f"query?query={quote(query)}")["result"]]


def awaited(claim: Callable[[], Any], patience_s: float = 240) -> Any:
    """The first true value of a claim."""
    deadline = time.monotonic() + patience_s
    while not (value := claim()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(2)
    return value
