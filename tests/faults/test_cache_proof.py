"""No interleaving leaves a replaced value in the cache; and the search would find one, if a part were missing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from redis.asyncio import Redis

from services.common import cache_valkey
from services.common.cache_valkey import Script, ValkeyStore
from tests.faults.exploration import explore
from tests.faults.interleavings import AT_REST, READ_OLD, TOO_LONG
from tests.faults.valkey import serving

LEASE_CHECK = "if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end"
FENCE_CHECK = "if tonumber(redis.call('GET', KEYS[3]) or 0) > tonumber(ARGV[2]) then return 0 end"
ABSOLUTE = "'PXAT', ARGV[4]"
RELATIVE = "'PX', 600000"


@pytest.fixture
async def valkey_url(tmp_path: Path) -> AsyncIterator[str]:
    """Of a server that nobody else uses."""
    async with serving(tmp_path) as server:
        yield server.valkey.url


@pytest.fixture
async def redis(valkey_url: str) -> AsyncIterator[Redis]:
    """To look at the server."""
    client = Redis.from_url(valkey_url)
    yield client
    await client.aclose()


@pytest.fixture
async def store(valkey_url: str) -> AsyncIterator[ValkeyStore]:
    """As it is."""
    opened = ValkeyStore(valkey_url)
    yield opened
    await opened.close()


@asynccontextmanager
async def changed(url: str, script: str, *changes: tuple[str, str]) -> AsyncIterator[ValkeyStore]:
    """A store of which `script` has other words."""
    text = getattr(cache_valkey, script).text
    for part, instead in changes:
        assert text.count(part) == 1, f"{script} does not have {part!r}"
        text = text.replace(part, instead)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_valkey, script, Script(text))
        opened = ValkeyStore(url)
        yield opened
        await opened.close()


async def test_whatever_one_fault_comes_where_no_replaced_value_stays(store: ValkeyStore, redis: Redis) -> None:
    explored = await explore(store, redis, faults_max=1)
    assert explored.violation is None
    # Every one of them was reached: fewer would mean that the search has lost moves, not that the protocol is better.
    assert explored.states >= 1_800


async def test_without_lease_and_fence_a_late_fill_stays_and_nothing_has_failed(valkey_url: str, redis: Redis) -> None:
    async with changed(valkey_url, "PUT", (LEASE_CHECK, ""), (FENCE_CHECK, "")) as store:
        violation = (await explore(store, redis)).violation
    assert violation
    assert violation.what in (AT_REST, READ_OLD)


async def test_without_the_lease_a_restart_of_the_cache_lets_a_late_fill_stay(valkey_url: str, redis: Redis) -> None:
    async with changed(valkey_url, "PUT", (LEASE_CHECK, "")) as store:
        assert (await explore(store, redis)).violation is None, "the fence alone holds as long as nothing fails"
        violation = (await explore(store, redis, faults_max=1)).violation
    assert violation
    assert violation.what == AT_REST
    assert [move for move in violation.path if move[0] in ("restart", "evict")]


async def test_without_the_relay_a_lost_invalidation_leaves_what_was_replaced(store: ValkeyStore, redis: Redis) -> None:
    violation = (await explore(store, redis, relay=False, faults_max=1)).violation
    assert violation
    assert violation.what == AT_REST
    assert {("lose", "writer"), ("crash", "writer")} & set(violation.path)


async def test_without_the_absolute_expiry_a_late_fill_outlives_its_ttl(valkey_url: str, redis: Redis) -> None:
    async with changed(valkey_url, "PUT", (ABSOLUTE, RELATIVE)) as store:
        violation = (await explore(store, redis)).violation
    assert violation
    assert violation.what == TOO_LONG


async def test_without_deleting_the_lease_a_late_fill_follows_an_evicted_fence(valkey_url: str, redis: Redis) -> None:
    async with changed(valkey_url, "INVALIDATE", ("delete(leases)", "")) as store:
        violation = (await explore(store, redis, faults_max=1)).violation
    assert violation
    assert violation.what == AT_REST
    assert ("evict", "fence") in violation.path
