"""Several relays that die, freeze and come back, with Kafka killed among it, under writers that are quick and slow.

At the end the topic has exactly the events of the database, each order's in order but for duplicates; and a consumer
with an inbox has applied each version once, in order.
"""

import asyncio
import os
import random
import signal
import sys
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest

from services.common import clock, ids
from services.common.db import Database
from services.common.ids import OrderKey
from services.common.inbox import Inbox, Verdict, arrival
from services.common.stream import Received, ensure_topic
from services.contracts.envelope import ORDERS_TOPIC
from services.embedded.supervisor import Stack
from tests.consuming import Group
from tests.faults.conftest import SEED, environment
from tests.faults.topic import read_topic
from tests.faults.waiting import eventually
from tests.freezing import freeze

Owner: TypeAlias = "asyncpg.Connection[asyncpg.Record]"
ORDERS = 60  # of each writer
PAUSE_SECONDS = 0.02  # between transactions of the quick writer: bounds the load
HELD_SECONDS = 5.0  # the slow writer's rows have positions long before they are seen
_SCRIPT = Path(sys.executable).with_name("outbox-relay")

WRITE = """
WITH event AS (
    INSERT INTO orders.order_events (order_id, created_at, shard, version, event_id, type, data, actor, occurred_at)
    VALUES ($1, $2, $3::smallint, $4, uuidv7(), 'order.test', '{"change": {}, "after": {}}', 'process:test', now())
)
INSERT INTO orders.outbox (shard, slice, order_id, created_at, version) VALUES ($3, $3::smallint % 16, $1, $2, $4)
RETURNING slice, position
"""

GATE = 20261  # an advisory lock: who deletes waits at it, and who writes does not
MAKE_GATE = f"""
CREATE FUNCTION public.pass_gate() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared({GATE});
    RETURN NULL;
END $$;
CREATE TRIGGER gate BEFORE DELETE ON orders.outbox FOR EACH STATEMENT EXECUTE FUNCTION public.pass_gate();
"""


@dataclass
class Writer:
    """Writes the next event of orders of its own, some in each transaction, and knows the newest version of each."""

    owner: Owner
    pause_seconds: float
    held_seconds: float = 0.0
    newest: dict[OrderKey, int] = field(
        default_factory=lambda: {ids.new_order_key(uuid.uuid4(), clock.now()): 0 for _ in range(ORDERS)}
    )
    chance: random.Random = field(default_factory=lambda: random.Random(SEED))
    places: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)  # slice and position of each event

    async def write(self, ending: asyncio.Event) -> None:
        """Transaction after transaction, until told to end."""
        while not ending.is_set():
            keys = self.chance.sample(list(self.newest), 6)
            async with self.owner.transaction():
                for key in keys:
                    place = await self.owner.fetchrow(WRITE, *key, self.newest[key] + 1)
                    assert place is not None
                    self.places[ids.to_text(key.order_id), self.newest[key] + 1] = (place["slice"], place["position"])
                await asyncio.sleep(self.held_seconds)
            for key in keys:
                self.newest[key] += 1
            await asyncio.sleep(self.pause_seconds)


@dataclass
class Relays:
    """Processes of outbox-relay."""

    stack: Stack
    owner: Owner
    living: list[asyncio.subprocess.Process] = field(default_factory=list)
    started: int = 0

    async def start(self) -> asyncio.subprocess.Process:
        """One more."""
        told = environment(self.stack, self.stack.addresses.postgres_as("outbox_relay"))
        self.started += 1
        with (self.stack.settings.home / "log" / f"relay-{self.started}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                str(_SCRIPT), env={**os.environ, **told}, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.living.append(process)
        return process

    async def end(self, process: asyncio.subprocess.Process, number: int = signal.SIGKILL) -> int:
        """It is gone; gives its exit code."""
        assert process.returncode is None, "it ended by itself"
        process.send_signal(number)
        self.living.remove(process)
        return await asyncio.wait_for(process.wait(), 60)

    async def shared_by(self, processes: Sequence[asyncio.subprocess.Process]) -> float:
        """These have all slices of each outbox, each its share; gives the seconds that passed until then."""
        started, wanted = time.monotonic(), [str(process.pid) for process in processes]
        share = [16 // len(wanted) + (n < 16 % len(wanted)) for n in range(len(wanted))]

        async def shared() -> bool:
            rows = await self.owner.fetch(
                "SELECT outbox, split_part(relay, ':', 2) AS pid, count(*) AS slices FROM relay.slices GROUP BY 1, 2"
            )
            found: dict[str, Counter[str]] = defaultdict(Counter)
            for row in rows:
                found[row["outbox"]][row["pid"] or "nobody"] = row["slices"]
            return all(
                sorted(found[outbox]) == sorted(wanted) and sorted(found[outbox].values(), reverse=True) == share
                for outbox in ("orders", "catalog")
            )

        await eventually(shared, f"{len(wanted)} relays share the slices", seconds=20, every=0.05)
        return time.monotonic() - started

    async def all_wait_to_delete(self) -> bool:
        """Each has published a batch that it cannot delete."""
        found = await self.owner.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'outbox-relay'"
            " AND query LIKE '%DELETE FROM orders.outbox%' AND cardinality(pg_blocking_pids(pid)) > 0"
        )
        return bool(found == len(self.living))


@asynccontextmanager
async def _relays(stack: Stack, owner: Owner) -> AsyncIterator[Relays]:
    relays = Relays(stack, owner)
    try:
        yield relays
    finally:
        for process in relays.living:
            process.kill()
            await process.wait()


@dataclass
class Applied:
    """A consumer of the topic, and the versions its inbox had it apply."""

    database: Database
    versions: dict[str, list[int]] = field(default_factory=lambda: defaultdict(list))
    verdicts: Counter[str] = field(default_factory=Counter)
    inbox: Inbox = field(default_factory=lambda: Inbox("orders", "test"))

    async def handle(self, topic: str, messages: Sequence[Received]) -> Mapping[str, int]:
        """One transaction, as docs/consuming.md has it."""
        arrivals = [arrival(message) for message in messages]
        async with self.database.transaction() as connection:
            verdicts = await self.inbox.judge(connection, topic, arrivals)
        for one, verdict in zip(arrivals, verdicts, strict=True):
            if verdict is not Verdict.STALE:
                self.versions[one.key].append(one.version)
        counted = Counter(str(verdict) for verdict in verdicts)
        self.verdicts.update(counted)
        return counted


async def _freeze_at_the_worst_moment(relays: Relays, chosen: asyncio.subprocess.Process) -> None:
    """All relays have published and wait to delete; `chosen` is frozen there and loses its connections."""
    shut = await asyncpg.connect(relays.stack.addresses.postgres)
    await shut.execute("SELECT pg_advisory_lock($1)", GATE)
    await eventually(relays.all_wait_to_delete, "every relay waits to delete")
    freeze(chosen.pid)
    await relays.owner.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'outbox-relay'"
    )
    await shut.close()


def _overtaken(writers: Sequence[Writer], published_ms: Mapping[tuple[str, int], int]) -> int:
    """How many events were held back so long that later ones of their slice were on Kafka a second before them."""
    places = {event: place for writer in writers for event, place in writer.places.items()}
    by_slice: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for event, (slice_, position) in places.items():
        by_slice[slice_].append((position, published_ms[event]))
    return sum(
        any(later > position and at < published_ms[event] - 1000 for later, at in by_slice[slice_])
        for event, (slice_, position) in places.items()
    )


async def test_relays_killed_frozen_and_cut_off_lose_nothing_and_keep_every_order_in_order(
    servers: Stack, capsys: pytest.CaptureFixture[str]
) -> None:
    connections = [await asyncpg.connect(servers.addresses.postgres) for _ in range(3)]
    owner = connections[0]
    await owner.execute(MAKE_GATE)
    database = Database(servers.addresses.postgres, application_name="test")
    await database.open()
    await ensure_topic(servers.addresses.kafka, ORDERS_TOPIC)
    writers = [Writer(connections[1], PAUSE_SECONDS), Writer(connections[2], 0.0, HELD_SECONDS)]
    ending, applied, took = asyncio.Event(), Applied(database), dict[str, float]()
    group = Group(servers.addresses.kafka, [ORDERS_TOPIC], applied.handle)
    async with _relays(servers, owner) as relays, group.member():
        writing = [asyncio.create_task(writer.write(ending)) for writer in writers]
        first = await relays.start()
        took["one"] = await relays.shared_by([first])
        second, third = await relays.start(), await relays.start()
        took["two more"] = await relays.shared_by([first, second, third])
        await relays.end(third)
        took["after a kill"] = await relays.shared_by([first, second])
        await _freeze_at_the_worst_moment(relays, first)
        took["after a freeze"] = await relays.shared_by([second])
        await asyncio.sleep(5)  # the freeze is to last longer than any lease
        first.send_signal(signal.SIGCONT)
        took["after its end"] = await relays.shared_by([first, second])
        await servers.kill("kafka")
        await servers.ready("kafka")
        assert await relays.end(first, signal.SIGTERM) == 0
        took["after a clean end"] = await relays.shared_by([second])
        ending.set()
        await asyncio.gather(*writing)

        async def empty() -> bool:
            return not await owner.fetchval("SELECT count(*) FROM orders.outbox")

        await eventually(empty, "the outbox is empty", every=0.1)
        newest = {ids.to_text(key.order_id): v for writer in writers for key, v in writer.newest.items() if v}

        async def consumed() -> bool:
            return {key: versions[-1] for key, versions in applied.versions.items()} == newest

        await eventually(consumed, "the consumer has the newest versions", every=0.1)
        assert second.returncode is None
    rows = await owner.fetch("SELECT order_id, version, event_id FROM orders.order_events")
    stored = {(ids.to_text(row["order_id"]), row["version"]): {ids.to_text(row["event_id"])} for row in rows}
    read = await read_topic(servers.addresses.kafka, ORDERS_TOPIC)
    assert {place: {event_id for event_id, _ in found} for place, found in read.events.items()} == stored
    for order_id, version in newest.items():
        assert read.first_seen(order_id) == list(range(1, version + 1)), f"{order_id}: {read.versions[order_id]}"
        assert applied.versions[order_id] == list(range(1, version + 1))
    overtaken = _overtaken(writers, read.published_ms)
    assert overtaken >= 6, "no transaction was held open while others committed"
    assert read.duplicates > 0, "nobody was frozen between publishing and deleting"
    with capsys.disabled():
        print(  # noqa: T201 # figures for whoever reads the run
            f"\n{len(stored)} events, {read.duplicates} duplicates on the topic, {overtaken} held back"
            f" for {HELD_SECONDS:g} s; verdicts {dict(applied.verdicts)};"
            f" slices shared within s { {what: round(seconds, 1) for what, seconds in took.items()} }"
        )
    for connection in connections:
        await connection.close()
    await database.close()
