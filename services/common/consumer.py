"""Kafka: a member of a consumer group. A message's effect is committed in the database first, its offset afterwards.

So every message is handled at least once. Whoever dies in between handles it again, and the inbox (`inbox.py`) makes
the second time harmless. Offsets are only ever committed of what the database already has: a member that has lost its
partition without knowing it may cause work to be done again, and never work to be left out. How to write a consumer
with it: docs/consuming.md.
"""

import asyncio
from collections import Counter as Tally
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from prometheus_client import Counter, Gauge

from services.common.db import LockTimeoutError, TransientError
from services.common.errors import DomainError
from services.common.stream import MESSAGE_BYTES_MAX, Received, StreamError, ensure_topic, received

BATCH_MESSAGES_MAX: Final = 500  # of one transaction: some milliseconds of row locks
FETCH_BYTES_MAX: Final = 4 * MESSAGE_BYTES_MAX  # bounds the memory of one answer, however many partitions it is of
POLL_MS: Final = 500  # how long to wait for messages before lag is told again
SESSION_TIMEOUT_MS: Final = 6_000  # the smallest a broker allows; a killed member's partitions wait as long as this
HEARTBEAT_MS: Final = 1_500
REBALANCE_TIMEOUT_MS: Final = 10_000  # how long the group waits for a batch under way; more than a statement may take
REQUEST_TIMEOUT_MS: Final = 15_000  # over that: joining a group waits for its slowest member
START_TIMEOUT_SECONDS: Final = 30.0
COMMIT_TIMEOUT_SECONDS: Final = 5.0  # aiokafka tries a commit for ever while the broker is away
STOP_TIMEOUT_SECONDS: Final = 5.0
PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.1, 2.0  # between tries while Kafka or PostgreSQL is away

T = TypeVar("T")
log = structlog.get_logger()
consumer_messages_total = Counter(
    "consumer_messages_total", "Messages whose transaction has committed, or poison", ["topic", "outcome"]
)
consumer_failures_total = Counter("consumer_failures_total", "What failed and is tried again, by part", ["part"])
consumer_lag_messages = Gauge(
    "consumer_lag_messages", "Messages behind the end of the partitions this process has", ["topic"]
)
consumer_applied_age_seconds = Gauge(
    "consumer_applied_age_seconds", "How old the message last applied was when it was committed", ["topic"]
)
consumer_stopped_partitions = Gauge(
    "consumer_stopped_partitions", "Partitions stopped at a message that cannot be understood", ["topic"]
)


class PoisonError(Exception):
    """No handler will ever understand `message`, however often it comes."""

    def __init__(self, message: Received, reason: str) -> None:
        super().__init__(reason)
        self.message = message
        self.reason = reason


# Gives how many of the messages had which outcome. It owns the transaction: when it returns they are committed, when it
# raises nothing of them is. The messages are of one partition, in its order.
Handle = Callable[[str, Sequence[Received]], Awaitable[Mapping[str, int]]]


class Consumer:
    """Hands the messages of `topics` to `handle` as a member of `group`, each partition in its order.

    A failure in passing (PostgreSQL away, a lock not granted) is tried again from the same message. Poison stops its
    partition: what stands before it is applied, what comes after it waits, other partitions go on. Until there is a
    dead-letter topic, a release that understands the message is what moves it on; the partition is met again there.
    """

    def __init__(self, kafka_url: str, *, group: str, topics: Sequence[str], handle: Handle) -> None:
        self._kafka_url = kafka_url
        self._group = group
        self._topics = tuple(topics)
        self._handle = handle
        self._stopping: set[asyncio.Task[None]] = set()  # earlier members that are still leaving

    async def run(self) -> None:
        """Until cancelled, which waits for the batch under way. Kafka's errors end a member; a new one is made."""
        pause = PAUSE_SECONDS_MIN
        while True:
            try:
                for topic in self._topics:
                    await ensure_topic(self._kafka_url, topic)
                async with self._member() as member:
                    pause = PAUSE_SECONDS_MIN
                    await member.run()
            except StreamError as error:
                consumer_failures_total.labels("kafka").inc()
                log.warning("consumer.interrupted", part="kafka", error=str(error))
            await asyncio.sleep(pause)
            pause = min(pause * 2, PAUSE_SECONDS_MAX)

    @asynccontextmanager
    async def _member(self) -> AsyncIterator["_Member"]:
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
        member = _Member(kafka, self._handle, self._topics)
        try:
            kafka.subscribe(self._topics, listener=member)
            with _stream_errors():
                async with asyncio.timeout(START_TIMEOUT_SECONDS):
                    await kafka.start()
            yield member
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


class _Member(ConsumerRebalanceListener):  # type: ignore[misc] # aiokafka has no types
    """One stay in the group. A rebalance waits for the batch under way, and ends what was fetched before it."""

    def __init__(self, kafka: Any, handle: Handle, topics: Sequence[str]) -> None:
        self._kafka = kafka
        self._handle = handle
        self._topics = topics
        self._batch = asyncio.Lock()
        self._assignment = 0  # counts rebalances
        self._stopped: set[TopicPartition] = set()
        self.forget()

    def forget(self) -> None:
        """It has no partitions, so there is nothing to tell of them."""
        self._stopped.clear()
        for topic in self._topics:
            consumer_stopped_partitions.labels(topic).set(0)
            consumer_lag_messages.labels(topic).set(0)

    async def on_partitions_revoked(self, revoked: object) -> None:  # noqa: ARG002 # aiokafka's signature
        """The batch under way has been committed; what else was fetched is fetched again by whoever gets it."""
        async with self._batch:
            self._assignment += 1
            self.forget()

    def on_partitions_assigned(self, assigned: object) -> None:
        """They begin at what was committed last."""

    async def run(self) -> None:
        """Until cancelled. StreamError when Kafka fails."""
        pause = PAUSE_SECONDS_MIN
        while True:
            with _stream_errors():
                fetched = await self._kafka.getmany(timeout_ms=POLL_MS, max_records=BATCH_MESSAGES_MAX)
            assignment, failed = self._assignment, False
            for partition, records in fetched.items():
                messages = [received(record) for record in records]
                failed |= not await _whole(self._one_batch(assignment, partition, messages))
            await self._tell_lag()
            if failed:
                await asyncio.sleep(pause)  # and then fetched anew: waiting here would look to the group like idling
            pause = min(pause * 2, PAUSE_SECONDS_MAX) if failed else PAUSE_SECONDS_MIN

    async def _one_batch(self, assignment: int, partition: TopicPartition, messages: list[Received]) -> bool:
        """`messages` are applied and their offsets committed, up to a poisoned one. False: to be fetched again."""
        async with self._batch:
            if assignment != self._assignment:
                return True  # fetched before a rebalance: whoever has the partition now begins at the last commit
            try:
                applied, poison = await self._apply(partition.topic, messages)
            except (TransientError, LockTimeoutError, DomainError) as error:
                if isinstance(error, DomainError) and error.status != 503:
                    raise
                consumer_failures_total.labels("postgres").inc()
                log.warning("consumer.interrupted", part="postgres", partition=partition.partition, error=repr(error))
                self._kafka.seek(partition, messages[0].offset)
                return False
            if applied:
                await self._commit(partition, applied[-1].offset + 1)
            if poison is not None:
                self._stop(partition, poison)
            return True

    async def _apply(self, topic: str, messages: list[Received]) -> tuple[list[Received], PoisonError | None]:
        """What is now in the database, and the message that stands in the way of the others."""
        poison = None
        while messages:
            try:
                outcomes = await self._handle(topic, messages)
            except PoisonError as error:
                poison = error
                messages = messages[: messages.index(error.message)]
            else:
                for outcome, count in outcomes.items():
                    consumer_messages_total.labels(topic, outcome).inc(count)
                age = datetime.now(UTC).timestamp() - messages[-1].timestamp_ms / 1000
                consumer_applied_age_seconds.labels(topic).set(max(0.0, age))
                break
        return messages, poison

    async def _commit(self, partition: TopicPartition, offset: int) -> None:
        with _stream_errors():
            try:
                async with asyncio.timeout(COMMIT_TIMEOUT_SECONDS):
                    await self._kafka.commit({partition: offset})
            except (CommitFailedError, IllegalStateError) as error:
                # Another has the partition now, and does this work again, which changes nothing.
                consumer_failures_total.labels("commit").inc()
                log.warning("consumer.commit_refused", partition=partition.partition, offset=offset, error=repr(error))

    def _stop(self, partition: TopicPartition, poison: PoisonError) -> None:
        self._kafka.seek(partition, poison.message.offset)  # so that lag counts what waits
        self._kafka.pause(partition)
        self._stopped.add(partition)
        stopped = sum(one.topic == partition.topic for one in self._stopped)
        consumer_stopped_partitions.labels(partition.topic).set(stopped)
        consumer_messages_total.labels(partition.topic, "poison").inc()
        log.error(
            "consumer.stopped",
            topic=partition.topic,
            partition=partition.partition,
            offset=poison.message.offset,
            reason=poison.reason,
        )

    async def _tell_lag(self) -> None:
        """From what the last answers said of the partitions' ends: nothing is asked for it."""
        lag: Tally[str] = Tally(dict.fromkeys(self._topics, 0))
        for partition in self._kafka.assignment():
            end = self._kafka.highwater(partition)
            if end is not None:  # then the position is known too, and told at once
                with _stream_errors():
                    lag[partition.topic] += max(0, end - await self._kafka.position(partition))
        for topic, messages in lag.items():
            consumer_lag_messages.labels(topic).set(messages)


@contextmanager
def _stream_errors() -> Iterator[None]:
    try:
        yield
    except (KafkaError, OSError, TimeoutError) as error:
        raise StreamError(repr(error)) from error


async def _whole(work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives. A cancellation waits for its end, so that none comes between a transaction and its offsets."""
    task = asyncio.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if failure := task.exception():
            log.warning("consumer.batch_failed_at_the_end", error=repr(failure))
        raise cancelled
    return task.result()
