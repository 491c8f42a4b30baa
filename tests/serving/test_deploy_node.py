"""A real node with real engines: what it shows to the network, what a change restarts, how it heals, what is left when it ends."""

import contextlib
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from serving import processes
from serving.deploy import DeployError
from serving.node import NodeSettings, is_healthy, read_node, start_node, stop_node
from serving.preflight import PreflightError
from serving.sockets import held_by, listeners, owner
from serving.status import status

pytestmark = pytest.mark.slow

Cell = Any  # the fixture's type; pytest's importlib mode does not let tests import their conftest
LONG: dict[str, Any] = {"prompt": "hello", "max_tokens": 900, "ignore_eos": True}


def _until(claim: Callable[[], bool], within_s: float) -> float:
    """Waits for a claim to become true; returns the seconds it took."""
    start = time.monotonic()
    while not claim():
        assert time.monotonic() - start < within_s, "did not become true in time"
        time.sleep(0.05)
    return time.monotonic() - start


def _pid(cell: Cell, name: str) -> int:
    return next(replica.pid for replica in cell.model(name).replicas if replica.state == "running")


def _engine_pid(replica: int) -> int:
    children: list[int] = []

    def has_one() -> bool:  # its title comes a moment after its start, and was once never seen
        found = subprocess.run(["pgrep", "-P", str(replica), "-f", "EngineCore|spawn_main"], capture_output=True, text=True, check=False)
        children[:] = map(int, found.stdout.split())
        return bool(children)

    _until(has_one, 30)
    return children[0]


def _answers(cell: Cell, name: str) -> bool:
    with contextlib.suppress(OSError, http.client.HTTPException):
        return bool(cell.ask(name, "/v1/completions", {"model": name, "prompt": "hi", "max_tokens": 2}, 5)[0] == 200)
    return False


def _stream(cell: Cell, name: str, tokens: int = 900) -> Iterator[bytes]:
    """The lines of a streamed completion, as they come."""
    connection = http.client.HTTPConnection("127.0.0.1", cell.port, timeout=120)
    body = LONG | {"model": name, "max_tokens": tokens, "stream": True}
    connection.request("POST", f"/models/{name}/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    assert response.status == 200
    try:
        while line := response.readline():
            yield line
    finally:
        response.close()
        connection.close()


def test_nothing_listens_beyond_loopback(cell: Cell) -> None:
    """The sockets of every process of the node, read from the kernel: Ray, Serve, HAProxy, vLLM."""
    inodes = set().union(*(held_by(pid) for pid in processes.marked(str(cell.home))))
    ours = [one for one in listeners() if one.inode in inodes]
    assert {cell.port} <= {one.port for one in ours}
    assert len(ours) > 10, "the node's sockets were not found"
    assert [one for one in ours if not one.is_loopback] == []


def test_vllms_own_endpoints_answer(cell: Cell) -> None:
    """The replica serves vLLM's application, not a selection of it."""
    chat = {"model": "alpha", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 4}
    for path, body in {"/v1/chat/completions": chat, "/v1/messages": chat,
                       "/v1/completions": {"model": "alpha", "prompt": "hi", "max_tokens": 4},
                       "/v1/responses": {"model": "alpha", "input": "hi", "max_output_tokens": 4},
                       "/tokenize": {"model": "alpha", "prompt": "hi"}}.items():
        assert cell.ask("alpha", path, body)[0] == 200, path
    code, usage = cell.ask("alpha", "/v1/chat/completions", chat)
    assert (code, usage["usage"]["completion_tokens"]) == (200, 4)
    assert "cached_tokens" in usage["usage"]["prompt_tokens_details"]


def test_an_adapter_answers_under_its_own_name(cell: Cell) -> None:
    """A LoRA adapter from a local folder, beside its base model, and with other weights than it."""
    body = {"prompt": "hello world", "max_tokens": 16, "temperature": 0, "ignore_eos": True}
    base = cell.ask("alpha", "/v1/completions", body | {"model": "alpha"})
    adapted = cell.ask("alpha", "/v1/completions", body | {"model": "alpha-terse"})
    assert (base[0], adapted[0], adapted[1]["model"]) == (200, 200, "alpha-terse")
    assert base[1]["choices"][0]["text"] != adapted[1]["choices"][0]["text"]


def test_status_tells_memory_models_and_load(cell: Cell) -> None:
    """And the whole of it stays within the 5 GB that a laptop is asked for."""
    now = status(cell.home)
    assert {model.name: (model.state, model.is_ready) for model in now.models} == {"alpha": ("running", True), "beta": ("running", True)}
    assert all(model.load is not None for model in now.models)
    assert 1e9 < now.rss_bytes < 5e9 - 150e6, "the router's 150 MB come on top"


@pytest.mark.parametrize("is_streamed", [True, False])
def test_a_caller_that_leaves_stops_the_engines_work(cell: Cell, is_streamed: bool) -> None:
    """Within a second, through HAProxy and Serve; else the engine would work for nobody."""
    connection = http.client.HTTPConnection("127.0.0.1", cell.port, timeout=30)
    connection.request("POST", "/models/beta/v1/completions", json.dumps(LONG | {"model": "beta", "stream": is_streamed}),
                       {"Content-Type": "application/json"})
    start = cell.model("beta").load.generated_tokens
    _until(lambda: cell.model("beta").load.generated_tokens > start, 10)
    assert connection.sock is not None
    connection.sock.close()
    connection.close()
    time.sleep(1)
    after = cell.model("beta").load.generated_tokens
    time.sleep(0.5)
    assert cell.model("beta").load.generated_tokens == after < start + LONG["max_tokens"]


def test_adding_changing_and_removing_a_model_restarts_no_other(cell: Cell) -> None:
    """A stream on alpha runs through the redeployment of beta; alpha and its engine stay the same processes throughout."""
    alpha, beta = cell.catalog.models
    before = _pid(cell, "alpha"), _engine_pid(_pid(cell, "alpha"))
    lines: list[bytes] = []
    stop = threading.Event()

    def keep_streaming() -> None:
        while not stop.is_set():
            lines.extend(_stream(cell, "alpha"))

    reader = threading.Thread(target=keep_streaming)
    reader.start()
    try:
        old = _pid(cell, "beta")
        shutil.copytree(cell.models / "beta", cell.models / "gamma")
        os.utime(cell.models / "beta" / "model.safetensors", (1, 1))  # new weights, as far as names, sizes and times tell
        cell.deploy(alpha, beta, replace(beta, name="gamma", path="gamma"))
        assert _pid(cell, "beta") != old
        assert _answers(cell, "gamma")
        cell.deploy(alpha, beta)
        _until(lambda: cell.ask("gamma", "/v1/completions", {})[0] == 404, 30)
    finally:
        stop.set()
        reader.join()
    assert (_pid(cell, "alpha"), _engine_pid(_pid(cell, "alpha"))) == before
    text = b"".join(lines)
    assert text.count(b'"finish_reason":"length"') == text.count(b"data: [DONE]") >= 1
    assert b'"error"' not in text


def test_a_killed_engine_is_replaced(cell: Cell) -> None:
    """Its stream ends with an error and not as if complete, the other model is not touched, service returns by itself."""
    _until(lambda: len(cell.model("beta").replicas) == 1, 60)  # the one that the test before replaced is gone
    replica, other = _pid(cell, "beta"), _pid(cell, "alpha")
    stream = _stream(cell, "beta")
    next(stream)
    os.kill(_engine_pid(replica), signal.SIGKILL)
    assert b'"error"' in b"".join(stream)
    _until(lambda: cell.model("beta").replicas != () and all(one.pid != replica for one in cell.model("beta").replicas), 30)
    _until(lambda: _answers(cell, "beta"), 150)
    assert _pid(cell, "alpha") == other


def test_an_engine_that_can_not_start_says_why_and_the_old_version_goes_on(cell: Cell) -> None:
    """The engine's own words in one line; surge upgrades keep what works."""
    alpha, beta = cell.catalog.models
    broken = replace(beta, engine=beta.engine | {"max_model_len": 10**6})
    with pytest.raises(DeployError, match=r"^model beta did not start: [^\n]*max_model_len[^\n]*$"):
        cell.deploy(alpha, broken)
    assert _answers(cell, "beta")
    cell.deploy(alpha, beta)


def test_a_second_start_keeps_the_node_and_foreign_ports_are_named(cell: Cell, tmp_path: Path) -> None:
    """`make up` twice is harmless; another home on the same port is told who has it, and leaves nothing behind."""
    pids = processes.marked(str(cell.home))
    steps = list(start_node(NodeSettings(home=cell.home, http_port=cell.port), cell.catalog))
    assert [step.detail for step in steps] == [f"already running at {cell.node.http_url}"]
    assert set(pids) & set(processes.marked(str(cell.home))) == set(pids)
    with pytest.raises(PreflightError, match=f"port {cell.port} is in use by haproxy"):
        list(start_node(NodeSettings(home=tmp_path, http_port=cell.port), cell.catalog))
    assert processes.marked(str(tmp_path)) == []


def test_an_interrupted_start_and_a_killed_starter_leave_nothing_that_stop_does_not_end(tmp_path: Path) -> None:
    """Ctrl-C ends what it began; after kill -9 of the starter `stop_node` finds everything. No other node is touched."""
    code = ("import sys; from pathlib import Path; from serving.catalog import Catalog; from serving.node import *\n"
            "list(start_node(NodeSettings(home=Path(sys.argv[1]), http_port=int(sys.argv[2])), Catalog(models=())))")
    port = "18771"
    for number in (signal.SIGINT, signal.SIGKILL):
        starter = subprocess.Popen([sys.executable, "-c", code, tmp_path, port], stderr=subprocess.DEVNULL)
        _until(lambda: len(processes.marked(str(tmp_path))) >= 2, 60)
        assert starter.poll() is None, "the start was over before it could be interrupted"
        starter.send_signal(number)
        starter.wait(60)
        if number == signal.SIGKILL:
            assert processes.marked(str(tmp_path)) != []
            stop_node(tmp_path)
        assert processes.marked(str(tmp_path)) == []
        assert read_node(tmp_path) is None
    assert owner(int(port)) is None


def test_stop_leaves_no_process(cell: Cell) -> None:
    """Runs last: nothing with the node's mark and no listener of it remains, HAProxy included; others live."""
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    start = time.monotonic()
    assert stop_node(cell.home) > 10
    assert time.monotonic() - start < 15
    assert processes.marked(str(cell.home)) == []
    assert owner(cell.port) is None
    assert not is_healthy(cell.node)
    assert status(cell.home).is_running is False
    assert bystander.poll() is None
    bystander.kill()
    bystander.wait()
