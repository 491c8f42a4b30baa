"""One vLLM engine and its HTTP application from a plain `Spec`. Knows nothing of Ray.

vLLM is driven through its command line's own parser (the one interface that vLLM documents and checks), so `engine:` in the
catalog means what it means to `vllm serve`. No ray.llm between: on a CPU its LLMServer forces a worker process beside the engine's
(1.5 GB and 40 s of CPU time more for two models, serving/README.md), it is what breaks with each vLLM release, and once the replica
serves vLLM's own application nothing of it is left. A replica's GPUs are in one node, so vLLM's own worker processes do for tensor
parallelism what Ray's executor would; a model that spans nodes would get a placement group and `distributed_executor_backend: ray` here.
"""

import argparse
import asyncio
import importlib
import json
import math
import os
import re
import types
from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_LARGE_BYTES = 1 << 28  # of weights: from here on huge pages pay; for less they only make the engine's process larger
# What inhouse wants unless the catalog says otherwise. Prompts are never logged (vLLM's default too); usage is counted per request.
# Its scheduler sorts by priority, so that batch keys of the router stand back; among equals the earlier goes first, as without.
_DEFAULTS: Mapping[str, Any] = {
    "disable_fastapi_docs": True,
    "enable_prompt_tokens_details": True,
    "scheduling_policy": "priority",
}


class EngineArgumentError(Exception):
    """vLLM refuses its arguments or the model; the message is vLLM's, in one line."""


class EngineStartError(Exception):
    """The engine's process failed while it loaded the model; the message is its own last error."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What a replica needs to know, in types that JSON has. `release` changes when the files change: a new one restarts the model."""

    name: str
    folder: str
    engine: dict[str, Any]
    adapters: dict[str, str]
    gpus: int
    cpus: float
    cache: str
    release: str


@dataclass
class Engine:
    """A started engine. `client` is vLLM's `AsyncLLM`, `app` its ASGI application."""

    client: Any
    app: Any
    _context: AbstractAsyncContextManager[Any]

    async def close(self) -> None:
        """Ends the engine's processes."""
        await self._context.__aexit__(None, None, None)


async def start_engine(spec: Spec) -> Engine:
    """Loads the model and builds vLLM's HTTP application; returns when it can answer. Takes 20 s and more: imports, then weights.

    Raises `EngineArgumentError` or `EngineStartError`. vLLM's own exceptions hold what can't be sent to Serve's controller, and say
    "see root cause above" where the cause is in the log of another process.
    """
    os.environ.update(environment(spec))
    entry = await asyncio.to_thread(importlib.import_module, "vllm.entrypoints.launchers.api_server.entry")
    args = parse(spec)
    context = entry.build_async_engine_client(args)
    try:
        client = await context.__aenter__()
    except ValueError as error:  # pydantic's, too
        raise EngineArgumentError(_one_line(str(error))) from None
    except RuntimeError as error:
        raise EngineStartError(_root_cause() or _one_line(str(error))) from None
    tasks = await client.get_supported_tasks()
    app = entry.build_app(args, tasks, client.model_config)
    await entry.init_app_state(client, app.state, args, tasks)
    app.state.server = types.SimpleNamespace()  # vLLM's error handler flips `should_exit` on its uvicorn server; ours is Serve's
    return Engine(client, app, context)


def _one_line(message: str) -> str:
    """Without pydantic's dump of its input and links."""
    kept = re.sub(r"\[type=.*|For further information.*", "", message, flags=re.DOTALL)
    return " ".join(kept.split())


def _root_cause() -> str | None:
    """The last error that the engine's process wrote to the standard error that it shares with us, where that is a file."""
    try:
        log = Path("/proc/self/fd/2").resolve(strict=True).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.findall(r"^\(EngineCore[^)]*\) ERROR .*?\] (\w*(?:Error|Exception)\b: .+)$", log, re.MULTILINE)
    return str(found[-1]) if found else None


def environment(spec: Spec) -> dict[str, str]:
    """What vLLM reads from the environment; must be set before it is imported."""
    cache = Path(spec.cache)
    wanted = {
        "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLLM_CACHE_ROOT": str(cache / "vllm"),  # keeps model inspection and compiled kernels from one start to the next
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
    }
    if spec.gpus == 0:
        wanted |= {
            # One process for scheduler and model: vLLM rewrites its own default to a separate worker only while this is on.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several models share the cores
            "OMP_NUM_THREADS": str(max(1, math.ceil(spec.cpus))),
            "GLOO_SOCKET_IFNAME": "lo",
        }
        if sum(file.stat().st_size for file in Path(spec.folder).glob("*.safetensors")) >= _LARGE_BYTES:
            wanted["GLIBC_TUNABLES"] = os.environ.get("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")  # the engine's process reads it
    return wanted


def parse(spec: Spec) -> argparse.Namespace:
    """The arguments of `vllm serve` for a spec, checked by vLLM. Raises `EngineArgumentError`."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]  # vLLM is untyped here
        def error(self, message: str) -> None:
            raise EngineArgumentError(message)

    parser = make_arg_parser(Parser())
    args = parser.parse_args(list(_flags(parser, options(spec))))
    validate_parsed_serve_args(args)
    return argparse.Namespace(**vars(args))


def options(spec: Spec) -> dict[str, Any]:
    """vLLM's options for a spec, by their names in Python."""
    chosen = {**_DEFAULTS, **spec.engine, "model": spec.folder, "served_model_name": [spec.name]}
    if spec.gpus:
        chosen["tensor_parallel_size"] = spec.gpus // int(spec.engine.get("pipeline_parallel_size", 1))
    if spec.adapters:
        chosen |= {"enable_lora": True, "lora_modules": [{"name": name, "path": path} for name, path in spec.adapters.items()]}
        chosen.setdefault("max_loras", min(len(spec.adapters), 8))
    return chosen


def _flags(parser: argparse.ArgumentParser, chosen: Mapping[str, Any]) -> Iterator[str]:
    known = parser._option_string_actions
    for name, value in chosen.items():
        flag = f"--{name.replace('_', '-')}"
        if value is None:
            continue
        if isinstance(value, bool):
            if value or f"--no-{flag[2:]}" in known:
                yield flag if value else f"--no-{flag[2:]}"
        elif isinstance(value, list) and flag in known and known[flag].nargs:
            yield from (flag, *(_text(item) for item in value))
        else:
            yield f"{flag}={_text(value)}"


def _text(value: Any) -> str:
    return json.dumps(value) if isinstance(value, dict | list) else str(value)
