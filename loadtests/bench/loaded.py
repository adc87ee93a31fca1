"""Made-up orders by the million, made inside PostgreSQL, and our statements on any of them by pgbench."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from loadtests.bench import numbered, pgbench
from loadtests.bench.measure import Side
from loadtests.bench.stage import PRODUCTS, Connection
from services.common import clock, ids
from services.common.db import Statement
from services.common.schemas import PAGE_DEFAULT
from services.orders.queries import GET_INVENTORY, LIST_ORDERS, LIST_ORDERS_BY_STATUS, MONTHS_PER_PAGE_MAX
from services.orders.repository import ALL_EVENTS, GET_EVENTS, REPLAY

ORDERS_OF_A_BUYER: Final = 50  # so that a page is full
ORDER_LINES: Final = 2
_CHUNK: Final = 50_000  # orders of one INSERT
STATUS: Final = "cancelled"  # of every fifth order of each buyer


@dataclass(frozen=True, slots=True)
class Past:
    """`orders` orders, numbered from 0, evenly over the `months` that end with this one."""

    orders: int
    months: int
    now: datetime

    @property
    def first(self) -> datetime:
        """The first instant of the first month."""
        return clock.add_months(clock.month_of(self.now), 1 - self.months)

    @property
    def step_ms(self) -> int:
        """From one order to the next."""
        return max(1, (self.now - self.first) // timedelta(milliseconds=1) // (self.orders + 1))

    @property
    def buyers(self) -> int:
        """Each has as many orders, spread over all months."""
        return max(1, self.orders // ORDERS_OF_A_BUYER)

    def defined(self) -> dict[str, object]:
        """Variables of pgbench that `NUMBER` reckons with."""
        return {
            "orders": self.orders,
            "buyers": self.buyers,
            "start_ms": clock.to_ms(self.first),
            "step_ms": self.step_ms,
        }


# pgbench draws an order, and knows its buyer, time and shard.
NUMBER: Final = (
    r"\set number random(0, :orders - 1)",
    r"\set buyer :number % :buyers",
    rf"\set shard :buyer % {ids.SHARDS}",
    r"\set at_ms :start_ms + :number * :step_ms",
)
ORDER: Final = numbered.order_sql(":number", ":at_ms", ":shard")
USER: Final = numbered.thing_sql("user", ":buyer")


def product_sql(number: str, line: str) -> str:
    """The product of a line of the order `number`, both in SQL's words."""
    return numbered.thing_sql("product", f"({number} + {line}) % {PRODUCTS}")


# For lists, whose plan is a close choice between indexes: an expression in the place of a parameter can tip it. This
# costs a round trip that reads nothing, the same on all sides.
BUYER: Final = rf"SELECT {USER} AS user_id \gset"

# What the INSERTs below read. $1, $2: first and last number; $3: buyers; $4, $5: the first one's time, and the step.
_MADE: Final = f"""
WITH made AS MATERIALIZED (
    SELECT {numbered.order_sql("n", "at_ms", "shard")} AS order_id, {numbered.at_sql("at_ms")} AS created_at,
           shard::smallint AS shard, n, {numbered.thing_sql("user", "buyer")} AS user_id,
           CASE WHEN n / $3 % 5 = 0 THEN '{STATUS}' ELSE 'confirmed' END AS status
    FROM (SELECT n, n % $3 AS buyer, n % $3 % {ids.SHARDS} AS shard, $4::bigint + n * $5::bigint AS at_ms
          FROM generate_series($1::bigint, $2::bigint) n) numbers
)
"""
_ORDERS: Final = """
INSERT INTO {schema}.orders (order_id, created_at, shard, user_id, status, payment_status, currency, total_amount,
    captured_amount, refunded_amount, item_count, adjustments, version, updated_at)
SELECT order_id, created_at, shard, user_id, status, 'on_account', 'USD', 3996, 0, 0, 2, '[]', 1, created_at FROM made
"""
_ITEMS: Final = f"""
INSERT INTO {{schema}}.order_items (order_id, created_at, shard, line_no, product_id, name, quantity, unit_price,
    line_total, shipped_quantity, returned_quantity)
SELECT order_id, created_at, shard, line, {product_sql("n", "line")},
       'Thing of some length', 1, 1998, 1998, 0, 0
FROM made CROSS JOIN generate_series(1, {ORDER_LINES}) line
"""
_EVENTS: Final = f"""
INSERT INTO {{schema}}.order_events (order_id, created_at, shard, version, event_id, type, data, actor, occurred_at)
SELECT order_id, created_at, shard, 1, order_id, 'order.placed', jsonb_build_object(
    'change', jsonb_build_object('order_id', upper(left(md5(n::text), 26)), 'user_id', user_id, 'status', status,
        'payment_status', 'on_account', 'currency', 'USD', 'total_amount', 3996, 'captured_amount', 0,
        'refunded_amount', 0, 'item_count', {ORDER_LINES}, 'version', 1, 'created_at', created_at,
        'updated_at', created_at, 'adjustments', '[]'::jsonb, 'items', (
            SELECT jsonb_agg(jsonb_build_object('line_no', line, 'product_id', upper(left(md5(line::text), 26)), 'name',
                'Thing of some length', 'quantity', 1, 'unit_price', 1998, 'line_total', 1998, 'shipped_quantity', 0,
                'returned_quantity', 0)) FROM generate_series(1, {ORDER_LINES}) line)),
    'after', jsonb_build_object('status', status, 'payment_status', 'on_account', 'currency', 'USD', 'total_amount',
        3996, 'user_id', user_id)), 'user:' || user_id, created_at
FROM made
"""
_KEYS: Final = """
INSERT INTO {schema}.idempotency_keys (shard, subject, key, request_hash, resource, version, created_at)
SELECT shard, user_id::text, 'past-' || n, '', order_id, 1, created_at FROM made
"""
ORDERS_AND_EVENTS: Final = (_ORDERS, _EVENTS)
ALL_TABLES: Final = (_ORDERS, _ITEMS, _EVENTS, _KEYS)


async def load(connection: Connection, schema: str, past: Past, inserts: tuple[str, ...] = ALL_TABLES) -> None:
    """The past is in the tables of `schema`, which take its months, and statistics are made."""
    for first in range(0, past.orders, _CHUNK):
        last = min(first + _CHUNK, past.orders) - 1
        for insert in inserts:
            await connection.execute(
                _MADE + insert.format(schema=schema),
                *(first, last, past.buyers, clock.to_ms(past.first), past.step_ms),
                timeout=3600,
            )
    await connection.execute("VACUUM ANALYZE", timeout=3600)


def get(past: Past) -> tuple[Statement, dict[str, str], dict[str, object]]:
    """Any order: the statement, its parameters' expressions, the variables in them."""
    values = {
        **pgbench.variables(["shard", "any_owner", "after_version", "limit"]),
        **{"order_id": ORDER, "created_at": numbered.at_sql(":at_ms"), "user_id": USER},
    }
    return GET_EVENTS, values, {**past.defined(), "any_owner": "false", "after_version": 0, "limit": ALL_EVENTS}


def newest(past: Past, status: str | None = None) -> tuple[Statement, dict[str, str], dict[str, object]]:
    """The newest page of any buyer, with the bounds of time that the service gives it."""
    walked_from = clock.add_months(clock.month_of(past.now), 1 - MONTHS_PER_PAGE_MAX)
    bounds = {
        "status": status,
        "from_at": clock.to_text(max(past.first, walked_from)),
        "before_at": clock.to_text(past.now),
        "before_id": "00000000-0000-0000-0000-000000000000",
        "limit": PAGE_DEFAULT,
    }
    values = pgbench.variables([*bounds, "user_id"])
    return LIST_ORDERS if status is None else LIST_ORDERS_BY_STATUS, values, {**past.defined(), **bounds}


def replay(past: Past) -> tuple[Statement, dict[str, str], dict[str, object]]:
    """The first answer to any key."""
    values = {"shard": ":shard", "subject": f"CAST({USER} AS text)", "key": "'past-' || CAST(:number AS text)"}
    return REPLAY, values, past.defined()


def stock(past: Past) -> tuple[Statement, dict[str, str], dict[str, object]]:
    """Of any product."""
    return GET_INVENTORY, {"product_id": numbered.thing_sql("product", f":number % {PRODUCTS}")}, past.defined()


def side(url: str, name: str, found: tuple[Statement, Mapping[str, str], Mapping[str, object]], sql: str = "") -> Side:
    """A statement on the past, by pgbench; `sql` instead of its own text, with the same parameters."""
    prologue = [*NUMBER, BUYER] if ":user_id" in found[1].values() else NUMBER
    return pgbench.reading(url, name, *found, prologue, sql)
