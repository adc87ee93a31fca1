"""What falls to the units of an order, and the steps that bring it to what its payment says."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.contracts.orders import Adjustment, Event, EventType, Item, Order, OrderStatus, PaymentStatus, apply
from services.contracts.payments import Payment, PaymentState
from services.orders import domain
from services.orders.domain import (
    PAYMENT_TRANSITIONS,
    TRANSITIONS,
    CancelReason,
    Command,
    ContradictionError,
    Part,
    amount_due,
    settle,
)
from tests.unit.orders.test_domain import order

LINES = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 1000)), min_size=1, max_size=4)  # quantity, unit price
ADJUSTMENTS = st.lists(st.tuples(st.none() | st.integers(1, 5), st.integers(-900, 900)), max_size=4)
TOTAL = 1000


def priced(lines: list[tuple[int, int]], adjustments: Sequence[tuple[int | None, int]] = ()) -> Order:
    """An order with lines of (quantity, unit price), adjusted as far as its total does not become negative."""
    total = sum(quantity * price for quantity, price in lines)
    taken = []
    for line_no, amount in adjustments:
        if total + amount >= 0:
            total += amount
            on = None if line_no is None else min(line_no, len(lines))
            taken.append(Adjustment("fee" if amount > 0 else "discount", on, "x", amount))
    items = tuple(
        Item(n, f"p{n}", "Thing", quantity, price, quantity * price, 0, 0)
        for n, (quantity, price) in enumerate(lines, start=1)
    )
    return replace(order("confirmed", 1), items=items, adjustments=tuple(taken), total_amount=total)


@settings(max_examples=40, deadline=None)
@given(LINES, ADJUSTMENTS, st.data())
def test_amounts_of_all_parts_add_up_to_the_total_and_none_is_negative(
    lines: list[tuple[int, int]], adjustments: list[tuple[int | None, int]], data: st.DataObject
) -> None:
    before = priced(lines, adjustments)
    for command, done in ((Command.SHIP, "shipped_quantity"), (Command.RETURN, "returned_quantity")):
        amounts = []
        while left := {item.line_no: domain.OPEN[command](item) for item in before.items if domain.OPEN[command](item)}:
            chosen = data.draw(st.lists(st.sampled_from(sorted(left)), min_size=1, unique=True))
            parts = [Part(n, data.draw(st.integers(1, left[n]))) for n in chosen]
            step = domain.decide(before, command, parts)
            amounts.append(step.change["amount"])
            units = {part.line_no: part.quantity for part in parts}
            items = tuple(replace(i, **{done: getattr(i, done) + units.get(i.line_no, 0)}) for i in before.items)
            before = replace(before, status=step.status, items=items)
        assert min(amounts) >= 0
        assert sum(amounts) == before.total_amount
        before = replace(before, status="delivered")


@given(LINES, ADJUSTMENTS, st.data())
def test_more_units_are_never_due_less_and_nothing_is_due_for_none(
    lines: list[tuple[int, int]], adjustments: list[tuple[int | None, int]], data: st.DataObject
) -> None:
    before = priced(lines, adjustments)
    some = {item.line_no: data.draw(st.integers(0, item.quantity)) for item in before.items}
    more = {item.line_no: data.draw(st.integers(some[item.line_no], item.quantity)) for item in before.items}
    assert 0 <= amount_due(before, some) <= amount_due(before, more) <= before.total_amount
    assert amount_due(before, dict.fromkeys(some, 0)) == 0
    assert amount_due(before, {item.line_no: item.quantity for item in before.items}) == before.total_amount


def test_a_line_weighs_its_adjustments_and_those_of_the_order_are_spread() -> None:
    both = priced([(2, 100), (1, 100)], [(1, 100), (None, 40)])  # weights 300 and 100, 440 in all
    assert [amount_due(both, {1: units, 2: 0}) for units in (1, 2)] == [165, 330]
    assert amount_due(both, {1: 0, 2: 1}) == 110
    free = priced([(1, 100), (1, 50)], [(2, -90)])  # what a line is discounted past its price is not the others'
    assert (amount_due(free, {1: 0, 2: 1}), amount_due(free, {1: 1, 2: 0})) == (0, 60)
    given_away = priced([(1, 100), (3, 100)], [(1, -100), (2, -300), (None, 8)])  # by their prices, as none weighs
    assert [amount_due(given_away, {1: one, 2: three}) for one, three in ((1, 0), (0, 1), (0, 3))] == [2, 2, 6]


def test_a_large_order_of_odd_quantities_is_reckoned_exactly() -> None:
    chance = random.Random(1)
    lines = [(chance.randint(900_000, 1_000_000), 999_983) for _ in range(2_000)]
    large = priced(lines, [(n, 7) for n in range(1, 6)])
    parts = [Part(n, quantity // 2) for n, (quantity, _) in enumerate(lines, start=1)]
    step = domain.decide(large, Command.SHIP, parts)
    rest = domain.decide(
        replace(
            large,
            status=step.status,
            items=tuple(replace(i, shipped_quantity=i.quantity // 2) for i in large.items),
        ),
        Command.SHIP,
    )
    assert step.change["amount"] + rest.change["amount"] == large.total_amount


def payment(
    status: PaymentState | str, authorized: int = 0, captured: int = 0, refunded: int = 0, **more: Any
) -> Payment:
    return Payment(
        **{
            "order_id": "o",
            "user_id": "u",
            "status": status,
            "provider": "sandbox",
            "reference": "r",
            "payment_method": "pm_x",
            "currency": "USD",
            "amount": TOTAL,
            "authorized_amount": authorized,
            "captured_amount": captured,
            "refunded_amount": refunded,
            "failure": "card_declined" if status == PaymentState.FAILED else None,
            "version": 1,
            "updated_at": "",
            **more,
        }
    )


def pending(**more: Any) -> Order:
    """An order that waits for its payment."""
    return replace(
        order("pending", 1), **{"payment_status": "unpaid", "payment_method": "pm_x", "total_amount": TOTAL, **more}
    )


def settled(before: Order, *payments: Payment) -> tuple[Order, list[tuple[str, dict[str, Any]]]]:
    """The order after what these payments say, one after another; and the events that took it there."""
    told = []
    for each in payments:
        for _ in range(5):
            if (step := settle(before, each)) is None:
                break
            assert_legal(before, step)
            told.append((step.event.value, dict(step.change)))
            before = apply(before, happened(before, step))
        else:
            raise AssertionError("it does not come to an end")
    return before, told


def happened(before: Order, step: domain.Step) -> Event:
    after = {
        "status": step.status,
        "payment_status": step.payment_status,
        "currency": before.currency,
        "total_amount": before.total_amount,
        "user_id": before.user_id,
    }
    return Event(
        "e", before.order_id, before.version + 1, step.event, "t", "p", {"change": step.change, "after": after}
    )


def assert_legal(before: Order, step: domain.Step) -> None:
    """One of the two has moved by its table, and the other stands."""
    if step.status == before.status:
        assert any(
            row.event is step.event and before.payment_status in row.sources and step.payment_status in row.targets
            for row in PAYMENT_TRANSITIONS
        )
    else:
        assert step.payment_status == before.payment_status
        assert any(
            row.event is step.event and before.status in row.sources and step.status in row.targets
            for row in TRANSITIONS
        )


AUTHORIZED, FAILED, VOIDED = PaymentState.AUTHORIZED, PaymentState.FAILED, PaymentState.VOIDED
CANCELLED: dict[str, Any] = {"status": "cancelled", "cancel_reason": "expired"}
STORIES: list[tuple[str, dict[str, Any], list[Payment], list[tuple[str, dict[str, Any]]], tuple[str, str]]] = [
    (
        "authorized",
        {},
        [payment(AUTHORIZED, TOTAL)],
        [("order.payment_authorized", {"amount": TOTAL}), ("order.confirmed", {})],
        ("confirmed", "authorized"),
    ),
    (
        "declined",
        {},
        [payment(FAILED)],
        [
            ("order.payment_failed", {"reason": "card_declined"}),
            ("order.cancelled", {"cancel_reason": "payment_failed"}),
        ],
        ("cancelled", "failed"),
    ),
    (
        "authorized after it had expired, then voided",
        CANCELLED,
        [payment(AUTHORIZED, TOTAL), payment(VOIDED, TOTAL)],
        [("order.payment_authorized", {"amount": TOTAL}), ("order.payment_voided", {})],
        ("cancelled", "voided"),
    ),
    (
        "the same, and only the last of it is heard",
        CANCELLED,
        [payment(VOIDED, TOTAL)],
        [("order.payment_authorized", {"amount": TOTAL}), ("order.payment_voided", {})],
        ("cancelled", "voided"),
    ),
    ("voided with nothing authorized", CANCELLED, [payment(VOIDED)], [], ("cancelled", "unpaid")),
    ("asked for", {}, [payment(PaymentState.REQUESTED)], [], ("pending", "unpaid")),
    (
        "declined after it had expired",
        CANCELLED,
        [payment(FAILED)],
        [("order.payment_failed", {"reason": "card_declined"})],
        ("cancelled", "failed"),
    ),
    (
        "authorized and voided by the provider before we heard of it",
        {},
        [payment(VOIDED, TOTAL)],
        [("order.payment_authorized", {"amount": TOTAL}), ("order.payment_voided", {})],
        ("pending", "voided"),
    ),
    (
        "captured and refunded in parts, and each comes twice",
        {"status": "delivered", "payment_status": "authorized"},
        [payment(AUTHORIZED, TOTAL, *amounts) for amounts in ((300, 0), (300, 0), (TOTAL, 0), (TOTAL, 1), (TOTAL, 1))],
        [
            ("order.payment_captured", {"amount": 300, "captured_amount": 300}),
            ("order.payment_captured", {"amount": 700, "captured_amount": TOTAL}),
            ("order.refunded", {"amount": 1, "refunded_amount": 1}),
        ],
        ("delivered", "partially_refunded"),
    ),
    (
        "only the end of it all is heard",
        {},
        [payment(AUTHORIZED, TOTAL, TOTAL, TOTAL)],
        [
            ("order.payment_authorized", {"amount": TOTAL}),
            ("order.confirmed", {}),
            ("order.payment_captured", {"amount": TOTAL, "captured_amount": TOTAL}),
            ("order.refunded", {"amount": TOTAL, "refunded_amount": TOTAL}),
        ],
        ("confirmed", "refunded"),
    ),
    (
        "all that was captured is given back, but not all was captured",
        {"status": "delivered", "payment_status": "partially_captured", "captured_amount": 400},
        [payment(AUTHORIZED, TOTAL, *amounts) for amounts in ((400, 100), (400, 400), (TOTAL, 400))],
        [
            ("order.refunded", {"amount": 100, "refunded_amount": 100}),
            ("order.refunded", {"amount": 300, "refunded_amount": 400}),
            ("order.payment_captured", {"amount": 600, "captured_amount": TOTAL}),
        ],
        ("delivered", "partially_refunded"),
    ),
    (
        "nothing to pay",
        {"total_amount": 0},
        [payment(AUTHORIZED, amount=0)],
        [("order.payment_authorized", {"amount": 0}), ("order.confirmed", {})],
        ("confirmed", "authorized"),
    ),
]


@pytest.mark.parametrize(
    ("start", "payments", "events", "end"), [story[1:] for story in STORIES], ids=[s[0] for s in STORIES]
)
def test_an_order_comes_to_what_its_payment_says(
    start: dict[str, Any], payments: list[Payment], events: list[tuple[str, dict[str, Any]]], end: tuple[str, str]
) -> None:
    after, told = settled(pending(**start), *payments)
    assert told == events
    assert (after.status, after.payment_status) == end
    for each in payments:  # an older state of it, come again
        assert settled(after, each) == (after, [])


def test_a_declined_order_says_why_and_gives_its_stock_back() -> None:
    after, _ = settled(pending(), payment(FAILED, failure=None))
    assert (after.cancel_reason, after.status) == (CancelReason.PAYMENT_FAILED, "cancelled")
    assert domain.stock_effect(pending(), after) == {"A": domain.StockEffect(0, -1)}
    step = settle(pending(), payment(FAILED, failure=None))
    assert step is not None
    assert step.change["reason"] == "declined", "the provider did not say"


@pytest.mark.parametrize(
    ("start", "said"),
    [
        ({}, payment(AUTHORIZED, TOTAL, amount=TOTAL + 1)),
        ({}, payment(AUTHORIZED, TOTAL, currency="EUR")),
        ({"payment_status": "on_account", "status": "confirmed"}, payment(AUTHORIZED, TOTAL)),
        ({"payment_status": "failed", **CANCELLED}, payment(AUTHORIZED, TOTAL)),
        ({"payment_status": "voided", **CANCELLED}, payment(AUTHORIZED, TOTAL, 1)),
    ],
)
def test_what_cannot_be_of_this_order_is_refused(start: dict[str, Any], said: Payment) -> None:
    with pytest.raises(ContradictionError):
        settle(pending(**start), said)


@st.composite
def standings(draw: st.DrawFn) -> list[Payment]:
    """A payment as a provider may have it over time: its amounts only grow, its state goes forward."""
    if draw(st.integers(0, 9)) == 0:
        return [payment(FAILED)]
    if draw(st.integers(0, 4)) == 0:
        return [payment(VOIDED)]
    found, captured, refunded = [payment(AUTHORIZED, TOTAL)], 0, 0
    for _ in range(draw(st.integers(0, 5))):
        captured = draw(st.integers(captured, TOTAL))
        refunded = draw(st.integers(refunded, captured))
        found.append(payment(AUTHORIZED, TOTAL, captured, refunded))
    return [*found, payment(VOIDED, TOTAL)] if captured == 0 and draw(st.booleans()) else found


@given(standings(), st.data())
def test_whichever_states_are_heard_and_whatever_is_done_meanwhile_the_order_stays_legal(
    told: list[Payment], data: st.DataObject
) -> None:
    before, heard = pending(), data.draw(st.lists(st.sampled_from(range(len(told))), max_size=8))
    newest = -1
    for number in heard:
        before, _ = settled(before, told[number])
        newest = max(newest, number)
        if before.status in (OrderStatus.PENDING, OrderStatus.CONFIRMED) and data.draw(st.booleans()):
            before = apply(before, happened(before, domain.cancel(before, CancelReason.CUSTOMER)))
        assert_consistent(before)
        if newest >= 0:
            assert (before.captured_amount, before.refunded_amount) == (
                told[newest].captured_amount,
                told[newest].refunded_amount,
            ), "it stands where the newest said, in whatever order they came"


def assert_consistent(found: Order) -> None:
    """What `orders verify` holds of every row."""
    captured, refunded, paid = found.captured_amount, found.refunded_amount, found.payment_status
    assert 0 <= refunded <= captured <= found.total_amount
    whole = captured == found.total_amount
    if refunded:
        assert paid == (PaymentStatus.REFUNDED if whole and refunded == captured else PaymentStatus.PARTIALLY_REFUNDED)
    elif captured:
        assert paid == (PaymentStatus.CAPTURED if whole else PaymentStatus.PARTIALLY_CAPTURED)
    if found.status == OrderStatus.CONFIRMED:
        assert paid not in (PaymentStatus.UNPAID, PaymentStatus.FAILED)
    if found.status == OrderStatus.PENDING:
        assert paid in (PaymentStatus.UNPAID, PaymentStatus.VOIDED)
    assert found.status != OrderStatus.CANCELLED or found.cancel_reason is not None
    assert found.cancel_reason != CancelReason.PAYMENT_FAILED or paid == PaymentStatus.FAILED


def test_an_event_moves_either_status_or_payment_status() -> None:
    moving = {row.event for row in TRANSITIONS}, {row.event for row in PAYMENT_TRANSITIONS}
    assert not moving[0] & moving[1]
    assert moving[0] | moving[1] | {EventType.PLACED} == set(EventType)
