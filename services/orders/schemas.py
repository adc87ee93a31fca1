"""What comes in and goes out over HTTP. One function renders an order, so the same state has the same bytes."""

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

import orjson
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    StringConstraints,
    WithJsonSchema,
)

from services.common import ids, money, openapi
from services.contracts.orders import Event, Order, OrderStatus, PaymentStatus
from services.orders.domain import ALLOWED_ACTIONS, CancelReason, Command

LINES_MAX = 2_000  # a real wholesale invoice has 1,114
QUANTITY_MAX = 1_000_000
PAGE_MAX = 100
PAGE_DEFAULT = 20
EVENTS_MAX = 1_000
VERSION_MAX = 2**31 - 1


def _ulid(text: str) -> str:
    return ids.to_text(ids.from_text(text))


def _no_control(text: str) -> str:
    if any(ord(character) < 0x20 for character in text):
        raise ValueError("control characters (NUL among them) are not allowed")
    return text


def _currency(code: str) -> str:
    if code not in money.DECIMALS:
        raise ValueError("not an active ISO 4217 currency code")
    return code


_RFC_3339 = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)\Z", re.ASCII)


def _with_offset(text: object) -> object:
    """Pydantic would also take seconds since 1970 and a date."""
    if isinstance(text, str) and not _RFC_3339.match(text):
        raise ValueError("not a date and time with an offset (RFC 3339), such as 2026-11-22T18:16:50Z")
    return text


def _in_utc(at: datetime) -> datetime:
    """Far from the ends of what the calendar holds, so that offsets and months can be reckoned with."""
    if not 1900 <= at.year <= 9000:
        raise ValueError("not a year from 1900 to 9000")
    return at.astimezone(UTC)


Instant = Annotated[
    AwareDatetime,
    BeforeValidator(_with_offset),
    AfterValidator(_in_utc),
    WithJsonSchema({"type": "string", "format": "date-time", "examples": ["2026-11-01T00:00:00+01:00"]}),
]
Ulid = Annotated[
    str, StringConstraints(min_length=26, max_length=26), AfterValidator(_ulid), WithJsonSchema(openapi.ULID)
]
ShortText = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_no_control)]
PaymentMethod = Annotated[
    str, StringConstraints(min_length=1, max_length=200, pattern="^pm_"), AfterValidator(_no_control)
]
Amount = Annotated[int, Field(ge=-money.AMOUNT_MAX, le=money.AMOUNT_MAX)]
Currency = Annotated[
    str,
    StringConstraints(min_length=3, max_length=3),
    AfterValidator(_currency),
    WithJsonSchema({"type": "string", "pattern": "^[A-Z]{3}$", "description": "ISO 4217", "examples": ["USD"]}),
]
UserId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]

_ORDER_ID: Final = "01KAPKY98W7W2SY8YD52EAN5AE"
_USER_ID: Final = "0b0f5a52-7d0e-4d6e-9a53-0d3a7a6f0001"
_AT: Final = "2026-11-22T18:16:50.123Z"


def _example(**members: JsonValue) -> ConfigDict:
    return ConfigDict(json_schema_extra={"examples": [members]})


class Body(BaseModel):
    """A request body: exact types, no unknown members."""

    model_config = ConfigDict(extra="forbid", strict=True)


class LineBody(Body):
    """A line to order. The same product may stand on several lines."""

    product_id: Ulid
    quantity: Annotated[int, Field(ge=1, le=QUANTITY_MAX)]
    unit_price: Annotated[int, Field(ge=1, le=money.PRICE_MAX)] | None = Field(
        default=None, description="the price the buyer saw; with orders:price the price that is charged"
    )


class AdjustmentBody(Body):
    """Tax, shipping, discount or fee; on a line or on the order."""

    kind: Literal["tax", "shipping", "discount", "fee"]
    line_no: Annotated[int, Field(ge=1, le=LINES_MAX)] | None = None
    label: ShortText
    amount: Amount


class PlaceOrderBody(Body):
    """An order to place."""

    model_config = _example(
        currency="USD", items=[{"product_id": openapi.ULID_EXAMPLE, "quantity": 3, "unit_price": 1999}]
    )

    currency: Currency
    items: Annotated[list[LineBody], Field(min_length=1, max_length=LINES_MAX)]
    payment_method: PaymentMethod | None = None
    shipping_address_id: ShortText | None = None
    adjustments: Annotated[list[AdjustmentBody], Field(max_length=LINES_MAX)] | None = None
    user_id: UserId | None = Field(default=None, description="the buyer, whose order it is; the caller when absent")


class CancelBody(Body):
    """Why the order is cancelled; an owner's only reason, and the default, is `customer`."""

    model_config = _example(reason="customer")

    reason: Literal["customer", "out_of_stock", "staff"] | None = None


class ShipLineBody(Body):
    """What of a line is shipped."""

    line_no: Annotated[int, Field(ge=1, le=LINES_MAX)]
    quantity: Annotated[int, Field(ge=1, le=QUANTITY_MAX)]


class ShipBody(Body):
    """All that is open is shipped."""

    model_config = _example(tracking="1Z999AA10123456784")

    tracking: ShortText | None = None
    items: Annotated[list[ShipLineBody], Field(min_length=1, max_length=LINES_MAX)] | None = None


class DeliverBody(Body):
    """Nothing to say."""

    model_config = _example()


class OrderQuery(BaseModel):
    """Parameters of reading one order."""

    model_config = ConfigDict(extra="forbid")

    min_version: Annotated[int, Field(ge=1, le=VERSION_MAX)] | None = Field(
        default=None, description="an older version is refused, not answered"
    )


class EventsQuery(BaseModel):
    """Parameters of reading an order's events."""

    model_config = ConfigDict(extra="forbid")

    after_version: Annotated[int, Field(ge=0, le=VERSION_MAX)] = 0
    limit: Annotated[int, Field(ge=1, le=EVENTS_MAX)] = 100


class ListQuery(BaseModel):
    """Parameters of listing orders. The interval [created_from, created_to) is half-open; an offset is required."""

    model_config = ConfigDict(extra="forbid")

    status: OrderStatus | None = None
    created_from: Instant | None = Field(default=None, description="made then or later; RFC 3339 with an offset")
    created_to: Instant | None = Field(default=None, description="made before then; RFC 3339 with an offset")
    user_id: UserId | None = Field(default=None, description="whose orders; other people's need orders:read:any")
    limit: Annotated[int, Field(ge=1, le=PAGE_MAX)] = PAGE_DEFAULT
    cursor: str | None = Field(default=None, description="`next_cursor` of the page before, for the same query")


# What goes out. Responses are rendered below, from dataclasses and at once; these models only describe them, and tests
# hold real responses against the description.

Time = Annotated[
    str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$", json_schema_extra={"format": "date-time"})
]
Money = Annotated[int, Field(ge=0, le=money.AMOUNT_MAX, description="minor units of the currency")]
UlidText = Annotated[str, WithJsonSchema(openapi.ULID)]
UuidText = Annotated[str, Field(json_schema_extra={"format": "uuid"})]
Version = Annotated[int, Field(ge=1, le=VERSION_MAX)]


class ItemAnswer(BaseModel):
    """A line of an order."""

    line_no: Annotated[int, Field(ge=1, le=LINES_MAX)]
    product_id: UlidText
    name: str
    quantity: Annotated[int, Field(ge=1, le=QUANTITY_MAX)]
    unit_price: Annotated[int, Field(ge=1, le=money.PRICE_MAX)]
    line_total: Money
    shipped_quantity: Annotated[int, Field(ge=0, le=QUANTITY_MAX)]
    returned_quantity: Annotated[int, Field(ge=0, le=QUANTITY_MAX)]


class AdjustmentAnswer(BaseModel):
    """Tax, shipping, fee (not negative) or discount (not positive); on a line or on the order."""

    kind: Literal["tax", "shipping", "discount", "fee"]
    line_no: Annotated[int, Field(ge=1, le=LINES_MAX)] | None
    label: str
    amount: Amount


class OrderAnswer(BaseModel):
    """The order as it stands; with a known key, as it was first answered."""

    order_id: UlidText
    user_id: UuidText
    status: OrderStatus
    payment_status: PaymentStatus
    currency: Currency
    total_amount: Annotated[Money, Field(description="the sum of line_total and adjustments")]
    captured_amount: Money
    refunded_amount: Money
    item_count: Annotated[int, Field(ge=1, le=LINES_MAX, description="number of lines")]
    version: Version
    created_at: Time
    updated_at: Time
    items: list[ItemAnswer]
    adjustments: list[AdjustmentAnswer]
    expires_at: Annotated[Time, Field(description="when it is cancelled unless it is paid")] | None
    payment_method: str | None
    shipping_address_id: str | None
    tracking: str | None
    cancel_reason: CancelReason | None
    allowed_actions: Annotated[list[Command], Field(description="what its status allows")]

    model_config = _example(
        order_id=_ORDER_ID,
        user_id=_USER_ID,
        status="confirmed",
        payment_status="on_account",
        currency="USD",
        total_amount=5997,
        captured_amount=0,
        refunded_amount=0,
        item_count=1,
        version=1,
        created_at=_AT,
        updated_at=_AT,
        items=[
            {
                "line_no": 1,
                "product_id": openapi.ULID_EXAMPLE,
                "name": "Teapot",
                "quantity": 3,
                "unit_price": 1999,
                "line_total": 5997,
                "shipped_quantity": 0,
                "returned_quantity": 0,
            }
        ],
        adjustments=[],
        expires_at=None,
        payment_method=None,
        shipping_address_id=None,
        tracking=None,
        cancel_reason=None,
        allowed_actions=["cancel", "ship"],
    )


class AfterAnswer(BaseModel):
    """The order's header once the event has happened."""

    status: OrderStatus
    payment_status: PaymentStatus
    currency: Currency
    total_amount: Money
    user_id: UuidText


class EventDataAnswer(BaseModel):
    """What changed (all of the order in `order.placed`), and the header after it."""

    change: dict[str, Any]
    after: AfterAnswer


class EventAnswer(BaseModel):
    """One change of an order, as it is on Kafka. Ignore types you do not know."""

    event_id: UlidText
    order_id: UlidText
    version: Version
    type: Annotated[str, Field(pattern=r"^order\.[a-z_]+$")]
    occurred_at: Time
    actor: Annotated[str, Field(pattern="^(user|staff|process):")]
    data: EventDataAnswer

    model_config = _example(
        event_id="01KAPKY98W3V5T2J8QK3F0S1XD",
        order_id=_ORDER_ID,
        version=2,
        type="order.cancelled",
        occurred_at=_AT,
        actor=f"user:{_USER_ID}",
        data={
            "change": {"cancel_reason": "customer"},
            "after": {
                "status": "cancelled",
                "payment_status": "on_account",
                "currency": "USD",
                "total_amount": 5997,
                "user_id": _USER_ID,
            },
        },
    )


class OrdersPage(BaseModel):
    """Orders, newest first."""

    data: list[OrderAnswer]
    next_cursor: str | None


class EventsPage(BaseModel):
    """Events in version order."""

    data: list[EventAnswer]
    next_cursor: str | None


class StockAnswer(BaseModel):
    """What there is of a product; `available` is what can be sold."""

    product_id: UlidText
    on_hand: Annotated[int, Field(ge=0)]
    reserved: Annotated[int, Field(ge=0)]
    available: Annotated[int, Field(ge=0)]
    version: Annotated[int, Field(ge=1)]

    model_config = _example(product_id=openapi.ULID_EXAMPLE, on_hand=100, reserved=3, available=97, version=2)


class HealthAnswer(BaseModel):
    """The process is alive."""

    status: Literal["ok"]


class ReadinessAnswer(BaseModel):
    """Requests can be served; what is not as it should be stands in `warnings`."""

    status: Literal["ok"]
    warnings: list[str]


def order_content(order: Order) -> dict[str, Any]:
    """The order object of API.md; `allowed_actions` depends on the state only."""
    return {
        "order_id": order.order_id,
        "user_id": order.user_id,
        "status": order.status,
        "payment_status": order.payment_status,
        "currency": order.currency,
        "total_amount": order.total_amount,
        "captured_amount": order.captured_amount,
        "refunded_amount": order.refunded_amount,
        "item_count": order.item_count,
        "version": order.version,
        "created_at": order.created_at,
        "updated_at": order.updated_at,
        "items": order.items,
        "adjustments": order.adjustments,
        "expires_at": order.expires_at,
        "payment_method": order.payment_method,
        "shipping_address_id": order.shipping_address_id,
        "tracking": order.tracking,
        "cancel_reason": order.cancel_reason,
        "allowed_actions": ALLOWED_ACTIONS[order.status],
    }


def render_order(order: Order) -> bytes:
    """The order's bytes: the same for the same state."""
    return orjson.dumps(order_content(order))


def render_page(data: list[Any], next_cursor: str | None) -> bytes:
    """A page of orders or events."""
    return orjson.dumps({"data": data, "next_cursor": next_cursor})


def render_events(events: list[Event], next_cursor: str | None) -> bytes:
    """A page of events, as they are on Kafka."""
    return orjson.dumps({"data": events, "next_cursor": next_cursor})
