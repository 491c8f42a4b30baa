"""The gateways that can be measured side by side, each as a command over the same mock upstream, set up as its makers advise for streams.

Our router runs with everything on: a real key in a real database, the ledger, metrics, health checks. The others run without keys,
ledger or policy, which is in their favour.
"""

import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

from routing.bench.processes import BenchError, free_port

_NGINX = """daemon off;
{user}worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  tcp_nodelay on;
  keepalive_requests 100000000;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  upstream mock {{ server 127.0.0.1:{upstream}; keepalive 1024; keepalive_requests 100000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://mock;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
      proxy_request_buffering off;
      client_body_buffer_size 64k;
    }}
  }}
}}
"""
_MODELS = """models:
  - name: mock
    license: Apache-2.0
    path: weights
    price: {usd_per_gpu_hour: 1.0, tokens_per_s: 100000}
"""
_ROUTES = """default_task: bench
cells: [{{name: mock, url: "http://127.0.0.1:{upstream}"}}]
tasks:
  - name: bench
    candidates: [{{model: mock}}]
    budgets: [100000usd/day]
"""
_LITELLM = """model_list:
  - model_name: mock
    litellm_params: {{model: openai/gpt-4o-mini, api_base: "http://127.0.0.1:{upstream}/v1", api_key: sk-mock}}
litellm_settings: {{set_verbose: false, num_retries: 0, telemetry: false, request_timeout: 600}}
"""
HOW_TO_GET = {
    "nginx": "nginx is not installed; your distribution has it",
    "vllm-router": "vllm-router is not on PATH; `python -m venv peers && peers/bin/pip install vllm-router` gets it, "
                   "then add `--vllm-router peers/bin/vllm-router`",
}  # fmt: skip


@dataclass(frozen=True)
class Gateway:
    """Something that answers `/v1/chat/completions` on a port. No command: it runs already."""

    name: str
    port: int
    model: str = "mock"
    command: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)
    start_timeout_s: float = 60.0


def direct(upstream: int) -> Gateway:
    """No gateway at all: the mock itself."""
    return Gateway("direct", upstream)


def router(folder: Path, upstream: int) -> Gateway:
    """Our router with everything on: a key, policy, detectors, budgets of caller, team and task, ledger, audit and metrics.

    A fresh home under `folder`, one worker.
    """
    from routing.budgets import budgets_of
    from routing.keys import Allowed, create
    from routing.store import open_store
    from routing.teams import create_team

    home = folder / "home"
    (folder / "models.yaml").write_text(_MODELS, encoding="utf-8")
    (folder / "routes.yaml").write_text(_ROUTES.format(upstream=upstream), encoding="utf-8")
    engine = open_store(home)
    budgets = budgets_of(("100000usd/day", "1000000000000tokens/month"))
    create_team(engine, "bench", budgets)
    key = create(engine, "bench", allowed=Allowed(team="bench", limits=budgets))
    engine.dispose()
    port = free_port()
    env = {"INHOUSE_HOME": str(home), "INHOUSE_MODELS": str(folder / "models.yaml"), "INHOUSE_ROUTES": str(folder / "routes.yaml"),
           "INHOUSE_HOST": "127.0.0.1", "INHOUSE_PORT": str(port), "INHOUSE_WORKERS": "1"}  # fmt: skip
    return Gateway("router", port, "task/bench", (sys.executable, "-m", "routing.server"), env, {"authorization": f"Bearer {key}"})


def nginx(folder: Path, upstream: int) -> Gateway:
    """nginx as a bare reverse proxy. Raises `BenchError` where it is not installed."""
    program = shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin") or shutil.which("nginx")
    if program is None:
        raise BenchError(HOW_TO_GET["nginx"])
    port = free_port()
    user = "user root;\n" if folder.stat().st_uid == 0 else ""  # else its worker may not enter the folder
    config = folder / "nginx.conf"
    config.write_text(_NGINX.format(user=user, folder=folder, upstream=upstream, port=port), encoding="utf-8")
    return Gateway("nginx", port, command=(program, "-e", "stderr", "-p", str(folder), "-c", str(config)))


def vllm_router(given: str | None, upstream: int) -> Gateway:
    """vLLM's Rust router with one worker URL. Raises `BenchError` where it can't be found."""
    program = shutil.which(given or "vllm-router")
    if program is None:
        raise BenchError(f"there is no program `{given}`" if given else HOW_TO_GET["vllm-router"])
    port = free_port()
    return Gateway("vllm-router", port, command=(
        program, "--host", "127.0.0.1", "--port", str(port), "--worker-urls", f"http://127.0.0.1:{upstream}", "--policy", "round_robin",
        "--prometheus-host", "127.0.0.1", "--prometheus-port", str(free_port()), "--log-level", "warning"))  # fmt: skip


def litellm(folder: Path, given: str, upstream: int) -> Gateway:
    """LiteLLM's proxy, one worker, no database. Raises `BenchError` where it can't be found."""
    program = shutil.which(given)
    if program is None:
        raise BenchError(f"there is no program `{given}`; `pip install 'litellm[proxy]' opentelemetry-sdk` gets it")
    port = free_port()
    config = folder / "litellm.yaml"
    config.write_text(_LITELLM.format(upstream=upstream), encoding="utf-8")
    env = {"LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION", "LITELLM_LOCAL_MODEL_COST_MAP": "True",
           "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}  # fmt: skip
    command = (program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port), "--num_workers", "1")
    return Gateway("litellm", port, command=command, env=env, start_timeout_s=180.0)
