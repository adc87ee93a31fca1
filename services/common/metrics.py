"""Prometheus metrics of a process, served on a port of their own, and the clock of one request."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, Summary, start_http_server

# From 0.5 ms to 10 s, dense around the objectives: 20 ms for a statement, 200 ms for a response.
BUCKETS_SECONDS = (
    0.0005,
    0.001,
    0.002,
    0.003,
    0.005,
    0.0075,
    0.01,
    0.015,
    0.02,
    0.03,
    0.05,
    0.1,
    0.2,
    0.5,
    1,
    2,
    5,
    10,
)

http_request_seconds = Histogram(
    "http_request_seconds",
    "Time to answer, by route and status",
    ["method", "route", "status"],
    buckets=BUCKETS_SECONDS,
)
db_query_seconds = Histogram(
    "db_query_seconds", "Time in the database, by statement", ["statement"], buckets=BUCKETS_SECONDS
)
db_errors_total = Counter(
    "db_errors_total", "Statements that failed, by statement and SQLSTATE", ["statement", "sqlstate"]
)
db_retries_total = Counter("db_retries_total", "Transactions run again, by reason", ["reason"])
db_pool_wait_seconds = Summary("db_pool_wait_seconds", "Time waiting for a connection, of those who found none idle")
db_pool_connections = Gauge("db_pool_connections", "Connections of the pool, by state", ["database", "state"])


NOTHING_ASKED = "db;dur=0.000, pool;dur=0.000"  # of the database


class Timings:
    """Seconds one request has spent in statements (`db`) and waiting for a connection (`pool`)."""

    __slots__ = ("db", "pool")

    def __init__(self) -> None:
        self.db = 0.0
        self.pool = 0.0

    def server_timing(self) -> str:
        """The value of `Server-Timing` (W3C Server Timing): milliseconds."""
        if not (self.db or self.pool):
            return NOTHING_ASKED
        return f"db;dur={self.db * 1000:.3f}, pool;dur={self.pool * 1000:.3f}"


request_timings: ContextVar[Timings | None] = ContextVar("request_timings", default=None)


@contextmanager
def measured() -> Iterator[Timings]:
    """The timings of what runs inside."""
    timings = Timings()
    token = request_timings.set(timings)
    try:
        yield timings
    finally:
        request_timings.reset(token)


def serve(process: str, host: str, port: int) -> None:
    """Answer /metrics on `port` from a thread of its own; 0 means nowhere."""
    info = Gauge("process_info", "The process these metrics are of", ["process"])
    info.labels(process).set(time.time())
    if port:
        start_http_server(port, addr=host, registry=REGISTRY)
