"""Numbers that name a person or a card, told from other numbers by their checksums and by how they are written.

Runs of digit groups are found first; then single groups, known layouts of neighbouring groups, and the whole run are checked. Linear.
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from stdnum.br import cpf
from stdnum.de import idnr
from stdnum.es import dni, nie
from stdnum.fr import nir
from stdnum.gb import nhs
from stdnum.nl import bsn
from stdnum.pl import pesel
from stdnum.us import ssn

CARD = "card"
NATIONAL_ID = "national_id"
PHONE = "phone"
_RUN_DIGITS = 512  # longer runs are looked at piece by piece, so that memory stays flat
_OVERLAP = 80  # more than the longest number takes with its separators
_RUN = re.compile(rf"[0-9](?<![0-9A-Za-z][0-9])(?:[ \t\n\-._/*|()]{{0,3}}+[0-9]){{8,{_RUN_DIGITS - 1}}}+")
_GROUP = re.compile(r"[0-9]+")
_IIN = re.compile(
    r"4|5[1-5]|222[1-9]|22[3-9]|2[3-6]|27[01]|2720|3[47]|30[0-5]|3095|3[689]|6011|64[4-9]|65|62|35(?:2[89]|[3-8])"
    r"|5018|5020|5038|6304|6759|676[1-3]"
)  # of Visa, Mastercard, Amex, Diners, Discover, UnionPay, JCB, Maestro
_CARD_LENGTHS = {"2": (16,), "3": (14, 15, 16), "4": (16, 19), "5": (16,), "6": (16, 19)}
_DOUBLED = str.maketrans("0123456789", "0246813579")
_DNI = re.compile(r"[0-9]{2}\.?[0-9]{3}\.?[0-9]{3}(?:[ .-]?[A-Z]|-?[a-z])(?![0-9A-Za-z])")
_NIE = re.compile(r"[0-9](?:(?<=[XYZxyz][0-9])|(?<=[XYZxyz][ .-][0-9]))[0-9]{6}(?:[ .-]?[A-Z]|-?[a-z])(?![0-9A-Za-z])")
_NINO = re.compile(r"[0-9](?:(?<=[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z][0-9])|(?<=[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z][ -][0-9]))"
                   r"[0-9](?:[ -]?[0-9]{2}){2}[ -]?[A-D](?![0-9A-Za-z])", re.IGNORECASE)  # fmt: skip
_WORD_CHARS = 48  # how far before a number the word for it may stand


class _Rule(NamedTuple):
    """A number: how its groups are sized (none: in one piece), of which words one must stand before it (none: no word), what checks it."""

    kind: str
    sizes: tuple[int, ...]
    words: tuple[str, ...]
    is_valid: Callable[[str], bool]


def is_card(digits: str) -> bool:
    """Whether it is a payment card's number by issuer, length and Luhn."""
    return len(digits) in _CARD_LENGTHS.get(digits[:1], ()) and _IIN.match(digits) is not None and _passes_luhn(digits)


def _passes_luhn(digits: str) -> bool:
    """ISO/IEC 7812-1 annex B, several times as fast as a general one: number tables are full of candidates."""
    return (sum(map(int, digits[-1::-2])) + sum(map(int, digits[-2::-2].translate(_DOUBLED)))) % 10 == 0


def _is_north_american(digits: str) -> bool:
    return digits[0] in "23456789" and digits[3] in "23456789"


_SSN_WORDS = ("ssn", "social security")
_NL_WORDS = ("bsn", "burgerservice", "sofinum", "sofi-num")
_NHS_WORDS = ("nhs", "national health")
_PL_WORDS = ("pesel",)
_BR_WORDS = ("cpf",)
_RULES = (
    *(_Rule(CARD, sizes, (), is_card)
      for sizes in ((4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 4, 4, 3), (8, 8), (4, 4, 5), (6, 10), (4, 5, 6), (4, 12), (4, 4, 8))),
    _Rule(PHONE, (3, 3, 4), (), _is_north_american),
    _Rule(NATIONAL_ID, (3, 2, 4), (), ssn.is_valid),
    _Rule(NATIONAL_ID, (9,), _SSN_WORDS, ssn.is_valid),
    _Rule(NATIONAL_ID, (11,), (), idnr.is_valid),
    _Rule(NATIONAL_ID, (2, 3, 3, 3), (), idnr.is_valid),
    _Rule(NATIONAL_ID, (15,), (), nir.is_valid),
    _Rule(NATIONAL_ID, (13, 2), (), nir.is_valid),
    _Rule(NATIONAL_ID, (1, 2, 2, 2, 3, 3, 2), (), nir.is_valid),
    _Rule(NATIONAL_ID, (9,), _NL_WORDS, bsn.is_valid),
    _Rule(NATIONAL_ID, (3, 3, 3), _NL_WORDS, bsn.is_valid),
    _Rule(NATIONAL_ID, (4, 2, 3), _NL_WORDS, bsn.is_valid),
    _Rule(NATIONAL_ID, (3, 3, 4), (), nhs.is_valid),
    _Rule(NATIONAL_ID, (10,), _NHS_WORDS, nhs.is_valid),
    _Rule(NATIONAL_ID, (11,), _PL_WORDS, pesel.is_valid),
    _Rule(NATIONAL_ID, (3, 3, 3, 2), (), cpf.is_valid),
    _Rule(NATIONAL_ID, (11,), _BR_WORDS, cpf.is_valid),
)  # fmt: skip
_IN_ONE: dict[int, list[_Rule]] = {}
_LAYOUTS: dict[str, list[_Rule]] = {}  # sizes of groups as characters: a layout is found as a word is
for _rule in _RULES:
    if len(_rule.sizes) == 1:
        _IN_ONE.setdefault(_rule.sizes[0], []).append(_rule)
    else:
        _LAYOUTS.setdefault("".join(map(chr, _rule.sizes)), []).append(_rule)


def kinds_of_numbers(text: str) -> set[str]:
    """Which of `card`, `national_id` and `phone` (as North America writes it) a normalised text holds."""
    found: set[str] = set()
    look = _Look(text)
    for start, run in _runs(text):
        found.update(look.kinds_of_run(start, run))
        if len(found) == 3:
            return found
    if NATIONAL_ID not in found and (_NINO.search(text) or _holds_spanish(text)):
        found.add(NATIONAL_ID)
    return found


def _holds_spanish(text: str) -> bool:
    for one in _DNI.finditer(text):
        if not text[max(0, one.start() - 1) : one.start()].isalnum() and dni.is_valid(one[0].replace(".", "")):
            return True
    return any(nie.is_valid(text[max(0, one.start() - 2) : one.start()].strip(" .-")[-1] + one[0]) for one in _NIE.finditer(text))


def _runs(text: str) -> Iterator[tuple[int, str]]:
    """Runs of digit groups with where they start. A long one comes in pieces that overlap by more than a number's length."""
    at = 0
    while run := _RUN.search(text, at):
        yield run.start(), run[0]
        at = max(run.end() - _OVERLAP, run.start() + 1) if len(run[0]) >= _RUN_DIGITS else run.end()


class _Look:
    """One look over a text: it asks once whether a rule's word is there at all."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._small = small if len(small := text.lower()) == len(text) else text
        self._there: dict[tuple[str, ...], bool] = {}

    def kinds_of_run(self, start: int, run: str) -> Iterator[str]:
        groups = _GROUP.findall(run)
        end = start + len(run)
        if end < len(self._text) and self._text[end].isalnum() and self._text[end].isascii():  # glued to a letter, or cut
            groups.pop()
        if 1 < len(groups) < 20:  # however it is grouped, if there is nothing else in the run
            yield from self._kinds_of_group("".join(groups), start)
        for group in groups:
            if len(group) > 8 and f".{group}" not in run:  # the digits after a decimal point are no number of a card
                yield from self._kinds_of_group(group, start + run.index(group))
        sizes = "".join(map(chr, map(len, groups)))
        for layout, rules in _LAYOUTS.items():
            at = sizes.find(layout)
            while at >= 0:
                number = "".join(groups[at : at + len(layout)])
                yield from (rule.kind for rule in rules if self._holds(rule, start + run.index(groups[at]), number))
                at = sizes.find(layout, at + 1)

    def _kinds_of_group(self, digits: str, at: int) -> Iterator[str]:
        if is_card(digits):
            yield CARD
        yield from (rule.kind for rule in _IN_ONE.get(len(digits), ()) if self._holds(rule, at, digits))

    def _holds(self, rule: _Rule, at: int, digits: str) -> bool:
        words = rule.words
        if words:
            if words not in self._there:
                self._there[words] = any(word in self._small for word in words)
            if not self._there[words] or not any(word in self._small[max(0, at - _WORD_CHARS) : at] for word in words):
                return False
        return rule.is_valid(digits)
