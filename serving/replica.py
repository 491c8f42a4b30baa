"""One replica of one model under Ray Serve: serves vLLM's own ASGI application, so every endpoint that vLLM has works.

The only file that imports ray; it runs on the nodes, never in the command or the router.
"""

import asyncio
import os
from typing import Any

from ray import serve

from serving.abort import abortable
from serving.engine import Engine, Spec, start_engine

_WATCH_S = 0.5


@serve.ingress()
class Replica:
    """A model's engine behind Serve. Requests, streams and aborts go straight to vLLM: Serve only counts them.

    When the engine dies the replica leaves, so that Serve replaces it within seconds instead of after failed health checks;
    `check_health` alone would need three of them.
    """

    async def __init__(self, spec: dict[str, Any]) -> None:  # type: ignore[misc]  # Serve awaits it
        _close_handle_port()
        self._engine: Engine = await start_engine(Spec(**spec))
        self._watch = asyncio.create_task(self._leave_with_the_engine())

    async def __serve_build_asgi_app__(self) -> Any:
        return abortable(self._engine.app)

    async def check_health(self) -> None:
        """Raises when the engine is dead."""
        await self._engine.client.check_health()

    async def _leave_with_the_engine(self) -> None:
        while not self._engine.client.errored:  # noqa: ASYNC110 (vLLM sets a flag, from a thread of its own)
            await asyncio.sleep(_WATCH_S)
        await asyncio.sleep(_WATCH_S)  # callers in flight get their error first
        os._exit(1)


def _close_handle_port() -> None:
    """Keeps Serve's port for calls between deployments on loopback. Serve binds it to all interfaces and unpickles what comes in
    (ray/serve/_private/replica.py, `_on_initialized`); nothing of ours calls it.
    """
    from ray.serve._private import replica

    def on_loopback(server: Any, _: str) -> int:
        return int(server.add_insecure_port("127.0.0.1:0"))

    replica.add_port_to_grpc_server = on_loopback


def build(args: dict[str, Any]) -> Any:
    """The Serve application of one model; how many replicas and on what is in the deployment's options (`deploy`)."""
    return serve.deployment(Replica, name="Model", max_constructor_retry_count=2).bind(args["spec"])
