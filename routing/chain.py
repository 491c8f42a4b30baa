"""The audit log's file: JSON lines, each sealed (HMAC-SHA256) together with its number and the seal of the line before.

One chain for each home, whoever writes: workers and commands append under one file lock. A chain for each worker would need no lock, but
the end of each would have to be known and anchored for ever, or cutting it off goes unseen; and a command that writes one line would
leave a chain of one. The lock is taken once per batch, off the request path, and the kernel frees it when its holder is killed. What a
killed writer leaves half written is sealed by the next one as `torn`. Checking is `audit_verify`'s.
"""

import fcntl
import hashlib
import hmac
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

_ANCHOR_EVERY_S = 60.0
_LOCK_S = 5.0
_SEGMENT_BYTES = 64 << 20  # then a new file begins, and the chain goes on in it
_TAIL_BYTES = (8 << 10, 1 << 20)  # of a file's end, where its last true line is looked for
_encode = msgspec.json.Encoder().encode
_MAC = re.compile(rb'^(\{"n":(\d+),.*),"mac":"([0-9a-f]{32})"\}$', re.DOTALL)
_PREVIOUS = re.compile(rb'^\{"n":\d+,"prev":"([0-9a-f]*)"')


class Entry(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """What happened. Fields that are empty are left out of the line. `what` is a path, or the command of an admin act."""

    at: float
    kind: Literal["decision", "refusal", "admin", "sample", "torn"]
    who: str
    what: str
    outcome: str = ""
    request_id: str = ""
    run_id: str = ""
    team: str = ""
    task: str = ""
    model: str = ""
    data_class: str = ""
    zone: str = ""
    why: str = ""
    policy_hash: str = ""
    config_version: str = ""


class Head(NamedTuple):
    """The last line of a chain: its number from 1, and its seal."""

    n: int
    mac: str


class Line(NamedTuple):
    """A line that carries a true seal."""

    n: int
    mac: str
    previous: str
    entry: dict[str, Any]


class AuditError(Exception):
    """The log can't be gone on with; the message says what to do."""


class Place(NamedTuple):
    """Where one home's audit log is. `anchors` is the second place: put it on another disk or mount than the home."""

    folder: Path
    key: Path
    anchors: Path

    def segments(self) -> list[Path]:
        """The files of the log, oldest first: each is named by the number of its first line."""
        return sorted(self.folder.glob("audit-*.jsonl"))


def place_of(home: Path) -> Place:
    """The audit log of a home. `INHOUSE_AUDIT_ANCHORS` names the file for anchors; by default it is in the home's logs."""
    anchors = os.environ.get("INHOUSE_AUDIT_ANCHORS", "") or home / "logs" / "audit-anchors.jsonl"
    return Place(home / "state" / "audit", home / "state" / "audit.key", Path(anchors))


def seal(key: bytes, body: bytes) -> str:
    """A line's seal: the first 128 bits of the HMAC over everything before it."""
    return hmac.digest(key, body, "sha256").hex()[:32]


def read_line(key: bytes, line: bytes) -> Line | None:
    """A line without its end, or None where its seal is not true."""
    found = _MAC.match(line)
    if found is None or not hmac.compare_digest(seal(key, found[1] + b"}"), found[3].decode()):
        return None
    previous = _PREVIOUS.match(line)
    return Line(int(found[2]), found[3].decode(), previous[1].decode() if previous else "", msgspec.json.decode(line))


def write_line(key: bytes, head: Head, entry: Entry) -> tuple[Head, bytes]:
    """The line after `head`, with its end, and the new head."""
    try:
        fields = _encode(entry)
    except ValueError:  # half of a surrogate pair: no JSON can carry it, and one such entry must not keep all others waiting
        told = msgspec.structs.asdict(entry)
        fields = _encode({name: value.encode("ascii", "backslashreplace").decode() if isinstance(value, str) else value
                          for name, value in told.items()})  # fmt: skip
    body = b'{"n":%d,"prev":"%b",%b' % (head.n + 1, head.mac.encode(), fields[1:])
    mac = seal(key, body)
    return Head(head.n + 1, mac), b'%b,"mac":"%b"}\n' % (body[:-1], mac.encode())


class Chain:
    """The log of one home, to append to. Any number of processes may have one."""

    def __init__(self, place: Place, *, segment_bytes: int = _SEGMENT_BYTES, lock_s: float = _LOCK_S) -> None:
        self._place = place
        self._lock_s = lock_s
        self._segment_bytes = segment_bytes
        place.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        place.anchors.parent.mkdir(parents=True, exist_ok=True)
        self._anchored_at = 0.0
        self._mine: tuple[Path, int, Head] | None = None  # the last file's size and head as this writer left them
        with self._locked():
            self._key = _key(place)

    def append(self, entries: Sequence[Entry], *, anchor: bool = False) -> Head:
        """Seals entries onto the chain and returns its head when they are on the disk.

        Raises `OSError` with nothing written, `AuditError` where the log's end is not one of ours.
        """
        with self._locked():
            last, size, head, torn = self._end()
            if torn:
                digest = hashlib.sha256(torn).hexdigest()
                entries = (Entry(time.time(), "torn", "audit", f"{len(torn)} bytes of a killed writer", digest), *entries)
            lines = [b"\n"] if torn else []
            first = head.n + 1
            for entry in entries:
                head, line = write_line(self._key, head, entry)
                lines.append(line)
            if last is None or (size > self._segment_bytes and not torn):
                last = self._place.folder / f"audit-{first:012d}.jsonl"
            self._mine = last, _append(last, b"".join(lines)), head
            if anchor or time.monotonic() - self._anchored_at > _ANCHOR_EVERY_S:
                self._anchored_at = time.monotonic()
                _append(self._place.anchors, msgspec.json.encode({"n": head.n, "mac": head.mac, "at": time.time()}) + b"\n")
        return head

    def _end(self) -> tuple[Path | None, int, Head, bytes]:
        """The last file, its size, the chain's head and a half line after it. Nothing is read where nobody else has written."""
        if self._mine is not None:
            path, size, head = self._mine
            with suppress(FileNotFoundError):
                if size <= self._segment_bytes and path.stat().st_size == size:  # a larger one may have a successor
                    return path, size, head, b""
        segments = self._place.segments()
        head, torn, size = _end(segments, self._key)
        return segments[-1] if segments else None, size, head, torn

    @contextmanager
    def _locked(self) -> Iterator[None]:
        lock = os.open(self._place.folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(lock, self._lock_s)
            yield
        finally:
            os.close(lock)


def _key(place: Place) -> bytes:
    """The key of the seals, made with the log and never after: a new key would make all earlier lines look altered."""
    try:
        return bytes.fromhex(place.key.read_text().strip())
    except FileNotFoundError:
        if place.segments():
            raise AuditError(f"{place.folder} has a log but its key {place.key} is gone: put the key back from the backup, or move "
                             "the folder away to begin a new log") from None  # fmt: skip
    key = secrets.token_bytes(32)
    made = os.open(place.key, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(made, "w") as file:
        file.write(key.hex() + "\n")
    return key


def _end(segments: Sequence[Path], key: bytes) -> tuple[Head, bytes, int]:
    """The last line with a true seal, the bytes of a half line after the last whole one, and the last file's size."""
    torn, size = b"", 0
    for path in reversed(segments):
        for most in _TAIL_BYTES:
            with path.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(0, end - most))
                *lines, rest = file.read().split(b"\n")
            for line in reversed(lines):
                if found := read_line(key, line):
                    return Head(found.n, found.mac), torn or rest, size or end
        if lines:
            raise AuditError(f"the end of {path} carries no seal of this home's key: `inhouse audit verify` says more; with the file "
                             "moved away the log goes on from the one before it")  # fmt: skip
        torn, size = rest, end  # a writer was killed in the first line of a new file
    return Head(0, ""), torn, size


def _lock(file: int, most_s: float) -> None:
    """Takes the lock; not for ever: a writer that was stopped (SIGSTOP) while it has it must not stop the ledgers of all workers."""
    give_up_at = time.monotonic() + most_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > give_up_at:
                raise AuditError(f"another process has held the log's lock for {most_s:g} s; is one of them stopped?") from None
            time.sleep(0.001)


def _append(path: Path, data: bytes) -> int:
    """All of `data` at the end of a file, on the disk, and the size it has then; or none of it, and `OSError`."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(file).st_size
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(file, rest) :]
            os.fdatasync(file)
        except OSError:
            os.ftruncate(file, size)
            raise
        return size + len(data)
    finally:
        os.close(file)
