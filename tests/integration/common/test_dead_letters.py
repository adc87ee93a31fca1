"""Poison leaves its partition for the dead-letter topic, whole and with its reason, and comes back when told to."""

import asyncio
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path

import pytest

from services.common import dead_letters, member, stream
from services.common.dead_letters import DeadLetter
from services.common.handle import Handle, PoisonError
from services.common.stream import MESSAGE_BYTES_MAX, Message, RawMessage, Received
from services.embedded.supervisor import Stack
from tests.consuming import Group, metric
from tests.faults.waiting import eventually
from tests.integration.common.conftest import POISON, Ledger, numbered
from tests.integration.relay.conftest import kafka_beside
from tests.product_events import publish


async def _letters(group: Group, topic: str) -> list[DeadLetter]:
    return [letter async for letter in dead_letters.dead_letters(group.kafka_url, topic)]


async def _settled(group: Group, messages: int) -> None:
    async def reached() -> bool:
        return sum((await group.committed()).values()) == messages

    await eventually(reached, f"the offsets of {messages} messages")


async def _applied(ledger: Ledger, key: str, versions: list[int]) -> None:
    async def reached() -> bool:
        return await ledger.versions(key) == versions

    await eventually(reached, f"{versions} of {key} applied")


def _cured(ledger: Ledger) -> Handle:
    """The handler of the release that knows what the poison is."""

    async def handle(topic: str, messages: Sequence[Received]) -> Mapping[str, int]:
        known = [Received(m.partition, m.offset, m.key, b"{}", m.headers, m.timestamp_ms) for m in messages]
        return await ledger.handle(topic, known)

    return handle


async def test_poison_becomes_a_dead_letter_as_it_was_and_its_partition_goes_on(
    group: Group, topic: str, ledger: Ledger
) -> None:
    twice = [("note", b"first"), ("note", b"second"), ("ce_type", b"counted"), ("ce_sequence", b"%020d" % 2)]
    poison = Message(b"one", POISON, twice)
    keyless = RawMessage(None, b"\xff", [("raw", b"\xff")])
    empty = RawMessage(b"two", None, [("raw", b"\xff")])
    await publish(group.kafka_url, topic, [*numbered("one", 1), poison, *numbered("one", 3), keyless, empty])
    async with group.member():
        await _settled(group, 5)
    assert await ledger.versions("one") == [1, 3]
    found = {letter.reason: letter for letter in await _letters(group, topic)}
    letter, other = found["it is poison"], found["it has no key of 1 to 200 characters"]
    assert found["it has no ce_type"].message.value is None
    assert letter.topic == f"{topic}.dlq"
    assert letter.group == group.name
    assert letter.origin[0] == topic
    assert letter.origin[2] == "1"
    assert letter.dead_at
    assert (letter.message.key, letter.message.value) == (b"one", POISON)
    assert [header for header in letter.message.headers if not header[0].startswith("dlq_")] == twice
    assert (other.message.key, other.message.value) == (None, b"\xff")
    assert metric("consumer_messages_total", topic=topic, outcome="dead_letter") == 3


async def test_the_largest_message_becomes_a_dead_letter_too(group: Group, topic: str, ledger: Ledger) -> None:
    large = b"x" * (MESSAGE_BYTES_MAX - 2048)

    async def refuses(topic: str, messages: Sequence[Received]) -> Mapping[str, int]:
        for message in messages:
            if len(message.value) > 10:
                raise PoisonError(message, "\ud800 too much to bear " * 1000)
        return await ledger.handle(topic, messages)

    await publish(group.kafka_url, topic, numbered("one", 1, value=large) + numbered("one", 2))
    async with group.member(refuses):
        await _settled(group, 2)
        assert [letter.message.value for letter in await _letters(group, topic)] == [large]
        await dead_letters.redeliver(group.kafka_url, topic)
        again = metric("consumer_messages_total", topic=f"{topic}.redelivery.{group.name}", outcome="dead_letter")
        assert again == 0

        async def dead_again() -> bool:
            return len(await _letters(group, topic)) == 1

        await eventually(dead_again, "it came, and is poison still")
    (letter,) = await _letters(group, topic)
    assert letter.origin == (topic, letter.origin[1], "0"), "where it came from at first"


async def test_redelivered_it_is_applied_by_who_understands_it_now_and_by_no_other_group(
    group: Group, topic: str, ledger: Ledger
) -> None:
    other = Group(group.kafka_url, [topic], _never)
    await publish(group.kafka_url, topic, numbered("one", 1) + numbered("two", 1, 2, value=POISON))
    async with group.member():
        await _settled(group, 3)
    async with group.member(_cured(ledger)):
        assert len(await dead_letters.redeliver(group.kafka_url, topic)) == 2
        await _applied(ledger, "two", [1, 2])
        assert await _letters(group, topic) == []
        assert await dead_letters.redeliver(group.kafka_url, topic) == [], "safe to run twice"
    assert await ledger.versions("one") == [1]
    beginning = await other.committed()
    assert beginning == {}
    assert [record.offset async for record in stream.until_end(group.kafka_url, topic) if record.key == b"one"] == [0]


async def test_redelivered_twice_it_is_applied_once(group: Group, topic: str, ledger: Ledger) -> None:
    await publish(group.kafka_url, topic, numbered("one", 1, value=POISON))
    async with group.member():
        await _settled(group, 1)
    letters = await _letters(group, topic)
    for _ in range(2):
        await dead_letters.redeliver_these(group.kafka_url, letters)
    await publish(group.kafka_url, topic, numbered("one", 2))
    again = f"{topic}.redelivery.{group.name}"
    async with group.member(_cured(ledger)):

        async def both_came() -> bool:
            came = sum(metric("consumer_messages_total", topic=again, outcome=o) for o in ("next", "gap", "stale"))
            return came == 2

        await eventually(both_came, "both copies")
        await _settled(group, 2)
    assert sorted(await ledger.versions("one")) in ([1, 2], [2])  # whole state: who comes late is stale
    assert await _letters(group, topic) == letters, "what is redelivered one by one stays"


async def test_what_is_in_the_topic_without_a_group_stays_and_so_does_what_stands_behind_it(
    group: Group, topic: str
) -> None:
    alien = Message(b"one", b"?", [])
    await stream.ensure_topic(group.kafka_url, f"{topic}.dlq")
    await publish(group.kafka_url, f"{topic}.dlq", [alien])
    assert await dead_letters.redeliver(group.kafka_url, topic) == []
    (letter,) = await _letters(group, topic)
    assert not letter.redeliverable


async def test_who_dies_between_dead_letter_and_offset_leaves_two_of_it_and_loses_none(
    group: Group, topic: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def dies(*_: object) -> None:
        raise MemoryError

    await publish(group.kafka_url, topic, [*numbered("one", 1), *numbered("one", 2, value=POISON), *numbered("one", 3)])
    with monkeypatch.context() as patched:
        patched.setattr(member.Member, "_commit", dies)
        with pytest.raises(MemoryError):
            async with group.member() as running:
                await asyncio.wait([running], timeout=15)
    async with group.member():
        await _settled(group, 3)
    assert await ledger.versions("one") == [1, 3]
    letters = await _letters(group, topic)
    assert [letter.origin[2] for letter in letters] == ["1", "1"]
    assert len(await dead_letters.redeliver(group.kafka_url, topic)) == 1


@pytest.fixture
async def own_kafka(stack: Stack, tmp_path: Path) -> AsyncIterator[Stack]:
    """A Kafka that may be hurt."""
    async with kafka_beside(stack, tmp_path) as started:
        yield started
        started.send_signal("kafka", signal.SIGCONT)


async def test_kafka_away_while_burying_no_offset_passes_the_poison_and_nothing_is_lost(
    own_kafka: Stack, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PUBLISH_TIMEOUT_SECONDS", 2.0)
    kafka_url, topic = own_kafka.addresses.kafka, "test.away"
    frozen = False

    async def handle(topic: str, messages: Sequence[Received]) -> Mapping[str, int]:
        nonlocal frozen
        if not frozen and any(message.value == POISON for message in messages):
            frozen = True
            own_kafka.send_signal("kafka", signal.SIGSTOP)
        return await ledger.handle(topic, messages)

    group = Group(kafka_url, [topic], handle)
    await stream.ensure_topic(kafka_url, topic)
    await publish(kafka_url, topic, [*numbered("one", 1), *numbered("one", 2, value=POISON), *numbered("one", 3)])
    before = metric("consumer_failures_total", part="kafka")
    async with group.member():

        async def given_up() -> bool:
            return metric("consumer_failures_total", part="kafka") > before

        await eventually(given_up, "the dead letter could not be sent")
        own_kafka.send_signal("kafka", signal.SIGCONT)
        await _applied(ledger, "one", [1, 3])
        await _settled(group, 3)
    letters = await _letters(group, topic)
    assert {letter.origin[2] for letter in letters} == {"1"}


async def _never(topic: str, messages: object) -> dict[str, int]:
    raise AssertionError(f"{messages} of {topic}")
