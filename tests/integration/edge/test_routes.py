"""The table of docs/edge.md held against the APIs themselves: each route, asked through the edge."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from services.catalog import api as catalog_api
from services.cli import edge as edge_files
from services.cli.edge_policy import POLICIES, Inside, Socket, Stored
from services.orders import api as orders_api
from services.realtime import api as realtime_api
from services.realtime.page import ASSETS
from services.realtime.settings import RealtimeSettings
from tests.catalog import Catalogue
from tests.conftest import UNUSED_KAFKA
from tests.edge import Running, kept, running
from tests.serving import serving
from tests.shop import Shop


@pytest.fixture
async def edge(shop: Shop, catalogue: Catalogue, tmp_path: Path) -> AsyncIterator[Running]:
    """Before all there is, as the processes serve it; the gateway without a stream."""
    gateway = realtime_api.create_app(RealtimeSettings(kafka_url=UNUSED_KAFKA))
    async with (
        serving(orders_api.create_app(shop.settings)) as orders,
        serving(catalog_api.create_app(catalogue.settings)) as catalog,
        serving(gateway) as realtime,
        running(tmp_path, {"orders": orders, "catalog": catalog, "realtime": realtime}) as opened,
    ):
        yield opened


def target(route: str, product_id: str) -> tuple[str, str]:
    """Method and path of a request that the route answers."""
    method, _, path = route.partition(" ")
    path = path.replace("{product_id}", product_id).replace("{name}", next(iter(ASSETS)))
    path = re.sub("{[^}]+}", "01JD5Q0000E2WXGF4K4Z7D3M5T", path)
    return method, f"{path}?q=lamp" if path == "/v1/search" else path


async def test_each_route_is_kept_or_not_as_the_table_says(edge: Running, catalogue: Catalogue) -> None:
    product_id, stored = await catalogue.created(), 0
    for service, routes in edge_files.served().items():
        for route in routes:
            policy = POLICIES[service][route]
            if isinstance(policy, Socket):
                continue
            method, path = target(route, product_id)
            first, second = [await edge.client.request(method, path) for _ in range(2)]
            if isinstance(policy, Stored):
                stored += 1
                assert (first.status_code, kept(first), kept(second)) == (200, "fwd=uri-miss", "hit"), route
                assert first.headers["cache-control"] == second.headers["cache-control"] == policy.cache_control, route
                assert first.content == second.content
                assert first.headers["date"] == second.headers["date"], "by which browsers tell its age"
            elif isinstance(policy, Inside):
                said = "" if path == "/healthz" else "not_found"  # the edge has a /healthz of its own
                assert [kept(first), kept(second)] == ["", ""], route
                assert (first.json()["code"] if said else "") == said
            else:
                assert [kept(first), kept(second)] == ["fwd=bypass"] * 2, route
                assert first.headers["cache-control"] in ("private, no-store", "no-cache"), route
    assert stored >= 3


async def test_what_nobody_has_is_not_kept(edge: Running) -> None:
    for _ in range(2):
        missing = await edge.get("/v1/products/01JD5Q0000E2WXGF4K4Z7D3M5T")
        assert (missing.status_code, kept(missing)) == (404, "fwd=uri-miss")
        assert missing.headers["cache-control"] == "private, no-store"


async def test_a_product_is_shown_for_its_time_and_changed_through_the_edge(
    edge: Running, catalogue: Catalogue
) -> None:
    product_id = await catalogue.created()
    path = f"/v1/products/{product_id}"
    seen = await edge.get(path)
    assert (seen.json()["version"], seen.headers["etag"]) == (1, '"1"')
    assert (await edge.get(path, If_None_Match='"1"')).status_code == 304
    changed = await edge.client.put(
        path,
        json={"name": "Kettle", "price": 5, "currency": "USD", "active": True},
        headers={**catalogue.auth(), "If-Match": seen.headers["etag"]},
    )
    assert (changed.status_code, changed.headers["etag"]) == (200, '"2"')
    assert (await edge.get(path)).json()["version"] == 1, "for six minutes at most"
    keeper = await edge.get(path, **catalogue.auth())
    assert (keeper.json()["version"], kept(keeper)) == (2, "fwd=bypass"), "who has a token sees what there is"


async def test_an_order_is_placed_and_read_through_the_edge_and_nobody_else_is_shown_it(
    edge: Running, shop: Shop
) -> None:
    body = {"currency": "USD", "items": [{"product_id": await shop.product(), "quantity": 1}]}
    async with httpx.AsyncClient(base_url=edge.edge.url, timeout=30) as client:
        placed = await client.post("/v1/orders", json=body, headers={**shop.auth(), "Idempotency-Key": "edge"})
        assert placed.status_code == 201, placed.text
        path = placed.headers["location"]
        for _ in range(2):
            mine = await client.get(path, headers=shop.auth())
            assert (mine.json(), mine.headers["cache-control"]) == (placed.json(), "private, no-store")
            assert (await client.get(path)).status_code == 401
