"""What comes in over HTTP: bodies and query parameters."""

import re
from collections import Counter
from datetime import UTC, datetime
from typing import Annotated, Final, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from services.common import money, openapi
from services.common.schemas import (
    PAGE_DEFAULT,
    VERSION_MAX,
    Body,
    Currency,
    Limit,
    Price,
    ShortText,
    Ulid,
    example,
    no_control,
)
from services.contracts.orders import OrderStatus

LINES_MAX = 2_000  # a real wholesale invoice has 1,114
QUANTITY_MAX = 1_000_000
EVENTS_MAX = 1_000
STOCK_DELTA_MAX = 10**12  # of units in one adjustment; no warehouse holds as many, and no sum of two leaves bigint


def _not_zero(number: int) -> int:
    if number == 0:
        raise ValueError("an adjustment by nothing")
    return number


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
PaymentMethod = Annotated[
    str, StringConstraints(min_length=1, max_length=200, pattern="^pm_"), AfterValidator(no_control)
]
Amount = Annotated[int, Field(ge=-money.AMOUNT_MAX, le=money.AMOUNT_MAX)]
StockDelta = Annotated[
    int,
    Field(ge=-STOCK_DELTA_MAX, le=STOCK_DELTA_MAX, json_schema_extra={"not": {"const": 0}}),
    AfterValidator(_not_zero),
]
UserId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$")]

ORDER_ID: Final = "01KAPKY98W7W2SY8YD52EAN5AE"
USER_ID: Final = "0b0f5a52-7d0e-4d6e-9a53-0d3a7a6f0001"


class LineBody(Body):
    """A line to order. The same product may stand on several lines."""

    product_id: Ulid
    quantity: Annotated[int, Field(ge=1, le=QUANTITY_MAX)]
    unit_price: Price | None = Field(
        default=None, description="the price the buyer saw; with orders:price the price that is charged"
    )


class AdjustmentBody(Body):
    """Tax, shipping, fee (not negative) or discount (not positive); on a line or on the order."""

    model_config = ConfigDict(
        json_schema_extra={
            "if": {"properties": {"kind": {"const": "discount"}}},
            "then": {"properties": {"amount": {"maximum": 0}}},
            "else": {"properties": {"amount": {"minimum": 0}}},
        }
    )

    kind: Literal["tax", "shipping", "discount", "fee"]
    line_no: Annotated[int, Field(ge=1, le=LINES_MAX)] | None = Field(
        default=None, description="the line, counted from 1 in the order of `items`; the whole order when absent"
    )
    label: ShortText
    amount: Amount

    @field_validator("amount")
    @classmethod
    def _signed(cls, amount: int, others: ValidationInfo) -> int:
        kind = others.data.get("kind")  # not there when it is at fault itself
        if kind == "discount" and amount > 0:
            raise ValueError("a discount is not positive")
        if kind not in (None, "discount") and amount < 0:
            raise ValueError(f"of {kind} the amount is not negative")
        return amount


class PlaceOrderBody(Body):
    """An order to place."""

    model_config = example(
        currency="USD", items=[{"product_id": openapi.ULID_EXAMPLE, "quantity": 3, "unit_price": 1999}]
    )

    currency: Currency
    items: Annotated[list[LineBody], Field(min_length=1, max_length=LINES_MAX)]
    payment_method: PaymentMethod | None = None
    shipping_address_id: ShortText | None = None
    adjustments: Annotated[list[AdjustmentBody], Field(max_length=LINES_MAX)] | None = Field(
        default=None, description="with orders:price"
    )
    user_id: UserId | None = Field(default=None, description="the buyer, whose order it is; the caller when absent")

    @field_validator("adjustments")
    @classmethod
    def _on_its_lines(cls, found: list[AdjustmentBody] | None, others: ValidationInfo) -> list[AdjustmentBody] | None:
        lines = len(others.data.get("items", range(LINES_MAX)))  # not there when they are at fault themselves
        for number, adjustment in enumerate(found or ()):
            if adjustment.line_no is not None and adjustment.line_no > lines:
                raise ValueError(f"number {number} is on line {adjustment.line_no}, but there are {lines} lines")
        return found


class CancelBody(Body):
    """Why the order is cancelled; an owner's only reason, and the default, is `customer`."""

    model_config = example(reason="customer")

    reason: Literal["customer", "out_of_stock", "staff"] | None = None


class PartBody(Body):
    """So many units of a line."""

    line_no: Annotated[int, Field(ge=1, le=LINES_MAX)]
    quantity: Annotated[int, Field(ge=1, le=QUANTITY_MAX)]


def _each_line_once(parts: list[PartBody]) -> list[PartBody]:
    """Twice the same line is more likely a mistake of the client's than a wish for the sum."""
    twice = [line_no for line_no, times in Counter(part.line_no for part in parts).items() if times > 1]
    if twice:
        raise ValueError(f"a line stands here once at most, but not {', '.join(map(str, twice[:20]))}")
    return parts


Parts = Annotated[
    list[PartBody],
    Field(min_length=1, max_length=LINES_MAX, description="each line once at most"),
    AfterValidator(_each_line_once),
]


class ShipBody(Body):
    """What is shipped."""

    model_config = example(tracking="1Z999AA10123456784", items=[{"line_no": 1, "quantity": 2}])

    tracking: ShortText | None = Field(default=None, description="of this shipment; the order shows the last one given")
    items: Parts | None = Field(default=None, description="all that is not shipped yet when absent")


class ReturnBody(Body):
    """What has come back."""

    model_config = example(items=[{"line_no": 1, "quantity": 1}])

    items: Parts | None = Field(default=None, description="all that is shipped and not returned yet when absent")


class DeliverBody(Body):
    """Nothing to say."""

    model_config = example()


class AdjustStockBody(Body):
    """Units that have come (positive) or gone (negative), and why."""

    model_config = example(delta=-2, reason="broken in the warehouse")

    delta: StockDelta
    reason: ShortText


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
    limit: Limit = PAGE_DEFAULT
    cursor: str | None = Field(default=None, description="`next_cursor` of the page before, for the same query")


# What goes out. Responses are rendered below, from dataclasses and at once; these models only describe them, and tests
# hold real responses against the description.
