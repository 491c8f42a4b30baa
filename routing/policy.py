"""May this request go to that model? Cedar policies decide, with a schema, and anything but a clean Allow is no.

Decisions are remembered by what they depend on, so that a request pays one look into a dictionary. Policies can only take away: where data
of a class may go is checked beside them, whatever they say.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol, TypeVar

import cedarpy

from routing.classes import Labels, Zone
from routing.errors import Denied
from routing.labels import Ladder, may_go
from serving.catalog import ConfigError, nearest

SHIPPED = Path(__file__).parent / "policies"
_SCHEMA = "inhouse.cedarschema"
_REMEMBERED = 16384  # decisions; then it starts anew, at 0.2 ms each
_CLASS_NAMED = re.compile(r'DataClass::"([^"]*)"')
_LOG = logging.getLogger(__name__)


class About(NamedTuple):
    """What a decision depends on, apart from where the request would go. One for each request: built once, hashed at each attempt."""

    caller: str
    team: str
    tasks: frozenset[str]
    models: frozenset[str]
    task: str  # "" where the caller named a model
    data_class: str
    endpoint: str
    stream: bool
    risky_tools: frozenset[str] = frozenset()
    approved: bool = False


class Verdict(NamedTuple):
    """`ask` means that a person's approval would make it an allow. `rules` are the ids of the policies that decided."""

    outcome: Literal["allow", "refuse", "ask"]
    rules: tuple[str, ...] = ()
    says: str = ""
    code: str = Denied.code

    def refusal(self) -> Denied:
        """The refusal that a caller gets; of an `ask`, where nobody is asked."""
        return Denied(f"policy {' and '.join(f'`{rule}`' for rule in self.rules) or 'error'}: {self.says}", code=self.code)


class Rule(NamedTuple):
    """A policy by its annotations. `needs_approval` says that a person can lift it."""

    id: str
    file: str
    permits: bool
    says: str
    code: str
    needs_approval: bool


_MILDNESS = {"allow": 0, "ask": 1, "refuse": 2}
_NOWHERE = Verdict("refuse", (), "there is no model that could answer")


@dataclass(frozen=True)
class Policy:
    """The policies in force. `hash` is the SHA-256 of every policy file and the schema, hex."""

    hash: str
    rules: Mapping[str, Rule]
    ladder: Ladder
    zones: Mapping[str, Zone]
    risky_tools: frozenset[str]
    _set: cedarpy.PolicySet
    _schema: cedarpy.Schema
    _memo: dict[tuple[About, str, str], Verdict] = field(default_factory=dict)

    def decide(self, about: About, model: str, zone: str) -> Verdict:
        """Whether the request may go to a model in a zone. Never raises: an error of evaluation is a refusal."""
        key = (about, model, zone)
        verdict = self._memo.get(key)
        if verdict is None:
            if len(self._memo) >= _REMEMBERED:
                self._memo.clear()
            verdict = self._memo[key] = self._evaluate(about, model, zone)
        return verdict

    def _evaluate(self, about: About, model: str, zone: str) -> Verdict:
        allowed, reasons = self._ask_cedar(about, model, zone)
        if allowed:
            return Verdict("allow", tuple(rule.id for rule in reasons or ()))
        liftable = [rule for rule in reasons or () if rule.needs_approval]
        if liftable:
            lifted, reasons = self._ask_cedar(about._replace(approved=True), model, zone)
            if lifted:
                return Verdict("ask", tuple(rule.id for rule in liftable), liftable[0].says, "approval_required")
        if reasons is None:
            return Verdict("refuse", (), "the policies could not be evaluated; the router's log says why")
        final = reasons or [rule for rule in self.rules.values() if rule.permits]
        if not final:
            return Verdict("refuse", (), "no policy permits anything")
        return Verdict("refuse", tuple(rule.id for rule in final), final[0].says, final[0].code)

    def _ask_cedar(self, about: About, model: str, zone: str) -> tuple[bool, list[Rule] | None]:
        """Whether it is an Allow without errors, and the policies that decided; None where there were errors."""
        try:
            result = cedarpy.is_authorized(_request(about, model, self.ladder), self._set, self._entities(about, model, zone), self._schema)
        except ValueError as error:
            _LOG.error("policies could not be evaluated: %s", error)
            return False, None
        if result.diagnostics.errors or result.decision is cedarpy.Decision.NoDecision:
            _LOG.error("policies could not be evaluated: %s", "; ".join(result.diagnostics.errors))
            return False, None
        reasons = sorted(result.diagnostics.reasons, key=list(self.rules).index)
        return result.decision is cedarpy.Decision.Allow, [self.rules[reason] for reason in reasons]

    def _entities(self, about: About, model: str, zone: str) -> list[dict[str, Any]]:
        names = list(self.ladder.ranks)
        classes = [_entity("DataClass", name, names[i - 1 : i] if i else [], parent="DataClass") for i, name in enumerate(names)]
        opens = {"tasks": sorted(about.tasks), "models": sorted(about.models)}
        teams = list(self.zones[zone].teams) if zone in self.zones else []
        return [
            *classes,
            _entity("Team", about.team),
            _entity("Caller", about.caller, [about.team], parent="Team", attrs=opens),
            _entity("Target", model, attrs={"model": model, "zone": zone, "teams": teams}),
        ]


class Target(Protocol):
    """Whatever can answer: the model's name and the zone that it is in."""

    @property
    def model(self) -> str: ...
    @property
    def zone(self) -> str: ...


T = TypeVar("T", bound=Target)


def permitted(policy: Policy, about: About, targets: Iterable[T]) -> tuple[list[T], Verdict]:
    """Those of the targets that a request may go to, in their order, and the verdict: the mildest over all targets.

    Where none is left, `ask` says that a person could open one; else it is a refusal in the words that belong to the first target.
    """
    found: list[T] = []
    verdicts: list[Verdict] = []
    for target in targets:
        verdict = policy.decide(about, target.model, target.zone)
        if verdict.outcome == "allow" and may_go(policy.ladder, about.data_class, target.zone):
            found.append(target)
        elif verdict.outcome == "allow":
            verdict = Verdict("refuse", ("zones",), f"data of class `{about.data_class}` may not go where the model is", "residency")
        verdicts.append(verdict)
    mildest = min(verdicts, key=lambda verdict: _MILDNESS[verdict.outcome], default=_NOWHERE)
    return found, mildest


def may_leave(policy: Policy, about: About, *, model: str, zone: str) -> bool:
    """Whether a request's bytes may be sent to a model in a zone. The door calls it before every attempt, whatever was decided before."""
    return may_go(policy.ladder, about.data_class, zone) and policy.decide(about, model, zone).outcome == "allow"


def folder_of(named: str, routes_file: Path) -> Path:
    """Where the policies are: the folder that routes.yaml names, from where that file is, or the shipped ones."""
    return routes_file.parent / named if named else SHIPPED


def load(folder: Path, labels: Labels, *, risky_tools: Iterable[str] = ()) -> Policy:
    """Reads the policies of a folder. Raises `ConfigError` naming the file where anything in it is not as it must be."""
    ladder = Ladder.of(labels)
    files = sorted(folder.glob("*.cedar"))
    schema = _read(folder / _SCHEMA)
    if not files:
        raise ConfigError(f"{folder}: no policies (*.cedar) are there, so nobody could do anything; the shipped ones are in {SHIPPED}")
    texts = [_read(file) for file in files]
    for file, text in zip(files, texts, strict=True):
        _check(file, text, schema, ladder)
    whole = "\n".join(texts)
    digest = hashlib.sha256()
    for name, text in sorted([(_SCHEMA, schema), *((file.name, text) for file, text in zip(files, texts, strict=True))]):
        digest.update(f"{name}\0{len(text.encode())}\0{text}".encode())
    return Policy(digest.hexdigest(), _rules(files, texts), ladder, {zone.name: zone for zone in labels.zones}, frozenset(risky_tools),
                  cedarpy.PolicySet.from_str(whole), cedarpy.Schema.from_str(schema))  # fmt: skip


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: can't be read: {error}") from error


def _check(file: Path, text: str, schema: str, ladder: Ladder) -> None:
    try:
        result = cedarpy.validate_policies(text, schema)
    except ValueError as error:
        raise ConfigError(f"{file}: {error}") from error
    if not result.validation_passed:
        raise ConfigError(f"{file}: {'; '.join(map(str, result.errors))}")
    for name in _CLASS_NAMED.findall(text):
        if name not in ladder.ranks:
            raise ConfigError(f"{file}: names the data class `{name}`, which routes.yaml does not have{nearest(name, ladder.ranks)}; copy "
                              f"{SHIPPED} beside your routes.yaml, change it, and name the copy under `policies`")  # fmt: skip


def _rules(files: Iterable[Path], texts: Iterable[str]) -> dict[str, Rule]:
    """The policies by the ids that Cedar gives them in the text of all files: policy0, policy1, and so on."""
    found: list[Rule] = []
    for file, text in zip(files, texts, strict=True):
        parsed = json.loads(cedarpy.policies_to_json_str(text))
        if parsed["templates"]:
            raise ConfigError(f"{file}: holds a template (?principal or ?resource); nothing fills those in: write a policy")
        policies = parsed["staticPolicies"]
        for key in sorted(policies, key=lambda key: int(key.removeprefix("policy"))):
            found.append(_rule(file, policies[key], [rule.id for rule in found]))
    return {f"policy{i}": rule for i, rule in enumerate(found)}


def _rule(file: Path, policy: dict[str, Any], taken: list[str]) -> Rule:
    notes = policy.get("annotations", {})
    name, approval, permits = notes.get("id"), notes.get("approval"), policy["effect"] == "permit"
    if not name or name in taken:
        raise ConfigError(f'{file}: each policy needs an id of its own, written as @id("name"): refusals and the audit trail say it')
    if approval not in (None, "person") or (approval and permits):
        raise ConfigError(f'{file}: policy `{name}`: @approval("person") is the only approval there is, and only a forbid can have it')
    return Rule(name, file.name, permits, notes.get("says") or "it is not allowed", notes.get("code") or Denied.code, bool(approval))


def _request(about: About, model: str, ladder: Ladder) -> dict[str, Any]:
    context = {
        "team": about.team,
        "task": about.task,
        "data_class": {"__entity": {"type": "DataClass", "id": about.data_class}},
        "zones": sorted(ladder.zones.get(about.data_class, ())),
        "endpoint": about.endpoint,
        "stream": about.stream,
        "risky_tools": sorted(about.risky_tools),
        "approved": about.approved,
    }
    return {"principal": {"type": "Caller", "id": about.caller}, "action": {"type": "Action", "id": "send"},
            "resource": {"type": "Target", "id": model}, "context": context}  # fmt: skip


def _entity(
    kind: str, name: str, parents: Iterable[str] = (), *, parent: str = "", attrs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    return {"uid": {"type": kind, "id": name}, "attrs": dict(attrs or {}), "parents": [{"type": parent, "id": up} for up in parents]}
