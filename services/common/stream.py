"""Kafka: topics, messages, and a reader of a topic.

How to send to one: `publisher.py`; how to consume one into a database: `consumer.py`.
"""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic, RecordsToDelete
from aiokafka.errors import BrokerResponseError, KafkaError, UnknownError, for_code

from services.contracts.envelope import COMPACTED_TOPICS

MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024  # 2,000 lines of long names
DEAD_LETTER_BYTES_MAX: Final = 64 * 1024  # what a dead letter may have over the message that it was
PARTITIONS: Final = 12  # fixed within a major version of a topic: the key's partition must not move
REPLICAS: Final = 3  # where there are as many brokers; one broker promises nothing about the loss of its disk
RETENTION_MS: Final = 7 * 24 * 3600 * 1000
DEAD_LETTERS_RETENTION_MS: Final = 30 * 24 * 3600 * 1000  # a release that understands them has to be written first
REQUEST_TIMEOUT_MS: Final = 10_000
_DEAD_LETTERS: Final = ".dlq"
_REDELIVERY: Final = ".redelivery."
PUBLISH_TIMEOUT_SECONDS: Final = 15.0  # aiokafka has none of its own; a little over its request time-out


class StreamError(Exception):
    """Kafka did not take it, or nobody knows: publish it again with a new Publisher."""


class RefusedError(StreamError):
    """A broker answers, and refuses what it was asked: as a missing right, or a name that no topic may have."""


class UnpublishableError(Exception):
    """No broker will ever take this message."""


@dataclass(slots=True)  # not frozen: that doubles what making one costs, and the relay makes one for each event
class RawMessage:
    """Whatever a topic may have, from whoever: as a dead letter keeps it."""

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


@dataclass(slots=True)
class Message(RawMessage):
    """What we send to a topic; messages of one key keep their order."""

    key: bytes
    value: bytes


def check_size(message: Message) -> None:
    """UnpublishableError when `message` is more than a topic takes."""
    size = len(message.value) + len(message.key)
    if size > MESSAGE_BYTES_MAX // 2:  # headers are short, and counted where that can matter
        size += sum(map(len, chain.from_iterable(message.headers)))
        if size > MESSAGE_BYTES_MAX - 1024:  # room for the record's and the batch's own fields
            raise UnpublishableError(f"{size} bytes are more than the {MESSAGE_BYTES_MAX} of a topic")


async def ensure_topic(kafka_url: str, topic: str) -> None:
    """`topic` exists. StreamError when no broker answers."""
    async with _administering(kafka_url) as admin:
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


async def topics(kafka_url: str) -> list[str]:
    """The names of all topics. StreamError."""
    async with _administering(kafka_url) as admin:
        return sorted(await admin.list_topics())


async def delete_before(kafka_url: str, offsets: Mapping[tuple[str, int], int]) -> None:
    """What stands before the offset of each (topic, partition) is gone. StreamError."""
    if not offsets:
        return
    async with _administering(kafka_url) as admin:
        await admin.delete_records(
            {TopicPartition(*where): RecordsToDelete(before_offset=offset) for where, offset in offsets.items()},
            timeout_ms=REQUEST_TIMEOUT_MS,
        )


def stream_error(error: Exception) -> StreamError:
    """What `error` of aiokafka, of a socket or of a time-out is to us; an answer that another try may change is none.

    UnknownError is Kafka's 500.
    """
    answered = isinstance(error, BrokerResponseError) and not (error.retriable or isinstance(error, UnknownError))
    return (RefusedError if answered else StreamError)(repr(error))


@asynccontextmanager
async def _administering(kafka_url: str) -> AsyncIterator[Any]:
    """A client, bounded in time. StreamError for whatever it raises."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_url, request_timeout_ms=REQUEST_TIMEOUT_MS)
    try:
        async with asyncio.timeout(PUBLISH_TIMEOUT_SECONDS):
            await admin.start()
            yield admin
    except (KafkaError, OSError, TimeoutError) as error:
        raise stream_error(error) from error
    finally:
        await admin.close()


def dead_letter_topic(topic: str) -> str:
    """Where messages of `topic` go that a consumer of it does not understand."""
    return f"{topic}{_DEAD_LETTERS}"


def redelivery_topic(topic: str, group: str) -> str:
    """Where `group` gets its dead letters of `topic` from, when they are redelivered."""
    return f"{topic}{_REDELIVERY}{group}"


def topic_config(topic: str) -> dict[str, str]:
    """What `topic` is made with beside its partitions and replicas."""
    is_dead, again = topic.endswith(_DEAD_LETTERS), _REDELIVERY in topic
    bytes_max = MESSAGE_BYTES_MAX + (DEAD_LETTER_BYTES_MAX if is_dead or again else 0)
    retention_ms = DEAD_LETTERS_RETENTION_MS if is_dead else RETENTION_MS
    kept = {"cleanup.policy": "compact"} if topic in COMPACTED_TOPICS else {"retention.ms": str(retention_ms)}
    return {"max.message.bytes": str(bytes_max), **kept}


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


async def until_end(kafka_url: str, topic: str) -> AsyncIterator[Any]:
    """The records of `topic` that are there when it is called, as aiokafka gives them. StreamError."""
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=kafka_url,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=MESSAGE_BYTES_MAX,
    )
    try:
        async with asyncio.timeout(PUBLISH_TIMEOUT_SECONDS):
            await consumer.start()
            partitions = consumer.assignment()
            ends = await consumer.end_offsets(partitions)
            beginnings = await consumer.beginning_offsets(partitions)
        left = {partition for partition in partitions if beginnings[partition] < ends[partition]}
        while left:
            async with asyncio.timeout(PUBLISH_TIMEOUT_SECONDS):
                partition, records = await _some(consumer, left)
            for record in records:
                if record.offset < ends[partition]:
                    yield record
            if records[-1].offset + 1 >= ends[partition]:
                left.discard(partition)
    except (KafkaError, OSError, TimeoutError) as error:
        raise StreamError(repr(error)) from error
    finally:
        await consumer.stop()


async def _some(consumer: Any, partitions: Collection[TopicPartition]) -> tuple[TopicPartition, Sequence[Any]]:
    """The next records of one of `partitions`."""
    while True:
        for partition, records in (await consumer.getmany(*partitions, timeout_ms=500, max_records=1)).items():
            return partition, records


def received(record: Any) -> Received:
    """A record of aiokafka's, as the rest of us knows it."""
    headers = dict(record.headers)
    return Received(record.partition, record.offset, record.key, record.value or b"", headers, record.timestamp)


async def _received(consumer: Any) -> AsyncIterator[Received]:
    async for record in consumer:
        yield received(record)
