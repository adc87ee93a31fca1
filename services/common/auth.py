"""OAuth 2.0 resource server: who calls, and what they may do, from a JWT access token (RFC 9068, RFC 6750)."""

import asyncio
import json
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

import httpx
import structlog
from joserfc import jws
from joserfc.errors import ClaimError, ExpiredTokenError, JoseError
from joserfc.jwk import ECKey, RSAKey
from joserfc.jwt import JWTClaimsRegistry
from pybreaker import STATE_CLOSED
from pydantic import BaseModel

from services.common.breaker import Breaker, BreakerOpenError, breaker_rejections_total
from services.common.errors import DomainError, unavailable

_SCHEME = "bearer "
_TOKEN_BYTES_MAX = 8 * 1024  # what common proxies allow for one header line
_SUBJECT_CHARACTERS_MAX = 255  # OpenID Connect Core, section 2
_LEEWAY_SECONDS = 30  # clocks of issuer and verifier differ; for `iat` and `nbf` only, an expired token is expired
_REMEMBER_SECONDS = 60  # how long a key withdrawn by the issuer can still speak for a token seen before
_REFRESH_SECONDS = 600  # how long such a key can vouch for new tokens, while the issuer answers
_UNKNOWN_KEY_PAUSE_SECONDS = 5  # anyone can invent a `kid`; this bounds what that costs the issuer
_NO_KEYS_PAUSE_SECONDS = 1  # without any key all requests fail, so ask sooner
_FAILURES = 3  # in a row: there is one fetch in five seconds at most
_RESET_SECONDS = 1.0  # no longer than the pauses, which it is to lengthen by little
_TOKEN_TYPES = frozenset({"at+jwt", "application/at+jwt"})  # RFC 9068, section 4: ID tokens are no access tokens
_KEY_TYPES: dict[str, type[RSAKey | ECKey]] = {"RSA": RSAKey, "EC": ECKey}

# Members we do not know are ignored (RFC 7515, section 4) unless `crit` names them.
_REGISTRY = jws.JWSRegistry(algorithms=["RS256", "ES256"], strict_check_header=False)

# What hostile text raises inside joserfc and json besides JoseError: a header that is a list, members of the wrong
# type, brackets nested thousands deep.
_MALFORMED = (JoseError, ValueError, TypeError, AttributeError, LookupError, RecursionError)

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified access token says. `expires_at` is in seconds since 1970."""

    subject: str
    user_id: uuid.UUID
    scopes: frozenset[str]
    expires_at: int
    user_text: str = field(
        init=False, compare=False, repr=False
    )  # the user's id, as every answer from a cache needs it

    def __post_init__(self) -> None:
        object.__setattr__(self, "user_text", str(self.user_id))


class _Discovery(BaseModel):
    issuer: str
    jwks_uri: str


class _KeySet(BaseModel):
    keys: list[dict[str, Any]]


class TokenVerifier:
    """Verifies access tokens of one issuer for one audience; belongs to one event loop.

    Keys are fetched with the first token, again when a token names an unknown one, and every ten minutes behind the
    requests; while the issuer is away the keys we have go on. Under steady traffic a withdrawn key is thus out within
    eleven minutes; after a quiet time the first request still finds it. While the breaker is open a token with an
    unknown key is answered at once, but for the one whose request is the probe.
    """

    def __init__(
        self,
        issuer_url: str,
        audience: str,
        clock: Callable[[], float] = time.time,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        timeout_seconds: float = 2.0,
        remembered_max: int = 10_000,
    ) -> None:
        self._issuer_url = issuer_url
        self._clock = clock
        self._monotonic = monotonic  # for spans of time: the wall clock can be set back
        self._remembered_max = remembered_max
        self._remembered: OrderedDict[bytes, tuple[float, Claims]] = OrderedDict()
        self._keys: dict[str | None, RSAKey | ECKey] = {}
        self._fetched_at = self._attempted_at = float("-inf")
        self._fetch: asyncio.Task[None] | None = None
        self._http = httpx.AsyncClient(timeout=timeout_seconds)  # here, as reading the trusted roots takes 20 ms
        self.breaker = Breaker(
            "issuer",
            deadline_seconds=timeout_seconds,  # httpx bounds each read, not their sum
            failures=_FAILURES,
            reset_seconds=_RESET_SECONDS,
            monotonic=monotonic,
        )
        self._registry = JWTClaimsRegistry(
            now=lambda: int(clock()),
            leeway=_LEEWAY_SECONDS,
            iss={"essential": True, "value": issuer_url},
            aud={"essential": True, "value": audience},
            sub={"essential": True},
            exp={"essential": True},
        )

    def recall(self, authorization: str | None) -> Claims | None:
        """Return the claims of a token verified less than a minute ago and not expired, else None; never raises.

        Cost: one SHA-256 and one dictionary lookup, no await.
        """
        token = _bearer_token(authorization)
        if token is None:
            return None
        digest = _digest(token)
        remembered = self._remembered.get(digest)
        if remembered is None:
            return None
        until, claims = remembered
        if self._monotonic() < until:
            return claims
        del self._remembered[digest]
        return None

    async def verify(self, authorization: str | None) -> Claims:
        """Return the claims of the token in an `Authorization` header; they hold for this issuer and audience, now.

        Errors: 401 `unauthenticated` for anything a client can send; 503 `unavailable` when the issuer cannot be
        reached and has never been. Waits for the issuer only when the token's key is unknown, at most the timeout.
        """
        claims = self.recall(authorization)
        if claims is not None:
            return claims
        token = _bearer_token(authorization)
        if token is None:
            raise _refused_header(authorization)
        with _malformed_is_401():
            parsed = _parse(token)
        key = await self._key(parsed.headers().get("kid"))
        if key is None:
            raise _invalid_token("The token's key is not one of the issuer's.")
        with _malformed_is_401():
            claims = self._check(parsed, key)
        self._remember(token, claims)
        return claims

    async def aclose(self) -> None:
        """Stop a fetch under way and close the connections to the issuer."""
        if self._fetch is not None:
            self._fetch.cancel()
            await asyncio.wait([self._fetch])
        await self._http.aclose()

    def _check(self, parsed: jws.CompactSignature, key: RSAKey | ECKey) -> Claims:
        if not jws.validate_compact(parsed, key, registry=_REGISTRY):
            raise _invalid_token("The token's signature is wrong.")
        claims = json.loads(parsed.payload)
        self._registry.validate(claims)
        # The registry would grant the leeway here too.
        if claims["exp"] <= self._clock():
            raise ExpiredTokenError("exp")
        subject, scope = claims["sub"], claims.get("scope", "")
        # Control characters and lone surrogates can be neither stored nor logged faithfully.
        if len(subject) > _SUBJECT_CHARACTERS_MAX or not subject.isprintable():
            raise ClaimError("sub")
        if not isinstance(scope, str):
            raise ClaimError("scope")
        return Claims(subject, _user_id(self._issuer_url, subject), frozenset(scope.split()), int(claims["exp"]))

    def _remember(self, token: str, claims: Claims) -> None:
        now = self._clock()
        seconds = min(claims.expires_at, now + _REMEMBER_SECONDS) - now
        digest = _digest(token)
        self._remembered[digest] = (self._monotonic() + seconds, claims)
        self._remembered.move_to_end(digest)
        if len(self._remembered) > self._remembered_max:
            self._remembered.popitem(last=False)

    async def _key(self, kid: str | None) -> RSAKey | ECKey | None:
        key = self._known_key(kid)
        if key is not None:
            if self._monotonic() - self._fetched_at >= _REFRESH_SECONDS:
                self._begin_fetch()  # behind this request, not before it
            return key
        fetch = self._begin_fetch()
        if fetch is not None:
            await asyncio.wait([fetch])  # unlike `await fetch`, a cancelled request does not cancel it for the others
        if not self._keys:
            raise unavailable("The token issuer cannot be reached.")
        return self._known_key(kid)

    def _known_key(self, kid: str | None) -> RSAKey | ECKey | None:
        if kid is None and len(self._keys) == 1:  # `kid` may be left out by an issuer with one key
            return next(iter(self._keys.values()))
        return self._keys.get(kid)

    def _begin_fetch(self) -> asyncio.Task[None] | None:
        """Return the fetch under way, or a new one.

        None when the last began too short a time ago, or the issuer is left alone, or another's probe is under way.
        """
        under_way = self._fetch is not None and not self._fetch.done()
        if self.breaker.state != STATE_CLOSED and (under_way or self.breaker.left_alone):
            breaker_rejections_total.labels(self.breaker.name).inc()
            return None
        if not under_way:
            now = self._monotonic()
            pause = _UNKNOWN_KEY_PAUSE_SECONDS if self._keys else _NO_KEYS_PAUSE_SECONDS
            if now - self._attempted_at < pause:
                return None
            self._attempted_at = now
            self._fetch = asyncio.create_task(self._fetch_keys())
        return self._fetch

    async def _fetch_keys(self) -> None:
        """Replace the keys by the issuer's present ones, or log why not and leave them."""
        try:
            self._keys = await self.breaker.call(self._published_keys)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValueError, BreakerOpenError) as error:
            _log.warning("issuer_keys_not_fetched", issuer=self._issuer_url, error=repr(error), keys=len(self._keys))
        else:
            self._fetched_at = self._monotonic()

    async def _published_keys(self) -> dict[str | None, RSAKey | ECKey]:
        discovery = _Discovery.model_validate_json(await self._get(_discovery_url(self._issuer_url)))
        # OpenID Connect Discovery, section 4.3: the same string, or someone else speaks for our issuer.
        if discovery.issuer != self._issuer_url:
            raise ValueError(f"the discovery document is of {discovery.issuer}")
        key_set = _KeySet.model_validate_json(await self._get(discovery.jwks_uri))
        keys = {key.kid: key for jwk in key_set.keys if (key := _import_key(jwk)) is not None}
        if not keys:
            raise ValueError("the issuer publishes no key we can use")
        return keys

    async def _get(self, url: str) -> bytes:
        response = await self._http.get(url)
        return response.raise_for_status().content


def require(claims: Claims, *scopes_any: str) -> None:
    """Pass when the token has at least one of the scopes; otherwise 403 `scope_missing` that names them."""
    if claims.scopes.isdisjoint(scopes_any):
        scopes = " ".join(scopes_any)
        raise DomainError(
            "scope_missing",
            403,
            f"The token needs one of these scopes: {scopes}.",
            extra={"required": list(scopes_any)},
            headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{scopes}"'},
        )


def _bearer_token(authorization: str | None) -> str | None:
    if (
        authorization is None
        or len(authorization) > len(_SCHEME) + _TOKEN_BYTES_MAX
        or not authorization.isascii()
        or authorization[: len(_SCHEME)].lower() != _SCHEME
    ):
        return None
    return authorization[len(_SCHEME) :].lstrip(" ")


def _digest(token: str) -> bytes:
    # Tokens are secrets: a dump of the process's memory should not be a list of them.
    return sha256(token.encode("ascii")).digest()


def _parse(token: str) -> jws.CompactSignature:
    """Return the token taken apart, nothing verified; its algorithm and type are among those we allow.

    What fails here costs no fetch of keys.
    """
    parsed = jws.extract_compact(token.encode("ascii"), registry=_REGISTRY)
    header = parsed.headers()
    _REGISTRY.check_header(header)
    _REGISTRY.get_alg(header["alg"])
    if header.get("typ", "").lower() not in _TOKEN_TYPES:
        raise _invalid_token("The token is not an access token (typ at+jwt).")
    return parsed


def _user_id(issuer_url: str, subject: str) -> uuid.UUID:
    """Return the subject itself if it is a UUID as RFC 9562 writes it, else a UUIDv5 of issuer and subject."""
    try:
        user_id = uuid.UUID(subject)
    except ValueError:
        user_id = None
    # uuid.UUID also reads `urn:uuid:…`, `{…}` and more: other subjects, who must not become this user.
    if user_id is None or str(user_id) != subject.lower():
        return uuid.uuid5(uuid.uuid5(uuid.NAMESPACE_URL, issuer_url), subject)
    return user_id


def _discovery_url(issuer_url: str) -> str:
    return issuer_url.removesuffix("/") + "/.well-known/openid-configuration"  # OIDC Discovery, section 4.1


def _import_key(jwk: dict[str, Any]) -> RSAKey | ECKey | None:
    """Return the key, or None for one of a type we do not know; joserfc heeds its `use` and `alg` when it verifies."""
    try:
        key = _KEY_TYPES[jwk["kty"]].import_key(jwk)
        key.ensure_kid()
    except _MALFORMED:
        return None
    return key


@contextmanager
def _malformed_is_401() -> Iterator[None]:
    """Answer whatever a token can provoke with a sentence of ours; joserfc's own may quote the token."""
    try:
        yield
    except ExpiredTokenError as error:
        raise _invalid_token("The token has expired.") from error
    except ClaimError as error:
        raise _invalid_token(f"The token's claims are missing, wrong or not valid yet: {error.claim}.") from error
    except _MALFORMED as error:
        raise _invalid_token("The token is malformed, or its algorithm is not RS256 or ES256.") from error


def _invalid_token(detail: str) -> DomainError:
    challenge = f'Bearer error="invalid_token", error_description="{detail}"'
    return DomainError("unauthenticated", 401, detail, headers={"WWW-Authenticate": challenge})


def _refused_header(authorization: str | None) -> DomainError:
    if authorization is not None and authorization.split(" ", 1)[0].lower() == _SCHEME.strip():
        return _invalid_token(
            f"The Authorization header is not ASCII, has no token, or one over {_TOKEN_BYTES_MAX} bytes."
        )
    # RFC 6750, section 3.1: no error code for a client that sent no token.
    detail = "A bearer token is required."
    return DomainError("unauthenticated", 401, detail, headers={"WWW-Authenticate": 'Bearer realm="orders"'})
