"""Many who want the same thing at the same time share one piece of work, and never one that began before they asked."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Any, Final, TypeVar

T = TypeVar("T")


class SingleFlight:
    """At most one flight per key runs, and one waits to be the next: whoever comes meanwhile shares that one.

    To share the running one would answer with what was read before the question: a client whose write was acknowledged
    in between would not see it. A flight is a task of its own, so that a request that is cancelled ends no other.
    """

    def __init__(self) -> None:
        self._running: Final[dict[Hashable, asyncio.Task[Any]]] = {}
        self._waiting: Final[dict[Hashable, asyncio.Task[Any]]] = {}

    async def run(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        """What `work`, or another's under the same key, gives or raises; it began after this call."""
        flight = self._waiting.get(key)
        if flight is None:
            before = self._running.get(key)
            if before is None:
                flight = self._running[key] = asyncio.create_task(self._fly(key, work))
            else:
                flight = self._waiting[key] = asyncio.create_task(self._fly_after(before, key, work))
        return await asyncio.shield(flight)

    async def close(self) -> None:
        """Nothing runs any more; who still waits is cancelled."""
        flights = [*self._running.values(), *self._waiting.values()]
        for flight in flights:
            flight.cancel()
        await asyncio.gather(*flights, return_exceptions=True)

    async def _fly(self, key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        try:
            return await work()
        finally:
            del self._running[key]

    async def _fly_after(self, before: asyncio.Task[Any], key: Hashable, work: Callable[[], Awaitable[T]]) -> T:
        try:
            await asyncio.wait([before])
        finally:
            self._running[key] = self._waiting.pop(key)
        return await self._fly(key, work)
