"""The rows that a made-up order leaves, as text for COPY, and what they add up to.

What the API, the projector and payments-worker would have written, had it all been done through them. Their code does
some hundred orders a second, which would be a day for ten million: this says it again in short. `orders verify` holds
it against the rules, tests hold it against the schemas of the events and the reconciler of payments.
"""

from collections import Counter
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import lru_cache
from random import Random
from typing import Any, Final
from uuid import UUID

import orjson

from services.common import clock, ids
from services.common.idempotency import request_hash
from services.contracts.orders import EventType, OrderStatus
from services.contracts.payments import PaymentState
from services.orders import sales
from services.orders.domain import CancelReason
from services.orders.sales import Deltas
from services.orders.seed_lives import EXPIRES_AFTER_MS, Life, lived
from services.orders.seed_model import Plan

ACTOR: Final = "process:seed"
PROVIDER: Final = "seed"  # of payments: no provider knows them

# Of each table that orders fill, the columns of its rows here.
COLUMNS: Final = {
    "orders.orders": (
        *("order_id", "created_at", "shard", "user_id", "status", "payment_status", "currency", "total_amount"),
        *("captured_amount", "refunded_amount", "item_count", "adjustments", "expires_at", "payment_method"),
        *("tracking", "cancel_reason", "version", "updated_at"),
    ),
    "orders.order_items": (
        *("order_id", "created_at", "shard", "line_no", "product_id", "name", "quantity", "unit_price", "line_total"),
        *("shipped_quantity", "returned_quantity"),
    ),
    "orders.order_events": (
        *("order_id", "created_at", "shard", "version", "event_id", "type", "data", "actor", "occurred_at"),
    ),
    "orders.idempotency_keys": ("shard", "subject", "key", "request_hash", "resource", "version", "created_at"),
    "payments.payments": (
        *("order_id", "created_at", "shard", "user_id", "status", "provider", "reference", "payment_method"),
        *("currency", "amount", "authorized_amount", "captured_amount", "refunded_amount", "failure", "version"),
        *("order_version", "updated_at"),
    ),
}
_NULL: Final = r"\N"
_DAY_MS: Final = 86_400_000


def _spaces() -> dict[str, list[str]]:
    return {table: [] for table in COLUMNS}


@dataclass(slots=True)
class Rows:
    """Lines of text by table, and how many orders they are of."""

    lines: dict[str, list[str]] = field(default_factory=_spaces)
    orders: int = 0

    @property
    def count(self) -> int:
        """Of all rows."""
        return sum(map(len, self.lines.values()))


@dataclass(slots=True)
class Sums:
    """What many orders add up to: units of each product that are gone or held, and sales.

    `young` has the newest versions of those to which something happened at `young_since_ms` or later.
    """

    young_since_ms: int
    away: Counter[UUID] = field(default_factory=Counter)
    held: Counter[UUID] = field(default_factory=Counter)
    sales: Deltas = field(default_factory=Deltas)
    young: dict[UUID, int] = field(default_factory=dict)


class _Order(Life):
    """With its id, and what every row of it begins with."""

    def __init__(self, plan: Plan, chance: Random) -> None:
        super().__init__(plan)
        bits = ids.uuid7_bits(plan.at_ms, plan.buyer.shard, chance.getrandbits(62))
        self.order_id = UUID(int=bits)
        self.created_at = _time(plan.at_ms)
        self.key = f"{bits:032x}\t{self.created_at}\t{plan.buyer.shard}"


def add_order(plan: Plan, upto_ms: int, keys_since_ms: int, chance: Random, rows: Rows, sums: Sums) -> None:
    """`rows` and `sums` have the order, with all that has happened to it by `upto_ms`."""
    order = _Order(plan, chance)
    _record(order, EventType.PLACED, _placed(order), None, chance, rows, sums)
    for kind, change, status_before in lived(order, upto_ms, chance):
        _record(order, kind, change, status_before, chance, rows, sums)
    _finish(order, keys_since_ms, rows, sums)


def _record(
    order: _Order,
    kind: EventType,
    change: dict[str, Any],
    status_before: str | None,
    chance: Random,
    rows: Rows,
    sums: Sums,
) -> None:
    """Its last event."""
    plan, at_ms = order.plan, order.at_ms
    after = {
        "status": order.status,
        "payment_status": order.payment_status,
        "currency": plan.currency,
        "total_amount": order.total,
        "user_id": plan.buyer.text,
    }
    data = {"change": change, "after": after}
    event_id = ids.uuid7_bits(at_ms, chance.getrandbits(12), chance.getrandbits(62))
    actor = f"user:{plan.buyer.text}" if kind is EventType.PLACED or order.reason is CancelReason.CUSTOMER else ACTOR
    rows.lines["orders.order_events"].append(
        f"{order.key}\t{order.version}\t{event_id:032x}\t{kind}\t{_json(data)}\t{actor}\t{_time(at_ms)}\n"
    )
    sales.add(
        sums.sales,
        kind,
        data,
        on=_day(at_ms // _DAY_MS),
        placed_on=_day(plan.at_ms // _DAY_MS),
        status_before=status_before,
    )


def _placed(order: _Order) -> dict[str, Any]:
    """`change` of order.placed, as the statement `place_order` makes it."""
    plan = order.plan
    return {
        "order_id": ids.to_text(order.order_id),
        "user_id": plan.buyer.text,
        "status": order.status,
        "payment_status": order.payment_status,
        "currency": plan.currency,
        "total_amount": order.total,
        "captured_amount": 0,
        "refunded_amount": 0,
        "item_count": len(order.lines),
        "version": 1,
        "created_at": order.created_at,
        "updated_at": order.created_at,
        "items": [
            {
                "line_no": number,
                "product_id": product.text,
                "name": product.name,
                "quantity": quantity,
                "unit_price": product.price,
                "line_total": product.price * quantity,
                "shipped_quantity": 0,
                "returned_quantity": 0,
            }
            for number, (product, quantity) in enumerate(plan.lines, 1)
        ],
        "adjustments": [],
        "expires_at": None if plan.method is None else _time(plan.at_ms + EXPIRES_AFTER_MS),
        "payment_method": plan.method,
        "shipping_address_id": None,
        "tracking": None,
        "cancel_reason": None,
        "agreed_prices": False,
    }


def _finish(order: _Order, keys_since_ms: int, rows: Rows, sums: Sums) -> None:
    """Its rows as its events leave them, and the units that are gone or held."""
    plan, updated_at = order.plan, _time(order.at_ms)
    pending = order.status == OrderStatus.PENDING
    rows.orders += 1
    rows.lines["orders.orders"].append(
        f"{order.key}\t{plan.buyer.text}\t{order.status}\t{order.payment_status}\t{plan.currency}\t{order.total}"
        f"\t{order.captured}\t{order.refunded}\t{len(order.lines)}\t[]"
        f"\t{_time(plan.at_ms + EXPIRES_AFTER_MS) if pending else _NULL}\t{plan.method or _NULL}"
        f"\t{order.tracking or _NULL}\t{order.reason or _NULL}\t{order.version}\t{updated_at}\n"
    )
    lines, cancelled = rows.lines["orders.order_items"], order.status == OrderStatus.CANCELLED
    for number, line in enumerate(order.lines, 1):
        product, quantity = line.product, line.quantity
        lines.append(
            f"{order.key}\t{number}\t{product.product_id.hex}\t{product.name}\t{quantity}\t{product.price}"
            f"\t{product.price * quantity}\t{line.shipped}\t{line.returned}\n"
        )
        if line.shipped != line.returned:
            sums.away[product.product_id] += line.shipped - line.returned
        if line.shipped != quantity and not cancelled:
            sums.held[product.product_id] += quantity - line.shipped
    if order.at_ms >= sums.young_since_ms:
        sums.young[order.order_id] = order.version
    if plan.method is not None:
        rows.lines["payments.payments"].append(_payment(order, updated_at))
    if plan.at_ms >= keys_since_ms:
        rows.lines["orders.idempotency_keys"].append(_key(order))


def _payment(order: _Order, updated_at: str) -> str:
    plan, payment = order.plan, order.payment
    reference = (
        _NULL if payment.status is PaymentState.REQUESTED or not payment.authorized else f"seed_{order.order_id.hex}"
    )
    return (
        f"{order.key}\t{plan.buyer.text}\t{payment.status}\t{PROVIDER}\t{reference}\t{plan.method}\t{plan.currency}"
        f"\t{order.total}\t{payment.authorized}\t{order.captured}\t{order.refunded}\t{payment.failure or _NULL}"
        f"\t{payment.version}\t{payment.order_version}\t{updated_at}\n"
    )


def _key(order: _Order) -> str:
    """Who sends that request again under that key is given that order."""
    plan = order.plan
    body: dict[str, Any] = {
        "currency": plan.currency,
        "items": [{"product_id": product.text, "quantity": quantity} for product, quantity in plan.lines],
    }
    if plan.method is not None:
        body["payment_method"] = plan.method
    asked = request_hash("POST", "/v1/orders", body).hex()
    return (
        f"{plan.buyer.shard}\t{plan.buyer.text}\tseed-{ids.to_text(order.order_id)}\t\\\\x{asked}"
        f"\t{order.order_id.hex}\t1\t{order.created_at}\n"
    )


def _json(data: dict[str, Any]) -> str:
    return orjson.dumps(data).decode().replace("\\", "\\\\")  # COPY's text has escapes of its own


def _time(at_ms: int) -> str:
    """As `clock.to_text`, in a third of its time."""
    day, ms = divmod(at_ms, _DAY_MS)
    seconds, ms = divmod(ms, 1_000)
    minutes, second = divmod(seconds, 60)
    return f"{_day_text(day)}T{minutes // 60:02d}:{minutes % 60:02d}:{second:02d}.{ms:03d}Z"


@lru_cache(maxsize=4_096)
def _day(day: int) -> date:
    return (clock.EPOCH + timedelta(days=day)).date()


@lru_cache(maxsize=4_096)
def _day_text(day: int) -> str:
    return _day(day).isoformat()
