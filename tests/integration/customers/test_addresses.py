"""An address never changes under its id: it is replaced by another, or retired, and stays what it was for orders."""

import secrets
import uuid
from typing import Any

import pytest

from services.common import clock, ids
from services.customers.domain import ADDRESSES_KEPT_MAX, ADDRESSES_MAX
from services.customers.personal import Destination, sealed
from tests.contracts.description import refused
from tests.customers import ADDRESSES, SQUARE, Customers, path_of
from tests.integration.relay.conftest import metric


@pytest.fixture
async def customers(customers: Customers) -> Customers:
    """Of somebody who has a profile."""
    await customers.started()
    return customers


async def test_an_address_is_added_and_found_under_its_id(customers: Customers) -> None:
    before = clock.now()
    response = await customers.add()
    address = response.json()
    assert (response.status_code, response.headers["location"]) == (201, path_of(address))
    assert address == {
        "address_id": address["address_id"],
        **SQUARE,
        "created_at": address["created_at"],
        **{"retired_at": None, "replaced_by": None},
    }
    assert clock.to_text(before) <= address["created_at"] <= clock.to_text(clock.now())
    assert (await customers.get(path_of(address))).content == response.content
    other = await customers.added(city="Paris", country="FR")
    listed = (await customers.get(ADDRESSES)).json()
    assert listed == {"data": [address, other], "next_cursor": None}


async def test_what_may_be_left_out_is_null(customers: Customers) -> None:
    body = {name: SQUARE[name] for name in ("name", "lines", "city", "country")}
    response = await customers.send("POST", ADDRESSES, json=body, headers={"Idempotency-Key": "k"})
    assert [response.json()[name] for name in ("region", "postal_code", "phone")] == [None] * 3


async def test_the_same_key_gives_the_first_answer_again_whatever_became_of_the_address(customers: Customers) -> None:
    first = await customers.add(key="k")
    address = first.json()
    for step in ("as it is", "replaced", "retired"):
        if step == "replaced":
            address = (await customers.replace(address, city="Bath")).json()
        elif step == "retired":
            assert (await customers.retire(address)).status_code == 204
        again = await customers.send("POST", ADDRESSES, json=SQUARE, headers={"Idempotency-Key": '"k"'})
        assert (again.status_code, again.content) == (201, first.content), step
        assert again.headers["idempotency-replayed"] == "true"
        assert again.headers["location"] == first.headers["location"]
    assert "idempotency-replayed" not in first.headers
    assert refused(await customers.add(key="k", city="Bath")) == "422 key_reused"
    assert len((await customers.get("/v1/me/export")).json()["addresses"]) == 2


async def test_a_key_is_its_customers_own(customers: Customers) -> None:
    other = uuid.uuid4()
    await customers.started(sub=other)
    mine, theirs = await customers.add(key="k"), await customers.add(key="k", sub=other, city="Rome")
    assert theirs.status_code == 201
    assert mine.json()["address_id"] != theirs.json()["address_id"]


async def test_a_refused_address_leaves_its_key_unused(customers: Customers) -> None:
    assert refused(await customers.add(key="k", country="XX")) == "422 invalid"
    assert (await customers.add(key="k")).status_code == 201
    missing = await customers.send("POST", ADDRESSES, json={})
    assert refused(missing) == "400 key_missing"


async def test_a_put_makes_another_address_and_the_old_one_stays_what_it_was(customers: Customers) -> None:
    old = await customers.added()
    other = await customers.added(city="Paris", country="FR")
    response = await customers.replace(old, city="Bath", lines=["1 Royal Crescent"])
    new = response.json()
    assert (response.status_code, response.headers["location"]) == (201, path_of(new))
    assert new == {
        **old,
        "address_id": new["address_id"],
        **{"city": "Bath", "lines": ["1 Royal Crescent"], "created_at": new["created_at"]},
    }
    assert new["address_id"] != old["address_id"]
    kept = (await customers.get(path_of(old))).json()
    assert kept == {**old, "retired_at": new["created_at"], "replaced_by": new["address_id"]}
    assert await customers.addresses() == [other, new]


async def test_a_put_again_or_of_the_same_content_makes_nothing(customers: Customers) -> None:
    old = await customers.added()
    same = await customers.replace(old)
    assert (same.status_code, same.json()) == (200, old)
    new = (await customers.replace(old, city="Bath")).json()
    again = await customers.replace(old, city="Bath")
    assert (again.status_code, again.json()) == (200, new)
    assert await customers.addresses() == [new]


async def test_a_put_on_what_was_retired_or_replaced_says_by_what(customers: Customers) -> None:
    replaced, retired = await customers.added(), await customers.added()
    new = (await customers.replace(replaced, city="Bath")).json()
    await customers.retire(retired)
    for address, by in ((replaced, new["address_id"]), (retired, None)):
        response = await customers.replace(address, city="York")
        assert refused(response) == "409 address_retired"
        assert response.json()["replaced_by"] == by
    # Its replacement is retired, too: it cannot be what was asked for any more.
    await customers.retire(new)
    assert refused(await customers.replace(replaced, city="Bath")) == "409 address_retired"
    assert await customers.addresses() == []


async def test_a_retired_address_is_offered_no_more_and_still_found(customers: Customers) -> None:
    address = await customers.added()
    for _ in range(2):
        response = await customers.retire(address)
        assert (response.status_code, response.content) == (204, b"")
    assert await customers.addresses() == []
    kept = (await customers.get(path_of(address))).json()
    assert kept == {**address, "retired_at": kept["retired_at"]}
    assert kept["retired_at"] >= address["created_at"]


async def test_there_is_no_address_without_a_profile(customers: Customers) -> None:
    nobody = uuid.uuid4()
    assert refused(await customers.add(sub=nobody)) == "409 profile_missing"
    assert refused(await customers.replace(await customers.added(), sub=nobody)) == "404 not_found"
    assert (await customers.patch(1, sub=nobody)).status_code == 200
    assert (await customers.add(sub=nobody)).status_code == 201


async def test_fifty_are_in_use_at_most_and_a_retired_one_makes_room(customers: Customers) -> None:
    added = [await customers.added(name=f"Room {number}") for number in range(ADDRESSES_MAX)]
    assert await customers.addresses() == added
    response = await customers.add(key="k")
    assert refused(response) == "409 too_many_addresses"
    assert (response.json()["used"], response.json()["kept"]) == (ADDRESSES_MAX, ADDRESSES_MAX)
    assert (await customers.replace(added[0], city="Bath")).status_code == 201
    assert refused(await customers.add(key="k")) == "409 too_many_addresses"
    await customers.retire(added[1])
    assert (await customers.add(key="k")).status_code == 201


async def test_a_thousand_are_kept_at_most_with_the_retired_ones(customers: Customers) -> None:
    address = await customers.added()
    destination = Destination("X", ("Y",), "Z", None, None, "GB", None)
    now = clock.now()
    await customers.owner.copy_records_to_table(
        "addresses",
        schema_name="customers",
        columns=["user_id", "address_id", "destination", "created_at", "retired_at"],
        records=[
            (customers.customer, ids.new_id(now), sealed(destination), now, now) for _ in range(ADDRESSES_KEPT_MAX - 1)
        ],
    )
    for response in (await customers.add(), await customers.replace(address, city="Bath")):
        assert refused(response) == "409 too_many_addresses"
        assert response.json()["kept"] == ADDRESSES_KEPT_MAX
    assert (await customers.replace(address)).status_code == 200
    assert len((await customers.get("/v1/me/export")).json()["addresses"]) == ADDRESSES_KEPT_MAX
    assert (await customers.retire(address)).status_code == 204


async def test_anothers_address_is_told_like_a_missing_one(customers: Customers) -> None:
    address, stranger = await customers.added(), uuid.uuid4()
    await customers.started(sub=stranger)
    missing = ids.to_text(ids.new_id(clock.now()))
    requests: list[tuple[str, dict[str, Any]]] = [("GET", {}), ("PUT", {"json": SQUARE}), ("DELETE", {})]
    for method, more in requests:
        foreign = await customers.send(method, path_of(address), sub=stranger, **more)
        none = await customers.send(method, f"{ADDRESSES}/{missing}", sub=stranger, **more)
        assert refused(foreign) == refused(none) == "404 not_found"
        assert foreign.content.replace(address["address_id"].encode(), missing.encode()) == none.content
    assert await customers.addresses() == [address]


async def test_writes_of_addresses_are_counted_by_what_they_did(customers: Customers) -> None:
    results = ("created", "replayed", "replaced", "retired", "unchanged")
    before = [metric("addresses_written_total", result=result) for result in results]
    key = secrets.token_hex(8)
    address = (await customers.add(key=key)).json()
    await customers.add(key=key)
    new = (await customers.replace(address, city="Bath")).json()
    await customers.retire(new)
    await customers.retire(new)
    assert [metric("addresses_written_total", result=result) for result in results] == [one + 1 for one in before]
