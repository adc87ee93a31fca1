"""The order summaries at scale: `python -m loadtests.bench.summary [--orders 833000] [--seconds 20]`.

Loads `--days` of orders, 2.5 lines and 3 events each, into embedded PostgreSQL with every durability setting on; orders
are open for four days, so that a share of them is shown. Prints how long refreshes take while nothing changes and after
orders were placed, and the time to place an order, of `--rate` a second, with refreshes back to back and without,
alternately in one run.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
import uuid
from datetime import timedelta
from pathlib import Path
from string import Template

import asyncpg

from services.cli import migrate
from services.common import clock, ids
from services.common.db import Database
from services.embedded.room import free_port_base
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack
from services.orders import commands, summaries
from services.orders.commands import Key, Line, Placement
from services.orders.repository import statement
from services.orders.turns import Turns

WINDOW = timedelta(days=1)
PRODUCTS = 1_000
RATE = 63.0  # ten times the peak of ten million orders a year
MAKE_DUE = statement("make_summaries_due", "UPDATE orders.summary_refresh SET due_at = now()")
SHARD = "((get_byte(uuid_send(order_id), 6) & 15) << 8) + get_byte(uuid_send(order_id), 7)"
LOAD = (  # names with a $ are put in
    "INSERT INTO orders.products (product_id, name, price, currency, active, version)"
    " SELECT uuidv7(), 'Thing', 100, 'USD', TRUE, 1 FROM generate_series(1, $products)",
    "INSERT INTO orders.inventory (product_id, on_hand, reserved, version)"
    " SELECT product_id, 1000000000, 0, 1 FROM orders.products",
    "CREATE TEMP TABLE made AS SELECT order_id, uuid_extract_timestamp(order_id) AS created_at,"
    " ($shard)::smallint AS shard, CASE WHEN age < INTERVAL '36 hours' THEN 'confirmed'"
    " WHEN age < INTERVAL '4 days' THEN 'shipped' ELSE 'delivered' END AS status FROM ("
    "  SELECT uuidv7(-age) AS order_id, age FROM ("
    "   SELECT INTERVAL '$days days' * n / $orders AS age FROM generate_series(1, $orders) n) aged) m",
    "INSERT INTO orders.orders (order_id, created_at, shard, user_id, status, payment_status, currency, total_amount,"
    " captured_amount, refunded_amount, item_count, adjustments, version, updated_at)"
    " SELECT order_id, created_at, shard, order_id, status, 'on_account', 'USD', 250, 0, 0, 2, '[]', 3, created_at"
    " FROM made",
    "INSERT INTO orders.order_items (order_id, created_at, shard, line_no, product_id, name, quantity, unit_price,"
    " line_total, shipped_quantity, returned_quantity)"
    " SELECT order_id, created_at, shard, line_no, p.product_id, 'Thing', 1, 100, 100, 0, 0"
    " FROM made CROSS JOIN generate_series(1, 2 + shard % 2) line_no JOIN ("
    "  SELECT product_id, row_number() OVER () - 1 AS number FROM orders.products) p"
    "  ON p.number = (shard + line_no) % $products",
    "INSERT INTO orders.order_events (order_id, created_at, shard, version, event_id, type, data, actor, occurred_at)"
    " SELECT order_id, created_at, shard, version, order_id, 'order.placed', '{}', 'process:bench', created_at"
    " FROM made CROSS JOIN generate_series(1, 3) version",
    "DROP TABLE made",
    "VACUUM ANALYZE",
)


async def load(url: str, orders: int, days: int = 30) -> list[uuid.UUID]:
    """Orders of the last `days`, and partitions for a year before; gives the products."""
    owner = await asyncpg.connect(url)
    await owner.execute(
        "SELECT orders.create_month((now() + make_interval(months => m))::date) FROM generate_series(-12, 3) m"
    )
    for sql in LOAD:
        await owner.execute(Template(sql).substitute(orders=orders, days=days, products=PRODUCTS, shard=SHARD))
    products = [row[0] for row in await owner.fetch("SELECT product_id FROM orders.products")]
    await owner.close()
    return products


def say(line: str) -> None:
    """It is read while the rest goes on."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


async def refresh(database: Database) -> float:
    """Seconds of one refresh, as orders-maintenance, now."""
    await database.rows(MAKE_DUE)
    started = time.perf_counter()
    await summaries.refresh_when_due(database, "bench", interval=timedelta(0), window=WINDOW)
    return time.perf_counter() - started


async def place(database: Database, products: list[uuid.UUID], seconds: float, rate: float) -> list[float]:
    """Seconds of each placement from when it was due, `rate` a second for so long."""
    taken: list[float] = []
    turns = Turns()
    begun = time.perf_counter()
    for due in (begun + number / rate for number in range(int(seconds * rate))):
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        user, number = uuid.uuid4(), len(taken)
        product = products[number % len(products)]
        line = Line(product, ids.to_text(product), 1, None)
        placement = Placement(user, f"user:{user}", "USD", [line], [], False, None, None)
        await commands.place_order(
            database,
            turns,
            placement,
            Key(str(user), "k", b""),
            now=clock.now(),
            traceparent="",
            expires_after=timedelta(minutes=30),
        )
        taken.append(time.perf_counter() - due)
    return taken


def told(seconds: list[float]) -> str:
    """Median, p99 and worst."""
    ordered = sorted(seconds)
    p99 = ordered[int(len(ordered) * 0.99)]
    return f"n {len(ordered)}, p50 {statistics.median(ordered):.4f} s, p99 {p99:.4f} s, worst {ordered[-1]:.4f} s"


async def measure(stack: Stack, orders: int, seconds: float, rounds: int, rate: float, days: int) -> None:
    """Load, measure, print."""
    owner_url = stack.addresses.postgres
    await asyncio.to_thread(migrate.upgrade, owner_url)
    started = time.perf_counter()
    products = await load(owner_url, orders, days)
    say(f"{orders:,} orders loaded in {time.perf_counter() - started:.0f} s")
    keeper = Database(
        stack.addresses.postgres_as("orders_maintenance"),
        application_name="keeper",
        size_max=1,
        command_timeout_seconds=summaries.REFRESH_TIMEOUT_SECONDS + 1,
    )
    api = Database(stack.addresses.postgres_as("orders_api"), application_name="api", size_max=2)
    await keeper.open()
    await api.open()
    say(f"first refresh, which writes all of it: {await refresh(keeper):.2f} s")
    rows = await keeper.rows(summaries.COUNT)
    say(
        f"{rows[0]['rows']:,} orders shown; refreshes of what has not changed:"
        f" {told([await refresh(keeper) for _ in range(5)])}"
    )
    with_refresh: list[float] = []
    without: list[float] = []
    refreshes: list[float] = []
    for _ in range(rounds):
        without += await place(api, products, seconds, rate)
        placing = asyncio.create_task(place(api, products, seconds, rate))
        while not placing.done():
            refreshes.append(await refresh(keeper))
        with_refresh += await placing
    say(f"refreshes while orders are placed: {told(refreshes)}")
    say(f"placing without refreshes: {told(without)}")
    say(f"placing with refreshes back to back: {told(with_refresh)}")
    await keeper.close()
    await api.close()


async def main(orders: int, seconds: float, rounds: int, rate: float, days: int) -> None:
    """On a server of its own."""
    with tempfile.TemporaryDirectory() as home:
        settings = StackSettings(
            home=Path(home), port_base=free_port_base(), valkey_url="redis://127.0.0.1:1/0", kafka_url="127.0.0.1:1"
        )
        async with Stack(settings, processes=()) as stack:
            await measure(stack, orders, seconds, rounds, rate, days)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--orders", type=int, default=833_000)
    arguments.add_argument("--seconds", type=float, default=20)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--rate", type=float, default=RATE, help="orders a second")
    arguments.add_argument(
        "--days", type=int, default=30, help="that the orders are of; those of the last four are shown"
    )
    given = arguments.parse_args()
    asyncio.run(main(given.orders, given.seconds, given.rounds, given.rate, given.days))
