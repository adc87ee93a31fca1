"""Whoever comes at the same time: one writes, the others are told; and a lost answer of the database costs nothing."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from services.common import db
from services.customers.domain import ADDRESSES_MAX
from services.customers.settings import CustomersSettings
from tests.contracts.description import refused
from tests.customers import Customers, opened_customers
from tests.faults.cutting import Door
from tests.faults.waiting import eventually
from tests.integration.customers.conftest import Owner


async def test_of_two_patches_of_one_version_one_is_made(customers: Customers) -> None:
    for version in (1, *range(2, 12)):  # the first one makes the row
        names = ("one", "other")
        responses = await asyncio.gather(*(customers.patch(version, name=name) for name in names))
        assert sorted(map(refused, responses)) == ["200", "412 version_mismatch"]
        (made,) = (one.json() for one in responses if one.status_code == 200)
        assert (await customers.get()).json() == made
        assert made["version"] == version + 1


async def test_of_the_same_key_at_once_one_address_is_made(customers: Customers) -> None:
    await customers.started()
    responses = await asyncio.gather(*(customers.add(key="k") for _ in range(10)))
    assert {one.status_code for one in responses} == {201}
    assert len({one.content for one in responses}) == 1
    assert sum("idempotency-replayed" in one.headers for one in responses) == 9
    assert len(await customers.addresses()) == 1


async def test_of_sixty_at_once_fifty_are_added(customers: Customers) -> None:
    await customers.started()
    responses = await asyncio.gather(*(customers.add(name=str(number)) for number in range(ADDRESSES_MAX + 10)))
    told = sorted(map(refused, responses))
    assert told == ["201"] * ADDRESSES_MAX + ["409 too_many_addresses"] * 10
    assert len(await customers.addresses()) == ADDRESSES_MAX


@pytest.mark.parametrize(
    ("cities", "expected"), [(("Bath", "York"), ["201", "409 address_retired"]), (("Bath", "Bath"), ["200", "201"])]
)
async def test_of_two_replacements_of_one_address_one_is_made(
    customers: Customers, cities: tuple[str, str], expected: list[str]
) -> None:
    await customers.started()
    for _ in range(5):
        address = await customers.added()
        responses = await asyncio.gather(*(customers.replace(address, city=city) for city in cities))
        assert sorted(map(refused, responses)) == expected
        (new,) = await customers.addresses()
        assert new in [one.json() for one in responses]
        await customers.retire(new)


async def test_who_waits_too_long_for_another_request_of_the_customer_is_told_to_come_again(
    customers: Customers, owner: Owner, monkeypatch: pytest.MonkeyPatch, issuer: tuple[Path, str]
) -> None:
    await customers.started()
    address = await customers.added()
    monkeypatch.setattr(db, "SESSION", {**db.SESSION, "lock_timeout": "50ms"})
    async with opened_customers(customers.settings, issuer[0], owner) as hurried, owner.transaction():
        hurried.customer = customers.customer
        await owner.execute("SELECT FROM customers.profiles FOR UPDATE")
        waited = [await hurried.add(), await hurried.replace(address, city="Bath"), await hurried.retire(address)]
        assert [refused(one) for one in waited] == ["409 request_in_progress"] * 3
        assert {one.headers["retry-after"] for one in waited} == {"1"}
        for one in (await hurried.patch(2, name="X"), await hurried.erase()):
            assert refused(one) == "503 unavailable"
    assert await customers.addresses() == [address]


@pytest.fixture
async def door(customers_settings: CustomersSettings, tmp_path: Path) -> AsyncIterator[Door]:
    """What stands between customers-api and its database."""
    async with Door(customers_settings.postgres_url, tmp_path) as opened:
        yield opened


@pytest.fixture
async def behind_door(
    door: Door, customers_settings: CustomersSettings, issuer: tuple[Path, str], owner: Owner
) -> AsyncIterator[Customers]:
    """Customers whose database is behind the door; no cache answers for it."""
    settings = customers_settings.model_copy(update={"postgres_url": door.url, "cache_url": ""})
    async with opened_customers(settings, issuer[0], owner) as opened:
        await opened.started()
        await opened.added()  # so that every statement is prepared: what is held could not be sent else
        yield opened


async def test_a_patch_whose_answer_is_lost_is_made_once_and_answered(
    behind_door: Customers, door: Door, owner: Owner
) -> None:
    # The read before passes, the answer to the write does not.
    async with owner.transaction():
        await owner.execute("SELECT FROM customers.profiles FOR UPDATE")
        response = asyncio.create_task(behind_door.patch(2, name="Countess"))

        async def waits() -> bool:
            return bool(await owner.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

        await eventually(waits, "the write waits")
        door.hold()

    async def committed() -> bool:
        return bool(await owner.fetchval("SELECT version = 3 FROM customers.profiles"))

    await eventually(committed, "it is committed")
    door.cut()
    answer = await response
    assert (answer.status_code, answer.headers["etag"]) == (200, '"3"')
    assert (await behind_door.get()).content == answer.content


async def test_while_the_database_is_away_all_is_unavailable_but_the_process_lives(
    behind_door: Customers, door: Door
) -> None:
    address = (await behind_door.addresses())[0]
    await door.__aexit__()
    for response in (
        *[await behind_door.get(path) for path in ("/readyz", "/v1/me", "/v1/me/addresses", "/v1/me/export")],
        *(await behind_door.patch(2, name="X"), await behind_door.erase()),
        *(await behind_door.add(), await behind_door.replace(address, city="Bath"), await behind_door.retire(address)),
    ):
        assert refused(response) == "503 unavailable"
        assert response.headers["retry-after"] == "1"
        assert response.headers["cache-control"] == "private, no-store"
    assert (await behind_door.get("/healthz")).status_code == 200
