"""Bearer tokens of a real local issuer: an HTTP server with real RSA and EC keys. OWASP AISVS C5 (identity)."""

import asyncio
import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from routing.budgets import budgets_of
from routing.config import Grant, Oidc, read_site
from routing.errors import Unauthorized
from routing.oidc import Tokens, fetch_through, is_token, read_keys
from routing.upstream import Pool
from serving.catalog import SHIPPED, ConfigError, read_catalog

ISSUER = "https://sso.example.test/realms/house"
RSA_KEYS = {name: rsa.generate_private_key(public_exponent=65537, key_size=2048) for name in ("one", "two")}
EC_KEY = ec.generate_private_key(ec.SECP256R1())


class Issuer:
    """Shows its key set at a real address, counts who asks, and signs tokens."""

    def __init__(self):
        self.shown = {"one": RSA_KEYS["one"], "curve": EC_KEY}
        self.extra = []
        self.status = 200
        self.asked = 0
        issuer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                issuer.asked += 1
                body = issuer.key_set()
                self.send_response(issuer.status if self.path == "/certs/?kind=jwks" else 404)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/certs/?kind=jwks"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def key_set(self):
        """The public keys as RFC 7517 has them."""
        keys = []
        for kid, key in self.shown.items():
            algorithm = ECAlgorithm if kid == "curve" else RSAAlgorithm
            keys.append({**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid, "use": "sig"})
        return json.dumps({"keys": keys + self.extra}).encode()


def token(kid="one", *, key=None, algorithm=None, head=None, **claims):
    """A token of the issuer, signed with the key of that id."""
    now = int(time.time())
    told = {"iss": ISSUER, "aud": "inhouse", "sub": "ann", "iat": now, "nbf": now, "exp": now + 300, "groups": ["staff", "ml"], **claims}
    told = {name: value for name, value in told.items() if value is not None}
    algorithm = algorithm or ("ES256" if kid == "curve" else "RS256")
    return jwt.encode(told, key or {**RSA_KEYS, "curve": EC_KEY}[kid], algorithm, {"kid": kid, **(head or {})}).encode()


@pytest.fixture
def issuer():
    """A running issuer."""
    made = Issuer()
    yield made
    made.server.shutdown()
    made.server.server_close()


class Clock:
    """Seconds that pass when a test says so."""

    now = 1000.0

    def __call__(self):
        return self.now


def config(jwks, **more):
    """The shipped shape: a group opens the task of a team."""
    grants = (Grant(claim="groups", value="ml", team="ml", tasks=("extraction",), max_class="internal", budgets=("1usd/day",), batch=True),
              Grant(claim="realm.roles", value="admin", tasks=("*",), models=("*",)))  # fmt: skip
    return Oidc(**{"issuer": ISSUER, "audience": "inhouse", "jwks": jwks, "grants": grants, **more})


@pytest.fixture
async def tokens(issuer):
    """A worker's view of the issuer, through the router's own client, with a clock that stands still."""
    pool = Pool()
    made = Tokens(config(issuer.url), fetch_through(pool, issuer.url), clock=Clock())
    await made.refresh()
    yield made
    pool.close()
    await asyncio.sleep(0)


@pytest.mark.parametrize("kid", ["one", "curve"])
async def test_a_true_token_is_a_caller(tokens, kid):
    """RSA and EC: named by the claim, with what the first grant that fits opens, until it ends."""
    assert is_token(token(kid))
    caller = await tokens.identify(token(kid))
    assert (caller.name, caller.team, caller.max_class, caller.is_batch) == ("oidc/ann", "ml", "internal", True)
    assert [str(limit) for limit in caller.limits] == ["1usd/day"]
    assert (caller.tasks, caller.models) == ({"extraction"}, set())
    assert time.time() + 250 < caller.expires_at < time.time() + 340


async def test_claims_may_lie_in_objects_and_no_grant_opens_nothing(tokens):
    """Keycloak's roles lie within an object; a token that fits no grant is refused."""
    assert (await tokens.identify(token(groups=None, realm={"roles": ["admin"]}))).may_use_model("any")
    for groups in (["staff"], "staff", None, {"ml": 1}):
        with pytest.raises(Unauthorized, match="opens nothing"):
            await tokens.identify(token(groups=groups))


@pytest.mark.parametrize(("claims", "said"), [
    ({"exp": 1}, "expired"), ({"exp": None}, "missing"), ({"nbf": 2**33}, "not valid yet"), ({"iat": 2**33}, "not valid yet|in the future"),
    ({"aud": "other"}, "another audience"), ({"aud": None}, "missing"), ({"aud": ["a", "b"]}, "another audience"),
    ({"iss": "https://evil.test"}, "another issuer"), ({"iss": None}, "missing"), ({"sub": None}, "missing"),
    ({"sub": "a b\nc"}, "can't name"), ({"sub": "x" * 200}, "can't name"),
])  # fmt: skip
async def test_wrong_claims_are_refused_with_their_reason(tokens, claims, said):
    """Expired, early, for or from others, nameless."""
    with pytest.raises(Unauthorized, match=said):
        await tokens.identify(token(**claims))


def unsigned(head, *, secret=None):
    """A token made by hand, as an attacker would, signed with a shared secret or not at all."""
    def part(value):
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    now = int(time.time())
    body = part(head) + b"." + part({"iss": ISSUER, "aud": "inhouse", "sub": "ann", "exp": now + 300, "groups": ["ml"]})
    if secret is None:
        return body + b"."
    import hashlib
    import hmac

    return body + b"." + base64.urlsafe_b64encode(hmac.digest(secret, body, hashlib.sha256)).rstrip(b"=")


async def test_algorithms_can_not_be_confused(tokens):
    """`none`, a public key taken for a shared secret, a key used with another kind's algorithm: all refused, also by their spelling."""
    public = RSA_KEYS["one"].public_key()
    forged = [unsigned({"alg": name, "kid": kid}) for name in ("none", "None", "nOnE", "", "RS256") for kid in ("one", "curve")]
    for form in (serialization.Encoding.PEM, serialization.Encoding.DER):
        secret = public.public_bytes(form, serialization.PublicFormat.SubjectPublicKeyInfo)
        forged.append(unsigned({"alg": "HS256", "kid": "one"}, secret=secret))
    forged.append(unsigned({"alg": "HS256", "kid": ""}, secret=b""))
    forged.append(unsigned({"alg": "HS256", "kid": "one", "jwk": {"kty": "oct", "k": "AA"}}, secret=b"\0"))
    forged.append(token("curve", key=RSA_KEYS["one"], algorithm="RS256"))
    forged.append(token("one", key=EC_KEY, algorithm="ES256"))
    forged.append(token("one", key=RSA_KEYS["two"]))
    forged.append(token("one", head={"crit": ["b64"], "b64": False}))
    forged.append(token("one", algorithm="RS512"))  # not on the list
    for one in forged:
        with pytest.raises(Unauthorized):
            await tokens.identify(one)


async def test_a_changed_token_is_refused(tokens):
    """A flipped character anywhere in claims or signature."""
    good = token()
    for at in range(len(good.split(b".")[0]) + 1, len(good) - 2, 37):
        bad = good[:at] + (b"A" if good[at : at + 1] != b"A" else b"B") + good[at + 1 :]
        with pytest.raises(Unauthorized):
            await tokens.identify(bad)
    for junk in (b"eyJ..", b"eyJhIjoxfQ..", b"eyJ" + b"a" * 20_000 + b".b.c", b"eyJ\xff.a.b"):
        with pytest.raises(Unauthorized):
            await tokens.identify(junk)


async def test_keys_rotate(tokens, issuer):
    """A new key is fetched when a token first names it; a key that is withdrawn opens nothing, also to tokens seen before."""
    old = token("one")
    assert await tokens.identify(old)
    issuer.shown = {"two": RSA_KEYS["two"]}
    with pytest.raises(Unauthorized, match="does not show"):
        await tokens.identify(token("two"))  # asked a moment ago
    tokens._clock.now += 11
    assert (await tokens.identify(token("two"))).name == "oidc/ann"
    with pytest.raises(Unauthorized, match="does not show"):
        await tokens.identify(old)
    assert issuer.asked == 2


async def test_a_teams_budgets_follow_the_team(issuer):
    """They are the store's, not the token's: they change while it is used; else the caller is one and the same."""
    pool = Pool()
    limits = {"ml": budgets_of(["5usd/day"])}
    tokens = Tokens(config(issuer.url), fetch_through(pool, issuer.url), team_limits=lambda team: limits.get(team, ()))
    await tokens.refresh()
    good = token()
    first = await tokens.identify(good)
    assert first.team_limits == limits["ml"] and await tokens.identify(good) is first
    limits["ml"] = budgets_of(["1usd/day"])
    assert (await tokens.identify(good)).team_limits == limits["ml"]
    pool.close()
    await asyncio.sleep(0)


async def test_a_flood_of_unknown_key_ids_asks_the_issuer_once(tokens, issuer):
    """Two hundred at once, in the same ten seconds, cost one fetch; after that one more for the next ten."""
    tokens._clock.now += 11
    forged = [token(f"no-{i}", key=RSA_KEYS["two"], algorithm="RS256") for i in range(20)] * 10
    refused = await asyncio.gather(*(tokens.identify(one) for one in forged), return_exceptions=True)
    assert all(isinstance(one, Unauthorized) for one in refused)
    assert issuer.asked == 2


async def test_an_issuer_that_is_away_changes_nothing(tokens, issuer):
    """Errors and nonsense in place of keys: the keys that are known stay in force."""
    for status, extra in ((500, []), (200, ["junk"])):
        issuer.status = status
        issuer.extra = extra
        tokens._clock.now += 301
        await tokens.refresh()
        assert await tokens.identify(token("one"))
    assert issuer.asked == 3


async def test_keys_are_read_from_a_file(issuer, tmp_path):
    """Air-gapped: the key set is a file, and is read again when it is older than it may be."""
    file = tmp_path / "jwks.json"
    file.write_bytes(issuer.key_set())
    pool = Pool()
    tokens = Tokens(config(str(file)), fetch_through(pool, str(file)), clock=Clock())
    await tokens.refresh()
    assert await tokens.identify(token())
    pool.close()


def test_only_strong_public_signing_keys_are_taken(issuer):
    """Shared secrets, short RSA keys, private keys, encryption keys and nonsense are passed over."""
    short = json.loads(RSAAlgorithm.to_jwk(rsa.generate_private_key(public_exponent=65537, key_size=1024).public_key()))
    private = json.loads(RSAAlgorithm.to_jwk(RSA_KEYS["two"]))
    good = json.loads(RSAAlgorithm.to_jwk(RSA_KEYS["two"].public_key()))
    issuer.extra = [{"kty": "oct", "k": "c2VjcmV0", "kid": "a"}, {**short, "kid": "b"}, {**private, "kid": "c"}, 7,
                    {**good, "use": "enc", "kid": "d"}, {**good, "alg": "RSA-OAEP", "kid": "e"}, {"kty": "RSA", "n": "?", "kid": "f"},
                    {**good, "alg": "PS256", "kid": "g"}]  # fmt: skip
    found = read_keys(issuer.key_set(), config("f").algorithms)
    assert {kid: key.algorithms for kid, key in found.items()} == {"one": ("RS256", "PS256"), "curve": ("ES256",), "g": ("PS256",)}
    with pytest.raises(ValueError, match="key set"):
        read_keys(b"[]", ("RS256",))


@pytest.mark.parametrize(("change", "said"), [
    ("algorithms: [HS256]", "private key"), ("algorithms: []", "private key"), ("jwks: http://sso.example.test/certs", "https"),
    ("audience: ''", "audience"), ("grants: [{claim: g, value: v, tasks: [extracton]}]", "extraction"), ("grants: []", "grants"),
    ("grants: [{claim: g, value: v, budgets: [1eur]}]", "is not a budget"),
])  # fmt: skip
def test_the_configuration_is_checked(tmp_path, change, said):
    """What would let strangers in, or names what is not there, is an error of routes.yaml."""
    settings = {"issuer": "https://i.test", "audience": "a", "jwks": "https://i.test/c", "grants": "[{claim: g, value: v}]"}
    lines = {**settings, **dict([change.split(": ", 1)])}
    text = "default_task: extraction\ntasks: [{name: extraction, candidates: [{model: demo-extractor}]}]\noidc:\n"
    file = tmp_path / "routes.yaml"
    file.write_text(text + "".join(f"  {name}: {value}\n" for name, value in settings.items()))
    assert read_site(file, read_catalog(SHIPPED)).routes.oidc.algorithms == ("RS256", "PS256", "ES256", "EdDSA")
    file.write_text(text + "".join(f"  {name}: {value}\n" for name, value in lines.items()))
    with pytest.raises(ConfigError, match=said):
        read_site(file, read_catalog(SHIPPED))
