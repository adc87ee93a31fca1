"""What an order may do: pure decisions, no clock, no I/O. Docs, CHECKs and `allowed_actions` come from here."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from services.common.errors import DomainError, invalid
from services.contracts.orders import EventType, Item, Order, OrderStatus, PaymentStatus


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
    """What a command makes of an order: the event it leaves, the status after it, and what moves of which line."""

    event: EventType
    status: OrderStatus
    parts: tuple[Part, ...] = ()

    @property
    def change(self) -> dict[str, list[dict[str, int]]]:
        """What the event says of it: `items`, by line number; nothing when the command moves none."""
        if not self.parts:
            return {}
        return {"items": [{"line_no": part.line_no, "quantity": part.quantity} for part in self.parts]}


@dataclass(frozen=True, slots=True)
class Transition:
    """One row of the state machine: `command` takes an order from any of `sources` to `target` and leaves `event`.

    A command that moves units line by line takes it to `part` instead, as long as some are left to move.
    """

    command: Command
    sources: frozenset[OrderStatus]
    target: OrderStatus
    event: EventType
    part: OrderStatus | None = None

    @property
    def targets(self) -> tuple[OrderStatus, ...]:
        """Where it may lead, the part before the whole."""
        return (self.target,) if self.part is None else (self.part, self.target)


TRANSITIONS: Final[tuple[Transition, ...]] = (
    Transition(
        Command.CANCEL,
        frozenset({OrderStatus.PENDING, OrderStatus.CONFIRMED}),
        OrderStatus.CANCELLED,
        EventType.CANCELLED,
    ),
    Transition(
        Command.SHIP,
        frozenset({OrderStatus.CONFIRMED, OrderStatus.PARTIALLY_SHIPPED}),
        OrderStatus.SHIPPED,
        EventType.SHIPPED,
        part=OrderStatus.PARTIALLY_SHIPPED,
    ),
    Transition(
        Command.DELIVER,
        frozenset({OrderStatus.SHIPPED}),
        OrderStatus.DELIVERED,
        EventType.DELIVERED,
    ),
    Transition(
        Command.RETURN,
        frozenset({OrderStatus.DELIVERED, OrderStatus.PARTIALLY_RETURNED}),
        OrderStatus.RETURNED,
        EventType.RETURNED,
        part=OrderStatus.PARTIALLY_RETURNED,
    ),
)

# Of the commands that move units: how many of a line are open to them.
OPEN: Final[Mapping[Command, Callable[[Item], int]]] = {
    Command.SHIP: lambda item: item.quantity - item.shipped_quantity,
    Command.RETURN: lambda item: item.shipped_quantity - item.returned_quantity,
}
FAULTS_MAX: Final = 20  # told of one request, as of one body

# status -> the commands it allows, in the order they are listed to clients
ALLOWED_ACTIONS: Final[dict[str, tuple[str, ...]]] = {
    status: tuple(sorted(t.command.value for t in TRANSITIONS if status in t.sources)) for status in OrderStatus
}


def transition(order: Order, command: Command) -> Transition:
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
        return Step(row.event, row.target)
    units = {item.line_no: OPEN[command](item) for item in order.items}
    if parts is None:
        moved = [Part(line_no, quantity) for line_no, quantity in units.items() if quantity]
    else:
        _check_open(command, units, parts)
        moved = sorted(parts, key=lambda part: part.line_no)
    whole = sum(part.quantity for part in moved) == sum(units.values())
    return Step(row.event, row.target if whole else row.part, tuple(moved))


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
