"""A request on its way, and the row that the ledger gets for each attempt to answer it."""

import time

import msgspec

from routing.choose import Target
from routing.holds import NOTHING, Hold
from routing.keys import Caller
from routing.ledger import Row
from routing.policy import About
from routing.prices import Charge
from routing.request import Asked, Endpoint
from routing.runbook import Run
from routing.stream import Tokens

_NO_TOKENS = Tokens()


class Call(msgspec.Struct, kw_only=True):
    """What is known of a request: each step of its life adds what it found. Times are Unix seconds (`at`) and monotonic (`started`)."""

    endpoint: Endpoint
    request_id: str
    caller: Caller
    headers: dict[bytes, bytes]
    at: float
    started: float
    asked: Asked | None = None
    task: str = ""
    model: str = ""  # the one asked for by its own name
    why: str = ""
    run: Run | None = None
    data_class: str = ""
    policy_hash: str = ""
    config_version: str = ""
    about: About | None = None
    warning: str = ""  # a circle that its agent is told of
    is_stopped: bool = False  # by its run, under way
    was_recorded: bool = False  # an attempt of it is in the ledger

    def refused(self, status: int, error: str) -> Row:
        """The ledger's row for a request that asked no model: attempt 0."""
        return self._row(0, self.model, "", _End(status=status, error=error))

    def _row(self, attempt: int, model: str, zone: str, end: "_End") -> Row:
        started, caller, first = self.started, self.caller, end.first_byte
        return Row(self.at, self.request_id, attempt, caller.key_id, caller.name, self.endpoint.path, self.task, model, self.why,
                   end.status, end.error, end.tokens.prompt, end.tokens.completion, end.exact,
                   None if first is None else (first - started) * 1e3, (time.monotonic() - started) * 1e3, caller.team,
                   "" if self.run is None else self.run.id, self.data_class, zone, end.charge.nanousd, end.charge.gpu_ms,
                   self.policy_hash, self.config_version)  # fmt: skip


class _End(msgspec.Struct, frozen=True, gc=False, kw_only=True):
    status: int
    error: str = ""
    tokens: Tokens = Tokens()
    exact: bool = True
    first_byte: float | None = None
    charge: Charge = NOTHING


class Attempt(msgspec.Struct, frozen=True):
    """One try to have a call answered: the `number`th, by this target, with this hold."""

    call: Call
    target: Target
    number: int
    hold: Hold

    def ended(self, status: int, charge: Charge = NOTHING, *, error: str = "", tokens: Tokens = _NO_TOKENS, exact: bool = True,
              first_byte: float | None = None) -> Row:  # fmt: skip
        """The ledger's row for it, as it ends now. `exact` says that the tokens are the model's own count."""
        self.call.was_recorded = True
        end = _End(status=status, error=error, tokens=tokens, exact=exact, first_byte=first_byte, charge=charge)
        return self.call._row(self.number, self.target.model, self.target.zone, end)
