"""Profiles read through the cache: new after each write, each only its customer's, and without it the same."""

import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import Redis

from services.common import clock, ids
from services.common.cached import Entry, Key, encode
from services.contracts.cache import PROFILE
from services.customers import personal
from services.customers.personal import Person
from services.customers.settings import CustomersSettings
from services.embedded.room import free_port_base
from services.relay.settings import RelaySettings
from tests.conftest import AsRole
from tests.customers import ADDRESSES, SQUARE, Customers, opened_customers, path_of
from tests.faults.waiting import eventually
from tests.integration.customers.conftest import Owner
from tests.integration.relay.conftest import relaying


@pytest.fixture
async def valkey(valkey_url: str) -> AsyncIterator[Redis]:
    opened = Redis.from_url(valkey_url)
    yield opened
    await opened.aclose()


async def _kept(customers: Customers) -> httpx.Response:
    """The profile, which the cache has from now on."""
    await customers.get()
    response = await customers.get()
    assert response.headers["x-cache"] == "hit"
    return response


def _key(user_id: uuid.UUID) -> Key:
    return Key(PROFILE, ids.to_text(user_id))


async def test_the_second_read_is_the_first_ones_bytes_and_asks_the_database_for_nothing(
    customers: Customers, owner: Owner
) -> None:
    for written in (False, True):  # of the empty profile, too
        if written:
            await customers.started()
        miss = await customers.get()
        await owner.execute("ALTER TABLE customers.profiles RENAME TO hidden")
        hit = await customers.get()
        await owner.execute("ALTER TABLE customers.hidden RENAME TO profiles")
        assert (miss.headers["x-cache"], hit.headers["x-cache"]) == ("miss", "hit")
        assert (hit.content, hit.headers["etag"]) == (miss.content, miss.headers["etag"])
        assert "age" not in miss.headers
        assert 0 <= int(hit.headers["age"]) <= 60
        assert hit.headers["cache-control"] == miss.headers["cache-control"] == "private, no-store"


async def test_after_each_write_the_next_read_is_new(customers: Customers) -> None:
    await _kept(customers)
    started = await customers.patch(1, name="Ada")
    assert (await _kept(customers)).content == started.content
    changed = await customers.patch(2, name="Countess")
    assert (await _kept(customers)).content == changed.content
    await customers.erase()
    seen = await customers.get()
    assert (seen.headers["x-cache"], seen.json()["version"], seen.json()["name"]) == ("miss", 4, None)


async def test_an_erasure_again_tells_the_cache_what_the_first_may_not_have(
    customers: Customers, valkey: Redis
) -> None:
    await customers.started()
    await _kept(customers)
    value = await valkey.get(_key(customers.customer).value)
    assert value is not None
    await customers.erase()
    # As if that one had died before it told the cache, so that what was before is there.
    await valkey.set(_key(customers.customer).value, value, px=60_000)
    assert (await customers.get()).json()["name"] is not None
    assert (await customers.erase()).status_code == 204
    assert (await customers.get()).json()["name"] is None


async def test_a_write_leaves_one_row_that_names_the_profile_and_its_version(
    customers: Customers, owner: Owner
) -> None:
    await customers.started()
    await customers.added()  # of addresses nothing is cached
    await customers.patch(2, name="X")
    await customers.patch(2, name="Y")  # refused
    await customers.erase()
    await customers.erase()
    rows = await owner.fetch("SELECT shard, keys::text AS keys FROM customers.invalidations ORDER BY position")
    sub = customers.customer
    assert [row["keys"] for row in rows] == [
        f'{{"customers:profile": {{"{sub}": {version}}}}}' for version in (2, 3, 4)
    ]
    assert {row["shard"] for row in rows} == {ids.shard_of(sub)}


async def test_what_a_write_could_not_tell_the_cache_the_relay_does(
    customers: Customers, issuer: tuple[Path, str], owner: Owner, as_role: AsRole, valkey_url: str
) -> None:
    await customers.started()
    before = await _kept(customers)
    cut_off = customers.settings.model_copy(update={"cache_url": f"redis://127.0.0.1:{free_port_base()}/0"})
    async with opened_customers(cut_off, issuer[0], owner) as other:
        other.customer = customers.customer
        written = await other.patch(2, name="Countess")
        assert written.status_code == 200
        assert (await other.get()).headers["x-cache"] == "bypass"
    assert (await customers.get()).content == before.content  # nobody has told it yet
    nowhere = f"127.0.0.1:{free_port_base()}"
    relay = RelaySettings(postgres_url=as_role("outbox_relay"), valkey_url=valkey_url, kafka_url=nowhere)
    async with relaying(relay):

        async def new() -> bool:
            return (await customers.get()).content == written.content

        await eventually(new, "what the database has")

        async def empty() -> bool:
            return not await owner.fetchval("SELECT count(*) FROM customers.invalidations")

        await eventually(empty, "told and deleted")


async def test_without_a_cache_every_read_is_the_databases(
    customers_settings: CustomersSettings, issuer: tuple[Path, str], owner: Owner
) -> None:
    settings = customers_settings.model_copy(update={"cache_url": ""})
    async with opened_customers(settings, issuer[0], owner) as customers:
        written = await customers.patch(1, name="Ada")
        for _ in range(2):
            response = await customers.get()
            assert (response.content, response.headers["x-cache"]) == (written.content, "bypass")
        await customers.erase()
        assert (await customers.get()).json()["name"] is None


ROUTES: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/v1/me", {}),
    ("PATCH", "/v1/me", {"json": {"phone": "+4930123456"}, "headers": {"If-Match": '"1"'}}),
    ("GET", "/v1/me/export", {}),
    ("POST", ADDRESSES, {"json": SQUARE | {"name": "Other"}, "headers": {"Idempotency-Key": "k"}}),
    ("GET", ADDRESSES, {}),
    ("GET", "{address}", {}),
    ("PUT", "{address}", {"json": SQUARE | {"name": "Other"}}),
    ("DELETE", "{address}", {}),
    ("DELETE", "/v1/me", {}),
    ("GET", "/v1/me", {}),
]


async def _cached_as(valkey: Redis, key: Key, owner: uuid.UUID) -> None:
    """The cache has, under `key`, what belongs to `owner`."""
    body = b"1763865993123 " + personal.sealed(Person("zq-marked", "zq-marked@example.com", None))
    value = encode(key, Entry(str(owner), 1, body), clock.to_ms(clock.now()))
    await valkey.set(key.value, value, px=60_000)


@pytest.mark.parametrize("confused", [False, True], ids=["each its own", "one under the other's name"])
async def test_what_is_cached_of_one_is_shown_to_no_other_on_any_route(
    customers: Customers, valkey: Redis, confused: bool
) -> None:
    other = uuid.uuid4()
    await customers.patch(1, name="zq-marked", email="zq-marked@example.com")
    address = await customers.added(name="zq-marked", lines=["zq-marked"])
    await _kept(customers)
    for method, path, more in ROUTES:
        if confused:  # what no code of ours does
            await _cached_as(valkey, _key(other), customers.customer)
        response = await customers.send(method, path.format(address=path_of(address)), sub=other, **more)
        assert response.status_code < 500
        assert "zq-marked" not in response.text, (method, path)
        assert "zq-marked" not in str(response.headers)
    assert (await customers.get()).json()["name"] == "zq-marked"


async def test_a_cached_profile_of_another_release_is_read_anew(customers: Customers, valkey: Redis) -> None:
    profile = await customers.started()
    key = _key(customers.customer)
    for body in (b"\xffsomething new", b"", b"1763865993123 \x02later"):
        value = encode(key, Entry(str(customers.customer), 2, body), clock.to_ms(clock.now()))
        await valkey.set(key.value, value, px=60_000)
        response = await customers.get()
        assert (response.json(), response.headers["x-cache"]) == (profile, "bypass")
