"""orders-maintenance: partitions in time, keys not for ever; and what readiness says when it is dead."""

import asyncio
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import httpx
import pytest

from services.common import clock, ids
from services.common.db import Database
from services.common.db_errors import LockTimeoutError
from services.embedded.polling import until
from services.orders import maintenance
from services.orders.settings import OrdersSettings
from tests.conftest import AsRole
from tests.shop import Shop, opened_shop

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]


def later(months: int) -> clock.Clock:
    """A clock that runs in the middle of the month that many months from now."""
    return lambda: clock.add_months(clock.month_of(clock.now()), months) + timedelta(days=14)


@pytest.fixture
def settings(orders_settings: OrdersSettings, as_role: AsRole) -> OrdersSettings:
    """Settings of orders-maintenance."""
    return orders_settings.model_copy(update={"postgres_url": as_role("orders_maintenance")})


async def months(owner: "Connection") -> set[str]:
    """The months of all three tables."""
    rows = await owner.fetch("SELECT month FROM orders.months GROUP BY month HAVING count(*) = 3")
    return {row["month"] for row in rows}


async def test_partitions_reach_three_months_ahead(settings: OrdersSettings, owner: "Connection") -> None:
    database = Database(settings.postgres_url, application_name="test", size_max=1)
    await database.open()
    await maintenance.run_once(database, settings, later(2))
    wanted = {f"{clock.add_months(clock.month_of(clock.now()), ahead):%Y_%m}" for ahead in range(6)}
    assert wanted <= await months(owner)
    await database.close()


async def test_a_lock_held_elsewhere_ends_the_round_and_loses_nothing(
    settings: OrdersSettings, owner: "Connection"
) -> None:
    database = Database(settings.postgres_url, application_name="test", size_max=1)
    await database.open()
    before = await months(owner)
    async with owner.transaction():
        await owner.execute("LOCK TABLE orders.orders IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(LockTimeoutError):
            await maintenance.run_once(database, settings, later(2))
    assert await months(owner) == before
    await maintenance.run_once(database, settings, later(2))
    assert await months(owner) > before
    await database.close()


async def test_keys_are_deleted_when_they_are_old_enough(settings: OrdersSettings, owner: "Connection") -> None:
    now = clock.now()
    for number, age in enumerate((timedelta(days=29, hours=23), timedelta(days=30, hours=1), timedelta(days=400))):
        await owner.execute(
            "INSERT INTO orders.idempotency_keys (shard, subject, key, request_hash, resource, version, created_at)"
            " VALUES (1, 's', $1, 'h', $2, 1, $3)",
            *(str(number), ids.new_id(now), now - age),
        )
    database = Database(settings.postgres_url, application_name="test", size_max=1)
    await database.open()
    await maintenance.run_once(database, settings)
    assert [row["key"] for row in await owner.fetch("SELECT key FROM orders.idempotency_keys")] == ["0"]
    await database.close()


async def test_inbox_rows_are_forgotten_when_they_have_not_changed_for_long_enough(
    settings: OrdersSettings, owner: "Connection"
) -> None:
    now = clock.now()
    for number, age in enumerate((timedelta(days=29, hours=23), timedelta(days=30, hours=1), timedelta(days=400))):
        await owner.execute(
            "INSERT INTO orders.inbox (consumer, topic, key, last_version, updated_at) VALUES ('c', 't', $1, 7, $2)",
            *(str(number), now - age),
        )
    database = Database(settings.postgres_url, application_name="test", size_max=1)
    await database.open()
    await maintenance.run_once(database, settings)
    assert [row["key"] for row in await owner.fetch("SELECT key FROM orders.inbox")] == ["0"]
    await database.close()


async def readiness(shop: Shop) -> httpx.Response:
    """GET /readyz."""
    return await shop.client.get("/readyz")


@pytest.mark.parametrize(("dead", "status", "warnings"), [(0, 200, 0), (1, 200, 1), (2, 200, 2), (3, 503, None)])
async def test_readiness_warns_two_months_before_an_insert_could_fail(
    orders_settings: OrdersSettings,
    issuer: tuple[Path, str],
    owner: "Connection",
    dead: int,
    status: int,
    warnings: int | None,
) -> None:
    # Partitions reach three months past the keeper's last round, `dead` months ago.
    async with opened_shop(orders_settings, issuer[0], owner, later(dead)) as shop:
        response = await readiness(shop)
        assert response.status_code == status
        if warnings is not None:
            assert len([said for said in response.json()["warnings"] if "partition" in said]) == warnings
        placed = await shop.place((await shop.product(), 1))
        assert placed.status_code == 201  # up to the end of the last month


async def test_the_process_makes_months_summaries_and_its_first_heartbeat_at_its_start_and_ends_on_sigterm(
    settings: OrdersSettings, owner: "Connection"
) -> None:
    last = f"{clock.add_months(clock.month_of(clock.now()), 5):%Y_%m}"
    assert last not in await months(owner)
    environment = {
        **os.environ,
        "ORDERS_POSTGRES_URL": settings.postgres_url,
        "ORDERS_MONTHS_AHEAD": "5",
    }
    script = Path(sys.executable).with_name("orders-maintenance")
    process = await asyncio.create_subprocess_exec(script, env=environment)

    async def made() -> bool:
        other: bool = await owner.fetchval(
            "SELECT h.at IS NOT NULL AND s.as_of IS NOT NULL FROM orders.heartbeat h, orders.summary_refresh s"
        )
        return other and last in await months(owner)

    await asyncio.wait_for(until(made), 30)
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 60) == 0


@pytest.mark.parametrize("ms", [-1, 0, 1])
async def test_an_order_a_millisecond_before_at_and_after_the_month_begins(
    orders_settings: OrdersSettings, issuer: tuple[Path, str], owner: "Connection", ms: int
) -> None:
    at = clock.from_ms(clock.to_ms(clock.add_months(clock.month_of(clock.now()), 1)) + ms)
    async with opened_shop(orders_settings, issuer[0], owner, lambda: at) as shop:
        order = await shop.placed()
        assert order["created_at"] == clock.to_text(at)
        assert (await shop.get(f"/v1/orders/{order['order_id']}")).json() == order
        assert (await shop.get("/v1/orders")).json()["data"] == [order]
