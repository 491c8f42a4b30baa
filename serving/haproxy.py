"""A wrapper around Serve's HAProxy that keeps its statistics and metrics ports on loopback.

Ray 2.60 writes `bind *:8404` and `bind :9101` into HAProxy's configuration and lets only the ports be chosen
(ray/serve/_private/haproxy_templates.py); it does let the binary be chosen.
"""

from pathlib import Path

_SCRIPT = """#!/bin/sh
# Written by inhouse. Rewrites every bind to all interfaces before HAProxy reads it.
previous=
for argument; do
    [ "$previous" = -f ] && sed -i -E 's/^([[:space:]]*bind[[:space:]]+)(\\*|0\\.0\\.0\\.0)?:/\\1127.0.0.1:/' "$argument"
    previous=$argument
done
exec '{binary}' "$@"
"""


def write_wrapper(folder: Path, binary: Path) -> Path:
    """Writes the wrapper of an HAProxy binary into a folder; returns its path, which RAY_SERVE_HAPROXY_BINARY_PATH takes."""
    wrapper = folder / "haproxy"
    wrapper.write_text(_SCRIPT.format(binary=binary), encoding="utf-8")
    wrapper.chmod(0o700)
    return wrapper
