"""The rows of `orders bench`, by name."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from loadtests.bench import api, copied, flatness, key, partitions
from loadtests.bench.measure import Comparison
from loadtests.bench.stage import ISSUER, OURS, POOLS, UNCACHED, Stage


@dataclass(frozen=True, slots=True)
class Row:
    """What it compares, in words; the comparisons, on a stage with these processes."""

    told: str
    comparisons: Callable[[Stage], Awaitable[Sequence[Comparison]]]
    processes: tuple[str, ...] = ()


_UNCACHED: Final = (ISSUER, UNCACHED, *api.LIMITS)
_CACHED: Final = (ISSUER, OURS, "bare", "constant")

ROWS: Final = {
    "place": Row("POST /v1/orders", api.place, (ISSUER, OURS, UNCACHED, *api.LIMITS)),
    "get": Row("GET /v1/orders/{id} without a cache", api.get, _UNCACHED),
    "list": Row("GET /v1/orders, its first page", api.list_orders, _UNCACHED),
    "status": Row("GET /v1/orders?status=, its first page", api.list_by_status, _UNCACHED),
    "cached": Row("GET /v1/orders/{id} from the cache, against constant bytes", api.cached, _CACHED),
    "304": Row("GET /v1/orders/{id} with If-None-Match, against constant bytes", api.not_modified, _CACHED),
    "hot": Row("POST /v1/orders of one and the same product", api.hot, (ISSUER, OURS, "bare")),
    "pool": Row("POST /v1/orders with other numbers of connections", api.pool, (ISSUER, OURS, *POOLS)),
    "partitions": Row("12, 24 and 120 months, each against one table with the same rows", partitions.comparisons),
    "key": Row("a uuid as the key, against char(26), text and bytea", key.comparisons),
    "seed": Row(r"orders seed, against psql's \copy of the same rows", copied.comparisons),
    "flatness": Row("hot statements at each of --sizes", flatness.comparisons),
}

# Benchmarks of their own kind: programs of this folder with options of their own.
PROGRAMS: Final = {
    "relay": "the relay against a bare aiokafka loop, and over a long backlog",
    "consumer": "from commit to consumer",
    "realtime": "from commit to WebSocket",
    "cache": "the cache under load and faults",
    "search": "search over 100,000 products",
    "summary": "the order summaries",
    "edge": "the edge against its origin",
    "capacity": "what an order costs, and what so many orders need",
}
