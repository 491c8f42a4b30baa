"""A proxy in front of a real server that spoils what passes, by the first part of the path: `/429/v1/chat/completions` is refused as busy.

One request for each connection. Faults: `429` and `503` answer by themselves, `reset` hangs up before a byte, `late` waits 30 s before the
first byte, `cut` hangs up in the middle of the answer's body, `half` in the middle of its head, `plain` spoils nothing.
"""

import contextlib
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from urllib.parse import urlsplit

FAULTS = ("429", "503", "reset", "late", "half")  # before the first byte of an answer
_REFUSALS = {"429": b"HTTP/1.1 429 Too Many Requests\r\nretry-after: 60\r\n", "503": b"HTTP/1.1 503 Service Unavailable\r\n"}
_CUT_AFTER = 3  # events of a stream


class Proxy:
    """Listens on loopback until closed. `seen` counts requests by their fault."""

    def __init__(self, server: str) -> None:
        self.seen: Counter[str] = Counter()
        self._server = urlsplit(server)
        self._ended = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(caller,), daemon=True).start()

    def _serve(self, caller: socket.socket) -> None:
        with contextlib.suppress(OSError), caller:
            data = caller.recv(65536)
            if not data:
                return  # a connection that was opened and not used
            while b"\r\n\r\n" not in data:
                data += caller.recv(65536)
            method, fault, path = data.split(b"/", 2)
            self.seen[fault.decode()] += 1
            if fault == b"reset":
                _reset(caller)
            elif refusal := _REFUSALS.get(fault.decode()):
                caller.sendall(refusal + b"content-type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n\r\n{}")
                caller.shutdown(socket.SHUT_WR)
                caller.recv(65536)
            else:
                self._relay(caller, fault, method + self._server.path.encode() + b"/" + path)

    def _relay(self, caller: socket.socket, fault: bytes, request: bytes) -> None:
        if fault == b"late":
            self._ended.wait(30)
        with socket.create_connection((self._server.hostname, self._server.port)) as server:
            server.sendall(request.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1))
            threading.Thread(target=_forward, args=(caller, server), daemon=True).start()  # the rest of its body, if any
            left = _CUT_AFTER
            for data in iter(lambda: server.recv(65536), b""):
                if fault == b"half":
                    return caller.sendall(data[:20])
                events = data.split(b"\n\n")
                if fault == b"cut" and len(events) > left:
                    return caller.sendall(b"\n\n".join(events[:left]) + b"\n\n")
                left -= len(events) - 1
                caller.sendall(data)
        return None


@contextlib.contextmanager
def proxy(server: str) -> Iterator[Proxy]:
    """A proxy to a server for the duration of the block."""
    running = Proxy(server)
    try:
        yield running
    finally:
        running.close()


def _forward(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        for data in iter(lambda: source.recv(65536), b""):
            target.sendall(data)


def _reset(caller: socket.socket) -> None:
    """Hangs up so that the other side sees a reset, not an end."""
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    caller.close()
