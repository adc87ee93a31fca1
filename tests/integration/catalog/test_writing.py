"""Products are put under conditions, and every version leaves its event."""

from typing import Any

import pytest

from services.common import clock, ids
from tests.catalog import TEAPOT, WRITE, Catalogue, new_product_id
from tests.contracts.description import refused
from tests.integration.relay.conftest import metric


async def test_a_product_is_created_and_then_changed_at_the_version_that_was_seen(catalogue: Catalogue) -> None:
    product_id = new_product_id()
    before = clock.now()
    created = await catalogue.put(product_id)
    assert created.status_code == 201, created.text
    assert created.headers["etag"] == '"1"'
    assert created.headers["location"] == f"/v1/products/{product_id}"
    assert created.headers["cache-control"] == "private, no-store"
    product = created.json()
    assert list(product) == [
        *("product_id", "name", "description", "price", "currency", "active", "version", "updated_at"),
    ]
    assert product == {**TEAPOT, "product_id": product_id, "version": 1, "updated_at": product["updated_at"]}
    assert clock.to_text(before) <= product["updated_at"] <= clock.to_text(clock.now())

    changed = await catalogue.change(product_id, 1, price=1500, active=False)
    assert (changed.status_code, changed.headers["etag"]) == (200, '"2"')
    assert "location" not in changed.headers
    assert changed.json() == product | {
        **{"price": 1500, "active": False, "version": 2},
        "updated_at": changed.json()["updated_at"],
    }
    shown = await catalogue.get(f"/v1/products/{product_id}")
    assert shown.content == changed.content


async def test_every_version_has_one_event_with_the_whole_product(catalogue: Catalogue) -> None:
    product_id = new_product_id()
    trace = f"00-{'a' * 32}-{'b' * 16}-01"
    answers = [await catalogue.put(product_id, headers={"traceparent": trace})]
    answers += [await catalogue.change(product_id, version, price=version) for version in (1, 2)]
    events = await catalogue.events(product_id)
    assert [event["version"] for event in events] == [1, 2, 3]
    assert [event["type"] for event in events] == ["product.created", "product.changed", "product.changed"]
    assert [event["data"] for event in events] == [{"product": answer.json()} for answer in answers]
    assert [clock.to_text(event["occurred_at"]) for event in events] == [a.json()["updated_at"] for a in answers]
    assert {event["actor"] for event in events} == {f"staff:{catalogue.keeper}"}
    assert {event["slice"] for event in events} == {ids.shard_of(ids.from_text(product_id)) % ids.SLICES}
    assert events[0]["traceparent"] == trace
    assert len({event["event_id"] for event in events}) == 3


async def test_what_is_left_out_of_a_change_is_empty_again(catalogue: Catalogue) -> None:
    product_id = await catalogue.created(description="A long story.")
    body = {name: value for name, value in TEAPOT.items() if name != "description"}
    response = await catalogue.put(product_id, body, headers={"If-Match": '"1"'})
    assert response.json()["description"] == ""


@pytest.mark.parametrize("condition", [{}, {"If-None-Match": "*"}, {"If-None-Match": " * "}], ids=str)
async def test_what_is_not_there_is_created_without_a_condition_or_if_there_is_none(
    catalogue: Catalogue, condition: dict[str, str]
) -> None:
    response = await catalogue.put(new_product_id(), headers=condition)
    assert (response.status_code, response.headers["etag"]) == (201, '"1"')


CONDITIONS: list[tuple[dict[str, str], str, int | None]] = [
    ({}, "428 if_match_missing", None),
    ({"If-None-Match": "*"}, "412 version_mismatch", 2),
    ({"If-Match": '"1"'}, "412 version_mismatch", 2),
    ({"If-Match": '"3"'}, "412 version_mismatch", 2),
    *(
        ({"If-Match": tag}, "412 version_mismatch", 2)
        for tag in ('W/"2"', "2", '"02"', '"0"', '"-1"', "*", "", '"2", "3"', '"99999999999999999999"')
    ),
    *(({"If-None-Match": tag}, "422 invalid", None) for tag in ('"2"', '"1"', "", "x", '*, "1"')),
    ({"If-None-Match": "*", "If-Match": '"2"'}, "422 invalid", None),
]


@pytest.mark.parametrize(("condition", "expected", "current"), CONDITIONS, ids=str)
async def test_a_condition_that_does_not_hold_is_refused_and_writes_nothing(
    catalogue: Catalogue, condition: dict[str, str], expected: str, current: int | None
) -> None:
    product_id = await catalogue.created()
    assert (await catalogue.change(product_id, 1, price=2)).status_code == 200
    before = await catalogue.get(f"/v1/products/{product_id}")
    response = await catalogue.put(product_id, headers=condition, price=3)
    assert refused(response) == expected
    assert response.json().get("current_version") == current
    assert (await catalogue.get(f"/v1/products/{product_id}")).content == before.content
    assert len(await catalogue.events(product_id)) == 2


async def test_if_match_on_what_is_not_there_is_a_mismatch_with_no_version(catalogue: Catalogue) -> None:
    product_id = new_product_id()
    for tag in ('"1"', "*"):
        response = await catalogue.put(product_id, headers={"If-Match": tag})
        assert refused(response) == "412 version_mismatch"
        content = response.json()
        assert "current_version" in content
        assert content["current_version"] is None
    assert refused(await catalogue.get(f"/v1/products/{product_id}")) == "404 not_found"
    assert await catalogue.events(product_id) == []


async def test_the_same_again_without_a_condition_writes_nothing(catalogue: Catalogue) -> None:
    product_id = await catalogue.created()
    changed = await catalogue.change(product_id, 1, price=5)
    counted = metric("products_written_total", result="unchanged")
    again = await catalogue.put(product_id, price=5)
    assert (again.status_code, again.headers["etag"], again.content) == (200, '"2"', changed.content)
    assert len(await catalogue.events(product_id)) == 2
    assert metric("products_written_total", result="unchanged") == counted + 1


@pytest.mark.parametrize(
    "other", [{"name": "Pot"}, {"description": ""}, {"price": 1998}, {"currency": "EUR"}, {"active": False}], ids=str
)
async def test_no_member_may_differ_for_it_to_be_the_same(catalogue: Catalogue, other: dict[str, Any]) -> None:
    product_id = await catalogue.created()
    assert refused(await catalogue.put(product_id, **other)) == "428 if_match_missing"


async def test_an_id_in_small_letters_is_the_same_product(catalogue: Catalogue) -> None:
    product_id = await catalogue.created()
    response = await catalogue.put(product_id.lower(), headers={"If-Match": '"1"'}, price=7)
    assert (response.status_code, response.json()["product_id"]) == (200, product_id)


@pytest.mark.parametrize("product_id", ["0" * 26, "7" + "Z" * 25])
async def test_any_ulid_is_an_id(catalogue: Catalogue, product_id: str) -> None:
    assert (await catalogue.put(product_id)).status_code == 201
    assert (await catalogue.get(f"/v1/products/{product_id}")).json()["product_id"] == product_id
    assert [one["product_id"] for one in (await catalogue.get("/v1/products")).json()["data"]] == [product_id]


async def test_writes_are_counted_by_what_they_did(catalogue: Catalogue) -> None:
    before = {result: metric("products_written_total", result=result) for result in ("created", "changed")}
    product_id = await catalogue.created()
    await catalogue.change(product_id, 1, price=1)
    await catalogue.change(product_id, 1, price=1)
    for result, count in before.items():
        assert metric("products_written_total", result=result) == count + 1


async def test_who_may_write_is_asked_before_what(catalogue: Catalogue) -> None:
    path = f"/v1/products/{new_product_id()}"
    nobody = await catalogue.client.put(path, content=b"{", headers={"If-None-Match": "x"})
    assert refused(nobody) == "401 unauthenticated"
    other = await catalogue.client.put(path, content=b"{", headers=catalogue.auth("orders:write catalog:read"))
    assert refused(other) == "403 scope_missing"
    assert other.json()["required"] == [WRITE]
