"""Products are listed newest first or by name, narrowed by filters, page after page, and each page may be kept."""

import asyncio
import base64
import itertools
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import pytest

from services.catalog import queries
from services.common import cursors, ids
from tests.catalog import Catalogue
from tests.contracts.description import refused

if TYPE_CHECKING:
    Connection = asyncpg.Connection[asyncpg.Record]

SHARED = "public, max-age=60, stale-while-revalidate=300"


async def walk(catalogue: Catalogue, limit: int = 100, **params: Any) -> list[dict[str, Any]]:
    """The products of all pages."""
    found: list[dict[str, Any]] = []
    while True:
        response = await catalogue.get("/v1/products", limit=limit, **params)
        assert (response.status_code, response.headers["cache-control"]) == (200, SHARED), response.text
        page = response.json()
        assert len(page["data"]) <= limit
        found += page["data"]
        if page["next_cursor"] is None:
            return found
        params["cursor"] = page["next_cursor"]


def of(products: list[dict[str, Any]], member: str) -> list[Any]:
    """That member of each."""
    return [product[member] for product in products]


async def plant(owner: "Connection", count: int, **values: str) -> list[UUID]:
    """So many products, made by the owner of the table; SQL for columns that differ. Their ids, oldest first."""
    columns = {"name": "'Thing ' || n", "price": "n", "currency": "'USD'", "active": "TRUE"} | values
    rows = await owner.fetch(
        f"INSERT INTO catalog.products (product_id, {', '.join(columns)}, description, version, updated_at)"  # noqa: S608 # ours
        f" SELECT uuidv7(), {', '.join(columns.values())}, '', 1, now() FROM generate_series(1, $1) n"
        " RETURNING product_id",
        count,
    )
    return sorted(row["product_id"] for row in rows)


async def test_no_products_are_an_empty_page(catalogue: Catalogue) -> None:
    for sort in ("newest", "name"):
        assert (await catalogue.get("/v1/products", sort=sort)).json() == {"data": [], "next_cursor": None}


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 100])
async def test_pages_give_every_product_once_the_newest_id_first(catalogue: Catalogue, limit: int) -> None:
    made = [await catalogue.created() for _ in range(6)]
    assert of(await walk(catalogue, limit), "product_id") == sorted(made, reverse=True)


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_by_name_small_and_large_letters_are_the_same_and_ids_tell_equal_names_apart(
    catalogue: Catalogue, limit: int
) -> None:
    names = ["pot", "Pan", "POT", "Élan", "pan", "Ämter", "zoo", "10", "9"]
    made = {await catalogue.created(name=name): name for name in names}
    expected = sorted(made, key=lambda product_id: (made[product_id].lower(), product_id))
    assert of(await walk(catalogue, limit, sort="name"), "product_id") == expected


async def test_the_first_and_the_last_id_there_can_be_are_listed(catalogue: Catalogue) -> None:
    ends = ["0" * 26, "7" + "Z" * 25]
    for product_id in ends:
        assert (await catalogue.put(product_id)).status_code == 201
    for limit, sort in itertools.product((1, 2), ("newest", "name")):
        assert set(of(await walk(catalogue, limit, sort=sort), "product_id")) == set(ends)


async def test_a_page_shows_products_as_they_are_alone_and_20_unless_told(catalogue: Catalogue) -> None:
    made = await asyncio.gather(*(catalogue.created() for _ in range(21)))
    page = (await catalogue.get("/v1/products")).json()
    assert of(page["data"], "product_id") == sorted(made, reverse=True)[:20]
    assert page["data"][3] == (await catalogue.get(f"/v1/products/{page['data'][3]['product_id']}")).json()


async def test_what_is_not_for_sale_is_listed_only_when_asked_for(catalogue: Catalogue) -> None:
    for_sale, gone = await catalogue.created(), await catalogue.created(active=False)
    assert of(await walk(catalogue), "product_id") == [for_sale]
    assert of(await walk(catalogue, active="true"), "product_id") == [for_sale]
    assert of(await walk(catalogue, active="false", sort="name"), "product_id") == [gone]


async def test_filters_let_through_a_currency_and_prices_up_to_but_not_including_the_last(catalogue: Catalogue) -> None:
    for price, currency in ((1, "USD"), (2, "USD"), (3, "USD"), (2, "EUR"), (10**12, "USD")):
        await catalogue.created(price=price, currency=currency)
    for params, prices in (
        ({"currency": "USD"}, [1, 2, 3, 10**12]),
        ({"currency": "EUR"}, [2]),
        ({"currency": "JPY"}, []),
        ({"currency": "USD", "price_from": 2}, [2, 3, 10**12]),
        ({"currency": "USD", "price_to": 2}, [1]),
        ({"currency": "USD", "price_from": 2, "price_to": 3}, [2]),
        ({"currency": "USD", "price_from": 3, "price_to": 2}, []),
        ({"currency": "USD", "price_from": 4, "price_to": 10**12 + 1}, [10**12]),
    ):
        for sort in ("newest", "name"):
            found = await walk(catalogue, 2, sort=sort, **params)
            assert sorted(of(found, "price")) == prices, params


@pytest.mark.parametrize("sort", ["newest", "name"])
async def test_a_walk_that_finds_little_gives_short_pages_and_everything_once(
    catalogue: Catalogue, owner: "Connection", monkeypatch: pytest.MonkeyPatch, sort: str
) -> None:
    monkeypatch.setattr(queries, "WALK_MAX", 7)
    await plant(owner, 60, currency="CASE WHEN n % 20 IN (0, 1, 2) THEN 'EUR' ELSE 'USD' END")
    for limit in (1, 2, 3, 7, 100):
        found = await walk(catalogue, limit, sort=sort, currency="EUR")
        assert sorted(of(found, "price")) == sorted(n for n in range(1, 61) if n % 20 in (0, 1, 2))
    first = (await catalogue.get("/v1/products", sort="newest", currency="KWD")).json()
    assert first["data"] == []
    assert first["next_cursor"] is not None


async def test_what_was_there_is_walked_once_while_others_come(catalogue: Catalogue) -> None:
    made = {await catalogue.created() for _ in range(15)}
    done = asyncio.Event()

    async def keep_inserting() -> None:
        number = 0
        while not done.is_set():
            number += 1  # in front, among and behind those that are walked
            first = (b"\x00", b"\x01", b"\xff")[number % 3]
            product_id = ids.to_text(UUID(bytes=first + number.to_bytes(15)))
            assert (await catalogue.put(product_id)).status_code == 201

    inserting = asyncio.create_task(keep_inserting())
    walked = of(await walk(catalogue, 2), "product_id")
    done.set()
    await inserting
    assert len(walked) == len(set(walked))
    assert walked == sorted(walked, reverse=True)
    assert made <= set(walked)


async def test_by_name_a_rename_of_what_was_shown_last_loses_no_other(catalogue: Catalogue) -> None:
    made = {name: await catalogue.created(name=name) for name in ("a", "b", "c")}
    page = (await catalogue.get("/v1/products", sort="name", limit=1)).json()
    assert (await catalogue.change(made["a"], 1, name="z")).status_code == 200
    rest = await walk(catalogue, sort="name", cursor=page["next_cursor"])
    assert of(rest, "name") == ["b", "c"]


@pytest.mark.parametrize("sort", ["newest", "name"])
async def test_a_cursor_that_is_not_ours_is_refused(catalogue: Catalogue, sort: str) -> None:
    for _ in range(2):
        await catalogue.created()
    cursor = (await catalogue.get("/v1/products", limit=1, sort=sort)).json()["next_cursor"]
    raw = bytearray(base64.urlsafe_b64decode(cursor))
    raw[3] ^= 1
    for wrong in ("", "x", cursor[:-1], cursor + "AAAA", base64.urlsafe_b64encode(raw).decode(), "é", "\x00", "A" * 32):
        assert refused(await catalogue.get("/v1/products", cursor=wrong, sort=sort)) == "400 bad_cursor", wrong
    assert (await catalogue.get("/v1/products", cursor=cursor, sort=sort)).status_code == 200


async def test_a_cursor_goes_on_with_the_question_it_was_given_for_and_any_limit(catalogue: Catalogue) -> None:
    for price in (1, 2):
        await catalogue.created(price=price)
    asked: dict[str, Any] = {"sort": "name", "currency": "USD", "price_from": 1}
    cursor = (await catalogue.get("/v1/products", limit=1, **asked)).json()["next_cursor"]
    others: list[dict[str, Any]] = [
        *({"sort": "newest"}, {"currency": "EUR"}, {"price_from": 2}, {"price_to": 9}, {"active": "false"}),
    ]
    for other in others:
        response = await catalogue.get("/v1/products", cursor=cursor, **(asked | other))
        assert refused(response) == "400 bad_cursor", other
    assert len((await catalogue.get("/v1/products", cursor=cursor, limit=7, **asked)).json()["data"]) == 1


async def test_a_forged_place_is_refused_or_a_place_like_any_other(catalogue: Catalogue) -> None:
    await catalogue.created()
    question = b"products name Filters(active=True, currency=None, price_from=None, price_to=None)"
    for place, expected in (
        *((raw, "400 bad_cursor") for raw in (b"", b"x", b"x" * 15, b"x" * 16 + b"\xff", b"x" * 16 + b"a\x00b")),
        *((raw, "200") for raw in (b"\xff" * 16, b"x" * 16 + b"y" * 5_000, b"x" * 16 + "é'; --".encode())),
    ):
        response = await catalogue.get("/v1/products", sort="name", cursor=cursors.sealed_bytes(place, question))
        assert refused(response) == expected, place[:40]


async def test_parameters_that_are_none_are_invalid_and_say_where(catalogue: Catalogue) -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        *(({"limit": limit}, "/limit") for limit in (0, 101, "x", "")),
        *(({"sort": sort}, "/sort") for sort in ("", "price", "NAME")),
        *(({"currency": code}, "/currency") for code in ("", "usd", "XXX")),
        *(({"currency": "USD", "price_from": price}, "/price_from") for price in (-1, 10**12 + 2, 1.5, "x", "", 2**70)),
        ({"price_from": 1}, "/price_from"),
        ({"price_to": 1}, "/price_to"),
        ({"active": "maybe"}, "/active"),
        ({"offset": 1}, "/offset"),
        ({"q": "teapot"}, "/q"),
    ]
    for params, at in wrong:
        response = await catalogue.get("/v1/products", **params)
        assert refused(response) == "422 invalid", params
        assert [error["at"] for error in response.json()["errors"]] == [at], params


@pytest.mark.parametrize("path", ["/v1/products?limit=1", "/v1/search?q=teapot"])
async def test_who_has_the_page_is_not_sent_it_again_until_it_changes(catalogue: Catalogue, path: str) -> None:
    product_id = await catalogue.created()
    response = await catalogue.client.get(path)
    tag = response.headers["etag"]
    assert (response.status_code, response.headers["cache-control"]) == (200, SHARED)
    for tags in (tag, f"W/{tag}", f'"7", {tag}', "*"):
        again = await catalogue.client.get(path, headers={"If-None-Match": tags})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
        assert again.headers["cache-control"] == SHARED
    assert (await catalogue.change(product_id, 1, price=7)).status_code == 200
    changed = await catalogue.client.get(path, headers={"If-None-Match": tag})
    assert (changed.status_code, changed.json()["data"][0]["price"]) == (200, 7)
    assert changed.headers["etag"] != tag
