"""The copy of the catalogue's products: as the newest event of each says, however often and in what gaps they come."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, TypeAlias

import asyncpg
import pytest

from services.common import ids
from services.common.db import Database
from services.common.handle import PoisonError
from services.common.stream import Message, Received, ensure_topic
from services.orders import projections
from tests.conftest import AsRole
from tests.consuming import Group, metric
from tests.faults.waiting import eventually
from tests.product_events import new_product_id, publish, told
from tests.shop import Shop

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"


@pytest.fixture
async def topic(kafka_url: str) -> str:
    """A topic of the test's own."""
    name = f"catalog.{secrets.token_hex(4)}"
    await ensure_topic(kafka_url, name)
    return name


@pytest.fixture
async def database(as_role: AsRole) -> AsyncIterator[Database]:
    """As the projector."""
    database = Database(as_role("orders_projector"), application_name="test", size_min=0, size_max=4)
    await database.open()
    yield database
    await database.close()


@pytest.fixture
def group(kafka_url: str, topic: str, database: Database) -> Group:
    """The projector's consumer, on the test's topic."""
    return Group(kafka_url, [topic], partial(projections.copy_products, database))


def as_received(*messages: Message) -> list[Received]:
    """As they come in one partition."""
    return [
        Received(0, offset, message.key, message.value, dict(message.headers), 0)
        for offset, message in enumerate(messages)
    ]


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


async def test_what_comes_again_and_a_replay_from_the_beginning_twice_change_nothing(
    kafka_url: str, topic: str, group: Group, owner: Owner
) -> None:
    products = [new_product_id() for _ in range(20)]
    for version in range(1, 6):
        await publish(kafka_url, topic, [told(product, version) for product in products] * 2)

    async def done() -> bool:
        return sum((await group.committed()).values()) == 200

    async with group.member():
        await eventually(done, "all is consumed")
    wanted = dict.fromkeys(products, ("Thing 5", 105, "USD", True, 5))
    assert await copies(owner) == wanted
    seen = metric("consumer_messages_total", topic=topic, outcome="stale")
    for again in (1, 2):
        await group.rewind()
        async with group.member():
            await eventually(done, "all is consumed again")
        assert await copies(owner) == wanted
        assert metric("consumer_messages_total", topic=topic, outcome="stale") == seen + 200 * again
    assert metric("consumer_messages_total", topic=topic, outcome="applied") == 100


async def test_a_replay_that_the_inbox_has_forgotten_never_takes_a_product_back(
    kafka_url: str, topic: str, group: Group, owner: Owner
) -> None:
    product = new_product_id()
    await publish(kafka_url, topic, [told(product, 1)])
    await owner.execute(
        "INSERT INTO orders.products (product_id, name, price, currency, active, version)"
        " VALUES ($1, 'Thing 9', 9, 'USD', TRUE, 9)",
        ids.from_text(product),
    )
    async with group.member():
        await eventually(group.committed, "it is consumed")
    assert await copies(owner) == {product: ("Thing 9", 9, "USD", True, 9)}
    assert metric("consumer_messages_total", topic=topic, outcome="applied") == 1, "the inbox let it through"


async def test_a_gap_is_applied_and_counted(kafka_url: str, topic: str, group: Group, owner: Owner) -> None:
    first, second = new_product_id(), new_product_id()
    await publish(kafka_url, topic, [told(first, 1), told(first, 4), told(first, 3), told(second, 7)])

    async def done() -> bool:
        return sum((await group.committed()).values()) == 4

    async with group.member():
        await eventually(done, "all is consumed")
    assert {product: copy[-1] for product, copy in (await copies(owner)).items()} == {first: 4, second: 7}
    assert metric("consumer_messages_total", topic=topic, outcome="applied_after_gap") == 2
    assert metric("consumer_messages_total", topic=topic, outcome="stale") == 1


async def test_unknown_types_and_members_change_nothing_but_the_inbox(
    kafka_url: str, topic: str, group: Group, owner: Owner
) -> None:
    product = new_product_id()
    unknown = told(product, 2, type_="product.photographed")
    await publish(
        kafka_url,
        topic,
        [
            told(product, 1, colour="red"),
            Message(unknown.key, b"\x00 whatever its body is", unknown.headers),
            told(product, 3, weight={"grams": 7}),
        ],
    )

    async def done() -> bool:
        return sum((await group.committed()).values()) == 3

    async with group.member():
        await eventually(done, "all is consumed")
    assert await copies(owner) == {product: ("Thing 3", 103, "USD", True, 3)}
    assert metric("consumer_messages_total", topic=topic, outcome="ignored") == 1
    assert metric("consumer_messages_total", topic=topic, outcome="applied") == 2, "no gap"
    assert await owner.fetchval("SELECT last_version FROM orders.inbox WHERE topic = $1", topic) == 3


async def test_stock_takes_the_version_with_the_copy_and_is_never_made_here(
    kafka_url: str, topic: str, group: Group, owner: Owner
) -> None:
    stocked, bare = new_product_id(), new_product_id()
    await owner.execute(
        "INSERT INTO orders.inventory (product_id, on_hand, reserved, version) VALUES ($1, 5, 2, 8)",
        ids.from_text(stocked),
    )
    await publish(kafka_url, topic, [told(stocked, 1), told(bare, 1), told(stocked, 2)])

    async def done() -> bool:
        return sum((await group.committed()).values()) == 3

    async with group.member():
        await eventually(done, "all is consumed")
    rows = await owner.fetch("SELECT product_id, on_hand, reserved, version, product_version FROM orders.inventory")
    assert [tuple(row) for row in rows] == [(ids.from_text(stocked), 5, 2, 8, 2)]


POISON: dict[str, Callable[[str], Message]] = {
    "no version": lambda product: told(product, 2, headers={"ce_sequence": None}),
    "a version that is not the body's": lambda product: told(product, 2, headers={"ce_sequence": f"{3:020d}"}),
    "a version of the product's that is not the event's": lambda product: told(product, 2, version=3),
    "another product": lambda product: told(product, 2, product_id=new_product_id()),
    "no JSON": lambda product: Message(product.encode(), b"{", told(product, 2).headers),
    "no object": lambda product: Message(product.encode(), b"[]", told(product, 2).headers),
    "no body (a tombstone)": lambda product: Message(product.encode(), b"", told(product, 2).headers),
    "a price of nothing": lambda product: told(product, 2, price=0),
    "a price that is too high": lambda product: told(product, 2, price=10**12 + 1),
    "a price with decimals": lambda product: told(product, 2, price=1.5),
    "a name that cannot be stored": lambda product: told(product, 2, name="a\x00b"),
    "a name that is none": lambda product: told(product, 2, name=None),
    "active is a word": lambda product: told(product, 2, active="yes"),
    "no ULID": lambda _: told("shoe", 2),
}


@pytest.mark.parametrize("what", POISON)
async def test_what_cannot_be_understood_is_poison_and_changes_nothing(
    database: Database, owner: Owner, what: str
) -> None:
    product = new_product_id()
    messages = as_received(told(product, 1), POISON[what](product))
    with pytest.raises(PoisonError) as raised:
        await projections.copy_products(database, "t", messages)
    assert raised.value.message is messages[1]
    assert await copies(owner) == {}
    assert not await owner.fetchval("SELECT count(*) FROM orders.inbox")
    await projections.copy_products(database, "t", messages[:1])
    assert list(await copies(owner)) == [product]


async def test_a_placement_that_waits_for_stock_sees_the_price_that_was_copied_meanwhile(
    shop: Shop, owner: Owner, database: Database, database_url: str
) -> None:
    product = await shop.product(price=100)
    other = await asyncpg.connect(database_url)

    async def waiting(sessions: int) -> bool:
        blocked = await owner.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE cardinality(pg_blocking_pids(pid)) > 0 AND datname = current_database()"
        )
        return int(blocked) >= sessions

    try:
        async with other.transaction():
            await other.execute("SELECT FROM orders.inventory WHERE product_id = $1 FOR UPDATE", ids.from_text(product))
            messages = as_received(told(product, 2, price=200))
            copying = asyncio.create_task(projections.copy_products(database, "t", messages))
            await eventually(lambda: waiting(1), "the projector waits for the stock")
            placing = asyncio.create_task(shop.place((product, 1)))
            await eventually(lambda: waiting(2), "the placement waits behind it")
        await copying
        assert (await placing).json()["total_amount"] == 200
    finally:
        await other.close()
