"""Valkey or Redis 6.2 and newer as the server of a cache: each step of the protocol is one script, so it is atomic."""

import hashlib
import secrets
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from redis.exceptions import NoScriptError

from services.common.cache_store import FENCE_TTLS, LEASE_MS, Lease
from services.common.cached import Entry, Key, encode
from services.common.valkey_line import Argument, Line


class Script:
    """`text`, and the hash by which it is asked for."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()  # what EVALSHA wants


# value, lease | token, lease ms, least version -> [value] or [nil, ms] or []
LEASE: Final = Script("""
local value = redis.call('GET', KEYS[1])
if value and (tonumber(string.sub(value, 3, 18)) or -1) >= tonumber(ARGV[3]) then return {value} end
if not redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return {} end
local now = redis.call('TIME')
return {false, now[1] * 1000 + math.floor(now[2] / 1000)}
""")

# value, lease, fence | token, version, value, expires at ms -> 1 when it is stored
PUT: Final = Script("""
if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[2])
if tonumber(redis.call('GET', KEYS[3]) or 0) > tonumber(ARGV[2]) then return 0 end
redis.call('SET', KEYS[1], ARGV[3], 'PXAT', ARGV[4])
return 1
""")

# lease | token
RELEASE: Final = Script("""
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
""")

# value, of each key, and whatever else has to be told to a cluster | versions, fence ms, and a third to spare values
# that are at least as new
# The other names are made here, in the slot of the value's by their tag: three times the names would be most of what a
# command of 2,000 lines costs its sender. First all are deleted: a server without memory refuses a script whose first
# write takes some, and lets this one be. A thousand names go into one command, which is half of what they cost alone;
# Lua has room for some 8,000. MSETEX is of Valkey 9.1 and Redis 8.4; who refuses it is told each fence alone.
INVALIDATE: Final = Script("""
local versions, replaced, leases, fences = {}, {}, {}, {}
for version in string.gmatch(ARGV[1], '%d+') do versions[#versions + 1] = version end
for number, version in ipairs(versions) do
  local value = KEYS[number]
  local letter = string.find(value, ':v:{', 1, true) + 1
  local before, behind = string.sub(value, 1, letter - 1), string.sub(value, letter + 1)
  leases[number], fences[number] = before .. 'l' .. behind, before .. 'f' .. behind
  if not ARGV[3] or (tonumber(redis.call('GETRANGE', value, 2, 17)) or -1) < tonumber(version) then
    replaced[#replaced + 1] = value
  end
end
local function delete(names)
  for first = 1, #names, 1000 do redis.call('DEL', unpack(names, first, math.min(first + 999, #names))) end
end
delete(replaced)
delete(leases)
for first = 1, #fences, 1000 do
  local last = math.min(first + 999, #fences)
  local raised = {'MSETEX', last - first + 1}
  for offset, known in ipairs(redis.call('MGET', unpack(fences, first, last))) do
    local number = first + offset - 1
    local version = versions[number]
    if known and tonumber(known) > tonumber(version) then version = known end
    raised[#raised + 1], raised[#raised + 2] = fences[number], version
  end
  raised[#raised + 1], raised[#raised + 2] = 'PX', ARGV[2]
  if type(redis.pcall(unpack(raised))) == 'table' then
    for at = 3, #raised - 2, 2 do redis.call('SET', raised[at], raised[at + 1], 'PX', ARGV[2]) end
  end
end
""")


class ScriptedStore(ABC):
    """See `Store`: what is the same of one server and of a cluster."""

    async def lease(self, key: Key, min_version: int) -> Lease | bytes | None:
        """See `Store`."""
        token = secrets.token_bytes(16)
        answer = await self._run(LEASE, (key.value, key.lease), (token, LEASE_MS, min_version))
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
        return bool(await self._run(PUT, names, args))

    async def release(self, key: Key, lease: Lease) -> None:
        """See `Store`."""
        await self._run(RELEASE, (key.lease,), (lease.token,))

    async def _run(self, script: Script, keys: Sequence[str], args: Sequence[Argument]) -> Any:
        """What it gives. It is sent whole to a server that does not know it: that was restarted, or is asked first."""
        try:
            return await self._ask("EVALSHA", script.sha, len(keys), *keys, *args)
        except NoScriptError:
            return await self._ask("EVAL", script.text, len(keys), *keys, *args)

    @abstractmethod
    async def _ask(self, *command: Argument) -> Any:
        """The reply."""


class ValkeyStore(ScriptedStore):
    """See `Store`."""

    gets_max = 256
    keys_max = 4_096

    def __init__(self, url: str) -> None:
        self._line = Line(url)

    async def get(self, keys: Sequence[Key]) -> Sequence[bytes | None]:
        """See `Store`."""
        return cast("list[bytes | None]", await self._ask("MGET", *(key.value for key in keys)))

    async def invalidate(self, versions: Mapping[Key, int], *, spare: bool = False) -> None:
        """See `Store`."""
        names = [key.value for key in versions]
        await self._run(INVALIDATE, names, invalidation(versions, spare=spare))

    def give_up(self) -> None:
        """See `Store`."""
        self._line.give_up("an earlier command has had no reply in time")

    async def close(self) -> None:
        """See `Store`."""
        await self._line.close()

    async def _ask(self, *command: Argument) -> Any:
        return await self._line.ask(*command)


def invalidation(versions: Mapping[Key, int], *, spare: bool) -> tuple[str | int, ...]:
    """The arguments of `INVALIDATE`."""
    told = " ".join(map(str, versions.values())), FENCE_TTLS * max(key.kind.ttl_ms for key in versions)
    return (*told, "spare") if spare else told
