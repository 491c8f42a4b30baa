"""Everything that a worker knows while it answers. What routes.yaml and the policies decide is in `Plan`, which is replaced as a whole."""

from dataclasses import dataclass, field
from typing import NamedTuple

from sqlalchemy import Engine

from routing.audit import Audit
from routing.choose import Fleet
from routing.config import Site
from routing.detect import Detector
from routing.forward import Door
from routing.holds import Account
from routing.keys import Caller, KeyRing
from routing.ledger import Ledger
from routing.loops import Answers, Finding
from routing.metrics import Metrics
from routing.oidc import Tokens
from routing.policy import Policy
from routing.purse import Purse
from routing.runbook import Run, RunBook
from routing.samples import Samples
from routing.standing import Known
from routing.tasks import Classifier
from routing.tracing import Tracing
from routing.underway import UnderWay


@dataclass(frozen=True)
class Plan:
    """The configuration in force: read and checked together, so that a request sees all of one version."""

    site: Site
    classifier: Classifier
    fleet: Fleet
    policy: Policy
    detectors: tuple[Detector, ...]
    tokens: Tokens | None
    door: Door
    version: str


class _Kept(NamedTuple):
    caller: Caller
    accounts: tuple[Account, ...]


@dataclass
class House:
    """The parts of one worker. Only `plan`, `known`, `hasty` and `stale` are ever replaced."""

    engine: Engine
    plan: Plan
    keys: KeyRing
    purse: Purse
    runs: RunBook
    ledger: Ledger
    audit: Audit
    metrics: Metrics
    tracing: Tracing | None
    known: Known
    samples: Samples
    answers: Answers = field(default_factory=Answers)
    underway: UnderWay = field(default_factory=UnderWay)
    hasty: dict[str, Finding] = field(default_factory=dict)  # runs that spend much faster than others of their task
    stale: str = ""  # why the files on disk are not the ones in force
    _accounts: dict[tuple[str, str], _Kept] = field(default_factory=dict)

    def accounts_of(self, caller: Caller, task: str, run: Run | None) -> tuple[Account, ...]:
        """All budgets that a call of this caller counts against: its own, its team's, the task's, and those of its run and above."""
        kept = self._accounts.get((caller.key_id, task))
        if kept is None or kept.caller is not caller:  # its limits were changed, or it is new
            kept = _Kept(caller, self._opened(caller, task))
            if len(self._accounts) > 10_000:
                self._accounts.clear()
            self._accounts[caller.key_id, task] = kept
        return kept.accounts if run is None else kept.accounts + run.accounts

    def forget_accounts(self) -> None:
        """Tasks may have other budgets now."""
        self._accounts.clear()

    def _opened(self, caller: Caller, task: str) -> tuple[Account, ...]:
        budgets = self.plan.site.tasks[task].limits() if task in self.plan.site.tasks else ()
        return (*self.purse.accounts("caller", caller.name, caller.limits),
                *(self.purse.accounts("team", caller.team, caller.team_limits) if caller.team else ()),
                *self.purse.accounts("task", task, budgets))  # fmt: skip
