"""Plans of what consumers write: primary keys, whatever the size of the tables."""

import uuid
from typing import TYPE_CHECKING

import pytest

from loadtests.explain import Explain
from services.common import clock
from services.orders.repository import INBOX

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


async def test_forgetting_reads_only_what_is_old(
    explain: Explain, products: list[uuid.UUID], owner: "Connection"
) -> None:
    await owner.execute(
        "UPDATE orders.inbox SET updated_at = now() - INTERVAL '40 days' WHERE key = ANY($1)", [*map(str, products)]
    )
    plan = await explain(INBOX.delete, older_than=clock.now())
    assert plan.scanned() == set()
    assert "ix_inbox_updated_at" in plan.indexes("inbox")
