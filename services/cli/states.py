"""`python -m services.cli.states` writes docs/states.md, the life of an order as TRANSITIONS has it."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from services.common.http import AnyOf
from services.contracts.orders import OrderStatus, PaymentStatus
from services.orders import domain
from services.orders.domain import (
    ALLOWED_ACTIONS,
    PAYMENT_TRANSITIONS,
    TRANSITIONS,
    CancelReason,
    Command,
    S,
    Transition,
)
from services.orders.routes import ROUTES

FILE: Final = Path(__file__).resolve().parents[2] / "docs" / "states.md"

_INTRODUCTION: Final = """\
# The life of an order

Written by `make states` from `TRANSITIONS` and `PAYMENT_TRANSITIONS` in `services/orders/domain.py`: do not edit it
here. Each event moves one of the two: `status` or `payment_status`. What an order's status allows is its
`allowed_actions`; any other command is refused with 409 `transition_not_allowed`.

## status
"""
_PARTS: Final = """\
A command with two targets moves units line by line: the order stands at the first as long as units are left to move,
and at the second once none is.

Without a command: an order with a payment method is confirmed when its payment is authorized. Processes cancel it:
`orders-projector` with the reason `{payment_failed}` when that is declined, `orders-maintenance` with `{expired}` when
it is still `pending` at its `expires_at`.
"""
_PAYMENT: Final = """\
## payment_status

It follows the payment at its provider ([architecture.md](architecture.md)), whatever the status is: what was authorized
after an order expired is voided, and a cancelled order keeps `authorized` until that has happened.
"""
_AMOUNTS: Final = """\
`captured` is all of `total_amount`, `refunded` all of it too; less of either is the part.
"""


def rendered() -> str:
    """The document as the file has it."""
    reasons = {reason.value: reason.value for reason in CancelReason}
    return (
        "\n".join(
            (
                *(_INTRODUCTION, *_diagram(), "", *_commands(), "", _PARTS.format(**reasons), *_statuses(), ""),
                *(_PAYMENT, *_payment_diagram(), "", *_payments(), "", _AMOUNTS.rstrip()),
            )
        )
        + "\n"
    )


def _diagram() -> Iterator[str]:
    yield "```mermaid"
    yield "stateDiagram-v2"
    for method, said in ((None, "on account"), ("pm", "with a payment method")):
        yield f"    [*] --> {domain.starts_as(method)[0]}: {said}"
    for row in TRANSITIONS:
        yield from _arrows(row, OrderStatus, row.command or "once it is authorized")
    for status in _reached():
        if not ALLOWED_ACTIONS[status]:
            yield f"    {status} --> [*]"
    yield "```"


def _payment_diagram() -> Iterator[str]:
    yield "```mermaid"
    yield "stateDiagram-v2"
    for method, said in ((None, "on account"), ("pm", "with a payment method")):
        yield f"    [*] --> {domain.starts_as(method)[1]}: {said}"
    for row in PAYMENT_TRANSITIONS:
        yield from _arrows(row, PaymentStatus, row.event.removeprefix("order."))
    yield "```"


def _arrows(row: Transition[S], order: type[S], said: str) -> Iterator[str]:
    for source in _in_order(row.sources, order):
        for target in row.targets:
            yield f"    {source} --> {target}: {said}{', a part' if target == row.part else ''}"


def _commands() -> Iterator[str]:
    yield "| command | scope, one of | from | to | event |"
    yield "|---|---|---|---|---|"
    for row in TRANSITIONS:
        who = f"`{row.command}` | {_listed(_scopes(row.command))}" if row.command else "none | a process"
        yield f"| {who} | {_moves(row, OrderStatus)} |"


def _payments() -> Iterator[str]:
    yield "| from | to | event |"
    yield "|---|---|---|"
    for row in PAYMENT_TRANSITIONS:
        yield f"| {_moves(row, PaymentStatus)} |"


def _moves(row: Transition[S], order: type[S]) -> str:
    return f"{_listed(_in_order(row.sources, order))} | {_listed(row.targets)} | `{row.event}`"


def _statuses() -> Iterator[str]:
    yield "| status | `allowed_actions` |"
    yield "|---|---|"
    for status in _reached():
        yield f"| `{status}` | {_listed(ALLOWED_ACTIONS[status]) or 'none: it stays so'} |"


def _scopes(command: Command) -> tuple[str, ...]:
    """Who may give it. ValueError when there is no route for it."""
    (policy,) = (route.policy for route in ROUTES if route.path.endswith(f"/{command}"))
    return policy.scopes if isinstance(policy, AnyOf) else ()


def _reached() -> Iterator[OrderStatus]:
    """The statuses an order can come to, in the order of the enumeration."""
    targets = {target for row in TRANSITIONS for target in row.targets}
    return (s for s in OrderStatus if s in targets or any(s in row.sources for row in TRANSITIONS))


def _in_order(statuses: Iterable[S], order: type[S]) -> list[S]:
    return sorted(statuses, key=list(order).index)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    FILE.write_text(rendered(), encoding="utf-8")
