"""A consumer group's member: nothing is lost, and nothing overtakes, whatever fails between Kafka and the database."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest

from services.common import consumer
from services.common.db_errors import LockTimeoutError, TransientError
from services.common.stream import MESSAGE_BYTES_MAX, Received
from services.embedded.supervisor import Stack
from tests.consuming import Group, metric
from tests.faults.waiting import eventually
from tests.integration.common.conftest import Ledger, numbered
from tests.integration.relay.conftest import kafka_beside
from tests.product_events import publish

KEYS = [f"key-{number}" for number in range(24)]  # on most partitions


async def _has(ledger: Ledger, messages: int) -> None:
    async def reached() -> bool:
        return await ledger.count() >= messages

    await eventually(reached, f"{messages} messages applied")


async def _committed(group: Group, messages: int) -> None:
    async def reached() -> bool:
        return sum((await group.committed()).values()) == messages

    await eventually(reached, f"the offsets of {messages} messages")


async def test_offsets_are_committed_after_the_handler_has_and_not_before(
    group: Group, topic: str, ledger: Ledger
) -> None:
    entered, may_go_on = asyncio.Event(), asyncio.Event()

    async def handle(topic: str, messages: Sequence[Received]) -> Mapping[str, int]:
        entered.set()
        await may_go_on.wait()
        return await ledger.handle(topic, messages)

    await publish(group.kafka_url, topic, numbered("one", 1, 2, 3))
    async with group.member(handle):
        await asyncio.wait_for(entered.wait(), 60)
        assert await group.committed() == {}
        may_go_on.set()
        await _committed(group, 3)
    assert await ledger.versions("one") == [1, 2, 3]


async def test_what_comes_of_several_partitions_is_handled_at_once_and_its_offsets_committed_together(
    group: Group, topic: str, ledger: Ledger
) -> None:
    version, at_once = 0, 0

    async def handle(topic: str, messages: Sequence[Received]) -> Mapping[str, int]:
        nonlocal at_once
        at_once = max(at_once, len({message.partition for message in messages}))
        return await ledger.handle(topic, messages)

    async def several() -> bool:
        nonlocal version
        version += 1
        await publish(group.kafka_url, topic, [one for key in KEYS for one in numbered(key, version)])
        return at_once > 1

    async with group.member(handle):
        await eventually(several, "messages of several partitions in one call", every=0.2)
        await _committed(group, version * len(KEYS))
    for key in KEYS:
        assert await ledger.versions(key) == list(range(1, version + 1))


async def test_what_was_committed_without_its_offset_comes_again_and_changes_nothing(
    group: Group, topic: str, ledger: Ledger
) -> None:
    async def dies_after_commit(topic: str, messages: Sequence[Received]) -> Mapping[str, int]:
        await ledger.handle(topic, messages)
        raise MemoryError

    await publish(group.kafka_url, topic, numbered("one", 1, 2, 3))
    with pytest.raises(MemoryError):
        async with group.member(dies_after_commit) as running:
            await asyncio.wait([running], timeout=15)
    assert await group.committed() == {}
    await publish(group.kafka_url, topic, numbered("one", 4))
    async with group.member():
        await _committed(group, 4)
    assert [version for _, version in ledger.handled] == [1, 2, 3, 1, 2, 3, 4]
    assert await ledger.versions("one") == [1, 2, 3, 4]


async def test_a_stop_in_the_middle_of_a_batch_waits_for_its_offsets(group: Group, topic: str, ledger: Ledger) -> None:
    entered, may_go_on = asyncio.Event(), asyncio.Event()

    async def handle(topic: str, messages: Sequence[Received]) -> Mapping[str, int]:
        entered.set()
        await may_go_on.wait()
        return await ledger.handle(topic, messages)

    await publish(group.kafka_url, topic, numbered("one", 1, 2))
    async with group.member(handle) as running:
        await asyncio.wait_for(entered.wait(), 60)
        for _ in range(3):
            running.cancel()
            await asyncio.sleep(0)
        assert not running.done()
        may_go_on.set()
        await asyncio.wait([running], timeout=15)
        assert running.cancelled()
    assert await group.committed() == dict.fromkeys(await group.committed(), 2) != {}
    assert await ledger.versions("one") == [1, 2]


@pytest.mark.parametrize("error", [TransientError("connection"), LockTimeoutError("inventory")])
async def test_a_failure_in_passing_is_tried_again_in_order_and_holds_up_nobody_else(
    group: Group, topic: str, ledger: Ledger, error: Exception
) -> None:
    failures = 0

    async def handle(topic: str, messages: Sequence[Received]) -> Mapping[str, int]:
        nonlocal failures
        if b"one" in {message.key for message in messages} and failures < 5:
            failures += 1
            raise error
        return await ledger.handle(topic, messages)

    before = metric("consumer_failures_total", part="postgres")
    await publish(group.kafka_url, topic, numbered("one", 1, 2) + numbered("two", 1))
    async with group.member(handle):
        await publish(group.kafka_url, topic, numbered("one", 3, 4) + numbered("two", 2))
        await _committed(group, 6)
    assert await ledger.versions("one") == [1, 2, 3, 4]
    assert await ledger.versions("two") == [1, 2]
    assert metric("consumer_failures_total", part="postgres") == before + 5


async def test_who_fails_for_longer_than_the_session_stays_in_the_group(
    group: Group, topic: str, ledger: Ledger
) -> None:
    failed: set[bytes | None] = set()
    taken: set[bytes | None] = set()
    well = False

    async def failing(topic: str, messages: Sequence[Received]) -> Mapping[str, int]:
        if not well:
            failed.update(message.key for message in messages)
            raise TransientError("connection")
        return await ledger.handle(topic, messages)

    async def other(topic: str, messages: Sequence[Received]) -> Mapping[str, int]:
        taken.update(message.key for message in messages)
        return await ledger.handle(topic, messages)

    version = 0

    async def publish_all() -> None:
        nonlocal version
        version += 1
        await publish(group.kafka_url, topic, [one for key in KEYS for one in numbered(key, version)])

    async with group.member(failing), group.member(other):

        async def both_have_some() -> bool:
            await publish_all()
            return bool(failed and taken)

        await eventually(both_have_some, "both have partitions", every=0.2)
        taken.clear()
        failed.clear()
        until = time.monotonic() + consumer.SESSION_TIMEOUT_MS / 1000 + 1
        while time.monotonic() < until:
            await publish_all()
            await asyncio.sleep(0.5)  # the time that passes is what is tested
        well = True
        await _committed(group, version * len(KEYS))
    assert failed
    assert taken
    assert not failed & taken, "a member that only waits has lost its partitions"
    for key in KEYS:
        assert await ledger.versions(key) == list(range(1, version + 1))


async def test_members_come_and_go_and_nothing_is_lost_or_overtaken(group: Group, topic: str, ledger: Ledger) -> None:
    rounds = 30
    over = asyncio.Event()

    async def stream() -> None:
        for version in range(1, rounds + 1):
            await publish(group.kafka_url, topic, [one for key in KEYS for one in numbered(key, version)])
        over.set()

    async with group.member():
        streaming = asyncio.create_task(stream())
        for _ in range(2):
            written = await ledger.count()
            async with group.member(), group.member():
                await _has(ledger, min(written + len(KEYS), rounds * len(KEYS)))
        await streaming
        await _committed(group, rounds * len(KEYS))
    for key in KEYS:
        assert await ledger.versions(key) == list(range(1, rounds + 1))


async def test_who_has_lost_its_partitions_in_a_batch_commits_no_offsets_and_does_no_harm(
    group: Group, topic: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer, "REBALANCE_TIMEOUT_MS", 1_000)  # how long the group waits for the first
    entered, may_go_on = asyncio.Event(), asyncio.Event()

    async def slow(topic: str, messages: Sequence[Received]) -> Mapping[str, int]:
        entered.set()
        await may_go_on.wait()
        return await ledger.handle(topic, messages)

    refused = metric("consumer_failures_total", part="commit")
    await publish(group.kafka_url, topic, numbered("one", 1, 2))
    async with group.member(slow):
        await asyncio.wait_for(entered.wait(), 60)
        async with group.member():
            await _has(ledger, 2)  # the second has taken over what the first still holds
            await publish(group.kafka_url, topic, numbered("one", 3))
            await _committed(group, 3)
            may_go_on.set()

            async def told() -> bool:
                return metric("consumer_failures_total", part="commit") > refused

            await eventually(told, "the first's commit is refused")
            await publish(group.kafka_url, topic, numbered("one", 4))
            await _committed(group, 4)
    assert await ledger.versions("one") == [1, 2, 3, 4]


async def test_the_largest_message_there_may_be_arrives(group: Group, topic: str, ledger: Ledger) -> None:
    large = b"x" * (MESSAGE_BYTES_MAX - 2048)
    await publish(group.kafka_url, topic, numbered("one", 1, 2, value=large) + numbered("one", 3))
    async with group.member():
        await _committed(group, 3)
    assert await ledger.versions("one") == [1, 2, 3]


async def test_lag_is_what_waits(group: Group, topic: str, ledger: Ledger) -> None:
    holding = True

    async def handle(topic: str, messages: Sequence[Received]) -> Mapping[str, int]:
        if holding:
            raise TransientError("connection")
        return await ledger.handle(topic, messages)

    async def lag(messages: float) -> None:
        async def told() -> bool:
            return metric("consumer_lag_messages", topic=topic) == messages

        await eventually(told, f"{messages} behind")

    await publish(group.kafka_url, topic, numbered("one", 1, 2, 3) + numbered("two", 1, 2))
    async with group.member(handle):
        await lag(5)
        holding = False
        await lag(0)
        assert metric("consumer_messages_total", topic=topic, outcome="next") == 5


@pytest.fixture
async def own_kafka(stack: Stack, tmp_path: Path) -> AsyncIterator[Stack]:
    """A Kafka that may be hurt."""
    async with kafka_beside(stack, tmp_path) as started:
        yield started
        started.send_signal("kafka", signal.SIGCONT)  # or it would not hear that it shall stop


async def test_it_goes_on_when_kafka_is_back(own_kafka: Stack, ledger: Ledger) -> None:
    kafka_url, topic = own_kafka.addresses.kafka, "test.away"
    group = Group(kafka_url, [topic], ledger.handle)
    own_kafka.send_signal("kafka", signal.SIGSTOP)  # away at the start
    async with group.member():
        own_kafka.send_signal("kafka", signal.SIGCONT)
        await publish(kafka_url, topic, numbered("one", 1))
        await _has(ledger, 1)
        await own_kafka.kill("kafka")
        await own_kafka.ready("kafka")
        await publish(kafka_url, topic, numbered("one", 2))
        await _has(ledger, 2)
    assert await ledger.versions("one") == [1, 2]
