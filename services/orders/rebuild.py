"""`orders rebuild`: the rows of orders and their lines, the stock and the rollups are made what the events tell."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final
from uuid import UUID

import orjson

from services.common import clock, ids
from services.common.db import WriteConnection
from services.common.snapshots import unhurried
from services.orders.histories import (
    AMONG,
    ITEM_COLUMNS,
    ORDER_COLUMNS,
    UNFOLDABLE,
    History,
    Progress,
    histories,
    item_rows,
    months_of,
    order_row,
    read,
    silent,
)
from services.orders.recount import recount
from services.orders.tally import STOCK_ON_HAND, STOCK_RESERVED

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
    """Orders looked at and written, whose stock and how many rollups were set right, what was left and why."""

    orders: int = 0
    written: int = 0
    products: int = 0
    rollups: int = 0
    left: list[str] = field(default_factory=list)


async def rebuild(owner_url: str, progress: Progress = silent) -> Rebuilt:
    """Rows and lines of all orders are what their events tell, and stock and rollups what they add up to.

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
                progress(f"{month:%Y-%m}, {result.orders:,} orders", number, len(months) + 2)
                result.orders += len(batch)
                differing = [history.order_id for history in batch if _differs(history, result)]
                if differing:
                    async with connection.transaction():
                        result.written += await _write(connection, month, differing)
        progress("stock", len(months), len(months) + 2)
        await _mend_stock(connection, result)
        progress("rollups", len(months) + 1, len(months) + 2)
        result.rollups, uncounted = await recount(connection)
        result.left += uncounted
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
    await connection.execute(_LOCK, *within, order_ids)
    # Read only now: a command that came first has left its event, and none can come before we have committed.
    orders_told, items_told = [], []
    for history in await read(connection, AMONG, *within, order_ids):
        order = history.order()
        if any(history.differences(order)):
            row = order_row(history.order_id, order)
            items_told += [tuple(line[column] for column in ITEM_COLUMNS) for line in item_rows(row, order)]
            orders_told.append({**row, "adjustments": orjson.dumps(row["adjustments"]).decode()})
    await connection.execute(_CLEAR, *within, [row["order_id"] for row in orders_told])
    await connection.executemany(_UPSERT, [tuple(row[column] for column in ORDER_COLUMNS) for row in orders_told])
    await connection.copy_records_to_table(
        "order_items", schema_name="orders", columns=ITEM_COLUMNS, records=items_told
    )
    return len(orders_told)


async def _mend_stock(connection: WriteConnection, result: Rebuilt) -> None:
    drift: dict[UUID, list[int]] = {}
    async with connection.transaction(isolation="repeatable_read", readonly=True):
        for place, sql in enumerate((STOCK_ON_HAND, STOCK_RESERVED)):
            for row in await connection.fetch(sql.format(of="TRUE")):
                drift.setdefault(row["id"], [0, 0])[place] = row["drift"]
    mended = await connection.fetch(
        _MEND, list(drift), *([units[place] for units in drift.values()] for place in (0, 1))
    )
    result.products = len(mended)
    result.left += [
        f"{ids.to_text(product_id)}: its stock would be negative or oversold; adjust it first"
        for product_id in sorted(drift.keys() - {row["product_id"] for row in mended})
    ]
