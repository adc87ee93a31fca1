"""Personal data is shown to whom it belongs and to nobody else: no log, metric or refusal has any of it."""

import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.customers.settings import CustomersSettings
from tests.conftest import free_port
from tests.customers import ADA, ADDRESSES, SQUARE, Customers, path_of
from tests.faults.cutting import Door
from tests.faults.replicas import Replica
from tests.integration.customers.conftest import Owner

MARK = "zqmarked"  # in every value that is personal; in no word of ours
PERSON = {"name": f"{MARK} name", "email": f"{MARK}@example.com", "phone": "+4999887766554"}
PHONE = PERSON["phone"][1:]
PLACE: dict[str, Any] = {
    **{"name": f"{MARK} receiver", "lines": [f"{MARK} street 1", f"{MARK} floor"], "city": f"{MARK} city"},
    **{"region": f"{MARK} region", "postal_code": f"{MARK} 1", "country": "GB", "phone": PERSON["phone"]},
}
MARKS = (MARK, PHONE, MARK.encode().hex(), PHONE.encode().hex())

# Each is wrong in one member, and what is wrong in it is personal.
WRONG_PERSONS: list[dict[str, Any]] = [
    *({"name": value} for value in (MARK * 30, f"{MARK}\x00", [MARK], {MARK: MARK})),
    *({"email": value} for value in (MARK, f"{MARK} x@y", f"{MARK}@{MARK}@x", f"{MARK}@x" + "x" * 254, [MARK])),
    *({"phone": value} for value in (MARK, f"+{PHONE}{PHONE}", PHONE, f"+0{PHONE}", int(PHONE))),
]
WRONG_PLACES: list[dict[str, Any]] = [
    *({"country": value} for value in (MARK, MARK[:2], [MARK])),
    *({"lines": value} for value in (MARK, [f"{MARK}\n"], [MARK] * 5, [[MARK]])),
    *({name: MARK * 30} for name in ("name", "city", "region", "postal_code", "phone")),
]


def assert_nothing_of(text: str, where: object) -> None:
    """No mark is in it, neither as it is nor as PostgreSQL shows bytes."""
    found = [mark for mark in MARKS if mark in text]
    assert not found, f"{where} shows {found}: {text[:1000]}"


@pytest.fixture
async def door(customers_settings: CustomersSettings, tmp_path: Path) -> AsyncIterator[Door]:
    """What stands between the process and its database."""
    async with Door(customers_settings.postgres_url, tmp_path) as opened:
        yield opened


@pytest.fixture
def metrics_port() -> int:
    return free_port()


@pytest.fixture
async def process(
    door: Door, customers_settings: CustomersSettings, tmp_path: Path, metrics_port: int
) -> AsyncIterator[Replica]:
    """customers-api as it is run, with all it logs in a file."""
    environment = {
        "ORDERS_POSTGRES_URL": door.url,
        "ORDERS_VALKEY_URL": customers_settings.valkey_url,
        "ORDERS_ISSUER_URL": customers_settings.issuer_url,
        "ORDERS_LOG_LEVEL": "DEBUG",
    }
    replica = Replica(0, free_port(), environment, tmp_path, name="customers-api", metrics_port=metrics_port)
    await replica.start()
    yield replica
    await replica.ended()


@pytest.fixture
async def customers(
    process: Replica, customers_settings: CustomersSettings, issuer: tuple[Path, str], owner: Owner
) -> AsyncIterator[Customers]:
    """Over its socket."""
    async with httpx.AsyncClient(base_url=process.url, timeout=30) as client:
        yield Customers(client, customers_settings, issuer[0], owner)


async def _refusals(customers: Customers, address: dict[str, Any]) -> AsyncIterator[httpx.Response]:
    """Every route, refused in every way there is while all parts work; what is sent is marked."""
    seen = {"If-Match": '"2"'}
    keyed = {"Idempotency-Key": "other"}
    for person in WRONG_PERSONS:
        yield await customers.send("PATCH", "/v1/me", json=person, headers=seen)
    for method, path in (("POST", ADDRESSES), ("PUT", path_of(address))):
        for place in WRONG_PLACES:
            yield await customers.send(method, path, json=PLACE | place, headers=keyed)
        yield await customers.send(method, path, json=PERSON, headers=keyed)
    for method, path in (("PATCH", "/v1/me"), ("POST", ADDRESSES), ("PUT", path_of(address))):
        for content, media_type in (
            (json.dumps(PLACE)[:-1], "application/json"),
            (f'"{MARK}"', "application/json"),
            (json.dumps(PERSON), "text/plain"),
            (MARK * 40_000, "application/json"),
        ):
            headers = {**seen, **keyed, "Content-Type": media_type}
            yield await customers.send(method, path, content=content, headers=headers)
        for auth in ({}, {"Authorization": f"Bearer {MARK}"}, customers.auth("orders:read")):
            yield await customers.client.request(method, path, json=PERSON, headers=auth)
    yield await customers.send("PATCH", "/v1/me", json=PERSON)
    yield await customers.send("PATCH", "/v1/me", json=PERSON, headers={"If-Match": f'"{MARK}"'})
    yield await customers.send("POST", ADDRESSES, json=PLACE)
    yield await customers.add(key="known", name=f"{MARK} else")
    yield await customers.send("PUT", path_of({"address_id": "0" * 26}), json=PLACE)


async def _sent_by(customers: Customers, address: dict[str, Any]) -> AsyncIterator[httpx.Response]:
    """Each route that writes, with marked values, and each that reads."""
    yield await customers.patch(2, name=PERSON["name"], email=PERSON["email"], phone=PERSON["phone"])
    yield await customers.send("POST", ADDRESSES, json=PLACE, headers={"Idempotency-Key": "fresh"})
    yield await customers.send("PUT", path_of(address), json=PLACE | {"name": f"{MARK} again"})
    for path in ("/v1/me", "/v1/me/export", ADDRESSES, path_of(address)):
        yield await customers.get(path)
    yield await customers.retire(address)
    yield await customers.erase()


async def _only_shown_on_success(customers: Customers, address: dict[str, Any], failure: int) -> None:
    """Of all that is sent some fails with that status, and shows nothing."""
    statuses = set()
    async for response in _sent_by(customers, address):
        statuses.add(response.status_code)
        if response.status_code >= 400:
            assert_nothing_of(response.text, response.request.url)
    assert failure in statuses


async def test_no_refusal_log_or_metric_shows_anything_personal(
    customers: Customers, process: Replica, door: Door, owner: Owner, metrics_port: int
) -> None:
    assert (await customers.send("PATCH", "/v1/me", json=PERSON, headers={"If-Match": '"1"'})).status_code == 200
    address = (await customers.send("POST", ADDRESSES, json=PLACE, headers={"Idempotency-Key": "known"})).json()
    for path in ("/v1/me", "/v1/me", "/v1/me/export", ADDRESSES, path_of(address)):
        assert MARK in (await customers.get(path)).text, "its own customer is shown it"

    async for response in _refusals(customers, address):
        assert 400 <= response.status_code < 500, response.text
        assert_nothing_of(response.text + str(response.headers), response.request.url)

    stranger = uuid.uuid4()
    await customers.started(sub=stranger)
    for method, path, more in (
        *[("GET", path, {}) for path in ("/v1/me", "/v1/me/export", ADDRESSES, path_of(address), "/readyz")],
        ("PUT", path_of(address), {"json": SQUARE}),
        ("DELETE", path_of(address), {}),
        ("PATCH", "/v1/me", {"json": ADA, "headers": {"If-Match": '"2"'}}),
    ):
        response = await customers.send(method, path, sub=stranger, **more)
        assert_nothing_of(response.text + str(response.headers), (method, path))

    # What can only be our own fault: PostgreSQL refuses rows, and quotes them.
    for table in ("profiles", "addresses"):
        await owner.execute(f"ALTER TABLE customers.{table} ADD CONSTRAINT ck_faulty CHECK (false) NOT VALID")
    await _only_shown_on_success(customers, address, 500)
    await door.__aexit__()  # and now the database is away
    await _only_shown_on_success(customers, address, 503)

    async with httpx.AsyncClient(timeout=30) as client:
        metrics = (await client.get(f"http://127.0.0.1:{metrics_port}/metrics")).text
    assert 'route="/v1/me/addresses/{address_id}"' in metrics
    assert_nothing_of(metrics, "metrics")
    await process.ended()
    log = process.log.read_text()
    assert "http.failed" in log
    assert_nothing_of(log, "the log")
    rows = await owner.fetch("SELECT keys::text AS keys FROM customers.invalidations")
    assert_nothing_of(str([row["keys"] for row in rows]), "what the relay is told")
