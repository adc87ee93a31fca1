"""What events of orders ask for, and how standings move a payment."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.payments import Payment, PaymentEventType, PaymentState
from services.contracts.schema import example, load_all
from services.payments.domain import (
    Step,
    StepKind,
    authorization_key,
    is_done,
    is_needed,
    moved,
    payment_of_order,
    standing_of,
    standing_of_refused,
    standing_without_asking,
    step_of_event,
)
from services.payments.provider import ProviderState, Standing

AT = "2026-11-22T18:16:50.123Z"
ORDER = "01KAPKY98W3V5T2J8QK3F0S1Y2"
REQUESTED = Payment(
    order_id=ORDER,
    user_id="0b0f5a52-7d0e-4d6e-9a53-0d3a7a6f0001",
    status=PaymentState.REQUESTED,
    provider="sandbox",
    reference=None,
    payment_method="pm_card",
    currency="USD",
    amount=1000,
    authorized_amount=0,
    captured_amount=0,
    refunded_amount=0,
    failure=None,
    version=0,
    updated_at=AT,
)
AUTHORIZED = replace(REQUESTED, status=PaymentState.AUTHORIZED, reference="r", authorized_amount=1000, version=1)
AUTHORIZE = Step(1, StepKind.AUTHORIZE, 1000)
VOID = Step(3, StepKind.VOID, 0)
SCHEMAS = load_all()


def event(type_: str, **change: Any) -> dict[str, Any]:
    """The example of an event of an order, with another change."""
    found = example(SCHEMAS[f"order.{type_}.v1"])
    return {**found, "data": {**found["data"], "change": {**found["data"]["change"], **change}}}


def standing(state: ProviderState, authorized: int = 0, captured: int = 0, refunded: int = 0) -> Standing:
    return Standing(ORDER, "r", state, "USD", authorized, captured, refunded)


def test_a_placed_order_with_a_payment_method_asks_for_its_total() -> None:
    placed = event("placed", payment_method="pm_card", total_amount=4321)
    payment = payment_of_order(placed, "sandbox")
    assert payment is not None
    assert (payment.amount, payment.status, payment.version) == (4321, PaymentState.REQUESTED, 0)
    assert (payment.order_id, payment.payment_method) == (placed["order_id"], "pm_card")
    assert step_of_event(placed) == Step(1, StepKind.AUTHORIZE, 4321)
    assert payment_of_order(event("placed", payment_method=None), "sandbox") is None


@pytest.mark.parametrize(("status", "final"), [("shipped", True), ("partially_shipped", False)])
def test_a_shipment_asks_for_its_amount_and_the_last_one_releases_the_rest(status: str, final: bool) -> None:
    shipped = event("shipped", amount=7)
    shipped["data"]["after"] = {**shipped["data"]["after"], "status": status}
    assert step_of_event(shipped) == Step(shipped["version"], StepKind.CAPTURE, 7, final)


def test_a_return_asks_for_a_refund_and_a_cancellation_for_a_void() -> None:
    returned, cancelled = event("returned", amount=5), event("cancelled")
    assert step_of_event(returned) == Step(returned["version"], StepKind.REFUND, 5)
    assert step_of_event(cancelled) == Step(cancelled["version"], StepKind.VOID, 0)


@pytest.mark.parametrize("type_", ["delivered", "confirmed", "payment_authorized", "payment_captured", "refunded"])
def test_other_events_ask_for_nothing(type_: str) -> None:
    assert step_of_event(event(type_)) is None


@pytest.mark.parametrize("amount", [-1, 1.5, "1", True, None])
def test_what_is_no_amount_is_no_event(amount: object) -> None:
    with pytest.raises(ValueError, match="no amount"):
        step_of_event(event("shipped", amount=amount))


def test_a_shipment_of_before_there_were_payments_asks_for_nothing() -> None:
    shipped = event("shipped")
    shipped["data"]["change"].pop("amount", None)
    assert step_of_event(shipped) is None


def test_the_key_of_a_step_says_order_number_and_kind() -> None:
    assert VOID.key(ORDER) == f"{ORDER}:3:void"
    assert authorization_key(ORDER) == f"{ORDER}:1:authorize" == AUTHORIZE.key(ORDER)


def types(payment: Payment, *standings: Standing) -> list[str]:
    """The events that these standings leave, one after another."""
    found = []
    for one in standings:
        for type_, after in moved(payment, one, at=AT):
            assert after.version == payment.version + 1
            found.append(type_.removeprefix("payment."))
            payment = after
    return found


def test_a_payment_goes_from_requested_to_refunded_an_event_a_change() -> None:
    authorized = standing(ProviderState.AUTHORIZED, 1000)
    path = [
        standing(ProviderState.PROCESSING),
        authorized,
        authorized,
        standing(ProviderState.AUTHORIZED, 1000, 400),
        standing(ProviderState.AUTHORIZED, 1000, 1000),
        authorized,  # an old answer that comes late
        standing(ProviderState.AUTHORIZED, 1000, 1000, 250),
    ]
    assert types(REQUESTED, *path) == ["authorized", "captured", "captured", "refunded"]


def test_what_was_missed_is_told_change_by_change() -> None:
    assert types(REQUESTED, standing(ProviderState.AUTHORIZED, 1000, 400, 100)) == [
        "authorized",
        "captured",
        "refunded",
    ]


def test_a_declined_payment_has_failed_for_good() -> None:
    declined = replace(standing(ProviderState.DECLINED), failure="no funds")
    ((type_, failed),) = moved(REQUESTED, declined, at=AT)
    assert (type_, failed.status, failed.failure) == (PaymentEventType.FAILED, PaymentState.FAILED, "no funds")
    assert types(failed, declined, standing(ProviderState.AUTHORIZED, 1000), standing(ProviderState.VOIDED)) == []


def test_a_void_ends_what_was_authorised_or_never_was() -> None:
    assert types(AUTHORIZED, standing(ProviderState.VOIDED, 1000), standing(ProviderState.AUTHORIZED, 1000)) == [
        "voided"
    ]
    ((_, voided),) = moved(REQUESTED, standing_of(REQUESTED, ProviderState.VOIDED), at=AT)
    assert (voided.status, voided.authorized_amount, voided.reference) == (PaymentState.VOIDED, 0, None)


STANDINGS: Mapping[str, list[Standing]] = {
    "kept": [
        standing(ProviderState.PROCESSING),
        standing(ProviderState.AUTHORIZED, 1000),
        standing(ProviderState.AUTHORIZED, 1000, 300),
        standing(ProviderState.AUTHORIZED, 1000, 1000),
        standing(ProviderState.AUTHORIZED, 1000, 1000, 10),
        standing(ProviderState.AUTHORIZED, 1000, 1000, 1000),
    ],
    "voided": [
        standing(ProviderState.PROCESSING),
        standing(ProviderState.AUTHORIZED, 1000),
        standing(ProviderState.VOIDED, 1000),
    ],
    "declined": [standing(ProviderState.PROCESSING), standing(ProviderState.DECLINED)],
}


@given(st.data(), st.sampled_from(sorted(STANDINGS)))
def test_standings_in_any_order_and_number_end_where_the_furthest_does(data: st.DataObject, history: str) -> None:
    path = STANDINGS[history]
    heard = [*data.draw(st.lists(st.sampled_from(path), max_size=12)), path[-1]]
    heard = data.draw(st.permutations(heard))
    payment = REQUESTED
    for one in heard:
        for type_, after in moved(payment, one, at=AT):
            assert after.version == payment.version + 1
            assert (after.authorized_amount, after.captured_amount, after.refunded_amount) >= (
                payment.authorized_amount,
                payment.captured_amount,
                payment.refunded_amount,
            )
            assert type_ is not PaymentEventType.VOIDED or history == "voided"
            payment = after
    last = path[-1]
    assert (payment.captured_amount, payment.refunded_amount) == (last.captured_amount, last.refunded_amount)
    assert payment.authorized_amount == last.authorized_amount
    assert standing_of(payment).state is last.state


def test_what_needs_no_provider_is_not_asked_for() -> None:
    free = replace(REQUESTED, amount=0)
    zero = standing_without_asking(free, replace(AUTHORIZE, amount=0), cancelled=False)
    assert zero is not None
    assert zero.state is ProviderState.AUTHORIZED
    dropped = standing_without_asking(REQUESTED, AUTHORIZE, cancelled=True)
    assert dropped is not None
    assert (dropped.state, dropped.authorized_amount) == (ProviderState.VOIDED, 0)
    for step in (Step(4, StepKind.CAPTURE, 0, True), Step(6, StepKind.REFUND, 0)):
        assert standing_without_asking(AUTHORIZED, step, cancelled=False) == standing_of(AUTHORIZED)
    assert standing_without_asking(replace(REQUESTED, status=PaymentState.FAILED), VOID, cancelled=True) is not None


@pytest.mark.parametrize(
    ("payment", "step"),
    [
        (REQUESTED, AUTHORIZE),
        (AUTHORIZED, VOID),
        (AUTHORIZED, Step(4, StepKind.CAPTURE, 1)),
        (AUTHORIZED, Step(6, StepKind.REFUND, 1)),
    ],
)
def test_everything_else_is(payment: Payment, step: Step) -> None:
    assert standing_without_asking(payment, step, cancelled=False) is None


@pytest.mark.parametrize(
    ("step", "short", "reached"),
    [
        (AUTHORIZE, standing(ProviderState.PROCESSING), standing(ProviderState.DECLINED)),
        (VOID, standing(ProviderState.AUTHORIZED, 1000), standing(ProviderState.VOIDED, 1000)),
        (
            Step(4, StepKind.CAPTURE, 400),
            standing(ProviderState.AUTHORIZED, 1000, 499),
            standing(ProviderState.AUTHORIZED, 1000, 500),
        ),
        (
            Step(6, StepKind.REFUND, 400),
            standing(ProviderState.AUTHORIZED, 1000, 1000, 499),
            standing(ProviderState.AUTHORIZED, 1000, 1000, 500),
        ),
    ],
)
def test_a_step_is_done_when_the_provider_stands_as_it_wanted(step: Step, short: Standing, reached: Standing) -> None:
    assert not is_done(step, short, 100)
    assert is_done(step, reached, 100)


def test_a_failed_payment_needs_no_void() -> None:
    assert is_needed(VOID, PaymentState.AUTHORIZED)
    assert not is_needed(VOID, PaymentState.FAILED)


def test_an_authorisation_that_is_refused_has_failed_and_other_steps_change_nothing() -> None:
    refused = standing_of_refused(REQUESTED, AUTHORIZE, "no such method")
    assert refused is not None
    ((type_, failed),) = moved(REQUESTED, refused, at=AT)
    assert (type_, failed.failure) == (PaymentEventType.FAILED, "no such method")
    assert standing_of_refused(AUTHORIZED, VOID, "too late") is None
