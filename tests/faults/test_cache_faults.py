"""Whatever happens to the cache: every read is answered, rightly and in bounded time, and what failed is counted."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from memcachio.errors import ServerError
from prometheus_client import REGISTRY
from redis.asyncio import Redis

from services.common.breaker import Breaker
from services.common.cache import Cache, breaker
from services.common.cache_memcached import stored
from services.common.cached import Answer, Entry, Key
from services.common.caches import store
from services.common.memcached import Line
from services.contracts.cache import Kind
from tests.consuming import metric
from tests.faults.valkey import Server, Wire, serving
from tests.faults.waiting import eventually
from tests.memcached import HOST, Looking, Memcached, memcached

ANN = "ann"
BOUND_SECONDS = 10.0  # far more than a few deadlines of 0.1 s, far less than for ever
READERS = 20


@pytest.fixture(params=["Valkey", "memcached"])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Server | Memcached]:
    """Of each kind that stands alone."""
    async with serving(tmp_path) if request.param == "Valkey" else memcached() as started:
        yield started


class Shop:
    """One thing in a database that is never away, read through a cache and written as a command and the relay do."""

    def __init__(self, url: str, *, ttl_ms: int = 60_000) -> None:
        self.cache = Cache(store(url), breaker())
        self.key = Key(Kind("order", "test:order", ttl_ms), secrets.token_hex(8))
        self.version = 1

    def entry(self) -> Entry:
        return Entry(ANN, self.version, b"%d " % self.version * 500)

    async def load(self) -> Entry | None:
        return self.entry()

    async def read(self) -> Answer:
        async with asyncio.timeout(BOUND_SECONDS):
            answer = await self.cache.read(self.key, self.load, reader=ANN)
        assert answer is not None
        return answer

    async def reads_are_right(self) -> set[str]:
        """Many at once; gives where they were answered from."""
        answers = await asyncio.gather(*(self.read() for _ in range(READERS)))
        assert [answer.entry for answer in answers] == [self.entry()] * READERS
        return {answer.outcome for answer in answers}

    async def write(self) -> bool:
        """A commit; gives whether the cache could be told before it was acknowledged."""
        self.version += 1
        async with asyncio.timeout(BOUND_SECONDS):
            return await self.cache.invalidate({self.key: self.version})

    async def relayed(self) -> bool:
        """What the relay does until it is true."""
        return await self.cache.invalidate({self.key: self.version})

    async def hit(self) -> bool:
        """A read is answered by the cache, and rightly."""
        answer = await self.read()
        assert answer.entry == self.entry()
        return answer.outcome == "hit"


@asynccontextmanager
async def shop_at(url: str, *, ttl_ms: int = 60_000) -> AsyncIterator[Shop]:
    """Open, with its thing in the cache."""
    shop = Shop(url, ttl_ms=ttl_ms)
    try:
        await eventually(shop.hit, "a hit")
        yield shop
    finally:
        await shop.cache.close()


def failures() -> float:
    """Calls to any cache that failed."""
    (family,) = (family for family in REGISTRY.collect() if family.name == "cache_failures")
    return sum(sample.value for sample in family.samples if sample.name == "cache_failures_total")


async def test_killed_and_back_empty(server: Server | Memcached) -> None:
    async with shop_at(server.url) as shop:
        failed = failures()
        await server.kill()
        for _ in range(5):
            assert await shop.reads_are_right() == {"bypass"}
        assert not await shop.write()
        assert failures() > failed
        rejected = metric("breaker_rejections_total", breaker="cache")
        await shop.reads_are_right()
        assert metric("breaker_rejections_total", breaker="cache") > rejected  # it is left alone

        await server.start()
        await eventually(shop.relayed, "the relay's invalidation")
        await shop.reads_are_right()
        await eventually(shop.hit, "a hit again")


async def test_frozen_and_thawed_with_what_was_replaced_meanwhile(server: Server | Memcached) -> None:
    async with shop_at(server.url) as shop:
        failed, not_sent = failures(), metric("cache_invalidations_total", outcome="failed")
        server.freeze()
        assert not await shop.write()
        assert metric("cache_invalidations_total", outcome="failed") == not_sent + 1
        assert await shop.reads_are_right() == {"bypass"}
        assert failures() > failed
        server.thaw()
        await eventually(shop.relayed, "the relay's invalidation")
        await shop.reads_are_right()
        await eventually(shop.hit, "a hit again")


async def test_who_waits_behind_a_call_that_had_no_answer_in_time_is_told_at_once(server: Server | Memcached) -> None:
    async with shop_at(server.url) as shop:
        waiting = Shop(server.url)
        waiting.cache = Cache(shop.cache._store, Breaker("patient", deadline_seconds=100 * BOUND_SECONDS))
        server.freeze()
        reading = asyncio.create_task(waiting.read())
        assert (await shop.read()).outcome == "bypass"
        assert (await reading).outcome == "bypass"  # and not only after its own deadline, which is beyond its bound


async def test_what_it_had_before_an_outage_is_not_believed_by_who_has_seen_it(server: Server | Memcached) -> None:
    """The writer was not even tried, and no relay has said it again."""
    async with shop_at(server.url) as shop:
        server.freeze()
        while metric("breaker_state", breaker="cache") == 0:
            assert await shop.reads_are_right() == {"bypass"}
        assert not await shop.write()
        server.thaw()
        await eventually(shop.hit, "a hit again, and only right answers until then")


async def test_it_runs_so_that_a_restart_brings_nothing_back(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, shop_at(server.valkey.url) as shop:
        assert server.process is not None
        server.process.terminate()  # asked politely, a server that saves would save
        await server.process.wait()
        await server.start()
        looking = Redis.from_url(server.valkey.url)
        assert await looking.exists(shop.key.value) == 0
        await looking.aclose()


async def test_restarted_with_an_old_dump_it_is_wrong_for_the_ttl_at_most(tmp_path: Path) -> None:
    """How it must not be run; and what holds even then."""
    async with (
        serving(tmp_path, "--save", "3600 1000000", "--dbfilename", "dump.rdb") as server,
        shop_at(server.valkey.url, ttl_ms=3_000) as shop,
    ):
        looking = Redis.from_url(server.valkey.url)
        expires_at_ms = await looking.pexpiretime(shop.key.value)
        await looking.save()
        replaced_at_ms = await server_ms(looking)
        assert await shop.write()
        await looking.connection_pool.disconnect()
        await server.kill()
        await server.start()  # with the old value, and without the fence
        assert expires_at_ms <= replaced_at_ms + 3_000
        restored = await looking.pexpiretime(shop.key.value)
        assert restored in (expires_at_ms, -2)  # -2: this machine took as long to restart it
        while await server_ms(looking) <= replaced_at_ms + 3_000:
            await asyncio.sleep(0.02)
        assert (await shop.read()).entry == shop.entry()
        await looking.aclose()


async def test_out_of_memory_it_stores_nothing_and_still_forgets_what_was_replaced(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, shop_at(server.valkey.url) as shop:
        other = Key(shop.key.kind, secrets.token_hex(8))
        looking = Redis.from_url(server.valkey.url)
        await looking.set(other.value, b"old")
        await looking.config_set("maxmemory-policy", "noeviction")
        await looking.config_set("maxmemory", "1mb")
        failed = failures()
        shop.version += 1
        assert await shop.cache.invalidate({shop.key: shop.version, other: 2})
        assert await looking.exists(shop.key.value, other.value) == 0
        assert await shop.reads_are_right() == {"bypass"}
        assert failures() > failed
        await looking.config_set("maxmemory", "0")
        await eventually(shop.hit, "a hit again")
        await looking.aclose()


async def test_memcached_out_of_memory_stores_nothing_and_still_forgets_what_was_replaced() -> None:
    async with memcached("-M") as server, shop_at(server.url) as shop:  # -M: what is full refuses, instead of evicting
        line = await Line(HOST, server.port).open()
        for size in (
            400_000,
            1_100,
            80,
            55,
            30,
            5,
        ):  # each size has pages of its own: all that a cache uses are to be full
            with pytest.raises(ServerError, match="out of memory"):
                await fill(line, size)
        failed = failures()
        assert not await shop.write()  # no fence: the relay will say it again
        assert await Looking(line).get(shop.key.value) is None
        assert await shop.reads_are_right() == {"bypass"}
        assert failures() > failed
        await line.ask(b"flush_all\r\n")
        await eventually(shop.relayed, "the relay's invalidation")
        await eventually(shop.hit, "a hit again")
        line.close()


async def fill(line: Line, size: int) -> None:
    """100 MB in values of that size, in a memcached that has 64."""
    at_once = min(2_000, 1_000_000 // size)
    for first in range(0, 100_000_000 // size, at_once):
        names = (b"%d:%d" % (size, first + number) for number in range(at_once))
        await line.ask(b"".join(stored(name, b"x" * size, 600, b"q") for name in names))


async def test_slow_by_200_ms_it_is_as_good_as_away(server: Server | Memcached) -> None:
    async with Wire(server).opened() as wire, shop_at(wire.url) as shop:
        failed = failures()
        wire.delay_seconds = 0.2
        for _ in range(3):
            assert await shop.reads_are_right() == {"bypass"}
        await shop.write()
        assert failures() > failed
        wire.delay_seconds = 0.0
        await eventually(shop.relayed, "the relay's invalidation")
        await eventually(shop.hit, "a hit again")


async def test_cut_inside_a_reply_at_any_byte_what_is_missing_is_read_from_the_database(
    server: Server | Memcached,
) -> None:
    async with Wire(server).opened() as wire, shop_at(wire.url) as shop:
        failed = failures()
        for length in (*range(12), 40, 100, 500, 1_000):
            await eventually(shop.hit, "a hit again")
            cuts, wire.bytes_left = wire.cuts, length
            answer = await shop.read()
            assert wire.cuts > cuts
            wire.bytes_left = None
            assert answer.entry == shop.entry()
            assert answer.outcome == "bypass"
        assert failures() >= failed + 16


async def server_ms(redis: Redis) -> int:
    """The time, as the server has it."""
    seconds, microseconds = await redis.time()
    return int(seconds) * 1000 + int(microseconds) // 1000
