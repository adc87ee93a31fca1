"""One orders-api with a cache that may be killed, 100,000 orders of which few are asked for often, and requests."""

import asyncio
import json
import random
import secrets
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Final

import asyncpg

from services.cli.token import minted
from services.cli.up import prepare
from services.common import ids
from services.embedded.processes import PROCESSES
from services.embedded.room import free_port_base
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack
from services.orders import seed
from tests.faults.keepalive import Answer, Connection
from tests.faults.valkey import Server, serving

ORDERS: Final = 100_000
OFTEN: Final = (
    2_000  # of them are placed here, in quantities that last: the seeded ones can be written a few times only
)
UNITS: Final = 100_000
PRODUCTS: Final = 1_000
SCOPE: Final = "orders:read orders:read:any orders:write orders:fulfil"
CONNECTIONS_MAX: Final = 256
LATE_SECONDS: Final = 5.0  # a request that has waited so long for a connection is an error


@dataclass
class Run:
    """What was asked for and when, by rank; and what came back."""

    seconds: float = 0.0
    asked: list[tuple[float, int, bool]] = field(default_factory=list)  # when, rank, whether it was a write
    outcomes: Counter[str] = field(default_factory=Counter)  # of reads
    latencies: list[float] = field(default_factory=list)  # of reads, from when they were due
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.asked) / self.seconds

    @property
    def p99(self) -> float:
        """Of the reads, in seconds."""
        return sorted(self.latencies)[int(len(self.latencies) * 0.99)]


@dataclass
class Shop:
    """The orders by rank: rank n is asked for in proportion to 1/n (Zipf with exponent 1)."""

    stack: Stack
    valkey: Server
    url: str
    token: str
    orders: Sequence[str]
    versions: list[int]
    chance: random.Random
    writing: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._ranks = range(len(self.orders))
        self._weights = list(accumulate(1 / rank for rank in range(1, len(self.orders) + 1)))

    def ranks(self, count: int) -> list[int]:
        """So many of them, by chance, from 0 on."""
        return self.chance.choices(self._ranks, cum_weights=self._weights, k=count)

    async def read(self, connection: Connection, rank: int) -> Answer:
        """GET of the order."""
        return await connection.ask("GET", f"/v1/orders/{self.orders[rank]}")

    async def write(self, connection: Connection, rank: int) -> Answer | None:
        """One unit more is shipped, or comes back; None while another writes the same."""
        if rank in self.writing:
            return None
        self.writing.add(rank)
        try:
            answer = await connection.ask(
                "POST",
                f"/v1/orders/{self.orders[rank]}/{'ship' if rank < OFTEN else 'return'}",
                {"items": [{"line_no": 1, "quantity": 1}]},
                Idempotency_Key=secrets.token_hex(8),
                If_Match=f'"{self.versions[rank]}"',
            )
            if answer.status == 200:
                self.versions[rank] = answer.version
            return answer
        finally:
            self.writing.discard(rank)

    async def closed(self, connections: int, seconds: float, *, writes: float = 0.0) -> Run:
        """As many requests as so many connections get answered, each one after the other."""
        run, began = Run(), time.monotonic()

        async def client() -> None:
            connection = Connection(self.url, self.token)
            while time.monotonic() < began + seconds:
                for rank in self.ranks(100):
                    await self._one(connection, rank, run, writes=writes, due=time.monotonic())
            connection.close()

        await asyncio.gather(*(client() for _ in range(connections)))
        run.seconds = time.monotonic() - began
        return run

    async def offered(self, rate: float, seconds: float) -> Run:
        """Reads that come at `rate`, whether or not earlier ones are answered."""
        run, began, idle = Run(), time.monotonic(), list[Connection]()
        ranks = self.ranks(int(rate * seconds))
        room = asyncio.Semaphore(CONNECTIONS_MAX)

        async def one(rank: int, due: float) -> None:
            async with room:
                if time.monotonic() > due + LATE_SECONDS:
                    run.errors["late"] += 1
                    return
                connection = idle.pop() if idle else Connection(self.url, self.token)
                await self._one(connection, rank, run, writes=0.0, due=due)
                idle.append(connection)

        async with asyncio.TaskGroup() as group:
            for number, rank in enumerate(ranks):
                due = began + number / rate
                if (early := due - time.monotonic()) > 0:
                    await asyncio.sleep(early)
                group.create_task(one(rank, due))
        run.seconds = time.monotonic() - began
        for connection in idle:
            connection.close()
        return run

    async def _one(self, connection: Connection, rank: int, run: Run, *, writes: float, due: float) -> None:
        writing = writes > 0 and self.chance.random() < writes
        try:
            answer = await (self.write if writing else self.read)(connection, rank)
        except OSError as error:
            run.errors[type(error).__name__] += 1
            return
        if answer is None:
            return
        if answer.status != 200:
            run.errors[f"{answer.status} {answer.code}"] += 1
            return
        run.asked.append((answer.received_at if writing else answer.sent_at, rank, writing))
        if not writing:
            run.outcomes[answer.outcome] += 1
            run.latencies.append(answer.received_at - due)


@asynccontextmanager
async def opened(home: Path, seed_number: int) -> AsyncIterator[Shop]:
    """With every durability setting on."""
    async with serving(home / "valkey") as valkey:
        settings = StackSettings(
            home=home / "home", port_base=free_port_base(), valkey_url=valkey.url, kafka_url="127.0.0.1:1"
        )
        parts = [one for one in PROCESSES if one.name in {"token-issuer", "orders-api", "outbox-relay"}]
        async with Stack(settings, processes=parts, prepare=prepare) as stack:
            await seed.seed(
                stack.addresses.postgres, products=PRODUCTS, stock=10**9, orders=ORDERS * 11 // 10, seed=seed_number
            )
            token = minted(settings, sub=str(uuid.uuid4()), scope=SCOPE, hours=2)
            url = str(stack.endpoints["orders"])
            owner = await asyncpg.connect(stack.addresses.postgres)
            rows = await owner.fetch(
                "SELECT order_id, version FROM orders.orders WHERE status = 'delivered' LIMIT $1", ORDERS - OFTEN
            )
            stocked = "SELECT product_id FROM orders.inventory ORDER BY on_hand - reserved DESC LIMIT $1"
            products = [ids.to_text(row["product_id"]) for row in await owner.fetch(stocked, PRODUCTS)]
            await owner.close()
            placed = await _placed(url, token, products)
            orders = [*placed, *(ids.to_text(row["order_id"]) for row in rows)]
            if len(orders) < ORDERS:
                raise SystemExit(f"only {len(orders)} orders")
            versions = [1] * len(placed) + [row["version"] for row in rows]
            yield Shop(stack, valkey, url, token, orders, versions, random.Random(seed_number))


async def _placed(url: str, token: str, products: Sequence[str]) -> list[str]:
    connection = Connection(url, token)
    placed = []
    for number in range(OFTEN):
        body = {"currency": "USD", "items": [{"product_id": products[number % PRODUCTS], "quantity": UNITS}]}
        answer = await connection.ask("POST", "/v1/orders", body, Idempotency_Key=secrets.token_hex(8))
        if answer.status != 201:
            raise SystemExit(f"the run is void: {answer.status} {answer.body!r}")
        placed.append(json.loads(answer.body)["order_id"])
    connection.close()
    return placed
