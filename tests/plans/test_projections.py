"""Plans of what consumers write: primary keys, whatever the size of the tables."""

import uuid
from datetime import date
from typing import TYPE_CHECKING

import pytest

from services.common import clock
from services.orders.repository import COPY_PRODUCTS, INBOX
from services.orders.rollups import ADD, READ_NEW, records
from services.orders.sales import Deltas
from tests.plans.conftest import Explain

if TYPE_CHECKING:
    import asyncpg

    Connection = asyncpg.Connection[asyncpg.Record]


@pytest.fixture
async def products(owner: "Connection") -> list[uuid.UUID]:
    """Many products with stock, all in the inbox; gives some of them."""
    await owner.execute(
        "INSERT INTO orders.products (product_id, name, price, currency, active, version)"
        " SELECT uuidv7(), 'Thing', 100, 'USD', TRUE, 1 FROM generate_series(1, 20000)"
    )
    await owner.execute(
        "INSERT INTO orders.inventory (product_id, on_hand, reserved, version)"
        " SELECT product_id, 1, 0, 1 FROM orders.products"
    )
    await owner.execute(
        "INSERT INTO orders.inbox (consumer, topic, key, last_version, updated_at)"
        " SELECT 'orders-projector', 't', product_id::text, 1, now() FROM orders.products"
    )
    await owner.execute("ANALYZE orders.products, orders.inventory, orders.inbox")
    return [row["product_id"] for row in await owner.fetch("SELECT product_id FROM orders.products LIMIT 50")]


async def test_the_inbox_finds_its_rows_by_the_primary_key(explain: Explain, products: list[uuid.UUID]) -> None:
    plan = await explain(
        INBOX.advance,
        consumer="orders-projector",
        topic="t",
        keys=[*map(str, products), "new"],
        versions=[2] * len(products) + [1],
    )
    (insert,) = [node for node in plan.nodes() if node["Node Type"] == "ModifyTable"]
    assert insert["Conflict Arbiter Indexes"] == ["pk_inbox"]
    assert (insert["Conflicting Tuples"], insert["Tuples Inserted"]) == (50, 1)
    assert plan.scanned() == set()


async def test_the_copy_finds_products_and_stock_by_their_primary_keys(
    explain: Explain, products: list[uuid.UUID]
) -> None:
    changed = [*products, uuid.uuid4()]
    count = len(changed)
    plan = await explain(
        COPY_PRODUCTS,
        product_ids=changed,
        names=["Other"] * count,
        prices=[1] * count,
        currencies=["USD"] * count,
        actives=[True] * count,
        versions=[2] * count,
    )
    (insert,) = [node for node in plan.nodes() if "Conflict Arbiter Indexes" in node]
    assert insert["Conflict Arbiter Indexes"] == ["pk_products"]
    assert plan.indexes("inventory") == {"pk_inventory"}
    assert plan.scanned() == set()
    assert plan.rows_read() < 10 * count


async def test_forgetting_reads_only_what_is_old(
    explain: Explain, products: list[uuid.UUID], owner: "Connection"
) -> None:
    await owner.execute(
        "UPDATE orders.inbox SET updated_at = now() - INTERVAL '40 days' WHERE key = ANY($1)", [*map(str, products)]
    )
    plan = await explain(INBOX.delete, older_than=clock.now())
    assert plan.scanned() == set()
    assert "ix_inbox_updated_at" in plan.indexes("inbox")


async def test_what_is_new_of_orders_is_read_by_primary_key_in_their_months_alone(
    explain: Explain, owner: "Connection"
) -> None:
    await owner.execute(
        """
        INSERT INTO orders.order_events (order_id, created_at, shard, version, event_id, type, data, actor, occurred_at)
        SELECT id, uuid_extract_timestamp(id), ((get_byte(uuid_send(id), 6) & 15) << 8) + get_byte(uuid_send(id), 7),
               v, id, 'order.placed', '{}', 'process:test', now()
        FROM (SELECT uuidv7() AS id FROM generate_series(1, 5000)) made CROSS JOIN generate_series(1, 3) v
        """
    )
    await owner.execute("ANALYZE orders.order_events")
    rows = await owner.fetch("SELECT order_id, created_at, shard FROM orders.order_events WHERE version = 1 LIMIT 50")
    plan = await explain(
        READ_NEW,
        order_ids=[row["order_id"] for row in rows],
        created_ats=[row["created_at"] for row in rows],
        shards=[row["shard"] for row in rows],
        counted_versions=[2] * len(rows),
        versions=[3] * len(rows),
    )
    assert plan.scanned() == set()
    assert plan.partitions("order_events") == {f"order_events_{clock.now():%Y_%m}"}
    assert plan.rows_read() == 2 * len(rows)


async def test_sums_are_added_to_rows_found_by_their_primary_keys(explain: Explain, owner: "Connection") -> None:
    await owner.execute(
        "INSERT INTO orders.sales_daily_product SELECT DATE '2026-01-01' + n, 'USD', gen_random_uuid(), 1, 1"
        " FROM generate_series(1, 5000) n"
    )
    await owner.execute("ANALYZE orders.sales_daily_product")
    deltas = Deltas(products={(date(2026, 1, 2), "USD", uuid.uuid4()): [1, 1]})
    plan = await explain(ADD, **records(deltas))
    assert plan.scanned() == set()
