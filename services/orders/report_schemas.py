"""What comes in and goes out over HTTP of order summaries and reports."""

import json
import re
from collections.abc import Callable, Iterable
from datetime import date, datetime
from typing import Annotated, Any, Final

import orjson
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    field_validator,
)

from services.common import clock, ids
from services.common.db import Row
from services.common.schemas import AT, PAGE_DEFAULT, Currency, Limit, Time, UlidText, Version, example
from services.contracts.orders import OrderStatus, PaymentStatus
from services.orders.answers import Money, UuidText
from services.orders.reports import DAYS_MAX, By, Report
from services.orders.schemas import LINES_MAX, ORDER_ID, USER_ID, Instant

Count = Annotated[int, Field(ge=0)]


class SummariesQuery(BaseModel):
    """Parameters of listing summaries. The interval [created_from, created_to) is half-open; an offset is required."""

    model_config = ConfigDict(extra="forbid")

    status: OrderStatus | None = None
    payment_status: PaymentStatus | None = None
    currency: Currency | None = None
    created_from: Instant | None = Field(default=None, description="made then or later; RFC 3339 with an offset")
    created_to: Instant | None = Field(default=None, description="made before then; RFC 3339 with an offset")
    limit: Limit = PAGE_DEFAULT
    cursor: str | None = Field(default=None, description="`next_cursor` of the page before, for the same query")


class SummaryAnswer(BaseModel):
    """An order in short, as it stood at `as_of`."""

    order_id: UlidText
    user_id: UuidText
    status: OrderStatus
    payment_status: PaymentStatus
    currency: Currency
    total_amount: Money
    captured_amount: Money
    refunded_amount: Money
    item_count: Annotated[int, Field(ge=1, le=LINES_MAX, description="number of lines")]
    units: Annotated[Count, Field(description="of all lines")]
    open_units: Annotated[Count, Field(description="those still to be shipped")]
    withdrawn_lines: Annotated[Count, Field(description="lines whose product is not for sale any more")]
    version: Version
    created_at: Time
    updated_at: Time
    expires_at: Annotated[Time, Field(description="when it is cancelled unless it is paid")] | None
    last_event: Annotated[str, Field(pattern=r"^order\.[a-z_]+$")]
    last_actor: Annotated[str, Field(pattern="^(user|staff|process):")]

    model_config = example(
        order_id=ORDER_ID,
        user_id=USER_ID,
        status="partially_shipped",
        payment_status="on_account",
        currency="USD",
        total_amount=5997,
        captured_amount=0,
        refunded_amount=0,
        item_count=1,
        units=3,
        open_units=1,
        withdrawn_lines=0,
        version=2,
        created_at=AT,
        updated_at=AT,
        expires_at=None,
        last_event="order.shipped",
        last_actor=f"staff:{USER_ID}",
    )


_MEMBERS: Final = tuple(SummaryAnswer.model_fields)
_TIMES: Final = ("created_at", "updated_at", "expires_at")


class SummariesPage(BaseModel):
    """Summaries, newest first."""

    data: list[SummaryAnswer]
    next_cursor: str | None
    as_of: Annotated[Time, Field(description="all that was committed by then is in it")]


def render_summaries(rows: Iterable[Row], next_cursor: str | None, as_of: datetime) -> bytes:
    """A page of summaries."""
    data = [_summary(row) for row in rows]
    return orjson.dumps({"data": data, "next_cursor": next_cursor, "as_of": clock.to_text(as_of)})


def _summary(row: Row) -> dict[str, Any]:
    found = {member: row[member] for member in _MEMBERS}
    found |= {"order_id": ids.to_text(row["order_id"]), "user_id": str(row["user_id"])}
    for member in _TIMES:
        found[member] = None if row[member] is None else clock.to_text(row[member])
    return found


def _day(text: object) -> object:
    """Pydantic would also take seconds since 1970, and a time at midnight."""
    if isinstance(text, str) and not re.fullmatch(r"\d{4}-\d\d-\d\d", text, re.ASCII):
        raise ValueError("not a date (RFC 3339, full-date), such as 2026-11-22")
    return text


Day = Annotated[
    date,
    BeforeValidator(_day),
    WithJsonSchema({"type": "string", "format": "date", "examples": ["2026-11-01"]}),
]


class SalesQuery(BaseModel):
    """Parameters of a report of sales. Days are of UTC; the interval [from, to) is half-open."""

    model_config = ConfigDict(extra="forbid")

    first_on: Day = Field(alias="from", description="the first day")
    end_on: Day = Field(alias="to", description=f"the day after the last, at most {DAYS_MAX} days later")
    by: By = By.DAY
    currency: Currency | None = None

    @field_validator("end_on")
    @classmethod
    def _after(cls, end_on: date, others: ValidationInfo) -> date:
        first_on = others.data.get("first_on")  # not there when it is at fault itself
        if first_on is not None and not 0 < (end_on - first_on).days <= DAYS_MAX:
            raise ValueError(f"not 1 to {DAYS_MAX} days after `from`")
        return end_on


Sum = Annotated[int, Field(description="minor units of the currency; a sum of many may be beyond 2^53")]
DateText = Annotated[str, Field(json_schema_extra={"format": "date"})]


class _Sales(BaseModel):
    currency: Currency
    orders: Annotated[Count, Field(description="placed")]
    units: Count
    gross_amount: Annotated[Sum, Field(description="of all lines; minor units")]
    discount_amount: Annotated[Sum, Field(le=0, description="of adjustments that are discounts")]
    charge_amount: Annotated[Sum, Field(ge=0, description="of other adjustments: tax, shipping, fees")]
    cancelled_orders: Annotated[Count, Field(description="cancelled then, whenever they were placed")]
    cancelled_amount: Sum
    refunded_amount: Annotated[Sum, Field(description="given back then, whenever it was paid")]


class DaySales(_Sales):
    """What was placed, cancelled and refunded on a day."""

    day: DateText


class MonthSales(_Sales):
    """What was placed, cancelled and refunded in a month, as far as it is in the interval."""

    month: Annotated[str, Field(pattern=r"^\d{4}-\d\d$")]


class ProductSales(BaseModel):
    """What was ordered of a product."""

    product_id: UlidText
    currency: Currency
    quantity: Count
    amount: Sum


class StatusSales(BaseModel):
    """Orders placed in the interval that have this status now."""

    status: OrderStatus
    currency: Currency
    orders: Count
    amount: Sum


class SalesReport(BaseModel):
    """A row for each of what was asked by, and each currency."""

    data: list[DaySales] | list[MonthSales] | list[ProductSales] | list[StatusSales]
    as_of: Annotated[Time, Field(description="what was committed later is not in it")]

    model_config = example(
        data=[{"status": "shipped", "currency": "USD", "orders": 3, "amount": 17991}],
        as_of=AT,
    )


_ROWS: Final[dict[By, type[BaseModel]]] = {
    By.DAY: DaySales,
    By.MONTH: MonthSales,
    By.PRODUCT: ProductSales,
    By.STATUS: StatusSales,
}
_TEXTS: Final[dict[str, Callable[[Any], str]]] = {
    "day": date.isoformat,
    "month": lambda first_on: f"{first_on:%Y-%m}",
    "product_id": ids.to_text,
    "status": str,
    "currency": str,
}


def render_report(by: By, report: Report) -> bytes:
    """A report. Integers of any size, which orjson does not write."""
    members = _ROWS[by].model_fields
    data = [{member: _TEXTS.get(member, int)(row[member]) for member in members} for row in report.rows]
    return json.dumps({"data": data, "as_of": clock.to_text(report.as_of)}, separators=(",", ":")).encode()
