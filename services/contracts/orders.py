"""Order events, and the one behaviour that crosses the border: the fold of an order from its events.

`order_events` is the truth. An event's `data` is `{"change": …, "after": …}`: what changed, and a small header of the
order as it stands afterwards. `order.placed` carries the whole order; every later event only its own change.
"""

from collections.abc import Iterable, Mapping
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


# An order as JSON has it. There may be members that an older fold does not know.
Members = dict[str, Any]
# Of an event: version, type, time, data.
Change = tuple[int, str, str, Mapping[str, Any]]

_ORDER = tuple(f.name for f in fields(Order))
_ITEM = tuple(f.name for f in fields(Item))
_ADJUSTMENT = tuple(f.name for f in fields(Adjustment))
_of_order, _of_item, _of_adjustment = itemgetter(*_ORDER), itemgetter(*_ITEM), itemgetter(*_ADJUSTMENT)


def apply(order: Order | None, event: Event) -> Order:
    """The order after `event`. Pure: reads the event only.

    An unknown type changes nothing but version, time and the header, so that an older fold can read a newer stream.
    Raises ValueError when `event` is not the next version.
    """
    return order_of(_after(None if order is None else _named(order, _ORDER), _change(event)))


def fold(events: Iterable[Event]) -> Order:
    """The order that `events` (versions 1..n, in order) tell. ValueError when there are none or one is missing."""
    return order_of(tell(map(_change, events)))


def tell(changes: Iterable[Change]) -> Members:
    """As `fold`, for what is only shown: making an Order of a page's orders would take longer than all the rest."""
    members: Members | None = None
    for change in changes:
        members = _after(members, change)
    if members is None:
        raise ValueError("an order has at least one event")
    return members


def members_of(order: Order) -> Members:
    """What `tell` would give of it."""
    return {
        **_named(order, _ORDER),
        "items": [_named(item, _ITEM) for item in order.items],
        "adjustments": [_named(adjustment, _ADJUSTMENT) for adjustment in order.adjustments],
    }


def order_of(members: Members) -> Order:
    """The order with these members."""
    items = tuple(item if isinstance(item, Item) else Item(*_of_item(item)) for item in members["items"])
    found = members["adjustments"]
    adjustments = tuple(one if isinstance(one, Adjustment) else Adjustment(*_of_adjustment(one)) for one in found)
    return Order(*_of_order({**members, "items": items, "adjustments": adjustments}))


def _named(found: Order | Item | Adjustment, names: Iterable[str]) -> Members:
    return {name: getattr(found, name) for name in names}


def _change(event: Event) -> Change:
    return event.version, event.type, event.occurred_at, event.data


def _after(members: Members | None, change: Change) -> Members:
    """The members of the order after `change`; those before it are changed. Of an Order's, lines may be Items."""
    version, type_, occurred_at, data = change
    changed, after = data["change"], data["after"]
    expected = 1 if members is None else members["version"] + 1
    if version != expected:
        order_id = (members or changed).get("order_id")
        raise ValueError(f"order {order_id}: event version {version} found, {expected} expected")
    if members is None:
        if type_ != EventType.PLACED:
            raise ValueError(f"an order begins with {type_}, not {EventType.PLACED}")
        return dict(changed)
    members["version"] = version
    members["updated_at"] = occurred_at
    members["status"] = after["status"]
    members["payment_status"] = after["payment_status"]
    members["total_amount"] = after["total_amount"]
    if after["status"] != OrderStatus.PENDING:
        members["expires_at"] = None
    match type_:
        case EventType.CANCELLED:
            members["cancel_reason"] = changed["cancel_reason"]
        case EventType.SHIPPED:
            # The event has what was given with this shipment; one without leaves the last there was.
            if changed["tracking"] is not None:
                members["tracking"] = changed["tracking"]
            members["items"] = _moved(members["items"], changed["items"], "shipped_quantity")
        case EventType.RETURNED:
            members["items"] = _moved(members["items"], changed["items"], "returned_quantity")
        case EventType.PAYMENT_CAPTURED:
            members["captured_amount"] = changed["captured_amount"]
        case EventType.REFUNDED:
            members["refunded_amount"] = changed["refunded_amount"]
        case _:
            pass
    return members


def _moved(items: Iterable[Item | Members], parts: Iterable[Mapping[str, int]], name: str) -> list[Item | Members]:
    """The lines, with so many units of each of `parts` more in their member `name`."""
    units = {part["line_no"]: part["quantity"] for part in parts}
    return [_more(item, units, name) for item in items]


def _more(item: Item | Members, units: Mapping[int, int], name: str) -> Item | Members:
    if isinstance(item, Item):
        moved = units.get(item.line_no)
        return item if moved is None else replace(item, **{name: getattr(item, name) + moved})
    moved = units.get(item["line_no"])
    return item if moved is None else {**item, name: item[name] + moved}
