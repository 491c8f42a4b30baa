"""A request's data class: the highest of what its caller declares, its key's default, what is found in it, and its run's class so far.

Pure functions over names. A class never falls; what is not understood is the highest class.
"""

from collections.abc import Collection
from typing import NamedTuple

from routing.classes import Detected, Labels
from routing.errors import BadRequest, Denied
from serving.catalog import nearest

HEADER = b"inhouse-data-class"


class Ladder(NamedTuple):
    """The classes from the least to the most sensitive, the zones that each may go to, and the class of every kind of finding."""

    ranks: dict[str, int]
    zones: dict[str, frozenset[str]]
    of_kind: dict[str, str]
    default: str
    highest: str

    @classmethod
    def of(cls, labels: Labels) -> "Ladder":
        """The ladder of a `routes.yaml`."""
        names = [one.name for one in labels.data_classes]
        kinds = {kind: getattr(labels.detected, kind) or names[-1] for kind in Detected.__struct_fields__}
        zones = {one.name: frozenset(one.zones) for one in labels.data_classes}
        return cls({name: rank for rank, name in enumerate(names)}, zones, kinds, labels.default_class, names[-1])

    def higher(self, one: str, other: str) -> str:
        """The more sensitive of two classes. One that is not known (any more) is the highest."""
        ranks = self.ranks
        if one not in ranks or other not in ranks:
            return self.highest
        return one if ranks[one] >= ranks[other] else other


def class_of(ladder: Ladder, *, declared: bytes, default: str, found: Collection[str], run: str = "") -> str:
    """The class of a request: the highest of the header's value, the key's default, the kinds found, and its run's class.

    Empty means not said; where nothing is said the site's default counts. Raises `BadRequest` for a header that names no class.
    """
    label = default or ladder.default
    label = ladder.higher(label, run or label)
    if declared:
        name = declared.decode("latin-1").strip()
        if name not in ladder.ranks:
            raise BadRequest(f"`{HEADER.decode()}: {name[:60]}` is no data class{nearest(name[:60], ladder.ranks)}; from the least to the "
                             f"most sensitive there are {', '.join(ladder.ranks)}", param=HEADER.decode())  # fmt: skip
        label = ladder.higher(label, name)
    for kind in found:
        label = ladder.higher(label, ladder.of_kind.get(kind, ladder.highest))
    return label


def check_class(ladder: Ladder, label: str, *, max_class: str) -> None:
    """Whether a caller may send data of this class; an empty `max_class` is no bound, an unknown one bars all. Raises `Denied`."""
    if max_class and ladder.higher(label, max_class) != max_class:
        raise Denied(f"the request is of class `{label}` and this key may send up to `{max_class}`; take out what is sensitive or ask for "
                     "a key that may", code="data_class")  # fmt: skip


def may_go(ladder: Ladder, label: str, zone: str) -> bool:
    """Whether data of a class may go to a zone. An unknown class may go nowhere."""
    return zone in ladder.zones.get(label, ())
