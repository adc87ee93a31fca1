"""The rows of orders, told by their events: what they should be, and `orders rebuild`, which makes them so."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

import orjson

from services.common import clock, ids
from services.common.db import Database, Row, WriteConnection
from services.contracts.orders import Event, Order, OrderStatus, fold
from services.orders.tables import order_items, orders

PATIENCE_SECONDS: Final = 86_400.0  # for one statement: the pool's own limit is meant for requests

# An operator's session: no haste, plans for the month at hand, and memory for one month's sort but not for more.
_SESSION: Final = """
SET statement_timeout = 0; SET transaction_timeout = 0; SET idle_in_transaction_session_timeout = 0;
SET plan_cache_mode = force_custom_plan; SET enable_seqscan = on; SET enable_partitionwise_join = on;
SET work_mem = '32MB'
"""

Progress = Callable[[str, int, int], None]  # what is being done, and how much of how much is


def silent(_what: str, _done: int, _total: int) -> None:
    """No progress is shown."""


@asynccontextmanager
async def unhurried(url: str, application_name: str) -> AsyncIterator[WriteConnection]:
    """One connection without the limits of a request. Each call still has to bring `timeout=PATIENCE_SECONDS`."""
    database = Database(url, application_name=application_name, size_max=1)
    await database.open()
    try:
        async with database.session() as connection:
            await connection.execute(_SESSION)
            yield connection
    finally:
        await database.close()


async def months_of(connection: WriteConnection) -> list[datetime]:
    """The first instants of the months there are partitions for, oldest first."""
    rows = await connection.fetch(
        "SELECT DISTINCT first_on::timestamptz AS month FROM orders.months WHERE first_on IS NOT NULL ORDER BY month"
    )
    return [row["month"] for row in rows]


_BATCH_ORDERS_MAX: Final = 2_000
_BATCH_LINES: Final = 10_000  # wanted of a batch: orders of a thousand lines come in batches of ten
_LAST_ID: Final = UUID(int=2**128 - 1)

# The event does not tell when an unpaid order expires (a setting does): the row's own value stands; this if it is lost.
_EXPIRES_AFTER: Final = timedelta(minutes=30)

# What data that no event has makes of a fold.
UNFOLDABLE: Final = (ValueError, KeyError, TypeError, AttributeError)

# In the order of order_id, which is that of (created_at, order_id). Index: primary key; one partition.
_IDS: Final = """
(SELECT order_id FROM orders.orders
 WHERE created_at >= $1 AND created_at < $2 AND order_id > $3 ORDER BY order_id LIMIT $4)
UNION
(SELECT DISTINCT order_id FROM orders.order_events
 WHERE created_at >= $1 AND created_at < $2 AND order_id > $3 ORDER BY order_id LIMIT $4)
ORDER BY order_id LIMIT $4
"""
ORDER_COLUMNS: Final = tuple(orders.columns.keys())
ITEM_COLUMNS: Final = tuple(order_items.columns.keys())
_COLUMNS: Final = {
    "orders": ", ".join(ORDER_COLUMNS),
    "order_items": ", ".join(ITEM_COLUMNS),
    # RFC 3339 as common/clock writes it; here it costs half of what it would there, and on the server's core
    "order_events": "order_id, version, type, data, actor,"
    """ to_char(occurred_at, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') AS occurred_at""",
}
_BETWEEN: Final = "order_id > $3 AND order_id <= $4"
_AMONG: Final = "order_id = ANY($3)"


@dataclass(slots=True)
class History:
    """All that is stored of one order."""

    order_id: UUID
    row: Row | None = None
    items: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)

    def order(self) -> Order:
        """The fold of its events; one of UNFOLDABLE when there is none."""
        text = ids.to_text(self.order_id)
        order = fold(
            Event(
                event_id="",  # the fold does not read it, and its text costs more than all the rest
                order_id=text,
                version=row["version"],
                type=row["type"],
                occurred_at=row["occurred_at"],
                actor=row["actor"],
                data=orjson.loads(row["data"]),
            )
            for row in self.events
        )
        if order.order_id != text:
            raise ValueError(f"its first event is of order {order.order_id}")
        return order

    @property
    def expires_at(self) -> datetime | None:
        """What its row says."""
        return None if self.row is None else self.row["expires_at"]

    def differences(self, order: Order) -> tuple[list[str], list[str]]:
        """Where its row, and where its lines, are not what `order` tells, column by column."""
        told = order_row(self.order_id, order, self.expires_at)
        lines = {line["line_no"]: line for line in item_rows(told, order)}
        found = {row["line_no"]: dict(row) for row in self.items}
        if self.row is None:
            differing = ["there is no row for its events"]
        else:
            differing = _unlike({**self.row, "adjustments": orjson.loads(self.row["adjustments"])}, told)
        if found == lines:
            return differing, []
        return differing, [
            f"line {number}: {difference}"
            for number in sorted(found.keys() | lines.keys())
            for difference in (
                ["it is missing"]
                if number not in found
                else ["its events know of none"]
                if number not in lines
                else _unlike(found[number], lines[number])
            )
        ]


def order_row(order_id: UUID, order: Order, expires_at: datetime | None) -> dict[str, Any]:
    """The row of `orders` that `order` tells, every column of it; `expires_at` is what the present row says."""
    created_at = datetime.fromisoformat(order.created_at)
    user_id = UUID(order.user_id)
    return {
        "order_id": order_id,
        "created_at": created_at,
        "shard": ids.shard_of(user_id),
        "user_id": user_id,
        "status": order.status,
        "payment_status": order.payment_status,
        "currency": order.currency,
        "total_amount": order.total_amount,
        "captured_amount": order.captured_amount,
        "refunded_amount": order.refunded_amount,
        "item_count": order.item_count,
        "adjustments": list(order.adjustments),
        "expires_at": expires_at or created_at + _EXPIRES_AFTER if order.status == OrderStatus.PENDING else None,
        "payment_method": order.payment_method,
        "shipping_address_id": order.shipping_address_id,
        "tracking": order.tracking,
        "cancel_reason": order.cancel_reason,
        "version": order.version,
        "updated_at": datetime.fromisoformat(order.updated_at),
    }


def item_rows(row: Mapping[str, Any], order: Order) -> list[dict[str, Any]]:
    """The rows of `order_items` that `order` tells, every column of them; `row` is that of `orders`."""
    return [
        {
            "order_id": row["order_id"],
            "created_at": row["created_at"],
            "shard": row["shard"],
            "line_no": item.line_no,
            "product_id": _product_id(item.product_id),
            "name": item.name,
            "quantity": item.quantity,
            "unit_price": item.unit_price,
            "line_total": item.line_total,
            "shipped_quantity": item.shipped_quantity,
            "returned_quantity": item.returned_quantity,
        }
        for item in order.items
    ]


_product_id = lru_cache(maxsize=65_536)(ids.from_text)  # few products stand on most lines


def _unlike(found: Mapping[str, Any], told: Mapping[str, Any]) -> list[str]:
    if found == told:
        return []
    return [
        f"{column} is {found.get(column)}, its events say {told.get(column)}"
        for column in (*told, *(found.keys() - told.keys()))
        if found.get(column) != told.get(column)
    ]


async def histories(connection: WriteConnection, month: datetime) -> AsyncIterator[list[History]]:
    """All orders of a month, in batches small enough for memory, in the order of their ids."""
    within = (month, clock.add_months(month, 1))
    after, size = UUID(int=0), _BATCH_ORDERS_MAX // 10
    while after != _LAST_ID:
        found = await connection.fetch(_IDS, *within, after, size, timeout=PATIENCE_SECONDS)
        upto = found[-1]["order_id"] if len(found) == size else _LAST_ID
        batch = await _read(connection, _BETWEEN, *within, after, upto)
        yield batch
        lines = sum(len(history.items) + len(history.events) for history in batch)
        size = max(10, min(_BATCH_ORDERS_MAX, 2 * size, size * _BATCH_LINES // max(lines, 1)))
        after = upto


async def _read(connection: WriteConnection, which: str, *arguments: object) -> list[History]:
    rows = {
        table: await connection.fetch(
            f"SELECT {columns} FROM orders.{table} WHERE created_at >= $1 AND created_at < $2 AND {which}"  # noqa: S608 # constants
            f" ORDER BY order_id{', version' if table == 'order_events' else ''}",
            *arguments,
            timeout=PATIENCE_SECONDS,
        )
        for table, columns in _COLUMNS.items()
    }
    found = {row["order_id"]: History(row["order_id"], row) for row in rows["orders"]}

    def of(row: Row) -> History:
        order_id = row["order_id"]
        return found.get(order_id) or found.setdefault(order_id, History(order_id))

    for row in rows["order_items"]:
        of(row).items.append(row)
    for row in rows["order_events"]:
        of(row).events.append(row)
    return list(found.values())


# What an order holds in reserve it has not shipped, until it is cancelled. `drift` is what is missing in inventory;
# an order placed or changed meanwhile moves both sides alike, so it may be added later.
STOCK_RESERVED: Final = """
WITH held AS (
    SELECT i.product_id, sum(i.quantity - i.shipped_quantity) AS units
    FROM orders.order_items i JOIN orders.orders o USING (order_id, created_at, shard)
    WHERE o.status <> 'cancelled'
    GROUP BY i.product_id
)
SELECT product_id AS id, format('reserved is %s, its orders hold %s', s.reserved, coalesce(h.units, 0)) AS detail,
       (coalesce(h.units, 0) - coalesce(s.reserved, 0))::bigint AS drift
FROM orders.inventory s FULL JOIN held h USING (product_id)
WHERE coalesce(s.reserved, 0) <> coalesce(h.units, 0)
"""
STOCK_ON_HAND: Final = """
WITH moved AS (
    SELECT product_id, sum(delta) AS units FROM orders.inventory_movements GROUP BY product_id
), shipped AS (
    SELECT product_id, sum(shipped_quantity - returned_quantity) AS units FROM orders.order_items GROUP BY product_id
), kept AS (
    SELECT product_id, coalesce(m.units, 0) - coalesce(s.units, 0) AS units
    FROM moved m FULL JOIN shipped s USING (product_id)
)
SELECT product_id AS id,
       format('on_hand is %s, movements less shipments make %s', s.on_hand, coalesce(k.units, 0)) AS detail,
       (coalesce(k.units, 0) - coalesce(s.on_hand, 0))::bigint AS drift
FROM orders.inventory s FULL JOIN kept k USING (product_id)
WHERE coalesce(s.on_hand, 0) <> coalesce(k.units, 0)
"""


_KEY: Final = ("order_id", "created_at", "shard")
# Updated in place, never deleted: a command that waits for the row would find it gone, and take that for an answer.
_UPSERT: Final = (
    f"INSERT INTO orders.orders ({', '.join(ORDER_COLUMNS)})"  # noqa: S608 # constants
    f" VALUES ({', '.join(f'${number}' for number in range(1, len(ORDER_COLUMNS) + 1))})"
    f" ON CONFLICT ({', '.join(_KEY)}) DO UPDATE SET "
    + ", ".join(f"{column} = excluded.{column}" for column in ORDER_COLUMNS if column not in _KEY)
)
_LOCK: Final = """
SELECT FROM orders.orders WHERE order_id = ANY($3) AND created_at >= $1 AND created_at < $2
ORDER BY order_id FOR NO KEY UPDATE
"""
_CLEAR: Final = "DELETE FROM orders.order_items WHERE order_id = ANY($3) AND created_at >= $1 AND created_at < $2"

# What makes the stock negative or oversold is left: no rebuild can decide who gets the last one.
_MEND: Final = """
WITH stock AS (
    SELECT i.product_id, i.on_hand + d.on_hand AS on_hand, i.reserved + d.reserved AS reserved
    FROM unnest($1::uuid[], $2::bigint[], $3::bigint[]) AS d (product_id, on_hand, reserved)
    JOIN orders.inventory i USING (product_id)
    ORDER BY i.product_id
    FOR NO KEY UPDATE OF i
)
UPDATE orders.inventory i SET on_hand = s.on_hand, reserved = s.reserved, version = i.version + 1
FROM stock s
WHERE i.product_id = s.product_id AND s.reserved BETWEEN 0 AND s.on_hand
RETURNING i.product_id
"""


@dataclass(slots=True)
class Rebuilt:
    """How many orders were looked at, how many written, whose stock was set right, and what was left and why."""

    orders: int = 0
    written: int = 0
    products: int = 0
    left: list[str] = field(default_factory=list)


async def rebuild(owner_url: str, progress: Progress = silent) -> Rebuilt:
    """Rows and lines of all orders are what their events tell, and stock is what orders and movements add up to.

    Safe while orders are taken: an order that differs is locked, read again and written, in a transaction a batch
    (READ COMMITTED), in the order of the ids; nothing else is touched, so a second run writes nothing. Nothing is
    deleted that events cannot tell anew: an order without events, or whose events do not fold, is left and named.
    Stock is corrected by its difference, taken in one snapshot, which orders placed meanwhile do not change.
    RuntimeError when another rebuild is running, a lock timeout when an order stays locked: run it again.
    """
    result = Rebuilt()
    async with unhurried(owner_url, "orders rebuild") as connection:
        if not await connection.fetchval("SELECT pg_try_advisory_lock(hashtext('orders.rebuild'))"):
            raise RuntimeError("another rebuild is running on this database")
        months = await months_of(connection)
        for number, month in enumerate(months):
            async for batch in histories(connection, month):
                progress(f"{month:%Y-%m}, {result.orders:,} orders", number, len(months) + 1)
                result.orders += len(batch)
                differing = [history.order_id for history in batch if _differs(history, result)]
                if differing:
                    async with connection.transaction():
                        result.written += await _write(connection, month, differing)
        progress("stock", len(months), len(months) + 1)
        await _mend_stock(connection, result)
    return result


def _differs(history: History, result: Rebuilt) -> bool:
    try:
        return any(history.differences(history.order()))
    except UNFOLDABLE as error:
        result.left.append(f"{ids.to_text(history.order_id)}: {error!r}")
        return False


async def _write(connection: WriteConnection, month: datetime, order_ids: Sequence[UUID]) -> int:
    """These orders are what their events tell, and stay locked; gives how many did differ."""
    within = (month, clock.add_months(month, 1))
    await connection.execute(_LOCK, *within, order_ids, timeout=PATIENCE_SECONDS)
    # Read only now: a command that came first has left its event, and none can come before we have committed.
    orders_told, items_told = [], []
    for history in await _read(connection, _AMONG, *within, order_ids):
        order = history.order()
        if any(history.differences(order)):
            row = order_row(history.order_id, order, history.expires_at)
            items_told += [tuple(line[column] for column in ITEM_COLUMNS) for line in item_rows(row, order)]
            orders_told.append({**row, "adjustments": orjson.dumps(row["adjustments"]).decode()})
    await connection.execute(_CLEAR, *within, [row["order_id"] for row in orders_told], timeout=PATIENCE_SECONDS)
    await connection.executemany(
        _UPSERT, [tuple(row[column] for column in ORDER_COLUMNS) for row in orders_told], timeout=PATIENCE_SECONDS
    )
    await connection.copy_records_to_table(
        "order_items", schema_name="orders", columns=ITEM_COLUMNS, records=items_told, timeout=PATIENCE_SECONDS
    )
    return len(orders_told)


async def _mend_stock(connection: WriteConnection, result: Rebuilt) -> None:
    drift: dict[UUID, list[int]] = {}
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        for place, sql in enumerate((STOCK_ON_HAND, STOCK_RESERVED)):
            for row in await connection.fetch(sql, timeout=PATIENCE_SECONDS):
                drift.setdefault(row["id"], [0, 0])[place] = row["drift"]
    mended = await connection.fetch(
        _MEND, list(drift), *([units[place] for units in drift.values()] for place in (0, 1)), timeout=PATIENCE_SECONDS
    )
    result.products = len(mended)
    result.left += [
        f"{ids.to_text(product_id)}: its stock would be negative or oversold; adjust it first"
        for product_id in sorted(drift.keys() - {row["product_id"] for row in mended})
    ]
