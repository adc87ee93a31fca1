"""What the edge does with each route: a table in which every route has to stand (docs/edge.md)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Stored:
    """Kept and shown to anybody, as long as the origin says exactly `cache_control`; passed on when it says else."""

    name: str
    cache_control: str


@dataclass(frozen=True, slots=True)
class Passed:
    """Passed on, never kept."""


@dataclass(frozen=True, slots=True)
class Socket:
    """A WebSocket."""


@dataclass(frozen=True, slots=True)
class Inside:
    """Not to be reached from outside: for whoever runs the backend."""


Policy = Stored | Passed | Socket | Inside

# A minute, and then for five more while a newer answer is fetched: 360 s.
CATALOGUE: Final = Stored("catalogue", "public, max-age=60, stale-while-revalidate=300")
# The name changes with the content (services/realtime/page.py).
ASSETS: Final = Stored("assets", "public, max-age=31536000, immutable")
PASSED: Final = Passed()
INSIDE: Final = Inside()

_HEALTH: Final[Mapping[str, Policy]] = {"GET /healthz": INSIDE, "GET /readyz": INSIDE}

# By service, then as the API's document has them. A line here may come before its route: it has no effect until then.
POLICIES: Final[Mapping[str, Mapping[str, Policy]]] = {
    "orders": {
        "POST /v1/orders": PASSED,
        "GET /v1/orders": PASSED,
        "GET /v1/orders/{order_id}": PASSED,
        "GET /v1/orders/{order_id}/events": PASSED,
        "POST /v1/orders/{order_id}/cancel": PASSED,
        "POST /v1/orders/{order_id}/ship": PASSED,
        "POST /v1/orders/{order_id}/deliver": PASSED,
        "POST /v1/orders/{order_id}/return": PASSED,
        "GET /v1/inventory/{product_id}": PASSED,
        "POST /v1/inventory/{product_id}/adjustments": PASSED,
        "GET /v1/order-summaries": PASSED,
        "GET /v1/reports/sales": PASSED,
        **_HEALTH,
    },
    "catalog": {
        "GET /v1/products": CATALOGUE,
        "GET /v1/products/{product_id}": CATALOGUE,
        "PUT /v1/products/{product_id}": PASSED,
        # Its answer begins while its body is still coming; nginx then sends no more of a body that had to wait.
        "POST /v1/products:bulk": INSIDE,
        "GET /v1/search": CATALOGUE,
        **_HEALTH,
    },
    "customers": {
        "GET /v1/me": PASSED,
        "PATCH /v1/me": PASSED,
        "DELETE /v1/me": PASSED,
        "GET /v1/me/export": PASSED,
        "POST /v1/me/addresses": PASSED,
        "GET /v1/me/addresses": PASSED,
        "GET /v1/me/addresses/{address_id}": PASSED,
        "PUT /v1/me/addresses/{address_id}": PASSED,
        "DELETE /v1/me/addresses/{address_id}": PASSED,
        **_HEALTH,
    },
    "realtime": {
        "GET /": PASSED,
        "GET /assets/{name}": ASSETS,
        "GET /v1/status": PASSED,
        "GET /v1/stream": Socket(),
        **_HEALTH,
    },
}
