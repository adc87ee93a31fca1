"""Which server a cache is kept on, by its URL."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Final
from urllib.parse import urlsplit

from services.common.cache import FAILURES, Cache, breaker
from services.common.cache_cluster import ClusterStore
from services.common.cache_events import Connect, all_primaries, one_server
from services.common.cache_l1 import L1Cache
from services.common.cache_memcached import MemcachedStore
from services.common.cache_store import Store
from services.common.cache_valkey import ValkeyStore
from services.contracts.cache import Kind

STORES: Final[dict[str, Callable[[str], Store]]] = {
    "redis": ValkeyStore,
    "rediss": ValkeyStore,
    "redis-cluster": ClusterStore,
    "rediss-cluster": ClusterStore,
    "memcached": MemcachedStore,
}

# Who tells of its keys as they are set, so that processes may have an L1 before it.
EVENTS: Final[dict[str, Callable[[str, Sequence[Kind]], Connect]]] = {
    "redis": one_server,
    "rediss": one_server,
    "redis-cluster": all_primaries,
    "rediss-cluster": all_primaries,
}


def store(url: str) -> Store:
    """The server at `url`; nothing is connected yet. ValueError when there is none of that scheme."""
    scheme = urlsplit(url).scheme
    if scheme not in STORES:
        raise ValueError(f"a cache URL begins with {', '.join(f'{known}://' for known in STORES)}; not {scheme!r}")
    return STORES[scheme](url)


def cache(url: str, *, failures: int = FAILURES) -> Cache | None:
    """The cache at `url`, of this process; None for an empty one. ValueError as `store`.

    After so many failures in a row it is left alone for a while.
    """
    if not url:
        return None
    kept, left_alone = store(url), breaker(failures=failures)
    events = EVENTS.get(urlsplit(url).scheme)
    return L1Cache(kept, left_alone, partial(events, url)) if events else Cache(kept, left_alone)
