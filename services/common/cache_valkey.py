"""Valkey or Redis 6.2 and newer as the server of a cache: each step of the protocol is one script, so it is atomic."""

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from redis.asyncio import BlockingConnectionPool, Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from services.common.cache_store import FENCE_TTLS, LEASE_MS, Lease
from services.common.cached import Entry, Key, encode

CONNECTIONS_MAX: Final = 64

# value, lease | token, lease ms, least version -> [value] or [nil, ms] or []
LEASE: Final = """
local value = redis.call('GET', KEYS[1])
if value and (tonumber(string.sub(value, 3, 18)) or -1) >= tonumber(ARGV[3]) then return {value} end
if not redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return {} end
local now = redis.call('TIME')
return {false, now[1] * 1000 + math.floor(now[2] / 1000)}
"""

# value, lease, fence | token, version, value, expires at ms -> 1 when it is stored
PUT: Final = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[2])
if tonumber(redis.call('GET', KEYS[3]) or 0) > tonumber(ARGV[2]) then return 0 end
redis.call('SET', KEYS[1], ARGV[3], 'PXAT', ARGV[4])
return 1
"""

# lease | token
RELEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""

# value, of each key, and whatever else has to be told to a cluster | versions, fence ms, and a third to spare values
# that are at least as new
# The other names are made here, in the slot of the value's by their tag: three times the names would be most of what a
# command of 2,000 lines costs its sender. First all are deleted: a server without memory refuses a script whose first
# write takes some, and lets this one be.
INVALIDATE: Final = """
local function name(value, letter) return (string.gsub(value, ':v:{', ':' .. letter .. ':{', 1)) end
local versions = {}
for version in string.gmatch(ARGV[1], '%d+') do versions[#versions + 1] = version end
for number, version in ipairs(versions) do
  local value, lease = KEYS[number], name(KEYS[number], 'l')
  if ARGV[3] and (tonumber(redis.call('GETRANGE', value, 2, 17)) or -1) >= tonumber(version) then value = lease end
  redis.call('DEL', value, lease)
end
for number, version in ipairs(versions) do
  local fence = name(KEYS[number], 'f')
  local known = redis.call('GET', fence)
  if known and tonumber(known) > tonumber(version) then version = known end
  redis.call('SET', fence, version, 'PX', ARGV[2])
end
"""


class Script:
    """Sent by its hash; as it is, to a server that does not know it (it was restarted, or is asked the first time)."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()  # what EVALSHA wants

    async def __call__(
        self, redis: Redis | RedisCluster, keys: Sequence[str], args: Sequence[str | bytes | int]
    ) -> Any:
        """What the script gives."""
        try:
            return await redis.evalsha(self.sha, len(keys), *keys, *args)
        except NoScriptError:
            return await redis.eval(self.text, len(keys), *keys, *args)


class ValkeyStore:
    """See `Store`."""

    keys_max = 4_096

    def __init__(self, url: str, *, connections_max: int = CONNECTIONS_MAX) -> None:
        self._redis = self._client(url, connections_max)
        self._lease, self._put = Script(LEASE), Script(PUT)
        self._release, self._invalidate = Script(RELEASE), Script(INVALIDATE)

    def _client(self, url: str, connections_max: int) -> Redis | RedisCluster:
        # No time-outs here: whoever calls has a deadline for the whole of it, and a command that is cancelled closes
        # its connection. redis-py's own time-outs are each for a part, and swallow a cancellation that meets them.
        return Redis(
            connection_pool=BlockingConnectionPool.from_url(
                url,
                max_connections=connections_max,
                timeout=None,
                socket_timeout=None,
                socket_connect_timeout=None,
                retry=Retry(NoBackoff(), 0),
            )
        )

    async def _ready(self) -> Redis | RedisCluster:
        """The client, which may be asked."""
        return self._redis

    async def get(self, key: Key) -> bytes | None:
        """See `Store`."""
        redis = await self._ready()
        return cast("bytes | None", await redis.get(key.value))  # nothing is decoded by this client

    async def lease(self, key: Key, min_version: int) -> Lease | bytes | None:
        """See `Store`."""
        token = secrets.token_bytes(16)
        answer = await self._lease(await self._ready(), (key.value, key.lease), (token, LEASE_MS, min_version))
        match answer:
            case []:
                return None
            case [None, int(at_ms)]:
                return Lease(token, at_ms)
            case [bytes(value)]:
                return value
        raise TypeError(f"the lease script has answered {answer!r}")

    async def put(self, key: Key, lease: Lease, entry: Entry, ttl_ms: int) -> bool:
        """See `Store`."""
        names = (key.value, key.lease, key.fence)
        args = (lease.token, entry.version, encode(key, entry, lease.at_ms), lease.at_ms + ttl_ms)
        return bool(await self._put(await self._ready(), names, args))

    async def release(self, key: Key, lease: Lease) -> None:
        """See `Store`."""
        await self._release(await self._ready(), (key.lease,), (lease.token,))

    async def invalidate(self, versions: Mapping[Key, int], *, spare: bool = False) -> None:
        """See `Store`."""
        names = [key.value for key in versions]
        await self._invalidate(await self._ready(), names, invalidation(versions, spare=spare))

    async def close(self) -> None:
        """See `Store`."""
        await self._redis.aclose()


def invalidation(versions: Mapping[Key, int], *, spare: bool) -> tuple[str | int, ...]:
    """The arguments of `INVALIDATE`."""
    told = " ".join(map(str, versions.values())), FENCE_TTLS * max(key.kind.ttl_ms for key in versions)
    return (*told, "spare") if spare else told
