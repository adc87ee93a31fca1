"""A Valkey or Redis Cluster as the server of a cache. The three names of a key share a slot, by their hash tag."""

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, cast

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError

from services.common.cache_valkey import ValkeyStore, invalidation
from services.common.cached import Key


class ClusterStore(ValkeyStore):
    """See `Store`. Of a node that is away only the slots are; a slot that moves is found again."""

    keys_max = 500  # each slot is a command of its own: 2,000 take some 30 ms of this process

    _learning: "asyncio.Task[Any] | None" = None

    def _client(self, url: str, connections_max: int) -> Redis | RedisCluster:
        return RedisCluster.from_url(
            url.replace("-cluster:", ":", 1),
            max_connections=connections_max,
            socket_timeout=None,
            socket_connect_timeout=None,
            retry=Retry(NoBackoff(), 1),  # after a failure it learns anew who has which slot
        )

    async def _ready(self) -> RedisCluster:
        # Learning who has which slot may take longer than one call is given, and would then begin anew each time.
        cluster = cast("RedisCluster", self._redis)
        if self._learning is None or self._learning.done():
            self._learning = asyncio.create_task(cluster.initialize())
        await asyncio.shield(self._learning)
        return cluster

    async def invalidate(self, versions: Mapping[Key, int], *, spare: bool = False) -> None:
        """See `Store`."""
        cluster, script = await self._ready(), self._invalidate
        by_slot: dict[int, dict[Key, int]] = defaultdict(dict)
        for key, version in versions.items():
            by_slot[cluster.keyslot(key.value)][key] = version
        # All names are told, so that a slot that is half moved refuses it instead of missing what is elsewhere.
        calls: list[tuple[str | int, ...]] = [
            (3 * len(keys), *told, *invalidation(keys, spare=spare))
            for keys in by_slot.values()
            for told in [(*names(keys, "value"), *names(keys, "lease"), *names(keys, "fence"))]
        ]
        for command, text in (("EVALSHA", script.sha), ("EVAL", script.text)):
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


def names(keys: Mapping[Key, int], which: str) -> list[str]:
    """Of each key."""
    return [getattr(key, which) for key in keys]
