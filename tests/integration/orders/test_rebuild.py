"""`orders rebuild`: rows, lines and stock follow from events and movements, also while orders are taken."""

import asyncio
from datetime import UTC, datetime
from typing import TypeAlias

import asyncpg
import pytest

from services.common import ids
from services.orders.histories import ITEM_COLUMNS, ORDER_COLUMNS
from services.orders.invariants import verify
from services.orders.rebuild import rebuild
from tests.integration.orders.test_verify import CORRUPTIONS, UNGUARDED
from tests.shop import Shop

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Rows = list[tuple[object, ...]]

ORDERS = 10  # that some_orders makes
KEY = ("order_id", "created_at", "shard", "line_no")
OTHER_VALUES = {
    "text": "'other'",
    "uuid": "gen_random_uuid()",
    "jsonb": """'[{"amount": 1}]'""",
    "timestamp with time zone": "now()",
}


async def stored(owner: Owner) -> tuple[Rows, Rows]:
    orders = await owner.fetch("SELECT * FROM orders.orders ORDER BY order_id")
    items = await owner.fetch("SELECT * FROM orders.order_items ORDER BY order_id, line_no")
    return [tuple(row) for row in orders], [tuple(row) for row in items]


async def some_orders(shop: Shop) -> None:
    """One in each state there is, with one and several lines."""
    products = [await shop.product(stock=1_000, price=price) for price in (1, 500, 1999)]
    lines = [(product, quantity) for quantity, product in enumerate(products, 1)]
    await shop.placed(*lines)
    await shop.placed(lines[0], lines[0], shipping_address_id="home")
    await shop.placed(*lines, payment_method="pm_card")
    await shop.command(await shop.placed(*lines, payment_method="pm_card"), "cancel", {"reason": "staff"})
    await shop.command(await shop.placed(*lines), "cancel", {"reason": "out_of_stock"})
    await shop.command(await shop.placed(*lines), "ship", {"tracking": "1Z9"})
    shipped = await shop.command(await shop.placed(lines[2]), "ship")
    assert (await shop.command(shipped.json(), "deliver")).status_code == 200
    part = {"items": [{"line_no": 1, "quantity": 1}]}
    await shop.command(await shop.placed(*lines), "ship", part)
    for returned in (part, {}):
        shipped = await shop.command(await shop.placed(*lines), "ship", {**part, "tracking": "first"})
        order = (await shop.command(shipped.json(), "ship")).json()
        order = (await shop.command(order, "deliver")).json()
        assert (await shop.command(order, "return", returned)).status_code == 200


async def drop_checks(owner: Owner) -> None:
    for table, name in await owner.fetch(
        "SELECT conrelid::regclass::text, conname FROM pg_constraint WHERE contype = 'c'"
        " AND conrelid IN ('orders.orders'::regclass, 'orders.order_items'::regclass)"
    ):
        await owner.execute(f"ALTER TABLE {table} DROP CONSTRAINT {name}")


async def test_empty_tables_are_filled_again_row_by_row(shop: Shop, owner: Owner, database_url: str) -> None:
    await some_orders(shop)
    before = await stored(owner)
    await owner.execute("TRUNCATE orders.orders, orders.order_items")
    result = await rebuild(database_url)
    assert (result.orders, result.written, result.left) == (ORDERS, ORDERS, [])
    assert await stored(owner) == before
    assert (await verify(database_url)).violated == []


async def test_a_second_run_writes_nothing(shop: Shop, database_url: str) -> None:
    await some_orders(shop)
    result = await rebuild(database_url)
    assert (result.orders, result.written, result.products) == (ORDERS, 0, 0)


@pytest.mark.parametrize(("table", "columns"), [("orders", ORDER_COLUMNS), ("order_items", ITEM_COLUMNS)])
async def test_every_column_is_seen_and_set_right(
    table: str, columns: tuple[str, ...], shop: Shop, owner: Owner, database_url: str
) -> None:
    await some_orders(shop)
    await drop_checks(owner)
    before = await stored(owner)
    types = {
        row["attname"]: row["kind"]
        for row in await owner.fetch(
            "SELECT attname, atttypid::regtype::text AS kind FROM pg_attribute WHERE attrelid = $1::text::regclass",
            f"orders.{table}",
        )
    }
    for column in set(columns) - set(KEY):
        other = OTHER_VALUES.get(types[column], f"{column} + 1")
        await owner.execute(f"UPDATE orders.{table} SET {column} = {other}")  # noqa: S608 # of ours
        verdicts = {verdict.name: verdict for verdict in (await verify(database_url)).verdicts}
        found = verdicts["order_row_is_fold" if table == "orders" else "items_are_fold"].violations
        assert len(found) == ORDERS, column
        assert all(f"{column} is " in violation.detail for violation in found)
        await rebuild(database_url)
        assert await stored(owner) == before, column


@pytest.mark.parametrize(
    "planted",
    [
        name
        for name, (_, noticed) in CORRUPTIONS.items()
        if not noticed
        & {"legal_transitions", "product_copy", "outbox_row_has_its_event", "partitions_present_and_alike"}
        and name != "a gap"
    ],
)
async def test_what_events_tell_is_green_afterwards(planted: str, shop: Shop, owner: Owner, database_url: str) -> None:
    await shop.placed((await shop.product(), 2))
    before = await stored(owner)
    await owner.execute(f"{UNGUARDED}; {CORRUPTIONS[planted][0]}")
    result = await rebuild(database_url)
    assert result.left == []
    assert (await verify(database_url)).violated == []
    assert await stored(owner) == before


async def test_an_order_whose_events_are_lost_is_left_and_named(shop: Shop, owner: Owner, database_url: str) -> None:
    order = await shop.placed()
    before = await stored(owner)
    await owner.execute(UNGUARDED)
    await owner.execute("DELETE FROM orders.order_events; DELETE FROM orders.outbox")
    result = await rebuild(database_url)
    assert len(result.left) == 1
    assert order["order_id"] in result.left[0]
    assert await stored(owner) == before


async def test_what_would_be_oversold_is_left_and_named(shop: Shop, owner: Owner, database_url: str) -> None:
    product = await shop.product(stock=5)
    await shop.placed((product, 5))
    await owner.execute("UPDATE orders.inventory_movements SET delta = 3")
    result = await rebuild(database_url)
    assert [left.split(":")[0] for left in result.left] == [product]
    assert await shop.stock(product) == (5, 5)


async def test_only_one_runs_at_a_time(owner: Owner, database_url: str) -> None:
    await owner.execute("SELECT pg_advisory_lock(hashtext('orders.rebuild'))")
    with pytest.raises(RuntimeError, match="another rebuild"):
        await rebuild(database_url)


async def test_orders_are_taken_and_changed_meanwhile(shop: Shop, owner: Owner, database_url: str) -> None:
    product = await shop.product(stock=100_000)
    over = asyncio.Event()

    async def buy(number: int) -> int:
        bought = 0
        while not over.is_set():
            order = await shop.placed((product, 1))
            response = await shop.command(order, ("ship", "cancel")[(bought + number) % 2])
            assert response.status_code == 200, response.text
            assert response.json()["version"] == 2
            bought += 1
        return bought

    async def spoil() -> None:
        while not over.is_set():
            await owner.execute("UPDATE orders.inventory SET on_hand = on_hand + 1, reserved = reserved + 1")
            await owner.execute(
                "UPDATE orders.orders SET tracking = 'spoilt'"
                " WHERE order_id = (SELECT order_id FROM orders.orders ORDER BY 1 DESC LIMIT 1)"
            )
            await asyncio.sleep(0.005)

    async with asyncio.TaskGroup() as tasks:
        buyers = [tasks.create_task(buy(number)) for number in range(4)]
        tasks.create_task(spoil())
        written = [(await rebuild(database_url)).written for _ in range(10)]
        over.set()
    assert min(buyer.result() for buyer in buyers) > 3
    assert sum(written) > 0
    await rebuild(database_url)
    assert (await verify(database_url)).violated == []


async def test_a_command_that_waits_for_the_rebuild_is_carried_out_once(
    shop: Shop, owner: Owner, database_url: str
) -> None:
    order = await shop.placed()
    key = ids.order_key(ids.from_text(order["order_id"]))
    await owner.execute("UPDATE orders.orders SET tracking = 'spoilt'")
    # Stock is what a command locks after the order: the rebuild holds neither, so it waits for the command's order.
    async with owner.transaction():
        await owner.execute("SELECT FROM orders.inventory FOR UPDATE")
        shipping = asyncio.create_task(shop.command(order, "ship"))
        await asyncio.sleep(0.2)
        rebuilding = asyncio.create_task(rebuild(database_url))
        await asyncio.sleep(0.2)
        assert not rebuilding.done()
    assert (await shipping).json()["version"] == 2
    assert (await rebuilding).left == []
    row = await owner.fetchrow(
        "SELECT status, version, updated_at FROM orders.orders WHERE order_id = $1", key.order_id
    )
    assert row is not None
    assert (row["status"], row["version"]) == ("shipped", 2)
    assert row["updated_at"] <= datetime.now(UTC)
    assert (await verify(database_url)).violated == []
