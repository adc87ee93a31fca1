"""A topic, read as a consumer that begins at its beginning would."""

from collections import defaultdict
from dataclasses import dataclass, field

from aiokafka import AIOKafkaConsumer

from services.common.stream import MESSAGE_BYTES_MAX


@dataclass
class Read:
    """What a topic has, in its order per key: versions as they stand there, and their bytes."""

    versions: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    events: dict[tuple[str, int], set[tuple[str, bytes]]] = field(default_factory=lambda: defaultdict(set))
    published_ms: dict[tuple[str, int], int] = field(default_factory=dict)  # when each was first there, Unix time
    messages: int = 0

    @property
    def duplicates(self) -> int:
        """Messages that say what one before them said."""
        return self.messages - len(self.events)

    def first_seen(self, key: str) -> list[int]:
        """The versions of `key` in the order in which each was first there."""
        return list(dict.fromkeys(self.versions[key]))


async def read_topic(kafka_url: str, topic: str) -> Read:
    """All messages that are in `topic` now."""
    read = Read()
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=kafka_url,
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_partition_fetch_bytes=MESSAGE_BYTES_MAX,
    )
    await consumer.start()
    try:
        ends = await consumer.end_offsets(consumer.assignment())
        while any([await consumer.position(partition) < end for partition, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=500)).values():
                for record in records:
                    headers = dict(record.headers)
                    key, version = record.key.decode(), int(headers["ce_sequence"])
                    read.messages += 1
                    read.versions[key].append(version)
                    read.published_ms.setdefault((key, version), record.timestamp)
                    read.events[key, version].add((headers["ce_id"].decode(), record.value))
    finally:
        await consumer.stop()
    return read
