"""What is cached is told to nobody whom the database would not tell it, over every route that is cached."""

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final, TypeAlias

import asyncpg
import httpx
import pytest

from services.common import caches
from services.common.cache import breaker
from services.orders.routes import ROUTES
from services.orders.settings import OrdersSettings
from tests.shop import Shop, opened_shop

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
ANYBODYS: Final = "anybody's"  # what is neither the buyer's nor tells of one
READS: Final = sorted(route.path for route in ROUTES if route.method == "GET")
CACHED: Final = sorted(
    route.path for route in ROUTES if route.operation and "X-Cache" in route.operation.answer_headers
)


async def _order(shop: Shop) -> str:
    return f"/v1/orders/{(await shop.placed())['order_id']}"


async def _stock(shop: Shop) -> str:
    product = await shop.product()
    await shop.placed((product, 1))
    return f"/v1/inventory/{product}"


# For each cached route: a path of it that the buyer may read, and who else may.
CASES: Final[Mapping[str, tuple[Callable[[Shop], Awaitable[str]], str | None]]] = {
    "/v1/orders/{order_id}": (_order, None),
    "/v1/inventory/{product_id}": (_stock, ANYBODYS),
}


@pytest.fixture
async def shop(
    orders_settings: OrdersSettings, issuer: tuple[Path, str], owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Shop]:
    """Its reads go through the cache, which is not given up when this machine is slow."""
    monkeypatch.setattr(caches, "breaker", partial(breaker, call_seconds=5.0))
    settings = orders_settings.model_copy(update={"cache_url": None})
    async with opened_shop(settings, issuer[0], owner) as opened:
        yield opened


async def _asked(shop: Shop, path: str, scope: str, sub: uuid.UUID | None = None, **headers: str) -> httpx.Response:
    return await shop.client.get(path, headers={**shop.auth(scope, sub=sub), **headers})


def test_every_cached_route_has_a_case() -> None:
    assert sorted(CASES) == CACHED


async def test_a_route_that_is_not_said_to_be_cached_is_not(shop: Shop) -> None:
    order = await shop.placed()
    ids = {"order_id": order["order_id"], "product_id": order["items"][0]["product_id"]}
    found = []
    for path in READS:
        response = await shop.get(path.format(**ids))
        assert response.status_code == 200, response.text
        if "X-Cache" in response.headers:
            found.append(path)
    assert found == CACHED


@pytest.mark.parametrize("brought_by", ["its owner", "staff"])
@pytest.mark.parametrize("route", CACHED)
async def test_what_is_in_the_cache_is_given_only_to_who_may_read_it(shop: Shop, route: str, brought_by: str) -> None:
    make, whose = CASES[route]
    path = await make(shop)
    staff, stranger = uuid.uuid4(), uuid.uuid4()
    bringer = (
        partial(_asked, shop, path, "orders:read orders:read:any", staff)
        if brought_by == "staff"
        else partial(_asked, shop, path, "orders:read")
    )
    await bringer()
    kept = await bringer()
    assert (kept.status_code, kept.headers["X-Cache"]) == (200, "hit")
    for condition in ({}, {"If-None-Match": kept.headers["ETag"]}):
        met = await _asked(shop, path, "orders:read", stranger, **condition)
        if whose == ANYBODYS:
            assert met.status_code == 200 if not condition else met.status_code in (200, 304)
            assert met.headers["X-Cache"] == "hit"
            assert str(shop.buyer).encode() not in met.content
        else:
            assert met.status_code == 404
            assert "ETag" not in met.headers
            assert not set(met.json()) - {"type", "title", "status", "code", "detail", "instance"}
    nobody = await shop.client.get(path)
    assert (nobody.status_code, nobody.json()["code"]) == (401, "unauthenticated")
    if whose != ANYBODYS:
        unscoped = await _asked(shop, path, "inventory:write")
        assert (unscoped.status_code, unscoped.json()["code"]) == (403, "scope_missing")
    own = await _asked(shop, path, "orders:read")
    assert (own.status_code, own.content, own.headers["X-Cache"]) == (200, kept.content, "hit")
