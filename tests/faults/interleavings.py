"""Every order in which one writer, two readers and the relay can meet at a cache, with what can go wrong among it.

The actors run `services.common.cache` itself, each in a process of its own as far as the cache can tell; between it and
the real server stands a scheduler that lets one call pass at a time. A path is a list of moves; it is played from an
empty cache, and every move that is possible after it is a path more, unless another path has led to the same state.
"""

import asyncio
import secrets
from collections.abc import Iterator
from dataclasses import dataclass, field

from redis.asyncio import Redis

from services.common.breaker import Breaker
from services.common.cache import Cache
from services.common.cache_store import Lease, Store
from services.common.cached import Entry, Key, decode
from services.contracts.cache import Kind
from tests.faults.actors import Actor, Step, Stepped

Move = tuple[str, str]  # what happens, and to whom

TTL_MS = 600_000  # nothing expires by itself while a path is played
NEVER_SECONDS = 600.0
OLD, NEW = 1, 2
READERS = ("reader 1", "reader 2")
WRITER, RELAY = "writer", "relay"

AT_REST = "a replaced value is in the cache, and nobody is left who would remove it"
TOO_LONG = "a replaced value outlives its replacement by more than its TTL"
READ_OLD = "a read that began after the acknowledgement gives what was before, without any fault"


@dataclass(frozen=True)
class Seen:
    """What the server has of the key."""

    value: bytes | None = None
    lease: bytes | None = None
    fence: bytes | None = None
    expires_at_ms: int = -2


@dataclass
class World:
    """One path being played: the database is `version`, the cache is real."""

    store: Store
    redis: Redis
    relay: bool
    faults_max: int
    version: int = OLD
    committed_at_ms: int | None = None
    acknowledged: bool = False
    faults: int = 0
    ghosts: list[tuple[str, Step]] = field(default_factory=list)  # given up by who called, and still on their way
    seen: Seen = field(default_factory=Seen)
    holders: dict[bytes, str] = field(default_factory=dict)
    key: Key = field(default_factory=lambda: Key(Kind("order", "proof:order", TTL_MS), secrets.token_hex(8)))
    actors: dict[str, Actor] = field(default_factory=lambda: {name: Actor(name) for name in (*READERS, WRITER, RELAY)})
    caches: list[Cache] = field(default_factory=list)

    async def open(self) -> None:
        """Everybody stands before its first call."""
        for name in READERS:
            self.actors[name].begin(self._read(self.actors[name]))
        self.actors[WRITER].begin(self._write(self.actors[WRITER]))
        for actor in self.actors.values():
            if actor.name != RELAY:
                await actor.rests()

    async def close(self) -> None:
        """Nobody is at work and nothing is left on the server."""
        for actor in self.actors.values():
            if actor.task:
                actor.task.cancel()
        await asyncio.gather(*(cache.close() for cache in self.caches))
        await asyncio.gather(*(actor.task for actor in self.actors.values() if actor.task), return_exceptions=True)
        await self.redis.delete(self.key.value, self.key.lease, self.key.fence)

    def _cache(self, actor: Actor) -> Cache:
        cache = Cache(Stepped(self.store, actor), Breaker("proof", deadline_seconds=NEVER_SECONDS))
        self.caches.append(cache)
        return cache

    async def _read(self, actor: Actor) -> int:
        async def load() -> Entry:
            return await actor.step("load", primary)

        async def primary() -> Entry:
            return Entry("somebody", self.version, b"%d" % self.version)

        answer = await self._cache(actor).read(self.key, load, reader="somebody")
        assert answer is not None
        return answer.entry.version

    async def _write(self, actor: Actor) -> None:
        async def commit() -> None:
            self.version, self.committed_at_ms = NEW, await self.server_ms()
            while await self.server_ms() == self.committed_at_ms:  # so that later is later, in whole milliseconds
                pass

        await actor.step("commit", commit)
        if self.relay:
            self.actors[RELAY].begin(self._relay(self.actors[RELAY]))
        await self._cache(actor).invalidate({self.key: NEW})
        self.acknowledged = True

    async def _relay(self, actor: Actor) -> None:
        cache = self._cache(actor)
        while not await cache.invalidate({self.key: NEW}, spare=True):
            pass

    async def server_ms(self) -> int:
        """The time, as the server has it."""
        seconds, microseconds = await self.redis.time()
        return int(seconds) * 1000 + int(microseconds) // 1000

    def moves(self) -> Iterator[Move]:
        """All that can happen next and makes a difference."""
        waiting = [actor for actor in self.actors.values() if actor.pending and not actor.crashed]
        # The readers are alike: what begins with the second is the same with their names exchanged.
        first, second = (self.actors[name] for name in READERS)
        if not (first.asked or first.crashed):
            waiting = [actor for actor in waiting if actor is not second]
        for actor in waiting:
            if actor.pending and actor.pending.name == "load" and self.version == NEW:
                yield "pass", actor.name  # gives the same whenever it is, so there is no need to try other orders
                return
        yield from (("pass", actor.name) for actor in waiting)
        yield from (("arrive", str(number)) for number in range(len(self.ghosts)))
        if self.faults < self.faults_max:
            for actor in waiting:
                if actor.pending and actor.pending.name not in ("load", "commit"):
                    yield "lose", actor.name
                if actor.name != RELAY:
                    yield "crash", actor.name
            if any((self.seen.value, self.seen.lease, self.seen.fence)):
                yield "restart", "server"
            if self.seen.lease:  # it has ended, or made room for something else
                yield "evict", "lease"
            if self.seen.fence:
                yield "evict", "fence"

    async def play(self, move: Move) -> None:
        """The move has been made, and everybody rests again."""
        what, whom = move
        match what:
            case "arrive":
                _, ghost = self.ghosts.pop(int(whom))
                await ghost.call()
            case "restart":
                await self.restart()
            case "evict":
                await self.redis.delete(getattr(self.key, whom))
            case "crash":
                self.actors[whom].crashed = True
            case _:
                await self._let(self.actors[whom], lost=what == "lose")
        self.faults += what in ("lose", "crash", "restart", "evict")

    async def restart(self) -> None:
        """It knows nothing any more."""
        await self.redis.delete(self.key.value, self.key.lease, self.key.fence)
        await self.redis.script_flush()

    async def _let(self, actor: Actor, *, lost: bool) -> None:
        step = actor.pending
        assert step is not None
        actor.pending = None
        if not actor.asked:
            actor.began_after_acknowledgement = self.acknowledged
        actor.settled.clear()
        if lost:  # the caller hears nothing in time; the call itself may still arrive, or never
            if step.name != "get":
                self.ghosts.append((actor.name, step))
            actor.learns(None, self.version)
            step.result.set_exception(TimeoutError("lost"))
        else:
            try:
                given = await step.call()
            except ConnectionError as error:  # the server was restarted between two parts of one call
                actor.learns(None, self.version)
                step.result.set_exception(error)
            else:
                if isinstance(given, Lease):
                    self.holders[given.token] = actor.name
                actor.learns(given, self.version)
                step.result.set_result(given)
        await actor.rests()
        if actor.name == WRITER and step.name == "commit" and self.relay:
            await self.actors[RELAY].rests()

    async def look(self) -> None:
        """`seen` is what the server has."""
        async with self.redis.pipeline(transaction=False) as pipeline:
            for name in (self.key.value, self.key.lease, self.key.fence):
                pipeline.get(name)
            pipeline.pexpiretime(self.key.value)
            self.seen = Seen(*await pipeline.execute())

    def state(self) -> tuple[object, ...]:
        """Everything that matters for what can happen from here on."""
        return (
            self.version,
            self.faults,
            # Only without any fault is it asked what was read after the acknowledgement.
            self.faults == 0 and (self.acknowledged, *(a.began_after_acknowledgement for a in self.actors.values())),
            tuple(actor.knows for actor in self.actors.values()),
            tuple(sorted((name, step.name, self.actors[name].loaded) for name, step in self.ghosts)),
            self.cached_version,
            self.holders.get(self.seen.lease, "nobody who knows") if self.seen.lease else None,
            self.seen.fence,
            self.late,
        )

    @property
    def cached_version(self) -> int | None:
        """Of the value there is."""
        return decode(self.key, self.seen.value)[0].version if self.seen.value else None

    @property
    def late(self) -> bool:
        """A value that was replaced outlives its replacement by more than its TTL."""
        return (
            self.cached_version == OLD
            and self.committed_at_ms is not None
            and self.seen.expires_at_ms > self.committed_at_ms + TTL_MS
        )

    def wrong(self) -> str | None:
        """What should never be, if it is."""
        if self.late:
            return TOO_LONG
        for reader in (self.actors[name].task for name in READERS if self.actors[name].began_after_acknowledgement):
            if self.faults == 0 and reader is not None and reader.done() and reader.result() != NEW:
                return READ_OLD
        at_rest = all(actor.ended or actor.task is None for actor in self.actors.values())
        if at_rest and self.version == NEW and self.cached_version == OLD:
            return AT_REST
        return None
