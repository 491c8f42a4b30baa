"""Every way to read a body: unescaped, normalised, parts of one message joined, percent and HTML escapes undone, base64 and hex decoded.

Whatever a value hides in (message, tool arguments, tool results, names of files, metadata, keys, JSON in strings) is text of the raw
body, so the raw body is what is read: nothing is walked, nothing can be forgotten. Linear in the body's length; bounded in depth.
"""

import binascii
import html
import re
import unicodedata
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec

_DEPTH = 3  # base64 in base64 in base64 is read; what lies deeper is not, and counts as unread
_READ_CHARS = 4 << 20  # read in one body, at up to 1.3 s for each million; what lies behind counts as unread
_PIECE_CHARS = 1 << 16  # a pattern that looks through more holds Python's lock for too long
_OVERLAP_CHARS = 1 << 10  # more than the longest thing that is looked for
_BINARY_CHARS = 256  # an encoded text of this length that decodes to no text is a file: image, audio, archive, or encrypted
_DIGITS = 10  # different signs that a long number has
_BLOB_CHARS = 20  # shorter runs are words
_ESCAPE = re.compile(r"(?<!\\)\\++(?:u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2})|([nrtbf])|)")
_SIMPLE = (("\\n", "\n"), ('\\"', '"'), ("\\t", "\t"), ("\\r", ""), ("\\b", " "), ("\\f", " "), ("\\", ""))
_CONTROLS = bytes(code for code in range(32) if chr(code) not in "\t\n\r") + b"\x7f"
_FEW = 8  # signs that are replaced one after the other: faster than looking each letter up
_FILLERS = "\u115f\u1160\u2800\u3164\uffa0"
_DASHES = "\u058a\u05be\u1806\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u207b\u2212\u2e3a\u2e3b\u301c\u3030\ufe58\ufe63"
_DOTS = "\u00b7\u2022\u2024\u2027\u2219\u22c5\u3002\u30fb"
_LINES = re.compile(r"[A-Za-z0-9+/](?<![A-Za-z0-9+/]{2})[A-Za-z0-9+/]{59,}+\n(?:[A-Za-z0-9+/]{60,}+\n)*+[A-Za-z0-9+/]*+")  # one encoding
_BLOB = re.compile(rf"[A-Za-z0-9+/_-]{{{_BLOB_CHARS},}}+")
_HEX = re.compile(r"(?:[0-9A-Fa-f]{2})++")
_TOKEN_IDS = re.compile(r'"(?:prompt|input|prompt_token_ids|inputs|token_ids)"\s{0,9}:\s{0,9}(?:\[\s{0,9}){1,2}[0-9]')
_PERCENT = re.compile(r"%[0-9A-Fa-f]{2}")
_PRINTABLE = re.compile(rb"[\t\n\r -~\x80-\xff]{8,}+")
_ASCII_RUN = re.compile(rb"[\t\n\r -~]{12,}+")
_WORDS = bytes(ord("a") if code < 128 and (chr(code).isalnum() or chr(code) in "-_") else ord(" ") for code in range(256))
_URL_SAFE = str.maketrans("-_", "+/")
_decode = msgspec.json.Decoder().decode


def has_blob(data: bytes) -> bool:
    """Whether there is a run of letters, digits, dashes and underscores as long as keys, tokens and encoded texts are."""
    return b"a" * _BLOB_CHARS in data.translate(_WORDS)


class Unread(Exception):
    """There is more in the body than is read, or what it decodes to is no text."""


def normalised(text: str) -> str:
    """The text as a reader sees it, in ASCII where that is possible: NFKC, nothing invisible, plain digits, dashes and dots.

    Sign by sign: NFKC of a whole text is quadratic in CPython where many marks follow each other.
    """
    if text.isascii():
        return text.encode().translate(None, _CONTROLS).decode()
    table = {sign: as_seen for sign in set(text) if (as_seen := _as_seen(sign)) != sign}
    if len(table) > _FEW:
        return text.translate({ord(sign): table.get(sign, sign) for sign in set(text)})
    for sign, as_seen in table.items():
        text = text.replace(sign, as_seen)
    return text


@lru_cache(maxsize=1 << 13)
def _as_seen(sign: str) -> str:
    return "".join(map(_plain_sign, unicodedata.normalize("NFKC", sign))) if _plain_sign(sign) else ""


def _plain_sign(sign: str) -> str:
    if sign in _FILLERS or (unicodedata.category(sign) in ("Cf", "Mn", "Me", "Cc") and sign not in "\t\n\r"):
        return ""
    if sign.isdecimal():
        return str(unicodedata.decimal(sign))
    return "-" if sign in _DASHES else "." if sign in _DOTS else sign


def unescaped(text: str) -> str:
    r"""The text with JSON's escapes undone at any depth of nesting: `\u0034`, and `\\\u0034` of JSON in a string, are both `4`."""
    if "\\" not in text:
        return text
    if "\\\\" not in text and "\\u" not in text and "\\x" not in text:  # as most bodies are
        for escape, sign in _SIMPLE:
            text = text.replace(escape, sign)
        return text
    text = _ESCAPE.sub(_plain, text)
    try:
        text.encode()
    except UnicodeEncodeError:  # halves of characters, written as two escapes
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _plain(found: re.Match[str]) -> str:
    if code := found[1] or found[2]:
        return chr(int(code, 16))
    return {"n": "\n", "t": "\t", "b": " ", "f": " "}.get(found[3] or "", "")


def joined_parts(body: bytes) -> str:
    """The texts of messages that come in several parts, each message's put together without a gap: a value may be cut in two.

    Raises `msgspec.DecodeError` for what is no JSON, and for numbers beyond any float, which other readers take.
    """
    found = []
    todo: list[Any] = [_decode(body)]
    while todo:
        value = todo.pop()
        if isinstance(value, list):
            texts = [item["text"] for item in value if isinstance(item, dict) and isinstance(item.get("text"), str)]
            if len(texts) > 1:
                found.append("".join(texts))
            todo.extend(item for item in value if isinstance(item, dict | list))
        elif isinstance(value, dict):
            todo.extend(item for item in value.values() if isinstance(item, dict | list))
    return "\n".join(found)


def form_text(body: bytes) -> str:
    """The text in a form: headers, fields, and what of its files is text."""
    return "\n".join(one.text for part in body.split(b"\r\n\r\n") for one in _said(part))


def holds_token_ids(text: str) -> bool:
    """Whether a prompt is given as numbers of tokens: what those say, only the model's tokenizer knows."""
    return ("prompt" in text or "input" in text) and _TOKEN_IDS.search(text) is not None


def readings(text: str) -> Iterator[str]:
    """A raw text and everything that is encoded in it, each normalised, in pieces of 64 Ki characters that overlap.

    Raises `Unread` at the end where something could not be read.
    """
    reader = _Reader()
    yield from reader.read(text, 0)
    if reader.has_unread:
        raise Unread


class _Reader:
    def __init__(self) -> None:
        self.has_unread = False
        self._left = _READ_CHARS

    def read(self, text: str, depth: int) -> Iterator[str]:
        if self._left <= 0:
            self.has_unread = True
            return
        blobs: list[str] = []
        cut = partial(self._without_files, blobs)
        if len(text) > _READ_CHARS:  # a large file must not push out the words beside it, and the rest need not be prepared
            text = _BLOB.sub(cut, text)
            self.has_unread = self.has_unread or len(text) > _READ_CHARS
            text = text[:_READ_CHARS]
        plain = normalised(unescaped(text))
        if has_blob(plain.encode("utf-8", "replace")):
            plain = _BLOB.sub(cut, _LINES.sub(cut, plain))
        yield from self._pieces(plain)
        if "%" in plain and _PERCENT.search(plain):
            yield from self._pieces(normalised(unquote(plain, errors="replace")))
        if "&" in plain and (other := html.unescape(plain)) != plain:
            yield from self._pieces(normalised(other))
        for blob in blobs:
            said = list(_texts_in(blob))
            is_whole = any(one.is_whole for one in said)
            if depth == _DEPTH or (len(blob) >= _BINARY_CHARS and not is_whole):
                self.has_unread = True
            if depth < _DEPTH:
                for one in said:
                    yield from self.read(one.text, depth + 1)

    def _without_files(self, blobs: list[str], found: re.Match[str]) -> str:
        """Collects encodings. Long ones that are no text are cut out: looking for words in an image takes seconds and finds none."""
        blob = found[0].replace("\n", "")
        if len(blob) >= _BINARY_CHARS:
            if len(set(blob)) <= _DIGITS:  # a ruler, or a number
                return found[0]
            if not _opens_with_text(blob):
                self.has_unread = True
                return ""
        blobs.append(blob)
        return found[0]

    def _pieces(self, text: str) -> Iterator[str]:
        if len(text) > self._left:
            self.has_unread = True
            text = text[: self._left]
        self._left -= len(text)
        if len(text) <= _PIECE_CHARS:
            yield text
            return
        for start in range(0, len(text), _PIECE_CHARS - _OVERLAP_CHARS):
            yield text[start : start + _PIECE_CHARS]


class _Said(NamedTuple):
    """What an encoding says. `is_whole` says that there is nothing but text in it."""

    text: str
    is_whole: bool


def _decodings(blob: str) -> Iterator[bytes]:
    """What an encoded text decodes to, as hex where it can be that, and as base64 wherever its first letter is."""
    if _HEX.fullmatch(blob):
        yield bytes.fromhex(blob).replace(b"\0", b"")  # NUL is in UTF-16 of plain text
    standard = blob.translate(_URL_SAFE)
    for start in range(4):
        encoded = standard[start:]
        padded = encoded[: len(encoded) // 4 * 4] if len(encoded) % 4 == 1 else encoded + "=" * (-len(encoded) % 4)
        yield binascii.a2b_base64(padded).replace(b"\0", b"")


def _texts_in(blob: str) -> Iterator[_Said]:
    """What an encoded text says; nothing where it says nothing readable."""
    for data in _decodings(blob):
        yield from _said(data)


def _opens_with_text(blob: str) -> bool:
    """Whether an encoding begins with text, which may be cut in the middle of a letter."""
    for data in _decodings(blob[:_BINARY_CHARS]):
        if _PRINTABLE.fullmatch(data) and len(data.decode(errors="ignore").encode()) > len(data) - 4:
            return True
        if sum(map(len, _ASCII_RUN.findall(data))) > _BINARY_CHARS // 4:
            return True
    return False


def _said(data: bytes) -> Iterator[_Said]:
    if _PRINTABLE.fullmatch(data):
        try:
            yield _Said(data.decode(), is_whole=True)
            return
        except UnicodeDecodeError:
            pass
    runs = _ASCII_RUN.findall(data)
    if runs:
        yield _Said(b"\n".join(runs).decode(), is_whole=False)


__all__ = ["Unread", "form_text", "has_blob", "holds_token_ids", "joined_parts", "normalised", "readings", "unescaped"]
