from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import DomainError
from services.contracts.orders import Item, Order, OrderStatus, PaymentStatus
from services.orders import domain
from services.orders.domain import ALLOWED_ACTIONS, OPEN, TRANSITIONS, CancelReason, Command, StockEffect

STATUSES = st.sampled_from(OrderStatus)
REACHED: dict[str, tuple[str, ...]] = {
    "cancel": ("cancelled",),
    "ship": ("partially_shipped", "shipped"),
    "deliver": ("delivered",),
    "return": ("partially_returned", "returned"),
}


def order(status: str, *quantities: int, products: str = "AB") -> Order:
    """An order with lines of those quantities, its products in turn."""
    items = tuple(
        Item(n, products[(n - 1) % len(products)], "Thing", quantity, 1, quantity, 0, 0)
        for n, quantity in enumerate(quantities, start=1)
    )
    return Order(
        order_id="o",
        user_id="u",
        status=status,
        payment_status="on_account",
        currency="USD",
        total_amount=sum(quantities),
        captured_amount=0,
        refunded_amount=0,
        item_count=len(items),
        version=1,
        created_at="",
        updated_at="",
        items=items,
        adjustments=(),
        expires_at=None,
        payment_method=None,
        shipping_address_id=None,
        tracking=None,
        cancel_reason=None,
    )


def shipped(before: Order) -> Order:
    """All that is open has left the house."""
    return replace(before, status="shipped", items=tuple(replace(i, shipped_quantity=i.quantity) for i in before.items))


@pytest.mark.parametrize("status", OrderStatus)
@pytest.mark.parametrize("command", Command)
def test_what_is_allowed_is_what_there_is_a_transition_for(status: OrderStatus, command: Command) -> None:
    if command in ALLOWED_ACTIONS[status]:
        row = domain.transition(order(status, 1), command)
        assert (row.command, row.targets) == (command, REACHED[command])
        return
    with pytest.raises(DomainError) as refusal:
        domain.transition(order(status, 1), command)
    assert (refusal.value.code, refusal.value.status) == ("transition_not_allowed", 409)
    assert refusal.value.extra == {"status_now": status, "allowed_actions": list(ALLOWED_ACTIONS[status])}


def test_the_actions_of_every_status() -> None:
    assert {status: actions for status, actions in ALLOWED_ACTIONS.items() if actions} == {
        "pending": ("cancel",),
        "confirmed": ("cancel", "ship"),
        "partially_shipped": ("ship",),
        "shipped": ("deliver",),
        "delivered": ("return",),
        "partially_returned": ("return",),
    }


def test_no_command_has_two_ways_from_one_status_and_none_leads_back() -> None:
    ways = Counter((row.command, source) for row in TRANSITIONS for source in row.sources)
    assert set(ways.values()) == {1}
    reached: set[str] = {"cancelled", "returned"}
    while more := {s for row in TRANSITIONS if row.target in reached for s in row.sources} - reached:
        reached |= more
    assert not any(row.target in row.sources for row in TRANSITIONS)
    assert reached == set(OrderStatus)  # from everywhere there is a way to an end


def test_a_command_has_a_status_for_a_part_when_it_moves_units_and_may_be_given_again() -> None:
    assert {row.command for row in TRANSITIONS if row.part is not None} == OPEN.keys()
    assert all(row.part in row.sources for row in TRANSITIONS if row.part is not None)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_what_is_reserved_is_released_by_cancel_and_taken_by_ship_summed_by_product(quantities: list[int]) -> None:
    before = order("confirmed", *quantities)
    demand = Counter[str]()
    for item in before.items:
        demand[item.product_id] += item.quantity
    cancelled = domain.stock_effect(before, replace(before, status="cancelled"))
    assert cancelled == {product: StockEffect(0, -units) for product, units in demand.items()}
    taken = domain.stock_effect(before, shipped(before))
    assert taken == {product: StockEffect(-units, -units) for product, units in demand.items()}
    delivered = replace(shipped(before), status="delivered")
    assert domain.stock_effect(shipped(before), delivered) == {}
    back = replace(delivered, items=tuple(replace(i, returned_quantity=i.quantity) for i in delivered.items))
    assert domain.stock_effect(delivered, back) == {product: StockEffect(units, 0) for product, units in demand.items()}


@given(st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=6))
def test_effects_along_the_way_add_up_to_those_of_one_step(lines: list[tuple[int, int]]) -> None:
    start = order("confirmed", *(quantity for quantity, _ in lines))
    some = tuple(
        replace(i, shipped_quantity=min(i.quantity, part)) for i, (_, part) in zip(start.items, lines, strict=True)
    )
    middle, end = replace(start, status="partially_shipped", items=some), shipped(start)
    total = Counter[tuple[str, str]]()
    for effects in (domain.stock_effect(start, middle), domain.stock_effect(middle, end)):
        for product, effect in effects.items():
            total[product, "on_hand"] += effect.on_hand
            total[product, "reserved"] += effect.reserved
    at_once = domain.stock_effect(start, end)
    assert total == {(p, n): getattr(e, n) for p, e in at_once.items() for n in ("on_hand", "reserved")}


def test_an_order_starts_on_account_or_waits_for_its_payment() -> None:
    assert domain.starts_as(None) == (OrderStatus.CONFIRMED, PaymentStatus.ON_ACCOUNT)
    assert domain.starts_as("pm_1") == (OrderStatus.PENDING, PaymentStatus.UNPAID)


def test_reasons_to_cancel_are_those_of_the_contract() -> None:
    reasons = {"customer", "out_of_stock", "payment_failed", "expired", "staff"}
    assert {reason.value for reason in CancelReason} == reasons
