"""Rollups of sales: each event counted once, whatever comes twice, is missing, forgotten, or rebuilt meanwhile."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeAlias, cast

import asyncpg
import orjson
import pytest

from services.common import clock, ids
from services.common.db import Database, WriteConnection
from services.common.db_errors import TransientError
from services.common.handle import PoisonError
from services.common.snapshots import unhurried
from services.common.stream import Message, Received, ensure_topic
from services.contracts import envelope
from services.orders import projections, recount
from services.orders.invariants import verify
from services.orders.rebuild import rebuild
from tests.conftest import AsRole
from tests.consuming import Group, metric
from tests.faults.waiting import eventually
from tests.integration.orders.conftest import OpenShop
from tests.product_events import publish
from tests.shop import Shop

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
TODAY = clock.now().date()


@pytest.fixture
async def database(as_role: AsRole) -> AsyncIterator[Database]:
    """As the projector."""
    database = Database(as_role("orders_projector"), application_name="test", size_min=0, size_max=4)
    await database.open()
    yield database
    await database.close()


def message(order_id: str, version: int, *, type_: str = "order.changed") -> Received:
    """As it comes from the topic, without a body: nobody reads it."""
    headers = envelope.headers(
        event_id=order_id,
        type_=type_,
        source=envelope.ORDERS_SOURCE,
        subject=order_id,
        time="",
        version=version,
        traceparent=None,
    )
    return Received(0, version, order_id.encode(), b"", dict(headers), 0)


async def published(owner: Owner) -> list[Received]:
    """Every event of the log, each order's in their order."""
    rows = await owner.fetch("SELECT order_id, version FROM orders.order_events ORDER BY occurred_at, version")
    return [message(ids.to_text(row["order_id"]), row["version"]) for row in rows]


async def counted(database: Database, messages: Iterable[Received]) -> dict[str, int]:
    """The outcomes of one batch."""
    return dict(await projections.count_sales(database, "orders.events.v1", list(messages)))


async def rollups(owner: Owner) -> dict[str, Any]:
    """Today's."""
    sales = await owner.fetch("SELECT * FROM orders.sales_daily ORDER BY day, currency")
    products = await owner.fetch("SELECT * FROM orders.sales_daily_product ORDER BY day, currency, product_id")
    statuses = await owner.fetch("SELECT * FROM orders.orders_by_status WHERE orders <> 0 ORDER BY 1, 2, 3")
    return {"sales": [*map(tuple, sales)], "products": [*map(tuple, products)], "statuses": [*map(tuple, statuses)]}


async def wrong(url: str) -> list[str]:
    """The rollups that are not the sum of what is counted."""
    return [name for name in (await verify(url)).violated if name.endswith("_is_sum")]


async def some_orders(shop: Shop) -> None:
    """Shipped, cancelled, and with a discount and tax."""
    product, other = await shop.product(price=1000), await shop.product(price=1, currency="JPY")
    await shop.command(await shop.placed((product, 3)), "ship", {"items": [{"line_no": 1, "quantity": 1}]})
    await shop.command(await shop.placed((product, 2), (product, 1)), "cancel")
    adjustments = [
        {"kind": "discount", "line_no": 1, "label": "spring", "amount": -5},
        {"kind": "tax", "label": "VAT", "amount": 7},
    ]
    body = {"items": [{"product_id": other, "quantity": 50}], "currency": "JPY"}
    headers = shop.auth("orders:write orders:price") | {"Idempotency-Key": "k"}
    response = await shop.client.post("/v1/orders", json={**body, "adjustments": adjustments}, headers=headers)
    assert response.status_code == 201, response.text


async def test_rollups_are_what_was_sold_cancelled_and_where_orders_stand(
    shop: Shop, database: Database, owner: Owner, database_url: str
) -> None:
    await some_orders(shop)
    assert await counted(database, await published(owner)) == {"applied": 5}
    found = await rollups(owner)
    assert found["sales"] == [(TODAY, "JPY", 1, 50, 50, -5, 7, 0, 0, 0), (TODAY, "USD", 2, 6, 6000, 0, 0, 1, 3000, 0)]
    assert [(currency, quantity, amount) for _, currency, _, quantity, amount in found["products"]] == [
        ("JPY", 50, 50),
        ("USD", 6, 6000),
    ]
    assert found["statuses"] == [
        (TODAY, "JPY", "confirmed", 1, 52),
        (TODAY, "USD", "cancelled", 1, 3000),
        (TODAY, "USD", "partially_shipped", 1, 3000),
    ]
    assert (await verify(database_url)).violated == []


async def test_what_comes_again_in_other_batches_and_from_two_processes_counts_once(
    shop: Shop, database: Database, owner: Owner, database_url: str
) -> None:
    await some_orders(shop)
    messages = await published(owner)
    outcomes = await asyncio.gather(*(counted(database, messages) for _ in range(4)))
    assert sum(outcome.get("applied", 0) for outcome in outcomes) == 5
    before = await rollups(owner)
    for one in messages:
        assert await counted(database, [one]) == {"stale": 1}
    assert await rollups(owner) == before
    assert (await verify(database_url)).violated == []


async def test_no_sum_is_told_wrong_while_orders_of_any_age_are_placed_cancelled_and_counted(
    shop: Shop, open_shop: OpenShop, database: Database, owner: Owner, database_url: str
) -> None:
    product = await shop.product(stock=10_000)
    old: list[dict[str, Any]] = []
    for age in (timedelta(days=20), timedelta(days=1)):
        at = clock.now() - age
        async with open_shop(partial(_always, at)) as then:
            then.buyer = shop.buyer
            old += [await then.placed((product, 1)) for _ in range(8)]
    async with unhurried(database_url, "test") as connection:
        await recount.recount(connection)
    for order in old[::4]:
        await shop.command(order, "cancel")
    await counted(database, await published(owner))
    # Counted so long ago that only the pages tell whose cancellations are among today's.
    await owner.execute("UPDATE orders.inbox SET updated_at = now() - INTERVAL '1 day'")
    assert (await verify(database_url)).violated == []
    left = [order for number, order in enumerate(old) if number % 4]
    over = asyncio.Event()

    async def trade() -> None:
        while left or not over.is_set():
            if left:
                await shop.command(left.pop(), "cancel")
            await shop.placed((product, 1))
            await counted(database, await published(owner))

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(trade())
        reports = [await verify(database_url) for _ in range(8)]
        over.set()
    assert [message for report in reports for verdict in report.verdicts for message in verdict.messages] == []
    assert reports[-1].verdicts[0].rows > reports[0].verdicts[0].rows
    assert (await verify(database_url)).violated == []


def _always(at: datetime) -> datetime:
    return at


async def test_events_of_which_no_message_came_are_counted_with_the_next_of_their_order(
    shop: Shop, database: Database, owner: Owner
) -> None:
    await some_orders(shop)
    messages = await published(owner)
    await counted(database, messages)
    whole = await rollups(owner)
    await owner.execute(
        "TRUNCATE orders.inbox, orders.sales_daily, orders.sales_daily_product, orders.orders_by_status"
    )
    newest = {one.key: one for one in messages}
    assert await counted(database, newest.values()) == {"applied": 3}
    assert await rollups(owner) == whole


async def test_an_order_that_the_inbox_has_forgotten_is_not_counted_again(
    shop: Shop, database: Database, owner: Owner, database_url: str
) -> None:
    await some_orders(shop)
    await counted(database, await published(owner))
    shipped = await owner.fetchval("SELECT order_id FROM orders.orders WHERE status = 'partially_shipped'")
    # Nine days later the row is gone; the log is as old. Then the rest is shipped.
    await owner.execute("SET session_replication_role = replica")
    await owner.execute("UPDATE orders.order_events SET occurred_at = occurred_at - INTERVAL '9 days'")
    await owner.execute("UPDATE orders.sales_daily SET day = day - 9")
    await owner.execute("UPDATE orders.sales_daily_product SET day = day - 9")
    await owner.execute("DELETE FROM orders.inbox")
    assert await wrong(database_url) == []
    order = (await shop.get(f"/v1/orders/{ids.to_text(shipped)}", scope="orders:read")).json()
    assert (await shop.command(order, "ship")).status_code == 200
    before = await rollups(owner)
    assert await counted(database, [message(order["order_id"], 3)]) == {"applied": 1}
    after = await rollups(owner)
    assert (after["sales"], after["products"]) == (before["sales"], before["products"])
    assert (TODAY, "USD", "shipped", 1, 3000) in after["statuses"]
    assert sum(row[3] for row in after["statuses"]) == 3
    assert await wrong(database_url) == []


@pytest.mark.parametrize("what", ["no order", "no event", "a version that cannot be"])
async def test_what_the_log_does_not_have_is_poison_and_counts_nothing(
    shop: Shop, database: Database, owner: Owner, what: str
) -> None:
    order_id = (await shop.placed())["order_id"]
    wrong = {
        "no order": message("shoe", 1),
        "no event": message(order_id, 2),
        "a version that cannot be": message(order_id, 2**40),
    }[what]
    with pytest.raises(PoisonError) as raised:
        await counted(database, [message(order_id, 1), wrong])
    assert raised.value.message is wrong
    assert await rollups(owner) == {"sales": [], "products": [], "statuses": []}
    assert await counted(database, [message(order_id, 1)]) == {"applied": 1}


WRONG = {
    "sales_daily": "UPDATE orders.sales_daily SET units = units + 1",
    "sales_daily_product": "DELETE FROM orders.sales_daily_product",
    "orders_by_status": "INSERT INTO orders.orders_by_status VALUES ('2020-01-01', 'USD', 'pending', 1, 1)",
}


@pytest.mark.parametrize("table", WRONG)
async def test_verify_names_a_rollup_that_is_wrong_and_rebuild_sets_it_right(
    shop: Shop, database: Database, owner: Owner, database_url: str, table: str
) -> None:
    await some_orders(shop)
    await counted(database, (await published(owner))[:-1])  # the last one is on its way, and no violation
    await owner.execute(WRONG[table])
    assert (await verify(database_url)).violated == [f"{table}_is_sum"]
    async with unhurried(database_url, "test") as connection:
        off = {name: len(await connection.fetch(sql)) for name, sql in recount.DRIFT.items()}
    assert {name for name, rows in off.items() if rows} == {table}
    result = await rebuild(database_url)
    assert result.rollups == off[table]
    assert result.left == []
    assert await counted(database, await published(owner)) == {"stale": 5}, "rebuild has counted the last one"
    assert (await verify(database_url)).violated == []
    assert (await rebuild(database_url)).rollups == 0


async def test_a_rebuild_ended_in_the_middle_is_finished_by_the_next_and_counts_nothing_twice(
    shop: Shop, database: Database, owner: Owner, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await some_orders(shop)
    await counted(database, (await published(owner))[:2])
    await owner.execute(WRONG["sales_daily"])
    monkeypatch.setattr(recount, "_BATCH_ORDERS", 1)
    other = await asyncpg.connect(database_url)
    async with other.transaction():
        # The second batch waits for this row, and there it is ended.
        last = await owner.fetchval("SELECT order_id FROM orders.orders WHERE currency = 'JPY'")
        await other.execute(
            "INSERT INTO orders.inbox VALUES ('orders-projector', 'orders.events.v1', $1, 1, now())", str(last)
        )
        running = asyncio.create_task(rebuild(database_url))
        waits = "SELECT count(*) FROM pg_stat_activity WHERE cardinality(pg_blocking_pids(pid)) > 0"
        await eventually(lambda: owner.fetchval(waits), "the rebuild waits")
        await owner.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1", "orders rebuild"
        )
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, TransientError, OSError)):
            await running
    await owner.execute("DELETE FROM orders.inbox WHERE key = $1", str(last))
    await other.close()
    assert (await rebuild(database_url)).left == []
    assert (await verify(database_url)).violated == []
    assert await counted(database, await published(owner)) == {"stale": 5}


async def test_rebuilds_while_orders_are_placed_and_counted_add_nothing_twice(
    shop: Shop, database: Database, owner: Owner, database_url: str
) -> None:
    product = await shop.product(stock=10_000)

    async def buy() -> None:
        for _ in range(30):
            order = await shop.placed((product, 1))
            await counted(database, [message(order["order_id"], 1)])
            cancelled = (await shop.command(order, "cancel")).json()
            await counted(database, [message(order["order_id"], cancelled["version"])])

    buying = asyncio.gather(*(buy() for _ in range(3)))
    rebuilt = 0
    while not buying.done():
        await owner.execute("UPDATE orders.sales_daily SET units = units + 1000")
        await rebuild(database_url)
        rebuilt += 1
    await buying
    await rebuild(database_url)
    assert rebuilt > 1
    assert (await rollups(owner))["sales"] == [(TODAY, "USD", 90, 90, 90 * 1999, 0, 0, 90, 90 * 1999, 0)]
    assert (await verify(database_url)).violated == []


class Stepped:
    """A connection on which `before` is run to its end before the statement `sql` is."""

    def __init__(self, connection: WriteConnection, sql: str, before: Callable[[], Awaitable[None]]) -> None:
        self._connection, self._sql, self._before = connection, sql, before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    async def fetch(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        if sql == self._sql:
            await self._before()
        return await self._connection.fetch(sql, *arguments)


@pytest.mark.parametrize("table", recount.ROLLUPS)
async def test_what_is_counted_while_a_recount_compares_is_taken_for_no_error(
    shop: Shop, database: Database, owner: Owner, database_url: str, table: str
) -> None:
    await some_orders(shop)
    await counted(database, await published(owner))
    product = await shop.product(price=10)
    await owner.execute(WRONG["sales_daily"])
    happened: list[dict[str, int]] = []

    async def happens() -> None:
        order = await shop.placed((product, 1))
        cancelled = (await shop.command(order, "cancel")).json()
        happened.append(await counted(database, [message(order["order_id"], cancelled["version"])]))

    async with unhurried(database_url, "test") as connection:
        stepped = Stepped(connection, recount.DRIFT[table], happens)
        assert await recount.recount(cast("WriteConnection", stepped)) == (2, []), "one for each currency"
    assert happened == [{"applied": 1}]
    assert (await rollups(owner))["sales"] == [
        (TODAY, "JPY", 1, 50, 50, -5, 7, 0, 0, 0),
        (TODAY, "USD", 3, 7, 6010, 0, 0, 2, 3010, 0),
    ]
    assert (await verify(database_url)).violated == []


async def test_refunds_are_counted_with_their_amount(shop: Shop, database: Database, owner: Owner) -> None:
    order = await shop.placed((await shop.product(price=1000), 1))
    key = ids.order_key(ids.from_text(order["order_id"]))
    header = {"status": "confirmed", "payment_status": "refunded", "currency": "USD", "total_amount": 1000}
    data = {"change": {"amount": 400, "refunded_amount": 400}, "after": header | {"user_id": order["user_id"]}}
    tomorrow = clock.now() + timedelta(days=1)
    await owner.execute(
        "INSERT INTO orders.order_events (order_id, created_at, shard, version, event_id, type, data, actor,"
        " occurred_at) VALUES ($1, $2, $3, 2, $1, 'order.refunded', $4, 'process:test', $5)",
        *(*key, orjson.dumps(data).decode(), tomorrow),
    )
    await counted(database, [message(order["order_id"], 2)])
    found = await rollups(owner)
    assert [(row[0], row[2], row[-1]) for row in found["sales"]] == [(TODAY, 1, 0), (tomorrow.date(), 0, 400)]
    assert found["statuses"] == [(TODAY, "USD", "confirmed", 1, 1000)]


async def test_a_topic_read_again_from_its_beginning_changes_nothing(
    shop: Shop, database: Database, owner: Owner, kafka_url: str
) -> None:
    topic = f"orders.{secrets.token_hex(4)}"
    await ensure_topic(kafka_url, topic)
    await some_orders(shop)
    messages = [Message(one.key or b"", one.value, list(one.headers.items())) for one in await published(owner)]
    await publish(kafka_url, topic, messages)
    group = Group(kafka_url, [topic], partial(projections.count_sales, database))

    async def done() -> bool:
        return sum((await group.committed()).values()) == len(messages)

    async with group.member():
        await eventually(done, "all is consumed")
    before = await rollups(owner)
    assert [row[2] for row in before["sales"]] == [1, 2]
    await group.rewind()
    async with group.member():
        await eventually(done, "all is consumed again")
    assert await rollups(owner) == before
    assert metric("consumer_messages_total", topic=topic, outcome="applied") == len(messages)
    assert metric("consumer_messages_total", topic=topic, outcome="stale") == len(messages)
