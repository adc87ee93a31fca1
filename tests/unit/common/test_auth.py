import asyncio
import base64
import json
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joserfc import jws, jwt
from joserfc.jwk import ECKey, OctKey, RSAKey

from services.common.auth import Claims, TokenVerifier, require
from services.common.errors import DomainError

NOW = 1_800_000_000
AUDIENCE = "order-backend"
USER = "0b0f5a52-7d0e-4d6e-9a53-0d3a7a6f0001"
MISSING: Any = object()  # a claim or header member to leave out

Key = ECKey | RSAKey


class Clock:
    """Time that passes when told to; drives both clocks of a verifier."""

    def __init__(self) -> None:
        self.now = float(NOW)

    def __call__(self) -> float:
        return self.now


class Issuer:
    """A real HTTP server on a free port that publishes what the test says and counts what is fetched."""

    def __init__(self, *keys: Key) -> None:
        self.jwks: list[Any] = [key.as_dict(private=False) for key in keys]
        self.fetched = 0
        self.answers = asyncio.Event()
        self.answers.set()
        self.asked = asyncio.Event()
        self.drips = False
        self.discovered_issuer: str | None = None
        self._server: asyncio.Server | None = None
        self._port = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port)
        self._port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()
            self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1]
        document: dict[str, Any]
        if path == b"/jwks.json":
            document = {"keys": self.jwks}
        else:
            self.fetched += 1
            self.asked.set()
            document = {"issuer": self.discovered_issuer or self.url, "jwks_uri": f"{self.url}/jwks.json"}
        await self.answers.wait()
        if self.drips:
            await self._drip(writer)
            return
        body = json.dumps(document).encode()
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        await writer.drain()
        writer.close()

    async def _drip(self, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
        with suppress(ConnectionError):
            while True:
                writer.write(b" ")
                await writer.drain()
                await asyncio.sleep(0.005)


ES_KEY = ECKey.generate_key("P-256", {"use": "sig", "alg": "ES256"}, auto_kid=True)
RS_KEY = RSAKey.generate_key(2048, {"use": "sig", "alg": "RS256"}, auto_kid=True)
STRANGER = ECKey.generate_key("P-256", auto_kid=True)


def signed(
    issuer: Issuer, *, key: Key = ES_KEY, alg: str = "ES256", header: dict[str, Any] | None = None, **claims: Any
) -> str:
    """Return an Authorization header with a really signed token, some of its members changed."""
    full_header = {"alg": alg, "typ": "at+jwt", "kid": key.kid, **(header or {})}
    full_claims = {"iss": issuer.url, "aud": AUDIENCE, "sub": USER, "exp": NOW + 3600, "scope": "orders:read", **claims}
    return "Bearer " + jws.serialize_compact(
        {name: value for name, value in full_header.items() if value is not MISSING},
        json.dumps({name: value for name, value in full_claims.items() if value is not MISSING}),
        key,
        registry=jws.JWSRegistry(algorithms=[alg], strict_check_header=False),
    )


def b64(value: Any) -> str:
    raw = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


@pytest.fixture(scope="module", autouse=True)
def no_trusted_roots(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """All is plain HTTP here, and reading the roots takes each verifier 20 ms."""
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("SSL_CERT_FILE", raising=False)
        environment.setenv("SSL_CERT_DIR", str(tmp_path_factory.mktemp("no-roots")))
        yield


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    issuer = Issuer(ES_KEY, RS_KEY)
    await issuer.start()
    yield issuer
    issuer.answers.set()
    await issuer.stop()


@pytest.fixture
def clock() -> Clock:
    return Clock()


MakeVerifier = Callable[..., TokenVerifier]


@pytest.fixture
async def make_verifier(issuer: Issuer, clock: Clock) -> AsyncIterator[MakeVerifier]:
    made: list[TokenVerifier] = []

    def make(**options: Any) -> TokenVerifier:
        made.append(TokenVerifier(issuer.url, AUDIENCE, clock, monotonic=clock, **options))
        return made[-1]

    yield make
    for verifier in made:
        await verifier.aclose()


@pytest.fixture
def verifier(make_verifier: MakeVerifier) -> TokenVerifier:
    return make_verifier()


async def refusal(answer: Awaitable[Claims]) -> DomainError:
    with pytest.raises(DomainError) as caught:
        await answer
    return caught.value


async def assert_invalid_token(verifier: TokenVerifier, authorization: str) -> None:
    error = await refusal(verifier.verify(authorization))
    assert (error.code, error.status) == ("unauthenticated", 401)
    assert error.headers["WWW-Authenticate"].startswith('Bearer error="invalid_token", error_description="')
    assert error.headers["WWW-Authenticate"].isprintable()
    assert error.headers["WWW-Authenticate"].isascii()
    assert error.headers["WWW-Authenticate"].count('"') == 4
    assert verifier.recall(authorization) is None


async def fetch_finished(verifier: TokenVerifier) -> None:
    fetch = verifier._fetch
    assert fetch is not None
    await fetch


# What is accepted


@pytest.mark.parametrize(("key", "alg"), [(ES_KEY, "ES256"), (RS_KEY, "RS256")])
async def test_claims_of_a_valid_token(verifier: TokenVerifier, issuer: Issuer, key: Key, alg: str) -> None:
    claims = await verifier.verify(signed(issuer, key=key, alg=alg, scope="orders:read orders:write"))
    assert claims == Claims(USER, uuid.UUID(USER), frozenset({"orders:read", "orders:write"}), NOW + 3600)


@pytest.mark.parametrize(
    "changed",
    [
        {"aud": ["someone-else", AUDIENCE]},
        {"nbf": NOW + 30},
        {"iat": NOW + 30},
        {"exp": NOW + 1},
        {"exp": NOW + 1.5},
        {"exp": 10**400},
        {"header": {"typ": "application/at+jwt"}},
        {"header": {"typ": "AT+JWT"}},
        {"header": {"x-unknown": 1}},
        {"sub": "s" * 255},
        {"unknown_claim": {"a": 1}},
    ],
)
async def test_what_the_standards_allow_is_accepted(
    verifier: TokenVerifier, issuer: Issuer, changed: dict[str, Any]
) -> None:
    assert await verifier.verify(signed(issuer, **changed))


@pytest.mark.parametrize("scheme", ["bearer ", "BEARER ", "Bearer   "])
async def test_scheme_in_any_case_and_with_spaces(verifier: TokenVerifier, issuer: Issuer, scheme: str) -> None:
    authorization = scheme + signed(issuer).removeprefix("Bearer ")
    assert await verifier.verify(authorization) is verifier.recall(authorization)


async def test_without_a_scope_claim_there_are_no_scopes(verifier: TokenVerifier, issuer: Issuer) -> None:
    assert (await verifier.verify(signed(issuer, scope=MISSING))).scopes == frozenset()


async def test_token_without_kid_is_verified_with_an_only_key(verifier: TokenVerifier, issuer: Issuer) -> None:
    issuer.jwks = issuer.jwks[:1]
    assert await verifier.verify(signed(issuer, header={"kid": MISSING}))


async def test_other_subjects_become_uuid_v5_of_issuer_and_subject(verifier: TokenVerifier, issuer: Issuer) -> None:
    claims = await verifier.verify(signed(issuer, sub="auth0|42"))
    assert claims.subject == "auth0|42"
    assert claims.user_id == uuid.uuid5(uuid.uuid5(uuid.NAMESPACE_URL, issuer.url), "auth0|42")


@pytest.mark.parametrize("disguise", [f"urn:uuid:{USER}", f"{{{USER}}}", USER.replace("-", ""), f"{USER[:-1]}\uff11"])
async def test_another_spelling_of_a_uuid_is_another_user(
    verifier: TokenVerifier, issuer: Issuer, disguise: str
) -> None:
    assert (await verifier.verify(signed(issuer, sub=disguise))).user_id != uuid.UUID(USER)


async def test_upper_case_uuid_is_the_same_user(verifier: TokenVerifier, issuer: Issuer) -> None:
    assert (await verifier.verify(signed(issuer, sub=USER.upper()))).user_id == uuid.UUID(USER)


# What is refused


@pytest.mark.parametrize("authorization", [None, "", "Basic dTpw", "Digest x", "Bearerx y"])
async def test_without_a_bearer_token_the_challenge_has_no_error(
    verifier: TokenVerifier, authorization: str | None
) -> None:
    error = await refusal(verifier.verify(authorization))
    assert (error.code, error.status) == ("unauthenticated", 401)
    assert error.headers["WWW-Authenticate"] == 'Bearer realm="orders"'


@pytest.mark.parametrize(
    "changed",
    [
        {"iss": "http://elsewhere"},
        {"iss": MISSING},
        {"iss": [1]},
        {"aud": "someone-else"},
        {"aud": ["someone-else"]},
        {"aud": []},
        {"aud": {"a": 1}},
        {"aud": MISSING},
        {"exp": NOW},
        {"exp": NOW - 1},
        {"exp": MISSING},
        {"exp": "never"},
        {"exp": True},
        {"exp": float("nan")},
        {"exp": float("inf")},
        {"nbf": NOW + 31},
        {"nbf": "soon"},
        {"iat": NOW + 31},
        {"iat": None},
        {"sub": MISSING},
        {"sub": ""},
        {"sub": None},
        {"sub": 42},
        {"sub": "s" * 256},
        {"sub": "a\x00b"},
        {"sub": "\ud800"},
        {"scope": ["orders:read"]},
        {"scope": None},
        {"scope": 1},
        {"header": {"typ": "JWT"}},
        {"header": {"typ": MISSING}},
        {"header": {"crit": ["x"], "x": 1}},
        {"key": STRANGER},
        {"key": STRANGER, "header": {"kid": ES_KEY.kid}},
        {"key": STRANGER, "header": {"jwk": STRANGER.as_dict(private=False)}},
        {"key": RS_KEY, "alg": "RS512"},
        {"key": RS_KEY, "alg": "PS256"},
        {"key": RS_KEY, "alg": "RS256", "header": {"kid": ES_KEY.kid}},
        {"header": {"kid": MISSING}},
    ],
    ids=" ".join,
)
async def test_wrong_token_is_refused(verifier: TokenVerifier, issuer: Issuer, changed: dict[str, Any]) -> None:
    if "key" in changed and changed["key"] is RS_KEY:
        # The key as such could do it: only the algorithm stands in the way.
        issuer.jwks = [{"kty": "RSA", "kid": RS_KEY.kid, "n": RS_KEY["n"], "e": RS_KEY["e"]}, issuer.jwks[0]]
    # serialize_compact refuses headers and keys that do not fit together, so these are put together by hand
    authorization = hand_signed(issuer, **changed)
    await assert_invalid_token(verifier, authorization)


def hand_signed(issuer: Issuer, **changed: Any) -> str:
    header = changed.pop("header", {})
    key: Key = changed.pop("key", ES_KEY)
    alg: str = changed.pop("alg", "ES256")
    _, payload, _ = signed(issuer, **changed).removeprefix("Bearer ").split(".")
    full = {"alg": alg, "typ": "at+jwt", "kid": key.kid, **header}
    signing_input = b64({name: value for name, value in full.items() if value is not MISSING}) + "." + payload
    signature = jws.JWSRegistry.algorithms[alg].sign(signing_input.encode(), key)
    return f"Bearer {signing_input}.{b64(signature)}"


async def test_hand_signed_tokens_are_refused_for_what_was_changed_only(
    verifier: TokenVerifier, issuer: Issuer
) -> None:
    assert await verifier.verify(hand_signed(issuer))
    assert await verifier.verify(hand_signed(issuer, key=RS_KEY, alg="RS256"))


async def test_unsigned_token_is_refused(verifier: TokenVerifier, issuer: Issuer) -> None:
    _, payload, signature = signed(issuer).removeprefix("Bearer ").split(".")
    for alg in ("none", "None", "NONE", ""):
        header = b64({"alg": alg, "typ": "at+jwt", "kid": ES_KEY.kid})
        await assert_invalid_token(verifier, f"Bearer {header}.{payload}.")
        await assert_invalid_token(verifier, f"Bearer {header}.{payload}.{signature}")


async def test_public_key_used_as_a_shared_secret_is_refused(verifier: TokenVerifier, issuer: Issuer) -> None:
    claims = {"iss": issuer.url, "aud": AUDIENCE, "sub": USER, "exp": NOW + 3600}
    for secret in (RS_KEY.as_pem(), RS_KEY.as_der(), json.dumps(issuer.jwks[1]).encode()):
        secret_key = OctKey.import_key(base64.urlsafe_b64encode(secret).decode())
        token = jwt.encode({"alg": "HS256", "typ": "at+jwt", "kid": RS_KEY.kid}, claims, secret_key)
        await assert_invalid_token(verifier, f"Bearer {token}")


async def test_changed_payload_is_refused(verifier: TokenVerifier, issuer: Issuer) -> None:
    header, _, signature = signed(issuer).split(".")
    payload = b64({"iss": issuer.url, "aud": AUDIENCE, "sub": USER, "exp": NOW + 3600, "scope": "admin"})
    await assert_invalid_token(verifier, f"{header}.{payload}.{signature}")


@pytest.mark.parametrize("payload", [b"[]", b"null", b"{", b"\xff", b'"x"', b"[" * 4000, b'{"exp": 1' + b"0" * 5000])
async def test_signed_payload_that_is_no_claims_object_is_refused(verifier: TokenVerifier, payload: bytes) -> None:
    token = jws.serialize_compact({"alg": "ES256", "typ": "at+jwt", "kid": ES_KEY.kid}, payload, ES_KEY)
    await assert_invalid_token(verifier, f"Bearer {token}")


HEADERS: list[Any] = [
    ["alg"],
    "alg",
    {},
    None,
    1,
    {"alg": ["ES256"]},
    {"alg": {}},
    {"alg": "ES256", "typ": 1},
    {"alg": "ES256", "typ": "at+jwt", "kid": 1},
    {"alg": "ES256", "typ": "at+jwt", "kid": None},
    {"alg": "ES256", "typ": "at+jwt", "crit": 1},
    {"alg": "ES256", "typ": "at+jwt", "b64": False, "crit": ["b64"]},
    {"alg": 'x"\r\nSet-Cookie: a=b', "typ": "at+jwt"},
    b"[" * 380,
    b"[" * 5900,
    b"\xff",
]
JUNK = [
    "",
    " ",
    "a",
    "a.b",
    "..",
    "a.b.c",
    "a.b.c.d.e",
    "%00",
    "a b",
    "\u00e9.b.c",
    "\ud800",
    "x" * 8193,
    "x" * 100_000,
]


@pytest.mark.parametrize(
    "token", [*JUNK, *(f"{b64(header)}.e30.AAAA" for header in HEADERS)], ids=lambda token: ascii(token)[:40]
)
async def test_malformed_token_is_refused(verifier: TokenVerifier, token: str) -> None:
    await assert_invalid_token(verifier, f"Bearer {token}")


async def test_token_of_8_kib_is_read_and_a_longer_one_is_refused(verifier: TokenVerifier, issuer: Issuer) -> None:
    room = (7 + 8192 - len(signed(issuer, padding=""))) * 3 // 4
    longest, too_long = signed(issuer, padding="x" * room), signed(issuer, padding="x" * (room + 3))
    assert 8190 <= len(longest) - 7 <= 8192 < len(too_long) - 7
    assert await verifier.verify(longest)
    await assert_invalid_token(verifier, too_long)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
MEMBERS = st.sampled_from(["alg", "typ", "kid", "crit", "b64", "jwk", "x5c", "x5u", "cty", "x"])
VALUES = JSON | st.sampled_from(["ES256", "RS256", "at+jwt", ES_KEY.kid, ["b64"], ["x"], False])


@pytest.fixture(scope="module")
async def offline() -> AsyncIterator[TokenVerifier]:
    verifier = TokenVerifier("http://127.0.0.1:1", AUDIENCE, monotonic=lambda: NOW)
    verifier._keys = {ES_KEY.kid: ES_KEY}
    verifier._fetched_at = verifier._attempted_at = NOW  # too short a time ago for a fetch
    yield verifier
    await verifier.aclose()


@given(
    header=st.dictionaries(MEMBERS, VALUES).map(lambda drawn: {"alg": "ES256", "typ": "at+jwt", **drawn}) | JSON,
    payload=st.binary(max_size=20),
    signature=st.binary(max_size=70),
)
@settings(deadline=None)
async def test_no_unsigned_token_is_anything_but_a_401(
    offline: TokenVerifier, header: Any, payload: bytes, signature: bytes
) -> None:
    await assert_invalid_token(offline, f"Bearer {b64(header)}.{b64(payload)}.{b64(signature)}")


# Keys


async def test_rotated_key_is_picked_up(verifier: TokenVerifier, issuer: Issuer, clock: Clock) -> None:
    await verifier.verify(signed(issuer))
    issuer.jwks.append(STRANGER.as_dict(private=False))
    clock.now += 5
    assert await verifier.verify(signed(issuer, key=STRANGER))
    assert issuer.fetched == 2


async def test_unknown_keys_are_asked_for_every_five_seconds_at_most(
    verifier: TokenVerifier, issuer: Issuer, clock: Clock
) -> None:
    await verifier.verify(signed(issuer))
    for _ in range(10):
        clock.now += 0.999
        await assert_invalid_token(verifier, signed(issuer, key=STRANGER))
    assert issuer.fetched == 2


async def test_what_can_be_refused_without_keys_costs_the_issuer_nothing(
    verifier: TokenVerifier, issuer: Issuer
) -> None:
    for changed in ({"header": {"typ": "JWT"}}, {"key": RS_KEY, "alg": "PS256"}, {"header": {"crit": ["x"], "x": 1}}):
        await assert_invalid_token(verifier, hand_signed(issuer, **changed))
    assert issuer.fetched == 0


async def test_a_hundred_first_requests_make_one_fetch(verifier: TokenVerifier, issuer: Issuer) -> None:
    tokens = [signed(issuer, sub=f"user {number}") for number in range(100)]
    claims = await asyncio.gather(*map(verifier.verify, tokens))
    assert [claim.subject for claim in claims] == [f"user {number}" for number in range(100)]
    assert issuer.fetched == 1


async def test_a_cancelled_request_does_not_cancel_the_fetch_of_the_others(
    verifier: TokenVerifier, issuer: Issuer
) -> None:
    issuer.answers.clear()
    impatient = asyncio.create_task(verifier.verify(signed(issuer)))
    patient = asyncio.create_task(verifier.verify(signed(issuer)))
    await issuer.asked.wait()
    impatient.cancel()
    with pytest.raises(asyncio.CancelledError):
        await impatient
    issuer.answers.set()
    assert (await patient).subject == USER
    assert issuer.fetched == 1


async def test_old_keys_go_on_while_the_issuer_is_down(verifier: TokenVerifier, issuer: Issuer, clock: Clock) -> None:
    await verifier.verify(signed(issuer))
    await issuer.stop()
    for _ in range(3):
        clock.now += 601
        assert await verifier.verify(signed(issuer))
        await fetch_finished(verifier)
    await assert_invalid_token(verifier, signed(issuer, key=STRANGER))


async def test_old_keys_go_on_when_the_issuer_publishes_none(
    verifier: TokenVerifier, issuer: Issuer, clock: Clock
) -> None:
    await verifier.verify(signed(issuer))
    issuer.jwks = []
    for _ in range(2):
        clock.now += 601
        assert await verifier.verify(signed(issuer))
        await fetch_finished(verifier)
    assert issuer.fetched == 3


async def test_refresh_goes_on_behind_the_request_and_drops_withdrawn_keys(
    verifier: TokenVerifier, issuer: Issuer, clock: Clock
) -> None:
    await verifier.verify(signed(issuer))
    issuer.jwks = [RS_KEY.as_dict(private=False)]
    clock.now += 599
    await verifier.verify(signed(issuer))
    await fetch_finished(verifier)
    assert issuer.fetched == 1
    clock.now += 61
    issuer.answers.clear()
    assert await verifier.verify(signed(issuer)), "does not wait for the issuer, which hangs"
    issuer.answers.set()
    await fetch_finished(verifier)
    assert issuer.fetched == 2
    clock.now += 61
    await assert_invalid_token(verifier, signed(issuer))


async def test_without_any_key_an_unreachable_issuer_is_503_until_it_is_back(
    verifier: TokenVerifier, issuer: Issuer, clock: Clock
) -> None:
    await issuer.stop()
    for _ in range(2):
        error = await refusal(verifier.verify(signed(issuer)))
        assert (error.code, error.status, error.headers) == ("unavailable", 503, {"Retry-After": "1"})
    await assert_invalid_token(verifier, "Bearer junk")
    await issuer.start()
    clock.now += 1
    assert await verifier.verify(signed(issuer))


async def test_an_issuer_that_hangs_is_503_after_the_timeout(make_verifier: MakeVerifier, issuer: Issuer) -> None:
    issuer.answers.clear()
    error = await refusal(make_verifier(timeout_seconds=0.05).verify(signed(issuer)))
    assert error.status == 503


async def test_an_issuer_that_drips_is_503_after_the_timeout(make_verifier: MakeVerifier, issuer: Issuer) -> None:
    issuer.drips = True
    async with asyncio.timeout(10):
        error = await refusal(make_verifier(timeout_seconds=0.05).verify(signed(issuer)))
    assert error.status == 503


@pytest.mark.parametrize("jwks", [[], [{}], [{"kty": "oct", "k": "AAAA"}], [{"kty": ["EC"]}], [{"kty": "EC"}]])
async def test_an_issuer_without_usable_keys_is_503(verifier: TokenVerifier, issuer: Issuer, jwks: list[Any]) -> None:
    issuer.jwks = jwks
    assert (await refusal(verifier.verify(signed(issuer)))).status == 503


async def test_unusable_keys_beside_a_good_one_are_passed_over(verifier: TokenVerifier, issuer: Issuer) -> None:
    bad_curve = {"kty": "EC", "crv": "P-0", "x": "AA", "y": "AA", "kid": "bad"}
    issuer.jwks = [{"kty": "ML-DSA", "kid": "new"}, {"kty": "RSA", "n": "?", "e": "AQAB"}, bad_curve, *issuer.jwks]
    assert await verifier.verify(signed(issuer))


async def test_encryption_keys_verify_nothing(verifier: TokenVerifier, issuer: Issuer) -> None:
    issuer.jwks.append({**STRANGER.as_dict(private=False), "use": "enc"})
    await assert_invalid_token(verifier, signed(issuer, key=STRANGER))


async def test_discovery_document_of_another_issuer_is_not_believed(verifier: TokenVerifier, issuer: Issuer) -> None:
    issuer.discovered_issuer = issuer.url + "/"
    assert (await refusal(verifier.verify(signed(issuer)))).status == 503


async def test_closing_ends_a_fetch_under_way(make_verifier: MakeVerifier, issuer: Issuer) -> None:
    verifier = make_verifier()
    issuer.answers.clear()
    request = asyncio.create_task(verifier.verify(signed(issuer)))
    await issuer.asked.wait()
    async with asyncio.timeout(10):
        await verifier.aclose()
    assert (await refusal(request)).status == 503


# Its breaker


async def broken_open(verifier: TokenVerifier, issuer: Issuer, clock: Clock) -> None:
    """Three fetches have failed, so that it is left alone for a second from now."""
    for failures in range(3):
        assert verifier.breaker.state == "closed", f"after {failures} failures"
        clock.now += 5
        await refusal(verifier.verify(signed(issuer, key=STRANGER)))
    assert verifier.breaker.state == "open"


async def test_a_frozen_issuer_is_left_alone_and_of_fifty_requests_with_an_unknown_key_one_asks_once_a_window(
    make_verifier: MakeVerifier, issuer: Issuer, clock: Clock
) -> None:
    verifier = make_verifier(timeout_seconds=5.0)
    await verifier.verify(signed(issuer))
    issuer.answers.clear()
    verifier.breaker._deadline_seconds = 0.05
    await broken_open(verifier, issuer, clock)
    fetched = issuer.fetched
    for _ in range(50):
        await assert_invalid_token(verifier, signed(issuer, key=STRANGER))
    assert issuer.fetched == fetched, "it is left alone"
    verifier.breaker._deadline_seconds = 60.0
    clock.now += 5
    issuer.asked.clear()
    probe = asyncio.create_task(verifier.verify(signed(issuer, key=STRANGER)))
    await issuer.asked.wait()
    async with asyncio.timeout(30):  # the probe would take sixty
        for _ in range(49):
            await assert_invalid_token(verifier, signed(issuer, key=STRANGER))
        assert await verifier.verify(signed(issuer, sub="another")), "known keys go on"
    assert issuer.fetched == fetched + 1
    issuer.jwks.append(STRANGER.as_dict(private=False))
    issuer.answers.set()
    assert await probe
    assert verifier.breaker.state == "closed"


async def test_an_issuer_that_is_gone_opens_it_and_is_asked_again_after_the_window(
    verifier: TokenVerifier, issuer: Issuer, clock: Clock
) -> None:
    await issuer.stop()
    await broken_open(verifier, issuer, clock)
    await issuer.start()
    clock.now += 0.999
    assert (await refusal(verifier.verify(signed(issuer)))).status == 503
    assert issuer.fetched == 0
    clock.now += 0.001
    assert await verifier.verify(signed(issuer))
    assert verifier.breaker.state == "closed"


async def test_two_hundred_requests_that_leave_neither_open_it_nor_end_the_fetch(
    make_verifier: MakeVerifier, issuer: Issuer
) -> None:
    verifier = make_verifier(timeout_seconds=60.0)
    issuer.answers.clear()
    leaving = [asyncio.create_task(verifier.verify(signed(issuer))) for _ in range(200)]
    await issuer.asked.wait()
    for request in leaving:
        request.cancel()
    ends = await asyncio.gather(*leaving, return_exceptions=True)
    assert [type(end) for end in ends] == [asyncio.CancelledError] * 200
    issuer.answers.set()
    await fetch_finished(verifier)
    assert verifier.breaker.state == "closed"
    assert await verifier.verify(signed(issuer))
    assert issuer.fetched == 1


# Remembering


async def test_a_verified_token_is_recalled_for_a_minute(verifier: TokenVerifier, issuer: Issuer, clock: Clock) -> None:
    authorization = signed(issuer)
    assert verifier.recall(authorization) is None
    claims = await verifier.verify(authorization)
    clock.now += 59.9
    assert verifier.recall(authorization) is claims
    assert await verifier.verify(authorization) is claims
    clock.now += 0.1
    assert verifier.recall(authorization) is None
    assert await verifier.verify(authorization) is verifier.recall(authorization)


async def test_a_token_is_not_recalled_past_its_expiry(verifier: TokenVerifier, issuer: Issuer, clock: Clock) -> None:
    authorization = signed(issuer, exp=NOW + 10)
    await verifier.verify(authorization)
    clock.now += 9.9
    assert verifier.recall(authorization)
    clock.now += 0.1
    await assert_invalid_token(verifier, authorization)


async def test_only_so_many_tokens_are_remembered_and_the_oldest_goes(
    make_verifier: MakeVerifier, issuer: Issuer
) -> None:
    verifier = make_verifier(remembered_max=3)
    tokens = [signed(issuer, sub=f"user {number}") for number in range(5)]
    for token in tokens:
        await verifier.verify(token)
    recalled = [claims.subject for token in tokens if (claims := verifier.recall(token))]
    assert recalled == ["user 2", "user 3", "user 4"]
    assert len(verifier._remembered) == 3


async def test_recall_tells_schemes_and_tokens_apart(verifier: TokenVerifier, issuer: Issuer) -> None:
    authorization = signed(issuer)
    await verifier.verify(authorization)
    token = authorization.removeprefix("Bearer ")
    for other in (
        None,
        "",
        token,
        f"Basic  {token}",
        authorization[:-1],
        f"{authorization}\u00e9",
        f"{authorization} ",
    ):
        assert verifier.recall(other) is None


# Scopes


def test_one_of_the_scopes_is_enough() -> None:
    require(claims_with("orders:fulfil"), "orders:write", "orders:fulfil")


@pytest.mark.parametrize("held", [(), ("orders:read",), ("orders:writes",)])
def test_none_of_the_scopes_is_403_and_names_them(held: tuple[str, ...]) -> None:
    with pytest.raises(DomainError) as caught:
        require(claims_with(*held), "orders:write", "orders:fulfil")
    error = caught.value
    assert (error.code, error.status) == ("scope_missing", 403)
    assert error.extra == {"required": ["orders:write", "orders:fulfil"]}
    assert error.headers == {
        "WWW-Authenticate": 'Bearer error="insufficient_scope", scope="orders:write orders:fulfil"'
    }


def claims_with(*scopes: str) -> Claims:
    return Claims(USER, uuid.UUID(USER), frozenset(scopes), NOW)
