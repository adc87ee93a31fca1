"""Process `orders-maintenance`: makes next months' partitions, and deletes keys and inbox rows that are old enough."""

import asyncio
import signal
from datetime import timedelta

import structlog
from prometheus_client import Counter, Gauge

from services.common import clock, log, metrics
from services.common.db import Database, LockTimeoutError, TransientError
from services.orders import commands, queries
from services.orders.projections import INBOX
from services.orders.settings import OrdersSettings

PROCESS = "orders-maintenance"
RETRY_SECONDS = 10.0  # after a failure, such as a lock not granted within 2 s

logger = structlog.get_logger()
partitions_ahead = Gauge("partitions_ahead", "Whole months of partitions after the current one")
partition_rows = Gauge("partition_rows_max", "Rows of the largest partition, by the last ANALYZE")
maintenance_failures_total = Counter("maintenance_failures_total", "Rounds that failed, by reason", ["reason"])


async def run_once(database: Database, settings: OrdersSettings, now: clock.Clock = clock.now) -> None:
    """Partitions reach `months_ahead` months past `now`; no key or inbox row is older than the days it is kept."""
    months = await queries.get_months(database)
    if queries.judge_months(months, now(), months_ahead=settings.months_ahead).warnings or not months:
        logger.info("partitions.behind", months=len(months))
    made = await commands.create_months(database, clock.month_of(now()), settings.months_ahead)
    if made:
        logger.info("partitions.made", months=[f"{month:%Y-%m}" for month in made])
    months = await queries.get_months(database)
    partitions_ahead.set(sum(month.first_on > now().date() for month in months))
    partition_rows.set(max((month.rows for month in months), default=0))
    deleted = await commands.delete_keys(database, older_than=now() - timedelta(days=settings.keys_kept_days))
    if deleted:
        logger.info("idempotency_keys.deleted", rows=deleted)
    forgotten = await INBOX.forget(database, older_than=now() - timedelta(days=settings.inbox_kept_days))
    if forgotten:
        logger.info("inbox.forgotten", rows=forgotten)


async def run(settings: OrdersSettings) -> None:
    """Rounds until SIGTERM or SIGINT; a round that fails is logged, counted and tried again soon."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    database = Database(settings.postgres_url, application_name=PROCESS, size_max=1)
    opened = False
    while not stop.is_set():
        pause = settings.maintenance_interval_seconds
        try:
            if not opened:
                await database.open()
                opened = True
            await run_once(database, settings)
        except (TransientError, LockTimeoutError) as error:
            maintenance_failures_total.labels(type(error).__name__).inc()
            logger.warning("maintenance.failed", error=repr(error))
            pause = RETRY_SECONDS
        try:
            await asyncio.wait_for(stop.wait(), pause)
        except TimeoutError:
            continue
    await database.close()


def main() -> None:
    """Run until SIGTERM."""
    settings = OrdersSettings()
    log.configure(PROCESS, settings.log_level)
    metrics.serve(PROCESS, settings.host, settings.metrics_port)
    asyncio.run(run(settings))
