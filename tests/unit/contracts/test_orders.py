"""The fold: events 1..n of an order, and nothing else, give the order."""

import copy
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.orders import Adjustment, Event, EventType, Order, apply, fold, members_of, order_of, tell

LINES = st.lists(st.integers(1, 5), min_size=1, max_size=4)
STEPS = st.lists(
    st.sampled_from(["order.cancelled", "order.delivered", "order.shipped", "order.returned", "order.painted"]),
    max_size=5,
)
AFTER = {"status": "confirmed", "payment_status": "on_account", "currency": "USD", "total_amount": 7, "user_id": "u"}


def placed(*quantities: int, **more: Any) -> Event:
    """Version 1 of an order with lines of those quantities."""
    items = [
        {
            "line_no": n,
            "product_id": f"p{n}",
            "name": "Thing",
            "quantity": quantity,
            "unit_price": 1,
            "line_total": quantity,
            "shipped_quantity": 0,
            "returned_quantity": 0,
            "later_member": "older folds ignore it",
        }
        for n, quantity in enumerate(quantities, start=1)
    ]
    change = {
        **dict.fromkeys(("expires_at", "payment_method", "shipping_address_id", "tracking", "cancel_reason")),
        **AFTER,
        **{"order_id": "o", "captured_amount": 0, "refunded_amount": 0, "item_count": len(items), "version": 1},
        **{"created_at": "t1", "updated_at": "t1", "items": items, "adjustments": [], "agreed_prices": False, **more},
    }
    return event(1, EventType.PLACED, change)


def event(version: int, kind: str, change: dict[str, Any], **after: Any) -> Event:
    return Event(
        f"e{version}", "o", version, kind, f"t{version}", "user:u", {"change": change, "after": {**AFTER, **after}}
    )


def story(quantities: list[int], steps: list[str]) -> list[Event]:
    """Events of an order; each shipment and return is one unit of line 1."""
    changes: dict[str, dict[str, Any]] = {
        "order.shipped": {"tracking": "T", "items": [{"line_no": 1, "quantity": 1}]},
        "order.returned": {"items": [{"line_no": 1, "quantity": 1}]},
        "order.cancelled": {"cancel_reason": "staff"},
    }
    return [
        placed(*quantities),
        *(event(n, step, changes.get(step, {"x": 1}), status=f"s{n}") for n, step in enumerate(steps, start=2)),
    ]


@given(LINES, STEPS, st.data())
def test_folding_in_two_parts_is_folding_in_one_and_changes_no_event(
    quantities: list[int], steps: list[str], data: st.DataObject
) -> None:
    events = story(quantities, steps)
    untouched = copy.deepcopy(events)
    cut = data.draw(st.integers(1, len(events)))
    order = fold(events[:cut])
    for each in events[cut:]:
        order = apply(order, each)
    assert order == fold(events)
    assert events == untouched


@given(LINES, STEPS)
def test_version_time_and_header_are_those_of_the_last_event(quantities: list[int], steps: list[str]) -> None:
    events = story(quantities, steps)
    order = fold(events)
    assert (order.version, order.updated_at, order.created_at) == (len(events), f"t{len(events)}", "t1")
    assert order.status == events[-1].data["after"]["status"]
    assert order.items[0].shipped_quantity == steps.count("order.shipped")
    assert order.items[0].returned_quantity == steps.count("order.returned")
    assert all(item.shipped_quantity == item.returned_quantity == 0 for item in order.items[1:])
    assert order.cancel_reason == ("staff" if "order.cancelled" in steps else None)
    assert order.tracking == ("T" if "order.shipped" in steps else None)


@given(LINES, STEPS)
def test_what_is_told_to_be_shown_is_the_order(quantities: list[int], steps: list[str]) -> None:
    events = story(quantities, steps)
    untouched = copy.deepcopy(events)
    told = tell((event.version, event.type, event.occurred_at, event.data) for event in events)
    assert order_of(told) == fold(events) == order_of(members_of(fold(events)))
    assert events == untouched


@given(LINES, STEPS, st.data())
def test_a_stream_with_a_gap_a_double_or_another_start_is_refused(
    quantities: list[int], steps: list[str], data: st.DataObject
) -> None:
    events = story(quantities, steps)
    at = data.draw(st.integers(0, len(events) - 1))
    doubled = [*events[: at + 1], *events[at:]]
    with pytest.raises(ValueError, match="expected"):
        fold(doubled)
    missing = [*events[:at], *events[at + 1 :]]
    if at == len(events) - 1:
        missing.append(replace(events[-1], version=len(events) + 1))
    with pytest.raises(ValueError, match="expected"):
        fold(missing)


def test_an_order_begins_with_its_placing() -> None:
    with pytest.raises(ValueError, match="begins with"):
        fold([event(1, EventType.SHIPPED, {})])
    with pytest.raises(ValueError, match="at least one"):
        fold([])


def test_the_last_tracking_that_was_given_stays() -> None:
    order = fold([placed(9)])
    for version, (tracking, shown) in enumerate(((None, None), ("A", "A"), (None, "A"), ("B", "B")), start=2):
        parts = [{"line_no": 1, "quantity": 1}]
        order = apply(order, event(version, EventType.SHIPPED, {"tracking": tracking, "items": parts}))
        assert order.tracking == shown
    assert order.items[0].shipped_quantity == 4


def test_amounts_are_as_the_last_event_of_their_kind_has_them_in_all() -> None:
    order = fold([placed(9)])
    steps = [
        (EventType.PAYMENT_AUTHORIZED, {"amount": 9}, (0, 0)),
        (EventType.CONFIRMED, {}, (0, 0)),
        (EventType.PAYMENT_CAPTURED, {"amount": 4, "captured_amount": 4}, (4, 0)),
        (EventType.PAYMENT_CAPTURED, {"amount": 5, "captured_amount": 9}, (9, 0)),
        (EventType.REFUNDED, {"amount": 2, "refunded_amount": 2}, (9, 2)),
        (EventType.REFUNDED, {"amount": 1, "refunded_amount": 3}, (9, 3)),
    ]
    for version, (type_, change, amounts) in enumerate(steps, start=2):
        order = apply(order, event(version, type_, change, payment_status=f"p{version}"))
        assert (order.captured_amount, order.refunded_amount) == amounts
        assert order.payment_status == f"p{version}"


def test_an_unknown_type_moves_version_time_and_header_only() -> None:
    before = fold([placed(2)])
    after = apply(before, event(2, "order.gift_wrapped", {"ribbon": "red"}, status="pending", total_amount=9))
    assert after == replace(before, version=2, updated_at="t2", status="pending", total_amount=9)


def test_the_first_event_is_the_whole_order_and_members_it_does_not_know_are_no_harm() -> None:
    tax: dict[str, Any] = {"kind": "tax", "line_no": 2, "label": "VAT", "amount": 1}
    order = fold([placed(2, 3, adjustments=[{**tax, "rate": "x"}], payment_method="pm_1")])
    assert [(item.line_no, item.quantity) for item in order.items] == [(1, 2), (2, 3)]
    assert (order.adjustments, order.payment_method, order.item_count) == ((Adjustment(**tax),), "pm_1", 2)
    assert isinstance(order, Order)
    assert not hasattr(order, "agreed_prices")
