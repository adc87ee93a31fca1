"""Orders with all that is stored of them, read a month at a time, and the rows that their events tell."""

from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

import orjson

from services.common import clock, ids
from services.common.db import Row, WriteConnection
from services.contracts.orders import Order, order_of, tell
from services.orders.tables import order_items, orders

Progress = Callable[[str, int, int], None]  # what is being done, and how much of how much is


def silent(_what: str, _done: int, _total: int) -> None:
    """No progress is shown."""


async def months_of(connection: WriteConnection) -> list[datetime]:
    """The first instants of the months there are partitions for, oldest first."""
    rows = await connection.fetch(
        "SELECT DISTINCT first_on::timestamptz AS month FROM orders.months WHERE first_on IS NOT NULL ORDER BY month"
    )
    return [row["month"] for row in rows]


async def orders_expected(connection: WriteConnection) -> int:
    """About how many orders there are, by the statistics of their partitions."""
    orders: int = await connection.fetchval(
        "SELECT coalesce(sum(greatest(c.reltuples, 0)), 0)::bigint FROM orders.months m"
        " JOIN pg_class c ON c.relname = m.partition AND c.relnamespace = 'orders'::regnamespace"
        " WHERE m.parent = 'orders'"
    )
    return orders


async def as_of(connection: WriteConnection) -> datetime | None:
    """All that was committed by then can be read here; None on a primary, where that is now.

    By the heartbeat (`reports`) also while nothing else is committed.
    """
    at: datetime | None = await connection.fetchval(
        "SELECT CASE WHEN pg_is_in_recovery() THEN greatest(at, pg_last_xact_replay_timestamp()) END"
        " FROM orders.heartbeat"
    )
    return at


_BATCH_ORDERS_MAX: Final = 2_000
_BATCH_LINES: Final = 10_000  # wanted of a batch: orders of a thousand lines come in batches of ten
_FIRST_ID: Final = UUID(int=0)
_LAST_ID: Final = UUID(int=2**128 - 1)

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
BETWEEN: Final = "order_id > $3 AND order_id <= $4"
AMONG: Final = "order_id = ANY($3)"


@dataclass(slots=True)
class History:
    """All that is stored of one order."""

    order_id: UUID
    row: Row | None = None
    items: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)

    def order(self) -> Order:
        """What its events tell; one of UNFOLDABLE when there is none."""
        text = ids.to_text(self.order_id)
        told = ((row["version"], row["type"], row["occurred_at"], orjson.loads(row["data"])) for row in self.events)
        order = order_of(tell(told))
        if order.order_id != text:
            raise ValueError(f"its first event is of order {order.order_id}")
        return order

    def differences(self, order: Order) -> tuple[list[str], list[str]]:
        """Where its row, and where its lines, are not what `order` tells, column by column."""
        told = order_row(self.order_id, order)
        lines = {line["line_no"]: line for line in item_rows(told, order)}
        found = {row["line_no"]: dict(row.items()) for row in self.items}
        if self.row is None:
            differing = ["there is no row for its events"]
        else:
            differing = _unlike({**dict(self.row.items()), "adjustments": orjson.loads(self.row["adjustments"])}, told)
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


def order_row(order_id: UUID, order: Order) -> dict[str, Any]:
    """The row of `orders` that `order` tells, every column of it."""
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
        "adjustments": [asdict(adjustment) for adjustment in order.adjustments],
        "expires_at": None if order.expires_at is None else datetime.fromisoformat(order.expires_at),
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


@dataclass(frozen=True, slots=True)
class Page:
    """All that is stored of the orders of a month whose ids are over `bounds[2]` and not over `bounds[3]`.

    The first two bounds are those of the month; all four are the first parameters of a statement about these orders.
    """

    bounds: tuple[datetime, datetime, UUID, UUID]
    histories: list[History]


@dataclass(slots=True)
class Pages:
    """The orders of a month, in the order of their ids, in pages small enough for memory: `read`, `turn`, until over.

    Whoever cannot use a page that was read may read it again.
    """

    month: datetime
    _after: UUID = _FIRST_ID
    _size: int = _BATCH_ORDERS_MAX // 10

    @property
    def over(self) -> bool:
        """There are no more."""
        return self._after == _LAST_ID

    async def read(self, connection: WriteConnection) -> Page:
        """The page at hand. Four statements, of about _BATCH_LINES rows together."""
        within = (self.month, clock.add_months(self.month, 1))
        found = await connection.fetch(_IDS, *within, self._after, self._size)
        upto = found[-1]["order_id"] if len(found) == self._size else _LAST_ID
        bounds = (*within, self._after, upto)
        return Page(bounds, await read(connection, BETWEEN, *bounds))

    def turn(self, page: Page) -> None:
        """The next page is at hand."""
        lines = sum(len(history.items) + len(history.events) for history in page.histories)
        size = min(2 * self._size, self._size * _BATCH_LINES // max(lines, 1))
        self._size = max(10, min(_BATCH_ORDERS_MAX, size))
        self._after = page.bounds[3]


async def histories(connection: WriteConnection, month: datetime) -> AsyncIterator[list[History]]:
    """All orders of a month, in batches small enough for memory, in the order of their ids."""
    pages = Pages(month)
    while not pages.over:
        page = await pages.read(connection)
        yield page.histories
        pages.turn(page)


async def read(connection: WriteConnection, which: str, *arguments: object) -> list[History]:
    """The orders that `which` names by these arguments, the first two of them the bounds of their month."""
    rows = {
        table: await connection.fetch(
            f"SELECT {columns} FROM orders.{table} WHERE created_at >= $1 AND created_at < $2 AND {which}"  # noqa: S608 # constants
            f" ORDER BY order_id{', version' if table == 'order_events' else ''}",
            *arguments,
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
