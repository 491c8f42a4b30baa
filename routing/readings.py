"""Every way to read a body: unescaped, normalised, parts of one message joined, percent and HTML escapes undone, base64 and hex decoded.

Whatever a value hides in (message, tool arguments, tool results, names of files, metadata, keys, JSON in strings) is text of the raw
body, so the raw body is what is read: nothing is walked, nothing can be forgotten. Linear in the body's length; bounded in depth.
"""

import binascii
import html
import re
import unicodedata
from collections.abc import Iterator
from functools import cache
from typing import Any
from urllib.parse import unquote

import msgspec

_DEPTH = 3  # base64 in base64 in base64 is read; what lies deeper is not, and counts as unread
_DECODED = 64 << 20  # bytes that one body may decode to
_BINARY_CHARS = 256  # an encoded text of this length that decodes to no text is a file: image, audio, archive, or encrypted
_BLOB_CHARS = 20  # shorter runs are words
_ESCAPE = re.compile(r"(?<!\\)\\++(?:u([0-9A-Fa-f]{4})|x([0-9A-Fa-f]{2})|([nrtbf])|)")
_DASH = re.compile(r"[\u058a\u05be\u1806\u2010-\u2015\u2043\u207b\u2212\u2e3a\u2e3b\u301c\u3030\ufe58\ufe63\uff0d]")
_DOT = re.compile(r"[\u00b7\u2022\u2024\u2027\u2219\u22c5\u3002\u30fb\uff0e\uff61]")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
_ASTRAL = re.compile("[\U00010000-\U0010ffff]")
_HIDDEN_CATEGORIES = ("Cf", "Mn", "Me", "Cc")
_FOREIGN_DIGIT = re.compile(r"(?![0-9])\d")
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
    """There is more in the body than may be decoded, or what it decodes to is no text."""


@cache
def _invisible() -> re.Pattern[str]:
    """Characters that are not seen between two others: controls, format characters, marks, fillers. Up to U+FFFF: wider sets are slow."""
    hidden = "".join(one for one in map(chr, range(0x10000)) if _is_hidden(one))
    return re.compile(f"[{re.escape(hidden)}]")


def _is_hidden(one: str) -> bool:
    return (unicodedata.category(one) in _HIDDEN_CATEGORIES and one not in "\t\n\r") or one in "\u115f\u1160\u2800\u3164\uffa0"


def _seen(text: str) -> str:
    text = _invisible().sub("", text)
    return _ASTRAL.sub(lambda found: "" if _is_hidden(found[0]) else found[0], text)


def normalised(text: str) -> str:
    """The text as a reader sees it, in ASCII where that is possible: NFKC, nothing invisible, plain digits, dashes, dots and spaces.

    Marks go before NFKC sees them: ordering a long run of marks is quadratic in CPython.
    """
    if text.isascii():
        return text if _CONTROL.search(text) is None else _CONTROL.sub("", text)
    text = _seen(unicodedata.normalize("NFKC", _seen(text)))
    return _FOREIGN_DIGIT.sub(lambda found: str(unicodedata.decimal(found[0])), _DOT.sub(".", _DASH.sub("-", text)))


def unescaped(text: str) -> str:
    r"""The text with JSON's escapes undone at any depth of nesting: `\u0034`, and `\\\u0034` of JSON in a string, are both `4`."""
    if "\\" not in text:
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
    """A raw text, and everything that is encoded in it, each normalised. Raises `Unread` at the end where something could not be read."""
    yield from _Reader().read(text, 0)


class _Reader:
    def __init__(self) -> None:
        self._left = _DECODED

    def read(self, text: str, depth: int) -> Iterator[str]:
        plain = normalised(unescaped(text))
        yield plain
        if "%" in plain and _PERCENT.search(plain):
            yield normalised(unquote(plain, errors="replace"))
        if "&" in plain and (other := html.unescape(plain)) != plain:
            yield normalised(other)
        unread = False
        if not has_blob(plain.encode("utf-8", "replace")):
            return
        unwrapped = _WRAP.sub("", plain)
        for blob in (*_BLOB.findall(plain), *(_BLOB.findall(unwrapped) if unwrapped != plain else ())):
            self._left -= len(blob)
            if depth == _DEPTH or self._left < 0:
                raise Unread
            texts = list(_texts_in(blob))
            unread = unread or (not texts and len(blob) >= _BINARY_CHARS)
            for inner in texts:
                try:
                    yield from self.read(inner, depth + 1)
                except Unread:
                    unread = True
        if unread:
            raise Unread


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
