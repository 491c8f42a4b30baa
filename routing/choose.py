"""Which model gets a request: the healthy before the sick, candidates by weight before fallbacks in order, cells in turn."""

import random
import time
from collections.abc import Iterable, Sequence
from itertools import count

from routing.config import Site, Task
from routing.upstream import Origin

_REST_S = 5.0  # a target that refused to answer is asked last for this long, or until its health check says otherwise


class Target:
    """A model in a cell, and how it has been lately. Shared by all requests of a worker."""

    __slots__ = ("cell", "model", "origin", "ready", "resting_until")

    def __init__(self, model: str, cell: str, origin: Origin) -> None:
        self.model = model
        self.cell = cell
        self.origin = origin
        self.ready = False
        self.resting_until = 0.0

    def is_healthy(self) -> bool:
        """Ready at its last health check and not resting after a failure."""
        return self.ready and time.monotonic() >= self.resting_until

    def rest(self) -> None:
        """It failed before answering: others first, for a while."""
        self.resting_until = time.monotonic() + _REST_S

    def recovered(self) -> None:
        """It answered."""
        self.resting_until = 0.0


class Fleet:
    """All targets, by the name that a route or a caller uses. An adapter is answered by its model's engine."""

    def __init__(self, site: Site) -> None:
        self._turn = count()
        self.targets: dict[str, list[Target]] = {}
        for name, model in site.models.items():
            self.targets[name] = [
                Target(name, cell.name, Origin.of(f"{cell.url.rstrip('/')}/models/{model.name}")) for cell in site.cells
            ]

    def all(self) -> Iterable[Target]:
        """Every target once."""
        return (target for targets in self.targets.values() for target in targets)

    def is_ready(self, model: str) -> bool:
        """Whether the model answers in at least one cell."""
        return any(target.ready for target in self.targets[model])

    def for_model(self, model: str) -> list[Target]:
        """The targets of one model, healthy ones first, cells in turn."""
        targets = self.targets[model]
        if len(targets) == 1:
            return targets
        turn = next(self._turn) % len(targets)
        return sorted(targets[turn:] + targets[:turn], key=lambda target: not target.is_healthy())

    def for_task(self, task: Task) -> list[Target]:
        """The targets in the order to try: a draw among healthy candidates, the other candidates, then the fallbacks."""
        names = [candidate.model for candidate in task.candidates]
        if len(names) > 1:
            names = self._drawn(names, [candidate.weight for candidate in task.candidates])
        names = [*names, *(name for name in task.fallbacks if name not in names)]
        targets = [target for name in names for target in self.for_model(name)]
        return targets if len(targets) == 1 else sorted(targets, key=lambda target: not target.is_healthy())

    def _drawn(self, names: Sequence[str], weights: Sequence[float]) -> list[str]:
        healthy = [weight if any(t.is_healthy() for t in self.targets[name]) else 0.0 for name, weight in zip(names, weights, strict=True)]
        first = random.choices(names, healthy if any(healthy) else weights)[0]  # noqa: S311 (sharing load, not guarding a secret)
        rest = [name for name, weight in zip(names, weights, strict=True) if name != first and weight > 0]
        return [first, *rest]
