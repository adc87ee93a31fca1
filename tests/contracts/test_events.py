"""The schemas of events: valid, complete, as the Python types beside them, and as consumers were promised."""

import copy
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator  # type: ignore[import-untyped] # it ships no types

from services.contracts import catalog, payments
from services.contracts.catalog import ProductEventType, product_of
from services.contracts.compatibility import breaking
from services.contracts.orders import Adjustment, Event, EventType, Item, Order, OrderStatus, PaymentStatus, apply
from services.contracts.payments import PaymentEventType, payment_of
from services.contracts.schema import Schema, example, inlined, load_all
from services.orders.domain import CancelReason
from tests.contracts.events import check, closed, schemas, validator

RELEASED = Path(__file__).resolve().parents[2] / "docs" / "events"
TYPES = [f"{type_}.v1" for type_ in (*EventType, *ProductEventType, *PaymentEventType)]


def members(dataclass: Any) -> set[str]:
    return {field.name for field in fields(dataclass)}


@pytest.fixture(params=TYPES)
def schema(request: pytest.FixtureRequest) -> Schema:
    """Each in turn."""
    return schemas()[request.param]


def test_each_type_has_a_schema_and_there_is_no_other() -> None:
    assert sorted(schemas()) == sorted(TYPES)


def test_it_is_a_schema_whose_name_says_what_it_is_of(schema: Schema) -> None:
    Draft202012Validator.check_schema(schema)
    type_ = schema["properties"]["type"]["const"]
    assert schema["$id"] == f"urn:order-backend:event:{type_}:1"
    assert schemas()[f"{type_}.v1"] is schema
    assert schema["title"] == type_


def test_what_one_name_stands_for_is_the_same_in_all_schemas(schema: Schema) -> None:
    for name, definition in schema["$defs"].items():
        for other in schemas().values():
            assert other["$defs"].get(name, definition) == definition, name


def test_a_consumer_may_meet_members_that_the_schema_does_not_name(schema: Schema) -> None:
    event = copy.deepcopy(example(schema))
    event["more"] = event["data"]["more"] = {"any": "thing"}
    validator(schema).validate(event)
    with pytest.raises(AssertionError, match="more"):
        check(event)


def test_its_example_is_an_event_that_we_write_and_lacks_none_of_its_members(schema: Schema) -> None:
    check(example(schema))
    for name in example(schema):
        lacking = {k: v for k, v in example(schema).items() if k != name}
        assert not validator(schema).is_valid(lacking), name


def test_the_python_types_have_the_members_that_the_schemas_name() -> None:
    placed = inlined(schemas()["order.placed.v1"])
    change = placed["properties"]["data"]["properties"]["change"]
    for found, names in (
        (placed, members(Event)),
        (change, members(Order) | {"agreed_prices"}),
        (change["properties"]["items"]["items"], members(Item)),
        (change["properties"]["adjustments"]["items"], members(Adjustment)),
        (inlined(schemas()["product.changed.v1"]), members(catalog.ProductEvent)),
        (
            inlined(schemas()["product.changed.v1"])["properties"]["data"]["properties"]["product"],
            members(catalog.Product),
        ),
        (inlined(schemas()["payment.captured.v1"]), members(payments.PaymentEvent)),
        (
            inlined(schemas()["payment.captured.v1"])["properties"]["data"]["properties"]["payment"],
            members(payments.Payment),
        ),
    ):
        assert set(found["required"]) == set(found["properties"]) == names


def test_the_values_that_the_schemas_name_are_those_of_the_code() -> None:
    placed = schemas()["order.placed.v1"]
    assert placed["$defs"]["status"]["enum"] == list(OrderStatus)
    assert placed["$defs"]["payment_status"]["enum"] == list(PaymentStatus)
    cancelled = inlined(schemas()["order.cancelled.v1"])["properties"]["data"]["properties"]["change"]
    assert cancelled["properties"]["cancel_reason"]["enum"] == list(CancelReason)
    assert inlined(placed)["properties"]["data"]["properties"]["change"]["properties"]["cancel_reason"]["enum"] == [
        *CancelReason,
        None,
    ]


def test_the_examples_of_an_order_fold_and_a_products_is_read() -> None:
    order = None
    for version, type_ in enumerate(("placed", "shipped", "delivered", "returned"), start=1):
        order = apply(order, Event(**{**example(schemas()[f"order.{type_}.v1"]), "version": version}))
    assert order is not None
    assert (order.status, order.items[0].shipped_quantity, order.items[0].returned_quantity) == (
        OrderStatus.PARTIALLY_RETURNED,
        3,
        1,
    )
    assert product_of(example(schemas()["product.changed.v1"])).version == 2
    for type_ in PaymentEventType:
        event = example(schemas()[f"{type_}.v1"])
        assert payment_of(event).version == event["version"]


def test_the_examples_of_a_paid_order_fold() -> None:
    order = None
    paid = ("placed", "payment_authorized", "confirmed", "shipped", "payment_captured", "delivered", "refunded")
    for version, type_ in enumerate(paid, start=1):
        order = apply(order, Event(**{**example(schemas()[f"order.{type_}.v1"]), "version": version}))
    assert order is not None
    assert (order.payment_status, order.captured_amount, order.refunded_amount) == ("partially_refunded", 6497, 2165)


def test_no_consumer_of_the_released_schemas_is_broken() -> None:
    released = load_all(RELEASED)
    assert released
    assert breaking(released, schemas()) == [], "what was released stays readable: docs/events.md"


def test_what_is_released_is_what_there_is() -> None:
    assert load_all(RELEASED) == schemas(), "run `make events`"


def test_closing_a_schema_reaches_every_object_in_it() -> None:
    line = {"kind": "fee", "line_no": None, "label": "x", "amount": 1}
    event = copy.deepcopy(example(schemas()["order.placed.v1"]))
    event["data"]["change"]["adjustments"] = [line]
    check(event)
    event["data"]["change"]["adjustments"] = [{**line, "more": 1}]
    with pytest.raises(AssertionError, match="more"):
        check(event)
    assert "additionalProperties" not in closed(schemas()["order.placed.v1"])["properties"]["version"]
