"""The parts of a node that need no Ray: its processes are found by their mark alone, sockets are read, HAProxy's binds rewritten."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from serving import processes
from serving.engine import Spec, environment
from serving.haproxy import write_wrapper
from serving.sockets import Listener, free_ports, held_by, listeners, owner
from serving.status import counters

SLEEP = [sys.executable, "-c", "import time; time.sleep(60)"]
STUBBORN = [sys.executable, "-c", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(60)"]


def _start(command: list[str], mark: str | None) -> subprocess.Popen[bytes]:
    environment = dict(os.environ) | ({processes.MARK: mark} if mark else {})
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE)


def test_only_processes_with_the_mark_are_ended(tmp_path: Path) -> None:
    """Another home's processes and unmarked ones live on, even where one home's path begins like the other's."""
    ours, other, plain = _start(SLEEP, str(tmp_path)), _start(SLEEP, f"{tmp_path}2"), _start(SLEEP, None)
    try:
        assert processes.marked(str(tmp_path)) == [ours.pid]
        assert processes.end(str(tmp_path)) == 1
        assert ours.wait(5) == -signal.SIGTERM
        assert other.poll() is None
        assert plain.poll() is None
    finally:
        for one in (ours, other, plain):
            one.kill()
            one.communicate()


def test_a_process_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    """`inhouse down` leaves nothing behind, politely or not."""
    stubborn = _start(STUBBORN, str(tmp_path))
    assert stubborn.stdout is not None
    stubborn.stdout.readline()
    processes.end(str(tmp_path), patience_s=0.2)
    assert stubborn.wait(5) == -signal.SIGKILL
    stubborn.communicate()


def test_the_listening_sockets_of_a_process_are_found() -> None:
    """The check that nothing listens beyond loopback would see it if something did."""
    with socket.create_server(("0.0.0.0", 0)) as wide, socket.create_server(("127.0.0.1", 0)) as narrow:
        mine = {one.port: one for one in listeners() if one.inode in held_by(os.getpid())}
        assert not mine[wide.getsockname()[1]].is_loopback
        assert mine[narrow.getsockname()[1]].is_loopback
        assert (owner(narrow.getsockname()[1]) or "").endswith(f"(pid {os.getpid()})")


def test_an_ipv4_loopback_address_in_ipv6_form_is_loopback() -> None:
    """Ray's C++ servers listen on ::ffff:127.0.0.1."""
    assert Listener(address="::ffff:127.0.0.1", port=1, inode=1).is_loopback
    assert not Listener(address="::", port=1, inode=1).is_loopback


def test_free_ports_are_different() -> None:
    """One port handed out twice would fail a start."""
    assert len(set(free_ports(8))) == 8


def test_haproxy_reads_a_corrected_configuration(tmp_path: Path) -> None:
    """Binds to all interfaces are rewritten, probes take request splicing's place, the rest is kept, and the arguments arrive."""
    config = tmp_path / "haproxy.cfg"
    text = ("defaults\n    option splice-request\n    option splice-response\nfrontend p\n    bind :9101\n"
            "frontend h\n    bind 127.0.0.1:8100\nlisten stats\n  bind *:8404\n  stats uri /bind\n")
    config.write_text(text)
    wrapper = write_wrapper(tmp_path, Path("/bin/echo"))
    said = subprocess.run([wrapper, "-db", "-f", config], capture_output=True, text=True, check=True).stdout
    assert said == f"-db -f {config}\n"
    probes = "".join(f"    {line}\n" for line in ("option srvtcpka", "srvtcpka-idle 10s", "srvtcpka-intvl 5s", "srvtcpka-cnt 3"))
    corrected = text.replace("    option splice-request\n", probes).replace("bind :9101", "bind 127.0.0.1:9101")
    assert config.read_text() == corrected.replace("bind *:8404", "bind 127.0.0.1:8404")


def test_the_one_public_port_stays_open(tmp_path: Path) -> None:
    """On a server Ray writes its public port as `*` too: that one is let be, the others go to loopback."""
    config = tmp_path / "haproxy.cfg"
    config.write_text("    bind *:8100\n    bind *:81000\n    bind *:8404\n    bind :9101\n")
    subprocess.run([write_wrapper(tmp_path, Path("/bin/true"), 8100), "-f", config], check=True)
    loopback = "".join(f"    bind 127.0.0.1:{port}\n" for port in (81000, 8404, 9101))
    assert config.read_text() == f"    bind 0.0.0.0:8100\n{loopback}"


def test_counters_are_added_up_over_labels() -> None:
    """vLLM writes one sample per engine and reason."""
    text = '# HELP x\nvllm:num_requests_running{engine="0"} 2.0\nvllm:num_requests_running{engine="1"} 1.0\nother 5\n'
    assert counters(text) == {"vllm:num_requests_running": 3.0}


@pytest.mark.parametrize(("gpus", "mib", "asks"), [(0, 300, True), (0, 2, False), (1, 300, False)])
def test_an_engine_on_cpus_asks_for_huge_pages_where_its_weights_are_large(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gpus: int, mib: int, asks: bool
) -> None:
    """A person's own settings of glibc stay."""
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.truncate(mib << 20)
    spec = Spec(name="m", folder=str(tmp_path), engine={}, adapters={}, gpus=gpus, cpus=1, cache="c", release="")
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert environment(spec).get("GLIBC_TUNABLES") == ("glibc.malloc.hugetlb=1" if asks else None)
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=1")
    assert environment(spec).get("GLIBC_TUNABLES") == ("glibc.malloc.check=1" if asks else None)
