"""What comes in and goes out over HTTP of order summaries."""

from collections.abc import Iterable
from datetime import datetime
from typing import Annotated, Any, Final

import orjson
from pydantic import BaseModel, ConfigDict, Field

from services.common import clock, ids
from services.common.db import Row
from services.common.schemas import AT, PAGE_DEFAULT, Currency, Limit, Time, UlidText, Version, example
from services.contracts.orders import OrderStatus, PaymentStatus
from services.orders.answers import Money, UuidText
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
