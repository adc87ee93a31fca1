"""Members of a consumer group in this process, and what one sees of them."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CommitFailedError
from prometheus_client import REGISTRY

from services.common.consumer import STUCK_AFTER_SECONDS, Consumer
from services.common.handle import Fill, Handle
from services.common.stream import PARTITIONS
from tests.faults.waiting import eventually

STOP_SECONDS = 15.0  # a test that fails may have left a batch that never ends


def metric(name: str, **labels: str) -> float:
    """A sample of this process's metrics, 0 when there is none."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


class Group:
    """A group of its own, whose members all handle in the same way unless told otherwise."""

    def __init__(
        self, kafka_url: str, topics: Sequence[str], handle: Handle, *, name: str = "", fill: Fill | None = None
    ) -> None:
        self.name = name or f"test-{secrets.token_hex(4)}"
        self.kafka_url = kafka_url
        self._topics = topics
        self._handle = handle
        self._fill = fill

    @asynccontextmanager
    async def member(
        self, handle: Handle | None = None, *, stuck_after_seconds: float = STUCK_AFTER_SECONDS
    ) -> AsyncIterator["asyncio.Task[None]"]:
        """A member from here to the end of the block, when it is stopped as SIGTERM stops it."""
        consumer = Consumer(
            self.kafka_url,
            group=self.name,
            topics=self._topics,
            handle=handle or self._handle,
            fill=self._fill,
            stuck_after_seconds=stuck_after_seconds,
        )
        task = asyncio.create_task(consumer.run())
        try:
            yield task
            if task.done() and not task.cancelled():
                task.result()
        finally:
            task.cancel()
            await asyncio.wait([task], timeout=STOP_SECONDS)

    async def committed(self) -> dict[int, int]:
        """The offsets of the first topic that the group has committed, but for those it has not moved from 0."""
        async with self._client() as client:
            found = {}
            for number in range(PARTITIONS):
                offset = await client.committed(TopicPartition(self._topics[0], number))
                if offset:
                    found[number] = offset
            return found

    async def ends(self) -> dict[int, int]:
        """The ends of the first topic's partitions, but for those that are empty."""
        async with self._client() as client:
            found = await client.end_offsets([TopicPartition(self._topics[0], number) for number in range(PARTITIONS)])
        return {partition.partition: end for partition, end in found.items() if end}

    async def rewind(self) -> None:
        """The group, which has no member now, begins at the topics' beginnings again."""
        async with self._client() as client:
            partitions = [TopicPartition(topic, number) for topic in self._topics for number in range(PARTITIONS)]
            client.assign(partitions)

            async def rewound() -> bool:
                try:
                    await client.commit(dict.fromkeys(partitions, 0))
                except CommitFailedError:  # who could not say goodbye is a member until its session ends
                    return False
                return True

            await eventually(rewound, "a group without members", every=0.2)

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[Any]:
        client = AIOKafkaConsumer(bootstrap_servers=self.kafka_url, group_id=self.name, enable_auto_commit=False)
        await client.start()

        async def knows_the_broker() -> bool:  # who has just come back names none, and aiokafka then fails an assertion
            await client.topics()
            return bool(client._client.cluster.brokers())

        try:
            await eventually(knows_the_broker, "Kafka names its broker")
            yield client
        finally:
            await client.stop()
