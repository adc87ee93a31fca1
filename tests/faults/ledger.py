"""What buyers were answered, held against what the database has: once, whole, and with the stock it takes."""

from collections import Counter
from typing import Any

import asyncpg
import orjson

from services.common import ids
from services.orders.invariants import verify
from tests.faults.buyers import Asked

# All that one placement leaves, counted by order; joined to nothing, so that a half order is seen as one.
_TRACES = """
SELECT k.key, k.resource AS order_id, k.version AS answered_version,
       (SELECT count(*) FROM orders.orders o WHERE o.order_id = k.resource) AS orders,
       (SELECT max(o.version) FROM orders.orders o WHERE o.order_id = k.resource) AS version,
       (SELECT array_agg(e.version ORDER BY e.version) FROM orders.order_events e WHERE e.order_id = k.resource)
           AS versions,
       (SELECT array_agg(x.version ORDER BY x.position) FROM orders.outbox x WHERE x.order_id = k.resource) AS waiting,
       (SELECT jsonb_object_agg(i.product_id, i.quantity)::text FROM (
           SELECT product_id, sum(quantity) AS quantity FROM orders.order_items i
           WHERE i.order_id = k.resource GROUP BY product_id) i) AS quantities
FROM orders.idempotency_keys k
"""


async def assert_each_key_made_one_whole_order(
    owner: "asyncpg.Connection[asyncpg.Record]", asked: list[Asked], *, relayed: bool
) -> None:
    """Of every answered key there is the one order that was answered, whole; and there is nothing besides.

    `relayed`: the outbox is empty; without it no relay runs, and every event still waits there.
    """
    rows = await owner.fetch(_TRACES)
    by_key = {row["key"]: row for row in rows}
    assert len(by_key) == len(rows), "a key is stored twice"
    assert set(by_key) == {one.key for one in asked}, "keys that nobody was answered, or answers without a key"
    placed = [one for one in asked if one.path == "/v1/orders"]
    orders = {by_key[one.key]["order_id"] for one in placed}
    assert len(orders) == len(placed), "two keys share an order"
    total = await owner.fetchrow(
        "SELECT (SELECT count(*) FROM orders.orders) AS orders,"
        " (SELECT count(DISTINCT order_id) FROM orders.order_items) AS with_items,"
        " (SELECT count(DISTINCT order_id) FROM orders.order_events) AS with_events,"
        " (SELECT count(*) FROM orders.outbox) AS outbox, (SELECT count(*) FROM orders.order_events) AS events"
    )
    assert total is not None
    assert (total["orders"], total["with_items"], total["with_events"]) == (len(placed),) * 3, "an order without a key"
    assert total["outbox"] == (0 if relayed else total["events"])
    for one in asked:
        _assert_whole(one, by_key[one.key], relayed=relayed)


def _assert_whole(one: Asked, row: asyncpg.Record, *, relayed: bool) -> None:
    assert one.answer is not None, f"{one.key} was never answered"
    answer = orjson.loads(one.answer)
    assert ids.from_text(answer["order_id"]) == row["order_id"]
    assert row["orders"] == 1, f"{one.key}: {row['orders']} rows"
    assert row["versions"] == list(range(1, row["version"] + 1))
    assert row["answered_version"] == answer["version"]
    if not relayed:
        assert row["waiting"] == row["versions"]
    if one.path == "/v1/orders":
        wanted = {str(ids.from_text(product)): quantity for product, quantity in one.lines.items()}
        assert orjson.loads(row["quantities"]) == wanted


async def assert_stock_is_what_orders_hold(
    owner: "asyncpg.Connection[asyncpg.Record]", asked: list[Asked], *, gone: set[str]
) -> None:
    """`reserved` is what the answered orders ordered, but for the orders in `gone`: shipped, or cancelled."""
    reserved: Counter[str] = Counter()
    for one in asked:
        if one.path == "/v1/orders" and one.answer and orjson.loads(one.answer)["order_id"] not in gone:
            reserved.update(one.lines)
    rows = await owner.fetch("SELECT product_id, reserved FROM orders.inventory WHERE reserved <> 0")
    assert {ids.to_text(row["product_id"]): row["reserved"] for row in rows} == {
        product: quantity for product, quantity in reserved.items() if quantity
    }


async def assert_invariants_hold(owner_url: str) -> None:
    """Every invariant of the database holds."""
    report = await verify(owner_url)
    assert report.violated == [], [message for verdict in report.verdicts for message in verdict.messages]


async def stock_up(owner: "asyncpg.Connection[asyncpg.Record]", products: int, on_hand: int) -> list[str]:
    """That many products for sale, each with as much stock and the movement that brought it; gives their ULIDs."""
    rows: list[dict[str, Any]] = [
        dict(row)
        for row in await owner.fetch(
            """
WITH offered AS (
    INSERT INTO catalog.products (product_id, name, description, price, currency, active, version, updated_at)
    SELECT uuidv7(), 'Thing ' || i, '', 100 + i, 'USD', TRUE, 1, now() FROM generate_series(1, $1) i
    RETURNING *
), made AS (
    INSERT INTO orders.products (product_id, name, price, currency, active, version)
    SELECT product_id, name, price, currency, active, version FROM offered
    RETURNING product_id
), stocked AS (
    INSERT INTO orders.inventory (product_id, on_hand, reserved, version) SELECT product_id, $2, 0, 1 FROM made
), moved AS (
    INSERT INTO orders.inventory_movements (product_id, version, delta, reason, actor, on_hand, reserved, subject, key,
        request_hash, created_at)
    SELECT product_id, 1, $2, 'opening', 'process:test', $2, 0, 'test', 'opening', '', now() FROM made
)
SELECT product_id FROM made
""",
            products,
            on_hand,
        )
    ]
    return [ids.to_text(row["product_id"]) for row in rows]
