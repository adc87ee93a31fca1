"""The same world on a memcached: there a call is up to three round trips, and each of them is a step of its own."""

import re
import time
from dataclasses import dataclass, field
from typing import cast

from services.common.breaker import Breaker
from services.common.cache import Cache
from services.common.cache_memcached import LEASED, MemcachedStore
from services.common.memcached import Line, Reply
from tests.faults.actors import Actor
from tests.faults.interleavings import NEVER_SECONDS, Seen, World
from tests.memcached import Looking


class SteppedMemcached(MemcachedStore):
    """A `Store` whose round trips are an actor's steps; the connection is everybody's."""

    shared: MemcachedStore
    actor: Actor
    world: "MemcachedWorld"

    async def _line(self) -> Line:
        return await self.shared._line()

    async def _ask(self, line: Line, commands: bytes) -> list[Reply]:
        # What only reads makes no difference by arriving after it was given up.
        name = "ask" if re.search(rb"^m[sd] ", commands, re.MULTILINE) else "get"

        async def passes() -> list[Reply]:
            for token in re.findall(LEASED + rb"\w+", commands):
                self.world.holders.setdefault(token, self.actor.name)
            return await line.ask(commands)

        return await self.actor.step(name, passes, commands)

    async def close(self) -> None:
        """The connection is not this one's."""


@dataclass
class MemcachedWorld(World):
    """`store` is the class of the stores, open at nobody's; `redis` looks at the server."""

    numbers: dict[bytes, bytes] = field(default_factory=dict)  # CAS, of what there is

    def _cache(self, actor: Actor) -> Cache:
        shared = cast("MemcachedStore", self.store)
        stepped = type("Stepped", (SteppedMemcached, type(shared)), {})("memcached://unused")
        stepped.shared, stepped.actor, stepped.world = shared, actor, self
        cache = Cache(stepped, Breaker("proof", deadline_seconds=NEVER_SECONDS))
        self.caches.append(cache)
        return cache

    async def server_ms(self) -> int:
        """It tells nobody; this is the machine it runs on."""
        return time.time_ns() // 1_000_000

    async def restart(self) -> None:
        """All is lost, the connection too, and whatever was on its way over it."""
        await self.redis.delete(self.key.value, self.key.fence)
        (await cast("MemcachedStore", self.store)._line()).close()
        self.ghosts.clear()

    async def look(self) -> None:
        """`seen` is what the server has."""
        line = cast("Looking", self.redis).line
        names = [name.encode() for name in (self.key.value, self.key.fence)]
        place, fence = await line.ask(b"".join(b"mg %s v c t\r\n" % name for name in names))
        there = {name: found for name, found in zip(names, (place, fence), strict=True) if found.code == b"VA"}
        self.numbers = {name: found.flag(b"c") for name, found in there.items()}
        leased = place.data.startswith(LEASED)
        self.seen = Seen(
            value=place.data if place.code == b"VA" and not leased else None,
            lease=place.data if leased else None,
            fence=fence.data if fence.code == b"VA" else None,
            expires_at_ms=await self.server_ms() + 1000 * int(place.flag(b"t")) if place.code == b"VA" else -2,
        )

    def state(self) -> tuple[object, ...]:
        """With what everybody is about to ask, but for names that are new in each world."""
        asked = tuple(self._alike(actor.pending.sent) if actor.pending else b"" for actor in self.actors.values())
        ghosts = tuple(sorted((name, self._alike(step.sent)) for name, step in self.ghosts))
        return *super().state(), asked, ghosts

    def _alike(self, sent: bytes) -> bytes:
        """What is the same in two worlds is the same here: whose lease, and whether the CAS that is named still is."""

        def numbered(command: "re.Match[bytes]") -> bytes:
            still = self.numbers.get(command["name"]) == command["cas"]
            return command["before"] + (b" C=" if still else b" C!")

        sent = re.sub(rb"(?P<before>^m[sd] (?P<name>\S+).*) C(?P<cas>\d+)", numbered, sent, flags=re.MULTILINE)
        sent = re.sub(LEASED + rb"\w+", lambda lease: self.holders.get(lease[0], "reader asking").encode(), sent)
        sent = re.sub(rb"^(1 \d{16}) \d{16} ", rb"\1 ", sent, flags=re.MULTILINE)  # when it was read
        sent = re.sub(rb" T\d+", b"", sent)  # a little of a TTL is taken off at random
        return sent.replace(self.key.id.encode(), b"")
