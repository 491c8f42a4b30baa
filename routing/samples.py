"""Rows for data sets, sampled from traffic: the one place that writes down what callers say, for tasks whose `sample` asks for it.

Kept are whole answers to plain chats that belong to no run, of a class up to the one that the setting names, in which no detector finds
anything. A row is a JSON line that `inhouse eval run FILE` reads; what would have been right (`expected`) is a person's to add.
"""

import logging
import os
import random
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from routing.call import Call
from routing.chain import Entry
from routing.classes import Sample
from routing.detect import Detector, find
from routing.labels import Ladder

log = logging.getLogger("inhouse.samples")
_FILE_BYTES = 64 << 20
_LARGEST_BYTES = 64 << 10  # of a request or an answer
_WAITING = 32  # rows; when more come at once they are let go
_MODEL = re.compile(rb"inhouse-model: ([^\r\n]*)")
_NOT_PLAIN = ("tools", "functions")  # the question is not the messages alone


class Samples:
    """Keeps rows under `<home>/samples/<task>.jsonl`, for their owner alone. Nothing waits for it, and nothing it can't write is kept.

    A file that is full (64 MiB) takes no more until it is moved away. `note` takes the audit log's entries.
    """

    def __init__(self, home: Path, note: Callable[[Entry], None], *, file_bytes: int = _FILE_BYTES) -> None:
        self._folder = home / "samples"
        self._note = note
        self._file_bytes = file_bytes
        self._room = threading.BoundedSemaphore(_WAITING)
        self._writer = ThreadPoolExecutor(1, "samples")  # its thread comes with the first row
        self._full: set[str] = set()

    def close(self) -> None:
        """Writes what is waiting."""
        self._writer.shutdown()

    def offer(self, sample: Sample, call: Call, head: bytes, answer: bytes, *, ladder: Ladder, detectors: Sequence[Detector]) -> None:
        """A call and its answer (`head`: its header lines), kept by chance and if it may be. Returns at once."""
        assert call.asked is not None, "only what was asked is answered"
        if random.random() >= sample.share:  # noqa: S311  # a sample, not a secret
            return
        may_be_kept = call.run is None and ladder.higher(call.data_class, sample.up_to) == sample.up_to
        if may_be_kept and max(len(call.asked.body), len(answer)) <= _LARGEST_BYTES and self._room.acquire(blocking=False):
            self._writer.submit(self._keep, call, head, answer, detectors)

    def _keep(self, call: Call, head: bytes, answer: bytes, detectors: Sequence[Detector]) -> None:
        try:
            assert call.asked is not None, "as offered"
            messages, said = asked_and_said(call.endpoint.path, call.asked.body, answer)
            if messages and said and not find(call.asked.body, others=detectors) and not find(_told(said), others=detectors):
                found = _MODEL.search(head)
                model = found[1].decode() if found else ""
                self._write(call, {"messages": messages, "answer": said, "model": model, "task": call.task, "data_class": call.data_class,
                                   "request_id": call.request_id, "at": datetime.fromtimestamp(call.at, UTC).isoformat()})  # fmt: skip
        except Exception as error:  # nobody waits for this thread's word; the error's own may quote a prompt
            log.error("a row of the task `%s` was not kept: %s", call.task, type(error).__name__)
        finally:
            self._room.release()

    def _write(self, call: Call, row: dict[str, Any]) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        file, line = self._folder / f"{call.task}.jsonl", msgspec.json.encode(row) + b"\n"
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(descriptor).st_size + len(line) > self._file_bytes:
                if call.task not in self._full:
                    log.warning("%s is full: no rows are sampled until it is moved away", file)
                self._full.add(call.task)
                return
            self._full.discard(call.task)
            self._note(Entry(call.at, "sample", call.caller.name, call.endpoint.path, "kept", call.request_id, team=call.caller.team,
                             task=call.task, data_class=call.data_class))  # fmt: skip
            os.write(descriptor, line)  # one call, so that the rows of several workers don't mix
        finally:
            os.close(descriptor)


def asked_and_said(path: str, body: bytes, answer: bytes) -> tuple[list[Any], str]:
    """The messages of a plain chat and the text of its answer; empty where it is no such thing."""
    asked, told = msgspec.json.decode(body), msgspec.json.decode(answer)
    if any(asked.get(name) for name in _NOT_PLAIN):
        return [], ""
    if path == "/v1/chat/completions":
        return asked["messages"], told["choices"][0]["message"].get("content") or ""
    if path == "/v1/messages":
        system = [{"role": "system", "content": asked["system"]}] if asked.get("system") else []
        return system + asked["messages"], "".join(part.get("text", "") for part in told["content"])
    return [], ""


def _told(said: str) -> bytes:
    return msgspec.json.encode({"text": said})
