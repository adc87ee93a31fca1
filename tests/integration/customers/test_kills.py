"""customers-api killed between commit and answer: what was asked is there once, and the same request says so."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis

from services.common import ids
from services.common.cached import Key
from services.contracts.cache import PROFILE
from services.customers.settings import CustomersSettings
from services.relay.settings import RelaySettings
from tests.conftest import AsRole, free_port
from tests.contracts.description import Description, refused
from tests.customers import Customers
from tests.faults.cutting import Door
from tests.faults.replicas import Replica
from tests.faults.waiting import eventually
from tests.integration.customers.conftest import Owner
from tests.integration.relay.conftest import relaying


@pytest.fixture
async def door(customers_settings: CustomersSettings, tmp_path: Path) -> AsyncIterator[Door]:
    """What stands between the process and its database."""
    async with Door(customers_settings.postgres_url, tmp_path) as opened:
        yield opened


@pytest.fixture
async def process(door: Door, customers_settings: CustomersSettings, tmp_path: Path) -> AsyncIterator[Replica]:
    """customers-api as it is run, behind the door."""
    environment = {
        "ORDERS_POSTGRES_URL": door.url,
        "ORDERS_VALKEY_URL": customers_settings.valkey_url,
        "ORDERS_ISSUER_URL": customers_settings.issuer_url,
    }
    replica = Replica(0, free_port(), environment, tmp_path, name="customers-api")
    await replica.start()
    yield replica
    await replica.ended()


@pytest.fixture
def relay(as_role: AsRole, valkey_url: str) -> RelaySettings:
    """Of a relay that has no broker."""
    return RelaySettings(postgres_url=as_role("outbox_relay"), valkey_url=valkey_url, kafka_url="127.0.0.1:1")


@pytest.fixture
async def customers(
    process: Replica,
    customers_settings: CustomersSettings,
    issuer: tuple[Path, str],
    owner: Owner,
    description: Description,
) -> AsyncIterator[Customers]:
    """Over its socket. Somebody who has a profile, which the cache has; every statement is prepared."""
    hooks = {"response": [description.check]}
    async with httpx.AsyncClient(base_url=process.url, event_hooks=hooks, timeout=30) as client:
        found = Customers(client, customers_settings, issuer[0], owner)
        warm = uuid.uuid4()
        await found.started(sub=warm)
        await found.added(sub=warm)
        await found.erase(sub=warm)
        await found.started()

        async def cached() -> bool:
            return (await found.get()).headers["x-cache"] == "hit"

        await eventually(cached, "the cache has it")
        yield found


# What commits a write waits for whoever has the advisory lock, once all of it is done but the commit itself.
_WAIT_AT_COMMIT = """
CREATE FUNCTION public.wait_at_commit() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER wait_at_commit AFTER INSERT OR UPDATE ON customers.profiles
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.wait_at_commit();
CREATE CONSTRAINT TRIGGER wait_at_commit AFTER INSERT OR UPDATE ON customers.addresses
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION public.wait_at_commit();
"""


async def _killed_unheard(
    request: Awaitable[httpx.Response], process: Replica, door: Door, owner: Owner, committed: str
) -> None:
    """The request is committed (`committed` gives true); its process was killed before it heard so, and is back."""
    await owner.execute(_WAIT_AT_COMMIT)
    await owner.execute("SELECT pg_advisory_lock(1)")
    asking = asyncio.ensure_future(request)

    async def waits() -> bool:
        return bool(await owner.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

    await eventually(waits, "it is about to commit")
    door.hold()
    await owner.execute("SELECT pg_advisory_unlock(1)")

    async def is_committed() -> bool:
        return bool(await owner.fetchval(committed))

    await eventually(is_committed, "it is committed")
    assert not asking.done(), "an answer came through the shut door"
    process.kill()
    await process.ended()
    door.cut()
    with pytest.raises(httpx.TransportError):
        await asking
    await process.start()


async def test_a_patch_is_made_once_and_what_the_cache_was_not_told_the_relay_tells(
    customers: Customers, process: Replica, door: Door, owner: Owner, relay: RelaySettings, valkey_url: str
) -> None:
    committed = "SELECT count(*) = 1 FROM customers.profiles WHERE version = 3 AND person IS NOT NULL"
    await _killed_unheard(customers.patch(2, name="Countess"), process, door, owner, committed)
    valkey = Redis.from_url(valkey_url)
    assert await valkey.exists(Key(PROFILE, ids.to_text(customers.customer)).value), "nobody has told the cache"
    await valkey.aclose()
    again = await customers.patch(2, name="Countess")
    assert (refused(again), again.json()["current_version"]) == ("412 version_mismatch", 3)
    async with relaying(relay):

        async def new() -> bool:
            profile = (await customers.get()).json()
            return (profile["version"], profile["name"]) == (3, "Countess")

        await eventually(new, "what the database has")


async def test_an_address_is_added_once_and_the_same_key_gives_it(
    customers: Customers, process: Replica, door: Door, owner: Owner
) -> None:
    committed = "SELECT count(*) = 1 FROM customers.addresses"
    await _killed_unheard(customers.add(key="k"), process, door, owner, committed)
    again = await customers.add(key="k")
    assert (again.status_code, again.headers["idempotency-replayed"]) == (201, "true")
    assert await customers.addresses() == [again.json()]


async def test_an_erasure_is_made_once_and_the_cache_forgets_the_erased(
    customers: Customers, process: Replica, door: Door, owner: Owner, relay: RelaySettings
) -> None:
    await customers.added()
    committed = f"SELECT person IS NULL FROM customers.profiles WHERE user_id = '{customers.customer}'"  # noqa: S608
    await _killed_unheard(customers.erase(), process, door, owner, committed)
    assert await customers.addresses() == []
    assert (await customers.erase()).status_code == 204
    async with relaying(relay):

        async def empty() -> bool:
            profile = (await customers.get()).json()
            return (profile["version"], profile["name"]) == (3, None)

        await eventually(empty, "what the database has")
