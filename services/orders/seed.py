"""`orders seed`: a shop's past, loaded by COPY: products, buyers, and orders with their whole history.

Rows are the fold of the events, as everywhere. No outbox rows are written: that history was never news.
"""

import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from itertools import islice
from typing import Any, Final
from uuid import UUID, uuid5

import orjson

from services.common import clock, ids
from services.common.db import WriteConnection
from services.common.ids import OrderKey
from services.common.snapshots import unhurried
from services.contracts.catalog import Product, ProductEventType
from services.contracts.orders import Event, EventType, Order, apply
from services.orders import domain, sales
from services.orders.domain import CancelReason, Command
from services.orders.histories import (
    ITEM_COLUMNS,
    ORDER_COLUMNS,
    Progress,
    item_rows,
    order_row,
    silent,
)
from services.orders.rollups import REMEMBERED_DAYS, add_loaded
from services.orders.sales import Deltas
from services.orders.steps import data_of

CURRENCY: Final = "USD"
PRICES: Final = (499, 999, 1_499, 1_999, 2_999, 4_999, 9_999, 14_999)  # minor units
ACTOR: Final = "process:seed"

_BATCH_ORDERS: Final = 2_000  # a transaction of about a third of a second
_BUYERS_MIN: Final = 200
_ORDERS_PER_BUYER: Final = 5  # on average; a few buyers order most
_NAMESPACE: Final = UUID("6f726465-7273-5365-8564-000000000000")  # of the buyers' ids
_PRODUCTS_MADE_AT: Final = datetime(2020, 1, 1, tzinfo=clock.EPOCH.tzinfo)  # fixed, so that a seed names its products

# How many lines orders have, and how many units a line; of orders old enough, how they ended.
_LINES: Final = ((1, 2, 3, 4, 5), (40, 70, 85, 95, 100))
_QUANTITIES: Final = ((1, 2, 3, 5, 10), (70, 88, 95, 99, 100))
_CANCELLED_SHARE: Final = 0.06
_SHIPPED_AFTER: Final = (timedelta(hours=2), timedelta(hours=72))
_DELIVERED_AFTER: Final = (timedelta(hours=20), timedelta(hours=120))
_CANCELLED_AFTER: Final = (timedelta(minutes=5), timedelta(hours=24))

_KINDS: Final = ("Teapot", "Kettle", "Lamp", "Chair", "Mug", "Notebook", "Blanket", "Basket", "Vase", "Clock")
_LOOKS: Final = ("Blue", "Oak", "Linen", "Brass", "Small", "Round", "Plain", "Glazed", "Folding", "Striped")

_EVENT_COLUMNS: Final = (
    *("order_id", "created_at", "shard", "version", "event_id"),
    *("type", "data", "actor", "traceparent", "occurred_at"),
)

_MOVE_STOCK: Final = """
WITH stock AS MATERIALIZED (
    SELECT i.product_id, d.shipped, d.reserved
    FROM unnest($1::uuid[], $2::bigint[], $3::bigint[]) AS d (product_id, shipped, reserved)
    JOIN orders.inventory i USING (product_id)
    ORDER BY i.product_id
    FOR NO KEY UPDATE OF i
)
UPDATE orders.inventory i
SET on_hand = i.on_hand - s.shipped, reserved = i.reserved + s.reserved, version = i.version + 1
FROM stock s
WHERE i.product_id = s.product_id
"""


class AlreadySeededError(Exception):
    """This seed's products are there: it has been loaded before, wholly or in part."""


@dataclass(frozen=True, slots=True)
class Seeded:
    """What was loaded."""

    products: int
    orders: int
    rows: int
    seconds: float
    buyer: UUID  # who ordered most


@dataclass(frozen=True, slots=True)
class _Product:
    product_id: UUID
    text: str
    event_id: UUID
    name: str
    price: int

    @property
    def description(self) -> str:
        return f"{self.name}, made up"

    def told(self, at: datetime) -> Product:
        """As its event tells it."""
        return Product(
            self.text, self.name, self.description, self.price, CURRENCY, True, version=1, updated_at=clock.to_text(at)
        )


@dataclass(frozen=True, slots=True)
class _Plan:
    """An order to be: who buys how many of what, and what became of it when. Products by their place in the list."""

    at: datetime
    buyer: int
    lines: tuple[tuple[int, int], ...]
    steps: tuple[tuple[Command, datetime], ...]

    @property
    def cancelled(self) -> bool:
        return any(command is Command.CANCEL for command, _ in self.steps)


@dataclass(frozen=True, slots=True)
class _History:
    """An order, and the rows of the events it is the fold of."""

    key: OrderKey
    order: Order
    events: list[tuple[Any, ...]]


async def seed(
    owner_url: str,
    *,
    products: int,
    orders: int,
    stock: int = 1_000,
    months: int = 12,
    seed: int = 1,
    now: datetime | None = None,
    progress: Progress = silent,
) -> Seeded:
    """`products` products are for sale, `stock` of each left, and `orders` orders lie in the `months` up to `now`.

    The same seed, counts and `now` give the same rows. A seed is loaded once: AlreadySeededError when its products are
    there; another seed adds products and orders beside what there is. Partitions are made for all months, and the next.
    Products and their stock are one transaction, then each batch of orders is one with what it takes from stock and
    adds to the rollups (READ COMMITTED): whatever ends it early, every invariant holds.
    """
    started = time.perf_counter()
    now = now or clock.now()
    first = clock.add_months(clock.month_of(now), 1 - months)
    offered = _products(seed, products)
    rows = 0
    async with unhurried(owner_url, "orders seed") as connection:
        if await connection.fetchval("SELECT TRUE FROM catalog.products WHERE product_id = $1", offered[0].product_id):
            raise AlreadySeededError
        for month in range(months + 1):
            await connection.execute("SELECT orders.create_month($1)", clock.add_months(first, month).date())
        progress("opening stock", 0, orders)
        await _offer(
            connection, offered, _opening_stock(_plans(seed, products, orders, first, now), products, stock), first
        )
        chance = random.Random(f"history {seed}")  # noqa: S311 # history, not secrets
        plans = _plans(seed, products, orders, first, now)
        for done in range(0, orders, _BATCH_ORDERS):
            progress(f"{done:,} orders", done, orders)
            batch = [_history(plan, offered, seed, chance) for plan in islice(plans, _BATCH_ORDERS)]
            rows += await _load(connection, batch)
        progress("statistics", orders, orders)
        await connection.execute("ANALYZE orders.orders, orders.order_items, orders.order_events, orders.inventory")
    return Seeded(products, orders, rows, time.perf_counter() - started, _buyer(seed, 0))


def _products(seed: int, products: int) -> list[_Product]:
    """The same for the same seed, whenever; fewer of them are the first ones."""
    chance = random.Random(f"products {seed}")  # noqa: S311 # a made-up shop
    found = []
    for number in range(1, products + 1):
        product_id = _uuid7(_PRODUCTS_MADE_AT, chance.getrandbits(12), chance)
        name = f"{chance.choice(_LOOKS)} {chance.choice(_KINDS)} {number:04d}"
        price = chance.choice(PRICES)
        event_id = uuid5(product_id, "product.created")
        found.append(_Product(product_id, ids.to_text(product_id), event_id, name, price))
    return found


def _plans(seed: int, products: int, orders: int, first: datetime, now: datetime) -> Iterator[_Plan]:
    """All orders from `first` to `now`, oldest first; the same for the same arguments.

    The products' popularity is Zipf's (what is on rank r is bought in proportion to 1/r), the buyers' activity goes
    with the root of the rank. Nothing lies after `now`: what is still to come of an order has not happened.
    """
    chance = random.Random(f"orders {seed}")  # noqa: S311 # a made-up shop
    step = (now - first) / timedelta(milliseconds=1) / max(orders, 1)
    buyers = max(_BUYERS_MIN, orders // _ORDERS_PER_BUYER)

    def after(at: datetime, bounds: tuple[timedelta, timedelta]) -> datetime:
        shortest, longest = bounds
        return (
            at + shortest + timedelta(milliseconds=int((longest - shortest).total_seconds() * 1_000 * chance.random()))
        )

    for number in range(orders):
        at = first + timedelta(milliseconds=int((number + chance.random()) * step))
        lines = tuple(
            (int(products ** chance.random()) - 1, chance.choices(_QUANTITIES[0], cum_weights=_QUANTITIES[1])[0])
            for _ in range(chance.choices(_LINES[0], cum_weights=_LINES[1])[0])
        )
        if chance.random() < _CANCELLED_SHARE:
            steps = [(Command.CANCEL, after(at, _CANCELLED_AFTER))]
        else:
            shipped_at = after(at, _SHIPPED_AFTER)
            steps = [(Command.SHIP, shipped_at), (Command.DELIVER, after(shipped_at, _DELIVERED_AFTER))]
        buyer = int(buyers * chance.random() ** 2)
        yield _Plan(at, buyer, lines, tuple((command, then) for command, then in steps if then <= now))


def _opening_stock(plans: Iterator[_Plan], products: int, left: int) -> list[int]:
    """Of each product, what the orders take and `left` more: the plans are made twice, so that none is oversold."""
    opening = [left] * products
    for plan in plans:
        if not plan.cancelled:
            for product, quantity in plan.lines:
                opening[product] += quantity
    return opening


async def _offer(
    connection: WriteConnection, offered: Sequence[_Product], opening: Sequence[int], at: datetime
) -> None:
    """The products are in the catalogue and known to orders, with their opening stock."""
    tables: dict[tuple[str, str], tuple[str, list[tuple[object, ...]]]] = {
        ("catalog", "products"): (
            "product_id name description price currency active version updated_at",
            [(p.product_id, p.name, p.description, p.price, CURRENCY, True, 1, at) for p in offered],
        ),
        # As anyone else's, so that the topic has every product of the catalogue.
        ("catalog", "outbox"): (
            "slice aggregate_id version event_id type data actor occurred_at",
            [
                (
                    *(ids.shard_of(p.product_id) % ids.SLICES, p.product_id, 1, p.event_id, ProductEventType.CREATED),
                    orjson.dumps({"product": p.told(at)}).decode(),
                    *(ACTOR, at),
                )
                for p in offered
            ],
        ),
        ("orders", "products"): (
            "product_id name price currency active version",
            [(p.product_id, p.name, p.price, CURRENCY, True, 1) for p in offered],
        ),
        ("orders", "inventory"): (
            "product_id on_hand reserved version",
            [(p.product_id, units, 0, 1) for p, units in zip(offered, opening, strict=True)],
        ),
        ("orders", "inventory_movements"): (
            "product_id version delta reason actor on_hand reserved subject key request_hash created_at",
            [
                (p.product_id, 1, units, "opening stock", ACTOR, units, 0, "seed", "opening", b"", at)
                for p, units in zip(offered, opening, strict=True)
            ],
        ),
    }
    async with connection.transaction():
        for (schema, table), (columns, records) in tables.items():
            await connection.copy_records_to_table(table, schema_name=schema, columns=columns.split(), records=records)


def _history(plan: _Plan, offered: Sequence[_Product], seed: int, chance: random.Random) -> _History:
    """What the API would have written, had the plan been carried out through it."""
    buyer = _buyer(seed, plan.buyer)
    shard = ids.shard_of(buyer)
    key = OrderKey(_uuid7(plan.at, shard, chance), plan.at, shard)
    order: Order | None = None
    rows: list[tuple[Any, ...]] = []
    for command, at in ((None, plan.at), *plan.steps):
        if order is None or command is None:
            kind, actor, data = EventType.PLACED, f"user:{buyer}", _placed(key, buyer, plan, offered)
        else:
            kind, actor, data = _changed(order, command, buyer, chance)
        version = len(rows) + 1
        event = Event("", ids.to_text(key.order_id), version, kind, clock.to_text(at), actor, data)
        order = apply(order, event)
        event_id = _uuid7(at, chance.getrandbits(12), chance)
        rows.append((*key, version, event_id, kind.value, orjson.dumps(data).decode(), actor, None, at))
    if order is None:
        raise AssertionError("the first step places it")
    return _History(key, order, rows)


def _placed(key: OrderKey, buyer: UUID, plan: _Plan, offered: Sequence[_Product]) -> dict[str, Any]:
    """`data` of order.placed, as the statement `place_order` makes it."""
    status, payment_status = domain.starts_as(None)
    items = [
        {
            "line_no": number,
            "product_id": offered[product].text,
            "name": offered[product].name,
            "quantity": quantity,
            "unit_price": offered[product].price,
            "line_total": offered[product].price * quantity,
            "shipped_quantity": 0,
            "returned_quantity": 0,
        }
        for number, (product, quantity) in enumerate(plan.lines, 1)
    ]
    after = {
        "status": status,
        "payment_status": payment_status,
        "currency": CURRENCY,
        "total_amount": sum(offered[product].price * quantity for product, quantity in plan.lines),
        "user_id": str(buyer),
    }
    change = {
        **after,
        "order_id": ids.to_text(key.order_id),
        "captured_amount": 0,
        "refunded_amount": 0,
        "item_count": len(items),
        "version": 1,
        "created_at": clock.to_text(plan.at),
        "updated_at": clock.to_text(plan.at),
        "items": items,
        "adjustments": [],
        "expires_at": None,
        "payment_method": None,
        "shipping_address_id": None,
        "tracking": None,
        "cancel_reason": None,
        "agreed_prices": False,
    }
    return {"change": change, "after": after}


def _changed(
    order: Order, command: Command, buyer: UUID, chance: random.Random
) -> tuple[EventType, str, dict[str, Any]]:
    """Type, actor and `data` of the event that `command` leaves on `order`."""
    actor = ACTOR
    details: dict[str, Any] = {}
    if command is Command.SHIP:
        details["tracking"] = f"1Z{chance.randrange(10**10):010d}"
    elif command is Command.CANCEL:
        reason = chance.choice((CancelReason.CUSTOMER, CancelReason.CUSTOMER, CancelReason.STAFF))
        actor = f"user:{buyer}" if reason is CancelReason.CUSTOMER else ACTOR
        details["cancel_reason"] = reason
    step = domain.decide(order, command)
    return step.event, actor, data_of(order, step, details)


async def _load(connection: WriteConnection, batch: Sequence[_History]) -> int:
    """The orders are there with their lines and events, the stock is without what they took, and the rollups have it.

    Gives the rows.
    """
    orders, items = [], []
    shipped, reserved = Counter[UUID](), Counter[UUID]()
    for history in batch:
        row = order_row(history.key.order_id, history.order)
        orders.append(tuple("[]" if column == "adjustments" else row[column] for column in ORDER_COLUMNS))
        for line in item_rows(row, history.order):
            items.append(tuple(line[column] for column in ITEM_COLUMNS))
            shipped[line["product_id"]] += line["shipped_quantity"]
            if history.order.cancel_reason is None:
                reserved[line["product_id"]] += line["quantity"] - line["shipped_quantity"]
    moved = sorted(shipped.keys() | reserved.keys())
    async with connection.transaction():
        for table, columns, records in (
            ("orders", ORDER_COLUMNS, orders),
            ("order_items", ITEM_COLUMNS, items),
            ("order_events", _EVENT_COLUMNS, [event for history in batch for event in history.events]),
        ):
            await connection.copy_records_to_table(table, schema_name="orders", columns=columns, records=records)
        await add_loaded(connection, *_sold(batch))
        await connection.execute(_MOVE_STOCK, moved, [shipped[p] for p in moved], [reserved[p] for p in moved])
    return len(orders) + len(items) + sum(len(history.events) for history in batch)


def _sold(batch: Sequence[_History]) -> tuple[Deltas, dict[UUID, int]]:
    """What the events of these orders add up to, and the versions of those orders that are so young that it matters."""
    deltas, young = Deltas(), {}
    since = clock.now() - timedelta(days=REMEMBERED_DAYS)
    for history in batch:
        placed_on, status = history.key.created_at.date(), None
        for *_, version, _, kind, text, _, _, at in history.events:
            data = orjson.loads(text)
            sales.add(deltas, kind, data, on=at.date(), placed_on=placed_on, status_before=status)
            status = data["after"]["status"]
            if at > since:
                young[history.key.order_id] = version
    return deltas, young


@lru_cache(maxsize=65_536)
def _buyer(seed: int, number: int) -> UUID:
    return uuid5(_NAMESPACE, f"{seed}/{number}")


def _uuid7(at: datetime, rand_a: int, chance: random.Random) -> UUID:
    """An id like those of common/ids, but by chance that can be repeated."""
    return UUID(int=clock.to_ms(at) << 80 | 7 << 76 | rand_a << 64 | 0b10 << 62 | chance.getrandbits(62))
