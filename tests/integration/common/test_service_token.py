"""A process's own token: asked for once, again before it ends, and refused in words."""

import asyncio
from pathlib import Path

import pytest

from services.common.auth import TokenVerifier
from services.common.events_api import EventsApi
from services.common.handle import NotFilledError
from services.common.service_token import EARLY_SECONDS, ServiceToken, TokenError
from services.embedded.keys import DEVELOPMENT_CLIENT, clients
from tests.shop import AUDIENCE

LIFETIME_SECONDS = 3600


def _token(
    issuer: tuple[Path, str], *, secret: str = "", url: str = "", now: list[float] | None = None
) -> ServiceToken:
    home, issuer_url = issuer
    at = now or [0.0]
    return ServiceToken(
        url or issuer_url,
        client_id=DEVELOPMENT_CLIENT,
        client_secret=secret or clients(home)[DEVELOPMENT_CLIENT],
        scope="orders:read orders:read:any",
        monotonic=lambda: at[0],
    )


async def test_it_is_one_that_an_api_accepts_with_the_scopes_asked_for(issuer: tuple[Path, str]) -> None:
    verifier = TokenVerifier(issuer[1], AUDIENCE)
    claims = await verifier.verify(await _token(issuer).authorization())
    await verifier.aclose()
    assert claims.scopes == {"orders:read", "orders:read:any"}
    assert claims.subject == DEVELOPMENT_CLIENT


async def test_it_is_kept_until_shortly_before_its_end_and_asked_for_once_by_many(issuer: tuple[Path, str]) -> None:
    now = [0.0]
    token = _token(issuer, now=now)
    first = await asyncio.gather(*(token.authorization() for _ in range(10)))
    assert len(set(first)) == 1
    now[0] = LIFETIME_SECONDS - EARLY_SECONDS - 1
    assert await token.authorization() == first[0]
    now[0] += 2
    assert await token.authorization() != first[0]


async def test_one_that_an_api_has_refused_is_replaced_and_a_newer_one_is_not(issuer: tuple[Path, str]) -> None:
    token = _token(issuer)
    old = await token.authorization()
    token.refused(old)
    new = await token.authorization()
    assert new != old
    token.refused(old)
    assert await token.authorization() == new


async def test_who_may_not_is_told_why_and_who_is_away_is_an_error_too(issuer: tuple[Path, str]) -> None:
    with pytest.raises(TokenError, match="invalid_client"):
        await _token(issuer, secret="wrong").authorization()
    with pytest.raises(TokenError, match="cannot be asked"):
        await _token(issuer, url="http://127.0.0.1:1").authorization()
    with pytest.raises(TokenError, match="is of"):
        await _token(issuer, url=issuer[1] + "/").authorization()


async def test_without_a_token_a_gap_is_not_filled_and_says_so(issuer: tuple[Path, str]) -> None:
    async with EventsApi("other", "http://127.0.0.1:1/{key}", _token(issuer, secret="wrong"), source="/test") as api:
        with pytest.raises(NotFilledError, match="invalid_client"):
            await api.fill("key", 0)
