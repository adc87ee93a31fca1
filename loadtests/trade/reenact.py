"""The orders of a trade, placed one after the other at a chosen speed-up of their own times.

An open model: an order is due when its time comes, whether or not the ones before it have been answered. Only
`concurrency` are under way at once; what starts late for that reason is counted as late.
"""

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Final

import httpx

from loadtests.trade.supply import json_number
from loadtests.trade.target import Target, ask, each, http, problem_code, reasons
from loadtests.trade.trade import Order, Trade

SCOPES: Final = "orders:write orders:price"
REASONS_MAX: Final = 5  # kept of a refusal


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an order. `late_seconds` from due to sent, `answer_seconds` from sent to answered, retries included.

    Accepted, it has an `order_id` and `total_amount`; refused, a `code` and its `reasons`.
    """

    order: Order
    status: int
    late_seconds: float
    answer_seconds: float
    attempts: int = 1
    order_id: str | None = None
    total_amount: int | None = None
    item_count: int | None = None
    replayed: bool = False
    code: str | None = None
    reasons: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether there is an order now."""
        return self.order_id is not None


async def reenact(
    target: Target, trade: Trade, run: str, *, speed_up: float | None, concurrency: int
) -> tuple[list[Outcome], float]:
    """Every order has been sent and answered; the outcomes in the orders' order, and the seconds it took.

    `speed_up` is how many seconds of the data pass in one; None for as fast as possible. The same `run` again places
    nothing twice: its keys are known. UnansweredError when the API is away for longer than requests are repeated.
    """
    if not trade.orders:
        return [], 0.0
    outcomes: dict[str, Outcome] = {}
    first = trade.orders[0].at
    async with http(target.orders, target.bearer(trade.name, SCOPES), concurrency) as client:
        begun = time.perf_counter()

        async def place(order: Order) -> None:
            due = begun + ((order.at - first).total_seconds() / speed_up if speed_up else 0)
            if (early := due - time.perf_counter()) > 0:
                await asyncio.sleep(early)
            outcomes[order.reference] = await _placed(client, order, trade.currency, run, due if speed_up else None)

        await each(trade.orders, concurrency, place)
        took = time.perf_counter() - begun
    return [outcomes[order.reference] for order in trade.orders], took


def body(order: Order, currency: str) -> dict[str, Any]:
    """The order as a request, as it stands in the data, also where it must be refused."""
    found: dict[str, Any] = {
        "currency": currency,
        "user_id": order.user_id,
        "items": [
            {"product_id": line.product_id, "quantity": line.quantity, "unit_price": json_number(line.unit_price)}
            for line in order.lines
        ],
    }
    if order.adjustments:
        found["adjustments"] = [
            {"kind": one.kind, "line_no": one.line_no, "label": one.label, "amount": one.amount}
            for one in order.adjustments
        ]
    return found


async def _placed(client: httpx.AsyncClient, order: Order, currency: str, run: str, due: float | None) -> Outcome:
    request = body(order, currency)
    sent = time.perf_counter()
    late = 0.0 if due is None else sent - due
    response = await ask(client, "POST", "/v1/orders", request, key=f"{run}:{order.reference}")
    took, attempts = time.perf_counter() - sent, int(response.extensions["attempts"])
    if response.is_error:
        said = reasons(response)[:REASONS_MAX]
        return Outcome(order, response.status_code, late, took, attempts, code=problem_code(response), reasons=said)
    answer = response.json()
    return Outcome(
        order,
        response.status_code,
        late,
        took,
        attempts,
        order_id=answer["order_id"],
        total_amount=answer["total_amount"],
        item_count=answer["item_count"],
        replayed="idempotency-replayed" in response.headers,
    )


def unexpected(outcomes: list[Outcome]) -> list[str]:
    """Where an order was taken that must be refused, or refused that must be taken, or came to another total."""
    found = []
    for outcome in outcomes:
        order, name = outcome.order, f"order {outcome.order.reference}"
        if order.acceptable and not outcome.accepted:
            found.append(f"{name}: refused with {outcome.code}: {'; '.join(outcome.reasons)}")
        elif not order.acceptable and outcome.code != "invalid":
            found.append(f"{name}: not refused as invalid but {outcome.code or 'accepted'}")
        elif outcome.accepted and outcome.total_amount != order.total:
            found.append(f"{name}: comes to {outcome.total_amount}, in the data to {order.total}")
        elif outcome.accepted and outcome.item_count != len(order.lines):
            found.append(f"{name}: has {outcome.item_count} lines, in the data {len(order.lines)}")
    return found
