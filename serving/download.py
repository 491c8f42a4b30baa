"""The bytes of one file from the hub: resumes where it stopped, counts and hashes on the way, renames only what proved right.

Knows nothing of models; which files to take is `hub`'s question.
"""

import hashlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from serving.manifest import File, IntegrityError

_CHUNK = 1 << 20
_TRIES = 6  # without a byte of progress between them
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Remote:
    """A file as the hub describes it: LFS files carry a SHA-256, small ones git's blob SHA-1."""

    name: str
    url: str
    size: int
    sha256: str | None
    git_sha1: str

    @property
    def key(self) -> str:
        """Names the half-fetched file: another content never continues it."""
        return self.sha256 or self.git_sha1


class StoppedError(Exception):
    """Another file failed or the user pressed Ctrl-C; what has arrived stays for the next fetch."""


class _Digests:
    """SHA-256 for the manifest, and git's blob SHA-1 (of `blob <size>\\0<bytes>`) where the hub gives only that."""

    def __init__(self, remote: Remote) -> None:
        self.remote = remote
        self.restart()

    def restart(self) -> None:
        self.size = 0
        self._sha256 = hashlib.sha256()
        self._sha1 = hashlib.sha1(b"blob %d\0" % self.remote.size, usedforsecurity=False)

    def update(self, chunk: bytes) -> None:
        self.size += len(chunk)
        self._sha256.update(chunk)
        if self.remote.sha256 is None:
            self._sha1.update(chunk)

    @property
    def problem(self) -> str | None:
        """Why these bytes are not the hub's, or None."""
        if self.size != self.remote.size:
            return f"{self.size} bytes, the hub says {self.remote.size}"
        if self.remote.sha256 is not None:
            found, said, kind = self._sha256.hexdigest(), self.remote.sha256, "sha256"
        else:
            found, said, kind = self._sha1.hexdigest(), self.remote.git_sha1, "git sha1"
        return None if found == said else f"{kind} {found}, the hub says {said}"

    @property
    def file(self) -> File:
        return File(self.size, self._sha256.hexdigest())


def download(remote: Remote, folder: Path, parts: Path, headers: dict[str, str], stop: threading.Event) -> File:
    """Brings one file to `folder`, continuing what an earlier call left in `parts`.

    Raises `IntegrityError` when the bytes are not what the hub says they are; then nothing of them is kept.
    """
    target, part = folder / remote.name, parts / remote.key
    if target.is_file() and (there := _proven(remote, target)) is not None:
        return there
    target.parent.mkdir(parents=True, exist_ok=True)
    digests = _Digests(remote)
    with part.open("a+b") as out:
        out.seek(0)
        while chunk := out.read(_CHUNK):
            digests.update(chunk)
        if digests.size > remote.size:
            _restart(digests, out)
        _receive(remote, out, digests, headers, stop)
        out.flush()
        os.fsync(out.fileno())
    if digests.problem is not None:
        part.unlink()
        raise IntegrityError(f"{remote.name}: the wrong bytes arrived ({digests.problem}); they were deleted. Fetch again; "
                             "if it happens twice, something between here and the hub alters the file")
    part.replace(target)
    return digests.file


def _proven(remote: Remote, path: Path) -> File | None:
    digests = _Digests(remote)
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digests.update(chunk)
    return digests.file if digests.problem is None else None


def _restart(digests: _Digests, out: IO[bytes]) -> None:
    out.truncate(0)
    digests.restart()


def _receive(remote: Remote, out: IO[bytes], digests: _Digests, headers: dict[str, str], stop: threading.Event) -> None:
    """Reads until the size is reached; a cut connection is taken up again at the byte where it broke."""
    import httpx2

    tries, before = 0, -1
    while digests.size < remote.size:
        tries, before = (0 if digests.size > before else tries + 1), digests.size
        try:
            _stream(remote, out, digests, headers, stop)
        except (httpx2.TimeoutException, httpx2.NetworkError, httpx2.RemoteProtocolError):
            if tries + 1 >= _TRIES:
                raise
            out.flush()
            if stop.wait(min(0.5 * 2**tries, 8)):
                raise StoppedError from None
        if digests.size == before and tries + 1 >= _TRIES:
            break  # the server keeps ending the answer early; the size check names it


def _stream(remote: Remote, out: IO[bytes], digests: _Digests, headers: dict[str, str], stop: threading.Event) -> None:
    from huggingface_hub.utils import hf_raise_for_status, http_stream_backoff  # type: ignore[attr-defined]  # public, not in __all__

    # Compressed answers would make sizes and ranges mean something else.
    asked = {**headers, "Accept-Encoding": "identity", **({"Range": f"bytes={digests.size}-"} if digests.size else {})}
    with http_stream_backoff("GET", remote.url, headers=asked, timeout=_TIMEOUT_S, retry_on_exceptions=()) as answer:
        hf_raise_for_status(answer)
        continues = answer.status_code == 206 and answer.headers.get("content-range", "").startswith(f"bytes {digests.size}-")
        if digests.size and not continues:
            _restart(digests, out)
        for chunk in answer.iter_bytes():
            if stop.is_set():
                raise StoppedError
            out.write(chunk)
            digests.update(chunk)
            if digests.size > remote.size:
                break
