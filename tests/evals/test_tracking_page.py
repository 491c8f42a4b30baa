"""The process that waits for somebody to open MLflow's page: started once, seen, ended; what the page is not for stays closed."""

import asyncio
import os
import signal
import socket
import time

import pytest

from evals import tracking_page
from serving.processes import describe, end, marked
from serving.sockets import held_by, listeners


@pytest.fixture
def marks(tmp_path):
    """The mark of a home's processes; all of them are ended afterwards."""
    yield {"INHOUSE_NODE": str(tmp_path)}
    end(str(tmp_path))


def test_it_listens_at_once_on_loopback_and_weighs_next_to_nothing(tmp_path, marks):
    """Started, it takes connections on loopback alone, holds no MLflow yet, and is found by its home's mark."""
    assert tracking_page.state(tmp_path) is None
    page = tracking_page.start(tmp_path, 0, marks)
    assert page.is_running and page == tracking_page.state(tmp_path)
    (pid,) = marked(str(tmp_path))
    mine = [one for one in listeners() if one.inode in held_by(pid)]
    assert [(one.is_loopback, f"http://{one.address}:{one.port}") for one in mine] == [(True, page.url)]
    assert describe([pid])[0].rss_bytes < 40e6
    assert tracking_page.lines(page) == [f"mlflow     at {page.url}"]


def test_started_twice_it_is_the_same_and_killed_it_is_told(tmp_path, marks):
    """A second start finds the first; after kill -9 the state says so, and the next start brings it back."""
    page = tracking_page.start(tmp_path, 0, marks)
    assert tracking_page.start(tmp_path, 0, marks) == page
    (pid,) = marked(str(tmp_path))
    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while tracking_page.state(tmp_path).is_running and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "does not run" in tracking_page.lines(tracking_page.state(tmp_path))[0]
    assert tracking_page.start(tmp_path, 0, marks).is_running


def test_a_port_that_is_taken_is_told(tmp_path, marks):
    """Another's port is an error that names the option, and leaves nothing that looks like a page."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(tracking_page.PageError, match="--mlflow-port"):
            tracking_page.start(tmp_path, other.getsockname()[1], marks)
    assert tracking_page.state(tmp_path) is None
    assert marked(str(tmp_path)) == []


@pytest.mark.parametrize(
    "path",
    ["/ajax-api/3.0/mlflow/assistant/message", "/gateway/openai/v1/chat/completions", "//gateway/mlflow/v1/models", "/ajax-api/3.0/jobs/",
     "/api/2.0/mlflow/webhooks", "/ajax-api/3.0/mlflow/scorer/invoke", "/ajax-api/2.0/mlflow/gateway-proxy"],
)  # fmt: skip
def test_what_runs_or_calls_is_closed(path):
    """These paths never reach MLflow."""
    assert asked(path) == (403, [])


def test_what_shows_and_keeps_is_open():
    """These do."""
    for path in ("/", "/api/2.0/mlflow/runs/search", "/get-artifact", "/static-files/assistants.js"):
        assert asked(path) == (200, [path])


def asked(path):
    """(status, paths that MLflow saw)."""
    seen, sent = [], []

    async def mlflow(scope, receive, send):
        seen.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message):
        sent.append(message)

    asyncio.run(tracking_page.closed(mlflow)({"type": "http", "path": path}, None, send))
    return sent[0]["status"], seen
