"""The audit log as workers and commands use it: decisions, refusals and admin acts, written off the request path. Prompts are never in it.

What a line is and how it is sealed is `chain`'s.
"""

import logging
import os
import time
from pathlib import Path

from routing.chain import AuditError, Chain, Entry, Place, place_of

log = logging.getLogger("inhouse.audit")
_HELD = 100_000  # entries kept while the disk refuses, before the oldest are given up


class Audit:
    """Takes entries from the request path; `flush` appends them to the chain. It is the ledger's `first`, so every 50 ms, in its thread.

    With each request's entry appended before its ledger row, no row is ever there without its entry, also after `kill -9`, as long as the
    log can be written.
    """

    def __init__(self, place: Place) -> None:
        self._chain = Chain(place)
        self._entries: list[Entry] = []
        self.append = self._entries.append
        self.failing = False

    def close(self) -> None:
        """Writes and anchors what is left; to be called after the ledger's. Raises nothing; what could not be written is named in the log
        by its count."""
        self.flush(anchor=True)
        if self._entries:
            log.error("audit: %d entries could not be written", len(self._entries))

    def flush(self, *, anchor: bool = False) -> None:
        """Appends what is there now. Raises nothing: where it can't, `failing` says so and the entries wait."""
        n = len(self._entries)
        if not n:
            return
        try:
            self._chain.append(self._entries[:n], anchor=anchor)
        except (OSError, AuditError, ValueError) as error:
            if not self.failing:
                log.error("audit: cannot write (%s); entries are kept and tried again", error)
            self.failing = True
            if n > _HELD:
                del self._entries[: n - _HELD]
            return
        del self._entries[:n]  # in place: `append` is bound to this list
        self.failing = False


def note(home: Path, act: str, outcome: str = "", *, who: str = "") -> None:
    """Writes an admin act into the log of a home, at once, and anchors it. `who` is the operating system's user where none is given."""
    entry = Entry(time.time(), "admin", who or _user(), act, outcome)
    Chain(place_of(home)).append([entry], anchor=True)


def _user() -> str:
    import getpass

    try:
        return f"{getpass.getuser()} (uid {os.getuid()})"
    except (KeyError, OSError):
        return f"uid {os.getuid()}"


__all__ = ["Audit", "AuditError", "Entry", "Place", "note", "place_of"]
