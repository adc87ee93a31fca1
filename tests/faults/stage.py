"""Two processes of orders-api and a relay beside one cache: each with a wire of its own to it, writers and readers."""

import asyncio
import random
import secrets
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import asyncpg
import orjson

from services.embedded.keys import mint
from services.embedded.processes import PROCESSES
from services.embedded.room import free_port_base
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack
from tests.faults.conftest import environment, migrated
from tests.faults.cutting import Door
from tests.faults.keepalive import Answer, Connection
from tests.faults.ledger import stock_up
from tests.faults.replicas import Replica
from tests.faults.staleness import Staleness, Thing
from tests.faults.valkey import Server, Wire, serving
from tests.faults.waiting import eventually
from tests.shop import AUDIENCE

WRITER, READER = "writer", "reader"  # the processes: all writes go through the first, reads through both
WRITERS = 4  # tasks, each with an order and a product of its own
POLLERS = 3  # for each process
PARTS = 12  # an order is shipped in so many
LINGERS_SECONDS = 4.0  # an order is still read for so long after its last write: longer than any fault lasts
HEATED_SECONDS = 0.3  # a write waits so long at most for every process to have what it replaces in the cache
PATIENCE_SECONDS = 60.0
AGAIN_SECONDS = 0.03
SCOPE: Final = "orders:read orders:write orders:fulfil inventory:write"
_FIRST_PORT = 10  # as an offset, past those of the stack's own processes
PASSING: Final = {(409, "request_in_progress"), (503, "unavailable")}  # refusals that ask for the same request again


@dataclass
class Stage:
    """What runs, what is written and read, and how stale it was."""

    stack: Stack
    valkey: Server
    door: Door  # in front of the writer's PostgreSQL
    wires: dict[str, Wire]
    replicas: dict[str, Replica]
    owner_url: str
    token: str
    products: list[str]
    chance: random.Random
    seen: Staleness = field(default_factory=lambda: Staleness((WRITER, READER)))
    refused: Counter[str] = field(default_factory=Counter)  # what was met besides answers, by process
    hot: dict[Thing, float] = field(default_factory=dict)  # and until when it is read
    # What each writer has asked for and not heard: what will then be at which version.
    under_way: dict[str, dict[Thing, int]] = field(default_factory=dict)
    writing: bool = True

    def begin_anew(self) -> None:
        """Figures of what was before are gone; what is hot stays."""
        newest = {thing: writes[-1] for thing, writes in self.seen.writes.items() if writes and thing in self.hot}
        self.seen = Staleness(tuple(self.replicas))
        for thing, write in newest.items():
            self.seen.acknowledged(thing, write.version, write.acknowledged_at)
        self.refused.clear()

    async def poll(self, process: str, number: int) -> None:
        """One connection's share of what is hot is read at that process, again and again."""
        loop = asyncio.get_running_loop()
        connection = Connection(self.replicas[process].url, self.token)
        try:
            while True:
                turn = [thing for place, thing in enumerate(list(self.hot)) if place % POLLERS == number]
                for thing in turn:
                    if self.hot.get(thing, 0.0) < loop.time():
                        self.hot.pop(thing, None)
                        continue
                    try:
                        answer = await connection.ask("GET", thing.path)
                    except OSError as error:
                        self.refused[f"{process}: {type(error).__name__}"] += 1
                        await asyncio.sleep(AGAIN_SECONDS)
                        continue
                    if answer.status == 200:
                        self.seen.answered(process, thing, answer)
                    else:
                        self.refused[f"{process}: {answer.status} {answer.code}"] += 1
                        await asyncio.sleep(AGAIN_SECONDS)
                await asyncio.sleep(0 if turn else AGAIN_SECONDS)
        finally:
            connection.close()

    async def write(self, name: str, product: str) -> None:
        """Orders of the product are placed, shipped in parts or cancelled, and its stock is adjusted, until the end."""
        connection = Connection(self.replicas[WRITER].url, self.token)
        stock = Thing("inventory", f"/v1/inventory/{product}")
        self.hot[stock] = float("inf")
        if not self.seen.writes[stock]:
            self._acknowledged(stock, 1, await self._insisted(connection, name, {}, "GET", stock.path))
        version = self.seen.writes[stock][-1].version
        line = {"items": [{"line_no": 1, "quantity": 1}]}
        try:
            while self.writing:
                placed = {"currency": "USD", "items": [{"product_id": product, "quantity": PARTS}]}
                answer = await self._insisted(connection, name, {stock: version + 1}, "POST", "/v1/orders", placed)
                version = self._acknowledged(stock, version + 1, answer)
                order = Thing("order", f"/v1/orders/{orjson.loads(answer.body)['order_id']}")
                self._acknowledged(order, 1, answer)
                self.hot[order] = float("inf")
                commands = ["cancel"] if self.chance.random() < 0.5 else ["ship"] * PARTS
                for number, command in enumerate(commands, 1):
                    if not self.writing:
                        break
                    await self._heated(order, stock)
                    path, body = f"{order.path}/{command}", line if command == "ship" else {}
                    asked = {order: number + 1, stock: version + 1}
                    answer = await self._insisted(connection, name, asked, "POST", path, body, number)
                    self._acknowledged(order, answer.version, answer)
                    version = self._acknowledged(stock, version + 1, answer)
                self.hot[order] = asyncio.get_running_loop().time() + LINGERS_SECONDS
                await self._heated(stock)
                path, delta = f"{stock.path}/adjustments", {"delta": 1, "reason": "counted"}
                answer = await self._insisted(connection, name, {stock: version + 1}, "POST", path, delta)
                version = self._acknowledged(stock, answer.version, answer)
        finally:
            connection.close()

    async def fresh(self) -> None:
        """Every process gives the newest of all that is hot."""

        async def everywhere() -> bool:
            return not any(
                (answer := self.seen.newest.get((process, thing))) is None
                or answer.version < self.seen.writes[thing][-1].version
                for process in self.replicas
                for thing in self.hot
            )

        await eventually(everywhere, "every process gives the newest versions", seconds=PATIENCE_SECONDS)

    def _acknowledged(self, thing: Thing, version: int, answer: Answer) -> int:
        """It is at that version; one that was seen to be committed before is not acknowledged twice."""
        if not self.seen.writes[thing] or self.seen.writes[thing][-1].version < version:
            self.seen.acknowledged(thing, version, answer.received_at)
        return version

    async def _heated(self, *things: Thing) -> None:
        """Every process has them in the cache, or has had the time to."""
        deadline = asyncio.get_running_loop().time() + HEATED_SECONDS
        while any(self.seen.behind(thing) for thing in things) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.002)

    async def _insisted(
        self,
        connection: Connection,
        name: str,
        asked: dict[Thing, int],
        method: str,
        path: str,
        body: object = None,
        if_match: int | None = None,
    ) -> Answer:
        """The answer, asked for with the same key until there is one; things are to be as `asked` then."""
        headers = {"Idempotency_Key": secrets.token_hex(12)}
        if if_match is not None:
            headers["If_Match"] = f'"{if_match}"'
        self.under_way[name] = asked

        async def answered() -> Answer | None:
            try:
                answer = await connection.ask(method, path, body, **headers)
            except OSError as error:
                self.refused[f"{WRITER}: {type(error).__name__}"] += 1
                return None
            if answer.status in (200, 201):
                return answer
            assert (answer.status, answer.code) in PASSING, f"{method} {path}: {answer.status} {answer.body!r}"
            self.refused[f"{WRITER}: {answer.status} {answer.code}"] += 1
            return None

        found = await eventually(answered, f"{method} {path}", seconds=PATIENCE_SECONDS, every=AGAIN_SECONDS)
        assert found is not None
        del self.under_way[name]
        return found


@asynccontextmanager
async def staged(home: Path, *, seed: int) -> AsyncIterator[Stage]:
    """All of it runs; nobody writes or reads yet."""
    async with AsyncExitStack() as entered:
        valkey = await entered.enter_async_context(serving(home / "valkey"))
        wires = {
            name: await entered.enter_async_context(Wire(valkey).opened()) for name in (WRITER, READER, "outbox-relay")
        }
        relay_url = wires["outbox-relay"].url
        settings = StackSettings(
            home=home / "home", port_base=free_port_base(), valkey_url=relay_url, kafka_url="127.0.0.1:1"
        )
        parts = [process for process in PROCESSES if process.name in {"token-issuer", "outbox-relay"}]
        stack = await entered.enter_async_context(
            Stack(settings, processes=parts, prepare=migrated, healthy_seconds=0.1)
        )
        run = home / "door"
        run.mkdir(mode=0o755)
        door = await entered.enter_async_context(Door(stack.addresses.postgres_as("orders_api"), run))
        replicas = {}
        for number, (name, postgres_url) in enumerate(((WRITER, door.url), (READER, None))):
            told = {**environment(stack, postgres_url), "ORDERS_VALKEY_URL": wires[name].url}
            replica = Replica(number, settings.port(_FIRST_PORT + number), told, settings.home / "log")
            entered.push_async_callback(replica.ended)
            replicas[name] = replica
        await asyncio.gather(*(replica.start() for replica in replicas.values()))
        owner = await asyncpg.connect(stack.addresses.postgres)
        products = await stock_up(owner, products=WRITERS, on_hand=1_000_000)
        await owner.close()
        token = mint(
            settings.home, issuer=stack.addresses.issuer, audience=AUDIENCE, sub=str(uuid.uuid4()), scope=SCOPE
        )
        chance = random.Random(seed)
        yield Stage(stack, valkey, door, wires, replicas, stack.addresses.postgres, token, products, chance)


@asynccontextmanager
async def busy(stage: Stage) -> AsyncIterator[None]:
    """Writers write and pollers read until the end of the block; then all that was written is seen everywhere."""
    stage.writing = True
    async with asyncio.TaskGroup() as group:
        polls = [
            group.create_task(stage.poll(process, number)) for process in stage.replicas for number in range(POLLERS)
        ]
        writes = [group.create_task(stage.write(product, product)) for product in stage.products]
        try:
            yield
            stage.writing = False
            await asyncio.gather(*writes)
            await stage.fresh()
        finally:
            for task in (*polls, *writes):
                task.cancel()
