"""OAuth 2.0 client: a process's own access token, by the client credentials grant (RFC 6749, section 4.4)."""

import asyncio
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import quote_plus

import httpx
from pydantic import BaseModel, Field, ValidationError

from services.common.settings import ClientSettings

EARLY_SECONDS: Final = 30.0  # before its end: a request under way and a clock that differs
LIFETIME_SECONDS: Final = 60.0  # of a token whose issuer does not say: short, so that a wrong guess does not last
TIMEOUT_SECONDS: Final = 5.0


class TokenError(Exception):
    """The issuer is away or refuses this client: no token for now."""


class _Discovery(BaseModel):
    issuer: str
    token_endpoint: str


class _Answer(BaseModel):  # RFC 6749, section 5.1
    access_token: str = Field(min_length=1)
    token_type: str
    expires_in: float = LIFETIME_SECONDS


class ServiceToken:
    """The token of `client_id`, kept until shortly before its end; belongs to one event loop."""

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
        self._asking = asyncio.Lock()  # one request, however many want a token

    @classmethod
    def of(cls, settings: ClientSettings, *, scope: str) -> "ServiceToken":
        """That of the process with these settings."""
        secret = settings.client_secret.get_secret_value()
        return cls(settings.issuer_url, client_id=settings.client_id, client_secret=secret, scope=scope)

    async def authorization(self) -> str:
        """The value of an `Authorization` header. TokenError. Asks the issuer only when the last token ends soon."""
        async with self._asking:
            if self._monotonic() >= self._until:
                await self._ask()
            return f"Bearer {self._token}"

    def refused(self, authorization: str) -> None:
        """An API answered 401 to it: the next call asks for another, unless somebody has already."""
        if authorization == f"Bearer {self._token}":
            self._until = float("-inf")

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_SECONDS), httpx.AsyncClient(timeout=TIMEOUT_SECONDS) as client:
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
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, ValidationError) as error:
            raise TokenError(f"the issuer cannot be asked: {error!r}") from error
        if response.is_error:  # its body says why (section 5.2), and holds no secret
            raise TokenError(f"the issuer answers {response.status_code}: {response.text[:300]}")
        try:
            answer = _Answer.model_validate_json(response.content)
        except ValidationError as error:
            raise TokenError("the issuer's answer has no token") from error
        if answer.token_type.lower() != "bearer":
            raise TokenError(f"the token is of type {answer.token_type}")
        self._token, self._until = answer.access_token, asked_at + max(0.0, answer.expires_in - EARLY_SECONDS)
