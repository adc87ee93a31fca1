"""Who takes part in an interleaving: each makes one call at a time, and waits until it is let through."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from services.common.cache_store import Lease, Store
from services.common.cached import Entry, Key

T = TypeVar("T")


@dataclass
class Step:
    """A call that has been made and not yet been let through."""

    name: str
    call: Callable[[], Awaitable[Any]]
    result: "asyncio.Future[Any]"
    sent: bytes = b""


@dataclass
class Actor:
    """A process, or what of it takes part: it knows what it has a lease since, and what it has loaded."""

    name: str
    asked: bool = False
    leased_at: int | None = None
    loaded: int | None = None
    pending: Step | None = None
    crashed: bool = False
    task: "asyncio.Task[Any] | None" = None
    settled: asyncio.Event = field(default_factory=asyncio.Event)
    began_after_acknowledgement: bool = False

    @property
    def ended(self) -> bool:
        """It will make no further call."""
        return self.crashed or (self.task is not None and self.task.done())

    @property
    def knows(self) -> tuple[object, ...]:
        """All that its further calls depend on."""
        if self.ended:
            return ("ended",)
        return self.pending.name if self.pending else None, self.leased_at, self.loaded

    def learns(self, given: object, version: int) -> None:
        """What a call has given while the database was at `version`."""
        self.asked = True
        if isinstance(given, Lease):
            self.leased_at = version
        elif isinstance(given, Entry):
            self.loaded = given.version

    async def step(self, name: str, call: Callable[[], Awaitable[T]], sent: bytes = b"") -> T:
        """What `call`, which sends `sent`, gives once it is let through."""
        step = self.pending = Step(name, call, asyncio.get_running_loop().create_future(), sent)
        self.settled.set()
        given: T = await step.result
        return given

    def begin(self, work: Awaitable[Any]) -> None:
        """It is at work, up to its first call."""
        self.task = asyncio.ensure_future(work)
        self.task.add_done_callback(lambda _: self.settled.set())

    async def rests(self) -> None:
        """It has made its next call, or has ended."""
        async with asyncio.timeout(10):
            await self.settled.wait()


@dataclass
class Stepped:
    """A `Store` whose calls are an actor's steps."""

    store: Store
    actor: Actor
    gets_max: int = 1
    keys_max: int = 1

    async def get(self, keys: Sequence[Key]) -> Sequence[bytes | None]:
        return await self.actor.step("get", lambda: self.store.get(keys))

    async def lease(self, key: Key, min_version: int) -> Lease | bytes | None:
        return await self.actor.step("lease", lambda: self.store.lease(key, min_version))

    async def put(self, key: Key, lease: Lease, entry: Entry, ttl_ms: int) -> bool:
        return await self.actor.step("put", lambda: self.store.put(key, lease, entry, ttl_ms))

    async def release(self, key: Key, lease: Lease) -> None:
        return await self.actor.step("release", lambda: self.store.release(key, lease))

    async def invalidate(self, versions: Mapping[Key, int], *, spare: bool = False) -> None:
        return await self.actor.step("invalidate", lambda: self.store.invalidate(versions, spare=spare))

    def give_up(self) -> None:
        """Nobody's deadline passes while it waits for its turn."""

    async def close(self) -> None:
        """The store belongs to all."""
