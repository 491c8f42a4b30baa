"""MLflow's page over the home's own store, on loopback: `inhouse up` starts it, and it fills its process when it is first opened.

Until then it is a listening socket in a process of 13 MB; MLflow's server weighs 270 MB and takes seconds of CPU (2026-11-25). It serves
what shows and keeps records, and nothing that runs commands or calls elsewhere. Not here: what is in the store (tracking.py).
"""

import fcntl
import os
import re
import select
import socket
import sys
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from pathlib import Path
from typing import Any, NamedTuple

# MLflow's assistant runs a shell as whoever runs its server; the others call models, webhooks and jobs (read in 3.17.2).
_CLOSED = re.compile(r"/(?:assistant|gateway|gateway-proxy|webhooks|jobs|invoke|prompt-optimization)(?:/|$)")
_HOST = "127.0.0.1"
Scope = MutableMapping[str, Any]
Told = Callable[..., Awaitable[Any]]
App = Callable[[Scope, Told, Told], Awaitable[None]]


class PageError(Exception):
    """The page can't be started; the message says why and what to do."""


class Page(NamedTuple):
    """Where a home's page is, or was when it ran last."""

    url: str
    is_running: bool


def start(home: Path, port: int, marks: Mapping[str, str]) -> Page:
    """The page of a home, started unless it runs. It answers from now on and outlives the caller. Its log: logs/mlflow.log.

    `marks` go into its environment. Raises `PageError` where the port is taken.
    """
    (home / "run").mkdir(parents=True, exist_ok=True)
    with _file(home).open("a+", encoding="utf-8") as told:
        if not _locked(told.fileno()):
            return state(home) or Page("", is_running=False)
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind((_HOST, port))
            except OSError as error:
                raise PageError(f"MLflow's page can't listen on {_HOST}:{port} ({error.strerror}); choose another port with --mlflow-port "
                                "or INHOUSE_MLFLOW_PORT, or leave it out with 0") from error  # fmt: skip
            listener.listen()
            page = Page(f"http://{_HOST}:{listener.getsockname()[1]}", is_running=True)
            told.truncate(0)
            told.write(page.url)
            told.flush()
            _spawn(home, listener.fileno(), told.fileno(), marks)
    return page


def state(home: Path) -> Page | None:
    """The page of a home, without opening it; None where there never was one. It runs as long as its process holds the file's lock."""
    try:
        with _file(home).open("r+", encoding="utf-8") as told:
            url = told.read()
            return Page(url, is_running=not _locked(told.fileno())) if url else None
    except FileNotFoundError:
        return None


def lines(page: Page | None) -> list[str]:
    """The same for a person; nothing about a home that never had one."""
    if page is None:
        return []
    return [f"mlflow     {f'at {page.url}' if page.is_running else 'does not run; start it with `inhouse up`'}"]


def _file(home: Path) -> Path:
    return home / "run" / "mlflow.url"


def _locked(file: int) -> bool:
    """Takes the lock of an open file; False where another process has it. It is held until every copy of this open file is closed."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _spawn(home: Path, listener: int, lock: int, marks: Mapping[str, str]) -> None:
    (home / "logs").mkdir(exist_ok=True)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "_MLFLOW_"))}
    for descriptor in (listener, lock):
        os.set_inheritable(descriptor, True)
    with (home / "logs" / "mlflow.log").open("ab") as log:
        streams = [(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0), *((os.POSIX_SPAWN_DUP2, log.fileno(), one) for one in (1, 2))]
        command = [sys.executable, "-P", "-m", "evals.tracking_page", str(home), str(listener)]
        os.posix_spawn(sys.executable, command, environment | dict(marks), file_actions=streams, setsid=True)  # outlives us


def closed(app: App) -> App:
    """The application without what this page is not for: those paths are answered with 403."""

    async def answer(scope: Scope, receive: Told, send: Told) -> None:
        if scope["type"] != "http" or not _CLOSED.search(scope["path"]):
            await app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 403, "headers": [(b"content-type", b"text/plain")]})
        await send({"type": "http.response.body", "body": b"this page shows records; it runs nothing and calls nobody"})

    return answer


def main(home: Path, descriptor: int) -> None:
    """Waits until somebody connects, then is MLflow's server until it is told to end."""
    with socket.socket(fileno=descriptor) as listener:
        select.select([listener], [], [])
        import uvicorn

        from evals.tracking import page_app

        host, port = listener.getsockname()
        app = closed(page_app(home, (f"{host}:{port}", f"localhost:{port}")))
        settings = uvicorn.Config(app, lifespan="off", proxy_headers=False, access_log=False, log_level="warning")
        uvicorn.Server(settings).run(sockets=[listener])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
