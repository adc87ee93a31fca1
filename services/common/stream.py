"""Kafka: topics, a producer that is thrown away at the first error, and a reader of a topic.

How to consume a topic into a database: `consumer.py`.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final, Self

import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError, for_code

from services.contracts.envelope import COMPACTED_TOPICS

log = structlog.get_logger()

MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024  # 2,000 lines of long names
PARTITIONS: Final = 12  # fixed within a major version of a topic: the key's partition must not move
REPLICAS: Final = 3  # where there are as many brokers; one broker promises nothing about the loss of its disk
RETENTION_MS: Final = 7 * 24 * 3600 * 1000
BATCH_BYTES_MAX: Final = 256 * 1024
REQUEST_TIMEOUT_MS: Final = 10_000
PUBLISH_TIMEOUT_SECONDS: Final = 15.0  # aiokafka has none of its own; a little over its request time-out


class StreamError(Exception):
    """Kafka did not take it, or nobody knows: publish it again with a new Publisher."""


class UnpublishableError(Exception):
    """No broker will ever take this message."""


@dataclass(frozen=True, slots=True)
class Message:
    """What goes to a topic; messages of one key keep their order."""

    key: bytes
    value: bytes
    headers: Sequence[tuple[str, bytes]]


class Publisher:
    """An idempotent producer (acks=all). After any error it must be closed: aiokafka may be wedged for ever."""

    def __init__(self, kafka_url: str, *, client_id: str) -> None:
        self._producer = AIOKafkaProducer(
            bootstrap_servers=kafka_url,
            client_id=client_id,
            acks="all",
            enable_idempotence=True,
            compression_type="lz4",
            linger_ms=0,
            max_batch_size=BATCH_BYTES_MAX,
            max_request_size=MESSAGE_BYTES_MAX,
            request_timeout_ms=REQUEST_TIMEOUT_MS,
        )
        self._unsure = 0  # batches handed over of which nobody knows

    async def __aenter__(self) -> Self:
        """Connected. StreamError when no broker answers."""
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT_SECONDS):
                await self._producer.start()
        except (KafkaError, OSError, TimeoutError) as error:
            await self._stop()
            raise StreamError(repr(error)) from error
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._unsure:
            await self._abandon()
        await self._stop()

    async def publish(self, topic: str, messages: Sequence[Message]) -> None:
        """All of `messages` are on Kafka, in order per key. StreamError when that is not known for all of them.

        Batches may be published at the same time when they have no key in common.
        """
        self._unsure += 1
        try:
            async with asyncio.timeout(PUBLISH_TIMEOUT_SECONDS):
                sent = [
                    await self._producer.send(topic, value=m.value, key=m.key, headers=list(m.headers))
                    for m in messages
                ]
                await asyncio.gather(*sent)
        except (KafkaError, OSError, TimeoutError) as error:
            raise StreamError(repr(error)) from error
        self._unsure -= 1

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


def check_size(message: Message) -> None:
    """UnpublishableError when `message` is more than a topic takes."""
    size = len(message.value) + len(message.key) + sum(map(len, chain.from_iterable(message.headers)))
    if size > MESSAGE_BYTES_MAX - 1024:  # room for the record's and the batch's own fields
        raise UnpublishableError(f"{size} bytes are more than the {MESSAGE_BYTES_MAX} of a topic")


async def ensure_topic(kafka_url: str, topic: str) -> None:
    """`topic` exists. StreamError when no broker answers."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_url, request_timeout_ms=REQUEST_TIMEOUT_MS)
    try:
        async with asyncio.timeout(PUBLISH_TIMEOUT_SECONDS):
            await admin.start()
            brokers = (await admin.describe_cluster())["brokers"]
            wanted = NewTopic(
                topic,
                num_partitions=PARTITIONS,
                replication_factor=min(REPLICAS, len(brokers)),
                topic_configs=topic_config(topic),
            )
            response = await admin.create_topics([wanted])
            for _, code, *_rest in response.topic_errors:
                if code not in {0, 36}:  # 36: it exists
                    raise for_code(code)
    except (KafkaError, OSError, TimeoutError) as error:
        raise StreamError(repr(error)) from error
    finally:
        await admin.close()


def topic_config(topic: str) -> dict[str, str]:
    """What `topic` is made with beside its partitions and replicas."""
    kept = {"cleanup.policy": "compact"} if topic in COMPACTED_TOPICS else {"retention.ms": str(RETENTION_MS)}
    return {"max.message.bytes": str(MESSAGE_BYTES_MAX), **kept}


@dataclass(frozen=True, slots=True)
class Received:
    """A message as it was read."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes
    headers: dict[str, bytes]
    timestamp_ms: int


@asynccontextmanager
async def reading(
    kafka_url: str, topic: str, *, group: str | None = None, from_beginning: bool = False
) -> AsyncIterator[AsyncIterator[Received]]:
    """The messages of `topic` as they come. With a group, where it left off; offsets are committed as it goes."""
    options: dict[str, Any] = {"group_id": group} if group else {}
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=kafka_url,
        enable_auto_commit=bool(group),
        auto_offset_reset="earliest" if from_beginning else "latest",
        max_partition_fetch_bytes=MESSAGE_BYTES_MAX,
        fetch_max_wait_ms=100,
        **options,
    )
    try:
        try:
            await consumer.start()
        except (KafkaError, OSError) as error:
            raise StreamError(repr(error)) from error
        yield _received(consumer)
    finally:
        await consumer.stop()


def received(record: Any) -> Received:
    """A record of aiokafka's, as the rest of us knows it."""
    headers = dict(record.headers)
    return Received(record.partition, record.offset, record.key, record.value or b"", headers, record.timestamp)


async def _received(consumer: Any) -> AsyncIterator[Received]:
    async for record in consumer:
        yield received(record)
