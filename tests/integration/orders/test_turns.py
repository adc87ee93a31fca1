"""A product that everybody wants takes a few connections, and leaves the others to those who buy something else."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import httpx
import pytest
from prometheus_client import REGISTRY

from services.common import clock, ids
from services.common.db import Database
from services.common.errors import DomainError
from services.orders import commands
from services.orders.commands import Key, Line, Placement
from services.orders.settings import OrdersSettings
from services.orders.turns import AT_ONCE, Turns
from tests.faults.waiting import eventually
from tests.shop import Shop, codes, opened_shop

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def narrow(orders_settings: OrdersSettings, issuer: tuple[Path, str], owner: Owner) -> AsyncIterator[Shop]:
    """A shop with one connection more than a product has turns."""
    settings = orders_settings.model_copy(update={"pool_size": AT_ONCE + 1})
    async with opened_shop(settings, issuer[0], owner) as opened:
        yield opened


@pytest.fixture
async def holder(database_url: str) -> AsyncIterator[Owner]:
    """Another connection of the owner: inside a transaction pg_stat_activity stands still."""
    connection = await asyncpg.connect(database_url)
    yield connection
    await connection.close()


@pytest.fixture
async def database(orders_settings: OrdersSettings) -> AsyncIterator[Database]:
    """As orders-api has it."""
    opened = Database(orders_settings.postgres_url, application_name="orders-api")
    await opened.open()
    yield opened
    await opened.close()


@asynccontextmanager
async def row_held(holder: Owner, product: str) -> AsyncIterator[None]:
    """Whoever wants stock of the product waits, until the end of the block."""
    async with holder.transaction():
        by_id = ids.from_text(product)
        await holder.execute("SELECT FROM orders.inventory WHERE product_id = $1 FOR NO KEY UPDATE", by_id)
        yield


async def in_database(owner: Owner) -> int:
    """How many placements wait for a lock inside PostgreSQL."""
    count: int = await owner.fetchval(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND usename = 'orders_api'"
        " AND wait_event_type = 'Lock'"
    )
    return count


def outside() -> float:
    """How many wait for their turn in this process."""
    return REGISTRY.get_sample_value("order_turns_waiting") or 0.0


async def queued(owner: Owner, orders: int) -> None:
    """So many orders of one product have come as far as they can."""

    async def settled() -> bool:
        return (await in_database(owner), outside()) == (AT_ONCE, orders - AT_ONCE)

    await eventually(settled, f"{AT_ONCE} wait in the database, {orders - AT_ONCE} outside", seconds=10)


async def bought(shop: Shop, *products: str) -> httpx.Response:
    """The answer to an order of one of each; whoever is told to come again does so with the same key."""
    key = secrets.token_hex(8)
    while (response := await shop.place(*((product, 1) for product in products), key=key)).status_code == 503:
        assert response.headers["retry-after"]
    return response


async def test_others_are_served_while_all_wait_for_one_product(narrow: Shop, owner: Owner, holder: Owner) -> None:
    wanted, other = await narrow.product(stock=10), await narrow.product()
    async with row_held(holder, wanted):
        waiting = [asyncio.create_task(bought(narrow, wanted)) for _ in range(12)]
        await queued(owner, 12)
        for _ in range(3):
            assert (await narrow.place((other, 1))).status_code == 201
    assert sorted(codes(await asyncio.gather(*waiting))) == ["201"] * 10 + ["out_of_stock"] * 2
    assert await narrow.stock(wanted) == (10, 10)
    assert await narrow.stock(other) == (100, 3)
    assert outside() == 0


async def test_without_a_turn_in_time_nothing_is_stored_but_a_known_key_is_answered_all_the_same(
    database: Database, shop: Shop
) -> None:
    wanted, turns = await shop.product(), Turns(at_once=1, within_seconds=0)
    place = partial(commands.place_order, database, turns, one_of(shop, wanted))
    when = partial(dict[str, Any], now=clock.now(), traceparent="", expires_after=timedelta(minutes=30))
    first = await place(Key("s", "first", b"body"), **when())
    async with turns.turn([ids.from_text(wanted)]):
        with pytest.raises(DomainError) as refused:
            await place(Key("s", "second", b"body"), **when())
        assert (refused.value.status, refused.value.code) == (503, "unavailable")
        assert refused.value.headers["Retry-After"] == "1"
        replay = await place(Key("s", "first", b"body"), **when())
        with pytest.raises(DomainError, match="key_reused"):
            await place(Key("s", "first", b"another"), **when())
    assert replay.replayed
    assert replay.order == first.order
    assert await shop.stock(wanted) == (100, 1)
    assert not (await place(Key("s", "second", b"body"), **when())).replayed
    assert await shop.stock(wanted) == (100, 2)


def one_of(shop: Shop, product: str) -> Placement:
    line = Line(ids.from_text(product), product, 1, None)
    return Placement(shop.buyer, f"user:{shop.buyer}", "USD", [line], [], False, None, None)
