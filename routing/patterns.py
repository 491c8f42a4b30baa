"""What in a text is sensitive, by pattern and checksum: cards, IBANs, national ids, e-mail addresses, telephone numbers, keys and tokens.

Takes normalised text (`readings`), returns kinds and never values. Names, addresses and health are not found: no pattern tells those.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator

from stdnum import iban
from stdnum.exceptions import ValidationError

from routing.idnumbers import CARD, NATIONAL_ID, PHONE, kinds_of_numbers
from routing.readings import has_blob

IBAN = "iban"
EMAIL = "email"
SECRET = "secret"  # noqa: S105 (the name of a kind)
KINDS = (CARD, IBAN, NATIONAL_ID, EMAIL, PHONE, SECRET)
_EMAIL = re.compile(r"@(?<=[\w.+%'-]@)(?:[\w-]{1,63}+\.){1,8}[^\W\d_]{2,24}")
_IBAN = re.compile(r"[0-9](?<=(?<![0-9A-Za-z])[A-Za-z]{2}[0-9])(?=([0-9](?:[ .\-\n]?[A-Za-z0-9]){11,30}))")
_IBAN_LENGTHS = range(15, 35)
_PHONES = (
    re.compile(r"\+(?<![0-9A-Za-z]\+)[1-9](?:[ ().\-/]{0,3}+[0-9]){7,14}+(?![0-9])"),
    re.compile(r"00(?<![0-9A-Za-z.,+-]00)(?<![0-9] 00)[1-9][0-9](?=[ ().\-/])(?:[ ().\-/]{0,3}+[0-9]){6,12}+(?![0-9])"),
)  # with + and with 00; as North America writes them, they are found among the numbers
_PHONE_WORDS = ("phone", "mobile", "mobil", "tel", "telefon", "téléphone", "fax", "handy", "whatsapp")
_CALLED = re.compile(r"(?![a-zà-ÿ])[^0-9\n]{1,20}\(?[0-9](?:[ ().\-/]{0,2}[0-9]){6,13}(?![0-9])")
_TOKENS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}"  # AWS
    r"|gh[pousr]_[A-Za-z0-9]{36}|github_pat_[A-Za-z0-9_]{22}|glpat-[A-Za-z0-9_-]{20}"
    r"|xox[abeoprs]-[A-Za-z0-9-]{10}|xapp-[A-Za-z0-9-]{10}"  # Slack
    r"|(?:sk|rk|pk)_(?:live|test)_[A-Za-z0-9]{16}|sk-(?=[A-Za-z_-]{0,40}[0-9])[A-Za-z0-9_-]{20}"  # Stripe; OpenAI, Anthropic
    r"|AIza[A-Za-z0-9_-]{35}|hf_[A-Za-z0-9]{30}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{50}|dop_v1_[0-9a-f]{64}"
    r"|ihk_[A-Za-z0-9_-]{24}"  # ours
    r")|(?<![A-Za-z0-9_-])eyJ[A-Za-z0-9_-]{10,}+\.eyJ[A-Za-z0-9_-]{10}"  # JWT
    r"|-----BEGIN [A-Z ]{0,24}PRIVATE KEY"
)
_TOKEN_STARTS = ("AKIA", "ASIA", "ABIA", "ACCA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "xox", "xapp-", "_live_",
                 "_test_", "sk-", "AIza", "hf_", "npm_", "pypi-", "dop_v1_", "ihk_", "eyJ", "-----B")  # fmt: skip
_SECRET_WORDS = ("passw", "pwd", "secret", "key", "token")
_OF_KEY = re.compile(r"(?:api|access|private|auth|account|secret)[_ .-]?$")  # not of every key
_ASSIGNED = re.compile(r"(?:or[dt]|d)?(?![a-z])[\"'`*\s]{0,4}(?:=>|[:=]|is\b|ist\b)[\"'`*\s]{0,4}([^\s\"'`,;<>{}\[\]]{8,64}+)")
_URL_PASSWORD = re.compile(r"://[^\s/:@\"']{0,64}+:([^\s/@\"']{3,128}+)@(?=[\w\[])")
_SEPARATORS = b" -_/()*|,\t\r\n\\\x7f" + bytes(range(9)) + bytes(range(14, 32))
_FOLD = bytes(
    ord("0") if chr(code).isdigit() else code | 0x20 if chr(code).isalpha() else code if code == ord(".") else ord("~")
    for code in (*range(128), *[0] * 128)
)  # fmt: skip
_ESCAPED_SPACE = re.compile(rb"\\[nrtbf]")
_MIN_BITS = 2.5  # entropy a character that a made-up password has and a word or `xxxxxxxx` has not


def kinds_in(text: str) -> set[str]:
    """The kinds that a normalised text holds. Only what can be there is looked for: that is told from the text's bytes, which is cheap."""
    data = text.encode("utf-8", "replace")
    folded = fold(data)
    found = _email(text)
    if has_number(folded):
        found |= kinds_of_numbers(text) | _iban(text) | _phone(text)
    if has_blob(data) or has_secret_word(folded) or "://" in text or "-----B" in text:
        found |= _secret(text)
    return found


def fold(data: bytes) -> bytes:
    """Letters small, digits 0, dots kept, other signs `~`, and away with what people put between digits: for the two looks below.

    Takes raw JSON as well as text: an escaped line break goes as a real one does.
    """
    if b"\\" in data:
        data = _ESCAPED_SPACE.sub(b"", data)
    return data.translate(_FOLD, _SEPARATORS)


def has_number(folded: bytes) -> bool:
    """Whether there are as many digits together as the shortest number that matters has."""
    return b"000000" in folded or b"0000000" in folded.translate(None, b".")


def has_secret_word(folded: bytes) -> bool:
    """Whether a word is there that stands before a password or a key."""
    return b"passw" in folded or b"secret" in folded or b"key~" in folded or b"pwd" in folded or b"token~" in folded


def _email(text: str) -> set[str]:
    return {EMAIL} if "@" in text and _EMAIL.search(text) else set()


def _iban(text: str) -> set[str]:
    return {IBAN} if any(_is_iban(text[found.start() - 2 : found.end()] + found[1]) for found in _IBAN.finditer(text)) else set()


def _is_iban(written: str) -> bool:
    """Whether the text starts with an IBAN: words may follow it without a sign of where it ends, so every length is tried."""
    letters = re.sub(r"[ .\-\n]", "", written).upper()
    return any(_valid_iban(letters[:length]) for length in _IBAN_LENGTHS if length <= len(letters))


def _valid_iban(letters: str) -> bool:
    try:
        iban.validate(letters, check_country=False)
    except ValidationError:
        return False
    return True


def _phone(text: str) -> set[str]:
    if any(shape.search(text) for shape in _PHONES):
        return {PHONE}
    small = text.lower()
    return {PHONE} if any(_CALLED.match(small, end) for word in _PHONE_WORDS for end in _ends(small, word)) else set()


def _ends(text: str, word: str) -> Iterator[int]:
    """Where a word ends, wherever it stands: looking for words one after the other is many times as fast as a pattern of them all."""
    at = text.find(word)
    while at >= 0:
        yield at + len(word)
        at = text.find(word, at + 1)


def _secret(text: str) -> set[str]:
    is_token = any(start in text for start in _TOKEN_STARTS) and _TOKENS.search(text)  # looking for all at once is five times slower
    return {SECRET} if is_token or _URL_PASSWORD.search(text) or _assigns_secret(text.lower()) else set()


def _assigns_secret(small: str) -> bool:
    """Whether something that looks made up stands behind a word for a password or key. Takes lower case."""
    for word in _SECRET_WORDS:
        for end in _ends(small, word):
            found = _ASSIGNED.match(small, end)
            if found and (word != "key" or _OF_KEY.search(small[max(0, end - 12) : end - 3])) and _is_random(found[1]):
                return True
    return False


def _is_random(value: str) -> bool:
    """Whether an assigned value looks made up: letters with digits or signs in them, and enough different ones."""
    if value.isalpha() or value.isdigit() or value.startswith(("$", "%", "os.", "process.")):
        return False
    counts = Counter(value).values()
    return -sum(n / len(value) * math.log2(n / len(value)) for n in counts) >= _MIN_BITS and any(map(str.isdigit, value))
