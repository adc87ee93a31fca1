"""What events add to the rollups, held against the folds of the same orders."""

from collections import Counter
from datetime import date, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from services.common import ids
from services.contracts.orders import Event, EventType, Order, fold
from services.orders import sales
from services.orders.sales import SALES, Deltas

DAY = date(2026, 11, 1)
PRODUCTS = ("01KAPKY98W7W2SY8YD52EAN5AE", "01KAPKY98W3V5T2J8QK3F0S1XM")
ENDS = {
    "placed": [],
    "shipped": [(EventType.SHIPPED, "shipped")],
    "cancelled": [(EventType.CONFIRMED, "confirmed"), (EventType.CANCELLED, "cancelled")],
    "refunded": [(EventType.SHIPPED, "shipped"), (EventType.DELIVERED, "delivered"), (EventType.REFUNDED, "delivered")],
}
lines = st.lists(
    st.tuples(st.sampled_from(PRODUCTS), st.integers(1, 9), st.integers(1, 10**12)), min_size=1, max_size=4
)
adjustments = st.lists(st.tuples(st.sampled_from(["tax", "fee", "shipping"]), st.integers(0, 10**6)), max_size=3)
stories = st.tuples(lines, adjustments, st.sampled_from(list(ENDS)), st.integers(0, 3), st.sampled_from(["USD", "JPY"]))


def told(story: tuple[Any, ...]) -> list[tuple[Event, date]]:
    """The events of an order, and their days."""
    wanted, charged, end, day, currency = story
    items = [
        {
            "line_no": number,
            "product_id": product,
            "name": "",
            "quantity": quantity,
            "unit_price": price,
            "line_total": quantity * price,
            "shipped_quantity": 0,
            "returned_quantity": 0,
        }
        for number, (product, quantity, price) in enumerate(wanted, 1)
    ]
    added = [{"kind": kind, "line_no": None, "label": "", "amount": amount} for kind, amount in charged]
    added.append({"kind": "discount", "line_no": None, "label": "", "amount": -1})
    total = sum(item["line_total"] for item in items) + sum(one["amount"] for one in added)
    after = {"currency": currency, "total_amount": total, "user_id": "u", "payment_status": "on_account"}
    placed = {
        **after,
        "order_id": "o",
        "status": "pending",
        "captured_amount": 0,
        "refunded_amount": 0,
        "version": 1,
        "item_count": len(items),
        "created_at": "",
        "updated_at": "",
        "items": items,
        "adjustments": added,
        **dict.fromkeys(("expires_at", "payment_method", "shipping_address_id", "tracking", "cancel_reason")),
    }
    changes: list[tuple[str, str, Any]] = [(EventType.PLACED, "pending", placed)]
    for kind, status in ENDS[end]:
        change: dict[str, Any] = {}
        if kind is EventType.SHIPPED:
            change = {"tracking": None, "items": [{"line_no": 1, "quantity": 1}]}
        elif kind is EventType.REFUNDED:
            change = {"amount": total // 2, "refunded_amount": total // 2}
        elif kind is EventType.CANCELLED:
            change = {"cancel_reason": "staff"}
        changes.append((kind, status, change))
    return [
        (
            Event("", "o", number, kind, "", "", {"change": change, "after": {**after, "status": status}}),
            DAY + timedelta(days=day + number),
        )
        for number, (kind, status, change) in enumerate(changes, 1)
    ]


@given(st.lists(stories, max_size=6), st.randoms(use_true_random=False))
def test_the_sums_of_events_in_any_order_are_the_sums_of_the_orders(found: list[Any], chance: Any) -> None:
    deltas, orders, steps = Deltas(), [], []
    for story in found:
        events = told(story)
        placed_on = events[0][1]
        orders.append((placed_on, fold(event for event, _ in events)))
        before = [None, *(event.data["after"]["status"] for event, _ in events)]
        steps += [(event, on, placed_on, status) for (event, on), status in zip(events, before, strict=False)]
    chance.shuffle(steps)
    for event, on, placed_on, status in steps:
        sales.add(deltas, event.type, event.data, on=on, placed_on=placed_on, status_before=status)

    def summed(currency: str) -> dict[str, int]:
        rows = [amounts for (_, of), amounts in deltas.sales.items() if of == currency]
        return dict(zip(SALES, map(sum, zip(*rows, strict=True)), strict=True)) if rows else dict.fromkeys(SALES, 0)

    for currency in ("USD", "JPY"):
        of: list[Order] = [order for _, order in orders if order.currency == currency]
        cancelled = [order for order in of if order.status == "cancelled"]
        assert summed(currency) == {
            "orders": len(of),
            "units": sum(item.quantity for order in of for item in order.items),
            "gross_amount": sum(item.line_total for order in of for item in order.items),
            "discount_amount": -len(of),
            "charge_amount": sum(one.amount for order in of for one in order.adjustments) + len(of),
            "cancelled_orders": len(cancelled),
            "cancelled_amount": sum(order.total_amount for order in cancelled),
            "refunded_amount": sum(order.refunded_amount for order in of),
        }
    products: Counter[Any] = Counter()
    for placed_on, order in orders:
        for item in order.items:
            products[placed_on, order.currency, ids.from_text(item.product_id)] += item.line_total
    assert {key: amounts[1] for key, amounts in deltas.products.items()} == products
    statuses = Counter((placed_on, order.currency, order.status) for placed_on, order in orders)
    assert {key: amounts[0] for key, amounts in deltas.statuses.items() if any(amounts)} == statuses


def test_an_amount_belongs_to_the_day_of_its_event_and_an_order_to_the_day_it_was_placed() -> None:
    events = told(([(PRODUCTS[0], 2, 500)], [], "refunded", 0, "USD"))
    deltas, status = Deltas(), None
    for event, on in events:
        sales.add(deltas, event.type, event.data, on=on, placed_on=DAY, status_before=status)
        status = event.data["after"]["status"]
    (placed, refunded) = (events[0][1], events[-1][1])
    assert deltas.sales == {(placed, "USD"): [1, 2, 1000, -1, 0, 0, 0, 0], (refunded, "USD"): [0] * 7 + [499]}
    assert {key: amounts for key, amounts in deltas.statuses.items() if any(amounts)} == {
        (DAY, "USD", "delivered"): [1, 999]
    }


def test_a_type_that_is_not_known_moves_the_order_to_its_status_and_adds_nothing_else() -> None:
    after = {"currency": "USD", "status": "confirmed", "total_amount": 7}
    deltas = Deltas()
    sales.add(deltas, "order.gilded", {"change": {}, "after": after}, on=DAY, placed_on=DAY, status_before="pending")
    assert (deltas.sales, deltas.products) == ({}, {})
    assert deltas.statuses == {(DAY, "USD", "confirmed"): [1, 7], (DAY, "USD", "pending"): [-1, -7]}
