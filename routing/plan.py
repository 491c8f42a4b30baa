"""Opens the parts of a worker, reads the configuration in force, all of it together, and sees when the files change.

A change is read and checked whole before it counts; what can't be used is told, and the last good one stays.
"""

import contextlib
import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

from sqlalchemy import Engine

from routing.accounts import BY_MODEL, change, declare
from routing.audit import Audit, place_of
from routing.budgets import Budget, budgets_of
from routing.choose import Fleet
from routing.config import Routes
from routing.forward import Door
from routing.holds import Account
from routing.house import House, Plan
from routing.keys import KeyRing
from routing.ledger import Ledger, Row
from routing.metrics import Metrics
from routing.oidc import Tokens, fetch_through
from routing.policy import folder_of, load
from routing.presidio import load_presidio
from routing.purse import Purse
from routing.runbook import RunBook
from routing.samples import Samples
from routing.settings import Settings
from routing.standing import Known, known
from routing.store import open_store
from routing.tracing import Tracing
from routing.upstream import Pool


class Planner:
    """Makes plans for one worker from its files and its parts."""

    def __init__(
        self, settings: Settings, engine: Engine, keys: KeyRing, *, pool: Pool, ledger: Ledger, purse: Purse, metrics: Metrics
    ) -> None:
        self._settings = settings
        self._engine = engine
        self._keys = keys
        self._pool = pool
        self._ledger = ledger
        self._purse = purse
        self._metrics = metrics
        self._watched: tuple[Path, ...] = ()
        self._seen = self._look()

    def has_news(self) -> bool:
        """Whether a file has changed since the last look, or since the first plan was read. Costs a few system calls."""
        seen = self._look()
        has_changed, self._seen = seen != self._seen, seen
        return has_changed

    def read(self, before: Plan | None = None) -> Plan:
        """The plan of the files as they are now. What is known of a target's health carries over from `before`. Raises `ConfigError`.

        What tasks and models may use is in the database when it returns. Training the classifier may take seconds: call it in a thread.
        """
        settings = self._settings
        site = settings.site()
        routes = site.routes
        folder = folder_of(routes.policies, settings.routes)
        policy = load(folder, routes, risky_tools=routes.risky_tools)
        fleet = Fleet(site)
        tokens = self._tokens(routes, before)
        if before is not None:
            fleet.take_over(before.fleet)
        self._declare(routes, fleet)
        door = Door(self._pool, self._ledger, self._purse, policy, limits=routes.limits, metrics=self._metrics)
        version = hashlib.sha256(f"{site.version}{policy.hash}".encode()).hexdigest()[:12]
        plan = Plan(site, settings.classifier(routes), fleet, policy, (load_presidio(routes.presidio),) if routes.presidio else (), tokens,
                    door, version)  # fmt: skip
        watched = (folder, *(Path(provider.key_file) for provider in routes.providers if provider.key_file))
        if watched != self._watched:
            self._watched = watched
            self._seen = self._look()
        return plan

    def known(self, plan: Plan) -> Known:
        """What the routes' evidence is held against, as it is now. Reads model folders: call it in a thread."""
        return known(plan.site, self._settings.home, self._settings.models)

    def _declare(self, routes: Routes, fleet: Fleet) -> None:
        """Makes the limits that the file gives to tasks and models those of the database."""
        declare(self._engine, "task", {task.name: task.limits() for task in routes.tasks if task.budgets})
        models = {limited.model: budgets_of(limited.budgets) for limited in routes.model_limits}
        declare(self._engine, "model", models)
        each_caller = {limited.model: budgets_of(limited.each_caller) for limited in routes.model_limits if limited.each_caller}
        change(self._engine, BY_MODEL, each_caller)
        for target in fleet.all():
            target.accounts = self._purse.accounts("model", target.model, models.get(target.model, ()))
            if budgets := each_caller.get(target.model):
                target.each_caller = self._each_caller(target.model, budgets)

    def _each_caller(self, model: str, budgets: tuple[Budget, ...]) -> Callable[[str], tuple[Account, ...]]:
        """What finds a caller's accounts with a model; those of callers that ask are kept."""

        @lru_cache(10_000)
        def _accounts(caller: str) -> tuple[Account, ...]:
            return self._purse.accounts(BY_MODEL, f"{model}/{caller}", budgets)

        return _accounts

    def _tokens(self, routes: Routes, before: Plan | None) -> Tokens | None:
        if before is not None and before.site.routes.oidc == routes.oidc:
            return before.tokens  # with the keys that it has fetched
        if routes.oidc is None:
            return None
        return Tokens(routes.oidc, fetch_through(self._pool, routes.oidc.jwks), team_limits=self._keys.team_limits)

    def _look(self) -> list[tuple[str, int, int, int]]:
        found = []
        for path in (self._settings.routes, self._settings.models, *self._watched):
            with contextlib.suppress(OSError):  # gone: that is news, too
                for file in sorted(path.iterdir()) if path.is_dir() else (path,):
                    stat = file.stat()
                    found.append((str(file), stat.st_ino, stat.st_mtime_ns, stat.st_size))
        return found


def open_house(settings: Settings, pool: Pool, tracing: Tracing | None = None) -> tuple[House, Planner]:
    """One worker's parts, opened under its home, and what reads their files anew. Raises `ConfigError`."""
    engine = open_store(settings.home)
    metrics = Metrics()

    def observe(rows: Sequence[Row]) -> None:
        metrics.observe(rows)
        if tracing is not None:
            tracing.observe(rows)

    audit = Audit(place_of(settings.home))
    ledger = Ledger(engine, observe, audit.flush)
    purse = Purse(engine)
    keys = KeyRing(engine)
    planner = Planner(settings, engine, keys, pool=pool, ledger=ledger, purse=purse, metrics=metrics)
    plan = planner.read()
    runs = RunBook(engine, purse)
    samples = Samples(settings.home, audit.append)
    return House(engine, plan, keys, purse, runs, ledger, audit, metrics, tracing, planner.known(plan), samples), planner
