"""Whoever comes at the same time, or twice: every version once, and one answer for one request."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import httpx
import pytest

from services.catalog.settings import CatalogSettings
from services.common import ids
from tests.catalog import TEAPOT, Catalogue, new_product_id, opened_catalogue
from tests.contracts.description import refused
from tests.faults.cutting import Door
from tests.faults.waiting import eventually

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

NEW = {"If-None-Match": "*"}


def _told(*responses: httpx.Response) -> list[str]:
    """Status and code of each, sorted."""
    return sorted(refused(response) for response in responses)


@pytest.mark.parametrize(
    ("headers", "prices", "expected"),
    [
        ({}, (1, 2), ["201", "428 if_match_missing"]),
        ({}, (1, 1), ["200", "201"]),
        (NEW, (1, 2), ["201", "412 version_mismatch"]),
        (NEW, (1, 1), ["201", "412 version_mismatch"]),
    ],
    ids=["others", "the same", "others, both new", "the same, both new"],
)
async def test_of_two_creates_at_once_one_creates(
    catalogue: Catalogue, headers: dict[str, str], prices: tuple[int, int], expected: list[str]
) -> None:
    for _ in range(10):
        product_id = new_product_id()
        responses = await asyncio.gather(*(catalogue.put(product_id, headers=headers, price=p) for p in prices))
        assert _told(*responses) == expected
        (event,) = await catalogue.events(product_id)
        assert event["data"]["product"] == (await catalogue.get(f"/v1/products/{product_id}")).json()


@pytest.mark.parametrize("prices", [(1, 2), (1, 1)], ids=["others", "the same"])
async def test_of_two_changes_of_one_version_one_is_made(catalogue: Catalogue, prices: tuple[int, int]) -> None:
    for _ in range(10):
        product_id = await catalogue.created()
        responses = await asyncio.gather(*(catalogue.change(product_id, 1, price=price) for price in prices))
        assert _told(*responses) == ["200", "412 version_mismatch"]
        assert [event["version"] for event in await catalogue.events(product_id)] == [1, 2]


@pytest.mark.parametrize(("headers", "expected"), [({}, "428 if_match_missing"), (NEW, "412 version_mismatch")])
async def test_a_create_waits_for_one_under_way_and_is_judged_by_it(
    catalogue: Catalogue, owner: "Connection", headers: dict[str, str], expected: str
) -> None:
    product_id = new_product_id()
    async with owner.transaction():
        await owner.execute(
            "INSERT INTO catalog.products (product_id, name, description, price, currency, active, version, updated_at)"
            " VALUES ($1, 'Other', '', 1, 'USD', TRUE, 1, now())",
            ids.from_text(product_id),
        )
        waiting = asyncio.create_task(catalogue.put(product_id, headers=headers))

        async def waits() -> bool:
            return bool(await owner.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

        await eventually(waits, "it waits")
    assert refused(await waiting) == expected
    assert await catalogue.events(product_id) == []


async def test_20_changers_at_once_leave_a_history_without_a_gap(catalogue: Catalogue) -> None:
    product_id = await catalogue.created(name="0")

    async def change(number: int) -> int:
        """The version that this changer made."""
        while True:
            seen = (await catalogue.get(f"/v1/products/{product_id}")).json()["version"]
            response = await catalogue.change(product_id, seen, name=str(number))
            if response.status_code == 200:
                return int(response.json()["version"])
            assert refused(response) == "412 version_mismatch"

    made = await asyncio.gather(*map(change, range(1, 21)))
    assert sorted(made) == list(range(2, 22))
    events = await catalogue.events(product_id)
    assert [event["version"] for event in events] == list(range(1, 22)), "in the order of their positions"
    assert [event["data"]["product"]["version"] for event in events] == list(range(1, 22))
    by_version = {version: str(number) for number, version in enumerate(made, start=1)} | {1: "0"}
    assert [event["data"]["product"]["name"] for event in events] == [by_version[v] for v in range(1, 22)]


@pytest.fixture
async def door(catalog_settings: CatalogSettings, tmp_path: Path) -> AsyncIterator[Door]:
    """What stands between the catalogue and its database."""
    async with Door(catalog_settings.postgres_url, tmp_path) as opened:
        yield opened


@pytest.fixture
async def behind_door(
    door: Door, catalog_settings: CatalogSettings, issuer: tuple[Path, str], owner: "Connection"
) -> AsyncIterator[Catalogue]:
    """A catalogue that reaches its database through the door."""
    settings = catalog_settings.model_copy(update={"postgres_url": door.url})
    async with opened_catalogue(settings, issuer[0], owner) as opened:
        assert (await opened.get("/readyz")).status_code == 200
        yield opened


async def _version(owner: "Connection", product_id: str) -> int:
    return (
        await owner.fetchval(
            "SELECT version FROM catalog.products WHERE product_id = $1",
            ids.from_text(product_id),
        )
        or 0
    )


@pytest.mark.parametrize("headers", [{}, NEW], ids=str)
async def test_a_create_whose_answer_is_lost_is_answered_as_it_would_have_been(
    behind_door: Catalogue, door: Door, owner: "Connection", headers: dict[str, str]
) -> None:
    await behind_door.created()  # so that the statement is prepared: what is held could not be sent else
    product_id = new_product_id()
    door.hold()
    response = asyncio.create_task(behind_door.put(product_id, headers=headers))
    await eventually(lambda: _version(owner, product_id), "it is committed")
    door.cut()
    answer = await response
    assert (answer.status_code, answer.headers["etag"]) == (201, '"1"'), answer.text
    assert answer.headers["location"] == f"/v1/products/{product_id}"
    assert answer.content == (await behind_door.get(f"/v1/products/{product_id}")).content
    assert len(await behind_door.events(product_id)) == 1


async def test_a_change_whose_answer_is_lost_is_made_once_and_answered(
    behind_door: Catalogue, door: Door, owner: "Connection"
) -> None:
    product_id = await behind_door.created()
    door.hold()
    response = asyncio.create_task(behind_door.change(product_id, 1, price=3))

    async def committed() -> bool:
        return await _version(owner, product_id) == 2

    await eventually(committed, "it is committed")
    door.cut()
    answer = await response
    assert (answer.status_code, answer.headers["etag"], answer.json()["price"]) == (200, '"2"', 3), answer.text
    assert [event["version"] for event in await behind_door.events(product_id)] == [1, 2]


async def test_a_change_whose_answer_is_lost_and_that_another_has_replaced_is_a_mismatch(
    behind_door: Catalogue, door: Door, owner: "Connection"
) -> None:
    product_id = await behind_door.created()
    door.hold()
    response = asyncio.create_task(behind_door.change(product_id, 1, price=3))

    async def replaced() -> bool:
        status = await owner.execute(
            "UPDATE catalog.products SET version = 3, price = 4 WHERE product_id = $1 AND version = 2",
            ids.from_text(product_id),
        )
        return status == "UPDATE 1"

    await eventually(replaced, "it is committed, and replaced")
    door.cut()
    answer = await response
    assert (refused(answer), answer.json()["current_version"]) == ("412 version_mismatch", 3)


async def test_a_connection_lost_before_anything_was_sent_costs_nothing(behind_door: Catalogue, door: Door) -> None:
    product_id = await behind_door.created()
    door.cut()
    assert (await behind_door.change(product_id, 1, price=3)).status_code == 200
    door.cut()
    assert (await behind_door.get(f"/v1/products/{product_id}")).json()["version"] == 2


async def test_while_the_database_is_away_all_is_unavailable_but_the_process_lives(
    behind_door: Catalogue, door: Door
) -> None:
    product_id = await behind_door.created()
    await door.__aexit__()
    for response in (
        await behind_door.get("/readyz"),
        await behind_door.get("/v1/products"),
        await behind_door.get(f"/v1/products/{product_id}"),
        await behind_door.put(product_id, TEAPOT),
    ):
        assert refused(response) == "503 unavailable"
        assert response.headers["retry-after"] == "1"
        assert response.headers["cache-control"] == "private, no-store"
    assert (await behind_door.get("/healthz")).status_code == 200
