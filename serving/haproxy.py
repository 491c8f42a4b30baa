"""A wrapper around Serve's HAProxy that corrects the configuration which Ray 2.60 writes for it.

Ray lets only the binary be chosen (ray/serve/_private/haproxy_templates.py). Corrected are:
`bind *:8404` and `bind :9101`, statistics and metrics for all the world, of which only the ports are settings: to loopback
except the port on which a server's models are served to other machines, which Ray writes as `bind *:8100` too;
`option splice-request`: with it HAProxy 2.8 often does not notice that a caller has left before the answer began, and the engine goes on
working for nobody (6 of 14 unstreamed requests; without it none of 80; measured 2026-11-22). In its place stand keep-alive probes to the
replicas: a request to a machine without power ends after 25 s of silence, where a caller waited for 120 s and more (2026-11-25).
"""

from pathlib import Path

_SCRIPT = """#!/bin/sh
# Written by inhouse. Corrects Ray's configuration before HAProxy reads it: serving/haproxy.py says what and why.
previous=
for argument; do
    [ "$previous" = -f ] && sed -i -E -e 's/^([[:space:]]*bind[[:space:]]+)\\*:({public})[[:space:]]*$/\\10.0.0.0:\\2/' \\
        -e 's/^([[:space:]]*bind[[:space:]]+)\\*?:/\\1127.0.0.1:/' \\
        -e 's/^([[:space:]]*)option splice-request[[:space:]]*$/\\1option srvtcpka\\n{probes}/' "$argument"
    previous=$argument
done
exec '{binary}' "$@"
"""
_PROBES = r"\1srvtcpka-idle 10s\n\1srvtcpka-intvl 5s\n\1srvtcpka-cnt 3"


def write_wrapper(folder: Path, binary: Path, public_port: int | None = None) -> Path:
    """Writes the wrapper of an HAProxy binary into a folder; returns its path, which RAY_SERVE_HAPROXY_BINARY_PATH takes.

    `public_port` is the one port that may stay open to other machines.
    """
    wrapper = folder / "haproxy"
    wrapper.write_text(_SCRIPT.format(binary=binary, public=public_port or "none", probes=_PROBES), encoding="utf-8")
    wrapper.chmod(0o700)
    return wrapper
