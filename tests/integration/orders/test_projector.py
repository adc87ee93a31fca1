"""The copy of the catalogue's products: as the newest event of each says, however often and in what gaps they come."""

import secrets
from collections.abc import AsyncIterator
from functools import partial
from typing import Any, TypeAlias

import asyncpg
import pytest

from services.common import ids
from services.common.db import Database
from services.common.stream import ensure_topic
from services.orders import projections
from tests.catalogue import new_product_id, publish, told
from tests.conftest import AsRole
from tests.consuming import Group
from tests.faults.waiting import eventually

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def topic(kafka_url: str) -> str:
    """A topic of the test's own."""
    name = f"catalog.{secrets.token_hex(4)}"
    await ensure_topic(kafka_url, name)
    return name


@pytest.fixture
async def group(kafka_url: str, topic: str, as_role: AsRole) -> AsyncIterator[Group]:
    """The projector's consumer, on the test's topic."""
    database = Database(as_role("orders_projector"), application_name="test", size_min=0, size_max=4)
    await database.open()
    yield Group(kafka_url, [topic], partial(projections.copy_products, database))
    await database.close()


async def copies(owner: Owner) -> dict[str, tuple[Any, ...]]:
    """orders.products."""
    rows = await owner.fetch("SELECT product_id, name, price, currency, active, version FROM orders.products")
    return {ids.to_text(row[0]): tuple(row)[1:] for row in rows}


async def test_a_product_event_becomes_a_row_and_the_next_one_changes_it(
    kafka_url: str, topic: str, group: Group, owner: Owner
) -> None:
    product = new_product_id()
    async with group.member():
        await publish(kafka_url, topic, [told(product, 1)])
        await eventually(lambda: copies(owner), "a row")
        assert await copies(owner) == {product: ("Thing 1", 101, "USD", True, 1)}
        await publish(kafka_url, topic, [told(product, 2, active=False, currency="JPY", price=7)])

        async def changed() -> bool:
            return await copies(owner) == {product: ("Thing 2", 7, "JPY", False, 2)}

        await eventually(changed, "the row is changed")
