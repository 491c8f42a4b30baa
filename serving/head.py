"""A hook that `ray start --head` calls (RAY_START_HOOK): leaves out what one node of inhouse has no use for.

Without it the head also runs a Ray Client server and eight dashboard modules beside Serve's REST API: 1.1 GB and, on two cores,
several seconds of start.
"""

from typing import Any


def trim(ray_params: Any, head: bool) -> None:
    """Drops the Ray Client server and all dashboard modules but Serve's."""
    if not head:
        return
    from ray._private import ray_constants, services

    ray_params.ray_client_server_port = None
    start = services.start_ray_process

    def start_lean(command: list[str], process_type: str, *args: Any, **kwargs: Any) -> Any:
        if process_type == ray_constants.PROCESS_TYPE_DASHBOARD:
            command = [*command, "--modules-to-load=ServeHead"]
        return start(command, process_type, *args, **kwargs)

    services.start_ray_process = start_lean
