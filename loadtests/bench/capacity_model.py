"""From what things cost to what so many orders need: formulas over parameters and measured figures.

A formula is its own text, an expression over the names of parameters, of formulas before it, and of measured figures:
what a reader is shown is what is reckoned.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from math import inf
from typing import Any, Final

from loadtests.bench.capacity_figures import names


def _parameter(default: float, told: str) -> Any:
    return field(default=default, metadata={"told": told})


@dataclass(frozen=True, slots=True)
class Parameters:
    """What a shop is like, and how it wants to be run; a reader's own are options of the same names."""

    orders_per_year: float = _parameter(10e6, "orders a year")
    peak: float = _parameter(20, "how many times the average the busiest seconds are")
    lines: float = _parameter(2, "lines of an order")
    reads: float = _parameter(20, "requests that only read, for each order")
    lists: float = _parameter(0.2, "share of the reads that ask for a list; the others ask for one order")
    hits: float = _parameter(0.8, "share of reads of one order that the cache answers")
    paid: float = _parameter(0.8, "share of orders that are paid through the provider; the others are on account")
    cancelled: float = _parameter(0.05, "share of orders that are cancelled; the others are shipped and delivered")
    open_days: float = _parameter(4, "days until an order is delivered or cancelled: so long summaries show it")
    refresh_seconds: float = _parameter(20, "a refresh of the summaries may take (it is to take 3, and ends after 20)")
    followed: float = _parameter(0.5, "share of orders that are followed over a WebSocket")
    follow_minutes: float = _parameter(10, "for so long")
    utilisation: float = _parameter(0.55, "how busy a core is meant to be: queues grow steeply above")
    pool: float = _parameter(16, "connections of one orders-api (`ORDERS_POOL_SIZE`)")
    spare: float = _parameter(2, "processes of a kind at the least, so that one may die")
    others: float = _parameter(60, "connections of all other processes, and of people")
    database_copies: float = _parameter(3, "primary, synchronous standby, replica for reports")
    kafka_days: float = _parameter(7, "that Kafka keeps events")
    broker_cores: float = _parameter(8, "cores of a broker")
    kafka_copies: float = _parameter(3, "replicas of a topic")
    cache_seconds: float = _parameter(30, "that an order is cached; its fence lives twice as long")
    server_cores: float = _parameter(64, "cores of the largest PostgreSQL server that is to be had")
    server_connections: float = _parameter(500, "connections it is given")
    server_syncs: float = _parameter(10_000, "syncs a second of its disk")
    server_wal_mb: float = _parameter(100, "MB of WAL a second that its standby replays")
    server_disk_gb: float = _parameter(16_000, "GB of its disk")
    room: float = _parameter(1.5, "disk for each byte: what vacuum, a growing index and the next months want")

    def __post_init__(self) -> None:
        """ValueError when there could be no such shop."""
        for name in ("orders_per_year", "peak", "utilisation"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} has to be more than 0")
        for name in ("lists", "hits", "paid", "cancelled", "followed", "utilisation"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share, from 0 to 1")


@dataclass(frozen=True, slots=True)
class Formula:
    """`name` in other formulas, and in the document; `digits` after the point when it is told."""

    name: str
    unit: str
    text: str
    told: str
    digits: int = 0


# What depends on the moment: reckoned for the average (peak = 1) and for the peak.
FLOWS: Final = (
    Formula("orders", "1/s", "orders_per_year / 31_536_000 * peak", "orders placed", 1),
    Formula("requests", "1/s", "orders * (commands + reads)", "requests to orders-api", 0),
    Formula("events", "1/s", "orders * order_events", "events of orders and payments", 1),
    Formula(
        "api_cores",
        "cores",
        "orders * (order('orders-api') + reads * read('orders-api')) / 1e6 / utilisation",
        "orders-api, all of it",
        1,
    ),
    Formula("api_processes", "", "max(spare, ceil(api_cores))", "orders-api; each uses one core"),
    Formula("api_gb", "GB", "api_processes * api_bytes / 1e9", "their memory", 1),
    Formula(
        "postgres_cores",
        "cores",
        "orders * (order('postgres') + reads * read('postgres')) / 1e6 / utilisation",
        "PostgreSQL's primary",
        1,
    ),
    Formula(
        "relay_processes",
        "",
        "max(spare, ceil(orders * order('outbox-relay') / 1e6 / utilisation))",
        "outbox-relay; at most 16 share the slices",
    ),
    Formula(
        "projector_processes",
        "",
        "max(spare, ceil(orders * order('orders-projector') / 1e6 / utilisation))",
        "orders-projector; at most 12 share the partitions",
    ),
    Formula(
        "payments_processes",
        "",
        "max(spare, ceil(orders * order('payments-worker') / 1e6 / utilisation))",
        "payments-worker; at most 12 share the partitions",
    ),
    Formula("kafka_cores", "cores", "orders * order('kafka') / 1e6 / utilisation", "all brokers, one copy", 1),
    Formula(
        "brokers",
        "",
        "max(kafka_copies, ceil(kafka_cores * kafka_copies / broker_cores))",
        "brokers; a copy is reckoned as dear as the first",
    ),
    Formula("partition_events", "1/s", "events / 12", "events of each of the 12 partitions", 1),
    Formula(
        "valkey_cores",
        "cores",
        "orders * (order('valkey') + reads * read('valkey')) / 1e6 / utilisation",
        "Valkey, one thread a node",
        2,
    ),
    Formula("connections", "", "api_processes * pool + others", "to PostgreSQL"),
    Formula("connections_gb", "GB", "connections * connection_bytes / 1e9", "their memory", 1),
    Formula("commits", "1/s", "orders * order_commits", "that write: at most so many syncs, fewer by group commit"),
    Formula("wal_mb", "MB/s", "orders * (order_wal + order_full_pages) / 1e6", "WAL, also to each standby", 1),
    Formula("sockets", "", "orders * followed * follow_minutes * 60", "WebSockets at a time"),
    Formula(
        "gateway_stream",
        "cores",
        "orders * order('realtime-gateway') / 1e6 / utilisation",
        "of each gateway, for the stream itself: every one reads all events",
        2,
    ),
    Formula(
        "gateways",
        "",
        "max(spare, ceil(sockets / 10_000), ceil(orders * followed * order_events * socket_us / 1e6 / utilisation))",
        "realtime-gateway; 10,000 sockets each, and what is sent to them",
    ),
    Formula(
        "gateways_gb",
        "GB",
        "(gateways * gateway_bytes + sockets * socket_bytes) / 1e9",
        "their memory",
        1,
    ),
    Formula(
        "valkey_mb",
        "MB",
        "orders * (1 + commands) * cache_seconds * (cached_bytes + 2 * fence_bytes) / 1e6",
        "values of 30 s and fences of 60 s, if each command's order is read again",
        1,
    ),
    Formula(
        "network_mb",
        "MB/s",
        "orders * (order_network + reads * read_network) / 1e6",
        "of orders-api to clients, headers and bodies both ways, no TLS",
        1,
    ),
)
# What is kept: of the year, whatever its peaks.
STOCKS: Final = (
    Formula("tables_gb", "GB a year", "orders_per_year * table_bytes / 1e9", "rows, one copy"),
    Formula("indexes_gb", "GB a year", "orders_per_year * index_bytes / 1e9", "indexes, one copy"),
    Formula(
        "passing_gb",
        "GB",
        "orders_per_year / 365 * 30 * passing_bytes / 1e9",
        "what is kept for 30 days: keys, inboxes, steps of payments; one copy",
        1,
    ),
    Formula("disk_one_gb", "GB a year", "(tables_gb + indexes_gb) * room + passing_gb", "disk, one copy"),
    Formula("disk_gb", "GB a year", "disk_one_gb * database_copies", "disk, all copies"),
    Formula("summary_rows", "", "orders_per_year / 365 * open_days", "orders that the summaries show"),
    Formula("summary_seconds", "s", "summary_rows * summary_us / 1e6", "a refresh of them, on one core", 1),
    Formula(
        "month_gb",
        "GB",
        "(tables_gb + indexes_gb) / 12",
        "a month's partitions: what shared_buffers and the page cache should hold twice",
        1,
    ),
    Formula(
        "wal_day_gb",
        "GB a day",
        "orders_per_year / 365 * (order_wal + order_full_pages) / 1e9",
        "WAL archive",
        1,
    ),
    Formula("kafka_day_gb", "GB a day", "orders_per_year / 365 * order_topics / 1e9", "events, one copy", 2),
    Formula("kafka_gb", "GB", "kafka_day_gb * kafka_days * kafka_copies * room", "disk of all brokers", 1),
    Formula(
        "logs_day_gb",
        "GB a day",
        "orders_per_year / 365 * (order_logs + reads * read_logs) / 1e9",
        "logs of all processes, which do not tell of single requests",
        3,
    ),
)


# Of one thing that cannot be two without a change: the need that meets it, and what there is of it.
@dataclass(frozen=True, slots=True)
class Limit:
    """`need` is a formula's name; `there` an expression, as formulas are."""

    need: str
    there: str
    told: str


LIMITS: Final = (
    Limit("summary_seconds", "refresh_seconds", "refresh of the order summaries, seconds"),
    Limit("postgres_cores", "server_cores", "cores of the primary"),
    Limit("connections", "server_connections", "connections of the primary, without a pooler"),
    Limit("commits", "server_syncs", "syncs of the WAL, if no two commits shared one"),
    Limit("wal_mb", "server_wal_mb", "WAL that one standby replays, in one process, MB/s"),
    Limit("disk_one_gb", "server_disk_gb", "disk of the primary for a year, GB"),
    Limit("gateway_stream", "1", "one core of each gateway, which reads every event"),
    Limit("projector_processes", "12", "partitions of a topic: consumers of a group"),
    Limit("relay_processes", "16", "slices of the outbox"),
    Limit("valkey_cores", "1", "the one thread of a Valkey node"),
)


def reckoned(measured: Mapping[str, Any], parameters: Parameters) -> dict[str, float]:
    """Every formula's value, by name, at the peak that `parameters` say."""
    known: dict[str, Any] = {**asdict(parameters), **names(measured, parameters)}
    values: dict[str, float] = {}
    for formula in (*FLOWS, *STOCKS):
        known[formula.name] = values[formula.name] = _value(formula.text, known)
    return values


def reached(measured: Mapping[str, Any], parameters: Parameters) -> dict[str, float]:
    """Orders a year at which each limit is met at the peak, by the limit's need; needs grow with orders in proportion.

    What rounding and a least number of processes add is left out. Infinity where nothing was measured of a need: in a
    quick run it may be less than a tick of the clock.
    """
    many = replace(parameters, orders_per_year=1e12, spare=0, others=0)
    needs = reckoned(measured, many)
    there = {limit.need: _value(limit.there, asdict(many)) for limit in LIMITS}
    return {need: 1e12 * amount / needs[need] if needs[need] else inf for need, amount in there.items()}


def _value(text: str, known: Mapping[str, Any]) -> float:
    return float(eval(text, {"__builtins__": {}}, dict(known)))  # noqa: S307 # the formulas of this module, nobody else's
