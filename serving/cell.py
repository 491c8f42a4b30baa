"""This server's part of a cell (one Ray cluster over several machines): its head, or a worker that joins one.

For units of an init system: `become_ray` turns this process into Ray's, in the foreground, and ends with it. Ports are fixed so that a
firewall can name them (`PORTS`); between machines everything but Serve's HTTP is encrypted with the machines' certificates and asks for
the cell's token. One machine alone, on loopback, is `node`'s work; models are deployed on both in the same way (`deploy`).
"""

import os
import shutil
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from serving.environment import cell_environment

GCS_PORT = 6379
DASHBOARD_PORT = 8265  # loopback on the head
HTTP_PORT = 8100
IN_USE = "ray-token"  # in a member's folder: the token that the running Ray takes; the installed one may be tomorrow's
# What Ray opens to the other machines of its cell, besides the three above.
PORTS = {"--node-manager-port": 6800, "--object-manager-port": 6801, "--dashboard-agent-listen-port": 6802,
         "--dashboard-agent-grpc-port": 6803, "--runtime-env-agent-port": 6804, "--metrics-export-port": 6805,
         "--min-worker-port": 11000, "--max-worker-port": 11999}
_OBJECT_STORE_BYTES = 80_000_000  # requests do not travel through it
_SESSIONS = 3  # logs of so many earlier starts are kept


@dataclass(frozen=True, kw_only=True)
class Member:
    """One machine of a cell. It is the head where `head_ip` is its own. `tls` holds ca.crt, node.crt and node.key; `cpus` None: all."""

    ip: str
    head_ip: str
    folder: Path
    token: Path
    tls: Path
    cpus: int | None = None

    @property
    def is_head(self) -> bool:
        return self.ip == self.head_ip


def become_ray(member: Member) -> None:
    """Replaces this process by `ray start`; returns only by raising. `folder` is private to the cell's user and at most 24 characters
    long: HAProxy's socket lies 77 characters below it, and a socket's path ends at 107. Raises `HaproxyMissingError` and `OSError`.
    """
    _clear(member.folder)
    in_use = member.folder / IN_USE
    in_use.touch(mode=0o600)
    in_use.write_bytes(member.token.read_bytes())
    member = replace(member, token=in_use)
    environment = cell_environment(member.folder, member.token, HTTP_PORT) | _between_machines(member)
    arguments = command(member)
    os.execve(arguments[0], arguments, environment)  # noqa: S606 (no shell is wanted)


def command(member: Member) -> list[str]:
    """The command line of Ray for a member."""
    where = [f"--port={GCS_PORT}", "--head", "--dashboard-host=127.0.0.1", f"--dashboard-port={DASHBOARD_PORT}", "--include-dashboard=true",
             f"--temp-dir={member.folder / 'ray'}"]
    join = [f"--address={member.head_ip}:{GCS_PORT}"]
    return [sys.executable, "-m", "ray.scripts.scripts", "start", *(where if member.is_head else join), "--block",
            f"--node-ip-address={member.ip}", *(f"{option}={port}" for option, port in PORTS.items()),
            "--include-log-monitor=false", "--no-monitor", "--disable-usage-stats", f"--object-store-memory={_OBJECT_STORE_BYTES}",
            *([] if member.cpus is None else [f"--num-cpus={member.cpus}"]), "--log-style=record", "--log-color=false"]


def client_environment(token: Path, tls: Path) -> dict[str, str]:
    """What a program needs to speak to a cell's GCS."""
    return {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_USE_TLS": "1", "RAY_TLS_CA_CERT": str(tls / "ca.crt"),
        "RAY_TLS_SERVER_CERT": str(tls / "node.crt"), "RAY_TLS_SERVER_KEY": str(tls / "node.key"),
    }


def _between_machines(member: Member) -> dict[str, str]:
    return client_environment(member.token, member.tls) | {
        "HOME": str(member.folder), "VLLM_HOST_IP": member.ip,
        "DASHBOARD_METRIC_PORT": "44227", "AUTOSCALER_METRIC_PORT": "44217",
        # Ray's raylet ends when its agent is slower than this; 45 s held under load where 15 did not, 180 s let a dead start hang.
        "RAY_agent_register_timeout_ms": "45000", "RAY_raylet_start_wait_time_s": "60",
        "RAY_gcs_rpc_server_reconnect_timeout_s": "120",
        # A machine without power is given up after 5 silent checks: after 30 s instead of the 65 of Ray's own 3 and 10 s.
        "RAY_health_check_period_ms": "1000", "RAY_health_check_timeout_ms": "5000",
        # Told to stop, Ray waits for its models to leave, 30 s without need where `drain` or `empty` was before: this is for a reboot.
        "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0" if member.is_head else "10",
    }


def _clear(folder: Path) -> None:
    """Leaves only the logs of the last sessions of what an earlier start wrote."""
    for name in ("tmp", "site", "h"):
        shutil.rmtree(folder / name, ignore_errors=True)
    sessions = sorted((folder / "ray").glob("session_2*"))
    for old in sessions[:-_SESSIONS]:
        shutil.rmtree(old, ignore_errors=True)
