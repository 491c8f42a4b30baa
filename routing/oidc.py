"""Bearer tokens of an OIDC issuer as a second way in: signature, issuer, audience and times are checked, claims become a `Caller`.

Keys are public ones alone, and each is used with the algorithms of its own kind: neither `none` nor a public key taken for a shared secret
gets in. Sessions, logins and revocation lists are the issuer's; a token that was stolen works until it ends.
"""

import asyncio
import hashlib
import logging
import re
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec

from routing.budgets import Budget, budgets_of
from routing.config import Grant, Oidc
from routing.errors import Unauthorized
from routing.keys import Caller
from routing.upstream import Origin, Pool, Timeouts, UpstreamError

log = logging.getLogger("inhouse.oidc")
Fetch = Callable[[], Awaitable[bytes]]
_LEEWAY_S = 30.0  # that clocks may differ
_FRESH_S = 300.0
_UNKNOWN_EVERY_S = 10.0  # between two fetches for key ids that nobody knows: a flood of them costs the issuer six a minute
_KEPT_TOKENS = 4096
_KEYS_BYTES = 1 << 20
_TOKEN_BYTES = 16 << 10
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@:|+/-]{0,127}")  # it goes into the ledger, budgets and metrics
_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_CURVES = {"P-256": ("ES256",), "P-384": ("ES384",), "P-521": ("ES512",), "Ed25519": ("EdDSA",)}
_LEAST_RSA_BITS = 2048
_TIMEOUTS = Timeouts(3.0, 5.0, 5.0, 10.0)
_DO = "get a new one from your issuer, or send an API key"


class Key(NamedTuple):
    """A public key of the issuer, and the algorithms that it may be used with."""

    public: Any
    algorithms: tuple[str, ...]


def is_token(value: bytes) -> bool:
    """Whether a bearer value is a signed token, not an API key: three parts, the first a JSON object in base64url."""
    return value.startswith(b"eyJ") and value.count(b".") == 2


def fetch_through(pool: Pool, jwks: str) -> Fetch:
    """What gets the key set: a GET by the router's own client for a URL, a read in a thread for a file."""
    return (lambda: _get(pool, jwks)) if "://" in jwks else (lambda: asyncio.to_thread(Path(jwks).read_bytes))


async def _get(pool: Pool, url: str) -> bytes:
    origin, parts = Origin.of(url), urlsplit(url)
    query = f"?{parts.query}" if parts.query else ""
    request = f"GET {parts.path or '/'}{query} HTTP/1.1\r\nhost: {origin.authority}\r\naccept: application/json\r\n\r\n".encode()
    answer = await pool.send(origin, request, _TIMEOUTS)
    try:
        body = await answer.body(_KEYS_BYTES)
    finally:
        answer.release()
    if answer.status != 200:
        raise OSError(f"the issuer answered {answer.status} for its keys")
    return body


class Tokens:
    """One worker's view of the issuer. `refresh` must be called once before the first request, and every second after.

    `team_limits` is asked for the budgets of a caller's team, at every request: they change without the token.
    """

    def __init__(
        self, oidc: Oidc, fetch: Fetch, *, team_limits: Callable[[str], tuple[Budget, ...]] = lambda team: (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._team_limits = team_limits
        self._oidc = oidc
        self._fetch = fetch
        self._clock = clock
        self._keys: dict[str, Key] = {}
        self._raw = b""
        self._fetched_at = -_FRESH_S
        self._lock = asyncio.Lock()
        self._callers: OrderedDict[bytes, Caller] = OrderedDict()

    async def refresh(self, *, older_than_s: float = _FRESH_S) -> None:
        """Fetches the keys where what is known is older. Where that fails the keys that are known stay in force, and the log says so."""
        async with self._lock:  # whoever waited finds them fresh
            if self._clock() - self._fetched_at < older_than_s:
                return
            self._fetched_at = self._clock()
            try:
                raw = await self._fetch()
                if raw != self._raw:
                    self._keys = await asyncio.to_thread(read_keys, raw, self._oidc.algorithms)
                    self._raw = raw
                    self._callers.clear()  # a token whose key is gone must not live on
            except (OSError, UpstreamError, ValueError) as error:
                log.warning("oidc: can't read the keys at %s (%s); going on with the %d that are known", self._oidc.jwks,
                            type(error).__name__, len(self._keys))  # fmt: skip

    async def identify(self, token: bytes) -> Caller:
        """Whose token this is; the same object while nothing changes. Raises `Unauthorized`, which says nothing of the keys."""
        digest = hashlib.sha256(token).digest()
        caller = self._callers.get(digest) or await self._verified(token)
        if caller.team_limits != (limits := self._team_limits(caller.team)):
            caller = caller._replace(team_limits=limits)
        self._callers[digest] = caller
        if len(self._callers) > _KEPT_TOKENS:
            self._callers.popitem(last=False)
        if caller.expires_at < time.time():
            raise Unauthorized(f"this token has expired; {_DO}")
        return caller

    async def _verified(self, token: bytes) -> Caller:
        import jwt

        if len(token) > _TOKEN_BYTES:
            raise Unauthorized(f"this token is {len(token)} bytes; at most {_TOKEN_BYTES} are taken")
        try:
            head = jwt.get_unverified_header(token)
        except jwt.InvalidTokenError as error:
            raise Unauthorized(f"this token can't be read; {_DO}") from error
        key = await self._key(head.get("kid"))
        try:
            claims = jwt.decode(token, key.public, algorithms=list(key.algorithms), audience=self._oidc.audience, issuer=self._oidc.issuer,
                                leeway=_LEEWAY_S, options={"require": ["exp", "iss", "aud", self._oidc.caller]})  # fmt: skip
        except jwt.InvalidTokenError as error:
            raise Unauthorized(f"this token is not taken ({_REASONS.get(type(error).__name__, 'it is not valid')}); {_DO}") from error
        return caller_of(self._oidc, claims)

    async def _key(self, kid: str | None) -> Key:
        if kid is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        if kid not in self._keys:
            await self.refresh(older_than_s=_UNKNOWN_EVERY_S)
        if kid not in self._keys:
            raise Unauthorized(f"this token was signed with a key that the issuer does not show; {_DO}")
        return self._keys[kid]


_REASONS = {
    "ExpiredSignatureError": "it has expired",
    "ImmatureSignatureError": "it is not valid yet",
    "InvalidIssuedAtError": "it was issued in the future",
    "InvalidAudienceError": "it is meant for another audience",
    "InvalidIssuerError": "it is from another issuer",
    "MissingRequiredClaimError": "a claim is missing",
    "InvalidSignatureError": "its signature is not true",
    "InvalidAlgorithmError": "it is signed in a way that is not taken",
}


def read_keys(raw: bytes, algorithms: tuple[str, ...]) -> dict[str, Key]:
    """The public signing keys of a key set, by key id; what is none, or weak, is passed over. Raises `ValueError` for no key set."""
    document = msgspec.json.decode(raw)  # its error is a ValueError
    if not isinstance(document, dict) or not isinstance(document.get("keys"), list):
        raise ValueError("not a key set")  # noqa: TRY004 (what came is wrong, no argument of ours)
    found = {}
    for one in document["keys"]:
        if isinstance(one, dict) and one.get("use", "sig") == "sig" and (key := _read_key(one, algorithms)):
            found[str(one.get("kid", ""))] = key
    return found


def _read_key(one: dict[str, Any], algorithms: tuple[str, ...]) -> Key | None:
    import jwt

    kind = _CURVES.get(str(one.get("crv")), ()) if one.get("kty") in ("EC", "OKP") else _RSA if one.get("kty") == "RSA" else ()
    usable = tuple(name for name in algorithms if name in kind and one.get("alg", name) == name)
    if not usable or "d" in one:  # a private key that is shown to the world is nobody's
        return None
    try:
        public = jwt.PyJWK(one, usable[0]).key
    except (jwt.PyJWTError, ValueError, TypeError, KeyError):
        log.warning("oidc: a key of the issuer makes no sense and is passed over")
        return None
    if kind is _RSA and public.key_size < _LEAST_RSA_BITS:
        log.warning("oidc: an RSA key of the issuer has %d bits and is passed over; %d are the least", public.key_size, _LEAST_RSA_BITS)
        return None
    return Key(public, usable)


def caller_of(oidc: Oidc, claims: Mapping[str, Any]) -> Caller:
    """Who calls, with what the first grant that fits opens. Callers are named `oidc/<claim>`, so that none spends another's budget.

    Raises `Unauthorized` where none fits, or the name can't be one.
    """
    name = claims.get(oidc.caller)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise Unauthorized(f"the token's `{oidc.caller}` can't name a caller: it must be letters, digits and . _ @ : | + / -, at most 128")
    for grant in oidc.grants:
        if _fits(grant, claims):
            return Caller(f"oidc/{name}", f"oidc/{name}", frozenset(grant.tasks), frozenset(grant.models), float(claims["exp"]) + _LEEWAY_S,
                          team=grant.team, default_class=grant.default_class, max_class=grant.max_class,
                          limits=budgets_of(grant.budgets), is_batch=grant.batch)  # fmt: skip
    raise Unauthorized("this token opens nothing here: ask the administrator for a grant (`oidc.grants` in routes.yaml)")


def _fits(grant: Grant, claims: Mapping[str, Any]) -> bool:
    """Whether a claim is the grant's value, or a list that has it. `realm_access.roles` looks into an object, as Keycloak's tokens have."""
    value: Any = claims
    for part in [grant.claim] if grant.claim in claims else grant.claim.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value == grant.value or (isinstance(value, list) and grant.value in value)
