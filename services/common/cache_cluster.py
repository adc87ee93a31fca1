"""A Valkey or Redis Cluster as the server of a cache. The three names of a key share a slot, by their hash tag."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from redis.asyncio import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from services.common.cache_valkey import INVALIDATE, ScriptedStore, invalidation
from services.common.cached import Key
from services.common.valkey_line import Argument

CONNECTIONS_MAX: Final = 64


class ClusterStore(ScriptedStore):
    """See `Store`. Of a node that is away only the slots are; a slot that moves is found again."""

    gets_max = 1  # so that a node that is away holds up nobody else's
    keys_max = 500  # each slot is a command of its own: 2,000 take some 30 ms of this process

    def __init__(self, url: str, *, connections_max: int = CONNECTIONS_MAX) -> None:
        # No time-outs here: whoever asks has a deadline for the whole of it. redis-py's own are each for a part, and
        # swallow a cancellation that meets them.
        self._cluster = RedisCluster.from_url(
            url.replace("-cluster:", ":", 1),
            max_connections=connections_max,
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 1),  # after a failure it learns anew who has which slot
        )
        self._learning: asyncio.Task[Any] | None = None

    async def _ready(self) -> RedisCluster:
        # Learning who has which slot may take longer than one call is given, and would then begin anew each time.
        if self._learning is None or self._learning.done():
            self._learning = asyncio.create_task(self._cluster.initialize())
        await asyncio.shield(self._learning)
        return self._cluster

    async def _ask(self, *command: Argument) -> Any:
        return await (await self._ready()).execute_command(*command)

    async def get(self, keys: Sequence[Key]) -> Sequence[bytes | None]:
        """See `Store`."""
        return [cast("bytes | None", await self._ask("GET", key.value)) for key in keys]

    async def invalidate(self, versions: Mapping[Key, int], *, spare: bool = False) -> None:
        """See `Store`."""
        cluster = await self._ready()
        by_slot: dict[int, dict[Key, int]] = defaultdict(dict)
        for key, version in versions.items():
            by_slot[cluster.keyslot(key.value)][key] = version
        # All names are told, so that a slot that is half moved refuses it instead of missing what is elsewhere.
        calls: list[tuple[str | int, ...]] = [
            (3 * len(keys), *told, *invalidation(keys, spare=spare))
            for keys in by_slot.values()
            for told in [(*names(keys, "value"), *names(keys, "lease"), *names(keys, "fence"))]
        ]
        for command, text in (("EVALSHA", INVALIDATE.sha), ("EVAL", INVALIDATE.text)):
            pipeline = cluster.pipeline()
            for call in calls:
                pipeline.execute_command(command, text, *call)
            results = await pipeline.execute(raise_on_error=False)
            failed = [result for result in results if isinstance(result, Exception)]
            if broken := [error for error in failed if not isinstance(error, NoScriptError)]:
                raise broken[0]
            if not failed:
                return
            calls = [call for call, result in zip(calls, results, strict=True) if isinstance(result, Exception)]

    def give_up(self) -> None:
        """See `Store`. Each call has a connection of its own, which ended with it."""

    async def close(self) -> None:
        """See `Store`."""
        await self._cluster.aclose()


def names(keys: Mapping[Key, int], which: str) -> list[str]:
    """Of each key."""
    return [getattr(key, which) for key in keys]
