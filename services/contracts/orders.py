"""Order events, and the one behaviour that crosses the border: the fold of an order from its events.

`order_events` is the truth. An event's `data` is `{"change": …, "after": …}`: what changed, and a small header of the
order as it stands afterwards. `order.placed` carries the whole order; every later event only its own change.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from operator import itemgetter
from typing import Any


class EventType(StrEnum):
    """Types a consumer may meet. Consumers ignore what they do not know."""

    PLACED = "order.placed"
    PAYMENT_AUTHORIZED = "order.payment_authorized"
    CONFIRMED = "order.confirmed"
    PAYMENT_FAILED = "order.payment_failed"
    CANCELLED = "order.cancelled"
    PAYMENT_VOIDED = "order.payment_voided"
    SHIPPED = "order.shipped"
    PAYMENT_CAPTURED = "order.payment_captured"
    DELIVERED = "order.delivered"
    RETURNED = "order.returned"
    REFUNDED = "order.refunded"


class OrderStatus(StrEnum):
    """Where the order is in its life."""

    PENDING = "pending"
    CONFIRMED = "confirmed"
    PARTIALLY_SHIPPED = "partially_shipped"
    SHIPPED = "shipped"
    DELIVERED = "delivered"
    PARTIALLY_RETURNED = "partially_returned"
    RETURNED = "returned"
    CANCELLED = "cancelled"


class PaymentStatus(StrEnum):
    """Where its money is."""

    ON_ACCOUNT = "on_account"
    UNPAID = "unpaid"
    AUTHORIZED = "authorized"
    FAILED = "failed"
    VOIDED = "voided"
    PARTIALLY_CAPTURED = "partially_captured"
    CAPTURED = "captured"
    PARTIALLY_REFUNDED = "partially_refunded"
    REFUNDED = "refunded"


@dataclass(frozen=True, slots=True)
class Event:
    """One change of one order; versions run 1..n without a gap. Ids and times are text as on the wire."""

    event_id: str
    order_id: str
    version: int
    type: str
    occurred_at: str
    actor: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Item:
    """A line of an order. Amounts are minor units of the order's currency."""

    line_no: int
    product_id: str
    name: str
    quantity: int
    unit_price: int
    line_total: int
    shipped_quantity: int
    returned_quantity: int


@dataclass(frozen=True, slots=True)
class Adjustment:
    """Tax, shipping, fee (not negative) or discount (not positive), of a line or of the order when `line_no` is None.

    `amount` is in minor units of the order's currency.
    """

    kind: str
    line_no: int | None
    label: str
    amount: int


@dataclass(frozen=True, slots=True)
class Order:
    """An order as its events tell it. Amounts are minor units of `currency`; times are RFC 3339 text in UTC."""

    order_id: str
    user_id: str
    status: str
    payment_status: str
    currency: str
    total_amount: int
    captured_amount: int
    refunded_amount: int
    item_count: int
    version: int
    created_at: str
    updated_at: str
    items: tuple[Item, ...]
    adjustments: tuple[Adjustment, ...]
    expires_at: str | None
    payment_method: str | None
    shipping_address_id: str | None
    tracking: str | None
    cancel_reason: str | None


_ORDER_MEMBERS = tuple(f.name for f in fields(Order))
_order_members = itemgetter(*_ORDER_MEMBERS)
_item_members = itemgetter(*(f.name for f in fields(Item)))
_adjustment_members = itemgetter(*(f.name for f in fields(Adjustment)))


def apply(order: Order | None, event: Event) -> Order:
    """The order after `event`. Pure: reads the event only.

    An unknown type changes nothing but version, time and the header, so that an older fold can read a newer stream.
    Raises ValueError when `event` is not the next version.
    """
    members = None if order is None else {name: getattr(order, name) for name in _ORDER_MEMBERS}
    return Order(*_order_members(_after(members, event)))


def fold(events: Iterable[Event]) -> Order:
    """The order that `events` (versions 1..n, in order) tell. ValueError when there are none or one is missing."""
    members: dict[str, Any] | None = None  # an Order for each event on the way would take most of the time
    for event in events:
        members = _after(members, event)
    if members is None:
        raise ValueError("an order has at least one event")
    return Order(*_order_members(members))


def _after(members: dict[str, Any] | None, event: Event) -> dict[str, Any]:
    """The members of the order after `event`; those before it are changed."""
    expected = 1 if members is None else members["version"] + 1
    if event.version != expected:
        raise ValueError(f"order {event.order_id}: event version {event.version} found, {expected} expected")
    change, after = event.data["change"], event.data["after"]
    if members is None:
        if event.type != EventType.PLACED:
            raise ValueError(f"order {event.order_id}: begins with {event.type}, not {EventType.PLACED}")
        return _placed(change)
    members["version"] = event.version
    members["updated_at"] = event.occurred_at
    members["status"] = after["status"]
    members["payment_status"] = after["payment_status"]
    members["total_amount"] = after["total_amount"]
    if after["status"] != OrderStatus.PENDING:
        members["expires_at"] = None
    match event.type:
        case EventType.CANCELLED:
            members["cancel_reason"] = change["cancel_reason"]
        case EventType.SHIPPED:
            # The event has what was given with this shipment; one without leaves the last there was.
            if change["tracking"] is not None:
                members["tracking"] = change["tracking"]
            members["items"] = _moved(members["items"], change["items"], _shipped)
        case EventType.RETURNED:
            members["items"] = _moved(members["items"], change["items"], _returned)
        case EventType.PAYMENT_CAPTURED:
            members["captured_amount"] = change["captured_amount"]
        case EventType.REFUNDED:
            members["refunded_amount"] = change["refunded_amount"]
        case _:
            pass
    return members


def _placed(change: Mapping[str, Any]) -> dict[str, Any]:
    items = tuple(Item(*_item_members(line)) for line in change["items"])
    adjustments = tuple(Adjustment(*_adjustment_members(one)) for one in change["adjustments"])
    return {**change, "items": items, "adjustments": adjustments}


def _moved(
    items: tuple[Item, ...], parts: Iterable[Mapping[str, int]], move: Callable[[Item, int], Item]
) -> tuple[Item, ...]:
    units = {part["line_no"]: part["quantity"] for part in parts}
    return tuple(move(item, units[item.line_no]) if item.line_no in units else item for item in items)


def _shipped(item: Item, units: int) -> Item:
    return replace(item, shipped_quantity=item.shipped_quantity + units)


def _returned(item: Item, units: int) -> Item:
    return replace(item, returned_quantity=item.returned_quantity + units)
