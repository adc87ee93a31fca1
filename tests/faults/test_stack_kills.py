"""A whole stack whose parts die in turn while orders are placed and advanced: nothing acknowledged is lost.

The parts are those of `orders up`, killed with SIGKILL or frozen with SIGSTOP, and brought back by its supervisor.
"""

import asyncio
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import pytest

from services.cli import up
from services.common import ids
from services.common.stream import reading
from services.contracts.envelope import ORDERS_TOPIC
from services.embedded.room import free_port_base
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack
from tests.faults.buyers import Asked, Buyers
from tests.faults.conftest import SEED
from tests.faults.ledger import (
    assert_each_key_made_one_whole_order,
    assert_invariants_hold,
    assert_stock_is_what_orders_hold,
    stock_up,
)
from tests.faults.topic import read_topic
from tests.faults.waiting import eventually

CLIENTS = 8
ROUNDS = 3
PARTS = ("orders-api", "outbox-relay", "postgres", "kafka", "valkey")
THINK_SECONDS = 0.03  # bounds the load: what is tested is not speed
BETWEEN_KILLS = 25  # orders answered after a part is back, before the next dies


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """All parts of `orders up`, in a home and on ports of its own."""
    settings = StackSettings(home=tmp_path / "home", port_base=free_port_base())
    async with Stack(settings, prepare=up.prepare) as started:
        yield started


@dataclass
class Load:
    """Buyers and staff at work, until it is told to end."""

    buyers: Buyers
    url: str
    staff: str
    placed: int = 0
    shipped: set[str] = field(default_factory=set)
    versions: dict[str, int] = field(default_factory=dict)
    ending: bool = False

    async def client(self) -> None:
        """Places orders one after the other; of three orders one is shipped, and of two of those one delivered."""
        while not self.ending:
            order = await self.buyers.insist(self.buyers.placement(), lambda: self.url)
            self.placed += 1
            self.versions[order["order_id"]] = 1
            if self.buyers.chance.random() < 1 / 3:
                order = await self.commanded(order, "ship")
                self.shipped.add(order["order_id"])
                if self.buyers.chance.random() < 1 / 2:
                    await self.commanded(order, "deliver")
            await asyncio.sleep(THINK_SECONDS)

    async def commanded(self, order: dict[str, Any], name: str) -> dict[str, Any]:
        """The order after the command."""
        after = await self.buyers.insist(self.buyers.command(order, name, self.staff), lambda: self.url)
        self.versions[after["order_id"]] = after["version"]
        return after

    async def more(self, orders: int, *, seconds: float = 60) -> None:
        """As many further orders have been answered."""
        goal = self.placed + orders

        async def reached() -> bool:
            return self.placed >= goal

        await eventually(reached, f"{orders} further orders", seconds=seconds)


@asynccontextmanager
async def _loaded(stack: Stack, clients: int) -> AsyncIterator[Load]:
    owner = await asyncpg.connect(stack.addresses.postgres)
    products = await stock_up(owner, products=40, on_hand=1_000_000)
    await owner.close()
    async with httpx.AsyncClient(timeout=10) as client:
        buyers = Buyers(stack.settings.home, stack.addresses.issuer, client, random.Random(SEED), products=products)
        load = Load(buyers, str(stack.endpoints["orders"]), staff=buyers.token("orders:fulfil"))
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(load.client())
            try:
                yield load
            finally:
                load.ending = True


async def _metric(stack: Stack, process: str, sample: str) -> float:
    """A sample of the process's metrics, 0 when it has none or does not answer."""
    metrics = stack.endpoints["metrics"]
    assert isinstance(metrics, dict)
    with suppress(httpx.HTTPError):
        async with httpx.AsyncClient() as client:
            for line in (await client.get(metrics[process])).text.splitlines():
                if line.startswith(f"{sample} "):
                    return float(line.rpartition(" ")[2])
    return 0.0


async def _all_arrived(stack: Stack) -> None:
    """The outbox is empty."""
    owner = await asyncpg.connect(stack.addresses.postgres)

    async def empty() -> bool:
        return not await owner.fetchval("SELECT count(*) FROM orders.outbox")

    try:
        await eventually(empty, "the outbox is empty", seconds=60, every=0.1)
    finally:
        await owner.close()


async def _assert_nothing_lost(stack: Stack, load: Load) -> int:
    """Database and topic have what was answered, once and in order; gives how many messages are duplicates."""
    await _all_arrived(stack)
    owner = await asyncpg.connect(stack.addresses.postgres)
    try:
        await assert_each_key_made_one_whole_order(owner, load.buyers.asked, relayed=True)
        await assert_stock_is_what_orders_hold(owner, load.buyers.asked, shipped=load.shipped)
        rows = await owner.fetch("SELECT order_id, version, event_id FROM orders.order_events")
    finally:
        await owner.close()
    await assert_invariants_hold(stack.addresses.postgres)
    stored = {(ids.to_text(row["order_id"]), row["version"]): ids.to_text(row["event_id"]) for row in rows}
    read = await read_topic(stack.addresses.kafka, ORDERS_TOPIC)
    assert {place: {event_id for event_id, _ in found} for place, found in read.events.items()} == {
        place: {event_id} for place, event_id in stored.items()
    }
    for place, found in read.events.items():
        assert len(found) == 1, f"two messages for {place} differ"
    for order_id, version in load.versions.items():
        assert read.first_seen(order_id) == list(range(1, version + 1)), f"{order_id}: {read.versions[order_id]}"
    return read.duplicates


async def test_parts_killed_in_turn_under_load_lose_double_and_reorder_nothing(
    stack: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    chance, kills = random.Random(SEED), Counter[str]()
    restarts_before = dict(stack.restarts)
    back: dict[str, list[float]] = {part: [] for part in PARTS}
    async with _loaded(stack, CLIENTS) as load:
        await load.more(BETWEEN_KILLS)
        for _ in range(ROUNDS):
            for part in chance.sample(PARTS, len(PARTS)):
                killed_at = time.monotonic()
                pid = stack.pid(part)
                assert pid
                await stack.kill(part)
                kills[part] += 1
                await load.more(1 if part == "postgres" else BETWEEN_KILLS)
                await stack.ready(part)
                back[part].append(time.monotonic() - killed_at)
                assert stack.pid(part) != pid
                await load.more(BETWEEN_KILLS)
    duplicates = await _assert_nothing_lost(stack, load)
    with capsys.disabled():
        print(  # noqa: T201 # figures for whoever reads the run
            f"\nkills {dict(kills)}; {load.placed} orders, {sum(load.versions.values())} events, {duplicates}"
            f" duplicates on the topic; attempts met {dict(load.buyers.seen)}; back within s "
            + str({part: [round(one, 1) for one in seconds] for part, seconds in back.items()})
        )
    assert sum(kills.values()) == ROUNDS * len(PARTS)
    # Nobody died whom we did not kill.
    assert {part: stack.restarts[part] - restarts_before[part] for part in stack.restarts} == {
        part: kills[part] for part in stack.restarts
    }


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_orders_are_taken_without_kafka_and_their_events_follow_in_order(stack: Stack, how: str) -> None:
    async with _loaded(stack, clients=4) as load:
        await load.more(10)
        failures = 'relay_failures_total{outbox="orders",part="kafka"}'
        assert await _metric(stack, "outbox-relay", failures) == 0

        async def noticed() -> bool:
            if how == "killed" and stack.pid("kafka"):
                await stack.kill("kafka")  # and again, as soon as the supervisor has it back
            return await _metric(stack, "outbox-relay", failures) >= 1

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
            age = await _metric(stack, "outbox-relay", 'outbox_oldest_age_seconds{outbox="orders"}')
            return age > 1 and await _metric(stack, "outbox-relay", 'outbox_depth{outbox="orders"}') >= 40

        await eventually(seen_from_outside, "depth and age of the outbox in metrics", seconds=10)
        assert (await httpx.AsyncClient().get(f"{load.url}/readyz")).status_code == 200
        if how == "frozen":
            stack.send_signal("kafka", signal.SIGCONT)
        await stack.ready("kafka")
        await load.more(20)
    await _assert_nothing_lost(stack, load)
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
    async with _loaded(stack, clients=0) as load:
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
