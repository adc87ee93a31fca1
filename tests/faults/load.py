"""Buyers and staff at work on a whole stack: orders are placed, paid for, advanced and looked at, until told to end."""

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import asyncpg
import httpx

from services.embedded.supervisor import Stack
from tests.faults.buyers import Buyers, OutdatedError
from tests.faults.conftest import SEED
from tests.faults.ledger import stock_up
from tests.faults.screens import Screen, looking, of_all, of_one
from tests.faults.waiting import eventually

THINK_SECONDS = 0.03  # bounds the load: what is tested is not speed
WATCHED = 1 / 3  # of the orders on account, those with a screen of their own
CALLED_OFF = 1 / 8  # of the orders that wait for their payment
_SETTLED_WITHIN_SECONDS = 900.0  # over the longest storm: what is paid for may have to wait for its end

# What becomes of an order. A part is one unit of its first line, the rest follows.
FATES: Final[Sequence[tuple[str, ...]]] = (
    (),
    ("cancel",),
    ("ship",),
    ("part of ship", "ship"),
    ("ship", "deliver"),
    ("ship", "deliver", "return"),
    ("part of ship", "ship", "deliver", "part of return", "return"),
)


@dataclass
class Load:
    """What was asked and answered; `versions` are the newest of each order that were answered to anybody."""

    buyers: Buyers
    url: str
    screens_url: str
    staff: str
    think_seconds: float
    watched: float
    clients: list[asyncio.Task[None]] = field(default_factory=list)
    placed: int = 0
    versions: dict[str, int] = field(default_factory=dict)
    own: list[Screen] = field(default_factory=list)  # one a buyer, with all of the buyer's orders
    watching: list[Screen] = field(default_factory=list)  # one an order
    ending: bool = False

    @property
    def shown(self) -> int:
        """Events that have come to screens of all orders."""
        return sum(screen.events for screen in self.own)

    async def client(self, token: str, methods: Sequence[str], *, looks: bool) -> None:
        """One buyer's orders, one after the other, each on account or paid with one of `methods`."""
        chance = self.buyers.chance
        while not self.ending:
            method = chance.choice(methods) if methods else None
            order = await self.buyers.insist(self.buyers.placement(token=token, method=method), lambda: self.url)
            self.placed += 1
            self.versions[order["order_id"]] = 1
            if method or (looks and chance.random() < self.watched):
                await self._looked_at(order, token)
            else:
                await self._advanced(order)

    async def _looked_at(self, order: dict[str, Any], token: str) -> None:
        """Its whole life was on a screen, on which what it waits for is seen."""
        screen = of_one(self.screens_url, token, order["order_id"])
        self.watching.append(screen)
        async with looking(screen), asyncio.timeout(_SETTLED_WITHIN_SECONDS):
            if order["status"] == "pending":
                if self.buyers.chance.random() < CALLED_OFF:
                    await self._commanded(order, "cancel")
                await screen.shows(order["order_id"], lambda event: bool(event["data"]["after"]["status"] != "pending"))
                order = await self.buyers.order(order["order_id"], token, lambda: self.url)
            order = await self._advanced(order)
            await screen.shows(order["order_id"], lambda event: bool(event["version"] >= order["version"]))

    async def _advanced(self, order: dict[str, Any]) -> dict[str, Any]:
        """As it is after one of the fates, as far as it can have it."""
        for step in self.buyers.chance.choice(FATES):
            name = step.removeprefix("part of ")
            await asyncio.sleep(self.think_seconds)
            if name not in order["allowed_actions"]:
                break
            body = None if name == step else {"items": [{"line_no": 1, "quantity": 1}]}
            order = await self._commanded(order, name, body)
        await asyncio.sleep(self.think_seconds)
        return order

    async def _commanded(self, order: dict[str, Any], name: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        """The order after the command; as others have left it, when they leave no room for the command."""
        while name in order["allowed_actions"]:
            try:
                order = await self.buyers.insist(self.buyers.command(order, name, self.staff, body), lambda: self.url)
            except OutdatedError:
                order = await self.buyers.order(order["order_id"], self.staff, lambda: self.url)
            else:
                self.versions[order["order_id"]] = order["version"]
                break
        return order

    async def end(self) -> None:
        """Nobody asks for anything more, and all that was asked for is answered."""
        self.ending = True
        await asyncio.gather(*self.clients)

    async def more(self, orders: int, *, seconds: float = 60) -> None:
        """As many further orders have been answered."""
        goal = self.placed + orders

        async def reached() -> bool:
            return self.placed >= goal

        await eventually(reached, f"{orders} further orders", seconds=seconds)


@asynccontextmanager
async def loaded(
    stack: Stack,
    clients: int,
    *,
    payers: int = 0,
    methods: Sequence[str] = (),
    looks: bool = False,
    watched: float = WATCHED,
    think_seconds: float = THINK_SECONDS,
    screens_url: str | None = None,
) -> AsyncIterator[Load]:
    """Clients, and payers with one of `methods` each time, are at work until `load.end()` or the end of the block.

    With `looks` each has a screen with all of its orders, until the end of the block, and so many of the orders on
    account have one of their own, at `screens_url` when that is not the gateway itself.
    """
    owner = await asyncpg.connect(stack.addresses.postgres)
    products = await stock_up(owner, products=40, on_hand=1_000_000)
    await owner.close()
    async with httpx.AsyncClient(timeout=10) as client, asyncio.TaskGroup() as group:
        buyers = Buyers(stack.settings.home, stack.addresses.issuer, client, random.Random(SEED), products=products)
        where = stack.endpoints
        staff = buyers.token("orders:fulfil orders:read orders:read:any")
        screens_url = screens_url or str(where["realtime"])
        load = Load(buyers, str(where["orders"]), screens_url, staff, think_seconds, watched)
        tokens = [buyers.token() for _ in range(clients + payers)]
        load.own += [of_all(load.screens_url, token) for token in tokens if looks]
        screens = [group.create_task(screen.look()) for screen in load.own]
        for number, token in enumerate(tokens):
            working = load.client(token, methods if number >= clients else (), looks=looks)
            load.clients.append(group.create_task(working))
        yield load
        await load.end()
        for screen in screens:
            screen.cancel()
