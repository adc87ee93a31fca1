"""How far a member of a consumer group is: lag and age, asked of the broker, and whether it still moves at all."""

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from aiokafka import TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError
from prometheus_client import Gauge

from services.common.stream import Received, StreamError

LOOK_SECONDS: Final = 1.0
ANSWER_TIMEOUT_SECONDS: Final = 5.0  # of the broker, before it counts as away
consumer_lag_messages = Gauge(
    "consumer_lag_messages", "Messages not yet applied of the partitions this process has", ["topic"]
)
consumer_oldest_age_seconds = Gauge(
    "consumer_oldest_age_seconds",
    "Age of the oldest message fetched and not yet applied, 0 when there is none",
    ["topic"],
)
consumer_waiting_partitions = Gauge(
    "consumer_waiting_partitions", "Partitions whose next message is tried again: PostgreSQL away, a gap", ["topic"]
)


class NoProgressError(Exception):
    """Messages wait and nothing happens. aiokafka can be stuck for ever, a handler too: only a new process helps."""


class Progress:
    """What this member has of each partition, and when it last did something with it."""

    def __init__(self, kafka: Any, topics: Sequence[str], *, stuck_after_seconds: float) -> None:
        self._kafka = kafka
        self._topics = topics
        self._stuck_after_seconds = stuck_after_seconds
        self._first: dict[TopicPartition, tuple[int, int]] = {}  # not yet applied: its offset, its time in ms
        self._alive_at: dict[TopicPartition, float] = {}
        self._joined = False
        self._joining_since = self._heard_at = time.monotonic()
        self.waiting: set[TopicPartition] = set()
        self.forget()

    def forget(self) -> None:
        """It has no partitions, until it has joined again."""
        self._first.clear()
        self._alive_at.clear()
        self.waiting.clear()
        self._joined, self._joining_since = False, time.monotonic()
        self._tell(Counter(), {})

    def joined(self) -> None:
        """It is a member, if perhaps without partitions."""
        self._joined = True

    def fetched(self, partition: TopicPartition, first: Received) -> None:
        """`first` is the next to apply."""
        self._first[partition] = (first.offset, first.timestamp_ms)

    def trying_again(self, partition: TopicPartition, at: float) -> None:
        """It failed and is tried again at `at`, of time.monotonic(): until then nothing is expected of it."""
        self.waiting.add(partition)
        self._alive_at[partition] = at

    def settled(self, partition: TopicPartition, last: Received) -> None:
        """Something was done: all is applied up to and with `last`."""
        self._alive_at[partition] = time.monotonic()
        end = self._kafka.highwater(partition)
        if end is not None and last.offset + 1 < end:
            self._first[partition] = (last.offset + 1, last.timestamp_ms)  # the next one is hardly younger
        else:
            self._first.pop(partition, None)

    async def watch(self) -> None:
        """Until cancelled. NoProgressError when for too long nothing was done where the broker has messages waiting.

        A message that is tried again and again is something done. StreamError when the broker tells nothing.
        """
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT_SECONDS):
                    lags = await self._lags()
            except (KafkaError, OSError, TimeoutError, IllegalStateError) as error:
                self._excuse(error)
                continue
            self._heard_at = time.monotonic()
            self._judge(lags)
            lag: Counter[str] = Counter()
            for partition, messages in lags.items():
                lag[partition.topic] += messages
            self._tell(lag, self._ages())

    async def _lags(self) -> dict[TopicPartition, int]:
        """Of every partition it has, by what the broker says now."""
        assigned = self._kafka.assignment()
        ends = await self._kafka.end_offsets({*assigned, *(TopicPartition(topic, 0) for topic in self._topics)})
        lags = {}
        for partition in assigned:
            first = self._first.get(partition)
            at = await self._kafka.position(partition) if first is None else first[0]
            lags[partition] = max(0, ends[partition] - at)
        return lags

    def _judge(self, lags: dict[TopicPartition, int]) -> None:
        now = time.monotonic()
        if not self._joined and now - self._joining_since > self._stuck_after_seconds:
            raise NoProgressError(f"it could not join its group for {now - self._joining_since:.0f} s")
        for partition, messages in lags.items():
            since = now - self._alive_at.setdefault(partition, now)
            if not messages:
                self._alive_at[partition] = now
            elif since > self._stuck_after_seconds:
                raise NoProgressError(
                    f"{messages} messages wait in partition {partition.partition} of {partition.topic},"
                    f" and nothing was done with them for {since:.0f} s"
                )

    def _excuse(self, error: Exception) -> None:
        """The broker is away, or partitions have just gone: who cannot know what waits is not stuck.

        StreamError when that lasts: it may be this client that is.
        """
        if time.monotonic() - self._heard_at > self._stuck_after_seconds:
            raise StreamError(f"the broker has not told its ends for {self._stuck_after_seconds:g} s: {error!r}")
        self._alive_at.clear()
        self._joining_since = time.monotonic()

    def _ages(self) -> dict[str, float]:
        ages: dict[str, float] = {}
        for partition, (_, timestamp_ms) in self._first.items():
            ages[partition.topic] = max(ages.get(partition.topic, 0.0), time.time() - timestamp_ms / 1000)
        return ages

    def _tell(self, lag: Counter[str], ages: dict[str, float]) -> None:
        for topic in self._topics:
            consumer_lag_messages.labels(topic).set(lag[topic])
            consumer_oldest_age_seconds.labels(topic).set(ages.get(topic, 0.0))
            waiting = sum(partition.topic == topic for partition in self.waiting)
            consumer_waiting_partitions.labels(topic).set(waiting)
