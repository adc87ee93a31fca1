"""A cache beside the database that is never wrong for longer than it says: docs/cache.md has the protocol and why.

Nothing here fails a request: whatever the cache does, the database can answer.
"""

import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache, partial
from math import inf
from typing import Final, TypeVar

import structlog
from prometheus_client import Counter
from pybreaker import STATE_CLOSED

from services.common.breaker import Breaker, BreakerOpenError
from services.common.cache_store import Lease, Store
from services.common.cached import VERSION_MAX, Answer, Entry, Key, Outcome, decode
from services.common.errors import not_found
from services.common.gathering import Gathering
from services.common.single_flight import SingleFlight

T = TypeVar("T")
Load = Callable[[], Awaitable[Entry | None]]

CALL_SECONDS: Final = 0.1  # of one call to the server, all of it: a local one takes less than 1 ms
COMMANDS_MAX: Final = 256  # whose keys are invalidated in one call
FAILURES: Final = 5  # in a row, then the server is left alone
RESET_SECONDS: Final = 1.0  # what is not invalidated meanwhile waits for the relay
SAY_SECONDS: Final = 1.0  # a line of log for the failures of as long; all are counted
JITTER: Final = 0.1  # of a TTL, downwards only, so that what was stored together does not expire together

_NEWER_THAN_ALL: Final = VERSION_MAX + 1  # as the least version: what is cached will not do

log = structlog.get_logger()
cache_requests_total = Counter("cache_requests_total", "Reads through the cache", ["kind", "outcome"])
cache_fills_total = Counter(
    "cache_fills_total", "Values brought to the cache, and whether it took them", ["kind", "outcome"]
)
cache_invalidations_total = Counter("cache_invalidations_total", "Keys invalidated, or not", ["outcome"])
cache_failures_total = Counter("cache_failures_total", "Calls to the cache that failed", ["part"])


def breaker(call_seconds: float = CALL_SECONDS, failures: int = FAILURES) -> Breaker:
    """For the calls of one cache. What cannot be stored says nothing about the server."""
    return Breaker(
        "cache",
        deadline_seconds=call_seconds,
        failures=failures,
        reset_seconds=RESET_SECONDS,
        healthy=(ValueError,),
    )


class Cache:
    """Reads of things by their key, answered from `store` when it has them, and else from the database."""

    def __init__(self, store: Store, breaker: Breaker) -> None:
        self._store = store
        self._breaker = breaker
        self._flights = SingleFlight()
        self._gets = Gathering(self._get, most=store.gets_max)
        self._invalidations = Gathering(self._invalidate, most=COMMANDS_MAX, one_by_one=True)
        # After an outage what was stored before is not believed: what was replaced meanwhile, nobody may have told it.
        self._believed_from_ms = 0.0
        self._said_at = float("-inf")

    @property
    def breaker(self) -> Breaker:
        """Of the cache's server."""
        return self._breaker

    async def read(self, key: Key, load: Load, *, reader: str | None, min_version: int = 0) -> Answer | None:
        """The answer for `reader` (None: who may read anybody's), None when there is no such thing or it is another's.

        `load` reads the primary, and gives None where this reader is to see nothing. A cached answer is used when it
        has `min_version`; one that was loaded may be older than that, which is the caller's to refuse.
        """
        answer = await self._read(key, load, reader, min_version)
        outcome: Outcome = "miss" if answer is None else answer.outcome
        _requests(key.kind.name, outcome).inc()
        # Asked of every answer, cached or not, and whoever has loaded it.
        return answer if answer and reader in (None, answer.entry.owner) else None

    async def invalidate(self, versions: Mapping[Key, int], *, spare: bool = False) -> bool:
        """No version older than these is cached or will be; False when that could not be told to the cache.

        To be called after the commit and before it is acknowledged. The relay says it again, so False fails nothing; it
        asks to `spare` values that are new enough, which a reader may have stored since.
        """
        return await self._invalidations.ask((versions, spare))

    async def close(self) -> None:
        """No read is under way and no connection is open."""
        await self._flights.close()
        await self._gets.close()
        await self._invalidations.close()
        await self._store.close()

    async def _get(self, keys: Sequence[Key]) -> Sequence[bytes | None]:
        return await self._called("get", lambda: self._store.get(keys))

    async def _invalidate(self, several: Sequence[tuple[Mapping[Key, int], bool]]) -> Sequence[bool]:
        """Whether the cache has been told of them: of all, or it is said of none."""
        newest: dict[Key, int] = {}
        spare = all(spared for _, spared in several)
        for versions, _ in several:
            for key, version in versions.items():
                newest[key] = max(version, newest.get(key, version))
        left = list(newest.items())
        while left:
            now, left = dict(left[: self._store.keys_max]), left[self._store.keys_max :]
            try:
                await self._called("invalidate", partial(self._store.invalidate, now, spare=spare))
            except _AwayError:
                cache_invalidations_total.labels("failed").inc(len(now) + len(left))
                return [False] * len(several)
            cache_invalidations_total.labels("sent").inc(len(now))
        return [True] * len(several)

    async def _read(self, key: Key, load: Load, reader: str | None, min_version: int) -> Answer | None:
        least, away = min_version, False
        try:
            value = await (self._called("get", _nothing) if self._breaker.left_alone else self._gets.ask(key))
        except _AwayError:
            away = True
        else:
            if value is not None:
                found = self._decoded(key, value)
                if found and found.entry.version >= min_version:
                    return found
                least = min_version if found else _NEWER_THAN_ALL
        return await self._flights.run((key, reader, least, away), lambda: self._fill(key, load, least, away=away))

    async def _fill(self, key: Key, load: Load, least: int, *, away: bool) -> Answer | None:
        """The answer from the primary, and the cache has it if nobody has invalidated it since the lease."""
        lease: Lease | None = None
        if not away:
            try:
                given = await self._called("lease", lambda: self._store.lease(key, least))
            except _AwayError:
                away = True
            else:
                if isinstance(given, Lease):
                    lease = given
                    if self._believed_from_ms == inf:  # the first after an outage
                        self._believed_from_ms = lease.at_ms
                elif given is not None and (found := self._decoded(key, given)):
                    return found
        try:
            entry = await load()
        except Exception:
            await self._release(key, lease)
            raise
        if entry is None:
            await self._release(key, lease)
            return None
        if lease is not None:
            await self._put(key, lease, entry)
        return Answer(entry, "bypass" if away else "miss")

    async def _put(self, key: Key, lease: Lease, entry: Entry) -> None:
        ttl_ms = int(key.kind.ttl_ms * (1 - JITTER * random.random()))  # noqa: S311  no secret
        try:
            stored = await self._called("put", lambda: self._store.put(key, lease, entry, ttl_ms))
        except _AwayError:
            return
        cache_fills_total.labels(key.kind.name, "stored" if stored else "refused").inc()

    async def _release(self, key: Key, lease: Lease | None) -> None:
        """Nothing is stored for this lease; where it cannot be given back it ends by itself."""
        if lease is not None:
            with suppress(_AwayError):  # counted, and said
                await self._called("release", lambda: self._store.release(key, lease))

    def _decoded(self, key: Key, value: bytes) -> Answer | None:
        try:
            entry, at_ms = decode(key, value)
        except ValueError as error:  # another release's format, or another's value: the next fill replaces it
            self._count("decode", error)
            return None
        if at_ms < self._believed_from_ms:
            return None
        return Answer(entry, "hit", max(0.0, time.time() - at_ms / 1000), at_ms)

    async def _called(self, part: str, call: Callable[[], Awaitable[T]]) -> T:
        """What the server says, in time; _AwayError when it does not or is left alone, whatever the reason."""
        try:
            return await self._breaker.call(call)
        except BreakerOpenError as error:  # counted there
            self._believed_from_ms = inf
            raise _AwayError from error
        except Exception as error:
            self._count(part, error)
            if isinstance(error, TimeoutError):
                self._store.give_up()
            if self._breaker.state != STATE_CLOSED:
                self._believed_from_ms = inf
            raise _AwayError from error

    def _count(self, part: str, error: Exception) -> None:
        cache_failures_total.labels(part).inc()
        now = time.monotonic()
        if now - self._said_at > SAY_SECONDS:
            self._said_at = now
            log.warning("cache.failed", part=part, error=f"{type(error).__name__}: {error}")


async def _nothing() -> None:
    """What is called where the breaker is sure to refuse: nobody is to wait in turn for a probe to end."""


@cache
def _requests(kind: str, outcome: Outcome) -> Counter:
    return cache_requests_total.labels(kind, outcome)


async def read_through(
    cache: Cache | None, key: Key, load: Load, *, reader: str | None = None, min_version: int = 0
) -> Answer:
    """As `Cache.read`, from the database where there is no cache. 404 `not_found`."""
    if cache is not None:
        answer = await cache.read(key, load, reader=reader, min_version=min_version)
    else:
        entry = await load()
        answer = None if entry is None else Answer(entry, "bypass")
    if answer is None:
        raise not_found()
    return answer


class _AwayError(Exception):
    """The cache has not answered."""
