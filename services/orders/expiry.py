"""Orders that have waited long enough for their payment are cancelled. The row is the timer: it outlives everything."""

from datetime import datetime
from typing import Final

import structlog
from prometheus_client import Counter, Gauge

from services.common import ids
from services.common.after_commit import AfterCommit
from services.common.cached import Key
from services.common.db import Database, Row
from services.common.db_errors import LockTimeoutError, Refused
from services.common.errors import DomainError
from services.common.ids import OrderKey
from services.orders import domain, steps
from services.orders.domain import CancelReason
from services.orders.histories import UNFOLDABLE
from services.orders.repository import GET_EXPIRED, LOCK_EXPIRED

ACTOR: Final = "process:orders-maintenance"
BATCH_ORDERS: Final = 500  # looked up at once: a round after a long standstill does not hold them all in memory

log = structlog.get_logger()
orders_expired_total = Counter("orders_expired_total", "Orders cancelled because nobody had paid in time")
orders_expiry_failures_total = Counter(
    "orders_expiry_failures_total", "Orders that could not be expired and are tried again, by reason", ["reason"]
)
orders_overdue_seconds = Gauge(
    "orders_overdue_seconds", "How long ago the oldest order that is still pending should have expired"
)


async def expire_orders(
    database: Database, after_commit: AfterCommit, now: datetime, *, batch_orders: int = BATCH_ORDERS
) -> int:
    """No order that could be cancelled is pending at `now` past its expires_at; gives how many were.

    Each is a READ COMMITTED transaction under the order's row lock, with its stock released, so each expires once
    however many do this at once: who comes second finds it locked or cancelled, and leaves it. One that cannot be
    cancelled is counted and left for the next round. TransientError when the database does not answer.
    """
    expired = 0
    while True:
        rows = await database.rows(GET_EXPIRED, now=now, limit=batch_orders)
        orders_overdue_seconds.set((now - rows[0]["expires_at"]).total_seconds() if rows else 0)
        done = 0
        for row in rows:
            done += await _expire(database, after_commit, row, now)
        expired += done
        if len(rows) < batch_orders or not done:
            return expired


async def _expire(database: Database, after_commit: AfterCommit, row: Row, now: datetime) -> bool:
    key = OrderKey(row["order_id"], row["created_at"], row["shard"])
    stale: dict[Key, int] = {}
    try:
        async with database.transaction() as connection:
            if not await LOCK_EXPIRED.rows(connection, **key._asdict(), now=now):
                return False
            order = await steps.read(connection, key)
            await steps.take(
                connection,
                order,
                domain.cancel(order, CancelReason.EXPIRED),
                stale,
                event_id=ids.new_id(now),
                actor=ACTOR,
                now=now,
                traceparent=None,
            )
    except (Refused, LockTimeoutError, DomainError, *UNFOLDABLE) as error:
        orders_expiry_failures_total.labels(type(error).__name__).inc()
        log.error("orders.not_expired", order_id=ids.to_text(key.order_id), error=repr(error))
        return False
    await after_commit(stale)
    orders_expired_total.inc()
    return True
