"""Conversations with one planted sensitive value each, in every place where a value can hide and in every way it can be written.

Deterministic by seed. `Canary.marker` stands in the body in plain letters: whoever records bytes looks for it, and for nothing else.
"""

import base64
import html
import json
import random
import string
import struct
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from urllib.parse import quote

from stdnum import luhn
from stdnum.iso7064 import mod_11_10, mod_97_10


class Canary(NamedTuple):
    """One request. `kind` is what must be found in it; `where` and `how` say what was planted, for a message when it was not."""

    endpoint: str
    body: bytes
    kind: str
    marker: bytes
    where: str
    how: str


def _digits(rng: random.Random, count: int) -> str:
    return "".join(rng.choices(string.digits, k=count))


def _letters(rng: random.Random, count: int, alphabet: str = string.ascii_letters + string.digits) -> str:
    return "".join(rng.choices(alphabet, k=count))


def card(rng: random.Random) -> str:
    """A card number that passes Luhn, of an issuer that exists."""
    issuers = [("4", 16), ("51", 16), ("55", 16), ("2345", 16), ("34", 15), ("37", 15), ("6011", 16), ("36", 14), ("3530", 16)]
    start, length = rng.choice(issuers)
    number = start + _digits(rng, length - len(start) - 1)
    return number + luhn.calc_check_digit(number)


def iban(rng: random.Random) -> str:
    """An IBAN whose check digits are right."""
    country, length = rng.choice([("DE", 18), ("FR", 23), ("NL", 14), ("ES", 20), ("GB", 18)])
    account = _digits(rng, length)
    if country in ("NL", "GB"):
        account = _letters(rng, 4, string.ascii_uppercase) + account[4:]
    return country + mod_97_10.calc_check_digits(account + country) + account


def national_id(rng: random.Random) -> str:
    """An identity number as it is written in the US, Germany, France, Spain, the UK, Brazil; or in a sentence that says which it is."""
    ssn = f"{rng.randint(101, 665)}-{rng.randint(10, 99)}-{rng.randint(1000, 9999)}"
    dni = rng.randint(10_000_000, 99_999_999)
    french = f"{rng.randint(1, 2)}{rng.randint(50, 99)}0{rng.randint(1, 9)}75{_digits(rng, 6)}"
    nino = f"AB{_digits(rng, 6)}C"
    return rng.choice([
        ssn, f"{dni}{'TRWAGMYFPDXBNJZSQVHLCKE'[dni % 23]}", f"{french}{97 - int(french) % 97:02d}", nino,
        _steuer_id(rng), _nhs(rng), _bsn(rng),
    ])  # fmt: skip


def _steuer_id(rng: random.Random) -> str:
    twice, *others = rng.sample(string.digits, 9)
    front = [twice, twice, *others]
    while True:
        rng.shuffle(front)
        number = "".join(front)
        if number[0] != "0":
            return number + mod_11_10.calc_check_digit(number)


def _nhs(rng: random.Random) -> str:
    while True:
        front = _digits(rng, 9)
        check = (11 - sum((10 - i) * int(digit) for i, digit in enumerate(front))) % 11
        if check < 10:
            return f"{front[:3]} {front[3:6]} {front[6:]}{check}"


def _bsn(rng: random.Random) -> str:
    while True:
        front = str(rng.randint(10_000_000, 99_999_999))
        check = sum((9 - i) * int(digit) for i, digit in enumerate(front)) % 11
        if check < 10:
            return f"BSN {front}{check}"


def email(rng: random.Random) -> str:
    """An e-mail address."""
    first, last, host = (_letters(rng, rng.randint(3, 9), string.ascii_lowercase) for _ in range(3))
    return f"{first}.{last}@{host}.{rng.choice(['com', 'de', 'co.uk', 'museum'])}"


def phone(rng: random.Random) -> str:
    """A telephone number, international or North American."""
    return rng.choice([f"+49 30 {_digits(rng, 8)}", f"+{rng.randint(31, 39)}{_digits(rng, 9)}", f"+1 (212) 555-{_digits(rng, 4)}",
                       f"212-555-{_digits(rng, 4)}", f"0044 20 {_digits(rng, 4)} {_digits(rng, 4)}"])  # fmt: skip


def secret(rng: random.Random) -> str:
    """A key or token as its issuer makes them, or a password with the word for it."""
    return rng.choice([
        "AKIA" + _letters(rng, 16, string.ascii_uppercase + string.digits), "ghp_" + _letters(rng, 36), "ihk_" + _letters(rng, 43),
        "sk-proj-" + _letters(rng, 10) + "7" + _letters(rng, 30), "xoxb-" + _digits(rng, 12) + "-" + _letters(rng, 24),
        "AIza" + _letters(rng, 35), "glpat-" + _letters(rng, 20),
        f"eyJhbGciOiJIUzI1NiJ9.eyJ{_letters(rng, 30)}.{_letters(rng, 40)}",
        f"password: {_letters(rng, 5)}7{_letters(rng, 6)}!", f"API_KEY={_letters(rng, 12)}4{_letters(rng, 12)}",
        f"postgres://root:{_letters(rng, 12)}@db.internal/x", "-----BEGIN EC PRIVATE KEY-----",
    ])  # fmt: skip


VALUES: dict[str, Callable[[random.Random], str]] = {
    "card": card, "iban": iban, "national_id": national_id, "email": email, "phone": phone, "secret": secret,
}  # fmt: skip
_WIDE = {code: code + 0xFEE0 for code in range(0x21, 0x7F)}


def _between(value: str, gap: str) -> str:
    """Groups of four with a gap, as people write cards and IBANs; nothing else is touched."""
    is_long_number = value.isalnum() and sum(map(str.isdigit, value)) >= 14 and (value.isdigit() or value[2:4].isdigit())
    return gap.join(value[i : i + 4] for i in range(0, len(value), 4)) if is_long_number and len(value) < 35 else value


WRITINGS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "spaced": lambda value: _between(value, " "),
    "dashed": lambda value: _between(value, "-"),
    "no-break": lambda value: _between(value, "\u00a0"),
    "dotted": lambda value: _between(value, "."),
    "en dash": lambda value: _between(value, "\u2013"),
    "line break": lambda value: _between(value, "\n"),
    "full width": lambda value: value.translate(_WIDE),
    "zero width": "\u200b".join,
    "soft hyphen": "\u00ad".join,
    "accents": lambda value: "\u0301".join(value) if value.isdigit() else value,
    "controls": "\x00".join,
    "arabic digits": lambda value: value.translate({0x30 + digit: 0x660 + digit for digit in range(10)}) if value.isdigit() else value,
    "bold digits": lambda value: value.translate({0x30 + digit: 0x1D7CE + digit for digit in range(10)}),
    "base64": lambda value: base64.b64encode(f"value: {value}".encode()).decode(),
    "base64 twice": lambda value: base64.b64encode(base64.b64encode(f"value: {value}".encode())).decode(),
    "base64 of utf-16": lambda value: base64.b64encode(f"value: {value}".encode("utf-16-le")).decode(),
    "url-safe base64": lambda value: base64.urlsafe_b64encode(f"?>~{value} or not".encode()).decode().rstrip("="),
    "base64 in lines": lambda value: base64.encodebytes(f"{'some words before it. ' * 5}{value}{' and after.' * 9}".encode()).decode(),
    "hex": lambda value: f"value: {value}".encode().hex(),
    "percent": lambda value: "".join(f"%{byte:02X}" for byte in value.encode()),
    "url": lambda value: "https://intranet.test/?q=" + quote(value, safe=""),
    "html": lambda value: "".join(f"&#{ord(letter)};" for letter in value),
    "html hex": lambda value: "".join(f"&#x{ord(letter):x};" for letter in value),
    "html names": lambda value: html.escape(value).replace("@", "&commat;").replace(".", "&period;"),
    "json": lambda value: json.dumps({"value": value}),
    "json in json": lambda value: json.dumps({"a": json.dumps({"value": value})}),
}  # fmt: skip


def _chat(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "system", "content": "You are helpful."}, *messages], **fields}


def _said(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _called(text: str) -> dict[str, Any]:
    function = {"name": "look_up", "arguments": json.dumps({"query": text})}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "call_1", "type": "function", "function": function}]}


def _tool(**fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}, **fields}}


def _data(text: str) -> str:
    return "data:text/plain;base64," + base64.b64encode(f"The file says: {text}".encode()).decode()


def _cut(text: str) -> list[str]:
    return [text[: len(text) // 2], text[len(text) // 2 :]]


def _part(text: str, **fields: Any) -> dict[str, Any]:
    return {"type": "text", "text": text, **fields}


def _user(*parts: dict[str, Any]) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def _file(name: str, data: str) -> dict[str, Any]:
    return {"type": "file", "file": {"filename": name, "file_data": data}}


def _tool_message(text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "call_1", "content": text}


def _assistant(**fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": "yes?", **fields}


def _anthropic(message: dict[str, Any]) -> dict[str, Any]:
    return {"messages": [message], "max_tokens": 9}


def _document(text: str) -> dict[str, Any]:
    return {"type": "document", "title": "x", "source": {"type": "text", "media_type": "text/plain", "data": text}}


Build = Callable[[str], dict[str, Any]]
_HI = {"role": "user", "content": "hi"}
_IN_CHAT: dict[str, Build] = {
    "user": lambda t: _chat(_said(t)),
    "system": lambda t: {"messages": [{"role": "system", "content": t}, _HI]},
    "third turn": lambda t: _chat(_HI, _assistant(), _said(t)),
    "assistant": lambda t: _chat(_HI, _assistant(content=t), _said("go on")),
    "reasoning": lambda t: _chat(_HI, _assistant(reasoning_content=t), _said("go on")),
    "part": lambda t: _chat(_user(_part("see"), _part(t))),
    "cut over parts": lambda t: _chat(_user(*map(_part, _cut(t)))),
    "participant": lambda t: _chat({**_HI, "name": t}),
    "file name": lambda t: _chat(_user(_file(f"{t}.txt", "x"))),
    "file": lambda t: _chat(_user(_file("a.txt", _data(t)))),
    "image text": lambda t: _chat(_user({"type": "image_url", "image_url": {"url": "data:,", "alt": t}})),
    "tool arguments": lambda t: _chat(_HI, _called(t)),
    "tool result": lambda t: _chat(_HI, _called("x"), _tool_message(t)),
    "tool result in json": lambda t: _chat(_HI, _called("x"), _tool_message(json.dumps([{"row": t}]))),
    "tool description": lambda t: _chat(_HI, tools=[_tool(description=t)]),
    "tool parameter": lambda t: _chat(_HI, tools=[_tool(parameters={"type": "object", "properties": {"a": {"enum": [t]}}})]),
    "metadata": lambda t: _chat(_HI, metadata={"note": t}),
    "key": lambda t: _chat(_HI, metadata={t: "note"}),
    "user id": lambda t: _chat(_HI, user=t),
    "stop": lambda t: _chat(_HI, stop=[t]),
    "schema": lambda t: _chat(_HI, response_format={"type": "json_schema", "json_schema": {"name": "x", "description": t}}),
    "unknown field": lambda t: _chat(_HI, vendor_extra={"deep": [[{"er": t}]]}),
    "template": lambda t: _chat(_HI, chat_template_kwargs={"x": t}),
}
_ELSEWHERE: dict[str, tuple[str, Build]] = {
    "prompt": ("/v1/completions", lambda t: {"prompt": t}),
    "suffix": ("/v1/completions", lambda t: {"prompt": "a", "suffix": t}),
    "prompts": ("/v1/completions", lambda t: {"prompt": ["one", t]}),
    "embedding": ("/v1/embeddings", lambda t: {"input": ["one", t]}),
    "query": ("/v1/rerank", lambda t: {"query": t, "documents": ["a"]}),
    "document": ("/v1/rerank", lambda t: {"query": "a", "documents": ["b", t]}),
    "input": ("/v1/responses", lambda t: {"input": t}),
    "instructions": ("/v1/responses", lambda t: {"input": "hi", "instructions": t}),
    "input parts": ("/v1/responses", lambda t: {"input": [_user(*({"type": "input_text", "text": half} for half in _cut(t)))]}),
    "call output": ("/v1/responses", lambda t: {"input": [{"type": "function_call_output", "call_id": "c", "output": t}]}),
    "anthropic system": ("/v1/messages", lambda t: {"system": [_part(t)], **_anthropic(_HI)}),
    "anthropic tool use": ("/v1/messages", lambda t: _anthropic(
        {"role": "assistant", "content": [{"type": "tool_use", "id": "u", "name": "f", "input": {"a": t}}]})),
    "anthropic tool result": ("/v1/messages", lambda t: _anthropic(
        _user({"type": "tool_result", "tool_use_id": "u", "content": [_part(t)]}))),
    "anthropic document": ("/v1/messages", lambda t: _anthropic(_user(_document(t)))),
    "anthropic thinking": ("/v1/messages", lambda t: _anthropic(
        {"role": "assistant", "content": [{"type": "thinking", "thinking": t, "signature": "x"}]})),
}  # fmt: skip
PLACES: dict[str, tuple[str, Build]] = {**{name: ("/v1/chat/completions", build) for name, build in _IN_CHAT.items()}, **_ELSEWHERE}
_AROUND = ("{}", "My number is {}, thanks", "({})", "see: {}.", "{} is what I was given", "x\n{}\ny", '"{}"', "ask about {}; then answer")


def planted(seed: int, kind: str, place: str, writing: str) -> Canary:
    """The conversation with one value of a kind in one place, written one way. In one of five, JSON's escapes spell all of it."""
    rng = random.Random(f"{seed} {kind} {place} {writing}")
    marker = "zebra" + _letters(rng, 8, "bcdfgklmnprstvz")
    text = rng.choice(_AROUND).format(WRITINGS[writing](VALUES[kind](rng)))
    endpoint, build = PLACES[place]
    document = {"model": "auto", **build(text), "vendor_note": marker}
    body = json.dumps(document, ensure_ascii=rng.random() < 0.5, separators=rng.choice([None, (",", ":")]))
    if rng.random() < 0.2:
        body = body.replace(f'"{text}"', '"' + "".join(f"\\u{unit:04x}" for unit in _utf16(text)) + '"')
    return Canary(endpoint, body.encode(), kind, marker.encode(), place, writing)


def _utf16(text: str) -> tuple[int, ...]:
    data = text.encode("utf-16-le")
    return struct.unpack(f"<{len(data) // 2}H", data)


def harmless(seed: int, place: str, writing: str) -> bytes:
    """The same conversation with nothing sensitive in it: words, an amount, a short number."""
    rng = random.Random(f"{seed} {place} {writing}")
    what = rng.choice(["pumps", "lamps", "chairs"])
    text = f"order {rng.randint(1, 99_999)} of {rng.randint(1, 900)} {what} for {rng.randint(1, 9999)}.50 EUR"
    return json.dumps({"model": "auto", **PLACES[place][1](WRITINGS[writing](text))}).encode()


def conversations(rounds: int = 1) -> Iterator[Canary]:
    """Every kind in every place in every writing, once a round with other values: 6,156 a round."""
    for seed in range(rounds):
        for kind in VALUES:
            for place in PLACES:
                for writing in WRITINGS:
                    yield planted(seed, kind, place, writing)


__all__ = ["PLACES", "VALUES", "WRITINGS", "Canary", "conversations", "harmless", "planted"]
