"""What L1 promises who reads through it, on a real server."""

import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial

import pytest
from redis.asyncio import Redis

from services.common import caches
from services.common.breaker import Breaker
from services.common.cache import Cache
from services.common.cache_events import one_server
from services.common.cache_l1 import L1Cache
from services.common.cached import Answer, Entry, Key
from services.common.caches import store
from services.contracts.cache import INVENTORY, ORDER, Kind, Room
from tests.consuming import metric
from tests.faults.waiting import eventually

PATIENT_SECONDS = 10.0
STOCK = Kind("stock", "test:stock", 60_000, Room(100, 10**6))
PLAIN = Kind("plain", "test:plain", 60_000)


class Row:
    """What the database has of one thing. `reads` counts who asked it."""

    def __init__(self, kind: Kind = STOCK, owner: str = "") -> None:
        self.key, self.owner, self.version, self.reads = Key(kind, secrets.token_hex(8)), owner, 1, 0

    async def load(self) -> Entry | None:
        self.reads += 1
        return Entry(self.owner, self.version, b"%d" % self.version)


Opened = Callable[..., L1Cache]


@pytest.fixture
async def opened(valkey_url: str) -> AsyncIterator[Opened]:
    """Makes caches, as many as there would be processes."""
    async with AsyncExitStack() as stack:

        def cache(*kinds: Kind) -> L1Cache:
            made = L1Cache(
                store(valkey_url),
                Breaker("test", deadline_seconds=PATIENT_SECONDS),
                partial(one_server, valkey_url),
                kinds=kinds or (STOCK, PLAIN),
            )
            stack.push_async_callback(made.close)
            return made

        yield cache


@pytest.fixture
async def server(valkey_url: str) -> AsyncIterator[Redis]:
    """To look behind it."""
    client = Redis.from_url(valkey_url)
    yield client
    await client.aclose()


async def read(cache: Cache, row: Row, *, min_version: int = 0, reader: str | None = None) -> Answer:
    answer = await cache.read(row.key, row.load, reader=reader, min_version=min_version)
    assert answer
    return answer


async def held(cache: L1Cache, row: Row) -> None:
    """It is in L1."""

    async def is_held() -> bool:
        await read(cache, row)
        return cache.held(row.key) is not None

    await eventually(is_held, "an answer in L1", every=0)


def l1_hits(kind: Kind) -> float:
    return metric("cache_l1_requests_total", kind=kind.name, outcome="hit")


async def test_what_is_held_is_given_without_asking_the_cache(opened: Opened, server: Redis) -> None:
    cache, row = opened(), Row()

    async def hit_with_no_value_behind_it() -> bool:
        await held(cache, row)
        before = l1_hits(STOCK)
        await server.delete(row.key.value)  # without any news
        answer = await read(cache, row)
        if l1_hits(STOCK) == before:  # a heartbeat was late
            return False
        assert (answer.entry.body, answer.outcome) == (b"1", "hit")
        assert 0 <= answer.age_seconds < 60
        return True

    await eventually(hit_with_no_value_behind_it, "a hit of L1")
    assert metric("cache_l1_entries", kind=STOCK.name) == 1
    assert metric("cache_l1_bytes", kind=STOCK.name) > 0


async def test_what_another_process_has_replaced_is_dropped(opened: Opened) -> None:
    cache, other, row = opened(), opened(), Row()
    await held(cache, row)
    row.version = 2
    assert await other.invalidate({row.key: 2})

    async def dropped() -> bool:
        return (await read(cache, row)).entry.version == 2

    await eventually(dropped, "what is new", every=0)
    await held(cache, row)
    assert (await read(cache, row)).entry.version == 2


async def test_what_its_own_process_has_replaced_is_never_given_again(opened: Opened) -> None:
    cache, row = opened(), Row()
    for version in range(2, 50):
        await held(cache, row)
        row.version = version
        assert await cache.invalidate({row.key: version})
        assert (await read(cache, row)).entry.version == version


async def test_what_could_not_be_told_to_the_cache_is_dropped_all_the_same(opened: Opened) -> None:
    cache, row = opened(), Row()
    await held(cache, row)

    async def away(versions: Mapping[Key, int], *, spare: bool = False) -> None:
        raise ConnectionError(versions, spare)

    cache._store.invalidate = away  # type: ignore[method-assign]  # the server stays, so that L1 does
    assert not await cache.invalidate({row.key: 2})
    assert not cache._memories[STOCK.prefix]._held


async def test_a_version_that_was_asked_for_is_not_answered_by_an_older_one_that_is_held(opened: Opened) -> None:
    cache, row = opened(), Row()
    await held(cache, row)
    row.version = 7
    assert (await read(cache, row, min_version=7)).entry.version == 7


async def test_nobody_is_given_anothers_from_l1(opened: Opened) -> None:
    cache, row = opened(), Row(owner="ann")
    await held(cache, row)
    assert await cache.read(row.key, row.load, reader="bob") is None
    assert (await read(cache, row, reader="ann")).entry.body == b"1"


async def test_it_is_held_for_no_longer_than_the_cache_has_it(opened: Opened, server: Redis) -> None:
    cache = opened()
    for _ in range(20):
        row = Row()
        await held(cache, row)
        found = cache._memories[STOCK.prefix]._held[row.key.fence]
        ends_ms = found.until * 1000 + cache._watch._server_ms  # by the server's clock
        assert found.at_ms + 0.7 * STOCK.ttl_ms < ends_ms <= await server.pexpiretime(row.key.value)


async def test_only_what_the_cache_itself_has_is_held(opened: Opened, server: Redis) -> None:
    """A value that was loaded may have been refused there."""
    cache, row = opened(), Row()
    await held(cache, Row())  # L1 is in use
    await server.set(row.key.lease, b"somebody else's")
    for _ in range(3):
        assert (await read(cache, row)).outcome == "miss"
    assert row.key.fence not in cache._memories[STOCK.prefix]._held


async def test_a_kind_without_room_is_not_held_and_nothing_listens_for_it(opened: Opened) -> None:
    cache, row = opened(), Row(PLAIN)
    for _ in range(3):
        await read(cache, row)
    assert cache.held(row.key) is None
    assert cache._watch._task is None
    await cache.invalidate({Row().key: 1})
    assert cache._watch._task is None  # nor for who only invalidates


def test_stock_is_held_and_orders_are_not() -> None:
    assert INVENTORY.l1
    assert ORDER.l1 is None


async def test_on_memcached_there_is_no_l1() -> None:
    cache = caches.cache("memcached://127.0.0.1:1")
    assert type(cache) is Cache
    await cache.close()
