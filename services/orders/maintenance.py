"""Process `orders-maintenance`: expires unpaid orders, refreshes the order summaries, makes partitions in time,
deletes old keys and inbox rows, and writes the heartbeat that replicas are told their age by."""

import asyncio
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial

import structlog
from prometheus_client import Counter, Gauge

from services.common import caches, clock, log, metrics, process
from services.common.after_commit import AfterCommit
from services.common.db import Database
from services.common.db_errors import LockTimeoutError, TransientError
from services.common.errors import DomainError
from services.common.outbox import Wake
from services.common.process import until_stopped
from services.orders import commands, expiry, queries, reports, summaries
from services.orders.repository import INBOX
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


async def expire_once(database: Database, after_commit: AfterCommit, now: clock.Clock = clock.now) -> None:
    """Orders whose time for payment has passed are cancelled, and cache and relay know of it."""
    if expired := await expiry.expire_orders(database, after_commit, now()):
        logger.info("orders.expired", orders=expired)


async def run(settings: OrdersSettings) -> None:
    """Rounds until SIGTERM or SIGINT: upkeep, expiry and summaries side by side, each with a connection when needed."""
    # A refresh takes longer than a request may, and whoever waits for it does not wait for the others.
    patient = Database(
        settings.postgres_url,
        application_name=PROCESS,
        size_min=0,
        size_max=1,
        command_timeout_seconds=summaries.REFRESH_TIMEOUT_SECONDS + 1,
    )
    await patient.open()
    database = Database(settings.postgres_url, application_name=PROCESS, size_min=0, size_max=2)
    await database.open()
    holder = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    wake = Wake(settings.valkey_url, "orders")
    wake.start()
    cache = caches.cache(settings.cache_at)
    after_commit = AfterCommit(wake, cache)

    async def rounds() -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(_rounds(partial(run_once, database, settings), settings.maintenance_interval_seconds))
            tasks.create_task(_rounds(partial(expire_once, database, after_commit), settings.expiry_interval_seconds))
            tasks.create_task(_rounds(partial(reports.beat, database), settings.heartbeat_interval_seconds))
            tasks.create_task(
                _rounds(
                    partial(
                        summaries.refresh_when_due,
                        patient,
                        holder,
                        interval=timedelta(seconds=settings.summaries_interval_seconds),
                        window=settings.summaries_window,
                    ),
                    settings.summaries_interval_seconds,
                )
            )

    try:
        await until_stopped(rounds())
    finally:
        if cache is not None:
            await cache.close()
        await wake.close()
        await patient.close()
        await database.close()


async def _rounds(work: Callable[[], Awaitable[float | None]], interval_seconds: float) -> None:
    """`work`, again and again until cancelled, each time after the pause it asks for, or the interval.

    When it fails in passing it is logged, counted and tried again soon.
    """
    while True:
        pause = interval_seconds
        try:
            pause = await work() or interval_seconds
        except (TransientError, LockTimeoutError, DomainError) as error:
            maintenance_failures_total.labels(type(error).__name__).inc()
            logger.warning("maintenance.failed", error=repr(error))
            pause = min(pause, RETRY_SECONDS)
        await asyncio.sleep(pause)


def main() -> None:
    """Run until SIGTERM."""
    settings = OrdersSettings()
    log.configure(PROCESS, settings.log_level)
    metrics.serve(PROCESS, settings.host, settings.metrics_port)
    process.run(run(settings))
