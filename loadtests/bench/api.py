"""Rows of the HTTP API: placing and reading orders, against the same done with less, and against the database alone."""

import json
import secrets
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from loadtests.bench import database
from loadtests.bench.measure import Comparison, Phase, Side, VoidError, Work
from loadtests.bench.stage import CANCELLED_EVERY, OURS, POOLS, PRODUCTS, UNCACHED, Stage, basket
from loadtests.bench.wrk import wrk
from services.common import ids

_PLACE = """
local n = 0
local bodies = {{{bodies}}}
request = function()
  n = n + 1
  return wrk.format("POST", "/v1/orders", {{["Authorization"] = "Bearer {token}", ["Content-Type"] = "application/json",
    ["Idempotency-Key"] = "{prefix}-" .. n}}, bodies[n % #bodies + 1])
end
"""
_GET = """
local paths = {{{paths}}}
local n = 0
request = function()
  n = n % #paths + 1
  return wrk.format("GET", paths[n], {{["Authorization"] = "Bearer {token}"{condition}}})
end
"""
_PLACED = """
SELECT split_part(k.key, '/', 2) AS side, count(*) AS keys, count(o.order_id) AS orders, count(e.order_id) AS events,
       count(u.order_id) AS unpublished, sum(o.item_count) AS lines
FROM orders.idempotency_keys k
LEFT JOIN orders.orders o ON o.order_id = k.resource AND o.created_at = uuid_extract_timestamp(k.resource)
LEFT JOIN orders.order_events e ON e.order_id = o.order_id AND e.created_at = o.created_at AND e.version = 1
LEFT JOIN orders.outbox u ON u.order_id = o.order_id AND u.version = 1
WHERE split_part(k.key, '/', 1) = $1
GROUP BY 1
"""
_NOT_NEW = """, ["If-None-Match"] = '"1"'"""
STATUS: Final = "cancelled"
BASKETS: Final = tuple(basket(number) for number in range(PRODUCTS))
HOT: Final = 0  # the number of a product that everybody wants
LIMITS: Final = ("bare", "idiomatic")


def placing(stage: Stage, process: str, row: str, baskets: Sequence[object] = BASKETS) -> Side:
    """POST /v1/orders. The keys of what is placed begin with the names of row and process."""
    bodies = ", ".join(f"'{json.dumps({'currency': 'USD', 'items': items})}'" for items in baskets)

    async def run(seconds: float) -> Work:
        script = _PLACE.format(prefix=f"{row}/{process}/{secrets.token_hex(4)}", token=stage.token, bodies=bodies)
        return await wrk(stage.url(process), script, seconds, status=201)

    return Side(process, run, stage.cpu(process))


def getting(stage: Stage, process: str, paths: Sequence[str], *, name: str = "", not_new: bool = False) -> Side:
    """GET of each of `paths` in turn; `not_new`: of versions that the client has."""
    script = _GET.format(
        paths=", ".join(f'"{path}"' for path in paths), token=stage.token, condition=_NOT_NEW if not_new else ""
    )

    async def run(seconds: float) -> Work:
        return await wrk(stage.url(process), script, seconds, status=304 if not_new else 200)

    return Side(name or process, run, stage.cpu(process))


def orders_of(stage: Stage, *, fresh: bool = False) -> list[str]:
    """Paths of the buyer's orders; `fresh`: of those that are as they were placed."""
    numbers = (n for n in range(stage.orders) if not fresh or n % CANCELLED_EVERY)
    return [f"/v1/orders/{ids.to_text(stage.order(number).order_id)}" for number in numbers]


async def placed(stage: Stage, row: str, turns: Sequence[Phase]) -> dict[str, Any]:
    """What each side has written, warming up included. VoidError when that is less than it was counted for."""
    connection = await stage.connected()
    rows = {row["side"]: dict(row) for row in await connection.fetch(_PLACED, row)}
    counted: Counter[str] = Counter()
    for turn in turns:
        counted[turn.side] += turn.count
    for side, count in counted.items():
        found = rows[side]
        if not count <= found["keys"] == found["orders"] == found["events"] == found["unpublished"]:
            raise VoidError(f"{side} has placed {count} orders, but written {found}")
    return {"written": [rows[side] for side in counted]}


async def place(stage: Stage) -> list[Comparison]:
    """POST /v1/orders."""
    sides = [*(placing(stage, name, "place") for name in (OURS, UNCACHED, *LIMITS)), database.placing(stage.role_url)]
    return [Comparison("place", "orders", sides, partial(placed, stage, "place"))]


async def pool(stage: Stage) -> list[Comparison]:
    """POST /v1/orders with other numbers of connections."""
    sides = [placing(stage, name, "pool") for name in (OURS, *POOLS)]
    return [Comparison("pool", "orders", sides, partial(placed, stage, "pool"))]


async def hot(stage: Stage) -> list[Comparison]:
    """POST /v1/orders of one unit of one and the same product: all wait for its stock's row."""
    wanted = [basket(HOT)]
    sides = [placing(stage, name, "hot", wanted) for name in (OURS, "bare")]
    sides.append(database.placing(stage.role_url, row="hot", product=HOT))
    return [Comparison("hot", "orders", sides, partial(placed, stage, "hot"))]


async def get(stage: Stage) -> list[Comparison]:
    """GET /v1/orders/{id} without a cache."""
    sides = [*(getting(stage, name, orders_of(stage)) for name in (UNCACHED, *LIMITS)), database.getting(stage)]
    return [Comparison("get", "requests", sides)]


async def list_orders(stage: Stage) -> list[Comparison]:
    """GET /v1/orders: the newest page of the buyer's."""
    sides = [*(getting(stage, name, ["/v1/orders"]) for name in (UNCACHED, *LIMITS)), database.listing(stage)]
    return [Comparison("list", "requests", sides)]


async def list_by_status(stage: Stage) -> list[Comparison]:
    """GET /v1/orders?status=: a page of those that are in a status few are in."""
    path = f"/v1/orders?status={STATUS}"
    sides = [*(getting(stage, name, [path]) for name in (UNCACHED, *LIMITS)), database.listing(stage, STATUS)]
    return [Comparison("status", "requests", sides)]


async def cached(stage: Stage) -> list[Comparison]:
    """GET /v1/orders/{id} from the cache, against constant bytes: bare, and on our own HTTP layer."""
    sides = [
        getting(stage, OURS, orders_of(stage)),
        getting(stage, "bare", _constant(stage), name="bare constant"),
        getting(stage, "constant", orders_of(stage), name="our HTTP layer"),
    ]
    return [Comparison("cached", "requests", sides)]


async def not_modified(stage: Stage) -> list[Comparison]:
    """The same with If-None-Match, which is answered 304; the limits know no conditions and send their bytes."""
    limit = orders_of(stage, fresh=True)
    sides = [
        getting(stage, OURS, limit, not_new=True),
        getting(stage, "bare", _constant(stage), name="bare constant"),
        getting(stage, "constant", limit, name="our HTTP layer"),
    ]
    return [Comparison("304", "requests", sides)]


def _constant(stage: Stage) -> list[str]:
    return [path.replace("/v1/orders/", "/v1/constant/") for path in orders_of(stage)]
