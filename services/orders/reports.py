"""Reports of sales: sums of the rollups, read on the replica and nowhere else.

How far the replica has come is told by a heartbeat, a row that orders-maintenance writes on the primary: all that was
committed before it is there when it is. `pg_last_xact_replay_timestamp` would stand still while nothing is written.
"""

from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Final

import structlog
from prometheus_client import Counter

from services.common import clock
from services.common.db import Database, Row, Statement
from services.common.db_errors import LockTimeoutError, TransientError
from services.common.errors import DomainError, unavailable
from services.orders.repository import statement
from services.orders.sales import SALES

DAYS_MAX: Final = 400
PRODUCTS_MAX: Final = 1_000  # those that sold most
RETRY_AFTER_SECONDS: Final = 10

log = structlog.get_logger()
reports_refused_total = Counter("reports_refused_total", "Reports that could not be given, by reason", ["reason"])


class By(StrEnum):
    """What a row of a report stands for."""

    DAY = "day"
    MONTH = "month"
    PRODUCT = "product"
    STATUS = "status"


@dataclass(frozen=True, slots=True)
class Report:
    """All that was committed by `as_of`; days, months and statuses in their order, products by what sold most."""

    as_of: datetime
    rows: list[Row]


BEAT = statement("beat", "UPDATE orders.heartbeat SET at = now()")

_SUMS: Final = ", ".join(f"sum({column}) AS {column}" for column in SALES)
_WITHIN: Final = "{day} >= :first_on AND {day} < :end_on AND (CAST(:currency AS text) IS NULL OR currency = :currency)"


def _report(by: By, rows: str) -> Statement:
    """`rows` beside the heartbeat, in one snapshot; one row of NULLs when there are none."""
    return statement(
        f"report_by_{by}",
        f"""
SELECT pg_is_in_recovery() AS replica, h.at AS as_of, extract(epoch FROM clock_timestamp() - h.at)::float8 AS age, r.*
FROM orders.heartbeat h LEFT JOIN ({rows}) r ON TRUE
""",  # noqa: S608 # constants
    )


# Primary keys, by their first column.
_BY_DAY: Final = f"SELECT {{key}}, currency, {_SUMS} FROM orders.sales_daily WHERE {_WITHIN.format(day='day')}"  # noqa: S608
STATEMENTS: Final = {
    By.DAY: _report(By.DAY, _BY_DAY.format(key="day") + " GROUP BY day, currency ORDER BY day, currency"),
    By.MONTH: _report(
        By.MONTH,
        _BY_DAY.format(key="date_trunc('month', day)::date AS month") + " GROUP BY 1, currency ORDER BY 1, currency",
    ),
    By.PRODUCT: _report(
        By.PRODUCT,
        "SELECT product_id, currency, sum(quantity) AS quantity, sum(amount) AS amount FROM orders.sales_daily_product"  # noqa: S608
        f" WHERE {_WITHIN.format(day='day')} GROUP BY product_id, currency"
        f" ORDER BY quantity DESC, product_id, currency LIMIT {PRODUCTS_MAX}",
    ),
    By.STATUS: _report(
        By.STATUS,
        "SELECT status, currency, sum(orders) AS orders, sum(amount) AS amount FROM orders.orders_by_status"  # noqa: S608
        f" WHERE {_WITHIN.format(day='placed_on')} GROUP BY status, currency HAVING sum(orders) <> 0"
        " ORDER BY status, currency",
    ),
}


async def beat(database: Database) -> None:
    """Whoever sees this on the replica knows that all that was committed before is there too."""
    await database.rows(BEAT)


async def get_sales(
    replica: Database | None, by: By, first_on: date, end_on: date, currency: str | None, *, lag_max_seconds: float
) -> Report:
    """Sales of [first_on, end_on), one snapshot of the replica. One round trip.

    503 `unavailable` when there is none, when it does not answer, when it is none, and when it lags by more.
    """
    if replica is None:
        raise _refused("none", "There is no replica to report from.")
    try:
        rows = await replica.rows(STATEMENTS[by], first_on=first_on, end_on=end_on, currency=currency)
    except (TransientError, LockTimeoutError) as error:
        raise _refused("no_answer", "The replica does not answer.") from error
    first = rows[0]
    if not first["replica"]:
        raise _refused("primary", "What should be the replica is a primary.")
    if first["as_of"] is None:
        raise _refused("lag", "The replica has not heard of the primary yet.")
    if first["age"] > lag_max_seconds:
        raise _refused("lag", f"The replica is as of {clock.to_text(first['as_of'])}, which is too long ago.")
    return Report(first["as_of"], [row for row in rows if row["currency"] is not None])


def _refused(reason: str, detail: str) -> DomainError:
    reports_refused_total.labels(reason).inc()
    log.warning("reports.refused", reason=reason, detail=detail)
    return unavailable(detail, retry_after_seconds=RETRY_AFTER_SECONDS)
