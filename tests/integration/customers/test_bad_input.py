"""Whatever a client sends, the answer is a success or a refusal of the contract: never a 500, never none."""

import json
import secrets
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contracts.description import refused
from tests.contracts.test_openapi import STATUS
from tests.customers import ADDRESSES, SQUARE, Customers, path_of

KNOWN = STATUS.keys() | {"method_not_allowed"}
NO_TEXTS: list[Any] = [1, True, 1.5, ["x"], {}, {"a": None}]
NO_NAMES: list[Any] = [*NO_TEXTS, "", "x" * 201, "\x00", "a\nb", "a\tb", "\x1f"]
NO_PHONES: list[Any] = [
    *NO_TEXTS,
    "",
    "442071838750",
    "+0123",
    "+1",
    "+" + "1" * 16,
    "+44 20",
    "+44207\n",
    "+44\uff12\uff10\uff17",
]
NO_LINES: list[Any] = [None, "x", [], ["x"] * 5, {}]
INVALID_PERSONS: list[tuple[dict[str, Any], str]] = [
    *(({"name": value}, "/name") for value in NO_NAMES),
    *(({"phone": value}, "/phone") for value in NO_PHONES),
    *(
        ({"email": value}, "/email")
        for value in (*NO_TEXTS, "", "x", "@", "a@", "@b", "a@b@c", "a b@c", "a@b\n", "a@\x00", "a" * 250 + "@b.de")
    ),
    ({"more": 1}, "/more"),
    ({"version": 3}, "/version"),
    ({"user_id": "0b0f5a52-7d0e-4d6e-9a53-0d3a7a6f0001"}, "/user_id"),
]
INVALID_PLACES: list[tuple[dict[str, Any], str]] = [
    *(({name: value}, f"/{name}") for name in ("name", "city") for value in (None, *NO_NAMES)),
    *(({"region": value}, "/region") for value in NO_NAMES),
    *(({"postal_code": value}, "/postal_code") for value in (*NO_TEXTS, "", "x" * 21, "1\x00")),
    *(({"phone": value}, "/phone") for value in NO_PHONES),
    *(({"country": code}, "/country") for code in ("gb", "UK", "XX", "GBR", "", "G", "\uff27\uff22", None, 826)),
    *(({"lines": value}, "/lines") for value in NO_LINES),
    *(({"lines": ["x", value]}, "/lines/1") for value in (None, *NO_NAMES)),
    ({"more": 1}, "/more"),
    ({"address_id": "01JD5Q0000E2WXGF4K4Z7D3M5T"}, "/address_id"),
]
NO_ULIDS = ["x", "I" * 26, "8" + "0" * 25, "0" * 25, "0" * 27, "%00", "0" * 25 + "%0A", "0" * 25 + "\u017f", "export"]


def judged(response: httpx.Response) -> httpx.Response:
    """The response, which is a success or a known refusal."""
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        assert response.headers["content-type"] == "application/problem+json"
        assert response.json()["code"] in KNOWN
    return response


@pytest.fixture
async def customers(customers: Customers) -> Customers:
    """Of somebody who has a profile."""
    await customers.started()
    return customers


async def test_a_member_of_a_profile_that_is_not_as_it_must_be_is_invalid_and_says_where(customers: Customers) -> None:
    before = (await customers.get()).content
    for members, at in INVALID_PERSONS:
        response = await customers.send("PATCH", "/v1/me", json=members, headers={"If-Match": '"2"'})
        assert refused(response) == "422 invalid", members
        assert {error["at"] for error in response.json()["errors"]} == {at}, members
    assert (await customers.get()).content == before


async def test_a_member_of_an_address_that_is_not_as_it_must_be_is_invalid_and_says_where(customers: Customers) -> None:
    address = await customers.added()
    for members, at in INVALID_PLACES:
        added = await customers.send("POST", ADDRESSES, json=SQUARE | members, headers={"Idempotency-Key": "k"})
        replaced = await customers.send("PUT", path_of(address), json=SQUARE | members)
        for response in (added, replaced):
            assert refused(response) == "422 invalid", members
            assert {error["at"] for error in response.json()["errors"]} == {at}, members
    for name in ("name", "lines", "city", "country"):
        missing = {member: value for member, value in SQUARE.items() if member != name}
        response = await customers.send("PUT", path_of(address), json=missing)
        assert refused(response) == "422 invalid", name
    assert await customers.addresses() == [address]


async def test_the_largest_values_are_taken_and_come_back_as_they_were(customers: Customers) -> None:
    text = "\u007f\u0085\u2028\ufffe\U0010ffff\u202e\u00e9e\u0301" + "\U0001f600" * 191
    email, phone = "ß" * 127 + "@" + "x" * 126, "+123456789012345"
    patched = await customers.patch(2, name=text, email=email, phone=phone)
    assert {name: patched.json()[name] for name in ("name", "email", "phone")} == {
        **{"name": text, "email": email, "phone": phone}
    }
    for _ in range(2):  # and from the cache
        assert (await customers.get()).content == patched.content
    members: dict[str, Any] = {
        "name": text,
        "lines": [text] * 4,
        "city": text,
        "region": text,
        "postal_code": text[:20],
    }
    address = await customers.added(**members)
    assert {name: address[name] for name in members} == members
    assert (await customers.get(path_of(address))).json() == address


async def test_what_is_no_object_is_invalid_and_what_is_no_json_malformed(customers: Customers) -> None:
    address = await customers.added()
    headers = {"If-Match": '"2"', "Idempotency-Key": "k", "Content-Type": "application/json"}
    for method, path in (("PATCH", "/v1/me"), ("POST", ADDRESSES), ("PUT", path_of(address))):
        for content in (b"null", b"1", b'"x"', b"[]", b"true"):
            response = await customers.send(method, path, content=content, headers=headers)
            assert refused(response) == "422 invalid", (method, content)
        for content in (b"", b"{", b"\x00", b"{} {}", b"\xef\xbb\xbf{}", rb'{"name": "\ud800"}', b'{"name": "\xff"}'):
            response = await customers.send(method, path, content=content, headers=headers)
            assert refused(response) == "400 malformed_json", (method, content)
        for media_type in ("text/plain", "", "application/problem+json"):
            typed = {**headers, "Content-Type": media_type}
            response = await customers.send(method, path, content=b"{", headers=typed)
            assert refused(response) == "415 media_type", (method, media_type)
        huge = await customers.send(method, path, content=b" " * (256 * 1024 + 1), headers=headers)
        assert refused(huge) == "413 body_too_large"
    # Addresses are no documents to be patched.
    typed = {**headers, "Content-Type": "application/merge-patch+json"}
    assert refused(await customers.send("POST", ADDRESSES, json=SQUARE, headers=typed)) == "415 media_type"


async def test_keys_that_are_no_keys_are_missing(customers: Customers) -> None:
    for key in (b" ", b'""', b"k" * 256, b"a b", "é".encode(), b"\xff", b"k\x7f"):
        headers = [(b"authorization", customers.auth()["Authorization"].encode()), (b"idempotency-key", key)]
        headers.append((b"content-type", b"application/json"))
        response = await customers.client.post(ADDRESSES, content=json.dumps(SQUARE), headers=headers)
        assert refused(response) == "400 key_missing", key
    assert await customers.addresses() == []


async def test_an_id_that_is_no_ulid_is_not_found_after_the_body_is_judged(customers: Customers) -> None:
    for address_id in NO_ULIDS:
        path = f"{ADDRESSES}/{address_id}"
        assert refused(await customers.get(path)) == "404 not_found", address_id
        assert refused(await customers.send("DELETE", path)) == "404 not_found"
        assert refused(await customers.send("PUT", path, json=SQUARE)) == "404 not_found"
        assert refused(await customers.send("PUT", path, json={})) == "422 invalid"
    address = await customers.added()
    assert (await customers.get(path_of(address).lower().replace("/V1", "/v1"))).json() == address


async def test_other_methods_are_refused_and_told_which_there_are(customers: Customers) -> None:
    for method, path, allow in (
        ("PUT", "/v1/me", "DELETE, GET, PATCH"),
        ("POST", "/v1/me/export", "GET"),
        ("DELETE", ADDRESSES, "GET, POST"),
        ("PATCH", f"{ADDRESSES}/{'0' * 26}", "DELETE, GET, PUT"),
    ):
        response = await customers.send(method, path)
        assert refused(response) == "405 method_not_allowed"
        assert response.headers["allow"] == allow


async def test_who_has_no_token_or_no_scope_is_refused_on_every_route(customers: Customers) -> None:
    address = await customers.added()
    for method, path in (
        *(("GET", "/v1/me"), ("PATCH", "/v1/me"), ("DELETE", "/v1/me"), ("GET", "/v1/me/export")),
        *(("GET", ADDRESSES), ("POST", ADDRESSES)),
        *((method, path_of(address)) for method in ("GET", "PUT", "DELETE")),
    ):
        assert refused(await customers.client.request(method, path)) == "401 unauthenticated", (method, path)
        # Whoever may do anything with orders may still not see whose they are.
        scope = "orders:read orders:read:any orders:write orders:fulfil orders:price inventory:write catalog:write"
        response = await customers.client.request(method, path, headers=customers.auth(scope))
        assert refused(response) == "403 scope_missing", (method, path)
        assert response.headers["cache-control"] == "private, no-store"
    assert await customers.addresses() == [address]


async def test_every_answer_is_its_customers_alone_and_is_stored_nowhere(customers: Customers) -> None:
    address = await customers.added()
    answers = [await customers.get(path) for path in ("/v1/me", "/v1/me/export", ADDRESSES, path_of(address))]
    answers += [await customers.patch(2, name="X"), await customers.replace(address, city="Bath")]
    answers += [await customers.add(), await customers.retire(address), await customers.erase()]
    for response in answers:
        assert response.status_code < 300
        assert response.headers["cache-control"] == "private, no-store"
        assert response.headers["server-timing"].startswith("db;dur=")


# --- anything at all

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
PERSONS = st.dictionaries(st.sampled_from(("name", "email", "phone", "x")), JSON)
PLACES = st.dictionaries(st.sampled_from(tuple(SQUARE)), JSON).map(lambda members: SQUARE | members)
bounded = settings(
    max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@bounded
@given(body=JSON | PERSONS | PLACES)
async def test_any_json_is_a_success_or_a_known_refusal(customers: Customers, body: Any) -> None:
    version = (await customers.get()).json()["version"]
    headers = {"If-Match": f'"{version}"', "Idempotency-Key": secrets.token_hex(8)}
    content = json.dumps(body).encode()
    for method, path in (("PATCH", "/v1/me"), ("POST", ADDRESSES), ("PUT", f"{ADDRESSES}/{'0' * 26}")):
        typed = {**headers, "Content-Type": "application/json"}
        judged(await customers.send(method, path, content=content, headers=typed))


@bounded
@given(content=st.binary(max_size=200), media_type=st.sampled_from(("application/json", "text/plain", "")))
async def test_any_bytes_are_a_known_refusal(customers: Customers, content: bytes, media_type: str) -> None:
    headers = {"If-Match": '"2"', "Idempotency-Key": "k", "Content-Type": media_type}
    for method, path in (("PATCH", "/v1/me"), ("POST", ADDRESSES)):
        response = await customers.send(method, path, content=content, headers=headers)
        assert judged(response).status_code >= 400


@bounded
@given(segment=TEXT.filter(bool), query=st.dictionaries(TEXT, TEXT, max_size=3))
async def test_any_path_and_query_are_a_success_or_a_known_refusal(
    customers: Customers, segment: str, query: dict[str, str]
) -> None:
    quoted = str(httpx.QueryParams({"x": segment}))[2:].replace("+", "%20")
    for path in ("/v1/me", f"/v1/me/{quoted}", f"{ADDRESSES}/{quoted}"):
        judged(await customers.client.get(path, params=query, headers=customers.auth()))
