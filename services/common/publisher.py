"""Kafka: a producer that is thrown away at the first error, behind the breaker of the process that sends."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from itertools import zip_longest
from struct import unpack
from typing import Any, Final, Self

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from services.common import stream
from services.common.breaker import Breaker, BreakerOpenError
from services.common.stream import (
    DEAD_LETTER_BYTES_MAX,
    MESSAGE_BYTES_MAX,
    RawMessage,
    RefusedError,
    StreamError,
    ensure_topic,
    stream_error,
)

BATCH_BYTES_MAX: Final = 256 * 1024
# One is enough: it is all brokers refusing a connection, or what aiokafka has tried again and again for 15 seconds.
FAILURES: Final = 1
RESET_SECONDS: Final = 1.0  # the longest pause of a relay: events are to flow within five seconds of Kafka's return
_SEED, _FACTOR, _WORD = 0x9747B28C, 0x5BD1E995, 0xFFFFFFFF  # of murmur2

log = structlog.get_logger()


class LeftAloneError(StreamError):
    """The breaker of Kafka is open: nothing was sent, and it may be worth another try in `retry_after` seconds."""

    def __init__(self, error: BreakerOpenError) -> None:
        super().__init__(str(error))
        self.retry_after = error.retry_after


class TooLargeError(RefusedError):
    """The broker refuses a batch for its size, with all of `messages`, as it would when it is sent again."""

    def __init__(self, messages: Sequence[RawMessage]) -> None:
        super().__init__("the broker refuses it for its size")
        self.messages = messages


def breaker() -> Breaker:
    """The breaker of Kafka: one for a process, for all that it publishes. What a broker refuses is an answer."""
    return Breaker(
        "kafka",
        deadline_seconds=stream.PUBLISH_TIMEOUT_SECONDS,
        failures=FAILURES,
        reset_seconds=RESET_SECONDS,
        healthy=(RefusedError, TypeError, ValueError),  # the last two are of what cannot be encoded: our fault
    )


class Publisher:
    """An idempotent producer (acks=all). After any error it must be closed: aiokafka may be wedged for ever.

    `kafka` is the process's breaker; a program that has one publisher at a time can do without.
    """

    def __init__(
        self,
        kafka_url: str,
        *,
        client_id: str,
        topics: Sequence[str] = (),
        kafka: Breaker | None = None,
        batch_bytes_max: int = BATCH_BYTES_MAX,
    ) -> None:
        self._kafka_url, self._topics = kafka_url, topics
        self._breaker = kafka or breaker()
        self._producer = AIOKafkaProducer(
            bootstrap_servers=kafka_url,
            client_id=client_id,
            acks="all",
            enable_idempotence=True,
            compression_type="lz4",
            linger_ms=0,
            max_batch_size=batch_bytes_max,  # a message that is larger has a batch to itself
            max_request_size=MESSAGE_BYTES_MAX + DEAD_LETTER_BYTES_MAX,
            request_timeout_ms=stream.REQUEST_TIMEOUT_MS,
        )
        self._unsure = 0  # of what was handed over, that of which nobody knows

    async def __aenter__(self) -> Self:
        """Connected, and `topics` exist. StreamError when no broker answers, or Kafka is left alone."""
        try:
            await self._called(self._start)
        except StreamError:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._unsure:
            await self._abandon()
        await self._stop()

    async def publish(self, topic: str, messages: Sequence[RawMessage]) -> None:
        """All of `messages` are on Kafka, in order per key. StreamError when that is not known for all of them.

        It may be called again before it has ended, with messages that have no key in common with these.
        """

        async def send() -> None:
            self._unsure += 1
            partitions = sorted(await self._producer.partitions_for(topic))
            # One batch of each partition at a time: behind one that fails nothing of its keys may go.
            for at_once in zip_longest(*self._batches(messages, partitions).values()):
                await self._send(topic, [batch for batch in at_once if batch is not None])
            self._unsure -= 1

        await self._called(send)

    async def _called(self, call: Callable[[], Awaitable[None]]) -> None:
        """It was, by the breaker, within its deadline. StreamError; LeftAloneError when it was not called."""

        async def told() -> None:
            try:
                await call()
            except (KafkaError, OSError) as error:
                raise stream_error(error) from error

        try:
            await self._breaker.call(told)
        except BreakerOpenError as error:
            raise LeftAloneError(error) from error
        except TimeoutError as error:
            raise StreamError("no answer in time") from error

    async def _start(self) -> None:
        for topic in self._topics:
            await ensure_topic(self._kafka_url, topic)
        await self._producer.start()

    def _batches(self, messages: Sequence[RawMessage], partitions: list[int]) -> dict[int, list["_Batch"]]:
        """`messages` by partition. Made here, as `send` of aiokafka costs thrice as much, mostly for its futures."""
        found: dict[int, list[_Batch]] = defaultdict(list)
        for message in messages:
            partition = partition_of(message.key, partitions)
            batches = found[partition]
            if not batches or not batches[-1].add(message):
                batches.append(_Batch(partition, self._producer.create_batch()))
                batches[-1].add(message)  # the first always fits
        return found

    async def _send(self, topic: str, batches: Sequence["_Batch"]) -> None:
        sent = [await self._producer.send_batch(one.builder, topic, partition=one.partition) for one in batches]
        ends = await asyncio.gather(*sent, return_exceptions=True)
        for batch, end in zip(batches, ends, strict=True):
            if isinstance(end, (MessageSizeTooLargeError, RecordListTooLargeError)):
                raise TooLargeError(batch.messages)
        for end in ends:
            if isinstance(end, BaseException):
                raise end

    async def _abandon(self) -> None:
        """It sends nothing more. Its own stop would first send what is left, for as long as the broker is away.

        An idempotent producer tries for ever: one that is left alone comes back with its old messages long after the
        next producer has sent them. aiokafka has no public way to drop them.
        """
        sending = self._producer._sender.sender_task
        while sending is not None and not sending.done():
            sending.cancel()  # once for itself, and once for each request that it waits for
            await asyncio.wait([sending], timeout=0.1)
        waiting = self._producer._message_accumulator
        # Those that were about to be sent again, too: when they fail, they are looked for among the pending ones.
        waiting._pending_batches.update(batch for batches in waiting._batches.values() for batch in batches)
        abandoned = list(waiting._pending_batches)
        waiting.fail_all(KafkaError("abandoned"))
        for batch in abandoned:
            batch._drain_waiter.exception()  # seen; nobody waits for it, and asyncio would log each

    async def _stop(self) -> None:
        try:
            async with asyncio.timeout(2.0):
                await self._producer.stop()
        except (KafkaError, OSError, TimeoutError) as error:
            log.warning("stream.producer_not_stopped", error=repr(error))


class _Batch:
    """Messages of one partition, in their order."""

    __slots__ = ("builder", "messages", "partition")

    def __init__(self, partition: int, builder: Any) -> None:
        self.partition = partition
        self.builder = builder
        self.messages: list[RawMessage] = []

    def add(self, message: RawMessage) -> bool:
        """It is the last of the batch; False when there is no room."""
        taken = self.builder.append(timestamp=None, key=message.key, value=message.value, headers=list(message.headers))
        if taken is None:
            return False
        self.messages.append(message)
        return True


def partition_of(key: bytes | None, partitions: Sequence[int]) -> int:
    """Where Kafka's own clients send `key`: murmur2 of it, as a positive number; without a key to any of `partitions`.

    As aiokafka does, in half its time, which is a tenth of what an event costs the relay.
    """
    if key is None:
        return random.choice(partitions)  # noqa: S311 # no secret
    whole = len(key) & ~3
    hashed = _SEED ^ len(key)
    for word in unpack(f"<{whole // 4}I", key[:whole]):
        mixed = word * _FACTOR & _WORD
        hashed = hashed * _FACTOR & _WORD ^ (mixed ^ mixed >> 24) * _FACTOR & _WORD
    if len(key) > whole:
        hashed = (hashed ^ int.from_bytes(key[whole:], "little")) * _FACTOR & _WORD
    hashed = (hashed ^ hashed >> 13) * _FACTOR & _WORD
    return partitions[((hashed ^ hashed >> 15) & 0x7FFFFFFF) % len(partitions)]
