"""Plans and round trips of the catalogue's statements: by primary key, no sort, no scan, one round trip for a PUT."""

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from loadtests.explain import Explain
from services.catalog import queries, repository
from services.catalog.settings import CatalogSettings
from services.common import clock, ids
from services.common.db import Statement
from tests.catalog import Catalogue, new_product_id, opened_catalogue
from tests.plans.proxy import counting_proxy

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

DEAR = {"Sort", "Incremental Sort", "Seq Scan"}


@pytest.fixture
async def products(owner: "Connection") -> list[uuid.UUID]:
    """Enough products that an index is worth having, in the order of their ids."""
    await owner.execute(
        "INSERT INTO catalog.products (product_id, name, description, price, currency, active, version, updated_at)"
        " SELECT uuidv7(), 'Thing', '', 100, 'USD', TRUE, 1, now() FROM generate_series(1, 3000)"
    )
    await owner.execute("VACUUM (ANALYZE) catalog.products")
    return [row[0] for row in await owner.fetch("SELECT product_id FROM catalog.products ORDER BY product_id")]


def write(product_id: uuid.UUID, version: int) -> dict[str, Any]:
    """Values for PUT_PRODUCT."""
    now = clock.now()
    return {
        "product_id": product_id,
        "name": "Pot",
        "description": "",
        "price": 1,
        "currency": "USD",
        "active": True,
        "version": version,
        "updated_at": now,
        "slice": ids.shard_of(product_id) % ids.SLICES,
        "event_id": ids.new_id(now),
        "type": "product.changed",
        "data": "{}",
        "actor": "process:test",
        "traceparent": None,
    }


@pytest.mark.parametrize("there", [True, False])
async def test_putting_touches_one_product_by_primary_key_and_writes_its_event(
    explain: Explain, products: list[uuid.UUID], there: bool
) -> None:
    values = write(products[1000], 2) if there else write(ids.new_id(clock.now()), 1)
    plan = await explain(repository.PUT_PRODUCT, **values)
    assert not plan.node_types() & DEAR
    assert plan.indexes("products") <= {"pk_products"}
    assert plan.rows_read() == (1 if there else 0)
    (written,) = (n for n in plan.nodes() if n["Node Type"] == "ModifyTable" and n["Relation Name"] == "outbox")
    assert written["Actual Rows"] == 1


ALL: dict[str, Any] = {"active": True, "currency": None, "price_from": None, "price_to": None}


@pytest.mark.parametrize(
    ("statement", "index"),
    [(repository.LIST_NEWEST, "ix_products_newest"), (repository.LIST_BY_NAME, "ix_products_by_name")],
    ids=["newest", "by name"],
)
@pytest.mark.parametrize("at", [0, 1500, 2990])
async def test_a_page_reads_its_index_in_order_until_it_is_full_and_its_products_by_primary_key(
    explain: Explain, products: list[uuid.UUID], statement: Statement, index: str, at: int
) -> None:
    left = 3000 - at if statement is repository.LIST_BY_NAME else at + 1
    plan = await explain(statement, **ALL, from_id=products[at], from_name="thing", after_id=None, walk=101, limit=101)
    assert plan.indexes("products") == {index, "pk_products"}
    assert not plan.node_types() & (DEAR - {"Sort"})
    assert plan.rows_read() == 2 * min(101, left)


async def test_filters_read_no_more_than_the_walk_and_nothing_of_the_table(
    explain: Explain, products: list[uuid.UUID]
) -> None:
    place = {"from_id": products[-1], "from_name": "", "after_id": None}
    for statement in (repository.LIST_NEWEST, repository.LIST_BY_NAME):
        plan = await explain(statement, **ALL | {"currency": "EUR"}, **place, walk=1000, limit=101)
        (walked,) = (node for node in plan.nodes() if node.get("Index Name", "").startswith("ix_products_"))
        assert (walked["Node Type"], walked["Actual Rows"]) == ("Index Only Scan", 1000)
        assert plan.rows_read() == 1000


async def test_a_put_takes_one_round_trip_and_one_that_writes_nothing_two(
    catalog_settings: CatalogSettings, issuer: tuple[Path, str], owner: "Connection", tmp_path: Path
) -> None:
    async with counting_proxy(catalog_settings.postgres_url, tmp_path) as proxy:
        settings = catalog_settings.model_copy(update={"postgres_url": proxy.url})
        async with opened_catalogue(settings, issuer[0], owner) as opened:
            product_id = await _warmed(opened)

            async def took(request: Any) -> tuple[int, int]:
                before = proxy.round_trips
                status = (await request).status_code
                return status, proxy.round_trips - before

            assert await took(opened.put(new_product_id())) == (201, 1)
            assert await took(opened.change(product_id, 2, price=3)) == (200, 1)
            assert await took(opened.put(product_id, price=3)) == (200, 2)
            assert await took(opened.change(product_id, 2, price=4)) == (412, 2)
            assert await took(opened.get(f"/v1/products/{product_id}")) == (200, 1)
            assert await took(opened.get("/v1/products")) == (200, 1)


async def _warmed(opened: Catalogue) -> str:
    """A product at version 2, once every statement has been prepared."""
    product_id = await opened.created()
    assert (await opened.change(product_id, 1, price=2)).status_code == 200
    assert (await opened.change(product_id, 1, price=2)).status_code == 412
    assert (await opened.get("/v1/products")).status_code == 200
    return product_id


SEARCHED: dict[str, Any] = ALL | {"limit": 20, "spelled_characters": 64, "candidates": 100}
FOUND_BY = {
    "thing 1500": "ix_products_by_name",
    "thing": "ix_products_name_words",
    "sturdy": "ix_products_all_words",
    "thinggs": "ix_products_spelling",
}


@pytest.fixture
async def named(owner: "Connection") -> None:
    """Products with the same words in all names and descriptions, in a session as catalog-api has it."""
    for name, value in queries.SESSION.items():
        await owner.execute("SELECT set_config($1, $2, false)", name, value)
    await owner.execute(
        "INSERT INTO catalog.products (product_id, name, description, price, currency, active, version, updated_at)"
        " SELECT uuidv7(), 'Thing ' || n, 'Sturdy.', 100, 'USD', TRUE, 1, now() FROM generate_series(1, 3000) n"
    )
    await owner.execute("VACUUM (ANALYZE) catalog.products")


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("q", FOUND_BY)
async def test_search_reads_by_its_indexes_and_compares_no_more_than_the_candidates_of_each(
    explain: Explain, q: str
) -> None:
    plan = await explain(repository.SEARCH, **SEARCHED, q=q)
    assert plan.scanned() == set()
    assert FOUND_BY[q] in {node.get("Index Name") for node in plan.nodes()}
    assert plan.indexes("products") <= {"pk_products", "ix_products_by_name"}, "the others only make bitmaps"
    compared = [node["Actual Rows"] for node in plan.nodes() if node["Node Type"] == "Bitmap Heap Scan"]
    assert all(rows <= SEARCHED["candidates"] for rows in compared)
    assert plan.rows_read() <= 2 * SEARCHED["candidates"] + 2 * SEARCHED["limit"]
    assert plan.root["Actual Rows"] == (1 if q == "thing 1500" else 20)


@pytest.mark.usefixtures("named")
@pytest.mark.parametrize("q", ["-thing", "-thing -sturdy", "thing or -sturdy", "\N{TEAPOT}", "!!!"])
async def test_of_a_question_that_narrows_nothing_no_index_is_read_from_end_to_end(explain: Explain, q: str) -> None:
    plan = await explain(repository.SEARCH, **SEARCHED, q=q)
    assert plan.rows_read() == 0
