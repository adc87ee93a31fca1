"""Order summaries: a materialised view of open and young orders, who refreshes it, and how it is read.

Its content and `as_of` are committed together, so that whoever reads both in one statement sees what belongs together.
"""

import time
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

import structlog
from prometheus_client import Gauge, Histogram

from services.common import clock
from services.common.db import Database, Row
from services.common.db_errors import LockTimeoutError, TransientError
from services.common.errors import DomainError, unavailable
from services.orders.repository import statement

# The server ends a transaction after 30 s (common/db), so it has ended when its lease runs out: whoever held it, alive,
# frozen or dead, no two refreshes ever overlap.
LEASE: Final = timedelta(seconds=35)
TIMES: Final = 10  # as long as it took, from the begin of a refresh to that of the next: it has a tenth of the time
PAUSE_SECONDS_MIN: Final = 1.0  # between two looks at whether somebody has to
REFRESH_TIMEOUT_SECONDS: Final = 20.0  # a refresh is to take 3 s
WALKED_MAX: Final = 5_000  # rows looked at for one page: beyond that the page is short and has a cursor
LATE_SECONDS: Final = 90.0  # that somebody should have refreshed them, and has not: readiness warns

log = structlog.get_logger()
refresh_seconds = Histogram(
    "order_summaries_refresh_seconds",
    "Time to refresh the order summaries",
    buckets=(0.1, 0.3, 0.5, 1, 2, 3, 5, 10, 20),
)
summaries_rows = Gauge("order_summaries_rows", "Orders that the summaries show")
summaries_age = Gauge("order_summaries_age_seconds", "How old the content of the order summaries is")
summaries_spacing = Gauge(
    "order_summaries_interval_seconds",
    "Time between refreshes of the order summaries: longer than the setting when a refresh takes over a tenth of that",
)

# One row, by the database's clock.
CLAIM = statement(
    "claim_summaries",
    """
WITH claimed AS (
    UPDATE orders.summary_refresh SET holder = :holder, lease_until = now() + :lease
    WHERE (lease_until IS NULL OR lease_until <= now()) AND (due_at IS NULL OR due_at <= now())
    RETURNING TRUE AS mine
)
SELECT r.as_of, extract(epoch FROM r.due_at - r.as_of)::float8 AS spacing, (SELECT mine FROM claimed) AS mine,
       extract(epoch FROM greatest(r.lease_until, r.due_at) - now())::float8 AS due_in
FROM orders.summary_refresh r
""",
)
# now() is the beginning of the transaction, a moment before its snapshot. No row: the lease has gone to somebody else.
BEGIN_REFRESH = statement(
    "begin_summaries",
    """
WITH patience AS MATERIALIZED (
    SELECT set_config('statement_timeout', :timeout, TRUE), set_config('work_mem', '64MB', TRUE),
           set_config('client_connection_check_interval', '1s', TRUE)
)
UPDATE orders.summary_refresh SET as_of = now(), since = now() - :window, holder = NULL, lease_until = NULL
FROM patience
WHERE holder = :holder AND lease_until > now()
RETURNING as_of
""",
)
REFRESH = statement("refresh_summaries", "REFRESH MATERIALIZED VIEW CONCURRENTLY orders.order_summaries")
COUNT = statement("count_summaries", "SELECT count(*) AS rows FROM orders.order_summaries")
END_REFRESH = statement(
    "end_summaries",
    """
UPDATE orders.summary_refresh SET due_at = as_of + greatest(:interval, :times * (clock_timestamp() - as_of))
RETURNING as_of, extract(epoch FROM due_at - as_of)::float8 AS spacing,
          extract(epoch FROM due_at - clock_timestamp())::float8 AS due_in
""",
)
# After a failure, of which `due_at` says nothing. The lease began when it was taken, :lease before its end.
LENGTHEN_LEASE = statement(
    "lengthen_summaries_lease",
    """
UPDATE orders.summary_refresh r
SET lease_until = greatest(r.lease_until, taken.at + :times * (clock_timestamp() - taken.at))
FROM (SELECT lease_until - :lease AS at FROM orders.summary_refresh) taken
WHERE r.holder = :holder AND r.lease_until > clock_timestamp()
""",
)

# Index: order_id, or (status, order_id), read in order until the page or `walked` is full. One row of NULLs when the
# page is empty. `last_walked` is where to go on when the page is short.
_LIST = """
WITH walked AS MATERIALIZED (
    SELECT * FROM orders.order_summaries
    WHERE order_id >= :from_id AND order_id < :before_id {status}
    ORDER BY {order} order_id DESC LIMIT :walked
), page AS (
    SELECT * FROM walked
    WHERE (CAST(:payment_status AS text) IS NULL OR payment_status = :payment_status)
      AND (CAST(:currency AS text) IS NULL OR currency = :currency)
    ORDER BY order_id DESC LIMIT :limit
)
SELECT r.as_of, p.*, (SELECT count(*) FROM walked) AS walked,
       (SELECT order_id FROM walked ORDER BY order_id LIMIT 1) AS last_walked
FROM orders.summary_refresh r LEFT JOIN page p ON TRUE
ORDER BY p.order_id DESC
"""
LIST_SUMMARIES = statement("list_summaries", _LIST.format(status="", order=""))
# A range of one status: see LIST_ORDERS_BY_STATUS.
LIST_SUMMARIES_BY_STATUS = statement(
    "list_summaries_by_status",
    _LIST.format(status="AND status >= :status AND status <= :status", order="status DESC,"),
)
# The previous release sets no `due_at`.
GET_AS_OF = statement(
    "get_summaries_as_of",
    """
SELECT as_of, due_at, extract(epoch FROM now() - greatest(as_of, due_at))::float8 AS late
FROM orders.summary_refresh
""",
)


@dataclass(frozen=True, slots=True)
class Filters:
    """Which summaries are wanted: made in [from_at, to_at), and of these values where one is given."""

    status: str | None
    payment_status: str | None
    currency: str | None
    from_at: datetime
    to_at: datetime


@dataclass(frozen=True, slots=True)
class Page:
    """Some summaries, newest first, and where to go on; a short page may still have a `next_id`."""

    as_of: datetime
    rows: list[Row]
    next_id: UUID | None


async def refresh_when_due(database: Database, holder: str, *, interval: timedelta, window: timedelta) -> float:
    """If the summaries are due they are refreshed, unless somebody does it already; gives the seconds to the next look.

    They are due `interval` after their last refresh began, or TIMES as long as that took, whichever is later: the row
    says when, for all processes. Of these one refreshes at a time; `holder` is this one's name, anew for each start.
    They show the orders of the last `window` and the open ones of before, as they were committed at `as_of`: a
    transaction at REPEATABLE READ. Nobody who reads waits for it. When it fails, all stays as it was until somebody
    tries again: after LEASE, or TIMES as long as the failure took.
    TransientError, LockTimeoutError; DomainError when it took longer than REFRESH_TIMEOUT_SECONDS.
    """
    (row,) = await database.rows(CLAIM, holder=holder, lease=LEASE)
    if row["mine"]:
        try:
            refreshed = await _refresh(database, holder, interval, window)
        except (TransientError, LockTimeoutError, DomainError):
            await database.rows(LENGTHEN_LEASE, holder=holder, lease=LEASE, times=TIMES)
            raise
        if refreshed is None:
            return PAUSE_SECONDS_MIN
        _tell_spacing(row["spacing"] or 0.0, refreshed["spacing"], interval.total_seconds())
        row = refreshed
    as_of: datetime | None = row["as_of"]
    if as_of is not None:
        seconds = as_of.timestamp()
        summaries_age.set_function(lambda: time.time() - seconds)
        summaries_spacing.set(row["spacing"])
    return max(row["due_in"] or 0.0, PAUSE_SECONDS_MIN)


async def _refresh(database: Database, holder: str, interval: timedelta, window: timedelta) -> Row | None:
    """As of when they are now, and when they are due again; None when the lease has run out before it began."""
    started = time.perf_counter()
    async with database.transaction("repeatable_read") as connection:
        begun = await BEGIN_REFRESH.rows(
            connection, holder=holder, window=window, timeout=f"{REFRESH_TIMEOUT_SECONDS:g}s"
        )
        if not begun:
            log.warning("summaries.lease_lost")
            return None
        await REFRESH.rows(connection)
        (counted,) = await COUNT.rows(connection)
        (ended,) = await END_REFRESH.rows(connection, interval=interval, times=TIMES)
    summaries_rows.set(counted["rows"])
    seconds = time.perf_counter() - started
    refresh_seconds.observe(seconds)
    log.info(
        "summaries.refreshed", rows=counted["rows"], as_of=clock.to_text(ended["as_of"]), seconds=round(seconds, 3)
    )
    return ended


def _tell_spacing(before: float, now: float, wanted: float) -> None:
    """Seconds from refresh to refresh: the log has when they become more than wanted, and when no more."""
    if now > wanted >= before:
        log.warning("summaries.spaced_out", seconds=round(now, 1), wanted=wanted, hint="a smaller summaries_window")
    elif before > wanted >= now:
        log.info("summaries.in_time", seconds=now)


async def list_summaries(database: Database, filters: Filters, *, before: UUID | None, limit: int) -> Page:
    """Summaries that `filters` let through, newest first, from `before` on. One round trip, WALKED_MAX rows of index.

    503 `unavailable` before the first refresh.
    """
    narrow = filters.payment_status is not None or filters.currency is not None
    walked_max = WALKED_MAX if narrow else limit
    last = _first_id(filters.to_at)
    rows = await database.read(
        LIST_SUMMARIES if filters.status is None else LIST_SUMMARIES_BY_STATUS,
        status=filters.status,
        payment_status=filters.payment_status,
        currency=filters.currency,
        from_id=_first_id(filters.from_at),
        before_id=last if before is None else min(before, last),
        walked=walked_max,
        limit=limit,
    )
    as_of = rows[0]["as_of"]
    if as_of is None:
        raise unavailable("The order summaries have not been made yet.", retry_after_seconds=10)
    found = [row for row in rows if row["order_id"] is not None]
    if len(found) == limit:
        return Page(as_of, found, found[-1]["order_id"])
    return Page(as_of, found, rows[0]["last_walked"] if rows[0]["walked"] == walked_max else None)


async def get_warnings(database: Database) -> list[str]:
    """What readiness says of the summaries. TransientError."""
    (found,) = await database.rows(GET_AS_OF)
    if found["as_of"] is None:
        return ["the order summaries have not been made yet"]
    if found["late"] > LATE_SECONDS:
        due_at = clock.to_text(found["due_at"] or found["as_of"])
        as_of = clock.to_text(found["as_of"])
        return [f"the order summaries are of {as_of} and due since {due_at}: orders-maintenance does not refresh them"]
    return []


def _first_id(at: datetime) -> UUID:
    """No id of that instant or later is smaller, and all earlier ones are."""
    ms = clock.to_ms(at) + (at.microsecond % 1000 > 0)  # ids are of whole milliseconds
    return UUID(int=max(0, ms) << 80)
