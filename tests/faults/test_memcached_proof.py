"""On a memcached, too, no interleaving of round trips leaves a replaced value; and the search would find one."""

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from services.common import cache_memcached
from services.common.cache_memcached import MemcachedStore, stored
from tests.faults.exploration import Explored
from tests.faults.exploration import explore as explore_any
from tests.faults.interleavings import AT_REST, READ_OLD
from tests.faults.memcached_interleavings import MemcachedWorld
from tests.memcached import Memcached, looking, memcached


@pytest.fixture(scope="module")
async def server() -> AsyncIterator[Memcached]:
    """That nobody else uses."""
    async with memcached() as started:
        yield started


async def explore(server: Memcached, kind: type[MemcachedStore] = MemcachedStore, **chosen: Any) -> Explored:
    """With stores of that kind."""
    store, look = kind(server.url), await looking(server.port)
    try:
        return await explore_any(store, cast("Redis", look), kind=MemcachedWorld, **chosen)
    finally:
        await look.aclose()
        await store.close()


async def test_whatever_one_fault_comes_where_no_replaced_value_stays(server: Memcached) -> None:
    explored = await explore(server, faults_max=1)
    assert explored.violation is None
    # Every one of them was reached: fewer would mean that the search has lost moves, not that the protocol is better.
    assert explored.states >= 8_000


async def test_without_the_cas_a_late_fill_stays_and_nothing_has_failed(
    server: Memcached, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blindly(place: bytes, data: bytes, seconds: int, *flags: bytes) -> bytes:
        return stored(place, data, seconds, *(flag for flag in flags if not flag.startswith(b"C")))

    monkeypatch.setattr(cache_memcached, "stored", blindly)
    violation = (await explore(server)).violation
    assert violation
    assert violation.what in (AT_REST, READ_OLD)


async def test_without_the_relay_a_lost_invalidation_leaves_what_was_replaced(server: Memcached) -> None:
    violation = (await explore(server, relay=False, faults_max=1)).violation
    assert violation
    assert violation.what == AT_REST
