"""What becomes of a made-up order, event by event: as the API, the projector and payments-worker would have let it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from services.contracts.orders import EventType, OrderStatus, PaymentStatus
from services.contracts.payments import PaymentState
from services.orders import domain
from services.orders.domain import CancelReason
from services.orders.seed_model import Fate, Plan, Product

EXPIRES_AFTER_MS: Final = 30 * 60_000  # the setting's default

# What follows by itself this soon has happened: nobody is left to bring it about.
_AT_ONCE_MS: Final = 10_000
_SECOND, _HOUR, _DAY = 1_000, 3_600_000, 86_400_000


@dataclass(slots=True)
class Line:
    """What is bought, and how many units of it went out and came back."""

    product: Product
    quantity: int
    shipped: int = 0
    returned: int = 0


class Life:
    """An order as its last event leaves it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.lines = [Line(product, quantity) for product, quantity in plan.lines]
        self.total = sum(product.price * quantity for product, quantity in plan.lines)
        self.status, self.payment_status = domain.starts_as(plan.method)
        self.captured = self.refunded = 0
        self.version = 1
        self.at_ms = plan.at_ms
        self.tracking: str | None = None
        self.reason: CancelReason | None = None
        self.payment = Payment()

    def moved(self, column: str, parts: list[tuple[int, int]]) -> dict[str, Any]:
        """What the event says of so many units of these lines, which are `shipped` or `returned` now."""
        amount = 0
        for number, units in parts:
            line = self.lines[number]
            setattr(line, column, getattr(line, column) + units)
            amount += line.product.price * units
        items = [{"line_no": number + 1, "quantity": units} for number, units in parts]
        return {"items": items, "amount": amount}


@dataclass(slots=True)
class Payment:
    """The payment of an order that has one."""

    status: PaymentState = PaymentState.REQUESTED
    authorized: int = 0
    failure: str | None = None
    version: int = 0
    order_version: int = 1  # of the order's last event that asked for something


# One step of an order: from its state to the event's type and change. Payments' steps are not of orders on account.
_Step = Callable[[Life, Random], tuple[EventType, dict[str, Any]]]


def _authorize(life: Life, _: Random) -> tuple[EventType, dict[str, Any]]:
    life.payment.status, life.payment.authorized = PaymentState.AUTHORIZED, life.total
    life.payment.version += 1
    life.payment_status = PaymentStatus.AUTHORIZED
    return EventType.PAYMENT_AUTHORIZED, {"amount": life.total}


def _confirm(life: Life, _: Random) -> tuple[EventType, dict[str, Any]]:
    life.status = OrderStatus.CONFIRMED
    return EventType.CONFIRMED, {}


def _decline(life: Life, _: Random) -> tuple[EventType, dict[str, Any]]:
    life.payment.status, life.payment.failure = PaymentState.FAILED, "card_declined"
    life.payment.version += 1
    life.payment_status = PaymentStatus.FAILED
    return EventType.PAYMENT_FAILED, {"reason": "card_declined"}


def _ship(life: Life, chance: Random, *, part: bool = False) -> tuple[EventType, dict[str, Any]]:
    parts = [(number, line.quantity - line.shipped) for number, line in enumerate(life.lines)]
    if part and len(parts) > 1:
        parts = parts[: len(parts) // 2]
    elif part and parts[0][1] > 1:
        parts = [(0, parts[0][1] // 2)]
    change = life.moved("shipped", [(number, units) for number, units in parts if units])
    whole = all(line.shipped == line.quantity for line in life.lines)
    life.status = OrderStatus.SHIPPED if whole else OrderStatus.PARTIALLY_SHIPPED
    life.tracking = f"1Z{chance.randrange(10**10):010d}"
    life.payment.order_version = life.version + 1
    return EventType.SHIPPED, {"tracking": life.tracking, **change}


def _ship_part(life: Life, chance: Random) -> tuple[EventType, dict[str, Any]]:
    return _ship(life, chance, part=True)


def _capture(life: Life, _: Random) -> tuple[EventType, dict[str, Any]]:
    due = sum(line.product.price * line.shipped for line in life.lines)
    amount, life.captured = due - life.captured, due
    life.payment.version += 1
    life.payment_status = PaymentStatus.CAPTURED if due == life.total else PaymentStatus.PARTIALLY_CAPTURED
    return EventType.PAYMENT_CAPTURED, {"amount": amount, "captured_amount": due}


def _deliver(life: Life, _: Random) -> tuple[EventType, dict[str, Any]]:
    life.status = OrderStatus.DELIVERED
    return EventType.DELIVERED, {}


def _send_back(life: Life, _: Random, *, part: bool = False) -> tuple[EventType, dict[str, Any]]:
    parts = [(0, 1)] if part else [(number, line.quantity) for number, line in enumerate(life.lines)]
    change = life.moved("returned", parts)
    whole = all(line.returned == line.quantity for line in life.lines)
    life.status = OrderStatus.RETURNED if whole else OrderStatus.PARTIALLY_RETURNED
    life.payment.order_version = life.version + 1
    return EventType.RETURNED, change


def _send_back_part(life: Life, chance: Random) -> tuple[EventType, dict[str, Any]]:
    return _send_back(life, chance, part=True)


def _refund(life: Life, _: Random) -> tuple[EventType, dict[str, Any]]:
    life.refunded = sum(line.product.price * line.returned for line in life.lines)
    life.payment.version += 1
    whole = life.refunded == life.total
    life.payment_status = PaymentStatus.REFUNDED if whole else PaymentStatus.PARTIALLY_REFUNDED
    return EventType.REFUNDED, {"amount": life.refunded, "refunded_amount": life.refunded}


def _cancelled(reason: CancelReason) -> _Step:
    def cancel(life: Life, _: Random) -> tuple[EventType, dict[str, Any]]:
        life.status, life.reason = OrderStatus.CANCELLED, reason
        life.payment.order_version = life.version + 1
        if life.payment.status is PaymentState.REQUESTED:
            life.payment.status = PaymentState.VOIDED
            life.payment.version += 1
        return EventType.CANCELLED, {"cancel_reason": reason.value}

    return cancel


def _cancel(life: Life, chance: Random) -> tuple[EventType, dict[str, Any]]:
    reason = chance.choice((CancelReason.CUSTOMER, CancelReason.CUSTOMER, CancelReason.STAFF))
    return _cancelled(reason)(life, chance)


def _void(life: Life, _: Random) -> tuple[EventType, dict[str, Any]]:
    life.payment.status, life.payment_status = PaymentState.VOIDED, PaymentStatus.VOIDED
    life.payment.version += 1
    return EventType.PAYMENT_VOIDED, {}


_PAYS: Final[frozenset[_Step]] = frozenset({_authorize, _confirm, _capture, _refund, _void})
# Of each fate its steps, and from when to when after the one before, in milliseconds.
_PAID: Final = ((_authorize, 200, 3 * _SECOND), (_confirm, 10, 200))
_SENT: Final = ((_ship, 2 * _HOUR, 72 * _HOUR), (_capture, 500, 5 * _SECOND))
_SENT_IN_PARTS: Final = (
    *((_ship_part, 2 * _HOUR, 48 * _HOUR), (_capture, 500, 5 * _SECOND)),
    *((_ship, 12 * _HOUR, 96 * _HOUR), (_capture, 500, 5 * _SECOND)),
)
_ARRIVED: Final = ((_deliver, 20 * _HOUR, 120 * _HOUR),)
_CAME_BACK: Final = ((_send_back, 2 * _DAY, 20 * _DAY), (_refund, _SECOND, 10 * _SECOND))
_CAME_BACK_IN_PART: Final = ((_send_back_part, 2 * _DAY, 20 * _DAY), (_refund, _SECOND, 10 * _SECOND))
_STEPS: Final[dict[Fate, tuple[tuple[_Step, int, int], ...]]] = {
    Fate.DELIVERED: (*_PAID, *_SENT, *_ARRIVED),
    Fate.SPLIT: (*_PAID, *_SENT_IN_PARTS, *_ARRIVED),
    Fate.CANCELLED: (*_PAID, (_cancel, 5 * 60 * _SECOND, 24 * _HOUR), (_void, _SECOND, 5 * _SECOND)),
    Fate.RETURNED: (*_PAID, *_SENT, *_ARRIVED, *_CAME_BACK),
    Fate.PARTLY_RETURNED: (*_PAID, *_SENT, *_ARRIVED, *_CAME_BACK_IN_PART),
    Fate.DECLINED: (*((_decline, 500, 5 * _SECOND), (_cancelled(CancelReason.PAYMENT_FAILED), 10, 200)),),
    Fate.EXPIRED: ((_cancelled(CancelReason.EXPIRED), EXPIRES_AFTER_MS, EXPIRES_AFTER_MS + 5 * _SECOND),),
}


def lived(life: Life, upto_ms: int, chance: Random) -> Iterator[tuple[EventType, dict[str, Any], str]]:
    """The events after the first one that have happened by `upto_ms`: type, change, and the status before.

    `life` is as each leaves it when it is told.
    """
    for step, shortest, longest in _STEPS[life.plan.fate]:
        if life.plan.method is None and step in _PAYS:
            continue
        if step is _ship and life.status == OrderStatus.SHIPPED:
            continue  # a single unit has been sent: there is no other part
        if step is _capture and life.captured == life.total:
            continue
        at_ms = life.at_ms + shortest + int((longest - shortest) * chance.random())
        if at_ms > upto_ms and longest > _AT_ONCE_MS:
            return
        life.at_ms = min(at_ms, upto_ms)
        status_before = life.status
        kind, change = step(life, chance)
        life.version += 1
        yield kind, change, status_before
