"""Process `outbox-relay`: carries events from the outboxes to Kafka, in order per aggregate, at least once.

And what writes have replaced to the cache, apart from that.
"""

import asyncio
import os
import secrets
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import structlog

from services.common import caches, log, metrics, process, publisher
from services.common.db import Database
from services.common.outbox import Alarm
from services.common.process import until_stopped
from services.relay.invalidations import INVALIDATIONS, Drain
from services.relay.leases import Leases
from services.relay.outbox import Outbox
from services.relay.outboxes import OUTBOXES, Queue
from services.relay.relay import LANES, Relay
from services.relay.settings import RelaySettings
from services.relay.watch import watch

PROCESS = "outbox-relay"
CACHE_FAILURES = sys.maxsize  # so it is never left alone: one task calls it, which waits between two tries

logger = structlog.get_logger()


@asynccontextmanager
async def relaying(
    settings: RelaySettings, outboxes: Sequence[Outbox] = OUTBOXES
) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Until the end of the block the outboxes are relayed and the cache is told; then others have the slices at once.

    Gives the tasks that do it. None of them ends by itself: one that does has failed in a way nobody foresaw.
    """
    cache = caches.cache(settings.cache_at, failures=CACHE_FAILURES)
    # One connection for each lane, one for each table of invalidations, one to look, one to renew leases.
    connections = LANES * len(outboxes) + len(INVALIDATIONS) + 2
    database = Database(settings.postgres_url, application_name=PROCESS, size_min=0, size_max=connections)
    await database.open()
    name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
    alarms: dict[Queue, Alarm] = {outbox: Alarm(settings.valkey_url, outbox.name) for outbox in outboxes}
    for queue in INVALIDATIONS:
        alarms[queue] = Alarm(settings.valkey_url, queue.owner)  # rung by those who write to the outbox, too
    leases = Leases(
        database, name, list(alarms), lease_seconds=settings.lease_seconds, beat_seconds=settings.beat_seconds
    )
    kafka = publisher.breaker()
    works = {
        f"relay-{outbox.name}": Relay(
            outbox,
            database,
            leases,
            alarms[outbox],
            kafka=kafka,
            kafka_url=settings.kafka_url,
            client_id=PROCESS,
            rows_per_slice=settings.batch_rows_per_slice,
            gather_seconds=settings.gather_seconds,
            poll_seconds_min=settings.poll_seconds_min,
            poll_seconds_max=settings.poll_seconds_max,
        ).run()
        for outbox in outboxes
    }
    for queue in INVALIDATIONS:
        works[queue.name] = Drain(
            queue, database, leases, alarms[queue], cache, rows_per_slice=settings.batch_rows_per_slice
        ).run()
    works["watch"] = watch(alarms, database, leases, poll_seconds=settings.poll_seconds_max)
    for alarm in alarms.values():
        alarm.start()
    tasks = [asyncio.create_task(work, name=task) for task, work in works.items()]
    try:
        yield tasks
    finally:
        await cancelled(*tasks)
        try:
            await leases.close()
        except Exception as error:  # noqa: BLE001 # whatever it is, they run out by themselves
            logger.warning("relay.leases_not_given_up", error=repr(error))
        for alarm in alarms.values():
            await alarm.close()
        if cache is not None:
            await cache.close()
        await database.close()


async def run(settings: RelaySettings) -> None:
    """Relay every outbox until cancelled, or until a task fails: then so does the process, which is started again."""
    async with relaying(settings) as tasks:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()


async def cancelled(*tasks: asyncio.Task[Any]) -> None:
    """All have ended. They are told again, as aiokafka's closing may swallow a cancellation."""
    ending: set[asyncio.Task[Any]] = set(tasks)
    while ending:
        for task in ending:
            task.cancel()
        _, ending = await asyncio.wait(ending, timeout=1.0)


def main() -> None:
    """Run until SIGTERM."""
    settings = RelaySettings()
    log.configure(PROCESS, settings.log_level)
    metrics.serve(PROCESS, settings.host, settings.metrics_port)
    process.run(until_stopped(run(settings)))
