"""Every event, once and in order, from commit to screen: while every part of a stack is killed, frozen and cut off.

Orders are placed, advanced and looked at meanwhile, and products change. What is to be true afterwards is true of
all that happened, not of samples: in the database, on Kafka, at each consumer and on each screen.
"""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from services.cli import up
from services.common.stream import dead_letter_topic
from services.contracts.envelope import ORDERS_TOPIC
from services.embedded.kafka import METADATA_REQUEST
from services.embedded.processes import PROCESSES
from services.embedded.room import free_port_base
from services.embedded.settings import HOST, KAFKA, METRICS, StackSettings
from services.embedded.supervisor import Stack
from tests.faults import auditor
from tests.faults.conftest import SEED
from tests.faults.load import Load, loaded
from tests.faults.outcome import assert_nothing_lost
from tests.faults.storm import Storm
from tests.faults.topic import read_topic
from tests.faults.toxiproxy import Proxy, proxied, server, toxiproxy
from tests.faults.waiting import eventually

KILLS = 20  # of each part that carries events
OTHER_KILLS = 3  # of each part that they come from
CLIENTS = 6
THINK_SECONDS = 0.4
PROXY_API, KAFKA_PROXY = METRICS + 16, METRICS + 17


@dataclass
class Stormy:
    """A whole stack, with an auditor, whose Kafka is behind a proxy."""

    stack: Stack
    kafka: Proxy


@pytest.fixture
async def stormy(tmp_path: Path) -> AsyncIterator[Stormy]:
    program = server()
    if program is None:
        pytest.skip("there is no Toxiproxy: `make toxiproxy` builds it, and needs Go")
    base = free_port_base()
    settings = StackSettings(home=tmp_path / "home", port_base=base, kafka_advertised=f"{HOST}:{base + KAFKA_PROXY}")

    async def prepare(stack: Stack) -> None:
        await up.prepare(stack)
        owner = await asyncpg.connect(stack.addresses.postgres)
        await owner.execute(auditor.SCHEMA)
        await owner.close()

    async with toxiproxy(program, settings.port(PROXY_API), tmp_path / "toxiproxy.log") as api:
        kafka = await proxied(api, "kafka", listen=settings.port(KAFKA_PROXY), upstream=settings.port(KAFKA))
        processes = (*PROCESSES, auditor.process(settings))
        async with Stack(settings, processes=processes, prepare=prepare, healthy_seconds=0.5) as stack:
            yield Stormy(stack, kafka)


async def test_every_event_comes_once_and_in_order_to_everybody_whoever_dies_meanwhile(
    stormy: Stormy, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = stormy.stack
    print(f"FAULTS_SEED={SEED}")  # noqa: T201 # shown when it fails
    before = dict(stack.restarts)
    async with loaded(stack, CLIENTS, looks=True, think_seconds=THINK_SECONDS) as load:
        storm = Storm(stack, SEED, arrived=lambda: load.shown)
        async with asyncio.TaskGroup() as group:
            for part in ("outbox-relay", "orders-projector", "realtime-gateway", auditor.NAME):
                faults = storm.kills(part, KILLS) + storm.freezes(part)
                group.create_task(storm.over(part, faults, pause_seconds=(0.0, 8.0)))
            for part in ("orders-api", "postgres", "valkey"):
                group.create_task(storm.over(part, storm.kills(part, OTHER_KILLS), pause_seconds=(5.0, 40.0)))
            faults = storm.kills("kafka", KILLS) + storm.freezes("kafka")
            faults += storm.cuts("kafka", stormy.kafka, METADATA_REQUEST)
            group.create_task(storm.over("kafka", faults, pause_seconds=(0.0, 2.0)))
    duplicates = await assert_nothing_lost(stack, load)
    audited = await _assert_audited(stack, load)
    for screen in load.own + load.watching:
        screen.assert_contiguous()
    for screen in load.watching:
        for order_id, versions in screen.had.items():
            assert versions == list(range(1, load.versions[order_id] + 1))
    with capsys.disabled():
        print(  # noqa: T201 # figures for whoever reads the run
            f"\nseed {SEED}; { {part: dict(fired) for part, fired in storm.fired.items()} }; {load.placed} orders,"
            f" {sum(load.versions.values())} events, {duplicates} duplicates on the topic; {audited};"
            f" {len(load.watching)} screens of one order, {len(load.own)} of all with"
            f" {sum(screen.connections for screen in load.own)} connections; attempts met {dict(load.buyers.seen)}"
        )
    # Nobody died whom we did not kill.
    assert {part: stack.restarts[part] - before[part] for part in stack.restarts} == {
        part: storm.fired[part]["killed"] for part in stack.restarts
    }


async def _assert_audited(stack: Stack, load: Load) -> str:
    """The auditor has applied every version once and in order, or it is a dead letter behind one that is; figures."""
    owner = await asyncpg.connect(stack.addresses.postgres)

    async def applied() -> dict[str, list[int]]:
        rows = await owner.fetch(
            "SELECT order_id, array_agg(version ORDER BY position) AS versions FROM audit.applied GROUP BY order_id"
        )
        return {row["order_id"]: row["versions"] for row in rows}

    def understood(order_id: str, version: int) -> int:
        """How many of its versions the auditor can apply."""
        return 1 if version >= 2 and auditor.is_poison(order_id, 2) else version

    wanted = {order_id: understood(order_id, version) for order_id, version in load.versions.items()}

    async def settled() -> bool:
        last = {order_id: versions[-1] for order_id, versions in (await applied()).items()}
        return last == wanted

    try:
        await eventually(settled, "the auditor has everything", seconds=60, every=0.5)
        found = await applied()
    finally:
        await owner.close()
    assert found == {order_id: list(range(1, version + 1)) for order_id, version in wanted.items()}
    dead = {order_id: version for order_id, version in load.versions.items() if wanted[order_id] < version}

    async def buried() -> bool:
        letters = await read_topic(stack.addresses.kafka, dead_letter_topic(ORDERS_TOPIC))
        return {key: max(versions) for key, versions in letters.versions.items()} == dead

    await eventually(buried, "every dead letter is there", seconds=60, every=0.5)
    letters = await read_topic(stack.addresses.kafka, dead_letter_topic(ORDERS_TOPIC))
    for order_id, version in dead.items():
        assert found[order_id] + letters.first_seen(order_id) == list(range(1, version + 1))
    return f"{sum(wanted.values())} applied by the auditor, {len(letters.events)} dead, {letters.duplicates} twice"
