"""Kafka: a follower of a whole topic, without a group. Every process that follows sees every message.

It begins at the end. Where it is it knows by itself, so an error of Kafka's costs a consumer and never a message: the
next one goes on at the same offsets.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, OffsetOutOfRangeError
from prometheus_client import Counter, Gauge

from services.common.stream import MESSAGE_BYTES_MAX, Received, StreamError, ensure_topic, received

BATCH_MESSAGES_MAX: Final = 64  # handed over at once; then other tasks have their turn
FETCH_BYTES_MAX: Final = 4 * MESSAGE_BYTES_MAX
FETCH_WAIT_MS: Final = 500
LOOK_SECONDS: Final = 2.0  # how often it is asked whether the broker still answers
ANSWER_SECONDS: Final = 5.0  # and how long that may take; aiokafka itself would wait for ever
START_SECONDS: Final = 15.0
STOP_SECONDS: Final = 5.0
PAUSE_SECONDS_MIN, PAUSE_SECONDS_MAX = 0.1, 2.0

log = structlog.get_logger()
follower_messages_total = Counter("follower_messages_total", "Messages handed over", ["topic"])
follower_failures_total = Counter("follower_failures_total", "Consumers given up, or positions lost", ["topic", "what"])
follower_lag_messages = Gauge("follower_lag_messages", "Messages behind the ends of all partitions", ["topic"])


class Follower:
    """Hands every message of `topic` to `handle`, each partition in its order, from the end there was at its start.

    `handle` must not fail. `lost` is called when messages have gone before they were read (a topic made anew, or an
    absence longer than they are kept): what comes next begins at the end again.
    """

    def __init__(
        self,
        kafka_url: str,
        topic: str,
        *,
        handle: Callable[[Sequence[Received]], None],
        lost: Callable[[], None],
    ) -> None:
        self._kafka_url = kafka_url
        self._topic = topic
        self._handle = handle
        self._lost = lost
        self._positions: dict[TopicPartition, int] = {}
        self.answers = False  # whether a consumer is at work, as far as is known

    @property
    def placed(self) -> bool:
        """Whether it knows where it is: whatever is published from now on will be handed over."""
        return bool(self._positions)

    async def run(self) -> None:
        """Until cancelled."""
        pause = PAUSE_SECONDS_MIN
        while True:
            try:
                await self._once()
            except OffsetOutOfRangeError as error:
                follower_failures_total.labels(self._topic, "lost").inc()
                log.error("follower.positions_lost", topic=self._topic, error=repr(error))
                self._positions = {}
                self._lost()
            except (KafkaError, OSError, TimeoutError, StreamError) as error:
                follower_failures_total.labels(self._topic, "kafka").inc()
                log.warning("follower.interrupted", topic=self._topic, error=repr(error))
            except Exception:  # a feed that has ended would look like one without news
                follower_failures_total.labels(self._topic, "unforeseen").inc()
                log.exception("follower.interrupted", topic=self._topic)
            pause = PAUSE_SECONDS_MIN if self.answers else min(pause * 2, PAUSE_SECONDS_MAX)
            self.answers = False
            await asyncio.sleep(pause)

    async def _once(self) -> None:
        """One consumer, until Kafka fails."""
        await ensure_topic(self._kafka_url, self._topic)
        kafka = AIOKafkaConsumer(
            bootstrap_servers=self._kafka_url,
            enable_auto_commit=False,
            auto_offset_reset="none",  # a position that does not exist is an error, and never a silent jump
            max_partition_fetch_bytes=MESSAGE_BYTES_MAX,
            fetch_max_bytes=FETCH_BYTES_MAX,
            fetch_max_wait_ms=FETCH_WAIT_MS,
        )
        try:
            async with asyncio.timeout(START_SECONDS):
                await kafka.start()
                # Assigned, not subscribed: a subscription may begin anew at the end when the broker's answers change.
                kafka.assign(await self._partitions())
                ends = self._positions or await kafka.end_offsets(kafka.assignment())
            for partition, position in ends.items():
                kafka.seek(partition, position)
            self._positions = ends
            self.answers = True
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read(kafka))
                group.create_task(self._look(kafka))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed
        finally:
            stopping = asyncio.create_task(kafka.stop())
            await asyncio.wait([stopping], timeout=STOP_SECONDS)

    async def _partitions(self) -> list[TopicPartition]:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._kafka_url)
        try:
            await admin.start()
            (described,) = await admin.describe_topics([self._topic])
        finally:
            await admin.close()
        # A broker that has just been told of the topic may not know it yet: to follow none of its partitions would look
        # like following a topic without news.
        if not described["partitions"]:
            raise StreamError(f"{self._topic} has no partitions yet, error code {described['error_code']}")
        return [TopicPartition(self._topic, each["partition"]) for each in described["partitions"]]

    async def _read(self, kafka: Any) -> None:
        count = follower_messages_total.labels(self._topic)
        while True:
            fetched = await kafka.getmany(timeout_ms=FETCH_WAIT_MS, max_records=BATCH_MESSAGES_MAX)
            for partition, records in fetched.items():
                self._handle([received(record) for record in records])
                self._positions[partition] = records[-1].offset + 1
                count.inc(len(records))
            await asyncio.sleep(0)  # getmany does not wait while it has messages, and whoever sends them on needs turns

    async def _look(self, kafka: Any) -> None:
        """Fails when the broker does not answer: a fetch of aiokafka's would not say so."""
        lag = follower_lag_messages.labels(self._topic)
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            async with asyncio.timeout(ANSWER_SECONDS):
                ends = await kafka.end_offsets(list(self._positions))
            lag.set(sum(max(0, end - self._positions[partition]) for partition, end in ends.items()))
