"""Following a whole topic without a group."""

import asyncio
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from aiokafka import TopicPartition

from services.common import stream
from services.common.follower import Follower
from services.common.publisher import Publisher
from services.common.stream import Message, Received, StreamError
from tests.faults.waiting import eventually


@dataclass
class Reader:
    """What a follower was handed."""

    values: list[bytes] = field(default_factory=list)
    losses: int = 0
    fails: int = 0

    def handle(self, messages: Sequence[Received]) -> None:
        if self.fails:
            self.fails -= 1
            raise RuntimeError("planted")
        self.values += [message.value for message in messages]

    def lost(self) -> None:
        self.losses += 1

    async def has(self, *values: bytes) -> None:
        async def so() -> bool:
            return set(values) <= set(self.values)

        await eventually(so, f"{values} have come")


@pytest.fixture
async def topic(kafka_url: str) -> str:
    name = f"test.{secrets.token_hex(4)}"
    await stream.ensure_topic(kafka_url, name)
    return name


@pytest.fixture
async def publisher(kafka_url: str) -> AsyncIterator[Publisher]:
    async with Publisher(kafka_url, client_id="test") as made:
        yield made


@asynccontextmanager
async def running(follower: Follower) -> AsyncIterator[None]:
    """At work, from known positions."""
    task = asyncio.create_task(follower.run())

    async def at_work() -> bool:
        return follower.placed and follower.answers

    await eventually(at_work, "it follows")
    yield
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def keyed(*values: bytes) -> list[Message]:
    return [Message(value, value, []) for value in values]


async def test_it_begins_at_the_end_and_every_follower_has_every_message(
    kafka_url: str, topic: str, publisher: Publisher
) -> None:
    await publisher.publish(topic, keyed(b"before"))
    readers = [Reader(), Reader()]
    followers = [Follower(kafka_url, topic, handle=one.handle, lost=one.lost) for one in readers]
    async with running(followers[0]), running(followers[1]):
        values = [b"%d" % number for number in range(50)]
        await publisher.publish(topic, keyed(*values))
        for reader in readers:
            await reader.has(*values)
            assert sorted(reader.values) == sorted(values), "each once, and nothing from before"


async def test_what_was_published_while_it_had_no_consumer_comes_when_it_has_one_again(
    kafka_url: str, topic: str, publisher: Publisher
) -> None:
    reader = Reader()
    follower = Follower(kafka_url, topic, handle=reader.handle, lost=reader.lost)
    async with running(follower):
        await publisher.publish(topic, keyed(b"1"))
        await reader.has(b"1")
    await publisher.publish(topic, keyed(b"2", b"3"))
    follower.answers = False
    async with running(follower):
        await reader.has(b"2", b"3")
    assert sorted(reader.values) == [b"1", b"2", b"3"]
    assert reader.losses == 0


async def test_a_topic_that_the_broker_does_not_know_yet_is_waited_for_and_not_followed_without_partitions(
    kafka_url: str,
) -> None:
    reader = Reader()
    follower = Follower(kafka_url, f"test.{secrets.token_hex(4)}", handle=reader.handle, lost=reader.lost)
    with pytest.raises(StreamError, match="has no partitions yet"):
        await follower._partitions()  # before `run` has made sure that there is one
    async with running(follower):
        assert len(follower._positions) == stream.PARTITIONS


async def test_a_failure_nobody_foresaw_skips_no_message(kafka_url: str, topic: str, publisher: Publisher) -> None:
    reader = Reader(fails=1)
    follower = Follower(kafka_url, topic, handle=reader.handle, lost=reader.lost)
    async with running(follower):
        await publisher.publish(topic, keyed(b"1", b"2"))
        await reader.has(b"1", b"2")


async def test_positions_that_do_not_exist_any_more_are_told_and_it_begins_at_the_end(
    kafka_url: str, topic: str, publisher: Publisher
) -> None:
    reader = Reader()
    follower = Follower(kafka_url, topic, handle=reader.handle, lost=reader.lost)
    await publisher.publish(topic, keyed(b"before"))
    follower._positions = {TopicPartition(topic, number): 1_000_000 for number in range(stream.PARTITIONS)}
    async with running(follower):

        async def told() -> bool:
            return reader.losses > 0 and follower.answers

        await eventually(told, "the loss is told")
        await publisher.publish(topic, keyed(b"after"))
        await reader.has(b"after")
    assert (reader.losses, reader.values) == (1, [b"after"])
