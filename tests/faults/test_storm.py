"""Every event, once and in order, from commit to screen: while every part of a stack is killed, frozen and cut off.

Orders are placed, advanced and looked at meanwhile, and products change. What is to be true afterwards is true of
all that happened, not of samples: in the database, on Kafka, at each consumer and on each screen.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import asyncpg
import httpx
import pytest

from services.cli import up
from services.embedded.kafka import METADATA_REQUEST
from services.embedded.processes import PROCESSES
from services.embedded.room import free_port_base
from services.embedded.settings import HOST, KAFKA, METRICS, SANDBOX, StackSettings
from services.embedded.supervisor import Stack
from tests.faults import auditor
from tests.faults.conftest import SEED
from tests.faults.counts import Counts, counting
from tests.faults.load import Load, loaded
from tests.faults.money import METHODS, assert_money_adds_up
from tests.faults.outcome import assert_audited, assert_nothing_lost, assert_shown
from tests.faults.products import WITNESS, Keeper
from tests.faults.storm import Storm
from tests.faults.toxiproxy import Proxy, proxied, server, toxiproxy

# Twenty kills of each part that carries events, in bursts. Between them there has to be time to work: a consumer that
# was killed keeps its place in its group for 6 s of the broker's life.
KILLS = (1, 1, 1, 1, 1, 1, 2, 2, 4, 6)
KAFKA_KILLS = (1, 1, 2, 2, 6, 8)
OTHER_KILLS = (1, 1, 1)  # of each part that events come from
SOURCES = ("orders-api", "catalog-api", "postgres", "valkey")
CLIENTS = 4  # on account
PAYERS = 12
THINK_SECONDS = 0.4
PROXY_API, KAFKA_PROXY, PROVIDER_PROXY = METRICS + 16, METRICS + 17, METRICS + 18
HEALTH_REQUEST = b"GET /healthz HTTP/1.0\r\n\r\n"
# Of payments-worker: so that what was lost in the storm is not waited for longer than the storm lasts.
PATIENCE = {
    "ORDERS_PROVIDER_DEADLINE_SECONDS": "2",
    "ORDERS_PROVIDER_RESET_SECONDS": "2",
    "ORDERS_STEP_LEASE_SECONDS": "6",
    "ORDERS_RETRY_SECONDS_MAX": "4",
}


@dataclass
class Stormy:
    """A whole stack, with an auditor, whose Kafka and whose payment provider are behind proxies."""

    stack: Stack
    kafka: Proxy
    provider: Proxy


@pytest.fixture
async def stormy(tmp_path: Path) -> AsyncIterator[Stormy]:
    program = server()
    if program is None:
        pytest.skip("there is no Toxiproxy: make tools")
    base = free_port_base()
    settings = StackSettings(home=tmp_path / "home", port_base=base, kafka_advertised=f"{HOST}:{base + KAFKA_PROXY}")

    async def prepare(stack: Stack) -> None:
        await up.prepare(stack)
        owner = await asyncpg.connect(stack.addresses.postgres)
        await owner.execute(auditor.SCHEMA + WITNESS)
        await owner.close()

    async with toxiproxy(program, settings.port(PROXY_API), tmp_path / "toxiproxy.log") as api:
        kafka = await proxied(api, "kafka", listen=settings.port(KAFKA_PROXY), upstream=settings.port(KAFKA))
        provider = await proxied(api, "provider", listen=settings.port(PROVIDER_PROXY), upstream=settings.port(SANDBOX))
        told = {**PATIENCE, "ORDERS_PROVIDER_URL": f"http://{HOST}:{provider.listen}"}
        processes = [replace(one, env=told) if one.name == "payments-worker" else one for one in PROCESSES]
        processes.append(auditor.process(settings))
        async with Stack(settings, processes=processes, prepare=prepare, healthy_seconds=0.5) as stack:
            yield Stormy(stack, kafka, provider)


async def test_every_event_comes_once_and_in_order_to_everybody_whoever_dies_meanwhile(
    stormy: Stormy, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = stormy.stack
    print(f"FAULTS_SEED={SEED}")  # noqa: T201 # shown when it fails
    before = dict(stack.restarts)
    storm = Storm(stack, SEED)
    working = loaded(stack, CLIENTS, payers=PAYERS, methods=METHODS, looks=True, think_seconds=THINK_SECONDS)
    phases = [time.monotonic()]
    async with working as load, httpx.AsyncClient(timeout=30) as client:
        keeper = Keeper(stack, client, load.buyers.token("catalog:write"))
        async with asyncio.TaskGroup() as keeping:
            keeping.create_task(keeper.keep(THINK_SECONDS))
            async with counting(stack.addresses.postgres) as counts:
                await _weathered(storm, stormy, load, counts)
            keeper.ending = True
        phases.append(time.monotonic())
        await load.end()
        newest, duplicates = await assert_nothing_lost(stack, load)
        phases.append(time.monotonic())
        figures = [
            f"storm and all that was in it over after s {[round(after - phases[0]) for after in phases[1:]]}",
            f"{load.placed} orders, {sum(newest.values())} events, {duplicates} of them twice on the topic",
            await assert_money_adds_up(stack, load.buyers.asked),
            await assert_shown(load, newest),
            await assert_audited(stack, newest),
            await keeper.assert_copied(),
            f"attempts met {dict(load.buyers.seen)}",
        ]
    with capsys.disabled():
        print(  # noqa: T201 # figures for whoever reads the run
            f"\nseed {SEED}; {storm.told}; " + "; ".join(figures)
        )
    # Nobody died whom we did not kill.
    assert {part: stack.restarts[part] - before[part] for part in stack.restarts} == {
        part: storm.fired[part]["killed"] + storm.fired[part]["ended"] for part in stack.restarts
    }


async def _weathered(storm: Storm, stormy: Stormy, load: Load, counts: Counts) -> None:
    """All faults have hit all parts."""
    carriers: dict[str, Callable[[], int]] = {
        "outbox-relay": lambda: load.shown,
        "realtime-gateway": lambda: load.shown,
        "orders-projector": lambda: counts.copied,
        "payments-worker": lambda: counts.paid,
        "payments-sandbox": lambda: counts.paid,
        auditor.NAME: lambda: counts.audited,
    }
    cuts = {
        "kafka": storm.cuts("kafka", stormy.kafka, METADATA_REQUEST),
        "payments-sandbox": storm.cuts("payments-sandbox", stormy.provider, HEALTH_REQUEST),
    }
    async with asyncio.TaskGroup() as group:
        for part, arrived in carriers.items():
            faults = (
                storm.kills(part, KILLS if part != auditor.NAME else OTHER_KILLS)
                + storm.freezes(part)
                + storm.ends(part)
                + cuts.get(part, [])
            )
            group.create_task(storm.over(part, faults, arrived=arrived, pause_seconds=(0.0, 5.0)))
        # One after the other: an API that starts while there is no database gives up, and is started again.
        faults = [kill for part in SOURCES for kill in storm.kills(part, OTHER_KILLS)]
        group.create_task(storm.over("sources", faults, arrived=lambda: load.placed, pause_seconds=(0.0, 20.0)))
        faults = storm.kills("kafka", KAFKA_KILLS) + storm.freezes("kafka") + cuts["kafka"]
        group.create_task(storm.over("kafka", faults, arrived=lambda: load.shown, pause_seconds=(2.0, 12.0)))
