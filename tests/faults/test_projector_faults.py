"""orders-projector killed, frozen in a transaction, cut off, and replayed under a stream of changes.

The copy ends as the newest version of every product says, and on its way there no version ever goes back.
"""

import asyncio
import os
import random
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import asyncpg

from services.common import ids
from services.common.stream import Message, StreamError, ensure_topic
from services.contracts.envelope import CATALOG_TOPIC
from services.embedded.supervisor import Stack
from tests.consuming import Group
from tests.faults.conftest import SEED, environment
from tests.faults.products import WITNESS
from tests.faults.waiting import eventually
from tests.freezing import freeze
from tests.product_events import new_product_id, publish, told

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
PRODUCTS = 30
KILLS = 3
PAUSE_SECONDS = 0.02  # between batches of changes: bounds the load
_SCRIPT = Path(sys.executable).with_name("orders-projector")


@dataclass
class Catalogue:
    """Changes products as long as it is told to, and knows what it said last."""

    kafka_url: str
    newest: dict[str, int] = field(default_factory=lambda: {new_product_id(): 0 for _ in range(PRODUCTS)})
    chance: random.Random = field(default_factory=lambda: random.Random(SEED))
    ending: bool = False

    async def change_products(self) -> None:
        """A batch after the other, until told to end. What Kafka has not taken is said again."""
        while not self.ending:
            changed = self.chance.sample(list(self.newest), 5)
            batch = [told(product, self.newest[product] + 1) for product in changed]
            await self._said(batch)
            for product in changed:
                self.newest[product] += 1
            await asyncio.sleep(PAUSE_SECONDS)

    async def _said(self, batch: list[Message]) -> None:
        while True:
            try:
                await publish(self.kafka_url, CATALOG_TOPIC, batch)
            except StreamError:
                await asyncio.sleep(0.2)
            else:
                return


@dataclass
class Projectors:
    """Processes of orders-projector, by number."""

    stack: Stack
    running: list[asyncio.subprocess.Process] = field(default_factory=list)

    async def start(self) -> asyncio.subprocess.Process:
        """One more."""
        told = environment(self.stack, self.stack.addresses.postgres_as("orders_projector"))
        with (self.stack.settings.home / "log" / f"projector-{len(self.running)}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                str(_SCRIPT), env={**os.environ, **told}, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.running.append(process)
        return process

    async def kill(self, process: asyncio.subprocess.Process) -> None:
        """SIGKILL, and it is gone."""
        assert process.returncode is None, "it was dead before it was killed"
        process.kill()
        await process.wait()

    async def stop(self) -> None:
        """SIGTERM to all that live; they end cleanly."""
        living = [process for process in self.running if process.returncode is None]
        for process in living:
            process.terminate()
        async with asyncio.timeout(15):
            assert [await process.wait() for process in living] == [0] * len(living)

    async def end(self) -> None:
        """None is left, whatever its state."""
        for process in self.running:
            if process.returncode is None:
                process.kill()
                await process.wait()


@asynccontextmanager
async def _projectors(stack: Stack) -> AsyncIterator[Projectors]:
    projectors = Projectors(stack)
    try:
        yield projectors
    finally:
        await projectors.end()


async def _never(topic: str, messages: object) -> dict[str, int]:
    raise AssertionError(f"{messages} of {topic} are for the processes")


async def _versions(owner: Owner) -> dict[str, int]:
    rows = await owner.fetch("SELECT product_id, version FROM orders.products")
    return {ids.to_text(row["product_id"]): row["version"] for row in rows}


async def _catches_up(owner: Owner, catalogue: Catalogue, *, changes: int = 1, seconds: float = 60) -> None:
    """The copy of every product has reached so many changes past what the catalogue had said when this was called."""
    goal = {product: version + changes for product, version in catalogue.newest.items()}

    async def reached() -> bool:
        copied = await _versions(owner)
        return all(copied.get(product, 0) >= version for product, version in goal.items())

    await eventually(reached, "the copy has caught up", seconds=seconds)


async def _equals(owner: Owner, catalogue: Catalogue) -> None:
    """The copy is what the newest versions say."""
    rows = await owner.fetch("SELECT product_id, name, price, version FROM orders.products")
    assert {ids.to_text(row["product_id"]): (row["name"], row["price"], row["version"]) for row in rows} == {
        product: (f"Thing {version}", 100 + version, version) for product, version in catalogue.newest.items()
    }
    assert await owner.fetch("SELECT * FROM orders.went_back") == []


async def _freeze_in_a_transaction(owner: Owner, projectors: Projectors, catalogue: Catalogue) -> None:
    """Of two, one is frozen with its transaction open; the other takes over all of it; then the first comes back."""
    locked = await asyncpg.connect(projectors.stack.addresses.postgres)
    second = await projectors.start()
    await _catches_up(owner, catalogue)
    transaction = locked.transaction()
    await transaction.start()
    await locked.execute("SELECT FROM orders.products FOR UPDATE")

    async def both_wait() -> bool:
        count = await owner.fetchval(
            "SELECT count(*) FROM pg_stat_activity"
            " WHERE application_name = 'orders-projector' AND cardinality(pg_blocking_pids(pid)) > 0"
        )
        return int(count) == 2

    await eventually(both_wait, "both have a transaction open", every=0.005)
    freeze(second.pid)
    await transaction.rollback()
    await locked.close()
    try:
        await _catches_up(owner, catalogue)  # all products: the first has the partitions of the frozen one
    finally:
        second.send_signal(signal.SIGCONT)
    await _catches_up(owner, catalogue)
    assert second.returncode is None


async def _consumed(group: Group) -> None:
    """The group has committed the end of every partition."""

    async def so() -> bool:
        return await group.committed() == await group.ends()

    await eventually(so, "the topic is read to its end", every=0.2)


async def test_killed_frozen_cut_off_and_replayed_it_ends_as_the_newest_versions_say(servers: Stack) -> None:
    owner = await asyncpg.connect(servers.addresses.postgres)
    await owner.execute(WITNESS)
    await ensure_topic(servers.addresses.kafka, CATALOG_TOPIC)
    catalogue = Catalogue(servers.addresses.kafka)
    group = Group(servers.addresses.kafka, [CATALOG_TOPIC], _never, name="orders-projector")
    async with _projectors(servers) as projectors:
        changing = asyncio.create_task(catalogue.change_products())
        process = await projectors.start()
        await _catches_up(owner, catalogue)
        for _ in range(KILLS):
            await projectors.kill(process)
            process = await projectors.start()
            await _catches_up(owner, catalogue)
        await _freeze_in_a_transaction(owner, projectors, catalogue)
        catalogue.ending = True
        await changing
        await _catches_up(owner, catalogue, changes=0)
        await _equals(owner, catalogue)
        await _consumed(group)
        await projectors.stop()
        for inbox in ("known", "forgotten"):
            if inbox == "forgotten":
                await owner.execute("DELETE FROM orders.inbox")
            await group.rewind()
            await projectors.start()
            await _consumed(group)
            await projectors.stop()
            await _equals(owner, catalogue)
    await owner.close()


async def test_started_while_postgres_and_kafka_are_away_it_waits_and_it_survives_the_next_death(
    servers: Stack,
) -> None:
    product = new_product_id()
    async with _projectors(servers) as projectors:
        process = None
        for version, away in enumerate((("kafka", "postgres"), ("postgres",)), 1):
            for part in away:
                await servers.kill(part)
            process = process or await projectors.start()
            for part in away:
                await servers.ready(part)
            await publish(servers.addresses.kafka, CATALOG_TOPIC, [told(product, version)])
            owner = await asyncpg.connect(servers.addresses.postgres)

            async def copied(owner: Owner = owner, version: int = version) -> bool:
                return await _versions(owner) == {product: version}

            await eventually(copied, f"version {version} is copied")
            await owner.close()
        assert process is not None
        assert process.returncode is None
        await projectors.stop()
