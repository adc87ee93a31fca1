"""A whole stack without its broker, or without its cache: orders are taken all the same, and their events follow."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable

import httpx
import pytest

from services.common.stream import reading
from services.contracts.envelope import ORDERS_TOPIC
from services.embedded.supervisor import Stack
from tests.faults.buyers import Asked, Buyers
from tests.faults.load import loaded
from tests.faults.measured import metric
from tests.faults.outcome import assert_nothing_lost
from tests.faults.waiting import eventually


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_orders_are_taken_without_kafka_and_their_events_follow_in_order(stack: Stack, how: str) -> None:
    async with loaded(stack, clients=4) as load:
        await load.more(10)
        failures = 'relay_failures_total{outbox="orders",part="kafka"}'
        assert await metric(stack, "outbox-relay", failures) == 0

        async def noticed() -> bool:
            if how == "killed" and stack.pid("kafka"):
                await stack.kill("kafka")  # and again, as soon as the supervisor has it back
            return await metric(stack, "outbox-relay", failures) >= 1

        if how == "frozen":
            stack.send_signal("kafka", signal.SIGSTOP)
        else:
            await stack.kill("kafka")
        before = load.placed
        # A frozen broker is noticed by the producer's time-out: the producer is given up with what it had not sent.
        await eventually(noticed, "the relay has noticed", seconds=45)
        await load.more(40, seconds=30)
        assert load.buyers.seen.keys() == {"201", "200"}, "every request was answered at once"
        assert load.placed - before >= 40

        async def seen_from_outside() -> bool:
            age = await metric(stack, "outbox-relay", 'outbox_oldest_age_seconds{outbox="orders"}')
            return age > 1 and await metric(stack, "outbox-relay", 'outbox_depth{outbox="orders"}') >= 40

        await eventually(seen_from_outside, "depth and age of the outbox in metrics", seconds=10)
        assert (await httpx.AsyncClient(timeout=30).get(f"{load.url}/readyz")).status_code == 200
        if how == "frozen":
            stack.send_signal("kafka", signal.SIGCONT)
        await stack.ready("kafka")
        await load.more(20)
    await assert_nothing_lost(stack, load)
    assert stack.restarts["outbox-relay"] == stack.restarts["orders-api"] == 0


async def _delays(stack: Stack, buyers: Buyers, orders: int, meanwhile: Callable[[], Awaitable[None]]) -> list[float]:
    """Sorted seconds from the answer to the event's arrival at a consumer, of orders placed one after the other."""
    url, arrived = str(stack.endpoints["orders"]), dict[str, float]()
    async with reading(stack.addresses.kafka, ORDERS_TOPIC, from_beginning=True) as messages:

        async def consume() -> None:
            async for message in messages:
                assert message.key is not None
                arrived.setdefault(message.key.decode(), time.monotonic())

        consuming = asyncio.create_task(consume())
        token, placed = buyers.token(), dict[str, Asked]()
        for _ in range(orders):
            await meanwhile()
            asked = buyers.placement(token=token)
            placed[(await buyers.insist(asked, lambda: url))["order_id"]] = asked
            await asyncio.sleep(buyers.chance.uniform(0.01, 0.1))  # so that polls are met at any time

        async def all_there() -> bool:
            return placed.keys() <= arrived.keys()

        await eventually(all_there, "every event", seconds=30)
        consuming.cancel()
        await asyncio.gather(consuming, return_exceptions=True)
    return sorted(arrived[order_id] - asked.answered_at for order_id, asked in placed.items())


async def test_events_arrive_soon_while_valkey_is_dead_or_frozen(
    stack: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    async def nothing() -> None: ...

    delays = {}
    async with loaded(stack, clients=0) as load:
        delays["alive"] = await _delays(stack, load.buyers, 100, nothing)
        killing = asyncio.create_task(_keep_killing(stack, "valkey"))
        await eventually(_counted(stack, 3), "Valkey has died of us")
        delays["dead"] = await _delays(stack, load.buyers, 100, nothing)
        killing.cancel()
        await stack.ready("valkey")
        stack.send_signal("valkey", signal.SIGSTOP)
        delays["frozen"] = await _delays(stack, load.buyers, 100, nothing)
        stack.send_signal("valkey", signal.SIGCONT)
        assert load.buyers.seen.keys() == {"201"}
    figures = {
        how: f"p50 {1000 * seconds[len(seconds) // 2]:.0f} p99 {1000 * seconds[-2]:.0f} max {1000 * seconds[-1]:.0f} ms"
        for how, seconds in delays.items()
    }
    with capsys.disabled():
        print(f"\nfrom answer to consumer, Valkey alive, dead, frozen: {figures}")  # noqa: T201
    for how, seconds in delays.items():
        assert len(seconds) == 100
        assert seconds[len(seconds) // 2] < 0.3, how
        assert seconds[-1] < 5, how


async def _keep_killing(stack: Stack, part: str) -> None:
    while True:
        if stack.pid(part):
            await stack.kill(part)
        await asyncio.sleep(0.01)


def _counted(stack: Stack, deaths: int) -> Callable[[], Awaitable[bool]]:
    async def counted() -> bool:
        return stack.restarts["valkey"] >= deaths

    return counted
