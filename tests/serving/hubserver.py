"""A model hub on loopback that speaks as much of the hub's HTTP API as a client of pinned models needs, with faults on demand.

Shapes follow huggingface_hub 2.4's client: /api/models, /api/models/{repo}, /tree/{revision} (paged by Link), /resolve with ETag,
X-Repo-Commit, X-Linked-*, redirects of large files to another host, Range, X-Error-Code.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

REVISION = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repo:
    """A model repository; files above 1 KiB are in large-file storage."""

    files: dict[str, bytes]
    revision: str = REVISION
    license: str = "apache-2.0"
    gated: bool = False
    downloads: int = 10
    likes: int = 3
    parameters: dict[str, int] | None = None


@dataclass
class Faults:
    """What goes wrong, by file name; each is used up once per listed value."""

    cut_after: dict[str, list[int]] = field(default_factory=dict)  # bytes sent before the connection breaks
    wrong_bytes: set[str] = field(default_factory=set)
    slow_down: list[int] = field(default_factory=list)  # Retry-After seconds of 429 answers, before anything else
    no_ranges: bool = False
    drip: threading.Event | None = None  # large files stop half-way until it is set


class Hub(ThreadingHTTPServer):
    """The server: `repos` may be changed at any time, `asked` is what was asked: (method, path, Range, Authorization)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.faults = Faults()
        self.asked: list[tuple[str, str, str | None, str | None]] = []
        self.agents: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def storage_url(self) -> str:
        """Another origin for the same server: credentials must not follow there."""
        return f"http://localhost:{self.server_address[1]}"

    def ranges(self, name: str) -> list[str | None]:
        """The Range headers of the GETs that reached a file's bytes."""
        return [asked_range for method, path, asked_range, _ in self.asked if method == "GET" and path.endswith(f"/{name}")]

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave are part of the tests."""


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that runs until the block ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        if hub.faults.drip is not None:
            hub.faults.drip.set()
        hub.shutdown()
        hub.server_close()
        thread.join()


def git_sha1(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        address = urlsplit(self.path)
        path, query = unquote(address.path), parse_qs(address.query)
        self.server.asked.append((self.command, path, self.headers.get("range"), self.headers.get("authorization")))
        self.server.agents.add(self.headers.get("user-agent", ""))
        if self.server.faults.slow_down:
            return self._error(429, "", "slow down", {"Retry-After": str(self.server.faults.slow_down.pop(0))})
        if path == "/api/models":
            return self._search(query)
        if path.startswith("/api/models/"):
            return self._about(path.removeprefix("/api/models/"), query)
        if path.startswith("/storage/"):
            repo, _, name = path.removeprefix("/storage/").partition("/-/")
            return self._bytes(self.server.repos[repo].files[name], name)
        repo, _, rest = path[1:].partition("/resolve/")
        return self._resolve(repo, *rest.partition("/")[::2])

    def _info(self, name: str, repo: Repo) -> dict[str, object]:
        counts = repo.parameters
        headers = {"safetensors": {"parameters": counts, "total": sum(counts.values())}} if counts else {}
        return {"id": name, "modelId": name, "sha": repo.revision, "downloads": repo.downloads, "likes": repo.likes, "private": False,
                "gated": "manual" if repo.gated else False, "lastModified": "2026-10-01T12:00:00.000Z", "tags": [f"license:{repo.license}"],
                "cardData": {"license": repo.license}, **headers}

    def _search(self, query: dict[str, list[str]]) -> None:
        wanted, limit = query.get("search", [""])[0].lower(), int(query.get("limit", ["100"])[0])
        found = [self._info(name, repo) for name, repo in self.server.repos.items() if wanted in name.lower()]
        self._json(sorted(found, key=lambda info: -int(str(info["downloads"])))[:limit])

    def _about(self, rest: str, query: dict[str, list[str]]) -> None:
        name, repo = next(((n, r) for n, r in self.server.repos.items() if rest == n or rest.startswith(f"{n}/")), ("", None))
        if repo is None:
            return self._error(401, "RepoNotFound", "Repository not found")
        action, _, revision = rest.removeprefix(name).strip("/").partition("/")
        if repo.gated and action == "tree" and self.headers.get("authorization") != "Bearer right":
            return self._error(403, "GatedRepo", f"Access to model {name} is restricted")
        if action in ("tree", "revision") and revision not in (repo.revision, "main"):
            return self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        if action == "tree":
            return self._tree(name, repo, int(query.get("cursor", ["0"])[0]))
        return self._json(self._info(name, repo))

    def _tree(self, name: str, repo: Repo, start: int) -> None:
        """Two entries a page, so that paging is always exercised."""
        entries = []
        for path, content in sorted(repo.files.items()):
            entry = {"type": "file", "path": path, "size": len(content), "oid": git_sha1(content)}
            if len(content) > 1024:
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
            entries.append(entry)
        more = f'<{self.server.url}/api/models/{name}/tree/{repo.revision}?cursor={start + 2}&recursive=true>; rel="next"'
        self._json(entries[start:start + 2], {"Link": more} if len(entries) > start + 2 else {})

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repo = self.server.repos.get(name)
        if repo is None:
            return self._error(401, "RepoNotFound", "Repository not found")
        if revision != repo.revision or path not in repo.files:
            return self._error(404, "EntryNotFound", "Entry not found")
        content = repo.files[path]
        if len(content) <= 1024:
            return self._bytes(content, path)
        where = {"Location": f"{self.server.storage_url}/storage/{name}/-/{path}", "X-Linked-Size": str(len(content)),
                 "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": repo.revision}
        return self._answer(302, b"", where)

    def _bytes(self, content: bytes, name: str) -> None:
        faults = self.server.faults
        if name in faults.wrong_bytes:
            content = bytes([content[0] ^ 1]) + content[1:]
        wanted = self.headers.get("range")
        if wanted is None or faults.no_ranges:
            return self._answer(200, content, {"ETag": f'"{git_sha1(content)}"'}, name)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        start, end = int(first), min(int(last or len(content) - 1), len(content) - 1)
        return self._answer(206, content[start:end + 1], {"Content-Range": f"bytes {start}-{end}/{len(content)}"}, name)

    def _json(self, data: object, headers: dict[str, str] | None = None) -> None:
        self._answer(200, json.dumps(data).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _error(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> None:
        self._answer(status, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})})

    def _answer(self, status: int, body: bytes, headers: dict[str, str], name: str = "") -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            if value:
                self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        faults = self.server.faults
        if faults.cut_after.get(name):
            self.wfile.write(body[:faults.cut_after[name].pop(0)])
            self.close_connection = True
        elif faults.drip is not None and len(body) > 1024:
            self.wfile.write(body[:len(body) // 2])
            self.wfile.flush()
            faults.drip.wait(30)
            self.close_connection = True
        else:
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (the base class's name)
        """Quiet."""
