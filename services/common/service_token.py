"""OAuth 2.0 client: a process's own access token, by the client credentials grant (RFC 6749, section 4.4)."""

import time
from collections.abc import Callable
from typing import Final
from urllib.parse import quote_plus

import httpx
from pybreaker import STATE_CLOSED
from pydantic import BaseModel, Field, ValidationError

from services.common.breaker import Breaker, BreakerOpenError
from services.common.settings import ClientSettings
from services.common.single_flight import SingleFlight

EARLY_SECONDS: Final = 30.0  # before its end: a request under way and a clock that differs
LIFETIME_SECONDS: Final = 60.0  # of a token whose issuer does not say: short, so that a wrong guess does not last
TIMEOUT_SECONDS: Final = 5.0
FAILURES: Final = 3  # in a row: each may take as long as that
RESET_SECONDS: Final = 1.0  # under the longest pause of a consumer, as that of the service that it wants a token for


class TokenError(Exception):
    """The issuer is away or refuses this client: no token for now."""


class RefusedError(TokenError):
    """The issuer answers, and refuses this client."""


class _Discovery(BaseModel):
    issuer: str
    token_endpoint: str


class _Answer(BaseModel):  # RFC 6749, section 5.1
    access_token: str = Field(min_length=1)
    token_type: str
    expires_in: float = LIFETIME_SECONDS


class ServiceToken:
    """The token of `client_id`, kept until shortly before its end; belongs to one event loop.

    The issuer is asked behind the breaker `issuer-tokens`, not that of its keys (auth.py): they are public and kept
    by caches, and may well be had while no token is, and the other way round.
    """

    def __init__(
        self,
        issuer_url: str,
        *,
        client_id: str,
        client_secret: str,
        scope: str,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuer_url = issuer_url
        # RFC 6749, section 2.3.1: each is form-encoded before it goes into the header.
        self._credentials = httpx.BasicAuth(quote_plus(client_id), quote_plus(client_secret))
        self._scope = scope
        self._monotonic = monotonic
        self._token, self._until = "", float("-inf")
        self._asking = SingleFlight()  # one request, however many want a token
        self.breaker = Breaker(
            "issuer-tokens",
            deadline_seconds=TIMEOUT_SECONDS,
            failures=FAILURES,
            reset_seconds=RESET_SECONDS,
            healthy=(RefusedError,),
            monotonic=monotonic,
        )

    @classmethod
    def of(cls, settings: ClientSettings, *, scope: str) -> "ServiceToken":
        """That of the process with these settings."""
        secret = settings.client_secret.get_secret_value()
        return cls(settings.issuer_url, client_id=settings.client_id, client_secret=secret, scope=scope)

    async def authorization(self) -> str:
        """The value of an `Authorization` header. Asks the issuer only when the last token ends soon.

        TokenError, and at once while the breaker is open.
        """
        if self._monotonic() >= self._until:
            if self.breaker.state == STATE_CLOSED:
                await self._asking.run("token", self._renew)
            else:
                await self._renew()  # by the one probe, or refused: nobody waits for another's
        return f"Bearer {self._token}"

    def refused(self, authorization: str) -> None:
        """An API answered 401 to it: the next call asks for another, unless somebody has already."""
        if authorization == f"Bearer {self._token}":
            self._until = float("-inf")

    async def _renew(self) -> None:
        if self._monotonic() < self._until:
            return  # somebody has
        try:
            await self.breaker.call(self._ask)
        except BreakerOpenError as error:
            raise TokenError(str(error)) from error
        except TimeoutError as error:
            raise TokenError("the issuer cannot be asked: no answer in time") from error

    async def _ask(self) -> None:
        try:
            async with httpx.AsyncClient(timeout=TIMEOUT_SECONDS) as client:
                found = await client.get(self._issuer_url.removesuffix("/") + "/.well-known/openid-configuration")
                discovery = _Discovery.model_validate_json(found.raise_for_status().content)
                if discovery.issuer != self._issuer_url:  # OpenID Connect Discovery, section 4.3
                    raise TokenError(f"the discovery document is of {discovery.issuer}")
                asked_at = self._monotonic()
                response = await client.post(
                    discovery.token_endpoint,
                    data={"grant_type": "client_credentials", "scope": self._scope},
                    auth=self._credentials,
                )
        except (httpx.HTTPError, httpx.InvalidURL, ValidationError) as error:
            raise TokenError(f"the issuer cannot be asked: {error!r}") from error
        if response.is_error:  # its body says why (section 5.2), and holds no secret
            away = response.is_server_error or response.status_code == httpx.codes.TOO_MANY_REQUESTS
            failure = TokenError if away else RefusedError
            raise failure(f"the issuer answers {response.status_code}: {response.text[:300]}")
        try:
            answer = _Answer.model_validate_json(response.content)
        except ValidationError as error:
            raise TokenError("the issuer's answer has no token") from error
        if answer.token_type.lower() != "bearer":
            raise TokenError(f"the token is of type {answer.token_type}")
        self._token, self._until = answer.access_token, asked_at + max(0.0, answer.expires_in - EARLY_SECONDS)
