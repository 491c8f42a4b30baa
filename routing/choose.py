"""Which model gets a request: the healthy before the sick, candidates by weight before fallbacks in order, cells in turn."""

import random
import time
from collections.abc import Callable, Iterable, Sequence
from itertools import count

from routing.config import Site, Task
from routing.holds import Account
from routing.prices import Price, price_of, priced
from routing.providers import Hosted
from routing.upstream import Origin, UpstreamError
from serving.catalog import Model

_REST_S = 5.0  # a target that refused to answer is asked last for this long, or until its health check says otherwise
_LONGEST_REST_S = 60.0  # each failure after a rest doubles the next one, up to this
LONGEST_WISH_S = 600.0  # a Retry-After above this is not believed
_CONTEXT = 131_072  # tokens, where a catalog's model names no `max_model_len`
_OURS = frozenset(("openai", "responses", "anthropic"))  # vLLM speaks them all
_HOSTED = {"openai": frozenset(("openai", "responses")), "anthropic": frozenset(("anthropic",))}


class Target:
    """A model in a cell or at a provider, and how it has been lately: a circuit breaker. Shared by all requests of a worker.

    After a failure it rests, and others are asked first; then one request tries it, and the others go elsewhere until it is known what
    became of that. Where it said itself how long to leave it alone, nothing is sent to it until then.
    """

    __slots__ = ("accounts", "cell", "closed_until", "context", "dialects", "each_caller", "failures", "head", "id", "is_ours", "is_tried",
                 "model", "origin", "price", "ready", "resting_until", "wish", "zone")  # fmt: skip

    def __init__(self, model: str, cell: str, origin: Origin) -> None:
        self.model = model
        self.cell = cell
        self.origin = origin
        self.id = model  # what its own server calls it
        self.zone = ""
        self.head = b""  # header lines that go to it alone: a provider's key
        self.is_ours = True
        self.dialects = _OURS
        self.price = Price(0, 0, 0)
        self.context = _CONTEXT
        self.accounts: tuple[Account, ...] = ()  # of its model, whoever asks
        self.each_caller: Callable[[str], tuple[Account, ...]] | None = None  # of its model and a caller
        self.ready = False
        self.failures = 0
        self.is_tried = False
        self.resting_until = 0.0
        self.closed_until = 0.0  # by its own wish
        self.wish = ""

    def is_healthy(self) -> bool:
        """Ready at its last health check, not resting after a failure, and not being tried after its rest."""
        return self.ready and (not self.failures or (time.monotonic() >= self.resting_until and not self.is_tried))

    def tried(self) -> None:
        """A request goes to it now."""
        self.is_tried = self.failures > 0

    def let_be(self) -> None:
        """The request that went to it ended without saying anything of its health."""
        self.is_tried = False

    def rest(self, wish_s: float | None = None, *, kind: str = "") -> None:
        """It failed before answering: others first, for a while, or for as long as it said itself, with a failure of this `kind`."""
        now = time.monotonic()
        self.is_tried = False
        if wish_s is not None:
            self.closed_until, self.wish = now + wish_s, kind
        elif now < self.resting_until:
            return  # what fails together is one failure
        rest_s = min(_LONGEST_REST_S, _REST_S * 2**self.failures) if wish_s is None else wish_s
        self.failures = min(self.failures + 1, 8)
        self.resting_until = now + rest_s

    def closed(self) -> UpstreamError | None:
        """What a request would get that went to it now, where it asked to be left alone and the time is not over."""
        left_s = self.closed_until - time.monotonic()
        return UpstreamError(self.wish, sent=False, retry_after_s=left_s) if left_s > 0 else None

    def recovered(self) -> None:
        """It answered."""
        self.failures = 0
        self.is_tried = False
        self.resting_until = self.closed_until = 0.0


class Fleet:
    """All targets, by the name that a route or a caller uses. An adapter is answered by its model's engine.

    Raises `ConfigError` where a provider's key can't be had.
    """

    def __init__(self, site: Site) -> None:
        self._turn = count()
        self.targets: dict[str, list[Target]] = {}
        for name, model in site.models.items():
            self.targets[name] = [_ours(name, model, cell.name, cell.url, cell.zone) for cell in site.cells]
        for name, hosted in site.hosted.items():
            self.targets[name] = [_hosted(hosted)]

    def all(self) -> Iterable[Target]:
        """Every target once."""
        return (target for targets in self.targets.values() for target in targets)

    def take_over(self, before: "Fleet") -> None:
        """Targets that were there before are as healthy as they were; one that has another key now may be well."""
        known = {(target.model, target.cell, target.origin, target.head): target for target in before.all()}
        for target in self.all():
            if old := known.get((target.model, target.cell, target.origin, target.head)):
                target.ready, target.failures, target.resting_until = old.ready, old.failures, old.resting_until
                target.closed_until, target.wish = old.closed_until, old.wish

    def is_ready(self, model: str) -> bool:
        """Whether the model answers in at least one place."""
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
        if len(task.candidates) == 1 and not task.fallbacks:
            return self.for_model(task.candidates[0].model)
        names = [candidate.model for candidate in task.candidates]
        if len(names) > 1:
            names = self._drawn(names, [candidate.weight for candidate in task.candidates])
        names = [*names, *(name for name in task.fallbacks if name not in names)]
        targets = [target for name in names for target in self.for_model(name)]
        return sorted(targets, key=lambda target: not target.is_healthy())

    def _drawn(self, names: Sequence[str], weights: Sequence[float]) -> list[str]:
        healthy = [weight if any(t.is_healthy() for t in self.targets[name]) else 0.0 for name, weight in zip(names, weights, strict=True)]
        first = random.choices(names, healthy if any(healthy) else weights)[0]  # noqa: S311 (sharing load, not guarding a secret)
        rest = [name for name, weight in zip(names, weights, strict=True) if name != first and weight > 0]
        return [first, *rest]


def _ours(name: str, model: Model, cell: str, url: str, zone: str) -> Target:
    target = Target(name, cell, Origin.of(f"{url.rstrip('/')}/models/{model.name}"))
    target.zone = zone
    target.price = price_of(model)
    length = model.engine.get("max_model_len")
    target.context = length if isinstance(length, int) and length > 0 else _CONTEXT
    return target


def _hosted(hosted: Hosted) -> Target:
    provider, model = hosted.provider, hosted.model
    target = Target(model.name, provider.name, Origin.of(provider.url))
    target.id = model.id or model.name
    target.zone = provider.zone
    target.is_ours = False
    target.dialects = _HOSTED[provider.dialect]
    target.price = priced(model.price.usd_per_million_input_tokens, model.price.usd_per_million_output_tokens)
    target.context = model.context
    target.ready = True  # it has no health check; its answers tell
    target.head = b"accept-encoding: identity\r\n"
    if key := provider.key():
        target.head += (f"x-api-key: {key}\r\n" if provider.dialect == "anthropic" else f"authorization: Bearer {key}\r\n").encode()
    return target
