"""One look at all outboxes at once, for what no writer has called about; and how they stand, in metrics."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

import structlog
from prometheus_client import Counter, Gauge

from services.common.db import Database
from services.common.outbox import Alarm
from services.relay.leases import Leases
from services.relay.outboxes import Queue, looking, observing

OBSERVE_SECONDS: Final = 2.0

log = structlog.get_logger()
outbox_depth = Gauge("outbox_depth", "Rows not yet on Kafka, or told to the cache; counted to 100,000", ["outbox"])
outbox_oldest_age_seconds = Gauge("outbox_oldest_age_seconds", "Age of the oldest of these rows", ["outbox"])
outbox_parked_aggregates = Gauge("outbox_parked_aggregates", "Orders or products with parked rows", ["outbox"])
relay_looks_failed_total = Counter("relay_looks_failed_total", "Looks at all outboxes that failed")


async def watch(alarms: Mapping[Queue, Alarm], database: Database, leases: Leases, *, poll_seconds: float) -> None:
    """Ring whose outbox has rows, every `poll_seconds`, in one statement for all. Until cancelled."""
    clock, observe_at = asyncio.get_running_loop().time, 0.0
    look, observe = looking(list(alarms)), observing(list(alarms))
    while True:
        try:
            if clock() >= observe_at:  # instead of a look: it tells as much
                observe_at = clock() + OBSERVE_SECONDS
                rows = await database.rows(observe)
                for row in rows:
                    _tell(row["outbox"], row["depth"], row["oldest_at"], row["parked"])
                waiting = {row["outbox"] for row in rows if row["depth"]}
            else:
                held = [(name, number) for name, slices in leases.held().items() for number in slices]
                rows = await database.rows(look, outboxes=[n for n, _ in held], slices=[number for _, number in held])
                waiting = {row["outbox"] for row in rows}
        except Exception as error:  # noqa: BLE001 # one outbox may be the cause: each relay finds out for itself
            relay_looks_failed_total.inc()
            log.warning("relay.look_failed", error=repr(error))
            waiting = {queue.name for queue in alarms}
        for queue, alarm in alarms.items():
            if queue.name in waiting:
                alarm.ring()
        await asyncio.sleep(poll_seconds)


def _tell(outbox: str, depth: int, oldest_at: datetime | None, parked: int) -> None:
    age = 0.0 if oldest_at is None else (datetime.now(UTC) - oldest_at).total_seconds()
    outbox_depth.labels(outbox).set(depth)
    outbox_oldest_age_seconds.labels(outbox).set(max(0.0, age))
    outbox_parked_aggregates.labels(outbox).set(parked)
