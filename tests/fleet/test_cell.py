"""A cell's command lines and what it reads from Serve's details; the cell itself runs in test_fleet.py."""

from pathlib import Path

import pytest

from serving import drain as draining
from serving.cell import PORTS, Member, client_environment, command
from serving.deploy import DRAIN_S
from serving.drain import DrainError, drain, empty, node_ids, replicas
from serving.serve_api import ServeApi

DETAILS = {
    "proxies": {"n1": {"node_ip": "10.0.0.1"}, "n2": {"node_ip": "10.0.0.2"}},
    "applications": {
        "a": {"deployments": {"Model": {"replicas": [{"node_id": "n2", "node_ip": "10.0.0.2"}, {"node_id": "n3", "node_ip": "10.0.0.2"}]}}},
        "b": {"deployments": {"Model": {"replicas": [{"node_id": "n1", "node_ip": "10.0.0.1"}, {"node_id": None}]}}}},
}


def member(ip: str, **changes) -> Member:
    return Member(**({"ip": ip, "head_ip": "10.0.0.1", "folder": Path("/f"), "token": Path("/t"), "tls": Path("/tls")} | changes))


def test_a_head_starts_a_cluster_and_a_worker_joins_it():
    """Only the head has a dashboard, on loopback; both fix every port that a firewall must know."""
    head, worker = command(member("10.0.0.1")), command(member("10.0.0.2", cpus=0))
    assert "--head" in head and "--dashboard-host=127.0.0.1" in head and "--num-cpus=0" not in head
    assert "--address=10.0.0.1:6379" in worker and "--head" not in worker and "--num-cpus=0" in worker
    for line in (head, worker):
        assert {f"{option}={port}" for option, port in PORTS.items()} <= set(line)


def test_the_firewall_opens_what_ray_is_told_to_use():
    """The ports of the rules and of the command line are the same, written in two languages."""
    rules = (Path(__file__).parents[2] / "ansible/roles/firewall/templates/firewall.nft.j2").read_text(encoding="utf-8")
    fixed = sorted(port for port in PORTS.values() if port < 11000)
    assert f"{{ 6379, {fixed[0]}-{fixed[-1]}, 8100, {PORTS['--min-worker-port']}-{PORTS['--max-worker-port']}, " in rules


def test_secrets_are_named_by_file():
    """No token or key is in the environment or on a command line."""
    environment = client_environment(Path("/etc/token"), Path("/etc/tls"))
    assert environment["RAY_AUTH_TOKEN_PATH"] == "/etc/token" and environment["RAY_TLS_SERVER_KEY"] == "/etc/tls/node.key"
    assert environment["RAY_AUTH_MODE"] == "token" and environment["RAY_USE_TLS"] == "1"


def test_a_machine_is_found_by_its_address():
    """Its ids are those of its proxy and its replicas; its models are named once."""
    assert node_ids(DETAILS, "10.0.0.2") == ["n2", "n3"]
    assert replicas(DETAILS, "10.0.0.2") == ["a"]
    assert node_ids(DETAILS, "10.0.0.9") == replicas(DETAILS, "10.0.0.9") == []


def test_a_drained_machine_keeps_its_models_until_others_have_started():
    """Serve stops a replica so long before Ray's deadline as its requests may take: the deadline leaves the whole timeout before that."""
    line = draining.command("n1", "10.0.0.1:6379", timeout_s=600)
    assert int(line[line.index("--deadline-remaining-seconds") + 1]) - DRAIN_S == 600


def test_a_head_that_is_away_is_said():
    """Draining and emptying end with one error that names the machine or the cell, not with a traceback."""
    away = ServeApi(url="http://127.0.0.1:9")
    with pytest.raises(DrainError, match=r"10\.0\.0\.2 is not drained: .* does not answer"):
        drain(away, "10.0.0.2", gcs="127.0.0.1:9", environment={}, timeout_s=1)
    with pytest.raises(DrainError, match="the cell is not emptied"):
        empty(away, http_port=8100, host="127.0.0.1", timeout_s=1)


def test_who_waits_is_told_for_what_and_for_how_long():
    """Each second the models that are still there; no longer than was asked, and the error names those that stayed."""
    told = []
    draining._until_none(iter([["a", "b"], ["b"], []]).__next__, 60, told.append, late="")
    assert told == ["a, b", "b"]
    with pytest.raises(DrainError, match=r"^b still runs$"):
        draining._until_none(lambda: ["b"], -1, told.append, late="{left} still runs")
