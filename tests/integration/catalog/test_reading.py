"""Products are read by anybody, and may be kept for a minute."""

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest

from services.catalog.settings import CatalogSettings
from services.common import caches
from services.common.cache import breaker
from services.relay.settings import RelaySettings
from tests.catalog import Catalogue, new_product_id, opened_catalogue
from tests.conftest import UNUSED_KAFKA, AsRole
from tests.contracts.description import Description, refused
from tests.faults.waiting import eventually
from tests.integration.catalog.test_bulk import line, send
from tests.integration.relay.conftest import relaying

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

SHARED = "public, max-age=60, stale-while-revalidate=300"


async def test_anybody_may_read_a_product_and_keep_it(catalogue: Catalogue) -> None:
    product_id = await catalogue.created()
    response = await catalogue.get(f"/v1/products/{product_id}")
    assert (response.status_code, response.headers["etag"], response.headers["cache-control"]) == (200, '"1"', SHARED)
    assert float(response.headers["server-timing"].partition("db;dur=")[2].partition(",")[0]) > 0


@pytest.mark.parametrize(
    ("tags", "status"),
    [('"1"', 304), ('W/"1"', 304), ('"7", "1"', 304), ("*", 304), ('"2"', 200), ('"11"', 200), ("1", 200)],
)
async def test_who_has_the_version_is_not_sent_it_again(catalogue: Catalogue, tags: str, status: int) -> None:
    product_id = await catalogue.created()
    response = await catalogue.get(f"/v1/products/{product_id}", headers={"If-None-Match": tags})
    assert (response.status_code, response.headers["etag"]) == (status, '"1"')
    assert response.headers["cache-control"] == SHARED
    assert bool(response.content) == (status == 200)


async def test_refusals_are_nobody_elses_to_keep(catalogue: Catalogue) -> None:
    for path in (f"/v1/products/{new_product_id()}", "/v1/products/x", "/v1/products?limit=0", "/v1/products?cursor=x"):
        response = await catalogue.client.get(path)
        assert response.status_code in {400, 404, 422}
        assert response.headers["cache-control"] == "private, no-store"


async def test_the_process_says_that_it_lives_and_is_ready(catalogue: Catalogue) -> None:
    assert (await catalogue.get("/healthz")).json() == {"status": "ok"}
    assert (await catalogue.get("/readyz")).json() == {"status": "ok", "warnings": []}


@pytest.fixture
async def cached(
    catalog_settings: CatalogSettings,
    issuer: tuple[Path, str],
    owner: Owner,
    description: Description,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Catalogue]:
    """A catalogue that reads through the cache. A machine that is slow just now is no cache that is away."""
    monkeypatch.setattr(caches, "breaker", partial(breaker, call_seconds=5.0))
    settings = catalog_settings.model_copy(update={"cache_url": None})
    async with opened_catalogue(settings, issuer[0], owner) as opened:
        opened.client.event_hooks["response"].append(description.check)
        yield opened


async def _read(catalogue: Catalogue, product_id: str, **headers: str) -> tuple[str, int, str]:
    """Where the answer came from, its status and its ETag."""
    response = await catalogue.get(f"/v1/products/{product_id}", headers=headers)
    assert "age" not in response.headers  # shared caches would count it against their minute
    assert response.headers["cache-control"] == SHARED
    return response.headers["x-cache"], response.status_code, response.headers["etag"]


async def test_a_product_is_read_from_the_cache_until_it_is_put(cached: Catalogue) -> None:
    product_id = await cached.created()
    assert await _read(cached, product_id) == ("miss", 200, '"1"')
    assert await _read(cached, product_id) == ("hit", 200, '"1"')
    assert await _read(cached, product_id, **{"If-None-Match": '"1"'}) == ("hit", 304, '"1"')
    assert (await cached.put(product_id)).status_code == 200, "the same again: nothing is replaced"
    assert await _read(cached, product_id) == ("hit", 200, '"1"')
    changed = await cached.change(product_id, 1, price=5)
    assert await _read(cached, product_id, **{"If-None-Match": '"1"'}) == ("miss", 200, '"2"')
    shown = await cached.get(f"/v1/products/{product_id}")
    assert (shown.headers["x-cache"], shown.content) == ("hit", changed.content)


async def test_a_product_is_read_from_the_cache_until_a_bulk_replaces_it(cached: Catalogue) -> None:
    same, other = await cached.created(), await cached.created()
    for product_id in (same, other):
        assert [await _read(cached, product_id) for _ in range(2)][1] == ("hit", 200, '"1"')
    await send(cached, line(same) + line(other, price=5))
    assert await _read(cached, same) == ("hit", 200, '"1"')
    assert await _read(cached, other) == ("miss", 200, '"2"')


async def test_that_a_product_is_missing_is_not_kept(cached: Catalogue) -> None:
    product_id = new_product_id()
    for _ in range(2):
        assert refused(await cached.get(f"/v1/products/{product_id}")) == "404 not_found"
    assert (await cached.put(product_id)).status_code == 201
    assert await _read(cached, product_id) == ("miss", 200, '"1"')


async def test_without_a_cache_the_database_answers(catalogue: Catalogue) -> None:
    product_id = await catalogue.created()
    for _ in range(2):
        assert await _read(catalogue, product_id) == ("bypass", 200, '"1"')


async def test_what_a_writer_could_not_tell_the_cache_the_relay_does(
    cached: Catalogue, catalogue: Catalogue, owner: Owner, as_role: AsRole, valkey_url: str
) -> None:
    product_id = await cached.created()
    assert [await _read(cached, product_id) for _ in range(2)][1] == ("hit", 200, '"1"')
    assert (await catalogue.change(product_id, 1, price=5)).status_code == 200  # by one that has no cache
    assert await _read(cached, product_id) == ("hit", 200, '"1"')
    settings = RelaySettings(postgres_url=as_role("outbox_relay"), valkey_url=valkey_url, kafka_url=UNUSED_KAFKA)
    async with relaying(settings):

        async def told() -> bool:
            return not await owner.fetchval("SELECT count(*) FROM catalog.invalidations")

        await eventually(told, "told and deleted")
    assert await _read(cached, product_id) == ("miss", 200, '"2"')
