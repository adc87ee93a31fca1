"""What goes out over HTTP. One function renders an order, so that the same state has the same bytes."""

from collections.abc import Iterable
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, Field

from services.common import money, openapi
from services.common.schemas import AT, Currency, Time, UlidText, Version, example
from services.contracts.orders import Event, Members, OrderStatus, PaymentStatus
from services.orders.domain import ALLOWED_ACTIONS, CancelReason, Command
from services.orders.schemas import LINES_MAX, ORDER_ID, QUANTITY_MAX, USER_ID, Amount

Money = Annotated[int, Field(ge=0, le=money.AMOUNT_MAX, description="minor units of the currency")]
UuidText = Annotated[str, Field(json_schema_extra={"format": "uuid"})]


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

    model_config = example(
        order_id=ORDER_ID,
        user_id=USER_ID,
        status="confirmed",
        payment_status="on_account",
        currency="USD",
        total_amount=5997,
        captured_amount=0,
        refunded_amount=0,
        item_count=1,
        version=1,
        created_at=AT,
        updated_at=AT,
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

    model_config = example(
        event_id="01KAPKY98W3V5T2J8QK3F0S1XD",
        order_id=ORDER_ID,
        version=2,
        type="order.cancelled",
        occurred_at=AT,
        actor=f"user:{USER_ID}",
        data={
            "change": {"cancel_reason": "customer"},
            "after": {
                "status": "cancelled",
                "payment_status": "on_account",
                "currency": "USD",
                "total_amount": 5997,
                "user_id": USER_ID,
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

    model_config = example(product_id=openapi.ULID_EXAMPLE, on_hand=100, reserved=3, available=97, version=2)


def render_order(order: Members) -> bytes:
    """The order's bytes: the same for the same state."""
    return orjson.dumps(_order_content(order))


def _order_content(order: Members) -> dict[str, Any]:
    """The order object of API.md; `allowed_actions` depends on the state only."""
    return {
        "order_id": order["order_id"],
        "user_id": order["user_id"],
        "status": order["status"],
        "payment_status": order["payment_status"],
        "currency": order["currency"],
        "total_amount": order["total_amount"],
        "captured_amount": order["captured_amount"],
        "refunded_amount": order["refunded_amount"],
        "item_count": order["item_count"],
        "version": order["version"],
        "created_at": order["created_at"],
        "updated_at": order["updated_at"],
        "items": [
            {
                "line_no": item["line_no"],
                "product_id": item["product_id"],
                "name": item["name"],
                "quantity": item["quantity"],
                "unit_price": item["unit_price"],
                "line_total": item["line_total"],
                "shipped_quantity": item["shipped_quantity"],
                "returned_quantity": item["returned_quantity"],
            }
            for item in order["items"]
        ],
        "adjustments": [
            {"kind": one["kind"], "line_no": one["line_no"], "label": one["label"], "amount": one["amount"]}
            for one in order["adjustments"]
        ],
        "expires_at": order["expires_at"],
        "payment_method": order["payment_method"],
        "shipping_address_id": order["shipping_address_id"],
        "tracking": order["tracking"],
        "cancel_reason": order["cancel_reason"],
        "allowed_actions": ALLOWED_ACTIONS[order["status"]],
    }


def render_stock(product_id: str, *, on_hand: int, reserved: int, version: int) -> bytes:
    """The bytes of a product's stock: the same for the same state."""
    available = on_hand - reserved
    return orjson.dumps(
        {
            "product_id": product_id,
            "on_hand": on_hand,
            "reserved": reserved,
            "available": available,
            "version": version,
        }
    )


def render_orders(orders: Iterable[Members], next_cursor: str | None) -> bytes:
    """A page of orders."""
    return orjson.dumps({"data": [_order_content(order) for order in orders], "next_cursor": next_cursor})


def render_events(events: list[Event], next_cursor: str | None) -> bytes:
    """A page of events, as they are on Kafka."""
    return orjson.dumps({"data": events, "next_cursor": next_cursor})
