"""Detectors: what is planted is found wherever it hides, what is harmless is let be, and no body costs more than its length."""

import base64
import json
import logging
import os
import random
from pathlib import Path

import canaries
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from routing.detect import FAILED, KINDS, UNREAD, find, is_clean
from routing.patterns import kinds_in
from routing.readings import normalised


def body(text, **fields):
    return json.dumps({"model": "auto", "messages": [{"role": "user", "content": text}], **fields}).encode()


def kinds(text, **fields):
    return find(body(text, **fields))


def test_every_canary_is_found_in_every_place_and_writing():
    """6,156 conversations, a value of one kind planted in each of 38 places in 27 writings: none is missed (AISVS 9.6.5, 9.7.1)."""
    missed = [one for one in canaries.conversations() if one.kind not in find(one.body)]
    assert missed == []
    assert sum(1 for _ in canaries.conversations()) == len(canaries.VALUES) * len(canaries.PLACES) * len(canaries.WRITINGS) == 6156


def test_the_canaries_are_hidden_well_enough_to_be_missed():
    """Patterns over the raw body alone miss thousands of the same conversations: the proof above is no empty one."""
    missed = sum(one.kind not in kinds_in(one.body.decode()) for one in canaries.conversations())
    assert missed > 2000


def test_harmless_conversations_are_found_harmless():
    """The same places and writings with nothing sensitive in them raise nothing."""
    raised = {
        (place, writing): found
        for place in canaries.PLACES
        for writing in canaries.WRITINGS
        if (found := find(canaries.harmless(0, place, writing)))
    }
    assert raised == {}


@given(seed=st.integers(1, 10**9), kind=st.sampled_from(list(canaries.VALUES)), place=st.sampled_from(list(canaries.PLACES)),
       writing=st.sampled_from(list(canaries.WRITINGS)))  # fmt: skip
def test_other_values_are_found_too(seed, kind, place, writing):
    """The same for values that nobody has looked at."""
    one = canaries.planted(seed, kind, place, writing)
    assert kind in find(one.body)


fragments = st.lists(
    st.sampled_from([*"0123456789", "41", "4111", "@", ".", "-", " ", "\n", "a", "DE89", "pass", "word", "key", ": ",
                     "=", "+49", "%34", "&#52;", "\u00a0", "\u200b", "\uff14", "é", "“", "AKIA",
                     "eyJ", "b" * 20, "\\", '"', "text", "00"])
    | st.text(max_size=3),
    max_size=24,
)  # fmt: skip


@given(parts=fragments, ascii_only=st.booleans())
@example(parts=["AB 12 34 56 C"], ascii_only=True)
@example(parts=["4\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1\n1"], ascii_only=True)
@example(parts=["+33.1.42.68.53.00"], ascii_only=True)
def test_what_is_called_clean_holds_nothing(parts, ascii_only):
    """The cheap look over raw bytes never lets through what the whole look would find."""
    data = json.dumps({"messages": [{"content": "".join(parts)}]}, ensure_ascii=ascii_only).encode("utf-8", "replace")
    if is_clean(data):
        assert find(data, others=[lambda text: ()]) == frozenset()


@given(data=st.binary(max_size=300), form=st.booleans())
def test_any_bytes_at_all_have_kinds(data, form):
    """No body raises, and what is found has a known name."""
    assert find(data, form=form) <= {*KINDS, FAILED}


@given(text=st.text(max_size=200))
def test_reading_a_text_twice_changes_nothing(text):
    """A normalised text is its own normal form, and has no sign that is not seen."""
    once = normalised(text)
    assert normalised(once) == once


SAMPLES = [
    ("4111 1111 1111 1111", "card"), ("3782 822463 10005", "card"), ("5555-5555-5555-4444", "card"), ("(4111111111111111)", "card"),
    ("card_4111111111111111", "card"), ("DE89 3704 0044 0532 0130 00 is mine", "iban"), ("gb82west12345698765432", "iban"),
    ("MT84MALT011000012345MTLCAST001S", "iban"), ("078-05-1125", "national_id"), ("my SSN is 078051125", "national_id"),
    ("36574261809", "national_id"), ("12345678-Z", "national_id"), ("X1234567L", "national_id"), ("BSN: 111222333", "national_id"),
    ("943 476 5919", "national_id"), ("AB 12 34 56 C", "national_id"), ("2 95 10 99 126 111 93", "national_id"),
    ("PESEL 44051401359", "national_id"), ("390.533.447-05", "national_id"), ("jürgen@müller.de", "email"), ("A.B+c@d-e.co.uk.", "email"),
    ("+49 (0)30 1234567", "phone"), ("phone: 030 1234567", "phone"), ("(212) 555-0100", "phone"), ("0044 20 7946 0958", "phone"),
    ("AKIAIOSFODNN7EXAMPLE", "secret"), ("-----BEGIN OPENSSH PRIVATE KEY-----", "secret"), ("Password is Tr0ub4dor&3", "secret"),
    ('{"api_key": "9f8e7d6c5b4a39281706"}', "secret"), ("mysql://root:hunter2@db/x", "secret"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "kind"), SAMPLES)
def test_a_sample_of_each_kind_is_found(text, kind):
    """Each of these is of its kind, in a sentence and as a key."""
    assert kind in kinds(f"Please note {text}")
    assert kind in kinds("hello", metadata={text: 1})


HARMLESS = [
    "4111 1111 1111 1112", "1234567890123456", "DE89 3704 0044 0532 0130 01", "000-12-3456", "order 36574261890", "12345678A", "@dataclass",
    "2026-11-25T12:30:00Z to 2027-01-31", "192.168.100.200", "550e8400-e29b-41d4-a716-446655440000",
    "0.4111111111111111", "3.14159265358979",
    "max_tokens: 4096, temperature 0.7", "the key: a good night's sleep", "password: ********", "the token is spent", "EUR 1,234,567.89",
    "lodash@4.17.21", "50% of 100%", "R&D && QA", "d41d8cd98f00b204e9800998ecf8427e", "AB123456",
    "see section 4.1.1.1.1", "1 2 3 4 5 6 7 8 9 10",
    "internationalization_and_localization", "https://example.com/a/very/long/path/that_goes_on?and=on", "call 911",
    "+1", "C++17 +20", "C2026",
]  # fmt: skip


@pytest.mark.parametrize("text", HARMLESS)
def test_what_only_looks_sensitive_is_let_be(text):
    """Wrong checksums, dates, versions, decimals, hashes and words are nothing."""
    assert kinds(f"Please note {text} there") == frozenset()


def test_a_body_that_only_others_can_read_is_failed():
    """A number beyond any float is taken by engines and not by us: what was cut over parts can't be put together, so nothing is known."""
    parts = [{"type": "text", "text": "4111 1111 11"}, {"type": "text", "text": "11 1111"}]
    assert find(body(parts).replace(b'"auto"', b'"auto","x":1e999')) == {FAILED}


def test_a_number_in_json_is_looked_at():
    """A value needs no quotes to be found."""
    assert find(b'{"model":"a","metadata":{"n":4111111111111111}}') == {"card"}


def test_the_first_of_two_equal_keys_is_looked_at():
    """What a JSON reader drops is sent all the same, so it counts."""
    assert find(b'{"model":"a","x":"4111111111111111","x":"gone"}') == {"card"}


def test_files_that_cannot_be_read_are_unread():
    """An image, an archive or anything encrypted is not clean, only not looked into, whether in one line or in many."""
    noise = random.Random(1).randbytes(4000)
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(noise).decode()}}
    assert find(body([{"type": "text", "text": "what is this?"}, picture])) == {UNREAD}
    assert kinds(base64.encodebytes(noise).decode()) == {UNREAD}
    assert kinds(noise.hex()) == {UNREAD}


def test_a_file_that_starts_with_text_is_unread():
    """A PDF opens with words; what it says is compressed and comes later."""
    pdf = b"%PDF-1.7\n1 0 obj << /Type /Catalog /Pages 2 0 R >> endobj 2 0 obj << /Type /Pages /Kids [3 0 R] /Count 1 >> endobj "
    pdf += b"4 0 obj << /Filter /FlateDecode >> stream\n" + random.Random(1).randbytes(3000)
    pdf += b"\nendstream endobj mail ann@example.com"
    assert kinds(base64.b64encode(pdf).decode()) == {UNREAD, "email"}
    assert kinds(base64.encodebytes(pdf).decode()) == {UNREAD, "email"}


def test_long_lines_of_one_sign_are_no_files():
    """A ruler or a long number decodes to something, and is nothing."""
    assert kinds("-" * 500 + "\n" + "_" * 500 + "\n" + "0123456789" * 50) == frozenset()


def test_parts_without_a_type_are_joined():
    """Engines tell a part's type from its keys, so a value cut over two of them is found."""
    assert kinds([{"text": "4111 1111 11"}, {"text": "11 1111"}]) == {"card"}
    assert is_clean(body([{"type": "text", "text": "4111 1111 11"}]).replace(b"4111 1111 11", b"one part"))


def test_a_value_beside_a_file_is_found():
    """A file that can't be read hides nothing else."""
    noise = base64.b64encode(random.Random(1).randbytes(200_000)).decode()
    assert kinds(f"{noise} 4111 1111 1111 1111 {noise}") == {"card", UNREAD}


def test_a_value_across_pieces_is_found():
    """Long texts are read in pieces that overlap: a value is found wherever it is."""
    noise = base64.b64encode(random.Random(1).randbytes(4 << 20)).decode()
    assert kinds(f"{noise} 4111 1111 1111 1111") == {"card", UNREAD}
    for at in (65_400, 65_530, 65_536, 130_000):
        assert kinds("word " * (at // 5) + "4111 1111 1111 1111" + " word" * 20_000) == {"card"}


def test_encodings_deeper_than_are_read_are_unread():
    """Base64 in base64 in base64 is read; a fourth time is not clean."""
    text = "value: 4111 1111 1111 1111"
    for depth, found in ((1, "card"), (2, "card"), (3, "card"), (4, UNREAD), (6, UNREAD)):
        hidden = text
        for _ in range(depth):
            hidden = base64.b64encode(hidden.encode()).decode()
        assert found in kinds(hidden), depth


@pytest.mark.parametrize("prompt", [[15339, 1917, 889], [[15339, 1917, 889, 2], [1, 2]]])
def test_token_ids_are_unread(prompt):
    """A prompt of token numbers says something that nobody here can read."""
    assert find(json.dumps({"model": "a", "prompt": prompt}).encode()) == {UNREAD}


def test_more_text_than_is_read_is_unread():
    """Behind four million characters nothing is looked at, and that is said."""
    assert UNREAD in kinds("a@b.de" + "some words " * 400_000)


def form(**fields):
    parts = [f'--b\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'.encode() + value + b"\r\n" for name, value in fields.items()]
    return b"".join(parts) + b"--b--\r\n"


def test_a_form_is_unread_and_its_fields_are_read():
    """Audio can't be looked into; the fields and the names of files can."""
    noise = random.Random(1).randbytes(3000)
    assert find(form(model=b"w", file=noise), form=True) == {UNREAD}
    assert find(form(model=b"w", file=noise, prompt=b"call +49 30 12345678"), form=True) == {UNREAD, "phone"}
    named = form(model=b"w", file=noise).replace(b'name="file"', b'name="file"; filename="ann@example.com.wav"')
    assert find(named, form=True) == {UNREAD, "email"}


def test_a_detector_that_fails_is_a_kind_and_is_logged_without_the_text(caplog):
    """Whatever a detector raises, the request is `failed`; the log says which error and not what it was about (AISVS 9.7.1)."""

    def broken(text):
        raise RuntimeError(text)

    with caplog.at_level(logging.ERROR):
        assert FAILED in find(body("nothing special"), others=[broken])
    assert "RuntimeError" in caplog.text
    assert "special" not in caplog.text


def test_another_detector_sees_normalised_readings():
    """A plug-in gets every reading, decoded and normalised, of clean bodies too."""
    seen = []

    def other(text):
        seen.append(text)
        return {"name"} if "Ann" in text else ()

    hidden = base64.b64encode(b"the name is Ann Keller").decode()
    assert find(body(f"look: {hidden} \uff21nn"), others=[other]) == {"name"}
    assert any("the name is Ann Keller" in text for text in seen)
    assert any("look" in text and "Ann" in text for text in seen)


HOSTILE = [
    b"1", b"1 ", b"4111 ", b"1.", b"212-", b"a@", b"a@a.", b"a.", b"_eyJ", b"eyJaaaaaaaaaaaa.", b"password=",
    b" sk-a_", b"+1", b"\\\\", b"\\u0031",
    b"DE12", b"DE12 ", b"://a:", b"-----BEGIN ", b"%34", b"&#52;", b"&", b"tel 1", b"00", b"0011 ", b"\\n", b'\\"',
    b"ab", b"abcdefghijabcdefghij ",
    "a\u0301\u0327".encode(), "1\u200b".encode(), "\uff11".encode(), "\U0001d7ce".encode(), b"(212)", b"X1234567", b"AB 12 34 56 ",
]  # fmt: skip


@pytest.mark.parametrize("piece", HOSTILE, ids=repr)
def test_hostile_bodies_are_read_in_linear_time(piece):
    """Half a megabyte made to be slow is read in a second or so; where the cost were quadratic, this suite would hang."""
    text = (piece * (500_000 // len(piece))).decode()
    assert find(f'{{"model":"a","x":"{text}"}}'.encode()) <= set(KINDS)


def test_sixteen_mebibytes_of_digits_are_read():
    """The largest body that a router takes is looked at as far as it is read."""
    assert find(b'{"model":"a","x":"' + b"7 " * (8 << 20) + b'"}') == {UNREAD}
    assert find(b'{"model":"a","x":"' + b"7" * (16 << 20) + b'"}') == {UNREAD}


def test_a_large_random_file_is_no_personal_data():
    """Noise of four mebibytes holds no address by accident."""
    assert kinds(base64.b64encode(os.urandom(4 << 20)).decode()) == {UNREAD}


def test_ordinary_text_is_let_be():
    """Of the requests of all eval suites those are flagged that give a telephone number or an address, and no others: no false alarm."""
    suites = Path(__file__).parents[2] / "evals" / "suites"
    asked = [json.loads(line)["messages"] for file in suites.glob("*/cases.jsonl") for line in file.read_text().splitlines()]
    assert len(asked) >= 900
    flagged = [(str(messages), found) for messages in asked if (found := find(json.dumps({"messages": messages}).encode()))]
    phones = [text for text, found in flagged if found == {"phone"}]
    emails = [text for text, found in flagged if found == {"email"}]
    assert len(phones) == sum("phone number to 555" in str(messages) for messages in asked) > 0
    assert len(emails) == sum("@example.com" in str(messages) for messages in asked) > 0
    assert len(phones) + len(emails) == len(flagged)
