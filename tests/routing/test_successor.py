"""The router is changed for another while it answers: one socket, no request lost."""

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest


def supervisors(router):
    """Process ids of the router's supervisors: it and its successor are in one group."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (folder / "cmdline").read_bytes().split(b"\0")
            if os.getpgid(int(folder.name)) == router.process.pid and b"routing.server" in words:
                found.append(int(folder.name))
    return found


@pytest.fixture
def alone(start_router, wait_until):
    """A router whose whole group, successors included, ends with the test. Both workers are up."""
    router = start_router(workers=2)
    wait_until(lambda: router.log.read_text().count("is in force") == 2, 60)
    yield router
    with contextlib.suppress(ProcessLookupError):
        os.killpg(router.process.pid, signal.SIGKILL)


async def test_a_successor_answers_before_its_predecessor_ends(alone, chat, say, wait_until):
    """Under constant load, twice: every request is answered, an open stream ends properly, the predecessor leaves with 0."""
    router, codes, is_over = alone, [], asyncio.Event()

    async def keep_asking():
        while not is_over.is_set():
            codes.append((await router.ask(chat())).status)

    slow = chat([say.HEAD, ["pace", 40, 0.1], ["chunk", say.DONE], ["end"]], stream=True)
    streaming = asyncio.create_task(router.ask(slow))
    load = [asyncio.create_task(keep_asking()) for _ in range(4)]
    await asyncio.sleep(0.5)
    first = router.process.pid
    os.kill(first, signal.SIGUSR2)
    (second,) = await asyncio.to_thread(wait_until, lambda: first not in (found := supervisors(router)) and found, 60)
    assert (await streaming).body.endswith(b"data: [DONE]\n\n")
    os.kill(second, signal.SIGUSR2)
    await asyncio.to_thread(wait_until, lambda: second not in (found := supervisors(router)) and found, 60)
    is_over.set()
    await asyncio.gather(*load)
    assert len(codes) > 50 and set(codes) == {200}
    assert await asyncio.to_thread(router.process.wait, 10) == 0


async def test_a_successor_that_can_not_start_changes_nothing(alone, chat, wait_until):
    """A wrong file on the disk: the successor leaves, the router says so and goes on, and the next one takes over."""
    router = alone
    routes = router.home / "routes.yaml"
    right = routes.read_text()
    routes.write_text("tasks: nonsense")
    os.kill(router.process.pid, signal.SIGUSR2)
    await asyncio.to_thread(wait_until, lambda: "the successor did not start (1)" in router.log.read_text(), 60)
    assert (await router.ask(chat())).status == 200 and router.process.poll() is None
    routes.write_text(right)
    os.kill(router.process.pid, signal.SIGUSR2)
    await asyncio.to_thread(router.process.wait, 60)
    assert (await router.ask(chat())).status == 200


def test_a_socket_that_systemd_holds_is_used(start_router, chat, tmp_path):
    """With LISTEN_FDS the router answers there, on no port of its own; systemd is told when it can."""
    with socket.create_server(("127.0.0.1", 0), backlog=8) as held, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind(str(tmp_path / "notify"))
        notify.settimeout(60)
        handed = f"import os; os.dup2({held.fileno()}, 3); os.environ['LISTEN_PID'] = str(os.getpid()); " \
                 "os.execv(os.sys.executable, [os.sys.executable, '-m', 'routing.server'])"
        router = start_router()
        port, router.port = router.port, held.getsockname()[1]
        environment = {**os.environ, "INHOUSE_HOME": str(router.home), "INHOUSE_MODELS": str(router.home / "models.yaml"),
                       "INHOUSE_ROUTES": str(router.home / "routes.yaml"), "INHOUSE_PORT": str(port), "LISTEN_FDS": "1",
                       "NOTIFY_SOCKET": str(tmp_path / "notify")}
        process = subprocess.Popen([sys.executable, "-c", handed], env=environment, pass_fds=(held.fileno(),), start_new_session=True)
        try:
            told = notify.recv(4096)
            assert f"MAINPID={process.pid}".encode() in told.split() and b"READY=1" in told.split()
            assert asyncio.run(router.ask(chat())).status == 200
        finally:
            process.terminate()
            process.wait(60)
