"""What was measured, by the names that formulas have for it."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from services.contracts.envelope import ORDERS_TOPIC, PAYMENTS_TOPIC

if TYPE_CHECKING:
    from loadtests.bench.capacity_model import Parameters

LINES: Final = "orders.order_items"  # the one table that has a row for each line
# What is kept for ever, and what is deleted after 30 days; all else is emptied as it is filled.
KEPT: Final = ("orders.orders", LINES, "orders.order_events", "payments.payments")
KEPT_30_DAYS: Final = ("orders.idempotency_keys", "orders.inbox", "payments.inbox", "payments.steps")
OF_ORDERS: Final = ("place", "place, paid", "ship", "ship, paid", "deliver", "cancel")
OF_READS: Final = ("get, cached", "get, not cached", "list")


def shares(parameters: "Parameters") -> dict[str, float]:
    """How often each operation happens to an order."""
    paid, kept = parameters.paid, 1 - parameters.cancelled
    return {
        "place": 1 - paid,
        "place, paid": paid,
        "ship": kept * (1 - paid),
        "ship, paid": kept * paid,
        "deliver": kept,
        "cancel": parameters.cancelled,
    }


def read_shares(parameters: "Parameters") -> dict[str, float]:
    """How often a read is each operation."""
    ones = 1 - parameters.lists
    return {
        "list": parameters.lists,
        "get, cached": ones * parameters.hits,
        "get, not cached": ones * (1 - parameters.hits),
    }


def names(measured: Mapping[str, Any], parameters: "Parameters") -> dict[str, Any]:
    """Figures and functions of them: `order_…` of an order with all that is done to it, `read_…` of a read."""
    operations = measured["operations"]

    def summed(mixed: Mapping[str, float], beginning: str) -> float:
        return sum(
            share * float(used)
            for name, share in mixed.items()
            for key, used in operations[name].items()
            if key == beginning or (beginning.endswith(" ") and key.startswith(beginning))
        )

    def of(mixed: Mapping[str, float]) -> Callable[[str], float]:
        return lambda key: summed(mixed, key)

    order, read = of(shares(parameters)), of(read_shares(parameters))
    topics = (ORDERS_TOPIC, PAYMENTS_TOPIC)
    return {
        "ceil": math.ceil,
        "max": max,
        "order": lambda process: order(f"cpu {process}") * 1e6,
        "read": lambda process: read(f"cpu {process}") * 1e6,
        "commands": sum(shares(parameters).values()),
        "order_events": sum(order(f"messages {topic}") for topic in topics),
        "order_topics": sum(order(f"topic {topic}") for topic in topics),
        "order_commits": order("commits"),
        "order_wal": order("wal_bytes"),
        "order_full_pages": order("first_full_page_bytes"),
        "order_network": order("network_bytes"),
        "read_network": read("network_bytes"),
        "order_logs": order("log ") - order("log payments-sandbox"),  # which is for development
        "read_logs": read("log "),
        "table_bytes": bytes_of(measured, parameters, KEPT, "heap", "toast"),
        "index_bytes": bytes_of(measured, parameters, KEPT, "indexes"),
        "passing_bytes": bytes_of(measured, parameters, KEPT_30_DAYS, "heap", "toast", "indexes"),
        "connection_bytes": measured["backends"]["orders-api"]["private"],
        "api_bytes": measured["memory"]["orders-api"]["pss"],
        "gateway_bytes": measured["memory"]["realtime-gateway"]["pss"],
        "socket_bytes": measured["sockets"]["bytes"],
        "socket_us": measured["sockets"]["us"],
        "summary_us": measured["summaries"]["us"],
        "cached_bytes": measured["valkey"]["orders:order:v"]["bytes"],
        "fence_bytes": measured["valkey"]["orders:order:f"]["bytes"],
    }


def bytes_of(measured: Mapping[str, Any], parameters: "Parameters", tables: Sequence[str], *kinds: str) -> float:
    """Of one order in `tables`, those of the lines as many as it has."""
    paid = parameters.paid

    def of(name: str) -> float:
        each = (1 - paid, measured["tables"]), (paid, measured["tables_paid"])
        grown = sum(share * float(sizes.get(name, {}).get(kind, 0.0)) for share, sizes in each for kind in kinds)
        return grown * (parameters.lines / measured["lines"] if name == LINES else 1.0)

    return sum(of(name) for name in tables)
