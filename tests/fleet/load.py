"""Callers who never stop asking a fleet, plain and streamed, while something is done to it; what they saw is counted.

A caller retries nothing. It knows no fleet: an address, a key and the authority's certificate do.
"""

import argparse
import http.client
import itertools
import json
import ssl
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

_PAUSE_S = 0.5  # of each caller, so that what is measured is not the load itself
_ORDER = "Please confirm AB-4711. 12 pumps go to Ann Keller at our Leeds site before 3 May 2027; we pay EUR 980.50."


@dataclass
class Load:
    """`with Load(...) as load:` asks until the block ends. `seen` holds (monotonic end, status or what went wrong, seconds)."""

    address: str
    key: str
    authority: str  # PEM
    callers: int = 2
    streams: int = 1
    timeout_s: float = 600
    seen: list[tuple[float, str, float]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._keep_asking, args=(stream,))
                         for stream in [False] * self.callers + [True] * self.streams]
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        self._ended = time.monotonic()

    def failures(self) -> list[str]:
        return [status for _, status, _ in self.seen if status != "200"]

    def longest_pause_s(self) -> float:
        """The longest time in which no answer ended well."""
        return max(later - sooner for sooner, later in self._pauses())

    def _pauses(self) -> list[tuple[float, float]]:
        good = [self._began, *sorted(at for at, status, _ in self.seen if status == "200"), self._ended]
        return list(itertools.pairwise(good))

    def told(self) -> str:
        """One line of figures."""
        failed = self.failures()
        kinds = ", ".join(f"{failed.count(kind)} x {kind}" for kind in sorted(set(failed)))
        slowest = max((seconds for _, status, seconds in self.seen if status == "200"), default=0.0)
        return (f"{len(self.seen)} requests over {self._ended - self._began:.0f} s, {len(failed)} failed{f' ({kinds})' if kinds else ''}, "
                f"longest pause {self.longest_pause_s():.1f} s, slowest answer {slowest:.1f} s")

    def _keep_asking(self, stream: bool) -> None:
        trusted = ssl.create_default_context(cadata=self.authority)
        while not self._is_over.wait(_PAUSE_S):
            began = time.monotonic()
            try:
                status = self._ask(trusted, stream)
            except (OSError, http.client.HTTPException) as error:
                status = type(error).__name__
            self.seen.append((time.monotonic(), status, time.monotonic() - began))

    def _ask(self, trusted: ssl.SSLContext, stream: bool) -> str:
        body = {"model": "auto", "max_tokens": 64, "stream": stream, "messages": [{"role": "user", "content": _ORDER}]}
        connection = http.client.HTTPSConnection(self.address, context=trusted, timeout=self.timeout_s)
        try:
            connection.request("POST", "/v1/chat/completions", json.dumps(body),
                               {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"})
            answer = connection.getresponse()
            text = answer.read()
        finally:
            connection.close()
        is_whole = not stream or text.endswith(b"data: [DONE]\n\n")
        return str(answer.status) if answer.status != 200 or is_whole else "cut stream"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Ask for a while, then tell the figures.")
    parser.add_argument("address")
    parser.add_argument("key")
    parser.add_argument("authority", type=Path, help="ca.crt")
    parser.add_argument("seconds", type=float)
    asked = parser.parse_args()
    with Load(asked.address, asked.key, asked.authority.read_text(encoding="utf-8")) as load:
        time.sleep(asked.seconds)
    print(load.told())
