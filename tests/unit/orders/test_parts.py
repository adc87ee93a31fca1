"""Shipping and returning in parts, against a model that only counts units."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from services.common.errors import DomainError
from services.contracts.orders import Event, EventType, Order, apply, fold
from services.orders import domain
from services.orders.domain import ALLOWED_ACTIONS, FAULTS_MAX, Command, Part
from tests.unit.contracts.test_orders import placed
from tests.unit.orders.test_domain import order

OPENING = 100  # units of each product


class LifeOfAnOrder(RuleBasedStateMachine):
    """Any commands with any parts. The model: units ordered, gone and come back by line, and what staff did."""

    @initialize(quantities=st.lists(st.integers(1, 4), min_size=1, max_size=3))
    def place(self, quantities: list[int]) -> None:
        self.events = [placed(*quantities)]
        self.order = fold(self.events)
        self.ordered = dict(enumerate(quantities, start=1))
        self.gone, self.back = Counter[int](), Counter[int]()
        self.cancelled = self.delivered = False
        self.on_hand = Counter({item.product_id: OPENING for item in self.order.items})
        self.reserved = Counter({item.product_id: item.quantity for item in self.order.items})

    def status(self) -> str:
        """By the model."""
        if self.cancelled:
            return "cancelled"
        if self.back.total():
            return "returned" if self.back == self.gone else "partially_returned"
        if self.delivered:
            return "delivered"
        if self.gone.total():
            return "shipped" if self.gone == self.ordered else "partially_shipped"
        return "confirmed"

    def left(self, command: Command) -> dict[int, int]:
        """Units open to the command by line."""
        whole, moved = (self.gone, self.back) if command is Command.RETURN else (Counter(self.ordered), self.gone)
        return {line_no: whole[line_no] - moved[line_no] for line_no in self.ordered}

    def allowed(self, command: Command) -> bool:
        """By the model."""
        match command:
            case Command.CANCEL:
                return not self.cancelled and not self.gone
            case Command.SHIP:
                return not self.cancelled and self.gone != self.ordered
            case Command.DELIVER:
                return self.gone == self.ordered and not self.delivered
            case Command.RETURN:
                return self.delivered and self.back != self.gone

    @rule(command=st.sampled_from([Command.SHIP, Command.RETURN]), data=st.data())
    def move_some_of_what_is_open(self, command: Command, data: st.DataObject) -> None:
        there = [line_no for line_no, units in self.left(command).items() if units]
        chosen = data.draw(st.lists(st.sampled_from(there), min_size=1, unique=True)) if there else [1]
        self.give(command, {n: data.draw(st.integers(1, max(1, self.left(command)[n]))) for n in chosen})

    @rule(
        command=st.sampled_from([Command.SHIP, Command.RETURN]),
        units=st.dictionaries(st.integers(1, 4), st.integers(1, 5), min_size=1, max_size=4),
    )
    def move_anything(self, command: Command, units: dict[int, int]) -> None:
        self.give(command, units)

    @rule(command=st.sampled_from(Command))
    def give_whole(self, command: Command) -> None:
        self.give(command, None)

    def give(self, command: Command, units: dict[int, int] | None) -> None:
        parts = None if units is None else [Part(line_no, quantity) for line_no, quantity in units.items()]
        left = self.left(command)
        if not self.allowed(command):
            with pytest.raises(DomainError) as refusal:
                domain.decide(self.order, command, parts)
            assert (refusal.value.code, refusal.value.status) == ("transition_not_allowed", 409)
            return
        if too_much := {n for n, quantity in (units or {}).items() if quantity > left.get(n, 0)}:
            assert {fault["line_no"] for fault in refused(self.order, command, *(parts or []))} == too_much
            return
        step = domain.decide(self.order, command, parts)
        moved = (left if units is None else units) if command in domain.OPEN else {}
        self.gone.update(moved if command is Command.SHIP else {})
        self.back.update(moved if command is Command.RETURN else {})
        self.gone, self.back = +self.gone, +self.back
        self.cancelled |= command is Command.CANCEL
        self.delivered |= command is Command.DELIVER
        details = {"tracking": None} if command is Command.SHIP else {"cancel_reason": "staff"}
        self.happen(step.event, {**details, **step.change}, step.status)

    def happen(self, kind: EventType, change: dict[str, Any], status: str) -> None:
        version = len(self.events) + 1
        after = {**self.events[0].data["after"], "status": status}
        event = Event("", "o", version, kind, f"t{version}", "staff:s", {"change": change, "after": after})
        before, self.order = self.order, apply(self.order, event)
        self.events.append(event)
        for product_id, effect in domain.stock_effect(before, self.order).items():
            self.on_hand[product_id] += effect.on_hand
            self.reserved[product_id] += effect.reserved

    @invariant()
    def order_events_and_model_agree(self) -> None:
        assert fold(self.events) == self.order
        assert self.order.status == self.status()
        assert {command for command in Command if self.allowed(command)} == set(ALLOWED_ACTIONS[self.order.status])
        for item in self.order.items:
            line = item.line_no
            assert (item.shipped_quantity, item.returned_quantity) == (self.gone[line], self.back[line])
            assert 0 <= item.returned_quantity <= item.shipped_quantity <= item.quantity

    @invariant()
    def no_unit_is_lost_or_made(self) -> None:
        for item in self.order.items:
            line, product_id = item.line_no, item.product_id
            assert self.on_hand[product_id] + self.gone[line] - self.back[line] == OPENING
            held = 0 if self.cancelled else self.ordered[line] - self.gone[line]
            assert self.reserved[product_id] == held


TestLifeOfAnOrder = LifeOfAnOrder.TestCase
TestLifeOfAnOrder.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)


def faults(refusal: DomainError) -> list[dict[str, Any]]:
    found = refusal.extra["errors"]
    assert isinstance(found, list)
    return found


def refused(before: Order, command: Command, *parts: Part) -> list[dict[str, Any]]:
    with pytest.raises(DomainError) as refusal:
        domain.decide(before, command, parts)
    assert (refusal.value.code, refusal.value.status) == ("invalid", 422)
    return faults(refusal.value)


def test_what_is_not_open_is_refused_with_its_place_its_line_and_what_is_open() -> None:
    found = refused(order("confirmed", 2, 3), Command.SHIP, Part(2, 3), Part(1, 3), Part(7, 1))
    assert [(fault["at"], fault["line_no"], fault.get("open")) for fault in found] == [
        ("/items/1/quantity", 1, 2),
        ("/items/2/line_no", 7, None),
    ]
    assert found[0]["reason"] == "Of line 1 there are 2 to ship, not 3."
    assert [fault["open"] for fault in refused(order("delivered", 2), Command.RETURN, Part(1, 1))] == [0]


def test_of_many_faults_the_first_are_told() -> None:
    found = refused(order("confirmed", 1), Command.SHIP, *(Part(n, 1) for n in range(2, 102)))
    assert [fault["line_no"] for fault in found] == list(range(2, 2 + FAULTS_MAX))


def test_a_status_that_does_not_allow_it_is_told_before_parts_it_does_not_have() -> None:
    with pytest.raises(DomainError) as refusal:
        domain.decide(order("pending", 1), Command.SHIP, [Part(9, 9)])
    assert refusal.value.code == "transition_not_allowed"


def test_the_event_has_the_parts_by_line_number_and_no_line_without_any() -> None:
    step = domain.decide(order("confirmed", 1, 2, 3), Command.SHIP, [Part(3, 1), Part(1, 1)])
    assert step.change["items"] == [{"line_no": 1, "quantity": 1}, {"line_no": 3, "quantity": 1}]
    assert step.status == "partially_shipped"
    before = order("partially_shipped", 1, 2)
    before = replace(before, items=(replace(before.items[0], shipped_quantity=1), before.items[1]))
    rest = domain.decide(before, Command.SHIP)
    assert (rest.change["items"], rest.status) == ([{"line_no": 2, "quantity": 2}], "shipped")
    assert domain.decide(order("confirmed", 1), Command.CANCEL).change == {}
