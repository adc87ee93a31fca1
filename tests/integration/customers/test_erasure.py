"""After an erasure nothing of the customer is there, and nothing from before it can come back."""

import asyncio
import uuid
from typing import Any

from services.common import clock
from tests.contracts.description import refused
from tests.customers import ADA, ADDRESSES, Customers, path_of
from tests.faults.waiting import eventually
from tests.integration.customers.conftest import Owner


async def _stored(owner: Owner, user_id: uuid.UUID) -> tuple[list[Any], int]:
    """The row of the profile, without its time, and how many addresses there are."""
    row = await owner.fetchrow("SELECT version, person FROM customers.profiles WHERE user_id = $1", user_id)
    count = await owner.fetchval("SELECT count(*) FROM customers.addresses WHERE user_id = $1", user_id)
    return [] if row is None else list(row), count


async def test_an_export_holds_all_that_is_stored_and_says_where_orders_are(customers: Customers) -> None:
    profile = await customers.started()
    old = await customers.added()
    new = (await customers.replace(old, city="Bath")).json()
    retired = await customers.added()
    await customers.retire(retired)
    before = clock.now()
    export = (await customers.get("/v1/me/export")).json()
    assert clock.to_text(before) <= export.pop("exported_at") <= clock.to_text(clock.now())
    addresses = [(await customers.get(path_of(one))).json() for one in (old, new, retired)]
    assert export == {
        "profile": profile,
        "addresses": addresses,
        "orders": {"href": f"{customers.settings.orders_url}/v1/orders", "scope": "orders:read"},
    }


async def test_an_export_of_nobody_is_empty(customers: Customers) -> None:
    export = (await customers.get("/v1/me/export")).json()
    assert (export["profile"], export["addresses"]) == ((await customers.get()).json(), [])


async def test_after_an_erasure_nothing_is_there_for_anybody(customers: Customers, owner: Owner) -> None:
    await customers.started()
    addresses = [await customers.added(), await customers.added(city="Bath")]
    await customers.get()
    response = await customers.erase()
    assert (response.status_code, response.content) == (204, b"")
    assert response.headers["cache-control"] == "private, no-store"
    empty = await customers.get()
    assert empty.headers["etag"] == '"3"'
    assert {name: empty.json()[name] for name in (*ADA, "updated_at")} == {**dict.fromkeys(ADA), "updated_at": None}
    assert await customers.addresses() == []
    for address in addresses:
        assert refused(await customers.get(path_of(address))) == "404 not_found"
        assert refused(await customers.retire(address)) == "404 not_found"
    assert (await customers.get("/v1/me/export")).json()["addresses"] == []
    assert await _stored(owner, customers.customer) == ([3, None], 0)


async def test_an_erasure_again_changes_nothing(customers: Customers, owner: Owner) -> None:
    await customers.started()
    for _ in range(3):
        assert (await customers.erase()).status_code == 204
    assert await _stored(owner, customers.customer) == ([3, None], 0)


async def test_an_erasure_of_one_leaves_the_others(customers: Customers) -> None:
    other = uuid.uuid4()
    await customers.started()
    await customers.started(sub=other)
    address = await customers.added(sub=other)
    before = [await customers.get(path, sub=other) for path in ("/v1/me", path_of(address))]
    await customers.erase()
    after = [await customers.get(path, sub=other) for path in ("/v1/me", path_of(address))]
    assert [one.content for one in after] == [one.content for one in before]


async def test_a_write_from_before_an_erasure_brings_nothing_back(customers: Customers, owner: Owner) -> None:
    await customers.started()
    await customers.added(key="k")
    await customers.erase()
    late = [await customers.patch(version, name="Late") for version in (1, 2)]
    assert [refused(one) for one in late] == ["412 version_mismatch"] * 2
    assert late[0].json()["current_version"] == 3
    assert refused(await customers.add(key="k")) == "409 profile_missing"
    assert refused(await customers.add()) == "409 profile_missing"
    assert await _stored(owner, customers.customer) == ([3, None], 0)


async def test_a_first_write_from_before_an_erasure_of_nothing_is_refused_too(customers: Customers) -> None:
    assert (await customers.erase()).status_code == 204
    assert refused(await customers.patch(1, name="Late")) == "412 version_mismatch"
    assert (await customers.get()).json()["version"] == 2


async def test_who_starts_anew_sees_nothing_of_before(customers: Customers) -> None:
    await customers.started()
    first = await customers.add(key="k")
    await customers.erase()
    anew = await customers.patch(3, name="Anew")
    assert (anew.status_code, anew.headers["etag"]) == (200, '"4"')
    assert {name: anew.json()[name] for name in ADA} == {"name": "Anew", "email": None, "phone": None}
    again = await customers.add(key="k")
    assert again.status_code == 201
    assert "idempotency-replayed" not in again.headers
    assert again.json()["address_id"] != first.json()["address_id"]
    assert await customers.addresses() == [again.json()]


async def _waiting(owner: Owner, number: int) -> None:
    """So many statements wait for a lock."""

    async def wait() -> bool:
        waiting: int = await owner.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")
        return waiting == number

    await eventually(wait, f"{number} wait")


async def test_an_address_that_is_being_added_when_the_erasure_comes_is_erased(
    customers: Customers, owner: Owner
) -> None:
    await customers.started()
    async with owner.transaction():
        # Reading goes on, so whoever adds has the profile's row, and waits to insert.
        await owner.execute("LOCK TABLE customers.addresses IN SHARE ROW EXCLUSIVE MODE")
        adding = asyncio.create_task(customers.add())
        await _waiting(owner, 1)
        erasing = asyncio.create_task(customers.erase())
        await _waiting(owner, 2)
    assert [(await adding).status_code, (await erasing).status_code] == [201, 204]
    assert await _stored(owner, customers.customer) == ([3, None], 0)


async def test_an_address_that_comes_while_the_erasure_is_under_way_is_refused(
    customers: Customers, owner: Owner
) -> None:
    await customers.started()
    await customers.added()
    async with owner.transaction():
        await owner.execute("LOCK TABLE customers.addresses IN SHARE ROW EXCLUSIVE MODE")
        erasing = asyncio.create_task(customers.erase())
        await _waiting(owner, 1)
        adding = asyncio.create_task(customers.add())
        await _waiting(owner, 2)
    assert (await erasing).status_code == 204
    assert refused(await adding) == "409 profile_missing"
    assert await _stored(owner, customers.customer) == ([3, None], 0)


async def test_a_patch_and_an_erasure_at_once_leave_nothing_whichever_is_first(
    customers: Customers, owner: Owner
) -> None:
    for first in ("patch", "erase") * 3:
        sub = uuid.uuid4()
        await customers.started(sub=sub)
        async with owner.transaction():
            await owner.execute("SELECT FROM customers.profiles WHERE user_id = $1 FOR UPDATE", sub)
            requests = {
                "patch": lambda s=sub: customers.patch(2, sub=s, name="X"),
                "erase": lambda s=sub: customers.erase(sub=s),
            }
            order = [first, *({"patch", "erase"} - {first})]
            tasks = {}
            for number, name in enumerate(order, start=1):
                tasks[name] = asyncio.create_task(requests[name]())
                await _waiting(owner, number)
        assert (await tasks["erase"]).status_code == 204
        expected = "200" if first == "patch" else "412 version_mismatch"
        assert refused(await tasks["patch"]) == expected
        stored, _ = await _stored(owner, sub)
        assert stored[1] is None
        assert (await customers.get(sub=sub)).json()["name"] is None


async def test_nothing_of_the_erased_is_found_in_the_tables(customers: Customers, owner: Owner) -> None:
    await customers.started()
    address = await customers.added(name="Findme")
    await customers.replace(address, name="Findme too")
    await customers.erase()
    for table in ("profiles", "addresses", "invalidations"):
        rows = await owner.fetch(f"SELECT encode(t::text::bytea, 'escape') AS row FROM customers.{table} t")  # noqa: S608
        for row in rows:
            for mark in ("Ada", "Findme", "ada@", b"Ada".hex(), b"Findme".hex()):
                assert mark not in row["row"]
    assert (await customers.get(ADDRESSES)).json()["data"] == []
