"""One stay of a process in a consumer group: fetch, settle, commit. See consumer.py for what it promises."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import structlog
from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError
from prometheus_client import Counter, Gauge

from services.common import dead_letters
from services.common.batch import settle
from services.common.breaker import Breaker
from services.common.db_errors import LockTimeoutError, TransientError
from services.common.errors import DomainError
from services.common.handle import Fill, GapError, Handle, PoisonError
from services.common.progress import Progress
from services.common.stream import StreamError, received

BATCH_MESSAGES_MAX: Final = 500  # of one transaction: some milliseconds of row locks
POLL_MS: Final = 500  # how long to wait for messages when there are none
COMMIT_TIMEOUT_SECONDS: Final = 5.0  # aiokafka tries a commit for ever while the broker is away
PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.1, 2.0  # between tries of one partition

Fetched = Mapping[TopicPartition, Sequence[Any]]  # records, of each partition in its order
T = TypeVar("T")
log = structlog.get_logger()
consumer_messages_total = Counter(
    "consumer_messages_total", "Messages whose transaction has committed, or dead letters", ["topic", "outcome"]
)
consumer_failures_total = Counter("consumer_failures_total", "What failed and is tried again, by part", ["part"])
consumer_applied_age_seconds = Gauge(
    "consumer_applied_age_seconds", "How old the message last applied was when it was committed", ["topic"]
)


class Member(ConsumerRebalanceListener):  # type: ignore[misc] # aiokafka has no types
    """One stay in the group. A rebalance waits for the batch under way, and ends what was fetched before it.

    `topics` are those it reads, each with the topic that its messages are of: another one when they are redelivered.
    """

    def __init__(
        self,
        kafka: Any,
        kafka_url: str,
        group: str,
        topics: Mapping[str, str],
        handle: Handle,
        fill: Fill | None,
        progress: Progress,
        breaker: Breaker,
    ) -> None:
        self._kafka = kafka
        self._kafka_url = kafka_url
        self._group = group
        self._topics = topics
        self._handle = handle
        self._fill = fill
        self._progress = progress
        self._breaker = breaker  # of Kafka, as dead letters are sent to it
        self._batch = asyncio.Lock()
        self._assignment = 0  # counts rebalances
        self._again: dict[TopicPartition, tuple[float, float]] = {}  # failed: when it is due, and the pause before

    def forget(self) -> None:
        """It has no partitions, so there is nothing to tell of them."""
        self._again.clear()
        self._progress.forget()

    async def on_partitions_revoked(self, revoked: object) -> None:  # noqa: ARG002 # aiokafka's signature
        """The batch under way has been committed; what else was fetched is fetched again by whoever gets it."""
        async with self._batch:
            self._assignment += 1
            self.forget()

    def on_partitions_assigned(self, assigned: object) -> None:  # noqa: ARG002 # the same
        """They begin at what was committed last."""
        self._progress.joined()

    async def run(self) -> None:
        """Until cancelled, which waits for the batch under way. StreamError when Kafka fails."""
        while True:
            with stream_errors():
                fetched = await self._kafka.getmany(timeout_ms=self._due(), max_records=BATCH_MESSAGES_MAX)
            assignment = self._assignment
            for partition, records in fetched.items():
                self._progress.fetched(partition, received(records[0]))
            for batch in self._batches(fetched):
                if len(batch) == 1 or not await _whole(self._all_at_once(assignment, batch)):
                    for partition, records in batch.items():
                        await _whole(self._one_batch(assignment, partition, records))

    def _batches(self, fetched: Fetched) -> Iterable[Fetched]:
        """All partitions of a topic make one, but for those that are tried again: each of them goes by itself."""
        batches: defaultdict[object, dict[TopicPartition, Sequence[Any]]] = defaultdict(dict)
        for partition, records in fetched.items():
            batches[partition if partition in self._again else partition.topic][partition] = records
        return batches.values()

    def _due(self) -> int:
        """Partitions that failed and whose time has come are fetched again; gives the ms until the next one's has."""
        now, next_in = time.monotonic(), POLL_MS / 1000
        for partition, (at, _) in self._again.items():
            if at > now:
                next_in = min(next_in, at - now)
            else:
                self._kafka.resume(partition)
        return int(next_in * 1000) + 1

    async def _all_at_once(self, assignment: int, fetched: Fetched) -> bool:
        """What was fetched of one topic is handled in one transaction, and its offsets committed in one request.

        False when the handler does not take it: then each partition is to be settled by itself, so that what one of
        them has holds up no other.
        """
        async with self._batch:
            if assignment != self._assignment:
                return True  # nothing of it is to be done here, as in `_one_batch`
            topic = next(iter(fetched)).topic
            messages = [received(record) for records in fetched.values() for record in records]
            try:
                outcomes = await self._handle(self._topics[topic], messages)
            except (PoisonError, GapError):
                return False  # which is told when its partition is settled
            except (TransientError, LockTimeoutError, DomainError) as error:
                consumer_failures_total.labels("postgres").inc()
                log.warning("consumer.taken_apart", topic=topic, partitions=len(fetched), error=repr(error))
                return False
            self._count(topic, outcomes)
            await self._settled(fetched)
            return True

    async def _one_batch(self, assignment: int, partition: TopicPartition, records: Sequence[Any]) -> None:
        """`records` are settled and their offsets committed, as far as they can be; the others are fetched again."""
        async with self._batch:
            if assignment != self._assignment:
                return  # fetched before a rebalance: whoever has the partition now begins at the last commit
            topic = self._topics[partition.topic]
            messages = [received(record) for record in records]
            try:
                settled = await settle(topic, messages, self._handle, self._fill)
            except (TransientError, LockTimeoutError, DomainError) as error:
                if isinstance(error, DomainError) and error.status != 503:
                    raise
                self._try_again(partition, messages[0].offset, "postgres", repr(error))
                return
            done = [record for record in records if record.offset < settled.next_offset]
            self._count(partition.topic, settled.outcomes)
            if settled.poison:
                await self._bury(topic, partition, done, settled.poison)
            if done:
                await self._settled({partition: done})
            if settled.waits is not None:
                self._try_again(partition, settled.next_offset, "gap", settled.waits)

    async def _settled(self, fetched: Fetched) -> None:
        """The offsets after these are committed; none of their partitions waits any more."""
        for partition, records in fetched.items():
            age = datetime.now(UTC).timestamp() - records[-1].timestamp / 1000
            consumer_applied_age_seconds.labels(partition.topic).set(max(0.0, age))
        await self._commit({partition: records[-1].offset + 1 for partition, records in fetched.items()})
        for partition, records in fetched.items():
            self._progress.settled(partition, received(records[-1]))
            self._again.pop(partition, None)
            self._progress.waiting.discard(partition)

    def _count(self, topic: str, outcomes: Mapping[str, int]) -> None:
        for outcome, count in outcomes.items():
            consumer_messages_total.labels(topic, outcome).inc(count)

    async def _bury(
        self, topic: str, partition: TopicPartition, records: Sequence[Any], poison: Mapping[int, str]
    ) -> None:
        """The poison among `records` is in the dead-letter topic, acknowledged. After the others' transaction: who
        fails there would otherwise bury it at every try."""
        dead = [(record, poison[record.offset]) for record in records if record.offset in poison]
        await dead_letters.send(self._kafka_url, self._group, topic, dead, kafka=self._breaker)
        consumer_messages_total.labels(partition.topic, "dead_letter").inc(len(dead))
        for record, reason in dead:
            log.error(
                "consumer.dead_letter",
                topic=partition.topic,
                partition=partition.partition,
                offset=record.offset,
                reason=reason,
            )

    def _try_again(self, partition: TopicPartition, offset: int, part: str, error: str) -> None:
        """It is fetched from `offset` on after a pause; the others go on meanwhile."""
        _, pause = self._again.get(partition, (0.0, PAUSE_SECONDS_MIN / 2))
        pause = min(pause * 2, PAUSE_SECONDS_MAX)
        at = time.monotonic() + pause
        self._again[partition] = (at, pause)
        self._progress.trying_again(partition, at)
        self._kafka.seek(partition, offset)
        self._kafka.pause(partition)
        consumer_failures_total.labels(part).inc()
        log.warning(
            "consumer.interrupted",
            part=part,
            topic=partition.topic,
            partition=partition.partition,
            offset=offset,
            error=error,
        )

    async def _commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        with stream_errors():
            try:
                async with asyncio.timeout(COMMIT_TIMEOUT_SECONDS):
                    await self._kafka.commit(offsets)
            except (CommitFailedError, IllegalStateError) as error:
                # Another has the partitions now, and does this work again, which changes nothing.
                consumer_failures_total.labels("commit").inc()
                told = {f"{at.topic}/{at.partition}": offset for at, offset in offsets.items()}
                log.warning("consumer.commit_refused", offsets=told, error=repr(error))


@contextmanager
def stream_errors() -> Iterator[None]:
    """Kafka's errors as StreamError."""
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
        if not task.cancelled() and (failure := task.exception()):
            log.warning("consumer.batch_failed_at_the_end", error=repr(failure))
        raise cancelled
    return task.result()
