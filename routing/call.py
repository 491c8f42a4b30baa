"""A request on its way, and the row that the ledger gets for each attempt to answer it."""

import time

import msgspec

from routing.keys import Caller
from routing.ledger import Row
from routing.policy import About
from routing.request import Asked, Endpoint
from routing.runbook import Run
from routing.stream import Tokens

_NO_TOKENS = Tokens()
_NOTHING = (0, 0)


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

    def row(self, attempt: int, model: str, status: int, *, error: str = "", tokens: Tokens = _NO_TOKENS, exact: bool = True,
            first_byte: float | None = None, zone: str = "", cost: tuple[int, int] = _NOTHING) -> Row:  # fmt: skip
        """The ledger's row for one attempt that ends now; attempt 0 asked no model. `cost` is nano-USD and GPU milliseconds."""
        started, caller, run = self.started, self.caller, self.run
        return Row(self.at, self.request_id, attempt, caller.key_id, caller.name, self.endpoint.path, self.task, model, self.why, status, error,
                   tokens.prompt, tokens.completion, exact, None if first_byte is None else (first_byte - started) * 1e3,
                   (time.monotonic() - started) * 1e3, caller.team, "" if run is None else run.id, self.data_class, zone, cost[0], cost[1],
                   self.policy_hash, self.config_version)  # fmt: skip
