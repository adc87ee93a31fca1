"""A cache with a memory of the process's own before it: L1, for kinds that are read much more often than replaced.

What is held is dropped as soon as the cache tells that it was replaced, and used only while that is surely heard
(`Watch`). Nothing here fails a request: without L1 the cache is asked.
"""

import random
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from functools import cache, partial
from typing import Any

from prometheus_client import Counter, Gauge

from services.common.breaker import Breaker
from services.common.cache import JITTER, Cache, Load
from services.common.cache_events import Connect
from services.common.cache_memory import Held, Memory
from services.common.cache_store import Store
from services.common.cache_watch import Watch
from services.common.cached import Answer, Key
from services.contracts.cache import KINDS, Kind

cache_l1_requests_total = Counter(
    "cache_l1_requests_total",
    "Reads of kinds that are held in L1; off: its heartbeat was not heard",
    ["kind", "outcome"],
)
cache_l1_entries = Gauge("cache_l1_entries", "Answers that are held in L1", ["kind"])
cache_l1_bytes = Gauge("cache_l1_bytes", "Bytes they take, about", ["kind"])
cache_l1_heartbeat_age_seconds = Gauge(
    "cache_l1_heartbeat_age_seconds", "Since the heartbeat was written that was heard last", ["kind"]
)


class L1Cache(Cache):
    """See `Cache`. An answer that another process has replaced is given for BOUND_SECONDS more at most; a replaced one
    of this process's own never.

    It begins to listen at the first read of a kind that has room in L1; who only invalidates never does.
    """

    def __init__(
        self,
        store: Store,
        breaker: Breaker,
        connect: Callable[[Sequence[Kind]], Connect],
        *,
        kinds: Iterable[Kind] = tuple(KINDS.values()),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(store, breaker)
        self._monotonic = monotonic
        self._kinds = [kind for kind in kinds if kind.l1]
        self._memories = {kind.prefix: Memory(kind.l1) for kind in self._kinds if kind.l1}
        self._watch = Watch(connect(self._kinds), self._drop, self._flush, monotonic)

    async def invalidate(self, versions: Mapping[Key, int], *, spare: bool = False) -> bool:
        """See `Cache`. This process holds none of them afterwards, whatever the server has said."""
        try:
            return await super().invalidate(versions, spare=spare)
        finally:  # and not before: who asks the cache meanwhile may still be told the old one
            for key in versions:
                self._drop(key.fence)

    async def close(self) -> None:
        """See `Cache`."""
        await self._watch.close()
        await super().close()

    def held(self, key: Key) -> Held | None:
        """What is given without asking anybody."""
        memory = self._memories.get(key.kind.prefix)
        return memory.get(key.fence, self._monotonic()) if memory is not None and self._watch.fresh else None

    def _read(self, key: Key, load: Load, reader: str | None, min_version: int) -> Coroutine[Any, Any, Answer | None]:
        memory = self._memories.get(key.kind.prefix)
        if memory is None:
            return super()._read(key, load, reader, min_version)
        return self._read_held(memory, key, load, reader, min_version)

    async def _read_held(
        self, memory: Memory, key: Key, load: Load, reader: str | None, min_version: int
    ) -> Answer | None:
        if not self._watch.fresh:
            self._begin()
            _requests(key.kind.name, "off").inc()
            return await super()._read(key, load, reader, min_version)
        held = self.held(key)
        if held is not None and held.entry.version >= min_version:
            _requests(key.kind.name, "hit").inc()
            age_seconds = max(0.0, self._watch.server_ms() - held.at_ms) / 1000
            return Answer(held.entry, "hit", age_seconds, held.at_ms)
        _requests(key.kind.name, "miss").inc()
        right, answer = memory.asks(key.fence), None
        try:
            answer = await super()._read(key, load, reader, min_version)
        finally:
            if right is not None:
                memory.answered(key.fence, right, self._holdable(key.kind, answer))
        return answer

    def _holdable(self, kind: Kind, answer: Answer | None) -> Held | None:
        """What the cache itself has said, and for no longer than it has it: what was only loaded may be refused there.

        It keeps a value for its TTL less JITTER at least. As much again is taken off at random, as there.
        """
        if answer is None or answer.outcome != "hit":
            return None
        ttl_ms = kind.ttl_ms * (1 - JITTER - JITTER * random.random())  # noqa: S311  no secret
        left_ms = answer.at_ms + ttl_ms - self._watch.server_ms()
        return Held(answer.entry, answer.at_ms, self._monotonic() + left_ms / 1000) if left_ms > 0 else None

    def _begin(self) -> None:
        if self._watch.started:
            return
        self._watch.start()
        for kind in self._kinds:
            memory = self._memories[kind.prefix]
            cache_l1_entries.labels(kind.name).set_function(memory.__len__)
            cache_l1_bytes.labels(kind.name).set_function(partial(getattr, memory, "bytes"))
            cache_l1_heartbeat_age_seconds.labels(kind.name).set_function(lambda: self._watch.age_seconds)

    def _drop(self, fence: str) -> None:
        memory = self._memories.get(fence.partition(":f:")[0])
        if memory is not None:
            memory.drop(fence)

    def _flush(self) -> None:
        for memory in self._memories.values():
            memory.flush()


@cache
def _requests(kind: str, outcome: str) -> Counter:
    return cache_l1_requests_total.labels(kind, outcome)
