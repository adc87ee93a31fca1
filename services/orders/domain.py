"""What an order may do: pure decisions, no clock, no I/O. Docs, CHECKs and `allowed_actions` come from here."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from services.common.errors import DomainError
from services.contracts.orders import EventType, Item, Order, OrderStatus, PaymentStatus


class Command(StrEnum):
    """What a caller may ask of an order; also the last part of the command's path and its entry in allowed_actions."""

    CANCEL = "cancel"
    SHIP = "ship"
    DELIVER = "deliver"


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
class Transition:
    """One row of the state machine: `command` takes an order from any of `sources` to `target` and leaves `event`."""

    command: Command
    sources: frozenset[OrderStatus]
    target: OrderStatus
    event: EventType


TRANSITIONS: Final[tuple[Transition, ...]] = (
    Transition(
        Command.CANCEL,
        frozenset({OrderStatus.PENDING, OrderStatus.CONFIRMED}),
        OrderStatus.CANCELLED,
        EventType.CANCELLED,
    ),
    Transition(
        Command.SHIP,
        frozenset({OrderStatus.CONFIRMED}),
        OrderStatus.SHIPPED,
        EventType.SHIPPED,
    ),
    Transition(
        Command.DELIVER,
        frozenset({OrderStatus.SHIPPED}),
        OrderStatus.DELIVERED,
        EventType.DELIVERED,
    ),
)

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


def stock_effect(before: Order, after: Order) -> dict[str, StockEffect]:
    """What the step from `before` to `after` does to the stock of each product, none where it is nothing.

    An order holds in reserve what it has not shipped, until it is cancelled; what is shipped leaves the house.
    """
    effects: dict[str, StockEffect] = {}
    for old, new in zip(before.items, after.items, strict=True):
        shipped = new.shipped_quantity - old.shipped_quantity
        released = _held(before, old) - _held(after, new)
        effect = effects.get(new.product_id, StockEffect(0, 0))
        effects[new.product_id] = StockEffect(effect.on_hand - shipped, effect.reserved - released)
    return {product_id: effect for product_id, effect in effects.items() if effect != StockEffect(0, 0)}


def _held(order: Order, item: Item) -> int:
    return 0 if order.status == OrderStatus.CANCELLED else item.quantity - item.shipped_quantity


def starts_as(payment_method: str | None) -> tuple[OrderStatus, PaymentStatus]:
    """The first state: confirmed and on account, or pending until it is paid."""
    if payment_method is None:
        return OrderStatus.CONFIRMED, PaymentStatus.ON_ACCOUNT
    return OrderStatus.PENDING, PaymentStatus.UNPAID
