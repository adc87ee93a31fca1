"""Products are read by anybody, and may be kept for a minute."""

import pytest

from tests.catalog import Catalogue, new_product_id

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


async def test_the_process_says_that_it_lives_and_is_ready(catalogue: Catalogue) -> None:
    assert (await catalogue.get("/healthz")).json() == {"status": "ok"}
    assert (await catalogue.get("/readyz")).json() == {"status": "ok", "warnings": []}
