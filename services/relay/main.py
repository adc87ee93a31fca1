"""Process `outbox-relay`: carries events from the outboxes to Kafka, in order per aggregate, at least once.

Version n+1 of an aggregate (an order, a product) is only written after n has committed, so reading a slice in position
order keeps its order. A row is deleted after Kafka has acknowledged it; whoever dies in between publishes it again.
"""

import asyncio
import signal
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import structlog
from prometheus_client import Counter, Gauge, Histogram

from services.common import log, metrics
from services.common.db import Database, LockTimeoutError, ReadConnection, Row, TransientError, discard
from services.common.errors import DomainError
from services.common.metrics import BUCKETS_SECONDS
from services.common.outbox import Alarm
from services.common.stream import Message, Publisher, StreamError, UnpublishableError, ensure_topic
from services.relay.outbox import SLICES, Outbox
from services.relay.outboxes import OUTBOXES
from services.relay.settings import RelaySettings

PROCESS = "outbox-relay"
PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.1, 1.0  # between tries while Kafka or PostgreSQL is away
LOOK_SECONDS = 2.0

logger = structlog.get_logger()
outbox_depth = Gauge("outbox_depth", "Rows not yet on Kafka, counted up to 100,000", ["outbox"])
outbox_oldest_age_seconds = Gauge("outbox_oldest_age_seconds", "Age of the oldest event not yet on Kafka", ["outbox"])
outbox_published_total = Counter("outbox_published_total", "Events acknowledged by Kafka", ["outbox"])
outbox_publish_delay_seconds = Histogram(
    "outbox_publish_delay_seconds",
    "From the event's time to Kafka's acknowledgement",
    ["outbox"],
    buckets=BUCKETS_SECONDS,
)
outbox_slices = Gauge("outbox_slices", "Slices this relay has claimed", ["outbox"])
outbox_parked_aggregates = Gauge(
    "outbox_parked_aggregates", "Orders or products whose next event cannot be published", ["outbox"]
)
relay_failures_total = Counter("relay_failures_total", "Sessions that failed, by the part that did", ["outbox", "part"])


class Relay:
    """Publishes one outbox. It holds what it may do (slices) and what it must not overtake (parked aggregates)."""

    def __init__(self, outbox: Outbox, database: Database, settings: RelaySettings, alarm: Alarm) -> None:
        self._outbox = outbox
        self._database = database
        self._settings = settings
        self._alarm = alarm
        self._parked: set[UUID] = set()
        self.caught_up = False  # at its last look nothing waited, in all of the outbox

    async def run(self) -> None:
        """Until cancelled. Any failure ends a session; the next begins with a new producer and a new connection."""
        pause = PAUSE_SECONDS_MIN
        while True:
            try:
                await ensure_topic(self._settings.kafka_url, self._outbox.topic)
                async with (
                    Publisher(self._settings.kafka_url, client_id=PROCESS) as publisher,
                    self._database.session() as connection,
                ):
                    pause = PAUSE_SECONDS_MIN
                    await self._session(publisher, connection)
            except Exception as error:  # of this outbox, whatever it is: the others go on
                part = _part_of(error)
                relay_failures_total.labels(self._outbox.name, part).inc()
                logger.warning(
                    "relay.interrupted",
                    outbox=self._outbox.name,
                    part=part,
                    error=str(error),
                    exc_info=part == "unforeseen",
                )
                await asyncio.sleep(pause)
                pause = min(pause * 2, PAUSE_SECONDS_MAX)
            finally:
                self.caught_up = False
                outbox_slices.labels(self._outbox.name).set(0)

    async def _session(self, publisher: Publisher, connection: ReadConnection) -> None:
        """Publish until something fails. The slices are this connection's: whoever loses it has lost them."""
        clock = asyncio.get_running_loop().time
        slices: list[int] = []
        pause, claim_at = self._settings.poll_seconds_min, 0.0
        try:
            while True:
                if len(slices) < len(SLICES) and clock() >= claim_at:
                    free = [number for number in SLICES if number not in slices]
                    slices += [row["slice"] for row in await self._outbox.claim.rows(connection, slices=free)]
                    outbox_slices.labels(self._outbox.name).set(len(slices))
                    claim_at = clock() + self._settings.claim_seconds
                if await self._publish_once(publisher, connection, slices) or await self._alarm.wait(pause):
                    pause = self._settings.poll_seconds_min
                else:
                    pause = min(pause * 2, self._settings.poll_seconds_max)
        finally:
            # The connection goes back to the pool; without this it would keep the slices from everyone.
            discard(connection)

    async def _publish_once(self, publisher: Publisher, connection: ReadConnection, slices: Sequence[int]) -> int:
        """The next rows of every slice are on Kafka and gone from the outbox; gives how many."""
        if not slices:
            return 0
        rows = await self._outbox.read.rows(
            connection, slices=slices, parked=list(self._parked), rows=self._settings.batch_rows_per_slice
        )
        self.caught_up = not rows and not self._parked and len(slices) == len(SLICES)
        sendable = self._sendable(rows)
        if not sendable:
            return 0
        await publisher.publish(self._outbox.topic, [message for _, message in sendable])
        published_at = datetime.now(UTC)
        await self._outbox.delete.rows(
            connection,
            slices=[row["slice"] for row, _ in sendable],
            positions=[row["position"] for row, _ in sendable],
        )
        outbox_published_total.labels(self._outbox.name).inc(len(sendable))
        observe = outbox_publish_delay_seconds.labels(self._outbox.name).observe
        for row, _ in sendable:
            observe((published_at - row["occurred_at"]).total_seconds())
        return len(sendable)

    def _sendable(self, rows: Sequence[Row]) -> list[tuple[Row, Message]]:
        """The messages of `rows`; a row that can never be sent parks its aggregate, so that nothing overtakes it."""
        sendable = []
        for row in rows:
            if row["aggregate_id"] in self._parked:
                continue
            try:
                sendable.append((row, self._outbox.message(row)))
            except UnpublishableError as error:
                self._parked.add(row["aggregate_id"])
                outbox_parked_aggregates.labels(self._outbox.name).set(len(self._parked))
                logger.error(
                    "relay.parked",
                    outbox=self._outbox.name,
                    aggregate_id=str(row["aggregate_id"]),
                    version=row["version"],
                    error=str(error),
                )
        return sendable


def _part_of(error: Exception) -> str:
    match error:
        case StreamError():
            return "kafka"
        case TransientError() | LockTimeoutError() | DomainError():
            return "postgres"
        case _:
            return "unforeseen"


async def observe(outbox: Outbox, database: Database, relay: Relay) -> None:
    """Depth and age of `outbox` in metrics, also while Kafka is away. Until cancelled."""
    while True:
        if relay.caught_up:  # so that an idle relay asks nothing twice
            outbox_depth.labels(outbox.name).set(0)
            outbox_oldest_age_seconds.labels(outbox.name).set(0)
            await asyncio.sleep(LOOK_SECONDS)
            continue
        try:
            row = (await database.rows(outbox.look))[0]
        except Exception as error:  # noqa: BLE001 # as above
            logger.warning("relay.not_observed", outbox=outbox.name, error=repr(error))
        else:
            oldest_at = row["oldest_at"]
            age = 0.0 if oldest_at is None else (datetime.now(UTC) - oldest_at).total_seconds()
            outbox_depth.labels(outbox.name).set(row["depth"])
            outbox_oldest_age_seconds.labels(outbox.name).set(max(0.0, age))
        await asyncio.sleep(LOOK_SECONDS)


async def run(settings: RelaySettings) -> None:
    """Relay every outbox until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    # One connection for each relay, which holds its slices, and one to look.
    database = Database(settings.postgres_url, application_name=PROCESS, size_min=0, size_max=len(OUTBOXES) + 1)
    await database.open()
    alarms, tasks = [], []
    for outbox in OUTBOXES:
        alarm = Alarm(settings.valkey_url, outbox.name)
        alarm.start()
        alarms.append(alarm)
        relay = Relay(outbox, database, settings, alarm)
        tasks.append(asyncio.create_task(relay.run(), name=f"relay-{outbox.name}"))
        tasks.append(asyncio.create_task(observe(outbox, database, relay), name=f"observe-{outbox.name}"))
    stopped = asyncio.create_task(stop.wait())
    # A task that ends has failed in a way nobody foresaw: end the process, so that it is seen and started again.
    done, _ = await asyncio.wait([stopped, *tasks], return_when=asyncio.FIRST_COMPLETED)
    await cancelled(stopped, *tasks)
    for alarm in alarms:
        await alarm.close()
    await database.close()
    for task in done - {stopped}:
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
    asyncio.run(run(settings))
