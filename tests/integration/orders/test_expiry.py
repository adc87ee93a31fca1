"""Orders that nobody has paid in time: each expires once, whoever looks, and whatever else happens to it."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import pytest

from services.common import ids
from services.common.after_commit import AfterCommit
from services.common.db import Database
from services.contracts.payments import PaymentState
from services.orders import expiry, maintenance, settlements
from tests.conftest import AsRole
from tests.consuming import metric
from tests.faults.waiting import eventually
from tests.integration.orders.test_payments import assert_all_is_well, events, shown, state, types
from tests.payment_events import as_received, payment, told
from tests.shop import Shop

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
Order = dict[str, Any]


@pytest.fixture
async def database(as_role: AsRole) -> AsyncIterator[Database]:
    """As orders-maintenance."""
    database = Database(as_role("orders_maintenance"), application_name="test", size_min=0, size_max=8)
    await database.open()
    yield database
    await database.close()


def due(order: Order) -> datetime:
    """When it expires."""
    return datetime.fromisoformat(order["expires_at"])


async def test_an_order_expires_at_its_time_and_not_before(shop: Shop, database: Database, database_url: str) -> None:
    product = await shop.product()
    order = await shop.placed((product, 2), payment_method="pm_card")
    assert due(order) == datetime.fromisoformat(order["created_at"]) + shop.settings.pending_expires_after
    assert (
        await expiry.expire_orders(database, AfterCommit(lambda: None, None), due(order) - timedelta(milliseconds=1))
        == 0
    )
    assert await shown(shop, order) == order
    expired = metric("orders_expired_total")
    assert await expiry.expire_orders(database, AfterCommit(lambda: None, None), due(order)) == 1
    after = await shown(shop, order)
    assert (state(after), after["cancel_reason"], after["expires_at"]) == (
        *(("cancelled", "unpaid", 0, 0), "expired", None),
    )
    (event,) = await events(shop, order)
    assert (event["actor"], event["occurred_at"]) == ("process:orders-maintenance", order["expires_at"])
    assert event["data"]["change"] == {"cancel_reason": "expired"}
    assert await shop.stock(product) == (100, 0)
    assert metric("orders_expired_total") == expired + 1
    assert await shop.owner.fetchval("SELECT count(*) FROM orders.outbox") == 2
    await assert_all_is_well(database_url)


async def test_what_is_paid_on_account_or_cancelled_does_not_expire(
    shop: Shop, database: Database, as_role: AsRole
) -> None:
    projector = Database(as_role("orders_projector"), application_name="test", size_max=1)
    await projector.open()
    paid = await shop.placed(payment_method="pm_card")
    authorized = as_received(told(payment(paid, PaymentState.AUTHORIZED)))
    await settlements.settle_orders(projector, AfterCommit(lambda: None, None), "t", authorized)
    await projector.close()
    await shop.placed()
    await shop.command(await shop.placed(payment_method="pm_card"), "cancel")
    before = await shop.owner.fetch("SELECT * FROM orders.orders ORDER BY order_id")
    assert await expiry.expire_orders(database, AfterCommit(lambda: None, None), due(paid) + timedelta(days=1)) == 0
    assert await shop.owner.fetch("SELECT * FROM orders.orders ORDER BY order_id") == before


async def test_all_that_are_due_expire_however_few_are_looked_up_at_once(shop: Shop, database: Database) -> None:
    product = await shop.product()
    orders = [await shop.placed((product, 1), payment_method="pm_card") for _ in range(7)]
    last = max(map(due, orders))
    for _ in range(2):
        other = await shop.placed((product, 1), payment_method="pm_card")
        await shop.owner.execute(
            "UPDATE orders.orders SET expires_at = expires_at + INTERVAL '1 h' WHERE order_id = $1",
            ids.from_text(other["order_id"]),
        )
    assert await expiry.expire_orders(database, AfterCommit(lambda: None, None), last, batch_orders=3) == 7
    assert await shop.stock(product) == (100, 2)
    assert metric("orders_overdue_seconds") == 0


async def test_an_order_that_cannot_expire_is_counted_and_stops_no_other(shop: Shop, database: Database) -> None:
    orders = [await shop.placed((await shop.product(), 1), payment_method="pm_card") for _ in range(3)]
    (line,) = orders[0]["items"]
    await shop.owner.execute(
        "UPDATE orders.inventory SET reserved = 0 WHERE product_id = $1", ids.from_text(line["product_id"])
    )
    failures = metric("orders_expiry_failures_total", reason="Refused")
    later = due(orders[0]) + timedelta(minutes=1)
    assert await expiry.expire_orders(database, AfterCommit(lambda: None, None), later, batch_orders=2) == 2
    assert [(await shown(shop, order))["status"] for order in orders] == ["pending", "cancelled", "cancelled"]
    assert metric("orders_expiry_failures_total", reason="Refused") > failures
    assert metric("orders_overdue_seconds") == 60
    await shop.owner.execute("UPDATE orders.inventory SET reserved = 1 WHERE reserved = 0 AND version = 2")
    assert await expiry.expire_orders(database, AfterCommit(lambda: None, None), later) == 1


async def test_an_order_that_somebody_changes_just_now_is_left_for_the_next_round(
    shop: Shop, database: Database, database_url: str
) -> None:
    order = await shop.placed(payment_method="pm_card")
    other = await asyncpg.connect(database_url)
    async with other.transaction():
        await other.execute("SELECT FROM orders.orders FOR NO KEY UPDATE")
        assert await expiry.expire_orders(database, AfterCommit(lambda: None, None), due(order)) == 0
    await other.close()
    assert await expiry.expire_orders(database, AfterCommit(lambda: None, None), due(order)) == 1


async def test_replicas_and_payments_that_race_leave_each_order_in_one_of_two_ends(
    shop: Shop, database: Database, as_role: AsRole, database_url: str
) -> None:
    projector = Database(as_role("orders_projector"), application_name="test", size_min=0, size_max=4)
    await projector.open()
    product = await shop.product(stock=1000)
    orders = [await shop.placed((product, 1), payment_method="pm_card") for _ in range(40)]
    later = max(map(due, orders))
    said = [as_received(told(payment(order, PaymentState.AUTHORIZED))) for order in orders]

    async def settled(part: slice) -> None:
        for messages in said[part]:
            await settlements.settle_orders(projector, AfterCommit(lambda: None, None), "t", messages)

    # From both ends, so that some are paid first, some have expired, and some are met by all at once.
    first, second, *_ = await asyncio.gather(
        expiry.expire_orders(database, AfterCommit(lambda: None, None), later, batch_orders=3),
        expiry.expire_orders(database, AfterCommit(lambda: None, None), later),
        settled(slice(39, 19, -1)),
        settled(slice(19, None, -1)),
    )
    await projector.close()
    ends = [await types(shop, order) for order in orders]
    kept = [end for end in ends if end == ["payment_authorized", "confirmed"]]
    assert [end for end in ends if end not in kept] == [["cancelled", "payment_authorized"]] * (first + second)
    assert await shop.stock(product) == (1000, len(kept))
    await assert_all_is_well(database_url)


async def test_the_relay_is_woken_when_something_has_expired_and_only_then(shop: Shop, database: Database) -> None:
    order = await shop.placed(payment_method="pm_card")
    wakes: list[int] = []
    for _ in range(2):
        await maintenance.expire_once(database, AfterCommit(lambda: wakes.append(1), None), lambda: due(order))
    assert wakes == [1]


async def test_the_process_expires_what_is_due_beside_its_other_work(
    shop: Shop, owner: Owner, as_role: AsRole, valkey_url: str
) -> None:
    environment = {
        **os.environ,
        "ORDERS_POSTGRES_URL": as_role("orders_maintenance"),
        "ORDERS_VALKEY_URL": valkey_url,
        "ORDERS_EXPIRY_INTERVAL_SECONDS": "0.1",
    }
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("orders-maintenance"), env=environment
    )
    try:
        for _ in range(2):  # more than one round
            order = await shop.placed(payment_method="pm_card")
            await owner.execute("UPDATE orders.orders SET expires_at = now() WHERE status = 'pending'")

            async def expired(order: Order = order) -> bool:
                return bool((await shown(shop, order))["cancel_reason"] == "expired")

            await eventually(expired, "it has expired")
    finally:
        process.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(process.wait(), 60) == 0
