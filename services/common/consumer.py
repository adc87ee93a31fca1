"""Kafka: a member of a consumer group. A message's effect is committed in the database first, its offset afterwards.

So every message is handled at least once. Whoever dies in between handles it again, and the inbox (`inbox.py`) makes
the second time harmless. Offsets are only ever committed of what the database or the dead-letter topic already has: a
member that has lost its partition without knowing it may cause work to be done again, and never work to be left out.
How to write a consumer with it: docs/consuming.md.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import structlog
from aiokafka import AIOKafkaConsumer

from services.common import publisher
from services.common.handle import Fill, Handle
from services.common.member import (
    PAUSE_SECONDS_MAX,
    PAUSE_SECONDS_MIN,
    Member,
    consumer_failures_total,
    stream_errors,
)
from services.common.progress import Progress
from services.common.stream import MESSAGE_BYTES_MAX, StreamError, ensure_topic, redelivery_topic

FETCH_BYTES_MAX: Final = 4 * MESSAGE_BYTES_MAX  # bounds the memory of one answer, however many partitions it is of
SESSION_TIMEOUT_MS: Final = 6_000  # the smallest a broker allows; a killed member's partitions wait as long as this
HEARTBEAT_MS: Final = 1_500
REBALANCE_TIMEOUT_MS: Final = 10_000  # how long the group waits for a batch under way; more than a statement may take
REQUEST_TIMEOUT_MS: Final = 15_000  # over that: joining a group waits for its slowest member
START_TIMEOUT_SECONDS: Final = 30.0
STOP_TIMEOUT_SECONDS: Final = 5.0
STUCK_AFTER_SECONDS: Final = 120.0  # far over the longest a batch may take, and sooner than a person would look

log = structlog.get_logger()


class Consumer:
    """Hands the messages of `topics` to `handle` as a member of `group`, each partition in its order.

    What was fetched of a topic is handed over at once; if that fails, one partition after the other. A failure in
    passing (PostgreSQL away, a lock not granted) is tried again from the same message; other partitions go on. Poison
    becomes a dead letter (`dead_letters.py`), and its partition goes on after it. A gap is filled by `fill`, and waits
    for what it does not have.
    """

    def __init__(
        self,
        kafka_url: str,
        *,
        group: str,
        topics: Sequence[str],
        handle: Handle,
        fill: Fill | None = None,
        stuck_after_seconds: float = STUCK_AFTER_SECONDS,
    ) -> None:
        self._kafka_url = kafka_url
        self._group = group
        self._topics = {**{topic: topic for topic in topics}, **{redelivery_topic(t, group): t for t in topics}}
        self._handle = handle
        self._fill = fill
        self._stuck_after_seconds = stuck_after_seconds
        self.breaker = publisher.breaker()  # of Kafka, as dead letters are sent to it: one consumer for a process
        self._stopping: set[asyncio.Task[None]] = set()  # earlier members that are still leaving

    async def run(self) -> None:
        """Until cancelled, which waits for the batch under way. Kafka's errors end a member; a new one is made.

        NoProgressError when messages wait and for `stuck_after_seconds` nothing was done with them: end the process,
        its supervisor starts another. What is stuck is left as it is.
        """
        pause = PAUSE_SECONDS_MIN
        while True:
            try:
                for topic in self._topics:
                    await ensure_topic(self._kafka_url, topic)
                async with self._member() as (member, progress):
                    pause = PAUSE_SECONDS_MIN
                    await _watched(member, progress)
            except StreamError as error:
                consumer_failures_total.labels("kafka").inc()
                log.warning("consumer.interrupted", part="kafka", error=str(error))
            await asyncio.sleep(pause)
            pause = min(pause * 2, PAUSE_SECONDS_MAX)

    @asynccontextmanager
    async def _member(self) -> AsyncIterator[tuple[Member, Progress]]:
        kafka = AIOKafkaConsumer(
            bootstrap_servers=self._kafka_url,
            client_id=self._group,
            group_id=self._group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",  # a new group has everything to do
            max_partition_fetch_bytes=MESSAGE_BYTES_MAX,
            fetch_max_bytes=FETCH_BYTES_MAX,
            session_timeout_ms=SESSION_TIMEOUT_MS,
            heartbeat_interval_ms=HEARTBEAT_MS,
            rebalance_timeout_ms=REBALANCE_TIMEOUT_MS,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )
        topics = tuple(self._topics)
        progress = Progress(kafka, topics, stuck_after_seconds=self._stuck_after_seconds)
        member = Member(
            kafka, self._kafka_url, self._group, self._topics, self._handle, self._fill, progress, self.breaker
        )
        try:
            kafka.subscribe(topics, listener=member)
            with stream_errors():
                async with asyncio.timeout(START_TIMEOUT_SECONDS):
                    await kafka.start()
            yield member, progress
        finally:
            # Never cut short: its tasks would go on sending heartbeats, and keep partitions that nobody reads.
            stopping = asyncio.create_task(kafka.stop())
            self._stopping.add(stopping)
            stopping.add_done_callback(self._stopped)
            await asyncio.wait([stopping], timeout=STOP_TIMEOUT_SECONDS)
            member.forget()

    def _stopped(self, stopping: "asyncio.Task[None]") -> None:
        self._stopping.discard(stopping)
        if not stopping.cancelled() and (error := stopping.exception()):
            log.warning("consumer.not_stopped", error=repr(error))


async def _watched(member: Member, progress: Progress) -> None:
    """The member runs until cancelled, or until one of the two raises. Then its batch is waited for, unless stuck."""
    running, watching = asyncio.create_task(member.run()), asyncio.create_task(progress.watch())
    cancelled: asyncio.CancelledError | None = None
    try:
        await asyncio.wait([running, watching], return_when=asyncio.FIRST_COMPLETED)
    except asyncio.CancelledError as error:
        cancelled = error
    failure = watching.exception() if watching.done() else None
    if failure is not None:
        log.error("consumer.stuck", error=str(failure))
    while left := [task for task in (running, watching) if not task.done()]:
        for task in left:
            task.cancel()
        try:
            done, _ = await asyncio.wait(left, timeout=None if failure is None else STOP_TIMEOUT_SECONDS)
        except asyncio.CancelledError as error:
            cancelled = error
        else:
            if not done:
                break  # what is stuck may never end
    if cancelled is not None:
        raise cancelled
    if failure is not None:
        raise failure
    running.result()
