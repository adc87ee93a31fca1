"""What was measured and what follows from it, as Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any, Final

from loadtests.bench.capacity_figures import KEPT, KEPT_30_DAYS, OF_ORDERS, OF_READS, bytes_of, names
from loadtests.bench.capacity_model import FLOWS, LIMITS, STOCKS, Formula, Parameters, reached, reckoned

YEARS: Final = (10e6, 100e6, 1e9)  # orders of the document's tables
GOAL_MB: Final = 120  # memory of a process
# What operations use of whom: a heading, and a counter with its unit.
_COSTS: Final = {
    "orders-api": "cpu orders-api",
    "PostgreSQL": "cpu postgres",
    "of it for orders-api": "cpu postgres of orders-api",
    "relay": "cpu outbox-relay",
    "projector": "cpu orders-projector",
    "payments": "cpu payments-worker",
    "gateway": "cpu realtime-gateway",
    "Kafka": "cpu kafka",
    "Valkey": "cpu valkey",
}
_AMOUNTS: Final = {
    "round trips": ("api_statements", 0),
    "commits": ("commits", 1),
    "syncs": ("wal_syncs", 1),
    "WAL, bytes": ("wal_bytes", 0),
    "full pages, bytes": ("full_page_bytes", 0),
    "after a checkpoint": ("first_full_page_bytes", 0),
    "`orders.events.v1`, bytes": ("topic orders.events.v1", 0),
    "`payments.events.v1`, bytes": ("topic payments.events.v1", 0),
    "network, bytes": ("network_bytes", 0),
}


def document(measured: Mapping[str, Any]) -> dict[str, str]:
    """The generated parts of docs/capacity.md, by their marks."""
    shops = [Parameters(orders_per_year=orders) for orders in YEARS]
    return {
        "capacity: costs": _lines(costs(measured)),
        "capacity: sizes": _lines(sizes(measured)),
        "capacity: memory": _lines(memory(measured)),
        "capacity: parameters": _lines(parameters()),
        "capacity: figures": _lines(figures(measured)),
        "capacity: formulas": _lines(formulas()),
        "capacity: needs": _lines(needs(measured, shops)),
        "capacity: limits": _lines(limits(measured, shops[0])),
    }


def costs(measured: Mapping[str, Any]) -> Iterator[str]:
    """CPU of each operation, then what else it uses."""
    machine, operations = measured["machine"], measured["operations"]
    yield (
        f"{machine['commit']}, {machine['cores']} cores of {machine['cpu']}, load average"
        f" {machine['load_average'][0]:.1f}, PostgreSQL {machine['postgresql']['server_version']},"
        f" {machine['fsyncs_per_second'] or 0:,.0f} syncs a second. CPU in microseconds:"
    )
    yield ""
    yield from _head("one of", *_COSTS)
    for name in (*OF_ORDERS, *OF_READS):
        used = operations[name]
        yield _row(name, *(f"{used.get(key, 0) * 1e6:.0f}" for key in _COSTS.values()))
    yield ""
    yield from _head("one of", *_AMOUNTS)
    for name in (*OF_ORDERS, *OF_READS):
        used = operations[name]
        yield _row(name, *(f"{used.get(key, 0):,.{digits}f}" for key, digits in _AMOUNTS.values()))


def sizes(measured: Mapping[str, Any]) -> Iterator[str]:
    """Bytes of an order by table, and of entries of the cache."""
    account, paid = Parameters(paid=0, lines=measured["lines"]), Parameters(paid=1, lines=measured["lines"])
    yield from _head("bytes of an order", "on account: rows", "indexes", "paid: rows", "indexes")
    for table in (*KEPT, *KEPT_30_DAYS):
        values = (
            bytes_of(measured, kind, (table,), *parts)
            for kind in (account, paid)
            for parts in (("heap", "toast"), ("indexes",))
        )
        yield _row(f"`{table}`", *(f"{value:,.0f}" for value in values))
    yield ""
    yield from _head("entry of Valkey", "bytes")
    for kind, found in measured["valkey"].items():
        yield _row(f"`{kind}`", f"{found['bytes']:,.0f}")


def memory(measured: Mapping[str, Any]) -> Iterator[str]:
    """Of processes and of connections, in MB."""
    yield from _head("process", "PSS idle", "PSS after load", "RSS after load", f"over {GOAL_MB} MB")
    for name, after in measured["memory"].items():
        over = ", ".join(kind.upper() for kind in ("pss", "rss") if after[kind] > GOAL_MB * 1e6)
        values = (measured["memory_idle"][name]["pss"], after["pss"], after["rss"])
        yield _row(f"`{name}`", *(f"{value / 1e6:.0f}" for value in values), over)
    yield ""
    yield from _head("largest connection of", "its own", "PSS, with what it has touched of shared_buffers")
    for name, found in sorted(measured["backends"].items()):
        yield _row(f"`{name}`", f"{found['private'] / 1e6:.1f}", f"{found['pss'] / 1e6:.1f}")


def parameters() -> Iterator[str]:
    """What a reader may say, and what is taken otherwise."""
    yield from _head("parameter", "default", "is")
    for each in fields(Parameters):
        yield _row(f"`{each.name}`", f"{each.default:,g}", each.metadata["told"])


def figures(measured: Mapping[str, Any]) -> Iterator[str]:
    """The measured names in formulas, for the default shop."""
    found = names(measured, Parameters())
    yield from _head("figure", "value")
    for part in ("orders-api", "postgres", "outbox-relay", "orders-projector", "payments-worker"):
        yield _row(f"`order('{part}')`, us", f"{found['order'](part):,.0f}")
    for part in ("realtime-gateway", "kafka", "valkey"):
        yield _row(f"`order('{part}')`, us", f"{found['order'](part):,.0f}")
    for part in ("orders-api", "postgres", "valkey"):
        yield _row(f"`read('{part}')`, us", f"{found['read'](part):,.0f}")
    for name, value in found.items():
        if not callable(value):
            yield _row(f"`{name}`", f"{value:,.1f}")


def formulas() -> Iterator[str]:
    """One line each."""
    yield from _head("need", "unit", "formula", "is")
    for formula in (*FLOWS, *STOCKS):
        yield _row(f"`{formula.name}`", formula.unit, f"`{formula.text}`", formula.told)


def needs(measured: Mapping[str, Any], shops: Sequence[Parameters]) -> Iterator[str]:
    """Of each shop on average and at its peak, then what its year leaves."""
    average = [reckoned(measured, replace(shop, peak=1)) for shop in shops]
    peak = [reckoned(measured, shop) for shop in shops]
    heads = [f"{_years(shop)}{when}" for shop in shops for when in (", average", f", peak {shop.peak:g}x")]
    yield from _head("need", *heads)
    for formula in FLOWS:
        values = [each[formula.name] for pair in zip(average, peak, strict=True) for each in pair]
        yield _row(_named(formula), *(f"{value:,.{formula.digits}f}" for value in values))
    yield ""
    yield from _head("of a year", *(_years(shop) for shop in shops))
    for formula in STOCKS:
        yield _row(_named(formula), *(f"{each[formula.name]:,.{formula.digits}f}" for each in peak))


def limits(measured: Mapping[str, Any], shop: Parameters) -> Iterator[str]:
    """At how many orders a year each thing is full that cannot be two, the first one first."""
    at = reached(measured, shop)
    yield from _head("full", "there is", "at orders a year")
    for limit in sorted(LIMITS, key=lambda limit: at[limit.need]):
        there = asdict(shop).get(limit.there, limit.there)
        yield _row(limit.told, f"{float(there):,g}", f"{at[limit.need] / 1e6:,.0f} M")


def _named(formula: Formula) -> str:
    return f"{formula.told} (`{formula.name}`{', ' + formula.unit if formula.unit else ''})"


def _years(shop: Parameters) -> str:
    return f"{shop.orders_per_year / 1e6:g} M"


def _head(*cells: str) -> Iterator[str]:
    yield _row(*cells)
    yield "|" + "---|" * len(cells)


def _row(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _lines(lines: Iterator[str]) -> str:
    return "\n".join(lines) + "\n"
