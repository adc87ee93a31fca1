"""What an order may do: pure decisions, no clock, no I/O. Docs, CHECKs and `allowed_actions` come from here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from math import lcm
from typing import Any, Final, Generic, TypeVar

from services.common.errors import DomainError, invalid
from services.contracts.orders import EventType, Item, Order, OrderStatus, PaymentStatus
from services.contracts.payments import Payment, PaymentState

S = TypeVar("S", OrderStatus, PaymentStatus)


class Command(StrEnum):
    """What a caller may ask of an order; also the last part of the command's path and its entry in allowed_actions."""

    CANCEL = "cancel"
    SHIP = "ship"
    DELIVER = "deliver"
    RETURN = "return"


class CancelReason(StrEnum):
    """Why an order was cancelled."""

    CUSTOMER = "customer"
    OUT_OF_STOCK = "out_of_stock"
    PAYMENT_FAILED = "payment_failed"
    EXPIRED = "expired"
    STAFF = "staff"


@dataclass(frozen=True, slots=True)
class StockEffect:
    """What an event does to the stock of a product, in units."""

    on_hand: int
    reserved: int


@dataclass(frozen=True, slots=True)
class Part:
    """So many units of a line."""

    line_no: int
    quantity: int


@dataclass(frozen=True, slots=True)
class Step:
    """What happens to an order: the event it leaves, both statuses after it, and what the event says of the change."""

    event: EventType
    status: str
    payment_status: str
    change: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Transition(Generic[S]):
    """One row of the state machine: `event` takes an order from any of `sources` to `target`, and leaves all else.

    One that moves units or amounts by parts takes it to `part` instead, as long as some are left to move. Callers may
    ask for one that has a `command`; the others follow from the payment.
    """

    event: EventType
    sources: frozenset[S]
    target: S
    part: S | None = None
    command: Command | None = None

    @property
    def targets(self) -> tuple[S, ...]:
        """Where it may lead, the part before the whole."""
        return (self.target,) if self.part is None else (self.part, self.target)


# Something of such an order is still to be done, by the buyer, by us, or on its way.
OPEN_STATUSES: Final = (OrderStatus.PENDING, OrderStatus.CONFIRMED, OrderStatus.PARTIALLY_SHIPPED, OrderStatus.SHIPPED)

# Of `status`.
TRANSITIONS: Final[tuple[Transition[OrderStatus], ...]] = (
    Transition(EventType.CONFIRMED, frozenset({OrderStatus.PENDING}), OrderStatus.CONFIRMED),
    Transition(
        EventType.CANCELLED,
        frozenset({OrderStatus.PENDING, OrderStatus.CONFIRMED}),
        OrderStatus.CANCELLED,
        command=Command.CANCEL,
    ),
    Transition(
        EventType.SHIPPED,
        frozenset({OrderStatus.CONFIRMED, OrderStatus.PARTIALLY_SHIPPED}),
        OrderStatus.SHIPPED,
        part=OrderStatus.PARTIALLY_SHIPPED,
        command=Command.SHIP,
    ),
    Transition(
        EventType.DELIVERED,
        frozenset({OrderStatus.SHIPPED}),
        OrderStatus.DELIVERED,
        command=Command.DELIVER,
    ),
    Transition(
        EventType.RETURNED,
        frozenset({OrderStatus.DELIVERED, OrderStatus.PARTIALLY_RETURNED}),
        OrderStatus.RETURNED,
        part=OrderStatus.PARTIALLY_RETURNED,
        command=Command.RETURN,
    ),
)

# Of `payment_status`, whatever the status is: money comes and goes when the provider says so.
PAYMENT_TRANSITIONS: Final[tuple[Transition[PaymentStatus], ...]] = (
    Transition(EventType.PAYMENT_AUTHORIZED, frozenset({PaymentStatus.UNPAID}), PaymentStatus.AUTHORIZED),
    Transition(EventType.PAYMENT_FAILED, frozenset({PaymentStatus.UNPAID}), PaymentStatus.FAILED),
    Transition(EventType.PAYMENT_VOIDED, frozenset({PaymentStatus.AUTHORIZED}), PaymentStatus.VOIDED),
    Transition(
        EventType.PAYMENT_CAPTURED,
        frozenset({PaymentStatus.AUTHORIZED, PaymentStatus.PARTIALLY_CAPTURED}),
        PaymentStatus.CAPTURED,
        part=PaymentStatus.PARTIALLY_CAPTURED,
    ),
    Transition(
        EventType.PAYMENT_CAPTURED, frozenset({PaymentStatus.PARTIALLY_REFUNDED}), PaymentStatus.PARTIALLY_REFUNDED
    ),
    Transition(EventType.REFUNDED, frozenset({PaymentStatus.PARTIALLY_CAPTURED}), PaymentStatus.PARTIALLY_REFUNDED),
    Transition(
        EventType.REFUNDED,
        frozenset({PaymentStatus.CAPTURED, PaymentStatus.PARTIALLY_REFUNDED}),
        PaymentStatus.REFUNDED,
        part=PaymentStatus.PARTIALLY_REFUNDED,
    ),
)

# Of the commands that move units: how many of a line are open to them.
OPEN: Final[Mapping[Command, Callable[[Item], int]]] = {
    Command.SHIP: lambda item: item.quantity - item.shipped_quantity,
    Command.RETURN: lambda item: item.shipped_quantity - item.returned_quantity,
}
# Of the same: how many of a line they have moved.
MOVED: Final[Mapping[Command, Callable[[Item], int]]] = {
    Command.SHIP: lambda item: item.shipped_quantity,
    Command.RETURN: lambda item: item.returned_quantity,
}
FAULTS_MAX: Final = 20  # told of one request, as of one body

# status -> the commands it allows, in the order they are listed to clients
ALLOWED_ACTIONS: Final[dict[str, tuple[str, ...]]] = {
    status: tuple(sorted(row.command.value for row in TRANSITIONS if row.command and status in row.sources))
    for status in OrderStatus
}


class ContradictionError(ValueError):
    """What is said of a payment cannot be of this order."""


def transition(order: Order, command: Command) -> Transition[OrderStatus]:
    """The row of TRANSITIONS that `command` follows from the state of `order`. 409 `transition_not_allowed` if none."""
    for row in TRANSITIONS:
        if row.command is command and order.status in row.sources:
            return row
    raise DomainError(
        "transition_not_allowed",
        409,
        f"An order that is {order.status} cannot {command}.",
        extra={"status_now": order.status, "allowed_actions": list(ALLOWED_ACTIONS[order.status])},
    )


def decide(order: Order, command: Command, parts: Sequence[Part] | None = None) -> Step:
    """The step `command` takes from the state of `order`, moving `parts`, no line twice; all that is open when None.

    409 `transition_not_allowed`, then 422 `invalid` when a line is not there or has less open than is to be moved.
    """
    row = transition(order, command)
    if row.part is None:
        return Step(row.event, row.target, order.payment_status)
    units = {item.line_no: OPEN[command](item) for item in order.items}
    if parts is None:
        moved = [Part(line_no, quantity) for line_no, quantity in units.items() if quantity]
    else:
        _check_open(command, units, parts)
        moved = sorted(parts, key=lambda part: part.line_no)
    whole = sum(part.quantity for part in moved) == sum(units.values())
    change = {
        "items": [{"line_no": part.line_no, "quantity": part.quantity} for part in moved],
        "amount": _amount_moved(order, command, moved),
    }
    return Step(row.event, row.target if whole else row.part, order.payment_status, change)


def _check_open(command: Command, units: Mapping[int, int], parts: Sequence[Part]) -> None:
    faults: list[dict[str, object]] = []
    for number, part in enumerate(parts):
        if part.line_no not in units:
            reason = f"The order has no line {part.line_no}."
            faults.append({"at": f"/items/{number}/line_no", "reason": reason, "line_no": part.line_no})
        elif part.quantity > (open_ := units[part.line_no]):
            reason = f"Of line {part.line_no} there are {open_} to {command}, not {part.quantity}."
            faults.append({"at": f"/items/{number}/quantity", "reason": reason, "line_no": part.line_no, "open": open_})
    if faults:
        raise invalid(f"The order does not have that to {command}.", errors=faults[:FAULTS_MAX])


def _amount_moved(order: Order, command: Command, parts: Sequence[Part]) -> int:
    """What falls to `parts` of what `command` moves: the difference they make, so that all parts add up exactly."""
    before = {item.line_no: MOVED[command](item) for item in order.items}
    after = before | {part.line_no: before[part.line_no] + part.quantity for part in parts}
    return amount_due(order, after) - amount_due(order, before)


def amount_due(order: Order, units: Mapping[int, int]) -> int:
    """What of total_amount falls to so many `units` of its lines, by line number: to all units all of it.

    A line weighs its total and its own adjustments; those of the order are spread over the lines by that. Rounded
    down, once, from an exact fraction: never less for more units.
    """
    adjusted = {item.line_no: item.line_total for item in order.items}
    for adjustment in order.adjustments:
        if adjustment.line_no is not None:
            adjusted[adjustment.line_no] += adjustment.amount
    weights = {line_no: max(0, weight) for line_no, weight in adjusted.items()}
    if not any(weights.values()):
        weights = {item.line_no: item.line_total for item in order.items}
    shared = lcm(*(item.quantity for item in order.items))  # the common denominator
    due = sum(weights[item.line_no] * units[item.line_no] * (shared // item.quantity) for item in order.items)
    return order.total_amount * due // (sum(weights.values()) * shared)


def settle(order: Order, payment: Payment) -> Step | None:
    """The next step on the way of `order` to what its payment says; None when it has arrived.

    Asked again after each step it comes to an end. An older state of the payment changes nothing. ContradictionError
    when it cannot be the payment of this order.
    """
    if (payment.currency, payment.amount) != (order.currency, order.total_amount):
        raise ContradictionError(
            f"it is of {payment.amount} {payment.currency}, the order of {order.total_amount} {order.currency}"
        )
    authorized = payment.status == PaymentState.AUTHORIZED
    match order.payment_status:
        case PaymentStatus.ON_ACCOUNT:
            raise ContradictionError("the order is on account")
        case PaymentStatus.UNPAID if authorized or payment.authorized_amount:
            return _paid(order, EventType.PAYMENT_AUTHORIZED, {"amount": payment.authorized_amount})
        case PaymentStatus.UNPAID if payment.status == PaymentState.FAILED:
            return _paid(order, EventType.PAYMENT_FAILED, {"reason": payment.failure or "declined"})
        case PaymentStatus.UNPAID:
            return None
        case PaymentStatus.FAILED if authorized or payment.authorized_amount:
            raise ContradictionError("it had failed, and now something is held")
        case PaymentStatus.FAILED if order.status == OrderStatus.PENDING:
            return cancel(order, CancelReason.PAYMENT_FAILED)
        case PaymentStatus.AUTHORIZED if order.status == OrderStatus.PENDING and authorized:
            return Step(EventType.CONFIRMED, OrderStatus.CONFIRMED, order.payment_status)
        case PaymentStatus.AUTHORIZED if payment.status == PaymentState.VOIDED:
            return _paid(order, EventType.PAYMENT_VOIDED, {})
    return _money_moved(order, payment)


def _money_moved(order: Order, payment: Payment) -> Step | None:
    """What was captured since, then what was refunded."""
    captured, refunded = payment.captured_amount, payment.refunded_amount
    if captured > order.captured_amount:
        change = {"amount": captured - order.captured_amount, "captured_amount": captured}
        return _paid(order, EventType.PAYMENT_CAPTURED, change, whole=captured >= order.total_amount)
    if refunded > order.refunded_amount:
        change = {"amount": refunded - order.refunded_amount, "refunded_amount": refunded}
        whole = refunded >= order.captured_amount >= order.total_amount
        return _paid(order, EventType.REFUNDED, change, whole=whole)
    return None


def _paid(order: Order, event: EventType, change: Mapping[str, Any], *, whole: bool = True) -> Step:
    for row in PAYMENT_TRANSITIONS:
        if row.event is event and order.payment_status in row.sources:
            return Step(event, order.status, row.targets[-1 if whole else 0], change)
    raise ContradictionError(f"{event} cannot be of an order that is {order.payment_status}")


def cancel(order: Order, reason: CancelReason) -> Step:
    """The step of a process that cancels `order`. 409 `transition_not_allowed` if it may not be."""
    return replace(decide(order, Command.CANCEL), change={"cancel_reason": reason.value})


def stock_effect(before: Order, after: Order) -> dict[str, StockEffect]:
    """What the step from `before` to `after` does to the stock of each product, none where it is nothing.

    An order holds in reserve what it has not shipped, until it is cancelled; what is shipped leaves the house, what is
    returned comes back to it and can be sold again.
    """
    effects: dict[str, StockEffect] = {}
    for old, new in zip(before.items, after.items, strict=True):
        left = _away(new) - _away(old)
        released = _held(before, old) - _held(after, new)
        effect = effects.get(new.product_id, StockEffect(0, 0))
        effects[new.product_id] = StockEffect(effect.on_hand - left, effect.reserved - released)
    return {product_id: effect for product_id, effect in effects.items() if effect != StockEffect(0, 0)}


def _away(item: Item) -> int:
    return item.shipped_quantity - item.returned_quantity


def _held(order: Order, item: Item) -> int:
    return 0 if order.status == OrderStatus.CANCELLED else item.quantity - item.shipped_quantity


def starts_as(payment_method: str | None) -> tuple[OrderStatus, PaymentStatus]:
    """The first state: confirmed and on account, or pending until it is paid."""
    if payment_method is None:
        return OrderStatus.CONFIRMED, PaymentStatus.ON_ACCOUNT
    return OrderStatus.PENDING, PaymentStatus.UNPAID
