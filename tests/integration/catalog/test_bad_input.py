"""Whatever a client sends, the answer is a success or a refusal of the contract."""

import json
from typing import Any

import httpx
import pytest

from tests.catalog import TEAPOT, Catalogue, new_product_id
from tests.contracts.description import refused

NO_PRICES: list[Any] = [
    *(0, -1, 10**12 + 1, 2**63, 2**64, 10**30, 1.0, 1.5, 1e3, True, False, "1", None, [1], {}),
]
NO_TEXTS: list[Any] = [None, 1, True, ["x"], {}]
NO_BOOLS: list[Any] = [1, 0, "true", None, []]
INVALID: list[tuple[dict[str, Any], str]] = [
    *(({"price": price}, "/price") for price in NO_PRICES),
    *(({"name": name}, "/name") for name in ("", "x" * 201, "\x00", "a\nb", "a\tb", "\x1f")),
    *(({"name": name}, "/name") for name in NO_TEXTS),
    *(({"description": text}, "/description") for text in ("x" * 10_001, "a\x00b", "\x01", "\x1b[0m", "\x0b")),
    *(({"description": text}, "/description") for text in NO_TEXTS),
    *(({"currency": code}, "/currency") for code in ("usd", "US", "XXX", "", "USDX", None, 840)),
    *(({"active": value}, "/active") for value in NO_BOOLS),
    ({"more": 1}, "/more"),
    ({"version": 1}, "/version"),
    ({"product_id": "01JD5Q0000E2WXGF4K4Z7D3M5T"}, "/product_id"),
]


async def _put(catalogue: Catalogue, content: bytes, **headers: str) -> httpx.Response:
    return await catalogue.client.put(
        f"/v1/products/{new_product_id()}",
        content=content,
        headers={**catalogue.auth(), "content-type": "application/json", **headers},
    )


@pytest.mark.parametrize(("members", "at"), INVALID, ids=lambda value: repr(value)[:40])
async def test_a_member_that_is_not_as_it_must_be_is_invalid_and_says_where(
    catalogue: Catalogue, members: dict[str, Any], at: str
) -> None:
    product_id = new_product_id()
    response = await catalogue.put(product_id, TEAPOT | members)
    assert refused(response) == "422 invalid"
    assert [error["at"] for error in response.json()["errors"]] == [at]
    assert await catalogue.events(product_id) == []


async def test_every_member_but_the_description_is_required(catalogue: Catalogue) -> None:
    response = await catalogue.put(new_product_id(), {})
    assert refused(response) == "422 invalid"
    assert {e["at"] for e in response.json()["errors"]} == {"/name", "/price", "/currency", "/active"}


async def test_what_is_no_object_is_invalid(catalogue: Catalogue) -> None:
    for content in (b"null", b"1", b'"x"', b"[]", b"true"):
        assert refused(await _put(catalogue, content)) == "422 invalid", content


async def test_what_is_no_json_is_malformed(catalogue: Catalogue) -> None:
    good = json.dumps(TEAPOT).encode()
    for content in (
        *(b"{", b"\x00", good[:-1], good + good, b"\xef\xbb\xbf" + good, good.replace(b"Teapot", b"\xff")),
        *(good.replace(b"Teapot", escape) for escape in (rb"\ud800", rb"\udfff\ud800", b"\x00", b"a\nb")),
        *(good.replace(b"1999", number) for number in (b"NaN", b"1e400", b"Infinity", b"01")),
        b"[" * 100_000,
    ):
        assert refused(await _put(catalogue, content)) == "400 malformed_json", content[:60]


async def test_media_type_and_size_come_before_what_the_body_says(catalogue: Catalogue) -> None:
    response = await _put(catalogue, b"{", **{"content-type": "text/plain"})
    assert refused(response) == "415 media_type"
    assert response.headers["accept"] == "application/json"
    assert refused(await _put(catalogue, b"")) == "400 malformed_json"
    huge = b'{"name": "' + b"x" * 256 * 1024 + b'"}'
    assert refused(await _put(catalogue, huge, **{"content-type": "text/plain"})) == "413 body_too_large"


async def test_the_largest_values_are_taken_and_come_back_as_they_were(catalogue: Catalogue) -> None:
    product_id = await catalogue.created(
        name="\N{TEAPOT}" * 200, description="\U0001f600" * 9_997 + "\t\r\n", price=10**12, currency="KWD", active=False
    )
    product = (await catalogue.get(f"/v1/products/{product_id}")).json()
    assert (product["name"], product["description"]) == ("\N{TEAPOT}" * 200, "\U0001f600" * 9_997 + "\t\r\n")
    assert (product["price"], product["currency"], product["active"]) == (10**12, "KWD", False)
    (event,) = await catalogue.events(product_id)
    assert event["data"]["product"] == product


@pytest.mark.parametrize(
    "product_id", ["x", "I" * 26, "8" + "0" * 25, "0" * 25, "0" * 27, "%00", "0" * 25 + "%0A", "0" * 25 + "\u017f"]
)
async def test_an_id_that_is_no_ulid_is_not_found_after_the_body_is_judged(
    catalogue: Catalogue, product_id: str
) -> None:
    assert refused(await catalogue.get(f"/v1/products/{product_id}")) == "404 not_found"
    assert refused(await catalogue.put(product_id)) == "404 not_found"
    assert refused(await catalogue.put(product_id, price=0)) == "422 invalid"
    assert refused(await catalogue.put(product_id, headers={"If-Match": '"1"'})) == "404 not_found"


async def test_other_methods_are_refused_and_told_which_there_are(catalogue: Catalogue) -> None:
    path = f"/v1/products/{await catalogue.created()}"
    for method, at, allow in (("DELETE", path, "GET, PUT"), ("POST", "/v1/products", "GET"), ("PUT", "/readyz", "GET")):
        response = await catalogue.client.request(method, at, headers=catalogue.auth())
        assert refused(response) == "405 method_not_allowed"
        assert response.headers["allow"] == allow
