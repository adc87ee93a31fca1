"""Products are read by anybody, and may be kept for a minute."""

import asyncio
import base64
from typing import Any
from uuid import UUID

import pytest

from services.common import ids
from tests.catalog import Catalogue, new_product_id
from tests.contracts.description import refused

SHARED = "public, max-age=60, stale-while-revalidate=300"


async def test_anybody_may_read_a_product_and_keep_it(catalogue: Catalogue) -> None:
    product_id = await catalogue.created()
    response = await catalogue.get(f"/v1/products/{product_id}")
    assert (response.status_code, response.headers["etag"], response.headers["cache-control"]) == (200, '"1"', SHARED)
    assert float(response.headers["server-timing"].partition("db;dur=")[2].partition(",")[0]) > 0


@pytest.mark.parametrize(
    ("tags", "status"),
    [('"1"', 304), ('W/"1"', 304), ('"7", "1"', 304), ("*", 304), ('"2"', 200), ('"11"', 200), ("1", 200)],
)
async def test_who_has_the_version_is_not_sent_it_again(catalogue: Catalogue, tags: str, status: int) -> None:
    product_id = await catalogue.created()
    response = await catalogue.get(f"/v1/products/{product_id}", headers={"If-None-Match": tags})
    assert (response.status_code, response.headers["etag"]) == (status, '"1"')
    assert response.headers["cache-control"] == SHARED
    assert bool(response.content) == (status == 200)


async def test_refusals_are_nobody_elses_to_keep(catalogue: Catalogue) -> None:
    for path in (f"/v1/products/{new_product_id()}", "/v1/products/x", "/v1/products?limit=0", "/v1/products?cursor=x"):
        response = await catalogue.client.get(path)
        assert response.status_code in {400, 404, 422}
        assert response.headers["cache-control"] == "private, no-store"


async def _walk(catalogue: Catalogue, limit: int) -> list[str]:
    """The ids of all pages."""
    found: list[str] = []
    params: dict[str, Any] = {"limit": limit}
    while True:
        response = await catalogue.get("/v1/products", **params)
        assert (response.status_code, response.headers["cache-control"]) == (200, SHARED), response.text
        page = response.json()
        assert len(page["data"]) <= limit
        found += [product["product_id"] for product in page["data"]]
        if page["next_cursor"] is None:
            return found
        assert len(page["data"]) == limit
        params["cursor"] = page["next_cursor"]


async def test_no_products_are_an_empty_page(catalogue: Catalogue) -> None:
    assert (await catalogue.get("/v1/products")).json() == {"data": [], "next_cursor": None}


@pytest.mark.parametrize("limit", [1, 2, 3, 6, 7, 100])
async def test_pages_give_every_product_once_in_the_order_of_ids(catalogue: Catalogue, limit: int) -> None:
    made = [await catalogue.created() for _ in range(6)]
    assert await _walk(catalogue, limit) == sorted(made)


async def test_a_page_shows_products_as_they_are_alone_and_20_unless_told(catalogue: Catalogue) -> None:
    made = await asyncio.gather(*(catalogue.created() for _ in range(21)))
    page = (await catalogue.get("/v1/products")).json()
    assert [product["product_id"] for product in page["data"]] == sorted(made)[:20]
    assert page["data"][3] == (await catalogue.get(f"/v1/products/{sorted(made)[3]}")).json()


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
    walked = await _walk(catalogue, 2)
    done.set()
    await inserting
    assert len(walked) == len(set(walked))
    assert walked == sorted(walked)
    assert made <= set(walked)


async def test_a_cursor_that_is_not_ours_is_refused(catalogue: Catalogue) -> None:
    for _ in range(2):
        await catalogue.created()
    cursor = (await catalogue.get("/v1/products", limit=1)).json()["next_cursor"]
    raw = bytearray(base64.urlsafe_b64decode(cursor))
    raw[3] ^= 1
    for wrong in ("", "x", cursor[:-1], cursor + "AAAA", base64.urlsafe_b64encode(raw).decode(), "é", "\x00", "A" * 32):
        assert refused(await catalogue.get("/v1/products", cursor=wrong)) == "400 bad_cursor", wrong
    assert (await catalogue.get("/v1/products", cursor=cursor)).status_code == 200


async def test_parameters_that_are_none_are_invalid(catalogue: Catalogue) -> None:
    for params in ({"limit": 0}, {"limit": 101}, {"limit": "x"}, {"limit": ""}, {"offset": 1}):
        assert refused(await catalogue.get("/v1/products", **params)) == "422 invalid", params


async def test_the_process_says_that_it_lives_and_is_ready(catalogue: Catalogue) -> None:
    assert (await catalogue.get("/healthz")).json() == {"status": "ok"}
    assert (await catalogue.get("/readyz")).json() == {"status": "ok", "warnings": []}
