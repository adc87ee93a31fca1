"""`orders seed`: a past that is whole, the same for the same seed, and read like any other."""

from collections import Counter
from datetime import datetime
from typing import TypeAlias

import asyncpg
import pytest

from services.common import clock, ids
from services.orders.invariants import verify
from services.orders.seed import AlreadySeededError, Seeded, seed
from tests.shop import Shop

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

NOW = clock.now()
TABLES = (
    *("orders.orders", "orders.order_items", "orders.order_events", "orders.inventory"),
    *("orders.inventory_movements", "orders.products", "catalog.products"),
)


async def load(url: str, *, orders: int = 2_000, number: int = 1, now: datetime = NOW, stock: int = 50) -> Seeded:
    return await seed(url, products=40, orders=orders, stock=stock, months=4, seed=number, now=now)


async def everything(owner: Owner) -> dict[str, list[str]]:
    return {
        table: [row["row"] for row in await owner.fetch(f"SELECT t::text AS row FROM {table} t ORDER BY 1")]  # noqa: S608 # of ours
        for table in TABLES
    }


@pytest.fixture
async def seeded(database_url: str) -> Seeded:
    """Before the shop opens: it looks for its first month then."""
    return await load(database_url)


async def test_every_invariant_holds(seeded: Seeded, owner: Owner, database_url: str) -> None:
    report = await verify(database_url)
    assert [message for verdict in report.verdicts for message in verdict.messages] == []
    assert report.verdicts[0].rows == seeded.orders == 2_000
    assert await owner.fetchval("SELECT count(*) FROM orders.outbox") == 0


async def test_the_past_is_spread_and_mixed(seeded: Seeded, owner: Owner) -> None:
    months = await owner.fetch(
        "SELECT date_trunc('month', created_at) AS month, count(*) FROM orders.orders GROUP BY 1"
    )
    assert len(months) == 4
    statuses = {row["status"] for row in await owner.fetch("SELECT DISTINCT status FROM orders.orders")}
    assert statuses == {"confirmed", "shipped", "delivered", "cancelled"}
    assert await owner.fetchval("SELECT max(occurred_at) FROM orders.order_events") <= NOW
    bought = Counter[object](row["user_id"] for row in await owner.fetch("SELECT user_id FROM orders.orders"))
    assert bought.most_common(1)[0][0] == seeded.buyer
    assert bought[seeded.buyer] > 3 * len(bought) ** -1 * 2_000
    left = await owner.fetch("SELECT on_hand - reserved AS left FROM orders.inventory")
    assert {row["left"] for row in left} == {50}


async def test_the_same_seed_makes_the_same_rows(seeded: Seeded, owner: Owner, database_url: str) -> None:
    first = await everything(owner)
    await owner.execute("SET session_replication_role = replica")
    for table in TABLES:
        await owner.execute(f"DELETE FROM {table}")  # noqa: S608 # of ours
    assert (await load(database_url)).rows == seeded.rows
    assert await everything(owner) == first


async def test_a_seed_is_loaded_once_and_another_beside_it(seeded: Seeded, owner: Owner, database_url: str) -> None:
    with pytest.raises(AlreadySeededError):
        await load(database_url)
    assert await owner.fetchval("SELECT count(*) FROM orders.orders") == seeded.orders
    await load(database_url, number=2, orders=300)
    assert await owner.fetchval("SELECT count(*) FROM orders.orders") == seeded.orders + 300
    assert (await verify(database_url)).violated == []


async def test_what_ends_early_is_whole(owner: Owner, database_url: str) -> None:
    def stop(_what: str, done: int, _total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await seed(database_url, products=40, orders=5_000, months=2, now=NOW, progress=stop)
    assert await owner.fetchval("SELECT count(*) FROM orders.orders") == 2_000
    assert (await verify(database_url)).violated == []


async def test_seeded_orders_are_read_shipped_and_cancelled_like_others(
    seeded: Seeded, shop: Shop, owner: Owner, database_url: str
) -> None:
    shop.buyer = seeded.buyer
    listed, cursor = [], None
    while True:
        page = await shop.get("/v1/orders", limit=100, **({"cursor": cursor} if cursor else {}))
        assert page.status_code == 200, page.text
        listed += page.json()["data"]
        cursor = page.json()["next_cursor"]
        if cursor is None:
            break
    rows = await owner.fetch(
        "SELECT order_id, total_amount, status FROM orders.orders WHERE user_id = $1 ORDER BY order_id DESC",
        seeded.buyer,
    )
    told = [(ids.to_text(row["order_id"]), row["total_amount"], row["status"]) for row in rows]
    assert [(order["order_id"], order["total_amount"], order["status"]) for order in listed] == told
    for order in (listed[0], listed[-1]):
        assert (await shop.get(f"/v1/orders/{order['order_id']}")).json() == order
        events = (await shop.get(f"/v1/orders/{order['order_id']}/events")).json()["data"]
        assert [event["version"] for event in events] == list(range(1, order["version"] + 1))
    open_orders = await owner.fetch("SELECT order_id, user_id FROM orders.orders WHERE status = 'confirmed' LIMIT 2")
    for row, command in zip(open_orders, ("ship", "cancel"), strict=True):
        order_id = ids.to_text(row["order_id"])
        answer = await shop.command({"order_id": order_id, "version": 1}, command)
        assert answer.status_code == 200, answer.text
    product = ids.to_text(await owner.fetchval("SELECT product_id FROM orders.products LIMIT 1"))
    await shop.placed((product, 50))
    assert (await shop.place((product, 1))).status_code == 409
    assert (await verify(database_url)).violated == []
