"""A member ends when messages wait and nothing happens, and for no other reason; lag and age tell what waits."""

import asyncio
import time
from collections.abc import Mapping, Sequence

import pytest
from aiokafka import AIOKafkaConsumer

from services.common import member
from services.common.db_errors import TransientError
from services.common.progress import NoProgressError
from services.common.stream import Received
from tests.consuming import Group, metric
from tests.faults.waiting import eventually
from tests.integration.common.conftest import Ledger, numbered
from tests.product_events import publish

STUCK_AFTER_SECONDS = 4.0


async def test_a_handler_that_never_comes_back_ends_the_member(group: Group, topic: str) -> None:
    async def never(topic: str, messages: Sequence[Received]) -> Mapping[str, int]:  # noqa: ARG001 # a handler's
        await asyncio.Event().wait()
        raise AssertionError

    await publish(group.kafka_url, topic, numbered("one", 1, 2))
    with pytest.raises(NoProgressError, match="2 messages wait in partition"):
        async with group.member(never, stuck_after_seconds=STUCK_AFTER_SECONDS) as running:
            await asyncio.wait([running], timeout=30)


async def test_a_client_that_brings_nothing_ends_the_member(
    group: Group, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(_: AIOKafkaConsumer, **options: int) -> dict[object, object]:
        await asyncio.sleep(options["timeout_ms"] / 1000)
        return {}

    monkeypatch.setattr(AIOKafkaConsumer, "getmany", nothing)
    await publish(group.kafka_url, topic, numbered("one", 1))
    with pytest.raises(NoProgressError, match="1 messages wait in partition"):
        async with group.member(stuck_after_seconds=STUCK_AFTER_SECONDS) as running:
            await asyncio.wait([running], timeout=30)


async def test_a_partition_that_is_tried_again_and_an_idle_member_are_no_reason_to_end(
    group: Group, topic: str, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nothing is expected of a partition between its tries, be it for longer than a standstill may last.
    monkeypatch.setattr(member, "PAUSE_SECONDS_MIN", STUCK_AFTER_SECONDS + 1)
    monkeypatch.setattr(member, "PAUSE_SECONDS_MAX", STUCK_AFTER_SECONDS + 1)
    well = False

    async def failing(topic: str, messages: Sequence[Received]) -> Mapping[str, int]:
        if not well:
            raise TransientError("connection")
        return await ledger.handle(topic, messages)

    before_ms = time.time()
    await publish(group.kafka_url, topic, numbered("one", 1, 2))
    async with group.member(failing, stuck_after_seconds=STUCK_AFTER_SECONDS) as running:
        # All at once, each time: on a slow machine the group may meet anew, and its member has nothing to tell then.
        async def told_as_old() -> bool:
            age = metric("consumer_oldest_age_seconds", topic=topic)
            told = [metric(f"consumer_{name}", topic=topic) for name in ("lag_messages", "waiting_partitions")]
            return 2 * STUCK_AFTER_SECONDS < age <= time.time() - before_ms + 1 and told == [2, 1]

        await eventually(told_as_old, "it has waited for longer than a stuck member may")
        well = True

        async def applied() -> bool:
            return await ledger.versions("one") == [1, 2]

        await eventually(applied, "all is applied")

        async def nothing_waits() -> bool:
            told = ("consumer_lag_messages", "consumer_oldest_age_seconds", "consumer_waiting_partitions")
            return [metric(name, topic=topic) for name in told] == [0, 0, 0]

        await eventually(nothing_waits, "and it is told so")
        await asyncio.wait([running], timeout=2 * STUCK_AFTER_SECONDS)  # the time that passes is what is tested
        assert not running.done()
