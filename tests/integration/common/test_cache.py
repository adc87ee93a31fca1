"""What a cache promises who reads through it, on a real server."""

import asyncio
import contextlib
import random
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import cast

import pytest
from redis.asyncio import Redis, RedisCluster
from redis.crc import key_slot

from services.common.breaker import Breaker
from services.common.cache import Cache, breaker
from services.common.cache_store import LEASE_MS, Lease
from services.common.cached import Answer, Entry, Key
from services.common.caches import store
from services.contracts.cache import Kind
from tests.consuming import metric
from tests.memcached import Looking, Memcached, looking, memcached
from tests.redis_tls import Authority, redis_tls, this_machine
from tests.valkey_cluster import NODES, SLOTS, Cluster, clustered

MINUTE_MS = 60_000
PATIENT_SECONDS = 10.0  # the deadline of a call where it is not what is tested
ANN, BOB = "ann", "bob"


class Row:
    """What the database has of one thing. `reads` counts who asked it."""

    def __init__(self, owner: str = ANN, *, ttl_ms: int = MINUTE_MS) -> None:
        self.key = Key(Kind("order", "test:order", ttl_ms), secrets.token_hex(8))
        self.owner = owner
        self.version = 1
        self.reads = 0

    def entry(self) -> Entry:
        return Entry(self.owner, self.version, f"{self.key.id} at {self.version}".encode())

    async def load(self) -> Entry | None:
        self.reads += 1
        return self.entry()

    async def nothing(self) -> Entry | None:
        self.reads += 1
        return None


Opened = Callable[[], Cache]


@pytest.fixture(scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Cluster]:
    """Three nodes."""
    async with clustered(tmp_path_factory.mktemp("cluster")) as started:
        yield started


@pytest.fixture(scope="module")
async def memory() -> AsyncIterator[Memcached]:
    """A memcached."""
    async with memcached() as started:
        yield started


@pytest.fixture(scope="module")
async def encrypted(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """URL of a Redis that takes TLS only."""
    authority = Authority(tmp_path_factory.mktemp("tls"), "ours")
    async with redis_tls(*authority.server(this_machine())) as started:
        yield started.url(authority.path)


VALKEY = ("one server", "cluster", "TLS")
only_on_valkey = pytest.mark.parametrize("cache_url", VALKEY, indirect=True)


@pytest.fixture(params=[*VALKEY, "memcached"])
def cache_url(request: pytest.FixtureRequest) -> str:
    """Of each kind of server that a cache can be kept on."""
    if request.param == "TLS":
        encrypted: str = request.getfixturevalue("encrypted")
        return encrypted
    if request.param != "one server":
        started: Cluster | Memcached = request.getfixturevalue("cluster" if request.param == "cluster" else "memory")
        return started.url
    one: str = request.getfixturevalue("valkey_url")
    return one


@pytest.fixture
async def opened(cache_url: str) -> AsyncIterator[Opened]:
    """Makes caches, as many as there would be processes."""
    async with AsyncExitStack() as stack:

        def cache() -> Cache:
            made = Cache(store(cache_url), Breaker("test", deadline_seconds=PATIENT_SECONDS))
            stack.push_async_callback(made.close)
            return made

        yield cache


@pytest.fixture
def cache(opened: Opened) -> Cache:
    """One."""
    return opened()


@pytest.fixture
async def server(cache_url: str) -> AsyncIterator[Redis]:
    """To look behind it: what clients of all of them have in common."""
    client: Redis | RedisCluster | Looking
    if cache_url.startswith("memcached:"):
        client = await looking(int(cache_url.rpartition(":")[2]))
    elif cache_url.startswith("redis-cluster:"):
        client = RedisCluster.from_url(cache_url.replace("redis-cluster:", "redis:"))
    else:
        client = Redis.from_url(cache_url)
    yield cast("Redis", client)
    await client.aclose()


@pytest.fixture
def row() -> Row:
    """Of Ann's."""
    return Row()


def given(answer: Answer | None) -> tuple[bytes, str]:
    """What the reader got, and from where."""
    assert answer is not None
    return answer.entry.body, answer.outcome


async def test_the_second_read_is_answered_by_the_cache_of_any_process(opened: Opened, row: Row) -> None:
    hits = metric("cache_requests_total", kind="order", outcome="hit")
    assert given(await opened().read(row.key, row.load, reader=ANN)) == (row.entry().body, "miss")
    answer = await opened().read(row.key, row.load, reader=ANN)
    assert given(answer) == (row.entry().body, "hit")
    assert answer is not None
    assert answer.entry == row.entry()
    assert 0 <= answer.age_seconds < 60
    assert row.reads == 1
    assert metric("cache_requests_total", kind="order", outcome="hit") == hits + 1


async def test_nobody_is_given_anothers_from_the_cache_nor_from_the_database(cache: Cache, row: Row) -> None:
    assert await cache.read(row.key, row.load, reader=BOB) is None
    assert given(await cache.read(row.key, row.load, reader=ANN))[1] == "hit"
    assert await cache.read(row.key, row.load, reader=BOB) is None
    assert await cache.read(row.key, row.load, reader="") is None
    assert given(await cache.read(row.key, row.load, reader=None))[1] == "hit"  # who may read anybody's


async def test_bob_who_finds_nothing_keeps_ann_neither_from_her_order_nor_from_its_caching(
    cache: Cache, row: Row
) -> None:
    bob, ann = await asyncio.gather(
        cache.read(row.key, row.nothing, reader=BOB), cache.read(row.key, row.load, reader=ANN)
    )
    assert (bob, given(ann)[0]) == (None, row.entry().body)
    assert await cache.read(row.key, row.nothing, reader=BOB) is None
    await cache.read(row.key, row.load, reader=ANN)
    assert given(await cache.read(row.key, row.load, reader=ANN))[1] == "hit"


async def test_after_an_invalidation_the_database_is_asked(cache: Cache, row: Row) -> None:
    await cache.read(row.key, row.load, reader=ANN)
    row.version = 2
    assert await cache.invalidate({row.key: 2})
    assert given(await cache.read(row.key, row.load, reader=ANN)) == (row.entry().body, "miss")
    assert given(await cache.read(row.key, row.load, reader=ANN)) == (row.entry().body, "hit")


async def test_an_invalidation_that_comes_again_late_lowers_no_fence(cache: Cache, row: Row, server: Redis) -> None:
    await cache.invalidate({row.key: 12})
    await cache.invalidate({row.key: 3})
    assert await server.get(row.key.fence) == b"12"
    await cache.read(row.key, row.load, reader=ANN)  # version 1, of a database that is behind
    assert await server.get(row.key.value) is None


@only_on_valkey
async def test_an_invalidation_that_comes_again_spares_what_is_new_enough_and_nothing_else(
    cache: Cache, server: Redis
) -> None:
    older, same, newer, none = (Row() for _ in range(4))
    for row, version in ((older, 9), (same, 10), (newer, 11)):
        row.version = version
        await cache.read(row.key, row.load, reader=ANN)
    await server.set(none.key.value, b"of another release")
    rows = (older, same, newer, none)
    assert await cache.invalidate({row.key: 10 for row in rows}, spare=True)
    assert [await server.exists(row.key.value) for row in rows] == [0, 1, 1, 0]
    assert [await server.get(row.key.fence) for row in rows] == [b"10"] * 4
    assert await cache.invalidate({row.key: 10 for row in rows})
    assert [await server.exists(row.key.value) for row in rows] == [0] * 4


async def test_a_version_that_was_asked_for_is_not_answered_by_an_older_one(cache: Cache, row: Row) -> None:
    await cache.read(row.key, row.load, reader=ANN)
    row.version = 7
    assert given(await cache.read(row.key, row.load, reader=ANN, min_version=7)) == (row.entry().body, "miss")
    assert given(await cache.read(row.key, row.load, reader=ANN, min_version=7)) == (row.entry().body, "hit")
    older = await cache.read(row.key, row.load, reader=ANN, min_version=8)
    assert older is not None
    assert older.entry.version == 7  # which is the caller's to refuse


@only_on_valkey
async def test_no_value_outlives_its_ttl_counted_from_before_it_was_read(cache: Cache, server: Redis) -> None:
    row = Row(ttl_ms=1_000)

    async def slowly() -> Entry | None:
        await asyncio.sleep(0.25)  # the database's time: what is waited for is that it counts
        return await row.load()

    async def server_ms() -> int:
        seconds, microseconds = await server.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    before_ms = await server_ms()
    reading = asyncio.create_task(cache.read(row.key, slowly, reader=ANN))
    while not await server.exists(row.key.lease):
        assert not reading.done()
    leased_by_ms = await server_ms()
    await reading
    expires_at_ms = await server.pexpiretime(row.key.value)
    if expires_at_ms != -2:  # on a machine that is slow enough it has expired already
        assert before_ms + 900 <= expires_at_ms <= leased_by_ms + 1_000
    while await server_ms() <= leased_by_ms + 1_000:
        await asyncio.sleep(0.01)
    assert await server.get(row.key.value) is None
    assert given(await cache.read(row.key, row.load, reader=ANN))[1] == "miss"


async def test_who_comes_while_one_reads_shares_the_next_read_and_never_that_one(cache: Cache, row: Row) -> None:
    gate, at_work = asyncio.Event(), asyncio.Event()

    async def held() -> Entry | None:
        entry = await row.load()
        at_work.set()
        await gate.wait()
        return entry

    first = asyncio.create_task(cache.read(row.key, held, reader=ANN))
    await at_work.wait()
    row.version = 2  # committed, and acknowledged: whoever asks from now on is to see it
    await cache.invalidate({row.key: 2})
    later = [asyncio.create_task(cache.read(row.key, row.load, reader=ANN)) for _ in range(50)]
    try:
        async with asyncio.timeout(PATIENT_SECONDS):
            while not cache._flights._waiting:  # there is no other sign of it
                await asyncio.sleep(0.001)
    finally:
        gate.set()
    assert given(await first)[0].endswith(b"at 1")
    assert {given(answer)[0] for answer in await asyncio.gather(*later)} == {row.entry().body}
    assert row.reads <= 3
    assert given(await cache.read(row.key, row.load, reader=ANN)) == (row.entry().body, "hit")


async def test_a_reader_that_is_cancelled_takes_nobody_with_it(cache: Cache, row: Row) -> None:
    gate, at_work = asyncio.Event(), asyncio.Event()

    async def held() -> Entry | None:
        at_work.set()
        await gate.wait()
        return await row.load()

    first = asyncio.create_task(cache.read(row.key, held, reader=ANN))
    await at_work.wait()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    second = asyncio.create_task(cache.read(row.key, row.load, reader=ANN))
    gate.set()
    assert given(await second)[0] == row.entry().body


async def test_an_error_of_the_database_is_the_readers_and_blocks_no_later_fill(
    cache: Cache, row: Row, server: Redis
) -> None:
    async def broken() -> Entry | None:
        raise LookupError("the database is away")

    with pytest.raises(LookupError):
        await cache.read(row.key, broken, reader=ANN)
    assert await server.get(row.key.lease) is None
    await cache.read(row.key, row.load, reader=ANN)
    assert given(await cache.read(row.key, row.load, reader=ANN))[1] == "hit"


async def test_two_processes_that_miss_both_read_and_one_stores(opened: Opened, row: Row) -> None:
    gate = asyncio.Event()

    async def held() -> Entry | None:
        entry = await row.load()
        if row.reads == 2:
            gate.set()
        await gate.wait()
        return entry

    refused = metric("cache_fills_total", kind="order", outcome="refused")
    answers = await asyncio.gather(*(opened().read(row.key, held, reader=ANN) for _ in range(2)))
    assert [given(answer) for answer in answers] == [(row.entry().body, "miss")] * 2
    assert metric("cache_fills_total", kind="order", outcome="refused") == refused  # the other had not tried


@pytest.mark.parametrize("value", [b"", b"\n", b"2 of another release\n{}", b"\xff\n", b"1 x x ann %s\n{}"])
async def test_a_value_that_is_not_understood_is_read_anew_and_replaced(
    cache: Cache, row: Row, server: Redis, value: bytes
) -> None:
    await server.set(row.key.value, value.replace(b"%s", row.key.id.encode()))
    assert given(await cache.read(row.key, row.load, reader=ANN)) == (row.entry().body, "miss")
    assert given(await cache.read(row.key, row.load, reader=ANN)) == (row.entry().body, "hit")


async def test_a_value_of_another_key_is_never_served(cache: Cache, row: Row, server: Redis) -> None:
    other = Row(ANN)
    await cache.read(other.key, other.load, reader=ANN)
    stray = await server.get(other.key.value)
    assert stray
    await server.set(row.key.value, stray)
    assert given(await cache.read(row.key, row.load, reader=ANN)) == (row.entry().body, "miss")


async def test_what_cannot_be_stored_is_answered_and_not_held_against_the_server(cache_url: str) -> None:
    cache = Cache(store(cache_url), breaker(PATIENT_SECONDS))
    failed = metric("cache_failures_total", part="put")
    for number in range(10):
        row = Row("an owner with blanks")
        assert given(await cache.read(row.key, row.load, reader=row.owner))[0] == row.entry().body, number
    assert metric("cache_failures_total", part="put") > failed
    assert metric("breaker_state", breaker="cache") == 0
    await cache.close()


async def test_two_thousand_keys_are_invalidated_together(cache: Cache, server: Redis) -> None:
    keys = [Row().key for _ in range(2_000)]
    for key in keys[::100]:
        await server.set(key.value, b"old")
    assert await cache.invalidate(dict.fromkeys(keys, 5))
    for key in (*keys[::100], keys[-1]):
        assert await server.get(key.value) is None
        assert await server.get(key.fence) == b"5"


@pytest.mark.parametrize("cache_url", ["one server"], indirect=True)
async def test_one_server_is_told_two_thousand_keys_in_one_call(cache: Cache, server: Redis) -> None:
    await cache.invalidate({Row().key: 1})
    before = (await server.info("commandstats"))["cmdstat_evalsha"]["calls"]
    assert await cache.invalidate({Row().key: 1 for _ in range(2_000)})
    assert (await server.info("commandstats"))["cmdstat_evalsha"]["calls"] == before + 1


@only_on_valkey
async def test_a_restarted_server_is_told_the_scripts_again(cache: Cache, row: Row, server: Redis) -> None:
    await cache.read(row.key, row.load, reader=ANN)
    await server.script_flush()
    assert await cache.invalidate({row.key: 2})
    assert await server.get(row.key.value) is None
    await server.script_flush()
    row.version = 2
    await cache.read(row.key, row.load, reader=ANN)
    assert given(await cache.read(row.key, row.load, reader=ANN)) == (row.entry().body, "hit")


async def test_a_slot_that_moves_while_it_is_used_leaves_nothing_that_was_replaced(cluster: Cluster) -> None:
    cache = Cache(store(cluster.url), Breaker("test", deadline_seconds=PATIENT_SECONDS, failures=1_000_000))
    row, done = Row(), asyncio.Event()
    slot = key_slot(row.key.value.encode())
    owner = next(number for number in range(NODES) if slot < (number + 1) * SLOTS // NODES)
    seen: Counter[str] = Counter()

    async def uses() -> None:
        while not done.is_set():
            row.version += 1
            while not await cache.invalidate({row.key: row.version}):  # as the relay does it, until it succeeds
                seen["not invalidated"] += 1
            for _ in range(3):
                answer = await cache.read(row.key, row.load, reader=ANN)
                assert answer is not None
                assert answer.entry.version == row.version
                seen[answer.outcome] += 1

    async def happens(what: str, times: int) -> None:
        after = seen[what] + times
        async with asyncio.timeout(PATIENT_SECONDS):
            while seen[what] < after and not using.done():
                await asyncio.sleep(0.01)

    using = asyncio.create_task(uses())
    await happens("hit", 10)
    for step in range(NODES):
        here, there = (cluster.nodes[(owner + number) % NODES] for number in (step, step + 1))
        await cluster.move(slot, here, there, half_way=partial(happens, "not invalidated", 1))
        await happens("hit", 10)
    done.set()
    await using
    await cache.close()


async def test_in_memcached_no_value_outlives_its_ttl_though_it_was_stored_as_late_as_can_be(memory: Memcached) -> None:
    kept, key, server = store(memory.url), Row(ttl_ms=3_000).key, await looking(memory.port)
    await server.set(key.fence, "0", ex=60)
    first = await server.seconds_left(key.fence)
    while await server.seconds_left(key.fence) == first:  # a lease is good for longest just after its clock has ticked
        await asyncio.sleep(0.005)
    asked_at = time.monotonic()
    lease = await kept.lease(key, 0)
    leased_by = time.monotonic()
    assert isinstance(lease, Lease)
    while time.monotonic() < asked_at + 1.5:
        await asyncio.sleep(0.01)
    stored = await kept.put(key, lease, Entry(ANN, 1, b"late"), 3_000)
    assert stored or time.monotonic() > asked_at + 1.9
    while time.monotonic() <= leased_by + 3:
        await asyncio.sleep(0.01)
    assert await kept.get([key]) == [None]
    assert not await kept.put(key, lease, Entry(ANN, 1, b"later"), 3_000)
    await server.aclose()
    await kept.close()


async def test_a_lease_of_before_a_restart_stores_nothing_though_memcached_gives_the_same_numbers_again() -> None:
    """The CAS of what is written first is 1 or so, in each life of the server."""
    async with memcached() as server:
        old, row = store(server.url), Row()
        lease = await old.lease(row.key, 0)
        assert isinstance(lease, Lease)
        await server.kill()
        await server.start()
        new = store(server.url)
        assert isinstance(await new.lease(row.key, 0), Lease)
        with contextlib.suppress(ConnectionError):  # whoever asks first may be told that the connection has ended
            await old.get([row.key])
        assert not await old.put(row.key, lease, row.entry(), MINUTE_MS)
        assert await new.get([row.key]) == [None]
        await old.close()
        await new.close()


@pytest.mark.parametrize("thing", ["", "two words", "a} v\r\nmd %s\r\nmg {b", "x" * 250, "\N{BELL}"])
async def test_an_id_that_would_be_no_name_in_memcached_is_answered_from_the_database(
    memory: Memcached, thing: str
) -> None:
    cache, row = Cache(store(memory.url), Breaker("test", deadline_seconds=PATIENT_SECONDS)), Row()
    await cache.read(row.key, row.load, reader=ANN)
    key = Key(row.key.kind, thing.replace("%s", row.key.value))
    answer = await cache.read(key, row.load, reader=ANN)
    assert given(answer)[0] == row.entry().body
    assert given(await cache.read(row.key, row.load, reader=ANN))[1] == "hit"  # nothing else was asked of the server
    await cache.close()


async def test_what_is_too_large_for_memcached_is_answered_and_not_held_against_it(memory: Memcached) -> None:
    cache, row = Cache(store(memory.url), breaker(PATIENT_SECONDS)), Row()

    async def large() -> Entry:
        return Entry(ANN, 1, b"x" * 2_000_000)

    for _ in range(6):
        assert await cache.read(row.key, large, reader=ANN)
    assert metric("breaker_state", breaker="cache") == 0
    await cache.close()


@pytest.mark.parametrize("url", ["memcached://", "memcached://host/0", "memcached://me@host", "memcached://host?a=b"])
def test_a_memcached_url_that_says_what_is_not_done_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="memcached://host:port"):
        store(url)


def test_a_url_of_another_scheme_is_refused() -> None:
    with pytest.raises(ValueError, match="redis-cluster://"):
        store("http://127.0.0.1:6379/0")


async def test_ten_thousand_cancelled_reads_hand_nobody_anothers_answer(cache_url: str, server: Redis) -> None:
    """At the store itself: `Cache` would also see by the key in the value that it is another's."""
    asked, chance = store(cache_url), random.Random(20_261)
    enough = 1_000 if cache_url.startswith("rediss:") else 10_000  # each costs a connection, with TLS a long one
    keys = [Row().key for _ in range(100)]
    for key in keys:
        await server.set(key.value, key.id, ex=300)
    cancelled, answered, wrong = 0, 0, 0

    async def reads() -> None:
        nonlocal cancelled, answered, wrong
        while cancelled < enough:
            key = chance.choice(keys)
            reading = asyncio.ensure_future(asked.get([key]))
            for _ in range(chance.randrange(12)):  # turns of the loop: it is cancelled wherever it has come to
                await asyncio.sleep(0)
            reading.cancel()
            try:
                value = await reading
            except asyncio.CancelledError:
                cancelled += 1
            else:
                answered += 1
                wrong += value != [key.id.encode()]
            if chance.random() < 0.2:  # and somebody uses the connection after it
                wrong += await asked.get([key]) != [key.id.encode()]

    await asyncio.gather(*(reads() for _ in range(16)))
    assert wrong == 0
    assert answered > 0
    await asked.close()


def test_the_lease_is_shorter_than_any_ttl() -> None:
    assert LEASE_MS < 15_000  # of inventory, the shortest
