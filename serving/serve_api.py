"""Ray Serve's REST API (on the head's dashboard port), with the standard library: importing ray costs seconds."""

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

_PATH = "/api/serve/applications/"
_READ_S = 15.0
_WRITE_S = 120.0  # the first one starts Serve: 5 s on two idle cores, over 15 s on busy ones
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a company's proxy does not know our loopback


class ServeUnreachableError(Exception):
    """Serve's REST API does not answer, or not yet."""


class ServeRefusedError(Exception):
    """Serve answered that it will not do it; the message is its own."""


@dataclass(frozen=True, kw_only=True)
class ServeApi:
    """The REST API of one cell. `url` is the dashboard's, `token` Ray's cluster token."""

    url: str
    token: str = ""

    def details(self) -> dict[str, Any]:
        """What runs: applications, their deployments and replicas. Raises `ServeUnreachableError`."""
        return dict(json.loads(self._call("GET", _READ_S)))

    def deploy(self, config: dict[str, Any]) -> None:
        """Makes the applications in `config` the ones that run; returns when they are accepted, not when they are up."""
        self._call("PUT", _WRITE_S, json.dumps(config).encode())

    def _call(self, method: str, timeout_s: float, body: bytes | None = None) -> bytes:
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.token}"} if self.token else {})
        request = urllib.request.Request(self.url + _PATH, data=body, method=method, headers=headers)  # noqa: S310 (http to our own head)
        try:
            with _direct.open(request, timeout=timeout_s) as response:
                return bytes(response.read())
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace").strip()
            if error.code in (400, 401, 403):
                raise ServeRefusedError(text or f"HTTP {error.code}") from error
            raise ServeUnreachableError(f"Serve's REST API at {self.url} answered {error.code}") from error
        except (OSError, ValueError) as error:
            raise ServeUnreachableError(f"Serve's REST API at {self.url} does not answer: {error}") from error


def fetch(url: str, timeout_s: float = 5.0) -> str:
    """A plain GET. Raises `ServeUnreachableError`."""
    try:
        with _direct.open(url, timeout=timeout_s) as response:
            return str(response.read().decode())
    except (OSError, ValueError) as error:
        raise ServeUnreachableError(f"{url} does not answer: {error}") from error
