"""A profile is empty until it is written, is changed at the version that was seen, and is its customer's alone."""

import uuid
from typing import Any

import pytest

from services.common import clock
from tests.contracts.description import refused
from tests.customers import ADA, Customers
from tests.integration.relay.conftest import metric


async def test_everybody_has_a_profile_that_is_empty_until_it_is_first_written(customers: Customers) -> None:
    empty = await customers.get()
    assert (empty.status_code, empty.headers["etag"]) == (200, '"1"')
    assert empty.json() == {
        "user_id": str(customers.customer),
        **dict.fromkeys(ADA),
        "version": 1,
        "updated_at": None,
    }
    assert await customers.owner.fetchval("SELECT count(*) FROM customers.profiles") == 0

    before = clock.now()
    written = await customers.send("PATCH", "/v1/me", json=ADA, headers={"If-Match": '"1"'})
    assert (written.status_code, written.headers["etag"]) == (200, '"2"')
    profile = written.json()
    assert profile == {**empty.json(), **ADA, "version": 2, "updated_at": profile["updated_at"]}
    assert clock.to_text(before) <= profile["updated_at"] <= clock.to_text(clock.now())
    for _ in range(2):  # from the database, and from the cache
        assert (await customers.get()).content == written.content


async def test_a_patch_replaces_what_it_names_removes_what_is_null_and_leaves_the_rest(customers: Customers) -> None:
    await customers.started()
    changed = await customers.patch(2, name="Countess", email=None)
    assert (changed.status_code, changed.headers["etag"]) == (200, '"3"')
    assert {m: changed.json()[m] for m in ADA} == {"name": "Countess", "email": None, "phone": ADA["phone"]}
    nothing = await customers.patch(3)
    assert (nothing.json()["version"], nothing.json()["name"]) == (4, "Countess")


@pytest.mark.parametrize("media_type", ["application/merge-patch+json", "application/json", "application/JSON; q=1"])
async def test_a_patch_is_a_merge_patch_or_json(customers: Customers, media_type: str) -> None:
    headers = {"If-Match": '"1"', "Content-Type": media_type}
    response = await customers.send("PATCH", "/v1/me", content=b'{"name": "Ada"}', headers=headers)
    assert (response.status_code, response.json()["name"]) == (200, "Ada")


async def test_a_patch_of_another_type_is_told_which_are_taken(customers: Customers) -> None:
    headers = {"If-Match": '"1"', "Content-Type": "application/json-patch+json"}
    response = await customers.send("PATCH", "/v1/me", content=b"[]", headers=headers)
    assert refused(response) == "415 media_type"
    assert response.headers["accept-patch"] == "application/merge-patch+json, application/json"


async def test_a_patch_without_a_version_is_refused_and_one_of_another_version_too(customers: Customers) -> None:
    for path_to in ("before", "after"):
        if path_to == "after":
            await customers.started()
        before = await customers.get()
        assert refused(await customers.send("PATCH", "/v1/me", json=ADA)) == "428 if_match_missing"
        current = before.json()["version"]
        for tag in (f'"{current + 1}"', f'"{current - 1}"', '"0"', "*", f'W/"{current}"', "x", '"99999999999"'):
            response = await customers.send("PATCH", "/v1/me", json={"name": "X"}, headers={"If-Match": tag})
            assert refused(response) == "412 version_mismatch", tag
            assert response.json()["current_version"] == current
        assert (await customers.get()).content == before.content


async def test_a_version_that_is_seen_already_is_not_sent_again(customers: Customers) -> None:
    await customers.started()
    for outcome in ("miss", "hit"):
        seen = await customers.send("GET", "/v1/me", headers={"If-None-Match": '"2"'})
        assert (seen.status_code, seen.content, seen.headers["x-cache"]) == (304, b"", outcome)
    assert (await customers.send("GET", "/v1/me", headers={"If-None-Match": '"1"'})).status_code == 200


async def test_what_is_asked_first_is_whose_it_is_then_the_body_then_the_version(customers: Customers) -> None:
    nobody = await customers.client.patch("/v1/me", content=b"{")
    assert refused(nobody) == "401 unauthenticated"
    scope = customers.auth("orders:read orders:write orders:read:any")
    other = await customers.client.patch("/v1/me", content=b"{", headers=scope)
    assert refused(other) == "403 scope_missing"
    assert other.json()["required"] == ["profile"]
    bodies: list[tuple[Any, str]] = [(b"{", "400 malformed_json"), (b'{"name": 1}', "422 invalid")]
    for content, expected in bodies:
        headers = {"Content-Type": "application/json"}
        assert refused(await customers.send("PATCH", "/v1/me", content=content, headers=headers)) == expected


async def test_each_customer_has_a_profile_of_their_own(customers: Customers) -> None:
    other = uuid.uuid4()
    mine = await customers.started()
    theirs = (await customers.patch(1, sub=other, name="Other")).json()
    assert (await customers.get()).json() == mine
    assert (await customers.get(sub=other)).json() == theirs
    assert theirs["user_id"] == str(other)


async def test_writes_are_counted_by_what_they_did(customers: Customers) -> None:
    results = ("changed", "erased", "unchanged")
    before = [metric("profiles_written_total", result=result) for result in results]
    await customers.started()
    await customers.patch(1, name="X")
    for _ in range(2):
        await customers.erase()
    assert [metric("profiles_written_total", result=result) for result in results] == [one + 1 for one in before]
