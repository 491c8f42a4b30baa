"""What is sensitive in a request's body: kinds, never values. A clean body costs a few microseconds, as nothing of it is decoded.

Two steps: a look over the raw bytes that can't miss what the second step would find, then, for the suspicious, every reading of the body
(`readings`) through every pattern (`patterns`). What can't be read is `unread`; a detector that fails is `failed`: both are kinds.
"""

import logging
import re
from collections.abc import Iterable
from typing import Protocol

from routing.patterns import KINDS as PATTERN_KINDS
from routing.patterns import fold, has_number, has_secret_word, kinds_in
from routing.readings import Unread, form_text, has_blob, holds_token_ids, joined_parts, readings

UNREAD = "unread"  # media, archives, token ids, or encoded deeper than is decoded
FAILED = "failed"  # a detector raised: nothing is known, so the highest class
KINDS = (*PATTERN_KINDS, UNREAD)
NOTHING: frozenset[str] = frozenset()
_TEXT_KEY = re.compile(rb'"text"\s*:')
_PERCENT = re.compile(rb"%[0-9A-Fa-f]{2}")
_DATE = re.compile(rb"[12](?<![0-9A-Za-z.+/_-][12])(?:(?<=1)9|(?<=2)0)[0-9]{2}-[01][0-9]-[0-3][0-9](?![0-9A-SU-Za-z/_-])")  # common
_LOG = logging.getLogger(__name__)

# First bytes of UTF-8 whose characters NFKC leaves alone and that hide nothing: Latin, Greek, Cyrillic, Hebrew, Chinese; and second bytes
_PLAIN = bytes(range(128)) + bytes(range(0x80, 0xC0)) + bytes((0xC3, 0xC4, 0xC5, 0xCE, 0xCF, 0xD0, 0xD1, 0xD7, *range(0xE4, 0xEA)))


class Detector(Protocol):
    """Finds kinds in one normalised text. May raise: then the request gets the highest class."""

    def __call__(self, text: str) -> Iterable[str]: ...


def is_clean(body: bytes) -> bool:
    """Whether nothing in a JSON body can be of a pattern's kind: no digits, signs, words or encodings that one could be made of.

    One-sided: True is a promise, False is no more than a reason to look.
    """
    if b"@" in body or b"&" in body or b"-----B" in body:
        return False
    if (b"\\" in body and b"\\u" in body) or (b"%" in body and _PERCENT.search(body)):
        return False
    folded = fold(body)
    if has_number(folded) and has_number(folded := fold(_DATE.sub(b"~", body))):
        return False
    if has_secret_word(folded) or has_blob(body):
        return False
    if b'"text"' in body and len(_TEXT_KEY.findall(body)) > 1:  # a message in parts may have a value cut in two
        return False
    return body.isascii() or not body.translate(None, _PLAIN)


def find(body: bytes, *, form: bool = False, others: Iterable[Detector] = ()) -> frozenset[str]:
    """The kinds in a body that is known to be valid JSON, or a form (whose file is never read). `others` see every reading, too.

    Never raises: what can't be looked at is `failed` or `unread`.
    """
    detectors = (kinds_in, *others)
    if not form and len(detectors) == 1 and is_clean(body):
        return NOTHING
    found = {UNREAD} if form else set()
    try:
        found |= _found_in(form_text(body) if form else body.decode(), detectors)
        if not form:
            found |= _found_in(joined_parts(body), detectors)
    except Exception as error:  # whatever it was, the body was not looked at; the error's own words may quote it
        _LOG.error("a detector failed (%s): the request gets the highest class", type(error).__name__)
        found.add(FAILED)
    return frozenset(found)


def _found_in(text: str, detectors: Iterable[Detector]) -> set[str]:
    found: set[str] = set()
    try:
        for reading in readings(text) if text else ():
            for detector in detectors:
                found.update(detector(reading))
            if holds_token_ids(reading):
                found.add(UNREAD)
    except Unread:
        found.add(UNREAD)
    return found
