"""`python -m services.cli.states` writes docs/states.md, the life of an order as TRANSITIONS has it."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from services.common.http import AnyOf
from services.contracts.orders import OrderStatus
from services.orders import domain
from services.orders.domain import ALLOWED_ACTIONS, TRANSITIONS, Command
from services.orders.routes import ROUTES

FILE: Final = Path(__file__).resolve().parents[2] / "docs" / "states.md"

_INTRODUCTION: Final = """\
# The life of an order

Written by `make states` from `TRANSITIONS` in `services/orders/domain.py`: do not edit it here. What an order's status
allows is its `allowed_actions`; any other command is refused with 409 `transition_not_allowed`.
"""
_PARTS: Final = """\
A command with two targets moves units line by line: the order stands at the first as long as units are left to move,
and at the second once none is.
"""


def rendered() -> str:
    """The document as the file has it."""
    return "\n".join((_INTRODUCTION, *_diagram(), "", *_commands(), "", _PARTS, *_statuses())) + "\n"


def _diagram() -> Iterator[str]:
    yield "```mermaid"
    yield "stateDiagram-v2"
    for method, said in ((None, "on account"), ("pm", "with a payment method")):
        yield f"    [*] --> {domain.starts_as(method)[0]}: {said}"
    for row in TRANSITIONS:
        for source in _in_order(row.sources):
            for target in row.targets:
                yield f"    {source} --> {target}: {row.command}{', a part' if target == row.part else ''}"
    for status in _reached():
        if not ALLOWED_ACTIONS[status]:
            yield f"    {status} --> [*]"
    yield "```"


def _commands() -> Iterator[str]:
    yield "| command | scope, one of | from | to | event |"
    yield "|---|---|---|---|---|"
    for row in TRANSITIONS:
        yield (
            f"| `{row.command}` | {_listed(_scopes(row.command))} | {_listed(_in_order(row.sources))}"
            f" | {_listed(row.targets)} | `{row.event}` |"
        )


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


def _in_order(statuses: Iterable[OrderStatus]) -> list[OrderStatus]:
    return sorted(statuses, key=list(OrderStatus).index)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    FILE.write_text(rendered(), encoding="utf-8")
