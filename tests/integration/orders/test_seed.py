"""`orders seed`: a past that is whole, the same for the same seed, and read like any other."""

import asyncio
import os
import signal
import sys
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeAlias

import asyncpg
import psutil
import pytest

from services.common import clock, ids
from services.embedded.supervisor import Stack
from services.orders.histories import Progress, silent
from services.orders.invariants import verify
from services.orders.rollups import REMEMBERED_DAYS
from services.orders.seed import AlreadySeededError, OtherSeedError, Seeded, seed
from tests.conftest import with_database
from tests.faults.waiting import eventually
from tests.shop import Shop

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

NOW = clock.now()
TABLES = (
    *("orders.orders", "orders.order_items", "orders.order_events", "orders.idempotency_keys", "payments.payments"),
    *("orders.inventory", "orders.inventory_movements", "orders.products", "catalog.products", "orders.seeds"),
    *("orders.sales_daily", "orders.sales_daily_product", "orders.orders_by_status"),
)
_SESSIONS = "FROM pg_stat_activity WHERE application_name = 'orders seed' AND datname = current_database()"
WAITING = "SELECT count(*) FROM pg_locks WHERE relation = 'orders.seeds'::regclass AND NOT granted"
GONE = f"SELECT count(*) = 0 {_SESSIONS}"


async def load(
    url: str, *, orders: int = 2_000, number: int = 1, now: datetime = NOW, jobs: int = 1, progress: Progress = silent
) -> Seeded:
    return await seed(
        url, products=40, orders=orders, stock=50, months=4, seed=number, now=now, jobs=jobs, progress=progress
    )


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
    assert statuses >= {"confirmed", "shipped", "delivered", "partially_returned", "returned", "cancelled"}
    paid = {row["payment_status"] for row in await owner.fetch("SELECT DISTINCT payment_status FROM orders.orders")}
    assert paid >= {"on_account", "unpaid", "failed", "voided", "captured", "refunded", "partially_refunded"}
    assert len(await owner.fetch("SELECT DISTINCT currency FROM orders.orders")) == 3
    assert await owner.fetchval("SELECT max(occurred_at) FROM orders.order_events") <= NOW
    bought = Counter[object](row["user_id"] for row in await owner.fetch("SELECT user_id FROM orders.orders"))
    assert bought.most_common(1)[0][0] == seeded.buyer
    assert bought[seeded.buyer] > 3 * len(bought) ** -1 * 2_000
    left = await owner.fetch("SELECT on_hand - reserved AS left FROM orders.inventory")
    assert {row["left"] for row in left} == {50}


async def test_the_same_seed_makes_the_same_rows_beside_the_partitions_and_in_them(
    seeded: Seeded, owner: Owner, database_url: str
) -> None:
    first = await everything(owner)
    await owner.execute("SET session_replication_role = replica")
    for table in TABLES:
        await owner.execute(f"DELETE FROM {table}")  # noqa: S608 # of ours
    assert (await load(database_url)).rows == seeded.rows
    assert await everything(owner) == first


async def test_what_is_remembered_as_counted_goes_by_the_moment_of_the_seed(owner: Owner, database_url: str) -> None:
    upto = NOW - timedelta(days=30)
    await load(database_url, now=upto)
    young = await owner.fetch(
        "SELECT order_id::text AS id FROM orders.order_events GROUP BY 1 HAVING max(occurred_at) >= $1",
        upto - timedelta(days=REMEMBERED_DAYS),
    )
    assert young
    assert {row["key"] for row in await owner.fetch("SELECT key FROM orders.inbox")} == {row["id"] for row in young}
    assert (await verify(database_url)).violated == []


async def test_a_seed_is_loaded_once_and_another_beside_it(seeded: Seeded, owner: Owner, database_url: str) -> None:
    with pytest.raises(AlreadySeededError):
        await load(database_url)
    with pytest.raises(OtherSeedError, match="2,000 orders in 4 months"):
        await load(database_url, orders=2_001)
    assert await owner.fetchval("SELECT count(*) FROM orders.orders") == seeded.orders
    await load(database_url, number=2, orders=300)
    assert await owner.fetchval("SELECT count(*) FROM orders.orders") == seeded.orders + 300
    assert (await verify(database_url)).violated == []


async def test_what_ends_early_is_whole_and_goes_on(owner: Owner, database_url: str) -> None:
    def stop(_what: str, done: int, total: int) -> None:
        if done > total / 2:  # of the last two months one is there, and one in the making
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        await load(database_url, progress=stop)
    before = await owner.fetchval("SELECT count(*) FROM orders.orders")
    assert 0 < before < 2_000
    assert (await verify(database_url)).violated == []
    later = NOW + timedelta(minutes=1)
    assert (await load(database_url, now=later)).orders == 2_000 - before
    assert await owner.fetchval("SELECT max(created_at) FROM orders.orders") <= NOW
    assert (await verify(database_url)).violated == []


async def test_processes_that_share_the_months_load_what_one_does(
    seeded: Seeded, owner: Owner, stack: Stack, template_database: str
) -> None:
    await owner.execute(f"CREATE DATABASE shared_seed TEMPLATE {template_database} STRATEGY file_copy")
    other = with_database(stack.addresses.postgres, "shared_seed")
    try:
        assert (await load(other, jobs=2)).rows == seeded.rows
        connection = await asyncpg.connect(other)
        try:
            assert await everything(connection) == await everything(owner)
        finally:
            await connection.close()
    finally:
        await owner.execute("DROP DATABASE shared_seed WITH (FORCE)")


@pytest.mark.parametrize("killed", ["one of its processes", "itself"])
async def test_killed_in_the_middle_it_leaves_nobody_behind_and_goes_on(
    killed: str, owner: Owner, database_url: str
) -> None:
    command = (*("seed", "--products", "40", "--orders", "8000", "--months", "2", "--stock", "50"), "--jobs", "2")
    environment = {**os.environ, "ORDERS_POSTGRES_URL": database_url}
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("orders"), *command, env=environment, stderr=asyncio.subprocess.PIPE
    )
    await eventually(lambda: owner.fetchval("SELECT count(*) FROM orders.seeds"), "it has begun")
    held = owner.transaction()
    await held.start()
    await owner.execute("LOCK TABLE orders.seeds IN SHARE MODE")  # which the end of each month changes
    await eventually(lambda: owner.fetchval(WAITING), "a month is loaded but for its end")
    children = psutil.Process(process.pid).children()
    workers = [worker for child in children for worker in child.children()]  # of the one that they are forked from
    assert len(workers) == 2
    (workers[0] if killed == "one of its processes" else psutil.Process(process.pid)).kill()
    await process.communicate()
    await held.rollback()
    assert process.returncode == (2 if killed == "one of its processes" else -signal.SIGKILL)
    await eventually(lambda: owner.fetchval(GONE), "its sessions have ended")
    assert psutil.wait_procs([*workers, *children], timeout=10)[1] == []
    again = await asyncio.create_subprocess_exec(Path(sys.executable).with_name("orders"), *command, env=environment)
    assert await again.wait() == 0
    assert await owner.fetchval("SELECT count(*) FROM orders.orders") == 8_000
    assert (await verify(database_url)).violated == []


@pytest.mark.usefixtures("seeded")
async def test_a_seeded_key_is_answered_with_its_order(shop: Shop, owner: Owner) -> None:
    row = await owner.fetchrow(
        "SELECT k.key, k.resource, o.user_id, o.currency, o.payment_method FROM orders.idempotency_keys k"
        " JOIN orders.orders o ON o.order_id = k.resource WHERE o.payment_method IS NOT NULL ORDER BY k.key LIMIT 1"
    )
    assert row is not None
    lines = await owner.fetch(
        "SELECT product_id, quantity FROM orders.order_items WHERE order_id = $1 ORDER BY line_no", row["resource"]
    )
    shop.buyer = row["user_id"]
    answer = await shop.place(
        *((ids.to_text(line["product_id"]), line["quantity"]) for line in lines),
        key=row["key"],
        currency=row["currency"],
        payment_method=row["payment_method"],
    )
    assert answer.status_code == 201, answer.text
    assert (answer.json()["order_id"], answer.json()["version"]) == (ids.to_text(row["resource"]), 1)


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
    open_orders = await owner.fetch(
        "SELECT order_id FROM orders.orders WHERE status = 'confirmed' AND payment_method IS NULL LIMIT 2"
    )
    for row, command in zip(open_orders, ("ship", "cancel"), strict=True):
        order_id = ids.to_text(row["order_id"])
        answer = await shop.command({"order_id": order_id, "version": 1}, command)
        assert answer.status_code == 200, answer.text
    product = ids.to_text(
        await owner.fetchval(
            "SELECT product_id FROM orders.products JOIN orders.inventory USING (product_id)"
            " WHERE currency = 'USD' AND on_hand - reserved = 50 LIMIT 1"
        )
    )
    await shop.placed((product, 50))
    assert (await shop.place((product, 1))).status_code == 409
    assert (await verify(database_url)).violated == []
