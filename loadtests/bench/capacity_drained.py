"""When all that writes have left behind is done: told to the cache, published, and consumed by all groups."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError

from loadtests.bench.measure import VoidError
from loadtests.bench.stage import Connection
from services.common.stream import PARTITIONS
from services.contracts.envelope import ORDERS_TOPIC, PAYMENTS_TOPIC

GROUPS: Final = {"orders-projector": (ORDERS_TOPIC, PAYMENTS_TOPIC), "payments-worker": (ORDERS_TOPIC,)}
WITHIN_SECONDS: Final = 120.0
LOOK_SECONDS: Final = 0.2  # it costs the servers something itself
_WAITING: Final = """
SELECT EXISTS (SELECT FROM orders.outbox) OR EXISTS (SELECT FROM orders.invalidations)
    OR EXISTS (SELECT FROM payments.outbox)
"""


@dataclass(frozen=True)
class Drain:
    """Looks at the tables and at what the groups have committed."""

    connection: Connection
    admin: Any
    consumer: Any

    async def done(self, also: str = "SELECT TRUE") -> None:
        """Nothing waits any more, and `also` is true. VoidError when that takes too long."""
        try:
            async with asyncio.timeout(WITHIN_SECONDS):
                while not (await self.connection.fetchval(also) and await self._nothing_waits()):
                    await asyncio.sleep(LOOK_SECONDS)
        except TimeoutError:
            raise VoidError(f"something still waits after {WITHIN_SECONDS:g} s: {also}") from None

    async def published(self) -> dict[str, float]:
        """How many messages have ever been written to each topic (`messages …`)."""
        found = {}
        for topic in (ORDERS_TOPIC, PAYMENTS_TOPIC):
            ends = await self.consumer.end_offsets([TopicPartition(topic, number) for number in range(PARTITIONS)])
            found[f"messages {topic}"] = float(sum(ends.values()))
        return found

    async def _nothing_waits(self) -> bool:
        if await self.connection.fetchval(_WAITING):
            return False
        for group, topics in GROUPS.items():
            try:
                committed = await self.admin.list_consumer_group_offsets(group)
            except GroupCoordinatorNotAvailableError:
                return False  # a broker that has just started
            partitions = [TopicPartition(topic, number) for topic in topics for number in range(PARTITIONS)]
            ends = await self.consumer.end_offsets(partitions)
            if any(end and (p not in committed or committed[p].offset < end) for p, end in ends.items()):
                return False
        return True


@asynccontextmanager
async def draining(kafka_url: str, connection: Connection) -> AsyncIterator[Drain]:
    """For as long as the block."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka_url)
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka_url, enable_auto_commit=False)
    await admin.start()
    try:
        await consumer.start()
        try:
            yield Drain(connection, admin, consumer)
        finally:
            await consumer.stop()
    finally:
        await admin.close()
