"""What comes in and goes out over HTTP. One function renders an order, so the same state has the same bytes."""

from typing import Annotated, Any, Literal

import orjson
from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

from services.common import ids, money
from services.contracts.orders import Event, Order, OrderStatus
from services.orders.domain import ALLOWED_ACTIONS

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


Ulid = Annotated[str, StringConstraints(min_length=26, max_length=26), AfterValidator(_ulid)]
ShortText = Annotated[str, StringConstraints(min_length=1, max_length=200), AfterValidator(_no_control)]
Amount = Annotated[int, Field(ge=-money.AMOUNT_MAX, le=money.AMOUNT_MAX)]
Currency = Annotated[str, StringConstraints(min_length=3, max_length=3), AfterValidator(_currency)]


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

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "currency": "USD",
                    "items": [{"product_id": "01JD5Q0000E2WXGF4K4Z7D3M5T", "quantity": 3, "unit_price": 1999}],
                }
            ]
        }
    )

    currency: Currency
    items: Annotated[list[LineBody], Field(min_length=1, max_length=LINES_MAX)]
    payment_method: Annotated[ShortText, StringConstraints(pattern=r"^pm_")] | None = None
    shipping_address_id: ShortText | None = None
    adjustments: Annotated[list[AdjustmentBody], Field(max_length=LINES_MAX)] | None = None
    user_id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")] | None = None


class CancelBody(Body):
    """Why the order is cancelled; an owner's only reason, and the default, is `customer`."""

    reason: Literal["customer", "out_of_stock", "staff"] | None = None


class ShipLineBody(Body):
    """What of a line is shipped."""

    line_no: Annotated[int, Field(ge=1, le=LINES_MAX)]
    quantity: Annotated[int, Field(ge=1, le=QUANTITY_MAX)]


class ShipBody(Body):
    """All that is open is shipped."""

    tracking: ShortText | None = None
    items: Annotated[list[ShipLineBody], Field(min_length=1, max_length=LINES_MAX)] | None = None


class DeliverBody(Body):
    """Nothing to say."""


class OrderQuery(BaseModel):
    """Parameters of reading one order."""

    model_config = ConfigDict(extra="forbid")

    min_version: Annotated[int, Field(ge=1, le=VERSION_MAX)] | None = None


class EventsQuery(BaseModel):
    """Parameters of reading an order's events."""

    model_config = ConfigDict(extra="forbid")

    after_version: Annotated[int, Field(ge=0, le=VERSION_MAX)] = 0
    limit: Annotated[int, Field(ge=1, le=EVENTS_MAX)] = 100


class ListQuery(BaseModel):
    """Parameters of listing orders. The interval [created_from, created_to) is half-open; an offset is required."""

    model_config = ConfigDict(extra="forbid")

    status: OrderStatus | None = None
    created_from: AwareDatetime | None = None
    created_to: AwareDatetime | None = None
    user_id: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")] | None = None
    limit: Annotated[int, Field(ge=1, le=PAGE_MAX)] = PAGE_DEFAULT
    cursor: Annotated[str, StringConstraints(max_length=200)] | None = None


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
