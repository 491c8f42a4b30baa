"""Asks one thing of one base URL and measures it: time to first token, gaps between chunks, total.

The one file of this room that opens sockets, and so also where sensitive data is held on premises: without leave there is no
client. No retries, no cache here.
aiohttp, as it costs a tenth of httpx or the SDKs a request (0.1 ms against 1.3 to 8, measured 2026-11-22).
"""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from operator import sub
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec

from evals import dialect
from evals.case import Answer
from evals.dialect import Api, ProtocolError
from evals.pace import retry_after_s

_MAX_ANSWER_BYTES = 1 << 25
_TOO_LONG = f"an answer of more than {_MAX_ANSWER_BYTES >> 20} MiB"
_DIGEST_WITHIN_S = 10.0
_TOO_MUCH = (429, 529)  # "ask less": 529 is Anthropic's. 503 is that only with Retry-After
_HOPELESS = (401, 403, 404)


class AskError(Exception):
    """Nothing can be asked of this endpoint as it is."""


class Identity(msgspec.Struct, frozen=True):
    """What one of our routers says that a model is: its weights' digest, where they are from, engine settings that change answers, and
    its price in US dollars per million tokens, by the names that models.yaml has for it."""

    digest: str = ""
    repo: str = ""
    revision: str = ""
    engine: dict[str, Any] = {}
    price: dict[str, float] = {}


@dataclass(frozen=True)
class Endpoint:
    """Where and whom to ask. `onprem` is declared by a person, never guessed from the address: a local router may relay elsewhere."""

    base_url: str
    model: str
    api: Api = "openai"
    key: str = field(default="", repr=False)
    onprem: bool = False
    digest: str = ""
    identity: Identity = field(default_factory=Identity)  # as far as it is known
    timeout_s: float = 300.0
    data_class: str = ""  # told to the router, which holds it to that class's zones

    @property
    def weights(self) -> str:
        """What answers there: digest and telling engine settings as one text; empty where nothing is known."""
        return self.digest + (msgspec.json.encode(self.identity.engine, order="sorted").decode() if self.identity.engine else "")

    @property
    def url(self) -> str:
        """Where the requests go."""
        return self.base_url.rstrip("/") + dialect.path(self.api)

    @property
    def host(self) -> str:
        """Host and port, for records: a base URL may hold secrets."""
        parts = urlsplit(self.base_url)
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)


class Outcome(NamedTuple):
    """What one attempt brought. `again`: it may be tried again without hiding a fault of the service, as it was told to come later
    (after `wait_s`, where that was said) or could not connect. `hopeless`: if the first attempts end so, all would.
    """

    answer: Answer
    again: bool = False
    wait_s: float | None = None
    hopeless: bool = False


def check_allowed(endpoint: Endpoint, *, sensitive: bool) -> None:
    """Raises `AskError` where sensitive data would go to an endpoint that isn't declared on premises."""
    if sensitive and not endpoint.onprem:
        raise AskError(f"the data counts as sensitive, and {endpoint.host} is not declared to be on premises: nothing was sent. "
                       "Declare what is true: --not-sensitive (the data may leave) or --onprem (the model, and all it relays to, is ours); "
                       "for a judge: --judge-onprem")  # fmt: skip


class Client:
    """An endpoint's open connections. Made by `open_client`."""

    def __init__(self, endpoint: Endpoint, session: aiohttp.ClientSession) -> None:
        self.endpoint = endpoint
        self._session = session
        self._url = endpoint.url
        labels = {"inhouse-data-class": endpoint.data_class} if endpoint.data_class else {}
        self._headers = dialect.headers(endpoint.api, endpoint.key) | labels

    def body(self, messages: list[dict[str, Any]], request: dict[str, Any]) -> bytes:
        """The bytes that ask these messages."""
        return dialect.body(self.endpoint.api, self.endpoint.model, messages, request)

    def _post(self, body: bytes) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Redirects are not followed: the data would go to a place that nobody declared."""
        return self._session.post(self._url, data=body, headers=self._headers, allow_redirects=False)

    async def ask(self, body: bytes, case_id: str, sample: int = 0, *, due_at: float | None = None) -> Outcome:
        """One attempt; what goes wrong is a failed answer, never an exception. Times count from `due_at` (perf_counter) if given."""
        began = time.perf_counter() if due_at is None else due_at
        reader = dialect.READERS[self.endpoint.api]()
        times: list[float] = []
        headers: dict[str, str] = {}
        error, unsent = "", False
        try:
            async with (
                asyncio.timeout(self.endpoint.timeout_s),
                self._post(body) as response,
            ):
                if response.status != 200:
                    return await _refused(response, Answer(case_id=case_id, sample=sample, total_s=time.perf_counter() - began))
                headers = {name.lower(): value for name, value in response.headers.items() if name[:8].lower() == "inhouse-"}
                streamed = response.content_type == "text/event-stream"
                async for data in _events(response) if streamed else _whole(response):
                    if reader.feed(data) and streamed:
                        times.append(time.perf_counter())  # noqa: PERF401  # each when it came
            error = "" if reader.complete else "cut: the stream ended before the model had"
        except aiohttp.ConnectionTimeoutError as problem:
            error, unsent = f"connect: {problem}"[:300], True
        except TimeoutError:
            error = f"timeout: not complete within {self.endpoint.timeout_s:g} s"
        except aiohttp.ClientConnectorError as problem:
            error, unsent = f"connect: {problem}"[:300], True
        except (aiohttp.ClientError, ConnectionError) as problem:
            error = f"cut: {type(problem).__name__}: {problem}"[:300]
        except ProtocolError as problem:
            error = f"protocol: {problem}"
        text, calls = reader.result()
        answer = Answer(
            case_id=case_id, sample=sample, text=text, tool_calls=calls, finish_reason=reader.finish_reason, error=error, headers=headers,
            ttft_s=times[0] - began if times else None, itl_s=_gaps(times), total_s=time.perf_counter() - began,
            prompt_tokens=reader.prompt_tokens, completion_tokens=reader.completion_tokens, cost_usd=_cost(headers),
        )  # fmt: skip
        return Outcome(answer, again=unsent, hopeless=unsent)


@asynccontextmanager
async def open_client(endpoint: Endpoint, *, sensitive: bool) -> AsyncIterator[Client]:
    """A client for an endpoint. Raises `AskError` before anything is sent where data may not go there."""
    check_allowed(endpoint, sensitive=sensitive)
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=min(10.0, endpoint.timeout_s / 2))
    # Idle connections are closed before uvicorn's 5 s, so that a request never meets one that the server is just closing.
    connector = aiohttp.TCPConnector(limit=0, keepalive_timeout=4)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield Client(endpoint, session)


async def identity_at(base_url: str, model: str, key: str) -> Identity:
    """What one of our routers says that a model is; nothing where it does not answer, does not say or is no router of ours."""
    headers = dialect.headers("openai", key)
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_DIGEST_WITHIN_S)) as session,
            session.get(f"{base_url.rstrip('/')}/models/{quote(model, safe='')}", headers=headers, allow_redirects=False) as response,
        ):
            return msgspec.json.decode(await _body(response, 1 << 16), type=Identity) if response.status == 200 else Identity()
    except (aiohttp.ClientError, ConnectionError, TimeoutError, msgspec.DecodeError):
        return Identity()


async def _refused(response: aiohttp.ClientResponse, answer: Answer) -> Outcome:
    said = (await _body(response, 1 << 16)).decode(errors="replace")
    wait_s = retry_after_s(response.headers.get("retry-after"))
    again = response.status in _TOO_MUCH or (response.status == 503 and wait_s is not None)
    answer = msgspec.structs.replace(answer, error=f"http_{response.status}: {' '.join(said.split())[:300]}")
    return Outcome(answer, again=again, wait_s=wait_s, hopeless=response.status in _HOPELESS)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The data of server-sent events, one line each as both dialects have them."""
    rest, size = b"", 0
    async for data in response.content.iter_any():
        size += len(data)
        if size > _MAX_ANSWER_BYTES:
            raise ProtocolError(_TOO_LONG)
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip()
    if rest.startswith(b"data:"):
        yield rest[5:].strip()


async def _whole(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """An answer of a server that does not stream, as one event."""
    body = await _body(response, _MAX_ANSWER_BYTES)
    if len(body) >= _MAX_ANSWER_BYTES:
        raise ProtocolError(_TOO_LONG)
    yield body


async def _body(response: aiohttp.ClientResponse, most: int) -> bytes:
    """The body, or its first `most` bytes; read to its end, so that the connection can be used again."""
    body = b""
    async for data in response.content.iter_any():
        body += data
        if len(body) >= most:
            break
    return body[:most]


def _gaps(times: list[float]) -> tuple[float, ...]:
    """(median, 95th percentile, longest) of the seconds between chunks."""
    gaps = sorted(map(sub, times[1:], times))
    return (gaps[len(gaps) // 2], gaps[len(gaps) * 95 // 100], gaps[-1]) if gaps else ()


def _cost(headers: dict[str, str]) -> float | None:
    try:
        return float(headers["inhouse-cost-usd"])
    except (KeyError, ValueError):
        return None
