"""memcached 1.6 and newer as the server of a cache.

It has no scripts. What may be stored is decided by comparing: the lease is kept in the value's own place, and whatever
is written there afterwards, or deleted, changes the number (CAS) that the write of the value has to name. Those numbers
begin anew with the server; so the lease has a token, and it is compared over the connection that the value goes over.

It has whole seconds, counted from a tick that may be up to a second late, and tells nobody the time. A value is written
within its lease, so one that is kept for its TTL less the lease is gone a TTL after the lease was given at the latest,
however late it was written, and whatever any clock says.
"""

import asyncio
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from services.common.cache_store import FENCE_TTLS, LEASE_MS, Lease
from services.common.cached import Entry, Key, encode
from services.common.memcached import Line, Reply, name

PORT: Final = 11_211
LEASED: Final = b"lease "  # and a token, in place of a value
LEASE_SECONDS: Final = LEASE_MS // 1000
SECONDS_MAX: Final = 30 * 86_400  # what is more would be taken for a point in time


class MemcachedStore:
    """See `Store`."""

    gets_max = 256
    keys_max = 500  # 2,000 in one call would take 20 ms of this process, and twice that until the last is answered

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        if not parts.hostname or parts.path.strip("/") or parts.query or parts.username:
            raise ValueError(f"a memcached is memcached://host:port and nothing more, not {url!r}")
        self._address = parts.hostname, parts.port or PORT
        self._opening: asyncio.Task[Line] | None = None

    async def get(self, keys: Sequence[Key]) -> Sequence[bytes | None]:
        """See `Store`."""
        found = await self._ask(await self._line(), b"".join(b"mg %s v\r\n" % name(key.value) for key in keys))
        return [value_in(reply) for reply in found]

    async def lease(self, key: Key, min_version: int) -> Lease | bytes | None:
        """See `Store`."""
        at_ms, token = time.time_ns() // 1_000_000, LEASED + secrets.token_hex(16).encode()
        place, line = name(key.value), await self._line()
        added, found = await self._ask(line, stored(place, token, LEASE_SECONDS, b"ME") + b"mg %s v c\r\n" % place)
        if added.code == b"HD":
            return Lease(token, at_ms)
        value = value_in(found)
        if value is None:
            return None  # somebody has the lease, or it has just been taken from him
        if version_of(value) >= min_version:
            return value
        (replaced,) = await self._ask(line, stored(place, token, LEASE_SECONDS, b"C" + found.flag(b"c")))
        return Lease(token, at_ms) if replaced.code == b"HD" else None

    async def put(self, key: Key, lease: Lease, entry: Entry, ttl_ms: int) -> bool:
        """See `Store`."""
        value, seconds = encode(key, entry, lease.at_ms), ttl_ms // 1000 - LEASE_SECONDS
        place, line = name(key.value), await self._line()
        held, fence = await self._ask(line, b"mg %s v c\r\nmg %s v\r\n" % (place, name(key.fence)))
        if held.data != lease.token:
            return False
        mine = b"C" + held.flag(b"c")
        if seconds <= 0 or fence_in(fence) > entry.version:
            await self._ask(line, b"md %s %s\r\n" % (place, mine))
            return False
        (done,) = await self._ask(line, stored(place, value, seconds, mine))
        return done.code == b"HD"

    async def release(self, key: Key, lease: Lease) -> None:
        """See `Store`."""
        place, line = name(key.value), await self._line()
        (held,) = await self._ask(line, b"mg %s v c\r\n" % place)
        if held.data == lease.token:
            await self._ask(line, b"md %s C%s\r\n" % (place, held.flag(b"c")))

    async def invalidate(self, versions: Mapping[Key, int], *, spare: bool = False) -> None:  # noqa: ARG002 # see below
        """See `Store`. Two round trips, and two more for what another invalidates at the same time.

        It spares nothing: to know a value's version here is to be sent all of it.
        """
        line = await self._line()
        left = [(name(key.value), name(key.fence), version) for key, version in versions.items()]
        seconds = lasting(FENCE_TTLS * max(key.kind.ttl_ms for key in versions))
        while left:
            asked = b"".join(b"mg %s v c O%d\r\n" % (fence, number) for number, (_, fence, _) in enumerate(left))
            known = await self._ask(line, asked)
            # First the fence, then the value: a lease that is given in between finds the fence.
            raised = b"".join(
                higher(fence, version, seconds, before, number)
                for number, ((_, fence, version), before) in enumerate(zip(left, known, strict=True))
            )
            deleted = b"".join(b"md %s q\r\n" % place for place, _, _ in left)
            met = await self._ask(line, raised + deleted)
            left = [
                left[int(reply.flag(b"O"))] for reply in met if reply.flags
            ]  # of a fence that was not as it was known

    def give_up(self) -> None:
        """See `Store`."""
        if self._opening is not None and self._opening.done() and not ended(self._opening):
            self._opening.result().close()

    async def close(self) -> None:
        """See `Store`."""
        if self._opening is None:
            return
        self._opening.cancel()
        (line,) = await asyncio.gather(self._opening, return_exceptions=True)
        if isinstance(line, Line):
            line.close()

    async def _ask(self, line: Line, commands: bytes) -> list[Reply]:
        """One round trip."""
        return await line.ask(commands)

    async def _line(self) -> Line:
        """One that is open, or is being opened for all who want it."""
        if self._opening is None or ended(self._opening):
            self._opening = asyncio.create_task(Line(*self._address).open())
        return await asyncio.shield(self._opening)


def ended(opening: "asyncio.Task[Line]") -> bool:
    """It will give no line that is open."""
    if not opening.done():
        return False
    return opening.cancelled() or opening.exception() is not None or not opening.result().is_open


def stored(place: bytes, data: bytes, seconds: int, *flags: bytes) -> bytes:
    """The command that stores."""
    head = b" ".join((b"ms", place, b"%d" % len(data), b"T%d" % min(seconds, SECONDS_MAX), *flags))
    return head + b"\r\n" + data + b"\r\n"


def higher(fence: bytes, version: int, seconds: int, known: Reply, number: int) -> bytes:
    """The command that raises the fence, if it has not been raised meanwhile: then, and only then, it replies."""
    if known.code == b"VA":
        return stored(
            fence, b"%d" % max(version, fence_in(known)), seconds, b"C" + known.flag(b"c"), b"q", b"O%d" % number
        )
    return stored(fence, b"%d" % version, seconds, b"ME", b"q", b"O%d" % number)


def lasting(ttl_ms: int) -> int:
    """Seconds, of which not less than `ttl_ms` will have passed."""
    return -(-ttl_ms // 1000) + 2


def value_in(found: Reply) -> bytes | None:
    """What is there, if it is a value."""
    return found.data if found.code == b"VA" and not found.data.startswith(LEASED) else None


def fence_in(found: Reply) -> int:
    """The version it has, 0 when there is none."""
    return int(found.data) if found.code == b"VA" else 0


def version_of(value: bytes) -> int:
    """Of a value, -1 of what is none."""
    try:
        return int(value[2:18])
    except ValueError:
        return -1
