"""What a relay asks of its own accord: one question at a time, for what no writer has called about.

It is the renewal of the leases, which looks at all queues by the way, or how they all stand (in metrics), or else a
look. With a quarter of a second between two an idle relay asks four times a second at most.
"""

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
    """Renew the leases when that is due, and ring whose queue has rows, every `poll_seconds`. Until cancelled."""
    look, looked = Look(alarms, database, leases), None
    async with asyncio.TaskGroup() as group:
        while True:
            if await leases.wait(poll_seconds):
                await leases.renew()
            elif looked is None or looked.done():  # one that hangs, as behind a lock, holds up no renewal
                looked = group.create_task(look())


class Look:
    """Rings whose queue has rows."""

    def __init__(self, alarms: Mapping[Queue, Alarm], database: Database, leases: Leases) -> None:
        self._alarms, self._database, self._leases = alarms, database, leases
        self._look, self._observe = looking(list(alarms)), observing(list(alarms))
        self._observe_at = 0.0

    async def __call__(self) -> None:
        """Once. When it fails all are rung: one queue may be the cause, and each relay finds out for itself."""
        try:
            waiting = await self._waiting()
        except Exception as error:  # noqa: BLE001 # whatever it is
            relay_looks_failed_total.inc()
            log.warning("relay.look_failed", error=repr(error))
            waiting, self._leases.looks = {queue.name for queue in self._alarms}, False
        else:
            self._leases.looks = True
        for queue, alarm in self._alarms.items():
            if queue.name in waiting:
                alarm.ring()

    async def _waiting(self) -> set[str]:
        now = asyncio.get_running_loop().time()
        if now < self._observe_at:
            held = [(name, number) for name, slices in self._leases.held().items() for number in slices]
            places = {"outboxes": [name for name, _ in held], "slices": [number for _, number in held]}
            return {row["outbox"] for row in await self._database.rows(self._look, **places)}
        self._observe_at = now + OBSERVE_SECONDS
        rows = await self._database.rows(self._observe)
        for row in rows:
            _tell(row["outbox"], row["depth"], row["oldest_at"], row["parked"])
        return {row["outbox"] for row in rows if row["depth"]}


def _tell(outbox: str, depth: int, oldest_at: datetime | None, parked: int) -> None:
    age = 0.0 if oldest_at is None else (datetime.now(UTC) - oldest_at).total_seconds()
    outbox_depth.labels(outbox).set(depth)
    outbox_oldest_age_seconds.labels(outbox).set(max(0.0, age))
    outbox_parked_aggregates.labels(outbox).set(parked)
