"""The relay in this process, against real servers; the topic is shared, so tests look for their own orders in it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest
from aiokafka import AIOKafkaConsumer
from prometheus_client import REGISTRY

from services.common.db import Database
from services.common.stream import MESSAGE_BYTES_MAX, ensure_topic
from services.contracts.envelope import ORDERS_TOPIC
from services.embedded.room import free_port_base
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack
from services.relay import main
from services.relay.outbox import Outbox
from services.relay.outboxes import ORDERS
from services.relay.settings import RelaySettings
from tests.conftest import AsRole
from tests.faults.waiting import eventually

T = TypeVar("T")


def metric(name: str, **labels: str) -> float:
    """A sample of this process's metrics, 0 when there is none."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


@asynccontextmanager
async def kafka_beside(stack: Stack, home: Path) -> AsyncIterator[Stack]:
    """A Kafka of one's own beside the servers of `stack`."""
    settings = StackSettings(
        home=home / "kafka",
        port_base=free_port_base(),
        postgres_url=stack.addresses.postgres,
        valkey_url=stack.addresses.valkey,
    )
    async with Stack(settings, processes=(), durable=False) as started:
        yield started


@pytest.fixture
def settings(as_role: AsRole, valkey_url: str, kafka_url: str) -> RelaySettings:
    """Settings of outbox-relay on the test's database."""
    return RelaySettings(postgres_url=as_role("outbox_relay"), valkey_url=valkey_url, kafka_url=kafka_url)


@asynccontextmanager
async def relaying(
    settings: RelaySettings, *outboxes: Outbox, **changes: Any
) -> AsyncIterator[list[asyncio.Task[None]]]:
    """A relay of those outboxes (of orders, when none is named) as the process runs it; gives its tasks."""
    async with main.relaying(settings.model_copy(update=changes), outboxes or (ORDERS,)) as tasks:
        yield tasks
        assert not [task for task in tasks if task.done()], "a task of the relay has ended by itself"


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Database]:
    """A database to run statements on."""
    database = Database(url, application_name="test", size_max=2)
    await database.open()
    try:
        yield database
    finally:
        await database.close()


class Topic:
    """What comes to a topic from now on, kept by key."""

    def __init__(self, consumer: Any) -> None:
        self._consumer = consumer
        self.seen: dict[str, list[Any]] = {}

    async def of(self, order_id: str, events: int, *, seconds: float = 60) -> list[Any]:
        """The first so many records of an order."""

        async def arrived() -> bool:
            await self.poll()
            return len(self.seen.get(order_id, [])) >= events

        await eventually(arrived, f"{events} events of {order_id}", seconds=seconds)
        return self.seen[order_id][:events]

    async def poll(self) -> None:
        """What is there has been taken."""
        for records in (await self._consumer.getmany(timeout_ms=20)).values():
            for record in records:
                self.seen.setdefault(record.key.decode(), []).append(record)

    def versions(self, order_id: str) -> list[int]:
        """The versions of an order as they came."""
        return [int(dict(record.headers)["ce_sequence"]) for record in self.seen.get(order_id, [])]


@asynccontextmanager
async def listening(kafka_url: str, topic: str = ORDERS_TOPIC) -> AsyncIterator[Topic]:
    """The topic from its present end on."""
    await ensure_topic(kafka_url, topic)
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=kafka_url,
        auto_offset_reset="earliest",  # what comes while a killed broker is away is not to be missed
        enable_auto_commit=False,
        max_partition_fetch_bytes=MESSAGE_BYTES_MAX,
    )
    await consumer.start()
    try:
        await consumer.seek_to_end()
        for partition in consumer.assignment():
            await consumer.position(partition)
        yield Topic(consumer)
    finally:
        await consumer.stop()


@pytest.fixture
async def topic(kafka_url: str) -> AsyncIterator[Topic]:
    """The topic of the session's Kafka."""
    async with listening(kafka_url) as opened:
        yield opened
