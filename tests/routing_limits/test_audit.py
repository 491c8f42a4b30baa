"""The audit log tells altered, reordered, replayed, missing, truncated and missing-against-ledger apart; kills and crowds don't break it.

OWASP AISVS C12 (logging): tamper evidence and completeness.
"""

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from sqlalchemy import insert

import inhouse
from routing.audit import Audit, AuditError, Entry, Place, note, place_of
from routing.audit_cli import audit
from routing.audit_verify import ledger_requests, missing_requests, verify
from routing.chain import Chain, read_line
from routing.store import LEDGER, open_store

FAULTS = ("altered", "reordered", "replayed", "missing", "truncated", "missing_against_ledger")


def entry(i, kind="decision"):
    """What a worker notes of a request."""
    return Entry(time.time(), kind, "ihk_x", "/v1/chat/completions", "allow", f"r{i}", task="extraction", policy_hash="p")


@pytest.fixture
def place(tmp_path):
    """A log of nine lines in three batches, with an anchor of its end."""
    place = place_of(tmp_path)
    for start in (0, 3, 6):
        Chain(place).append([entry(i) for i in range(start, start + 3)], anchor=True)
    return place


def found(place, **options):
    """The faults of a log, by name."""
    report = verify(place, **options)[0]
    return {name: getattr(report, name) for name in FAULTS if getattr(report, name)}


def rewrite(place, change):
    """Changes the list of lines of the log's only file."""
    (path,) = place.segments()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(change(lines)))


def test_an_untouched_log_is_in_order(place):
    """Nine lines, numbered from 1, no finding; the key is its owner's alone."""
    report, requests = verify(place)
    assert (report.ok, report.lines, report.first, report.last, report.torn) == (True, 9, 1, 9, 0)
    assert requests == {f"r{i}": 1 for i in range(9)}
    assert stat.S_IMODE(place.key.stat().st_mode) == 0o600


@pytest.mark.parametrize("line", range(9))
def test_a_flipped_bit_is_altered(place, line):
    """Wherever in a line a bit is flipped, the line is named as altered, and nothing else is."""
    (path,) = place.segments()
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    start = sum(map(len, lines[:line]))
    for at in (0, 5, 20, len(lines[line]) // 2, len(lines[line]) - 5):
        flipped = bytearray(whole)
        flipped[start + at] ^= 1
        path.write_bytes(flipped)
        assert found(place) == {"altered": [f"{path.name}:{line + 1}"]}, at


def test_a_forged_line_is_altered(place):
    """A line that somebody without the key wrote in between, or whose outcome was changed, is named; those around it are let be."""
    rewrite(place, lambda lines: [*lines[:4], lines[4].replace(b"allow", b"refus"), *lines[5:]])
    assert list(found(place)) == ["altered"]
    rewrite(place, lambda lines: [*lines[:4], lines[4].replace(b"refus", b"allow"), b'{"n":6,"kind":"decision","mac":"00"}\n', *lines[5:]])
    assert found(place) == {"altered": [f"{place.segments()[0].name}:6"]}


@pytest.mark.parametrize(("order", "numbers"), [((0, 1, 3, 2, 4, 5, 6, 7, 8), [3]), ((8, 0, 1, 2, 3, 4, 5, 6, 7), list(range(1, 9)))])
def test_moved_lines_are_reordered(place, order, numbers):
    """All lines are there and true, in another order."""
    rewrite(place, lambda lines: [lines[i] for i in order])
    assert found(place) == {"reordered": numbers}


def test_a_dropped_line_is_missing(place):
    """Lines taken out of the middle or the start are named by their numbers."""
    rewrite(place, lambda lines: [line for i, line in enumerate(lines) if i not in (0, 3, 4)])
    assert found(place) == {"missing": ["1", "4-5"]}


def test_a_replayed_line_is_told(place):
    """A true line that is there twice."""
    rewrite(place, lambda lines: [*lines, lines[2]])
    assert found(place) == {"replayed": [3]}


@pytest.mark.parametrize("keep", [0, 1, 8])
def test_a_cut_end_is_truncated(place, keep):
    """What is left is in order by itself; the anchor knows how far the log went."""
    rewrite(place, lambda lines: lines[:keep])
    assert found(place) == {"truncated": [f"lines {keep + 1}-9 are cut off: the newest anchor is of line 9"]}


def test_a_cut_within_a_line_is_truncated(place):
    """Half a line at the end may be a killed writer's; the anchor knows that the line was whole."""
    rewrite(place, lambda lines: [*lines[:8], lines[8][:50]])
    assert list(found(place)) == ["truncated"]


def test_a_log_that_was_cut_and_went_on_is_truncated(place):
    """Lines that took the place of anchored ones are not taken for them."""
    rewrite(place, lambda lines: lines[:4])
    Chain(place).append([entry(i) for i in range(20, 28)])
    assert list(found(place)) == ["truncated"]


def test_archived_lines_are_not_missing_where_that_is_said(place):
    """`since` says from where on the log is here."""
    rewrite(place, lambda lines: lines[4:])
    assert found(place) == {"missing": ["1-4"]}
    assert found(place, since=5) == {}


@given(st.sampled_from(["flip", "drop", "swap", "repeat", "cut"]), st.integers(0, 8))
def test_any_one_change_is_found_and_named(tmp_path_factory, change, i):
    """Each kind of change, anywhere, gives its own kind of finding."""
    place = place_of(tmp_path_factory.mktemp("log"))
    Chain(place).append([entry(i) for i in range(9)], anchor=True)

    def apply(lines):
        j = (i + 1) % 9
        if change == "flip":
            lines[i] = lines[i][:30] + bytes([lines[i][30] ^ 1]) + lines[i][31:]
        elif change == "drop":
            del lines[i]
        elif change == "swap":
            lines[i], lines[j] = lines[j], lines[i]
        elif change == "repeat":
            lines.append(lines[i])
        else:
            del lines[i:]
        return lines

    rewrite(place, apply)
    expected = {"flip": "altered", "drop": "missing", "swap": "reordered", "repeat": "replayed", "cut": "truncated"}
    if change == "drop" and i == 8:
        change = "cut"  # the last line: only the anchor knows
    assert list(found(place)) == [expected[change]]


def test_half_a_line_of_a_killed_writer_is_sealed_and_no_fault(place):
    """The next writer says how much was lost; without its word, or with other bytes, it counts as altered."""
    (path,) = place.segments()
    with path.open("ab") as file:
        file.write(b'{"n":10,"prev":"abc')
    Chain(place).append([entry(10)])
    report = verify(place)[0]
    assert (report.ok, report.torn, report.last) == (True, 1, 11)
    path.write_bytes(path.read_bytes().replace(b'"prev":"abc\n', b'"prev":"abd\n'))
    assert list(found(place)) == ["altered"]


def test_a_writer_killed_in_the_first_line_of_a_file_is_no_fault(place):
    """The chain goes on from the file before."""
    (place.folder / "audit-000000000010.jsonl").write_bytes(b'{"n":10')
    Chain(place).append([entry(10)])
    report = verify(place)[0]
    assert (report.ok, report.torn, report.last) == (True, 1, 11)


def test_a_new_key_is_never_made_for_an_old_log(place):
    """Without its key the log can't be gone on with or checked, and both say so."""
    place.key.unlink()
    with pytest.raises(AuditError, match="put the key back"):
        Chain(place)
    with pytest.raises(AuditError, match="no key"):
        verify(place)


def test_an_end_that_is_not_ours_is_not_gone_on_with(place):
    """Rather keep the entries than seal them onto somebody else's lines."""
    rewrite(place, lambda lines: [b"{}\n"])
    with pytest.raises(AuditError, match="no seal"):
        Chain(place).append([entry(1)])


WRITER = """
import sys, time
from pathlib import Path
from routing.audit import Audit, Entry, place_of
audit = Audit(place_of(Path(sys.argv[1])))
print("ready", flush=True)
for i in range(int(sys.argv[3])):
    audit.append(Entry(time.time(), "decision", "k", "/v1", "allow", f"{sys.argv[2]}-{i}", why="x" * 200))
    if i % 50 == 0:
        audit.flush()
audit.close()
"""


def test_many_writers_and_kills_leave_one_chain(tmp_path):
    """Processes that write at once, two of them killed with -9 on the way: one chain in order, all lines of the survivors in it."""
    writers = [subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path), str(w), n], stdout=subprocess.PIPE)
               for w, n in enumerate(["1000000000", "1000000000", "4000", "4000"])]  # fmt: skip
    for writer in writers:
        assert writer.stdout.readline() == b"ready\n"
    for i in range(20):
        note(tmp_path, f"keys create c{i}", who="tester")
    log, deadline = place_of(tmp_path).segments()[0], time.monotonic() + 60
    while not all(b'"request_id":"%d-0"' % w in log.read_bytes() for w in (0, 1)):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    for writer in writers[:2]:
        os.kill(writer.pid, signal.SIGKILL)
    assert [writer.wait(60) for writer in writers] == [-9, -9, 0, 0]
    for writer in writers:
        writer.stdout.close()
    report, requests = verify(place_of(tmp_path))
    assert report.ok, report
    assert all(requests[f"{w}-{i}"] == 1 for w in (2, 3) for i in range(4000))
    assert report.last >= 8020


def test_a_stopped_writer_does_not_hold_up_the_others_for_ever(place):
    """While somebody has the lock and does nothing, appending gives up after seconds; when it is free, it goes on."""
    with (place.folder / "lock").open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(AuditError, match="lock"):
            Chain(place, lock_s=0.2)
    Chain(place).append([entry(9)])
    assert verify(place)[0].ok


BOTH = """
import sys, time
from pathlib import Path
from routing.audit import Audit, Entry, place_of
from routing.ledger import Ledger, Row
from routing.store import open_store
home = Path(sys.argv[1])
audit = Audit(place_of(home))
ledger = Ledger(open_store(home), first=audit.flush)
print("ready", flush=True)
i = 0
while True:
    i += 1
    request = f"{sys.argv[2]}-{i}"
    audit.append(Entry(time.time(), "decision", "k", "/v1", "allow", request))
    ledger.append(Row(time.time(), request, 1, "k", "c", "/v1", "t", "m", "w", 200, "", 1, 1, True, 1.0, 1.0))
    if i % 20 == 0:
        time.sleep(0.001)
"""


def test_a_killed_worker_leaves_no_ledger_row_without_its_line(tmp_path):
    """Whenever it is killed: what the ledger knows is in the log, as the log is written first."""
    store = open_store(tmp_path)
    for round_, delay_s in enumerate((0.06, 0.11, 0.17, 0.23)):
        worker = subprocess.Popen([sys.executable, "-c", BOTH, str(tmp_path), str(round_)], stdout=subprocess.PIPE)
        assert worker.stdout.readline() == b"ready\n"
        deadline = time.monotonic() + 60
        while not any(name.startswith(f"{round_}-") for name in ledger_requests(store, 0, 1e12)):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(delay_s)  # into the middle of whatever it does then
        worker.kill()
        worker.wait(20)
        worker.stdout.close()
    known = ledger_requests(store, 0, 1e12)
    store.dispose()
    report, requests = verify(place_of(tmp_path))
    assert report.ok and len(known) > 20 and missing_requests(known, requests) == []


def test_a_full_disk_keeps_entries_and_writes_none_in_half(tmp_path):
    """While nothing can be written the audit says that it fails; what was noted meanwhile comes after it."""
    place = place_of(tmp_path)
    log = Audit(place)
    place.folder.rename(tmp_path / "away")
    log.append(entry(1))
    log.flush()
    assert log.failing
    (tmp_path / "away").rename(place.folder)
    log.close()
    assert not log.failing and verify(place)[1] == {"r1": 1}


@pytest.mark.parametrize("text", ["\ud800", "a\nb\u2028c", '","mac":"' + "0" * 32 + '"}', "\x00\x7f", "\U0001f600"])
def test_no_text_can_break_the_log(place, text):
    """Whatever stands in a field, it makes one line with a true seal, and those after it too."""
    Chain(place).append([replace(entry(9), why=text), entry(10)])
    report, requests = verify(place)
    assert (report.ok, report.last, requests["r10"]) == (True, 11, 1)


def test_the_log_goes_on_in_new_files(place):
    """A file that is full is let be, and the chain goes on in the next, in many threads too."""
    chain = Chain(place, segment_bytes=2000)
    threads = [threading.Thread(target=lambda n=n: [chain.append([entry(n)]) for _ in range(10)]) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(place.segments()) > 3 and verify(place)[0].ok
    place.segments()[1].unlink()
    assert list(found(place)) == ["missing"]


def test_the_command_finds_what_the_ledger_alone_knows(tmp_path):
    """A log that was cut together with its anchors is caught by the ledger; the exit status says so, JSON and text name it."""
    store = open_store(tmp_path)
    place = place_of(tmp_path)
    Chain(place).append([replace(entry(i), at=time.time() - 100) for i in range(4)], anchor=True)
    row = {"key_id": "k", "caller": "c", "endpoint": "/v1", "task": "", "model": "m", "why": "", "status": 200, "error": "", "exact": 1,
           "total_ms": 1.0, "at": time.time() - 50}  # fmt: skip
    with store.begin() as connection:
        connection.execute(insert(LEDGER), [{**row, "request_id": f"r{i}", "attempt": n} for i in range(4) for n in (1, 2)])
    store.dispose()
    run = CliRunner().invoke
    arguments = ["verify", "--home", str(tmp_path)]
    assert run(audit, arguments).exit_code == 0
    rewrite(place, lambda lines: lines[:3])
    place.anchors.unlink()
    done = run(audit, [*arguments, "--json"])
    told = json.loads(done.output)
    assert done.exit_code == 1 and told["missing_against_ledger"] == ["r3"] and not told["truncated"]
    assert "MISSING AGAINST LEDGER: 1: r3" in run(audit, arguments).output


def test_admin_acts_are_noted_before_and_after(tmp_path):
    """Who asked for what is in the log before it is done, and how it ended after; where the log can't be written nothing is done."""
    def run(*words):
        return CliRunner().invoke(inhouse.main, [*words, "--home", str(tmp_path)])

    assert run("keys", "create", "invoices", "--task", "extraction").exit_code == 0
    assert run("keys", "revoke", "ihk_nothere").exit_code == 1
    assert run("keys", "list").exit_code == 0
    place = place_of(tmp_path)
    key = bytes.fromhex(place.key.read_text())
    told = [read_line(key, line).entry for line in place.segments()[0].read_bytes().splitlines()]
    assert [(one["what"], one["outcome"]) for one in told] == [
        ("keys create name=invoices tasks=extraction", "asked"), ("keys create name=invoices tasks=extraction", "done"),
        ("keys revoke key_id=ihk_nothere", "asked"), ("keys revoke key_id=ihk_nothere", "failed")]  # fmt: skip
    assert all(one["kind"] == "admin" and str(os.getuid()) in one["who"] for one in told)
    place.key.unlink()
    refused = run("keys", "create", "other")
    assert refused.exit_code == 1 and "nothing was done" in refused.output
    assert "other" not in run("keys", "list").output


def test_anchors_go_where_they_are_sent(tmp_path):
    """The second place may be anywhere; each anchor is a line's number and seal."""
    place = Place(tmp_path / "log", tmp_path / "key", tmp_path / "elsewhere" / "anchors")
    head = Chain(place).append([entry(1)], anchor=True)
    anchor = json.loads(place.anchors.read_text())
    assert (anchor["n"], anchor["mac"]) == (head.n, head.mac)
