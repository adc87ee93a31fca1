"""The worked example of docs/events.md: a second version of an event, and what reads both."""

import copy
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.contracts.compatibility import breaking
from services.contracts.orders import Event, EventType, Order, apply
from services.contracts.schema import example, load_all
from tests.contracts.events import closed, schemas, validator
from tests.contracts.upcast.shipped import upcast

V1 = schemas()["order.shipped.v1"]
V2 = load_all(Path(__file__).with_name("upcast"))["order.shipped.v2"]

TRACKING = st.none() | st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=200)
PARTS = st.lists(
    st.fixed_dictionaries({"line_no": st.integers(1, 2_000), "quantity": st.integers(1, 1_000_000)}),
    min_size=1,
    max_size=5,
)


def shipped(**change: Any) -> Event:
    """An event of version 1."""
    event = copy.deepcopy(example(V1))
    event["data"]["change"] |= change
    return Event(**event)


@given(TRACKING, PARTS, st.booleans())
def test_every_event_of_the_first_version_is_one_of_the_second(
    tracking: str | None, items: list[dict[str, int]], older: bool
) -> None:
    old = shipped(tracking=tracking, items=items, amount=7)
    if older:  # from before there was an amount
        del old.data["change"]["amount"]
    validator(closed(V1)).validate(asdict(old))
    before = copy.deepcopy(old)
    new = upcast(old)
    assert old == before, "it is not to be changed"
    validator(closed(V2)).validate(asdict(new))
    assert new.type == "order.shipped.v2"
    amount = {} if older else {"amount": 7}
    assert new.data["change"] == {"parcels": [{"tracking": tracking, "items": items}], **amount}
    assert new.data["after"] == old.data["after"]
    assert (new.event_id, new.order_id, new.version, new.occurred_at, new.actor) == (
        *(old.event_id, old.order_id, old.version, old.occurred_at, old.actor),
    )
    assert upcast(new) is new


@pytest.mark.parametrize("type_", [type_ for type_ in EventType if type_ != EventType.SHIPPED])
def test_an_event_that_has_no_second_version_stays_as_it_is(type_: EventType) -> None:
    event = Event(**example(schemas()[f"{type_}.v1"]))
    assert upcast(event) is event


def test_it_could_not_have_been_a_change_of_the_first_version() -> None:
    found = breaking({"order.shipped": V1}, {"order.shipped": V2})
    for reason in ("/type: const changed", "/data/change/items: removed", "/data/change/parcels: required now"):
        assert any(line.startswith(f"order.shipped{reason}") for line in found), found


def parcels_by_tracking(events: list[Event]) -> Counter[str | None]:
    """A consumer of the second version: it knows that only, and reads both."""
    return Counter(
        {
            parcel["tracking"]: sum(part["quantity"] for part in parcel["items"])
            for event in map(upcast, events)
            if event.type == "order.shipped.v2"
            for parcel in event.data["change"]["parcels"]
        }
    )


def test_a_consumer_of_the_second_version_reads_both() -> None:
    log = [
        Event(**example(schemas()["order.placed.v1"])),
        shipped(tracking="OLD", items=[{"line_no": 1, "quantity": 2}, {"line_no": 2, "quantity": 5}]),
        Event(**example(V2)),
    ]
    assert parcels_by_tracking(log) == {"OLD": 7, "1Z999AA10123456784": 2, "1Z999AA10123456785": 1}


def test_a_consumer_of_the_first_version_goes_on_without_what_it_does_not_know() -> None:
    order: Order | None = apply(None, Event(**example(schemas()["order.placed.v1"])))
    order = apply(order, Event(**example(V2)))
    assert (order.version, order.status) == (2, "shipped"), "the header is of every version"
    assert order.items[0].shipped_quantity == 0, "what only the second version says is not known to it"
    order = apply(order, Event(**example(schemas()["order.delivered.v1"])))
    assert order.status == "delivered"
