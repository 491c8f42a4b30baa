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
from typing import Any
from urllib.parse import unquote

import msgspec

_DEPTH = 3  # base64 in base64 in base64 is read; what lies deeper is not, and counts as unread
_READ_CHARS = 4 << 20  # read in one body, at up to 1.3 s for each million; what lies behind counts as unread
_PIECE_CHARS = 1 << 16  # a pattern that looks through more holds Python's lock for too long
_OVERLAP_CHARS = 1 << 10  # more than the longest thing that is looked for
_BINARY_CHARS = 256  # an encoded text of this length that decodes to no text is a file: image, audio, archive, or encrypted
_BLOB_CHARS = 20  # shorter runs are words
_ESCAPE = re.compile(r"(?<!\\)\\++(?:u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2})|([nrtbf])|)")
_SIMPLE = (("\\n", "\n"), ('\\"', '"'), ("\\t", "\t"), ("\\r", "\n"), ("\\b", " "), ("\\f", " "), ("\\", ""))
_CONTROLS = bytes(code for code in range(32) if chr(code) not in "\t\n\r") + b"\x7f"
_FEW = 8  # signs that are replaced one after the other: faster than looking each letter up
_FILLERS = "\u115f\u1160\u2800\u3164\uffa0"
_DASHES = "\u058a\u05be\u1806\u2010\u2011\u2012\u2013\u2014\u2015\u2043\u207b\u2212\u2e3a\u2e3b\u301c\u3030\ufe58\ufe63"
_DOTS = "\u00b7\u2022\u2024\u2027\u2219\u22c5\u3002\u30fb"
_WRAP = re.compile(r"\n(?<=[A-Za-z0-9+/]{60}\n)(?=[A-Za-z0-9+/])")  # lines of one encoded text
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
    return {"n": "\n", "r": "\n", "t": "\t"}.get(found[3] or "", "" if not found[3] else " ")


def joined_parts(body: bytes) -> str:
    """The texts of messages that come in several parts, each message's put together without a gap: a value may be cut in two."""
    try:
        document = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return ""
    found = []
    todo: list[Any] = [document]
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
    return "\n".join(text for part in body.split(b"\r\n\r\n") for text in _text(part))


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
        plain = normalised(unescaped(text))
        blobs: list[str] = []
        if has_blob(plain.encode("utf-8", "replace")):
            unwrapped = _WRAP.sub("", plain)
            if unwrapped != plain:
                _BLOB.sub(partial(self._without_files, blobs), unwrapped)
            plain = _BLOB.sub(partial(self._without_files, blobs), plain)
        yield from self._pieces(plain)
        if "%" in plain and _PERCENT.search(plain):
            yield from self._pieces(normalised(unquote(plain, errors="replace")))
        if "&" in plain and (other := html.unescape(plain)) != plain:
            yield from self._pieces(normalised(other))
        for blob in blobs:
            if depth == _DEPTH:
                self.has_unread = True
                return
            for inner in _texts_in(blob):
                yield from self.read(inner, depth + 1)

    def _without_files(self, blobs: list[str], found: re.Match[str]) -> str:
        """Collects encodings. Long ones that are no text are cut out: looking for words in an image takes seconds and finds none."""
        if len(found[0]) < _BINARY_CHARS or _is_text(found[0]):
            blobs.append(found[0])
            return found[0]
        self.has_unread = True
        return ""

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


def _is_text(blob: str) -> bool:
    """Whether an encoding starts with text, wherever its first letter is."""
    return any(len(text) > _BINARY_CHARS // 4 for text in _texts_in(blob[:_BINARY_CHARS]))


def _texts_in(blob: str) -> Iterator[str]:
    """What an encoded text says, wherever its first letter is; nothing where it says nothing readable."""
    if _HEX.fullmatch(blob):
        yield from _text(bytes.fromhex(blob))
    standard = blob.translate(_URL_SAFE)
    for start in range(4):
        whole = standard[start:]
        padded = whole[: len(whole) // 4 * 4] if len(whole) % 4 == 1 else whole + "=" * (-len(whole) % 4)
        said = list(_text(binascii.a2b_base64(padded)))
        yield from said
        if said and start == 0 and len(said[0]) >= len(blob) // 2:
            return


def _text(data: bytes) -> Iterator[str]:
    data = data.replace(b"\0", b"")  # UTF-16 of plain text
    try:
        text = data.decode()
        if _PRINTABLE.fullmatch(data):
            yield text
            return
    except UnicodeDecodeError:
        pass
    runs = _ASCII_RUN.findall(data)
    if runs:
        yield b"\n".join(runs).decode()


__all__ = ["Unread", "form_text", "has_blob", "holds_token_ids", "joined_parts", "normalised", "readings", "unescaped"]
