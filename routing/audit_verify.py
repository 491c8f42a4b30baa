"""Checks an audit log and tells apart what is wrong with it: altered, reordered, replayed, missing, cut off, or short of the ledger.

Reads only. What it can't know: whether a log was cut off behind its newest anchor, where the ledger was cut with it.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Engine, func, select

from routing.chain import AuditError, Line, Place, read_line
from routing.store import LEDGER

_WIDEST_GAP = 100_000  # numbers of a gap that are remembered
_SHOWN = 1000  # findings of a kind that are kept: a log in ruins must not fill the memory


@dataclass
class Report:
    """What a check found. Places are `file:line`, numbers are those of lines in the chain, from 1."""

    lines: int = 0
    first: int = 0
    last: int = 0
    torn: int = 0  # half lines of killed writers, sealed by the next one: no fault
    altered: list[str] = field(default_factory=list)
    reordered: list[int] = field(default_factory=list)
    replayed: list[int] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # ranges of numbers, as in 7-9
    truncated: list[str] = field(default_factory=list)
    missing_against_ledger: list[str] = field(default_factory=list)  # request ids

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not any(value for value in vars(self).values() if isinstance(value, list))


def verify(place: Place, *, since: int = 1) -> tuple[Report, Counter[str]]:
    """Checks one home's log, without the lines before number `since`, which may be archived; and how often each request id was decided
    or refused, for `missing_requests`. Raises `AuditError` where there is no key."""
    walk = _Walk(since, _anchors(place))
    key = _key(place)
    for path in place.segments():
        for number, line, is_whole in _lines(path):
            walk.take(f"{path.name}:{number}", line, read_line(key, line), is_whole=is_whole)
    walk.end()
    return walk.report, walk.requests


class _Walk:
    """One pass over the lines, in the order of the files."""

    def __init__(self, since: int, anchors: Mapping[int, str]) -> None:
        self.report = Report()
        self.requests: Counter[str] = Counter()
        self._since = self._expected = since
        self._anchors = anchors
        self._gaps: set[int] = set()
        self._untrue: list[tuple[str, bytes]] = []  # lines without a true seal since the last one with
        self._mac = ""

    def take(self, where: str, raw: bytes, line: Line | None, *, is_whole: bool) -> None:
        """The next line."""
        report = self.report
        report.lines += 1
        if line is None and is_whole:
            self._untrue.append((where, raw))
        elif line is None:
            report.torn += 1  # a writer was killed, or is writing, or the log was cut here, which anchors and ledger tell
        elif line.n >= self._since:
            self._count(line)
            self._take_true(where, line)

    def _take_true(self, where: str, line: Line) -> None:
        report = self.report
        if line.entry["kind"] == "torn" and self._untrue and hashlib.sha256(self._untrue[-1][1]).hexdigest() == line.entry["outcome"]:
            self._untrue.pop()
            report.torn += 1
        start = self._expected + len(self._untrue)  # a line without a true seal stands for the number that should be there
        if line.n >= self._expected:
            self._gaps.update(range(start, min(line.n, start + _WIDEST_GAP)))
            if line.n == self._expected and not self._untrue and self._mac not in ("", line.previous):
                _add(report.altered, f"{where} (its seal is true, but the line before it is another than it was sealed with)")
            self._expected, self._mac = line.n + 1, line.mac
        elif line.n in self._gaps:
            self._gaps.remove(line.n)
            _add(report.reordered, line.n)
        else:
            _add(report.replayed, line.n)
        self._report_untrue()
        if self._anchors.get(line.n, line.mac) != line.mac:
            _add(report.truncated, f"line {line.n} is not the one that was anchored: the log was cut before it and went on anew")

    def _count(self, line: Line) -> None:
        report = self.report
        report.first = min(report.first or line.n, line.n)
        report.last = max(report.last, line.n)
        if line.entry["kind"] in ("decision", "refusal") and (request := line.entry.get("request_id")):
            self.requests[request] += 1

    def _report_untrue(self) -> None:
        for where, _ in self._untrue:
            _add(self.report.altered, where)
        self._untrue.clear()

    def end(self) -> None:
        """After the last line."""
        start = self._expected + len(self._untrue)
        self._report_untrue()
        self.report.missing.extend(_ranges(self._gaps))
        if (newest := max(self._anchors, default=0)) >= start:
            _add(self.report.truncated, f"lines {start}-{newest} are cut off: the newest anchor is of line {newest}")


def log_began(place: Place) -> float:
    """When the first line with a true seal was written (Unix seconds); when the key was made, where there is no such line."""
    key = _key(place)
    for path in place.segments():
        for _, line, _ in _lines(path):
            if found := read_line(key, line):
                return float(found.entry["at"])
    return place.key.stat().st_mtime


def ledger_requests(engine: Engine, began: float, before: float) -> Counter[str]:
    """How many requests of each id, that arrived in that span (Unix seconds), the ledger knows. Ask before `verify`, never after:
    a request is decided before it is in the ledger."""
    arrived = LEDGER.c.at.between(began, before)
    query = select(LEDGER.c.request_id, func.count()).where(LEDGER.c.attempt <= 1, arrived).group_by(LEDGER.c.request_id)
    with engine.connect() as connection:
        return Counter({str(request): int(n) for request, n in connection.execute(query)})


def missing_requests(ledger: Counter[str], audited: Counter[str]) -> list[str]:
    """The ids of requests that the ledger knows and no audit log does."""
    return [request for request, n in ledger.items() if n > audited[request]][:_SHOWN]


def _add(found: list[Any], what: Any) -> None:
    if len(found) < _SHOWN:
        found.append(what)


def _ranges(numbers: Iterable[int]) -> Iterator[str]:
    """Numbers as ranges: 7-9, 12."""
    for _, run in groupby(enumerate(sorted(numbers)), lambda pair: pair[1] - pair[0]):
        those = [number for _, number in run]
        yield str(those[0]) if len(those) == 1 else f"{those[0]}-{those[-1]}"


def _lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """The number of each line in the file, the line, and whether it was ended."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            yield number, line.rstrip(b"\n"), line.endswith(b"\n")


def _key(place: Place) -> bytes:
    try:
        return bytes.fromhex(place.key.read_text().strip())
    except (OSError, ValueError) as error:
        raise AuditError(f"no key at {place.key} to check the log with; put it back from the backup ({type(error).__name__})") from error


def _anchors(place: Place) -> dict[int, str]:
    """Line numbers and their seals as they were noted in the second place."""
    found = {}
    try:
        lines = place.anchors.read_bytes().splitlines()
    except FileNotFoundError:
        return {}
    for line in lines:
        try:
            anchor = msgspec.json.decode(line)
            found[int(anchor["n"])] = str(anchor["mac"])
        except (msgspec.DecodeError, KeyError, TypeError, ValueError):
            continue  # half a line of a killed writer
    return found
