"""Whatever happens to the news of replacements, on real servers: no read is older than the bound of L1."""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import structlog
from redis.asyncio import Redis
from redis.crc import key_slot

from services.common.breaker import Breaker
from services.common.cache import Cache, breaker
from services.common.cache_l1 import L1Cache
from services.common.cache_watch import BOUND_SECONDS
from services.common.cached import Answer, Entry, Key
from services.common.caches import EVENTS, store
from services.contracts.cache import Kind, Room
from tests.consuming import metric
from tests.faults.valkey import Wire, serving
from tests.faults.waiting import eventually
from tests.valkey_cluster import NODES, SLOTS, clustered

PATIENT_SECONDS = 10.0


class Stock:
    """Of one product, in a database that is never away: written by one process, read by another that has an L1."""

    def __init__(self, url: str, *, told_at: str = "", patient: bool = False) -> None:
        self.key = Key(Kind(secrets.token_hex(4), "test:stock", 60_000, Room(100, 10**6)), secrets.token_hex(8))
        events = partial(EVENTS[url.partition(":")[0]], told_at or url)

        def called() -> Breaker:
            # Invalidated as by the relay, until it succeeds: nothing may be left alone.
            deadline = Breaker("test", deadline_seconds=PATIENT_SECONDS, failures=1_000_000)
            return deadline if patient else breaker()

        self.reader = L1Cache(store(url), called(), events, kinds=[self.key.kind])
        self.writer = Cache(store(url), called())
        self.version = 1
        self.acknowledged = [(0.0, 1)]

    async def load(self) -> Entry | None:
        return Entry("", self.version, b"%d" % self.version)

    async def read(self) -> Answer:
        """No older than the bound allows."""
        began_at = time.monotonic()
        answer = await self.reader.read(self.key, self.load, reader=None)
        assert answer
        due = max(version for at, version in self.acknowledged if at < began_at - BOUND_SECONDS)
        assert answer.entry.version >= due
        return answer

    async def write(self) -> None:
        """Acknowledged, once it has reached the cache."""
        self.version += 1
        while not await self.writer.invalidate({self.key: self.version}):
            pass
        self.acknowledged.append((time.monotonic(), self.version))

    def hits(self) -> float:
        """Of L1."""
        return metric("cache_l1_requests_total", kind=self.key.kind.name, outcome="hit")

    async def hit(self) -> bool:
        """A read that is answered by L1."""
        before = self.hits()
        await self.read()
        return self.hits() > before

    async def reads_until_due(self) -> None:
        """Reads go on, until one has to give what was written last."""
        until = time.monotonic() + BOUND_SECONDS
        while time.monotonic() <= until:
            await self.read()
            await asyncio.sleep(0)
        assert (await self.read()).entry.version == self.version


@asynccontextmanager
async def stocked(url: str, *, told_at: str = "", patient: bool = False) -> AsyncIterator[Stock]:
    """With its L1 in use."""
    stock = Stock(url, told_at=told_at, patient=patient)
    try:
        await eventually(stock.hit, "a hit of L1", every=0)
        yield stock
    finally:
        await stock.reader.close()
        await stock.writer.close()


async def test_without_any_fault_what_another_process_has_written_is_read_within_the_bound(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, stocked(server.url) as stock:
        for _ in range(3):
            await stock.write()
            await stock.reads_until_due()
            await eventually(stock.hit, "a hit of L1", every=0)


async def test_when_the_news_stop_without_a_word_l1_is_not_believed_any_longer(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as server,
        Wire(server).opened() as wire,
        stocked(server.url, told_at=wire.url) as stock,
    ):
        flushes = metric("cache_l1_flushes_total", reason="unheard")
        wire.delay_seconds = 3_600.0  # what the server tells stays in the wire, and nobody is told that it does
        await stock.write()
        await stock.reads_until_due()

        async def flushed() -> bool:
            return metric("cache_l1_flushes_total", reason="unheard") > flushes

        await eventually(flushed, "the connection is given up")
        await stock.write()
        await stock.reads_until_due()
        wire.delay_seconds = 0.0
        await eventually(stock.hit, "a hit of L1")
        await stock.write()
        await stock.reads_until_due()


async def test_when_the_connection_is_cut_what_is_held_is_forgotten(tmp_path: Path) -> None:
    async with (
        serving(tmp_path) as server,
        Wire(server).opened() as wire,
        stocked(server.url, told_at=wire.url) as stock,
    ):
        flushes = metric("cache_l1_flushes_total", reason="disconnected")
        cuts, wire.bytes_left = wire.cuts, 0

        async def cut() -> bool:
            return wire.cuts > cuts and metric("cache_l1_flushes_total", reason="disconnected") > flushes

        await eventually(cut, "the connection is cut")
        await stock.write()  # and nobody is told
        wire.bytes_left = None
        await stock.reads_until_due()
        await eventually(stock.hit, "a hit of L1")
        await stock.reads_until_due()


async def test_while_the_server_is_frozen_the_database_is_asked(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, stocked(server.url) as stock:
        server.freeze()
        stock.version += 1
        assert not await stock.writer.invalidate({stock.key: stock.version})
        stock.acknowledged.append((time.monotonic(), stock.version))
        await stock.reads_until_due()
        server.thaw()
        assert stock.reader.held(stock.key) is None

        async def relayed() -> bool:
            return await stock.writer.invalidate({stock.key: stock.version})

        await eventually(relayed, "the relay's invalidation")
        stock.acknowledged.append((time.monotonic(), stock.version))
        await stock.reads_until_due()
        await eventually(stock.hit, "a hit of L1")


async def test_a_restart_of_the_server_brings_nothing_back(tmp_path: Path) -> None:
    async with serving(tmp_path) as server, stocked(server.url) as stock:
        await server.kill()
        stock.version += 1
        assert not await stock.writer.invalidate({stock.key: stock.version})
        stock.acknowledged.append((time.monotonic(), stock.version))
        await stock.reads_until_due()
        await server.start()
        await eventually(stock.hit, "a hit of L1")
        assert (await stock.read()).entry.version == stock.version


async def test_a_server_that_tells_nothing_has_no_l1_says_so_once_and_is_tried_again(tmp_path: Path) -> None:
    async with serving(tmp_path, "--notify-keyspace-events", "") as server:
        stock = Stock(server.url)
        with structlog.testing.capture_logs() as said:

            async def refused() -> bool:
                await stock.read()
                return any(line["event"] == "cache.l1_off" for line in said)

            await eventually(refused, "that L1 is off")
            kind = stock.key.kind.name
            off = metric("cache_l1_requests_total", kind=kind, outcome="off")
            await stock.write()
            assert (await stock.read()).entry.version == stock.version  # the cache behind it works
            assert (await stock.read()).outcome == "hit"
            assert metric("cache_l1_requests_total", kind=kind, outcome="off") == off + 2
            assert metric("cache_l1_heartbeat_age_seconds", kind=kind) == float("inf")
            server_itself = Redis.from_url(server.url)
            await server_itself.config_set("notify-keyspace-events", "K$")
            await server_itself.aclose()
            await eventually(stock.hit, "a hit of L1")
        (line,) = (line for line in said if line["event"] == "cache.l1_off")
        assert line["reason"] == "unheard"
        assert "notify-keyspace-events" in line["hint"]
        await stock.reader.close()
        await stock.writer.close()


async def test_in_a_cluster_slots_move_and_a_primary_comes_and_no_read_is_too_old(tmp_path: Path) -> None:
    async with clustered(tmp_path) as cluster, stocked(cluster.url, patient=True) as stock:
        slot = key_slot(stock.key.value.encode())
        owner = next(number for number in range(NODES) if slot < (number + 1) * SLOTS // NODES)
        done = asyncio.Event()

        async def writes() -> None:
            while not done.is_set():
                await stock.write()
                await asyncio.sleep(0.02)

        async def reads() -> None:
            while not done.is_set():
                await stock.read()
                await asyncio.sleep(0)

        async def used() -> None:
            """L1 answers, again."""
            hits = stock.hits() + 10

            async def hit() -> bool:
                return stock.hits() >= hits or reading.done() or writing.done()

            await eventually(hit, "hits of L1")

        async def nothing() -> None:
            """Half of it is done."""

        writing, reading = asyncio.create_task(writes()), asyncio.create_task(reads())
        moved = metric("cache_l1_flushes_total", reason="moved")
        await used()
        first, second = cluster.nodes[owner], cluster.nodes[(owner + 1) % NODES]
        await cluster.move(slot, first, second, half_way=nothing)
        await used()
        third = await cluster.grow()
        await cluster.move(slot, second, third, half_way=nothing)
        await used()
        assert metric("cache_l1_flushes_total", reason="moved") > moved

        async def off() -> bool:
            return stock.reader.held(stock.key) is None

        cluster.nodes[owner].server.freeze()  # another's: what it does not tell could be of any slot
        await eventually(off, "L1 is off")
        cluster.nodes[owner].server.thaw()
        await used()
        done.set()
        await asyncio.gather(reading, writing)
