"""What callers may read. Every statement carries the owner predicate; none sorts, counts or skips rows."""

from dataclasses import dataclass
from datetime import date, datetime
from itertools import groupby
from typing import Final, NamedTuple
from uuid import UUID

from services.common import clock, ids
from services.common.db import Database, Row
from services.common.errors import not_found
from services.common.ids import OrderKey
from services.contracts.orders import Event, Members
from services.orders.repository import ALL_EVENTS, GET_EVENTS, events_from, statement, told
from services.orders.tables import PARTITIONED

MONTHS_PER_PAGE_MAX: Final = 24  # what one list request may walk; beyond that the page is short and has a cursor
MONTH_ROWS_WARNING: Final = 1_000_000  # DESIGN: past that a month is watched

# The row comparison alone prunes no partition, hence created_at <= before_at. Index: (user_id, created_at, order_id) or
# (user_id, status, created_at, order_id), read in order over at most 24 months until the page is full; then the primary
# key of order_events, one partition an order (its bounds keep the other months' partitions out of the plan's start).
_LIST = """
SELECT o.order_id, e.version, e.event_id, e.type, e.data::text AS data, e.actor, e.occurred_at
FROM (
    SELECT order_id, created_at, shard FROM orders.orders
    WHERE user_id = :user_id {status} AND created_at >= :from_at AND created_at <= :before_at
      AND (created_at, order_id) < (:before_at, :before_id)
    ORDER BY {order} created_at DESC, order_id DESC LIMIT :limit
) o
CROSS JOIN LATERAL (
    SELECT * FROM orders.order_events e
    WHERE e.order_id = o.order_id AND e.created_at = o.created_at AND e.shard = o.shard
      AND e.created_at >= :from_at AND e.created_at <= :before_at
    ORDER BY e.version
) e
"""
LIST_ORDERS = statement("list_orders", _LIST.format(status="", order=""))
# A range of one status, not an equality: a generic plan takes both indexes to find one row and would choose the one
# without status, which walks all the orders of a buyer who has very many. Only the other one has this order.
LIST_ORDERS_BY_STATUS = statement(
    "list_orders_by_status", _LIST.format(status="AND status >= :status AND status <= :status", order="status,")
)

# Index: primary key.
GET_INVENTORY = statement(
    "get_inventory", "SELECT on_hand, reserved, version FROM orders.inventory WHERE product_id = :product_id"
)

GET_MONTHS = statement(
    "get_months",
    "SELECT first_on, count(*) AS tables, max(rows_estimated) AS rows FROM orders.months"
    " GROUP BY first_on ORDER BY first_on",
)


@dataclass(frozen=True, slots=True)
class Reader:
    """Whose orders may be read: one's own, or any."""

    user_id: UUID
    any_owner: bool


class Position(NamedTuple):
    """A place in a list, newest first: what follows is strictly before it."""

    created_at: datetime
    order_id: UUID


@dataclass(frozen=True, slots=True)
class Page:
    """Some orders, newest first, and where to go on; a short page may still have a `next_position`."""

    orders: tuple[Members, ...]
    next_position: Position | None


@dataclass(frozen=True, slots=True)
class Stock:
    """What there is of a product; `on_hand - reserved` can be sold."""

    on_hand: int
    reserved: int
    version: int


async def get_order(database: Database, key: OrderKey, reader: Reader) -> Members | None:
    """The order as it stands; None when it is missing or not the reader's. One round trip."""
    rows = await _event_rows(database, key, reader, 0, ALL_EVENTS)
    return told(rows) if rows else None


async def get_events(
    database: Database, key: OrderKey, reader: Reader, *, after_version: int, limit: int
) -> tuple[int, list[Event]]:
    """The order's version, and its events after `after_version` in order. 404 `not_found`. One round trip."""
    rows = await _event_rows(database, key, reader, after_version, limit)
    if not rows:
        raise not_found()
    return rows[0]["order_version"], events_from(rows, ids.to_text(key.order_id))


async def _event_rows(database: Database, key: OrderKey, reader: Reader, after_version: int, limit: int) -> list[Row]:
    return await database.read(
        GET_EVENTS,
        order_id=key.order_id,
        created_at=key.created_at,
        shard=key.shard,
        user_id=reader.user_id,
        any_owner=reader.any_owner,
        after_version=after_version,
        limit=limit,
    )


async def list_orders(
    database: Database,
    user_id: UUID,
    *,
    status: str | None,
    from_at: datetime,
    before: Position,
    limit: int,
) -> Page:
    """Orders of `user_id` made in [from_at, before), newest first. One round trip, at most 24 months of index."""
    earliest = max(from_at, clock.add_months(clock.month_of(before.created_at), 1 - MONTHS_PER_PAGE_MAX))
    rows = await database.read(
        LIST_ORDERS if status is None else LIST_ORDERS_BY_STATUS,
        user_id=user_id,
        status=status,
        from_at=earliest,
        before_at=before.created_at,
        before_id=before.order_id,
        limit=limit,
    )
    # Each order's rows stand together; their order is the ids' (created_at is in them) and does not hang on the plan.
    found = sorted(
        ((order_id, list(group)) for order_id, group in groupby(rows, key=lambda row: row["order_id"])), reverse=True
    )
    orders = tuple(told(group) for _, group in found)
    if len(orders) == limit:
        last = ids.order_key(found[-1][0])
        return Page(orders, Position(last.created_at, last.order_id))
    return Page(orders, Position(earliest, UUID(int=0)) if earliest > from_at else None)


async def get_stock(database: Database, product_id: UUID) -> Stock | None:
    """The stock of a product; None when orders knows none. One round trip, one index read."""
    rows = await database.read(GET_INVENTORY, product_id=product_id)
    return Stock(rows[0]["on_hand"], rows[0]["reserved"], rows[0]["version"]) if rows else None


class Month(NamedTuple):
    """A month's partitions: how many of the three there are, and the rows of the largest by the last ANALYZE."""

    first_on: date
    tables: int
    rows: int


@dataclass(frozen=True, slots=True)
class MonthsVerdict:
    """`missing` stops placing now or next month; `warnings` can wait for a person."""

    missing: list[str]
    warnings: list[str]


async def get_months(database: Database) -> list[Month]:
    """The months there are partitions for, oldest first. TransientError when the database does not answer."""
    rows = await database.rows(GET_MONTHS)
    return [Month(row["first_on"], row["tables"], row["rows"]) for row in rows]


def judge_months(months: list[Month], now: datetime, *, months_ahead: int) -> MonthsVerdict:
    """What is wrong with the partitions at `now`: this and next month must be there, `months_ahead` should be."""
    whole = {month.first_on for month in months if month.tables == len(PARTITIONED)}
    wanted = [clock.add_months(clock.month_of(now), ahead).date() for ahead in range(months_ahead + 1)]
    warnings = [f"the partitions of {month:%Y-%m} are not made yet" for month in wanted[2:] if month not in whole]
    warnings += [
        f"a partition of {month.first_on:%Y-%m} holds {month.rows} rows"
        for month in months
        if month.rows > MONTH_ROWS_WARNING
    ]
    return MonthsVerdict([f"{month:%Y-%m}" for month in wanted[:2] if month not in whole], warnings)
