"""What is charged when products change while orders are placed: what was true at the order's commit."""

import asyncio
import bisect
import itertools
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from services.common import ids
from services.common.db import ReadConnection, WriteConnection
from services.orders.repository import COPY_PRODUCTS
from tests.conftest import AsRole
from tests.contracts.description import refused
from tests.shop import Shop

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]


@pytest.fixture
async def projector(as_role: AsRole) -> AsyncIterator[WriteConnection]:
    """A connection as orders-projector."""
    connection = await asyncpg.connect(as_role("orders_projector"))
    yield WriteConnection(ReadConnection(connection))  # type: ignore[arg-type] # of no pool
    await connection.close()


async def copy(projector: WriteConnection, product: str, version: int, *, price: int = 1, active: bool = True) -> None:
    """The product changes as the projector changes it."""
    await COPY_PRODUCTS.rows(
        projector,
        **{"product_ids": [ids.from_text(product)], "names": ["Thing"], "prices": [price], "currencies": ["USD"]},
        **{"actives": [active], "versions": [version]},
    )


async def someone_waits_for_a_lock(connection: "Connection") -> None:
    async with asyncio.timeout(60):
        while not await connection.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        ):
            await connection.execute("SELECT pg_stat_clear_snapshot()")  # else a transaction sees the same each time
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("changed", "body", "verdict"),
    [
        ({"price": 150}, {}, 150),
        ({"price": 150}, {"unit_price": 100}, "409 price_changed"),
        ({"price": 150}, {"unit_price": 150}, 150),
        ({"active": False}, {}, "409 product_inactive"),
    ],
)
async def test_what_changes_while_an_order_waits_for_stock_counts(
    shop: Shop,
    owner: "Connection",
    projector: WriteConnection,
    changed: dict[str, Any],
    body: dict[str, Any],
    verdict: int | str,
) -> None:
    product = await shop.product(price=100)
    if body.get("unit_price") == 150:  # what is not the price yet is refused before it waits
        await copy(projector, product, 2, price=150)
        changed = {"price": 150, "active": True}
    async with projector.transaction():
        # It has the stock's row, so the order, which has read the product as it was, waits for it.
        await copy(projector, product, 3, **changed)
        placing = asyncio.create_task(shop.place(items=[{"product_id": product, "quantity": 1, **body}]))
        await someone_waits_for_a_lock(owner)
    response = await placing
    assert (response.json()["total_amount"] if response.status_code == 201 else refused(response)) == verdict


async def test_a_product_does_not_change_before_the_orders_that_have_read_it_are_committed(
    shop: Shop, owner: "Connection", projector: WriteConnection
) -> None:
    product = await shop.product(price=100)
    async with owner.transaction():
        # As an order between its locks and its commit.
        by_id = ids.from_text(product)
        await owner.execute("SELECT FROM orders.inventory WHERE product_id = $1 FOR NO KEY UPDATE", by_id)
        changing = asyncio.create_task(copy(projector, product, 2, price=150))
        await someone_waits_for_a_lock(owner)
        assert await owner.fetchval("SELECT price FROM orders.products WHERE product_id = $1", by_id) == 100
    await changing
    assert (await shop.placed((product, 1)))["total_amount"] == 150


async def test_racing_changes_every_order_is_charged_the_price_at_its_commit(
    shop: Shop, owner: "Connection", projector: WriteConnection
) -> None:
    # Orders and changes of one product take turns for its stock's row; an order's place in the outbox is given to it
    # while it has the row, and so is a change's: the places tell who came after whom.
    product = await shop.product(price=1, stock=1_000)
    changes: list[tuple[int, int]] = [(0, 1)]  # place in the outbox, price from there on
    placed, all_placed = asyncio.Event(), asyncio.Event()

    async def change() -> None:
        """Once an order, or so: whoever changes a product without pause leaves nobody the time to buy it."""
        for version in itertools.count(2):
            await placed.wait()
            placed.clear()
            if all_placed.is_set():
                return
            async with projector.transaction():
                await copy(projector, product, version, price=version)
                last = await owner.fetchval("SELECT coalesce(max(position), 0) FROM orders.outbox")
                changes.append((last, version))

    async def place(buyer: int) -> list[dict[str, Any]]:
        orders = []
        for number in range(25):
            # Whoever is overtaken by a change again and again is told to come again (503), with the same key.
            while (response := await shop.place((product, 1), key=f"{buyer}-{number}")).status_code == 503:
                assert response.headers["retry-after"]
            assert response.status_code == 201, response.text
            orders.append(response.json())
            placed.set()
        return orders

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(change())
        placing = [tasks.create_task(place(buyer)) for buyer in range(8)]
        orders = [order for task in placing for order in await task]
        all_placed.set()
        placed.set()
    places = {
        ids.to_text(row["order_id"]): row["position"]
        for row in await owner.fetch("SELECT order_id, position FROM orders.outbox")
    }
    assert len(orders) == len(places) == 200
    charged = {order["total_amount"] for order in orders}
    assert len(charged) > 20, "the changes did not race"
    for order in orders:
        at = bisect.bisect_left(changes, (places[order["order_id"]], 0)) - 1
        assert order["total_amount"] == changes[at][1]


async def test_a_replay_after_a_change_is_the_first_answer(shop: Shop, projector: WriteConnection) -> None:
    product = await shop.product(price=100)
    first = await shop.place((product, 1), key="k")
    await copy(projector, product, 2, price=150, active=False)
    replay = await shop.place((product, 1), key="k")
    assert (replay.status_code, replay.content) == (201, first.content)
    assert refused(await shop.place((product, 1))) == "409 product_inactive"
