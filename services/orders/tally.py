"""What the pages of a long read add up to: the stock that orders take, and where a day's sales are to be looked for.

Pages are of different moments, so none of this is a verdict: it tells what has to be judged in one snapshot, and where.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any, Final
from uuid import UUID

from services.common import clock
from services.common.db import WriteConnection
from services.contracts.orders import EventType, OrderStatus
from services.orders.histories import History, as_of

# What an order holds in reserve it has not shipped, until it is cancelled. `drift` is what is missing in inventory;
# an order placed or changed meanwhile moves both sides alike, so it may be added later. `of` says which products.
STOCK_RESERVED: Final = """
WITH held AS (
    SELECT i.product_id, sum(i.quantity - i.shipped_quantity) AS units
    FROM orders.order_items i JOIN orders.orders o USING (order_id, created_at, shard)
    WHERE o.status <> 'cancelled' AND {of}
    GROUP BY i.product_id
)
SELECT product_id AS id, format('reserved is %s, its orders hold %s', s.reserved, coalesce(h.units, 0)) AS detail,
       (coalesce(h.units, 0) - coalesce(s.reserved, 0))::bigint AS drift
FROM (SELECT * FROM orders.inventory WHERE {of}) s FULL JOIN held h USING (product_id)
WHERE coalesce(s.reserved, 0) <> coalesce(h.units, 0)
"""
# Away is what is shipped and not returned.
STOCK_ON_HAND: Final = """
WITH moved AS (
    SELECT product_id, sum(delta) AS units FROM orders.inventory_movements WHERE {of} GROUP BY product_id
), away AS (
    SELECT product_id, sum(shipped_quantity - returned_quantity) AS units FROM orders.order_items
    WHERE {of} GROUP BY product_id
), kept AS (
    SELECT product_id, coalesce(m.units, 0) - coalesce(a.units, 0) AS units
    FROM moved m FULL JOIN away a USING (product_id)
)
SELECT product_id AS id,
       format('on_hand is %s, movements less what is away make %s', s.on_hand, coalesce(k.units, 0)) AS detail,
       (coalesce(k.units, 0) - coalesce(s.on_hand, 0))::bigint AS drift
FROM (SELECT * FROM orders.inventory WHERE {of}) s FULL JOIN kept k USING (product_id)
WHERE coalesce(s.on_hand, 0) <> coalesce(k.units, 0)
"""
# Products whose stock is not what was added up, or was changed since the first look at its version.
_UNSETTLED: Final = """
WITH moved AS (
    SELECT product_id, sum(delta) AS units FROM orders.inventory_movements GROUP BY product_id
)
SELECT product_id, coalesce(t.lines, 0) AS lines
FROM orders.inventory s
FULL JOIN unnest($1::uuid[], $2::bigint[], $3::bigint[], $4::bigint[], $5::bigint[])
    AS t (product_id, version, held, away, lines) USING (product_id)
LEFT JOIN moved m USING (product_id)
WHERE s.version IS DISTINCT FROM t.version OR coalesce(s.reserved, 0) <> t.held
   OR coalesce(s.on_hand, 0) <> coalesce(m.units, 0) - t.away
ORDER BY product_id
"""
_ROLLUP_DAYS: Final = """
SELECT day FROM orders.sales_daily UNION SELECT day FROM orders.sales_daily_product
UNION SELECT placed_on FROM orders.orders_by_status
"""

_SOLD: Final = frozenset({EventType.PLACED, EventType.CANCELLED, EventType.REFUNDED})  # what sales by day are made of
_DAY_MS: Final = 86_400_000
_EPOCH: Final = clock.EPOCH.date()
# An inbox row bears the time at which its transaction began, by the primary's clock.
_CLOCKS: Final = timedelta(minutes=10)


@dataclass(slots=True)
class _Stock:
    """Of one product: units in reserve, units away, and the lines that say so."""

    held: int = 0
    away: int = 0
    lines: int = 0


@dataclass(slots=True)
class Tally:
    """Begins with `begin`; is safe to make in parts, of different orders, that are merged."""

    stock: dict[UUID, _Stock] = field(default_factory=lambda: defaultdict(_Stock))
    days: set[int] = field(default_factory=set)  # after 1970-01-01, on which orders were made
    elsewhere: dict[int, bytearray] = field(default_factory=lambda: defaultdict(bytearray))

    def add(self, history: History) -> None:
        """An order as it was read."""
        holds = history.row is not None and history.row["status"] != OrderStatus.CANCELLED
        for line in history.items:
            stock = self.stock[line["product_id"]]
            shipped = line["shipped_quantity"]
            stock.away += shipped - line["returned_quantity"]
            stock.lines += 1
            if holds:
                stock.held += line["quantity"] - shipped
        made_on = (history.order_id.int >> 80) // _DAY_MS
        self.days.add(made_on)
        for event in history.events:
            if event["type"] in _SOLD and (day := _day_number(event["occurred_at"][:10])) != made_on:
                self.elsewhere[day] += history.order_id.bytes

    def merge(self, other: "Tally") -> None:
        """What was added to the other one is added here too."""
        for product_id, more in other.stock.items():
            stock = self.stock[product_id]
            stock.held += more.held
            stock.away += more.away
            stock.lines += more.lines
        self.days |= other.days
        for day, order_ids in other.elsewhere.items():
            self.elsewhere[day] += order_ids


class Settling:
    """Which products and days have to be judged in a snapshot of their own, after all pages have been read.

    A product whose inventory version is the same after the pages as before has had the same lines all the while.
    `replica_at`: see `histories.as_of`.
    """

    def __init__(self, versions: dict[UUID, int], began_at: datetime, replica_at: datetime | None) -> None:
        self._versions, self._since = versions, (replica_at or began_at) - _CLOCKS
        self.replica_at = replica_at

    @classmethod
    async def begin(cls, connection: WriteConnection) -> "Settling":
        """Before the first page."""
        rows = await connection.fetch("SELECT product_id, version FROM orders.inventory")
        versions = {row["product_id"]: row["version"] for row in rows}
        return cls(versions, await connection.fetchval("SELECT now()"), await as_of(connection))

    async def products(self, tally: Tally, connection: WriteConnection) -> list[tuple[UUID, int]]:
        """Products that are unlike the sums or have changed meanwhile, each with its lines."""
        known = list(self._versions.keys() | tally.stock.keys())
        stocks = [tally.stock.get(product_id) or _Stock() for product_id in known]
        rows = await connection.fetch(
            _UNSETTLED,
            known,
            [self._versions.get(product_id) for product_id in known],
            *([getattr(stock, name) for stock in stocks] for name in ("held", "away", "lines")),
        )
        return [(row["product_id"], row["lines"]) for row in rows]

    async def days(self, tally: Tally, connection: WriteConnection) -> list[tuple[Any, ...]]:
        """The parameters of `recount.DRIFT_OF_DAY` for every day that has sums, or ought to."""
        found = {row["day"] for row in await connection.fetch(_ROLLUP_DAYS)}
        found |= {_EPOCH + timedelta(days=number) for number in tally.days | tally.elsewhere.keys()}
        return [self._day(tally, day) for day in sorted(found)]

    def _day(self, tally: Tally, day: date) -> tuple[Any, ...]:
        number = (day - _EPOCH).days
        packed = bytes(tally.elsewhere.get(number, b""))
        order_ids = {packed[at : at + 16] for at in range(0, len(packed), 16)}
        # What a page has not seen was written after it was read, and its order counted later than that.
        since = self._since if day >= self._since.astimezone(UTC).date() else None
        return day, _first_id(number), _first_id(number + 1), [UUID(bytes=each) for each in order_ids], since


def in_turns(products: Iterable[tuple[UUID, int]], lines_max: int) -> Iterator[list[UUID]]:
    """The products, so many at a time that they have `lines_max` lines together, or one that has more."""
    turn: list[UUID] = []
    lines = 0
    for product_id, more in products:
        if turn and lines + more > lines_max:
            yield turn
            turn, lines = [], 0
        turn.append(product_id)
        lines += more
    if turn:
        yield turn


@lru_cache(maxsize=4_096)
def _day_number(text: str) -> int:
    return (date.fromisoformat(text) - _EPOCH).days


def _first_id(day_number: int) -> UUID:
    """The smallest id of an order made on that day or later (RFC 9562, version 7)."""
    return UUID(int=max(0, day_number) * _DAY_MS << 80 | 7 << 76 | 0b10 << 62)
