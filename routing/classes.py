"""Data classes and zones as `routes.yaml` writes them, and the check that every class has somewhere to go. Plain data; decides nothing."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Protocol

import msgspec

from serving.catalog import Document, nearest

ONPREM, HOSTED = "onprem", "hosted"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")  # it goes into headers, policies and metrics


class Zone(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where targets are: `onprem`, `hosted`, or a name of yours. Requests of these `teams` may be answered there; `*` is every team."""

    name: str
    teams: tuple[str, ...] = ()


class DataClass(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How sensitive data is, and the only zones that it may go to."""

    name: str
    zones: tuple[str, ...]


class Detected(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The class that each kind of finding raises a request to; one that is not written here raises it to the highest.

    `unread` is what nobody can look into: media, archives, token ids, encodings in encodings. `name` and `place` need `presidio`.
    """

    card: str = ""
    iban: str = ""
    national_id: str = ""
    email: str = ""
    phone: str = ""
    secret: str = ""
    unread: str = ""
    name: str = ""
    place: str = ""


class Sample(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The share of a task's answers that is written down for data sets, of requests up to a data class. 0.01 is one in a hundred."""

    share: float
    up_to: str


ZONES = (Zone(name=ONPREM, teams=("*",)), Zone(name=HOSTED))
CLASSES = (
    DataClass(name="public", zones=(ONPREM, HOSTED)),
    DataClass(name="internal", zones=(ONPREM, HOSTED)),
    DataClass(name="confidential", zones=(ONPREM,)),
    DataClass(name="restricted", zones=(ONPREM,)),
)


class Labels(Protocol):
    """The part of `routes.yaml` that is about labels."""

    @property
    def zones(self) -> tuple[Zone, ...]: ...
    @property
    def data_classes(self) -> tuple[DataClass, ...]: ...
    @property
    def default_class(self) -> str: ...
    @property
    def detected(self) -> Detected: ...


Used = Sequence[tuple[str, str]]  # names, each after where it stands


def check_classes(document: Document, labels: Labels, *, zones_used: Used = (), classes_used: Used = ()) -> None:
    """Every name is known and given once, those used elsewhere in the file too. Raises `ConfigError`."""
    zones = [zone.name for zone in labels.zones]
    classes = [one.name for one in labels.data_classes]
    if not classes:
        raise document.error("$.data_classes", "there must be at least one data class")
    for key, names in (("zones", zones), ("data_classes", classes)):
        for i, name in enumerate(names):
            if not _NAME.fullmatch(name) or name in names[:i]:
                raise document.error(f"$.{key}[{i}].name", f"`{name}` is there twice, or is not made of letters, digits, dot, dash and "
                                     "underscore, at most 63")  # fmt: skip
    of_classes = [(f"$.data_classes[{i}].zones", zone) for i, one in enumerate(labels.data_classes) for zone in one.zones]
    for where, zone in (*of_classes, *zones_used):
        if zone not in zones:
            raise document.error(where, f"no zone `{zone}`{nearest(zone, zones)}; zones are listed under `zones`")
    for where, name in (*_classes_named(labels), *classes_used):
        if name not in classes:
            raise document.error(where, f"no data class `{name}`{nearest(name, classes)}")


def _classes_named(labels: Labels) -> Iterator[tuple[str, str]]:
    yield "$.default_class", labels.default_class
    for kind in Detected.__struct_fields__:
        if name := getattr(labels.detected, kind):
            yield f"$.detected.{kind}", name


def check_reach(document: Document, labels: Labels, zones_of: Mapping[str, Collection[str]]) -> None:
    """Every class may be answered by some model of every task. `zones_of` are the zones of each task's models, in the file's order.

    A class that could go nowhere would only be found out by the caller who needs it. Raises `ConfigError`.
    """
    for i, (task, zones) in enumerate(zones_of.items()):
        for one in labels.data_classes:
            if not set(one.zones) & set(zones):
                raise document.error(f"$.tasks[{i}].candidates", f"class `{one.name}` may go to {', '.join(one.zones) or 'no zone'}, "
                                     f"and every model of the task `{task}` is in {', '.join(sorted(zones))}: add a candidate or fallback "
                                     "where it may go, or the zone to the class")  # fmt: skip
