"""Order summaries: what they show and since when, who refreshes them, and what happens when that fails or is killed."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from loadtests.bench.summary import MAKE_DUE
from services.common import clock, ids
from services.common.db import Database
from services.common.db_errors import LockTimeoutError, TransientError
from services.common.errors import DomainError
from services.contracts.orders import OrderStatus
from services.orders import summaries
from services.orders.domain import OPEN_STATUSES
from tests.conftest import AsRole
from tests.contracts.description import refused
from tests.faults.waiting import eventually
from tests.shop import Shop

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

NONE = timedelta(0)  # an interval
DAY = timedelta(days=1)


@pytest.fixture
async def database(as_role: AsRole) -> AsyncIterator[Database]:
    """As orders-maintenance."""
    database = Database(as_role("orders_maintenance"), application_name="test", size_min=0, size_max=4)
    await database.open()
    yield database
    await database.close()


async def refresh(
    database: Database, holder: str = "test", *, interval: timedelta = NONE, window: timedelta = DAY
) -> float:
    """They are refreshed now, unless a lease runs."""
    await database.rows(MAKE_DUE)
    return await summaries.refresh_when_due(database, holder, interval=interval, window=window)


async def state(owner: Owner) -> "asyncpg.Record":
    """The row of the refresh, and the database's time."""
    row = await owner.fetchrow("SELECT *, clock_timestamp() AS now FROM orders.summary_refresh")
    assert row is not None
    return row


def refreshes() -> float:
    """How many there were, in this process."""
    return REGISTRY.get_sample_value("order_summaries_refresh_seconds_count") or 0.0


async def page(shop: Shop, **params: Any) -> dict[str, Any]:
    """GET /v1/order-summaries."""
    response = await shop.get("/v1/order-summaries", scope="orders:read:any", **params)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def shown(shop: Shop, **params: Any) -> list[str]:
    """The ids of all pages, in their order."""
    found: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        one = await page(shop, **params, **cursor)
        found += [order["order_id"] for order in one["data"]]
        if one["next_cursor"] is None:
            return found
        cursor = {"cursor": one["next_cursor"]}


async def plant(owner: Owner, at: datetime, *statuses: OrderStatus) -> list[str]:
    """Rows of orders made at `at`, one a status, with one line and event each; newest first."""
    user = ids.new_id(at)
    keys = sorted((ids.new_order_key(user, at) for _ in statuses), reverse=True)
    for key, status in zip(keys, statuses, strict=True):
        await owner.execute(
            "INSERT INTO orders.orders (order_id, created_at, shard, user_id, status, payment_status, currency,"
            " total_amount, captured_amount, refunded_amount, item_count, adjustments, version, updated_at)"
            " VALUES ($1, $2, $3, $4, $5, 'on_account', 'USD', 100, 0, 0, 1, '[]', 1, $2)",
            *(*key, user, status),
        )
        await owner.execute(
            "INSERT INTO orders.order_items (order_id, created_at, shard, line_no, product_id, name, quantity,"
            " unit_price, line_total, shipped_quantity, returned_quantity) VALUES ($1, $2, $3, 1, $4, '', 1, 100, 100,"
            " 0, 0)",
            *(*key, user),
        )
        await owner.execute(
            "INSERT INTO orders.order_events (order_id, created_at, shard, version, event_id, type, data, actor,"
            " occurred_at) VALUES ($1, $2, $3, 1, $4, 'order.placed', '{}', 'process:test', $2)",
            *(*key, user),
        )
    return [ids.to_text(key.order_id) for key in keys]


async def test_a_summary_is_the_order_its_lines_its_products_and_its_last_event(shop: Shop, database: Database) -> None:
    kept, withdrawn = await shop.product(), await shop.product()
    order = await shop.placed((kept, 3), (withdrawn, 2))
    shipped = await shop.command(order, "ship", {"items": [{"line_no": 1, "quantity": 1}]})
    assert shipped.status_code == 200
    await shop.change_product(withdrawn, active=False)
    await refresh(database)
    (summary,) = (await page(shop))["data"]
    same = summary.keys() & shipped.json().keys()
    assert {name: summary[name] for name in same} == {name: shipped.json()[name] for name in same}
    staff = summary.pop("last_actor")
    assert staff.startswith("staff:")
    assert {name: summary[name] for name in summary.keys() - same} == {
        "units": 5,
        "open_units": 4,
        "withdrawn_lines": 1,
        "last_event": "order.shipped",
    }


async def test_open_orders_of_any_age_and_all_young_ones_are_shown(
    shop: Shop, database: Database, owner: Owner
) -> None:
    now = clock.now()
    old = await plant(owner, clock.add_months(clock.month_of(now), -1), *OrderStatus)
    young = await plant(owner, now - DAY + timedelta(minutes=1), *OrderStatus)
    await refresh(database)
    by_status = dict(zip(old, OrderStatus, strict=True))
    assert await shown(shop, limit=3) == [*young, *(one for one in old if by_status[one] in OPEN_STATUSES)]
    await refresh(database, window=timedelta(hours=1))
    closed = set(young) - set(await shown(shop))
    assert len(closed) == len(OrderStatus) - len(OPEN_STATUSES)


async def test_they_are_what_was_committed_at_as_of_and_nothing_of_what_came_after(
    shop: Shop, database: Database, database_url: str, owner: Owner
) -> None:
    product = await shop.product()
    first = (await shop.placed((product, 1)))["order_id"]
    other = await asyncpg.connect(database_url)
    # The refresh has begun, and waits for the products; the snapshot it shows is before what is placed meanwhile.
    async with other.transaction():
        await other.execute("LOCK TABLE orders.products IN ACCESS EXCLUSIVE MODE")
        refreshing = asyncio.create_task(refresh(database))
        await eventually(lambda: blocked(owner), "the refresh waits")
        before = await owner.fetchval("SELECT clock_timestamp()")
        await plant(owner, clock.now(), OrderStatus.CONFIRMED)
    await refreshing
    await other.close()
    found = await page(shop)
    assert [order["order_id"] for order in found["data"]] == [first]
    assert datetime.fromisoformat(found["as_of"]) < before


async def blocked(connection: Owner) -> bool:
    """Whether somebody waits for a lock in this database."""
    waiting: int = await connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE cardinality(pg_blocking_pids(pid)) > 0 AND datname = current_database()"
    )
    return waiting > 0


async def test_a_walk_over_refreshes_finds_each_order_that_stays_once(
    shop: Shop, database: Database, owner: Owner
) -> None:
    now = clock.now()
    staying = [(await plant(owner, now - timedelta(hours=hour), OrderStatus.CONFIRMED))[0] for hour in range(1, 9)]
    leaving = await plant(owner, now - timedelta(days=2), OrderStatus.SHIPPED)
    await refresh(database)
    found: list[str] = []
    cursor: dict[str, str] = {}
    for round_ in range(20):
        one = await page(shop, limit=2, **cursor)
        found += [order["order_id"] for order in one["data"]]
        if one["next_cursor"] is None:
            break
        cursor = {"cursor": one["next_cursor"]}
        await plant(owner, now - timedelta(minutes=round_), OrderStatus.PENDING)  # before what was walked
        if round_ == 1:
            await owner.execute("UPDATE orders.orders SET status = 'delivered' WHERE status = 'shipped'")
            await owner.execute("UPDATE orders.orders SET status = 'shipped' WHERE status = 'confirmed'")
        await refresh(database)
    assert found == staying
    assert leaving[0] not in found


async def test_filters_let_through_what_they_say(shop: Shop, database: Database) -> None:
    dollars, yen = await shop.product(), await shop.product(currency="JPY")
    order = await shop.placed((dollars, 1))
    cancelled = (await shop.command(order, "cancel")).json()["order_id"]
    paid = (await shop.placed((dollars, 1), payment_method="pm_card"))["order_id"]
    other = (await shop.placed((yen, 1), currency="JPY"))["order_id"]
    await refresh(database)
    assert await shown(shop) == [other, paid, cancelled]
    assert await shown(shop, status="cancelled") == [cancelled]
    assert await shown(shop, payment_status="unpaid") == [paid]
    assert await shown(shop, currency="USD", limit=1) == [paid, cancelled]
    assert await shown(shop, status="confirmed", currency="USD") == []
    at = clock.to_text(clock.from_ms(ids.from_text(paid).int >> 80))
    assert await shown(shop, created_from=at) == [other, paid]
    assert await shown(shop, created_to=at) == [cancelled]
    between = at.replace("Z", "5Z")  # half a millisecond later
    assert await shown(shop, created_from=between) == [other]
    assert await shown(shop, created_to=between) == [paid, cancelled]


async def test_a_page_that_looks_at_too_much_is_short_and_goes_on(
    shop: Shop, database: Database, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summaries, "WALKED_MAX", 3)
    now = clock.now()
    for hour in range(8):
        await plant(owner, now - timedelta(hours=hour), OrderStatus.CONFIRMED)
    yen = (await shop.placed((await shop.product(currency="JPY"), 1), currency="JPY"))["order_id"]
    await refresh(database)
    first = await page(shop, currency="JPY")
    assert [order["order_id"] for order in first["data"]] == [yen]
    assert first["next_cursor"] is not None
    assert await shown(shop, currency="JPY") == [yen]
    assert len(await shown(shop, currency="USD")) == 8


async def test_a_cursor_is_for_its_query_alone(shop: Shop, database: Database) -> None:
    for _ in range(2):
        await shop.placed()
    await refresh(database)
    cursor = (await page(shop, limit=1))["next_cursor"]
    for params in ({"status": "confirmed"}, {"currency": "USD"}, {"created_from": "2020-01-01T00:00:00Z"}):
        response = await shop.get("/v1/order-summaries", scope="orders:read:any", cursor=cursor, **params)
        assert refused(response) == "400 bad_cursor"
    tampered = ("B" if cursor[0] == "A" else "A") + cursor[1:]
    response = await shop.get("/v1/order-summaries", scope="orders:read:any", cursor=tampered)
    assert refused(response) == "400 bad_cursor"
    assert len((await page(shop, cursor=cursor, limit=50))["data"]) == 1  # another limit is the same query


async def test_they_are_staffs(shop: Shop) -> None:
    assert refused(await shop.get("/v1/order-summaries")) == "403 scope_missing"


async def test_before_the_first_refresh_they_are_unavailable_and_readiness_says_so(
    shop: Shop, database: Database
) -> None:
    response = await shop.get("/v1/order-summaries", scope="orders:read:any")
    assert refused(response) == "503 unavailable"
    assert response.headers["retry-after"] == "10"

    async def warnings() -> list[str]:
        found: list[str] = (await shop.client.get("/readyz")).json()["warnings"]
        return found

    assert await warnings() == ["the order summaries have not been made yet"]
    await refresh(database)
    assert await warnings() == []


async def test_readiness_warns_when_they_are_late_however_far_apart_refreshes_are(
    shop: Shop, database: Database, owner: Owner
) -> None:
    async def warnings(as_of_seconds: float, due_seconds: float) -> list[str]:
        """So long ago."""
        await owner.execute(
            "UPDATE orders.summary_refresh"
            " SET as_of = now() - make_interval(secs => $1), due_at = now() - make_interval(secs => $2)",
            *(as_of_seconds, due_seconds),
        )
        found: list[str] = (await shop.client.get("/readyz")).json()["warnings"]
        return found

    await refresh(database)
    assert await warnings(280, 80) == []
    (late,) = await warnings(280, 91)
    assert re.match(r"the order summaries are of 2\S+ and due since 2\S+: orders-maintenance does not", late)
    assert await warnings(20, 3600) == [], "refreshed by the previous release"


async def test_without_any_month_there_are_none(shop: Shop, database: Database, owner: Owner) -> None:
    for (partition,) in await owner.fetch("SELECT partition FROM orders.months ORDER BY partition DESC"):
        await owner.execute(f"DROP TABLE orders.{partition} CASCADE")  # a name from the catalogue
    await refresh(database)
    found = await page(shop)
    assert (found["data"], found["next_cursor"]) == ([], None)


async def test_of_two_processes_one_refreshes_and_only_when_it_is_due(database: Database, owner: Owner) -> None:
    minute, before = timedelta(minutes=1), refreshes()
    await asyncio.gather(*(summaries.refresh_when_due(database, str(n), interval=minute, window=DAY) for n in range(4)))
    assert refreshes() == before + 1
    as_of = await owner.fetchval("SELECT as_of FROM orders.summary_refresh")
    assert 30 < await summaries.refresh_when_due(database, "late", interval=minute, window=DAY) <= 60
    assert 30 < await summaries.refresh_when_due(database, "in a hurry", interval=NONE, window=DAY) <= 60
    assert await owner.fetchval("SELECT as_of FROM orders.summary_refresh") == as_of
    await owner.execute("UPDATE orders.summary_refresh SET due_at = now()")
    await summaries.refresh_when_due(database, "later", interval=minute, window=DAY)
    assert refreshes() == before + 2
    assert await owner.fetchval("SELECT holder FROM orders.summary_refresh") is None


async def test_the_next_is_due_after_the_interval_or_ten_times_what_this_one_took_whichever_is_later(
    database: Database, database_url: str, owner: Owner
) -> None:
    hour = timedelta(hours=1)
    assert 3500 < await refresh(database, interval=hour) <= 3600
    quick = await state(owner)
    assert quick["due_at"] - quick["as_of"] == hour
    other = await asyncpg.connect(database_url)
    async with other.transaction():
        await other.execute("LOCK TABLE orders.products IN ACCESS EXCLUSIVE MODE")
        refreshing = asyncio.create_task(refresh(database))
        await eventually(lambda: blocked(owner), "the refresh waits")
        waited = (await state(owner))["now"]
    await refreshing
    await other.close()
    slow = await state(owner)
    as_of, due_at = slow["as_of"], slow["due_at"]
    assert 10 * (waited - as_of) < due_at - as_of < 10 * (slow["now"] - as_of)
    assert REGISTRY.get_sample_value("order_summaries_interval_seconds") == (due_at - as_of).total_seconds()


async def test_the_log_tells_once_that_refreshes_are_further_apart_and_once_that_they_are_not(
    database: Database, owner: Owner
) -> None:
    async def told(before: timedelta, interval: timedelta) -> list[str]:
        """What a refresh says after one that left it so long."""
        await owner.execute("UPDATE orders.summary_refresh SET as_of = now() - $1::interval, due_at = now()", before)
        with capture_logs() as logs:
            await summaries.refresh_when_due(database, "test", interval=interval, window=DAY)
        return [line["event"] for line in logs if line["event"] != "summaries.refreshed"]

    hour, long = timedelta(hours=1), timedelta(hours=2)
    short = timedelta(microseconds=1)  # shorter than ten times any refresh
    assert await told(hour, hour) == []
    assert await told(short, short) == ["summaries.spaced_out"]
    assert await told(hour, short) == []
    assert await told(long, hour) == ["summaries.in_time"]


async def test_who_has_lost_its_lease_refreshes_nothing(database: Database, owner: Owner) -> None:
    await owner.execute("UPDATE orders.summary_refresh SET holder = 'frozen', lease_until = now() + INTERVAL '1 h'")
    await refresh(database, "other")
    assert await owner.fetchval("SELECT as_of FROM orders.summary_refresh") is None, "its lease runs"
    # What the frozen one does when it goes on where it was, its lease being over.
    await owner.execute("UPDATE orders.summary_refresh SET lease_until = now() - INTERVAL '1 s'")
    assert await summaries._refresh(database, "frozen", NONE, DAY) is None
    assert await owner.fetchval("SELECT as_of FROM orders.summary_refresh") is None
    await refresh(database, "other")
    assert await owner.fetchval("SELECT as_of FROM orders.summary_refresh") is not None


async def test_a_refresh_that_waits_too_long_for_a_lock_changes_nothing_and_is_tried_again(
    shop: Shop, database: Database, database_url: str, owner: Owner
) -> None:
    await refresh(database)
    before = await page(shop)
    await shop.placed()
    other = await asyncpg.connect(database_url)
    async with other.transaction():
        await other.execute("LOCK TABLE orders.products IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(LockTimeoutError):
            await refresh(database)
        assert await page(shop) == before, "readers do not wait"
    await other.close()
    await owner.execute("UPDATE orders.summary_refresh SET lease_until = now()")  # 35 seconds later
    await refresh(database)
    assert len((await page(shop))["data"]) == 1


async def test_after_a_time_out_nobody_tries_for_ten_times_as_long(
    database: Database, database_url: str, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summaries, "REFRESH_TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(summaries, "LEASE", timedelta(seconds=9))
    await refresh(database)
    before = await state(owner)
    other = await asyncpg.connect(database_url)
    async with other.transaction():
        await other.execute("LOCK TABLE orders.products IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(DomainError):
            await refresh(database)
    await other.close()
    after = await state(owner)
    assert after["as_of"] == before["as_of"]
    assert (
        before["now"] + timedelta(seconds=10)
        < after["lease_until"]
        < before["now"] + 10 * (after["now"] - before["now"])
    )
    for holder in ("test", "another"):
        assert await refresh(database, holder) > 1
    assert await owner.fetchval("SELECT as_of FROM orders.summary_refresh") == before["as_of"]


async def test_a_process_killed_in_a_refresh_leaves_the_content_and_another_takes_over(
    shop: Shop, database: Database, database_url: str, owner: Owner, as_role: AsRole
) -> None:
    await shop.placed()
    await refresh(database)
    before = await page(shop)
    await shop.placed()
    script = Path(sys.executable).with_name("orders-maintenance")
    environment = {
        **os.environ,
        "ORDERS_POSTGRES_URL": as_role("orders_maintenance"),
        "ORDERS_SUMMARIES_INTERVAL_SECONDS": "0.1",
    }
    other = await asyncpg.connect(database_url)
    async with other.transaction():
        await other.execute("LOCK TABLE orders.products IN ACCESS EXCLUSIVE MODE")
        process = await asyncio.create_subprocess_exec(script, env=environment)
        await eventually(lambda: blocked(owner), "it refreshes")
        process.kill()
        await process.wait()
    await other.close()
    ended = "SELECT count(*) = 0 FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database()"
    await eventually(lambda: owner.fetchval(ended, "orders-maintenance"), "the server has noticed")
    assert await page(shop) == before
    assert await owner.fetchval("SELECT holder FROM orders.summary_refresh") is not None
    await owner.execute("UPDATE orders.summary_refresh SET lease_until = now()")  # 35 seconds later
    await refresh(database, "other")
    assert len((await page(shop))["data"]) == 2


async def test_the_server_ends_a_refresh_whose_client_has_gone(
    database_url: str, owner: Owner, as_role: AsRole
) -> None:
    # Nothing else ends it: the time-outs are longer than this waits.
    client = Database(
        as_role("orders_maintenance"), application_name="test", size_min=0, size_max=1, settings={"lock_timeout": "0"}
    )
    await client.open()

    async def ended() -> bool:
        return not await blocked(owner)

    other = await asyncpg.connect(database_url)
    async with other.transaction():
        await other.execute("LOCK TABLE orders.products IN ACCESS EXCLUSIVE MODE")
        refreshing = asyncio.create_task(refresh(client))
        await eventually(lambda: blocked(owner), "the refresh waits")
        await client._end_all()
        await eventually(ended, "the server has noticed", seconds=10)
        with pytest.raises(TransientError):
            await refreshing
    await other.close()
    await client.close()
    assert (await state(owner))["as_of"] is None
