"""Every order in which a process with an L1, a writer, and what the server tells of it can meet, and what can go wrong.

One process reads; its `L1Cache` and `Watch` are the real ones, on a real server. What the server tells is taken off
the wire as soon as it is there, and waits here until the scheduler lets it be heard, or is lost; so do heartbeats, and
the answers of the cache. The clock is the scheduler's, too. The wire itself lasts for all paths: a connection that ends
is one whose news are lost. The cache behind L1 has its own search: here the old value is in it, the database has the
new one, and an answer may come late.
"""

import asyncio
import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from redis.asyncio import Redis

from services.common.breaker import Breaker
from services.common.cache import Cache
from services.common.cache_events import Beat, Channel, Connect, ValkeyChannel
from services.common.cache_l1 import L1Cache
from services.common.cache_store import Lease, Store
from services.common.cache_watch import BOUND_SECONDS
from services.common.cached import Entry, Key, encode
from services.contracts.cache import Kind, Room
from tests.faults.actors import Actor
from tests.faults.interleavings import NEVER_SECONDS, NEW, OLD, Move

READER, WRITER, EARS, HEART, DOOR = "reader", "writer", "ears", "heart", "door"
READS = 1
KIND = Kind("proof", "proof:stock", 10**9, Room(10, 10**6))  # nothing expires while a path is played
TURNS = 15  # of the loop, until everybody rests: outside of a move nobody waits for anything else

FAULTS = ("cut", "silence", "restart")

TOO_OLD = "L1 gives what was replaced longer ago than its bound"
OWN = "L1 gives what its own process has replaced, after the acknowledgement"


@dataclass
class SteppedChannel:
    """What the server has told, and the process has not heard."""

    world: "L1World"
    told: list[str | Beat] = field(default_factory=list)
    dead: bool = False  # and nobody knows

    async def beat(self) -> None:
        """See `Channel`."""
        await self.world.actors[HEART].step("beat", self._beaten)

    async def hear(self) -> str | Beat:
        """See `Channel`."""
        return await self.world.actors[EARS].step("hear", self._next)

    async def close(self) -> None:
        """See `Channel`."""
        self.world.channel = None

    async def _beaten(self) -> None:
        if not self.dead:
            await self.world.wire.beat()
            await self.tells()

    async def _next(self) -> str | Beat:
        return self.told.pop(0)

    async def tells(self) -> None:
        """What has just been done."""
        self.told.append(await self.world.wire.hear())


@dataclass
class SteppedStore:
    """The cache as one process has it: it may learn late what was answered."""

    world: "L1World"
    store: Store
    gets_max: int = 1
    keys_max: int = 1

    async def get(self, keys: Sequence[Key]) -> Sequence[bytes | None]:
        """See `Store`."""
        reader = self.world.actors[READER]
        given = await reader.step("get", lambda: self.store.get(keys))
        await reader.step("learn", nothing, sent=b"".join(value or b"" for value in given))
        return given

    async def lease(self, key: Key, min_version: int) -> Lease | bytes | None:
        """Another process fills it: what is new in the cache makes nothing old."""
        del key, min_version
        return None

    async def put(self, key: Key, lease: Lease, entry: Entry, ttl_ms: int) -> bool:
        """Nobody had a lease."""
        raise NotImplementedError

    async def release(self, key: Key, lease: Lease) -> None:
        """See `Store`."""

    async def invalidate(self, versions: Mapping[Key, int], *, spare: bool = False) -> None:  # noqa: ARG002 # none is spared
        """See `Store`."""
        writer = self.world.actors[WRITER]
        await writer.step("invalidate", lambda: self.world.invalidated(versions))
        if self.world.own:
            await writer.step("learn", nothing)

    def give_up(self) -> None:
        """Nobody's deadline passes while it waits for its turn."""

    async def close(self) -> None:
        """The store belongs to all."""


async def nothing() -> None:
    """Only that it is heard of."""


@dataclass
class L1World:
    """One path being played. With `own` the writer is in the process that has the L1."""

    store: Store
    redis: Redis
    wire: ValkeyChannel
    faults: tuple[str, ...]  # one of these may come, once
    own: bool = False
    clock: float = 0.0
    fenced_at: float | None = None
    acknowledged: bool = False
    faulted: bool = False
    reads: int = 0
    channel: SteppedChannel | None = None
    stored: bool = True  # the old value is in the cache behind L1

    def __post_init__(self) -> None:
        self.actors = {name: Actor(name) for name in (READER, WRITER, EARS, HEART, DOOR)}
        self.key = Key(KIND, secrets.token_hex(8))
        stepped, breaker = SteppedStore(self, self.store), Breaker("proof", deadline_seconds=NEVER_SECONDS)
        self.cache = L1Cache(stepped, breaker, self._connect, kinds=[self.key.kind], monotonic=lambda: self.clock)
        self.watch = self.cache._watch
        self.memory = self.cache._memories[self.key.kind.prefix]
        self.other = self.cache if self.own else Cache(stepped, breaker)

    async def open(self) -> None:
        """The old value is in the cache, the process has heard its first heartbeat, and the next is to be sent."""
        now_ms = int(time.time() * 1000)
        await self.redis.set(self.key.value, encode(self.key, Entry("", OLD, b"%d" % OLD), now_ms))
        self.watch.start()
        await turns()
        for who in (DOOR, HEART, EARS):
            await self.play(("pass", who))
        assert self.watch.fresh
        self.actors[WRITER].begin(self._write())
        await turns()

    async def close(self) -> None:
        """Nobody is at work. What is left on the server, which is gone soon, is never asked for again."""
        for actor in self.actors.values():
            if actor.task:
                actor.task.cancel()
        await self.cache.close()
        await self.other.close()

    def _connect(self, kinds: Sequence[Kind]) -> Connect:
        async def opened() -> list[Channel]:
            assert [*kinds] == [KIND]
            self.channel = SteppedChannel(self)
            return [self.channel]

        async def connect() -> Sequence[Channel]:
            return await self.actors[DOOR].step("connect", opened)

        return connect

    async def _write(self) -> None:
        assert await self.other.invalidate({self.key: NEW})
        self.acknowledged = True

    async def _read(self) -> None:
        async def load() -> Entry:
            return Entry("", NEW, b"%d" % NEW)

        assert await self.cache.read(self.key, load, reader=None)

    async def invalidated(self, versions: Mapping[Key, int]) -> None:
        """The server has done it, and told it."""
        await self.store.invalidate(versions)
        self.stored = False
        self.fenced_at = self.clock
        if self.channel is not None and not self.channel.dead:
            await self.channel.tells()
        else:
            await self.wire.hear()

    def moves(self) -> Iterator[Move]:
        """All that can happen next and makes a difference."""
        waiting = {name: actor.pending.name for name, actor in self.actors.items() if actor.pending}
        for name in waiting:
            if name != EARS or (self.channel and self.channel.told and not self.channel.dead):
                yield "pass", name
        if self.reads < READS and READER not in waiting:
            yield "read", READER
        lines = self.watch._lines
        if self.watch.fresh or self._is_old(self.fenced_at) is False or (lines and not self._is_old(lines[0].sent_at)):
            yield "pass", "time"  # something becomes old by it
        if self.channel and self.channel.dead:
            yield "unheard", EARS
        elif self.channel and not self.faulted:
            yield from ((fault, "server") for fault in self.faults)

    async def play(self, move: Move) -> None:
        """The move has been made, and everybody rests again."""
        match move:
            case "pass", "time":
                self.clock += BOUND_SECONDS + 0.001
            case "pass", who:
                await self._let(self.actors[who])
            case "read", _:
                self.reads += 1
                self.actors[READER].begin(self._read())
            case "silence", _:
                assert self.channel is not None
                self.channel.dead = True
            case "unheard", _:
                self._fail(TimeoutError("no heartbeat"))
            case "cut", _:
                self._fail(ConnectionError("cut"))
            case "restart", _:
                self.stored = False
                await self.redis.delete(self.key.value, self.key.fence)
                self._fail(ConnectionError("restarted"))
        self.faulted = self.faulted or move[0] in FAULTS
        await turns()
        for actor in self.actors.values():  # the heart is told to stop when the ears fail
            if actor.pending and actor.pending.result.done():
                actor.pending = None

    async def _let(self, actor: Actor) -> None:
        step, actor.pending = actor.pending, None
        assert step is not None
        step.result.set_result(await step.call())

    def _fail(self, error: Exception) -> None:
        ears = self.actors[EARS]
        step, ears.pending = ears.pending, None
        assert step is not None
        step.result.set_exception(error)

    async def look(self) -> None:
        """Nothing that the path does not tell."""

    @property
    def gives(self) -> int | None:
        """The version that L1 would give now."""
        held = self.cache.held(self.key)
        return held.entry.version if held else None

    def state(self) -> tuple[object, ...]:
        """Everything that matters for what can happen from here on."""
        held, reader = self.memory._held.get(self.key.fence), self.actors[READER].pending
        lines = self.watch._lines
        return (
            self.acknowledged and self.own,
            self._is_old(self.fenced_at),
            self.faulted,
            self.reads,
            tuple((actor.name, actor.pending.name) for actor in self.actors.values() if actor.pending),
            reader.sent[-1:] if reader else None,
            bool(self.memory._asking),
            held.entry.version if held else None,
            self.watch.fresh,
            self._is_old(lines[0].sent_at) if lines else None,
            self.channel and (self.channel.dead, tuple(isinstance(each, Beat) for each in self.channel.told)),
            self.stored,
        )

    def _is_old(self, at: float | None) -> bool | None:
        return None if at is None else self.clock - at > BOUND_SECONDS

    def wrong(self) -> str | None:
        """What should never be, if it is."""
        if self.gives == OLD and self.own and self.acknowledged:
            return OWN
        if self.gives == OLD and self._is_old(self.fenced_at):
            return TOO_OLD
        return None


async def turns() -> None:
    """Everybody rests."""
    for _ in range(TURNS):
        await asyncio.sleep(0)
