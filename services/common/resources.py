"""What every API of ours works with: database, cache, and what follows a commit. Opened together, and closed."""

import asyncio
from collections.abc import Coroutine, Mapping
from contextlib import AsyncExitStack
from types import MappingProxyType
from typing import Any, Self, TypeVar

from services.common import breaker, caches
from services.common.after_commit import AfterCommit
from services.common.auth import TokenVerifier
from services.common.clock import Clock
from services.common.db import Database
from services.common.outbox import Wake
from services.common.settings import ApiSettings

T = TypeVar("T")


class Writes:
    """Writes under way. A client that goes away cancels its request, never the write between BEGIN and COMMIT."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def finish(self, write: Coroutine[Any, Any, T]) -> T:
        """What `write` gives. It runs to its end even when the caller is cancelled."""
        task = asyncio.create_task(write)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return await asyncio.shield(task)

    async def drain(self) -> None:
        """None is under way afterwards."""
        while self._tasks:
            await asyncio.wait(self._tasks)


class Resources:
    """`async with` it: inside, connections are open; at the end, writes under way have ended and none is.

    Entering raises TransientError when the primary does not answer. `session` are settings of its sessions.
    """

    def __init__(
        self,
        process: str,
        settings: ApiSettings,
        verifier: TokenVerifier,
        *,
        outbox: str,
        now: Clock,
        session: Mapping[str, str] = MappingProxyType({}),
        replica: Database | None = None,
    ) -> None:
        self.now = now
        self.database = Database(
            settings.postgres_url,
            application_name=process,
            size_max=settings.pool_size,
            settings=session,
            name="primary",
        )
        self.replica = replica
        self.cache = caches.cache(settings.cache_at)
        self.writes = Writes()
        self._wake = Wake(settings.valkey_url, outbox)
        self.after_commit = AfterCommit(self._wake, self.cache)
        self._verifier = verifier
        self._ending = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """See the class."""
        async with AsyncExitStack() as opening:  # what is open is closed again when the next cannot be opened
            opening.push_async_callback(self._verifier.aclose)
            for database in (self.database, self.replica):
                if database is not None:
                    opening.push_async_callback(database.close)
                    await database.open()
            opening.push_async_callback(self._wake.close)
            self._wake.start()
            if self.cache is not None:
                opening.push_async_callback(self.cache.close)
            opening.push_async_callback(self.writes.drain)
            self._ending = opening.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._ending.aclose()

    def degraded(self) -> list[str]:
        """A sentence for each part that does not answer, but for the primary, without which no request is served."""
        parts = [part.breaker for part in (self.replica, self.cache, self._verifier) if part is not None]
        wake = [] if self._wake.healthy else ["valkey does not answer: the relay polls"]
        return [*breaker.degraded(*parts), *wake]
