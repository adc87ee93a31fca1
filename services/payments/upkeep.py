"""What payments-worker does now and then: it looks how late it is, and deletes what is old."""

import asyncio
import time
from datetime import timedelta
from typing import Final

import structlog
from prometheus_client import Counter, Gauge

from services.common import clock
from services.common.db import Database
from services.common.db_errors import LockTimeoutError, TransientError
from services.common.errors import DomainError
from services.payments import commands, queries
from services.payments.intake import INBOX

LOOK_SECONDS: Final = 5.0

log = structlog.get_logger()
payment_oldest_due_seconds = Gauge(
    "payment_oldest_due_seconds", "For how long the step that waits longest has been due, 0 when none is"
)
payment_upkeep_failures_total = Counter("payment_upkeep_failures_total", "Rounds of upkeep that failed")


class Upkeep:
    """Keeps the gauge true, and every `interval_seconds` the tables short."""

    def __init__(
        self, database: Database, *, interval_seconds: float, steps_kept_days: int, inbox_kept_days: int
    ) -> None:
        self._database = database
        self._interval_seconds = interval_seconds
        self._steps_kept = timedelta(days=steps_kept_days)
        self._inbox_kept = timedelta(days=inbox_kept_days)

    async def run(self) -> None:
        """Until cancelled. What fails is counted and tried again."""
        deleted_at = float("-inf")
        while True:
            try:
                payment_oldest_due_seconds.set(await queries.oldest_due_seconds(self._database))
                if time.monotonic() - deleted_at >= self._interval_seconds:
                    await self.delete()
                    deleted_at = time.monotonic()
            except (TransientError, LockTimeoutError, DomainError) as error:
                payment_upkeep_failures_total.inc()
                log.warning("payments.upkeep_failed", error=repr(error))
            await asyncio.sleep(LOOK_SECONDS)

    async def delete(self) -> None:
        """No step that is done, and no row of the inbox, is older than it is kept; what was refused stays."""
        now = clock.now()
        steps = await commands.delete_steps(self._database, older_than=now - self._steps_kept)
        rows = await INBOX.forget(self._database, older_than=now - self._inbox_kept)
        if steps or rows:
            log.info("payments.deleted", steps=steps, inbox=rows)
