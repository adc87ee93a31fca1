"""Publishing one outbox: read the next rows of the slices one has, publish, wait for Kafka, delete exactly those rows.

A row is deleted after Kafka has acknowledged it; whoever dies in between publishes it again. Version n+1 of an
aggregate is only written after n has committed, so reading a slice in position order keeps the aggregate's order.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from operator import itemgetter
from uuid import UUID

import structlog
from prometheus_client import Counter as Metric
from prometheus_client import Histogram

from services.common.breaker import Breaker
from services.common.db import Database, Row
from services.common.db_errors import LockTimeoutError, TransientError
from services.common.errors import DomainError
from services.common.metrics import BUCKETS_SECONDS
from services.common.outbox import Alarm, Ring
from services.common.publisher import BATCH_BYTES_MAX, LeftAloneError, Publisher, TooLargeError
from services.common.stream import Message, StreamError, UnpublishableError
from services.relay.leases import Lease, Leases
from services.relay.outbox import Outbox

PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.1, 1.0  # between tries while Kafka or PostgreSQL is away
LANES = 2  # of slices, while there is a backlog: while one waits for PostgreSQL, the other encodes

log = structlog.get_logger()
outbox_published_total = Metric("outbox_published_total", "Events acknowledged by Kafka", ["outbox"])
outbox_publish_delay_seconds = Histogram(
    "outbox_publish_delay_seconds",
    "From the event's time to Kafka's acknowledgement",
    ["outbox"],
    buckets=BUCKETS_SECONDS,
)
outbox_parked_total = Metric("outbox_parked_total", "Rows this relay has parked", ["outbox"])
relay_failures_total = Metric("relay_failures_total", "Sessions that failed, by the part that did", ["outbox", "part"])


class Relay:
    """Publishes what it holds the lease of. Woken by `alarm`; after rows that no writer has called for it polls.

    `kafka` is the breaker that all outboxes of the process share: while it is open one of them tries, once a window.
    """

    def __init__(
        self,
        outbox: Outbox,
        database: Database,
        leases: Leases,
        alarm: Alarm,
        *,
        kafka: Breaker,
        kafka_url: str,
        client_id: str,
        rows_per_slice: int,
        gather_seconds: float,
        poll_seconds_min: float,
        poll_seconds_max: float,
    ) -> None:
        self._outbox = outbox
        self._database = database
        self._leases = leases
        self._lease: Lease = leases.add(outbox.name, alarm)
        self._alarm = alarm
        self._kafka, self._kafka_url, self._client_id = kafka, kafka_url, client_id
        self._rows_per_slice = rows_per_slice
        self._gather_seconds = gather_seconds
        self._poll_seconds_min, self._poll_seconds_max = poll_seconds_min, poll_seconds_max
        self._batch_bytes_max = BATCH_BYTES_MAX

    async def run(self) -> None:
        """Until cancelled. Any failure ends a session, and its lease; the next begins with a new producer."""
        pause = PAUSE_SECONDS_MIN
        while True:
            try:
                async with Publisher(
                    self._kafka_url,
                    client_id=self._client_id,
                    topics=[self._outbox.topic],
                    kafka=self._kafka,
                    batch_bytes_max=self._batch_bytes_max,
                ) as publisher:
                    pause = PAUSE_SECONDS_MIN
                    self._leases.want(self._lease, True)
                    await self._publish_all(publisher)
            except Exception as failed:  # of this outbox, whatever it is: the others go on
                error = failed.exceptions[0] if isinstance(failed, ExceptionGroup) else failed
                self._leases.want(self._lease, False)
                if isinstance(error, LeftAloneError):  # which the breaker tells; a probe may end long before its time
                    await asyncio.sleep(min(max(error.retry_after, PAUSE_SECONDS_MIN), PAUSE_SECONDS_MAX))
                    continue
                part = part_of(error)
                relay_failures_total.labels(self._outbox.name, part).inc()
                log.warning(
                    "relay.interrupted",
                    outbox=self._outbox.name,
                    part=part,
                    error=str(error),
                    exc_info=error if part == "unforeseen" else None,
                )
                await asyncio.sleep(pause)
                pause = min(pause * 2, PAUSE_SECONDS_MAX)

    async def _publish_all(self, publisher: Publisher) -> None:
        """Publish whatever comes, until something fails. What comes soon after a read waits for the next."""
        clock = asyncio.get_running_loop().time
        pause: float | None = None  # new slices ring
        while True:
            ring = await self._alarm.wait(pause)
            next_at = clock() + self._gather_seconds
            found = await self._publish_waiting(publisher)
            if ring is Ring.CALLED:
                pause = None  # whoever writes the next row calls again
            elif found:  # and no call was heard: Valkey is away, or one was lost
                pause = self._poll_seconds_min
            elif pause is not None:  # and later whoever looks at all outboxes rings
                pause = pause * 2 if pause * 2 < self._poll_seconds_max else None
            await asyncio.sleep(next_at - clock())

    async def _publish_waiting(self, publisher: Publisher) -> bool:
        """All that waited is published: all slices at once, in lanes as long as there is more. Whether any did."""
        found = False
        while rows := await self._publish_once(publisher):
            found = True
            if not self._is_full(rows):
                break
            await self._publish_backlog(publisher)
        return found

    async def _publish_backlog(self, publisher: Publisher) -> None:
        """Publish in lanes until one of them has caught up."""
        over = asyncio.Event()

        async def publish(lane: int) -> None:
            while not over.is_set() and self._is_full(await self._publish_once(publisher, lane)):
                pass
            over.set()

        async with asyncio.TaskGroup() as lanes:
            for lane in range(LANES):
                lanes.create_task(publish(lane))

    def _is_full(self, rows: Sequence[Row]) -> bool:
        """Whether a slice may have more than was read."""
        return max(Counter(row["slice"] for row in rows).values(), default=0) >= self._rows_per_slice

    async def _publish_once(self, publisher: Publisher, lane: int | None = None) -> Sequence[Row]:
        """The next rows of every slice (of `lane`) are on Kafka and gone from the outbox, or parked; gives them."""
        slices = [number for number in self._lease.slices() if lane in {None, number % LANES}]
        if not slices:
            return ()
        self._lease.under_way |= set(slices)
        try:
            rows = await self._database.rows(self._outbox.read, slices=slices, rows=self._rows_per_slice)
            rows.sort(key=itemgetter("position"))  # no plan promises an order across its joins
            sendable, unsendable = self._sorted_out(rows)
            if sendable:
                await self._publish(publisher, sendable)
            if unsendable:
                await self._park(unsendable)  # last: what stands before them is gone
        finally:
            self._lease.under_way -= set(slices)
        return rows

    async def _publish(self, publisher: Publisher, sendable: Sequence[tuple[Row, Message]]) -> None:
        try:
            await publisher.publish(self._outbox.topic, [message for _, message in sendable])
        except TooLargeError as refused:
            await self._heed(refused, sendable)
            raise
        published_at = datetime.now(UTC)
        await self._database.rows(
            self._outbox.delete,
            slices=[row["slice"] for row, _ in sendable],
            positions=[row["position"] for row, _ in sendable],
        )
        outbox_published_total.labels(self._outbox.name).inc(len(sendable))
        observe = outbox_publish_delay_seconds.labels(self._outbox.name).observe
        for row, _ in sendable:
            observe((published_at - row["occurred_at"]).total_seconds())

    async def _heed(self, refused: TooLargeError, sendable: Sequence[tuple[Row, Message]]) -> None:
        """The next session's batches are smaller; an event that was alone in its batch is parked."""
        if len(refused.messages) > 1:
            self._batch_bytes_max //= 2
            log.warning("relay.smaller_batches", outbox=self._outbox.name, bytes_max=self._batch_bytes_max)
        else:
            (alone,) = refused.messages
            await self._park([(row, str(refused)) for row, message in sendable if message is alone])

    def _sorted_out(self, rows: Sequence[Row]) -> tuple[list[tuple[Row, Message]], list[tuple[Row, str]]]:
        """The messages of `rows`, and the rows to park with their reasons. Nothing overtakes a row that is parked.

        Behind a row that is about to be parked the aggregate's next ones stay: read again, they are seen to wait.
        """
        sendable, unsendable = [], []
        blocked: set[UUID] = set()
        for row in rows:
            if row["aggregate_id"] in blocked:
                continue
            if row["parked_version"] is not None:
                unsendable.append((row, f"waits for version {row['parked_version']}"))
                continue
            try:
                sendable.append((row, self._outbox.message(row)))
            except UnpublishableError as error:
                blocked.add(row["aggregate_id"])
                unsendable.append((row, str(error)))
        return sendable, unsendable

    async def _park(self, unsendable: Sequence[tuple[Row, str]]) -> None:
        for row in await self._outbox.park(self._database, unsendable):
            outbox_parked_total.labels(self._outbox.name).inc()
            log.error(
                "relay.parked",
                outbox=self._outbox.name,
                aggregate_id=str(row["aggregate_id"]),
                version=row["version"],
                reason=row["reason"],
            )


def part_of(error: Exception) -> str:
    """Whose failure it is."""
    match error:
        case StreamError():
            return "kafka"
        case TransientError() | LockTimeoutError() | DomainError():
            return "postgres"
        case _:
            return "unforeseen"
