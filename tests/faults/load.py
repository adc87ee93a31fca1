"""Buyers and staff at work on a whole stack: orders are placed, advanced and looked at, until told to end."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import httpx

from services.embedded.supervisor import Stack
from tests.faults.buyers import Buyers
from tests.faults.conftest import SEED
from tests.faults.ledger import stock_up
from tests.faults.screens import Screen, looking, of_all, of_one
from tests.faults.waiting import eventually

THINK_SECONDS = 0.03  # bounds the load: what is tested is not speed
WATCHED = 1 / 3  # of the orders, those with a screen of their own
_SEEN_WITHIN_SECONDS = 90.0


@dataclass
class Load:
    """What was asked and answered: versions by order, and the orders whose units are not reserved any more."""

    buyers: Buyers
    url: str
    screens_url: str
    staff: str
    think_seconds: float
    placed: int = 0
    gone: set[str] = field(default_factory=set)
    versions: dict[str, int] = field(default_factory=dict)
    own: list[Screen] = field(default_factory=list)  # one a buyer, with all of the buyer's orders
    watching: list[Screen] = field(default_factory=list)  # one an order
    ending: bool = False

    @property
    def shown(self) -> int:
        """Events that have come to screens of all orders."""
        return sum(screen.events for screen in self.own)

    async def client(self, *, looks: bool) -> None:
        """One buyer's orders, one after the other; with `looks` they are on screens, too."""
        token = self.buyers.token()
        if not looks:
            while not self.ending:
                await self._life(token, looks=False)
            return
        screen = of_all(self.screens_url, token)
        self.own.append(screen)
        async with looking(screen):
            while not self.ending:
                await self._life(token, looks=self.buyers.chance.random() < WATCHED)
            await self._has_seen_all(screen)

    async def _life(self, token: str, *, looks: bool) -> None:
        order = await self.buyers.insist(self.buyers.placement(token=token), lambda: self.url)
        self.placed += 1
        self.versions[order["order_id"]] = 1
        if not looks:
            await self._advanced(order)
            return
        screen = of_one(self.screens_url, token, order["order_id"])
        self.watching.append(screen)
        async with looking(screen):
            after = await self._advanced(order)
            async with asyncio.timeout(_SEEN_WITHIN_SECONDS):
                await screen.shows(order["order_id"], lambda event: bool(event["version"] >= after["version"]))

    async def _advanced(self, order: dict[str, Any]) -> dict[str, Any]:
        """Of six orders one is cancelled, two shipped, one delivered besides and one returned at last."""
        fate = ((), ("cancel",), ("ship",), ("ship",), ("ship", "deliver"), ("ship", "deliver", "return"))
        for name in self.buyers.chance.choice(fate):
            await asyncio.sleep(self.think_seconds)
            order = await self.buyers.insist(self.buyers.command(order, name, self.staff), lambda: self.url)
            self.versions[order["order_id"]] = order["version"]
            self.gone.add(order["order_id"])
        await asyncio.sleep(self.think_seconds)
        return order

    async def _has_seen_all(self, screen: Screen) -> None:
        """It has come to the end of every order it has met."""

        async def so() -> bool:
            return all(versions[-1] == self.versions[order_id] for order_id, versions in screen.had.items())

        await eventually(so, "the last version of every order on a screen", seconds=_SEEN_WITHIN_SECONDS)

    async def more(self, orders: int, *, seconds: float = 60) -> None:
        """As many further orders have been answered."""
        goal = self.placed + orders

        async def reached() -> bool:
            return self.placed >= goal

        await eventually(reached, f"{orders} further orders", seconds=seconds)


@asynccontextmanager
async def loaded(
    stack: Stack, clients: int, *, looks: bool = False, think_seconds: float = THINK_SECONDS
) -> AsyncIterator[Load]:
    """So many clients at work until the end of the block, when all they have asked for is answered and seen."""
    owner = await asyncpg.connect(stack.addresses.postgres)
    products = await stock_up(owner, products=40, on_hand=1_000_000)
    await owner.close()
    async with httpx.AsyncClient(timeout=10) as client:
        buyers = Buyers(stack.settings.home, stack.addresses.issuer, client, random.Random(SEED), products=products)
        where = stack.endpoints
        load = Load(buyers, str(where["orders"]), str(where["realtime"]), buyers.token("orders:fulfil"), think_seconds)
        async with asyncio.TaskGroup() as group:
            for _ in range(clients):
                group.create_task(load.client(looks=looks))
            try:
                yield load
            finally:
                load.ending = True
