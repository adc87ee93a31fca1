"""What follows the commit of a write, before it is acknowledged: the cache is told, the relay is woken."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from services.common.cache import Cache
from services.common.cached import Key


@dataclass(frozen=True, slots=True)
class AfterCommit:
    """Called with what the write has replaced. It never fails: the relay repeats what the cache could not hear."""

    wake: Callable[[], None]
    cache: Cache | None

    async def __call__(self, stale: Mapping[Key, int]) -> None:
        """The cache holds nothing older than `stale`, if it answers."""
        self.wake()
        if self.cache is not None and stale:
            await self.cache.invalidate(stale)
