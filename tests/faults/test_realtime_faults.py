"""A whole stack whose gateway and broker die while orders are followed: every screen shows every version, in order."""

import asyncio
import random
import re
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg
import httpx
import orjson
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.typing import Subprotocol

from services.cli import up
from services.cli.watch import events
from services.embedded.room import free_port_base
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack
from tests.faults.buyers import Buyers
from tests.faults.conftest import SEED
from tests.faults.ledger import stock_up
from tests.faults.waiting import eventually

LIVES = 6  # orders on their way at once
THINK_SECONDS = 0.15  # between an order's steps, so that what dies dies in the middle of them
BETWEEN_KILLS = 12  # orders whose life was seen whole
COMES_WITHIN_SECONDS = 60.0


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """All parts of `orders up`, in a home and on ports of its own."""
    settings = StackSettings(home=tmp_path / "home", port_base=free_port_base())
    async with Stack(settings, prepare=up.prepare) as started:
        yield started


@dataclass
class Screens:
    """One buyer's orders are placed, shipped and delivered, each on a screen of its own."""

    stack: Stack
    buyers: Buyers
    token: str
    staff: str
    seen: dict[str, list[int]] = field(default_factory=dict)
    whole: int = 0
    ending: bool = False

    async def lives(self) -> None:
        """One order after the other."""
        url = str(self.stack.endpoints["orders"])
        while not self.ending:
            order = await self.buyers.insist(self.buyers.placement(token=self.token), lambda: url)
            screen = asyncio.create_task(self._screen(order["order_id"]))
            for command in ("ship", "deliver"):
                await asyncio.sleep(THINK_SECONDS)
                order = await self.buyers.insist(self.buyers.command(order, command, self.staff), lambda: url)
            await asyncio.wait_for(screen, COMES_WITHIN_SECONDS)
            self.whole += 1

    async def _screen(self, order_id: str) -> None:
        had = self.seen[order_id] = []
        coming = events(str(self.stack.endpoints["realtime"]), lambda: self.token, order_id)
        async with aclosing(coming):
            async for event in coming:
                had.append(event["version"])
                if event["type"] == "order.delivered":
                    return

    async def more(self, orders: int) -> None:
        """As many further orders have been seen whole."""
        goal = self.whole + orders

        async def reached() -> bool:
            return self.whole >= goal

        await eventually(reached, f"{orders} further orders", seconds=90)


async def test_gateway_and_broker_die_in_turn_and_every_screen_has_every_version_in_order(
    stack: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    owner = await asyncpg.connect(stack.addresses.postgres)
    products = await stock_up(owner, products=40, on_hand=1_000_000)
    await owner.close()
    async with httpx.AsyncClient(timeout=10) as client:
        chance = random.Random(SEED)
        buyers = Buyers(stack.settings.home, stack.addresses.issuer, client, chance, products=products)
        screens = Screens(stack, buyers, buyers.token(), buyers.token("orders:fulfil"))
        async with asyncio.TaskGroup() as group:
            for _ in range(LIVES):
                group.create_task(screens.lives())
            own = await _following_all(stack, screens.token)
            before = set(screens.seen)
            collecting = group.create_task(own.collect())
            await screens.more(BETWEEN_KILLS)
            # The broker first: while the gateway lives, not even a socket notices.
            for _ in range(2):
                await stack.kill("kafka")
                await stack.ready("kafka")
                await screens.more(BETWEEN_KILLS)
            failures = await _failures(stack)
            stack.send_signal("kafka", signal.SIGSTOP)

            async def given_up() -> bool:
                return await _failures(stack) > failures

            await eventually(given_up, "the gateway gives its consumer up", seconds=30)
            stack.send_signal("kafka", signal.SIGCONT)
            await screens.more(BETWEEN_KILLS)
            assert stack.restarts["realtime-gateway"] == 0
            await own.has_whole({one for one, had in screens.seen.items() if had == [1, 2, 3] and one not in before})
            collecting.cancel()
            for how in ("killed", "stopped", "killed"):
                if how == "killed":
                    await stack.kill("realtime-gateway")
                else:
                    stack.send_signal("realtime-gateway", signal.SIGTERM)
                await screens.more(1)
                await stack.ready("realtime-gateway")
                await screens.more(BETWEEN_KILLS)
            screens.ending = True
        assert all(had == [1, 2, 3] for had in screens.seen.values()), screens.seen
        assert stack.restarts["realtime-gateway"] == 3
        for order_id, had in own.had.items():
            assert order_id in before or had == [1, 2, 3][: len(had)], f"{order_id}: {had}"
        with capsys.disabled():
            print(  # noqa: T201 # figures for whoever reads the run
                f"\n{len(screens.seen)} screens, each [1, 2, 3]; one of all orders had"
                f" {sum(len(had) for had in own.had.values())} events of {len(own.had)} orders"
                f" through three failures of the broker; attempts met {dict(Counter(buyers.seen))}"
            )


async def _failures(stack: Stack) -> float:
    """How many consumers the gateway has given up."""
    metrics = stack.endpoints["metrics"]
    assert isinstance(metrics, dict)
    async with httpx.AsyncClient() as client:
        text = (await client.get(metrics["realtime-gateway"])).text
    found = re.search(r'^follower_failures_total\{.*what="kafka"\} (\S+)$', text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@dataclass
class Own:
    """One socket with all of the buyer's orders."""

    socket: ClientConnection
    had: dict[str, list[int]] = field(default_factory=dict)

    async def collect(self) -> None:
        """Whatever comes."""
        async for text in self.socket:
            message = orjson.loads(text)
            if "version" in message:
                self.had.setdefault(message["order_id"], []).append(message["version"])

    async def has_whole(self, order_ids: set[str]) -> None:
        """Each of them has come to its end."""

        async def so() -> bool:
            return all(self.had.get(order_id, [0])[-1] == 3 for order_id in order_ids)

        await eventually(so, "the last version of every order", seconds=30)


async def _following_all(stack: Stack, token: str) -> Own:
    socket = await connect(
        f"{stack.endpoints['realtime']}/v1/stream",
        subprotocols=[Subprotocol("orders.v1"), Subprotocol(f"bearer.{token}")],
    )
    await socket.send('{"subscribe": {"all": true}}')
    assert orjson.loads(await socket.recv()) == {"subscribed": {"all": True}}
    return Own(socket)
