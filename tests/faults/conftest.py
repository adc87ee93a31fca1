"""Servers that may be killed: none of these is shared with other tests. PostgreSQL keeps all its promises here."""

import asyncio
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import httpx
import pytest

from services.cli import migrate, up
from services.embedded.processes import PROCESSES
from services.embedded.room import free_port_base
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack
from tests.faults.buyers import Buyers
from tests.faults.ledger import stock_up
from tests.faults.replicas import Replica

SEED = int(os.environ.get("FAULTS_SEED", "20261"))  # what is left to chance follows from it
REPLICAS = 4
_FIRST_PORT = 10  # as an offset, past those of the stack's own processes


async def migrated(stack: Stack, role_password: str | None = None) -> None:
    """The schema is there, and the months. A password is what roles need that come by TCP."""
    await asyncio.to_thread(migrate.upgrade, stack.addresses.postgres, role_password=role_password)
    connection = await asyncpg.connect(stack.addresses.postgres)
    await connection.execute(
        "SELECT orders.create_month((date_trunc('month', now()) + make_interval(months => ahead))::date)"
        " FROM generate_series(0, 3) ahead"
    )
    await connection.close()


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    """All parts of `orders up`, in a home and on ports of its own."""
    settings = StackSettings(home=tmp_path / "home", port_base=free_port_base())
    async with Stack(settings, prepare=up.prepare) as started:
        yield started


@pytest.fixture
async def servers(tmp_path: Path) -> AsyncIterator[Stack]:
    """PostgreSQL with the schema, Valkey and Kafka, and no process."""
    settings = StackSettings(home=tmp_path / "home", port_base=free_port_base())
    async with Stack(settings, processes=(), prepare=migrated) as started:
        yield started


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Stack]:
    """PostgreSQL with the schema, Valkey and a token issuer. What is acknowledged is on disk: no test setting here."""
    settings = StackSettings(home=tmp_path / "home", port_base=free_port_base(), kafka_url="127.0.0.1:1")
    issuer = tuple(process for process in PROCESSES if process.endpoint == "issuer")
    async with Stack(settings, processes=issuer, prepare=migrated, durable=True) as stack:
        yield stack


def environment(stack: Stack, postgres_url: str | None = None) -> dict[str, str]:
    """What a replica of orders-api has to be told."""
    return {
        "ORDERS_POSTGRES_URL": postgres_url or stack.addresses.postgres_as("orders_api"),
        "ORDERS_VALKEY_URL": stack.addresses.valkey,
        "ORDERS_KAFKA_URL": stack.addresses.kafka,
        "ORDERS_ISSUER_URL": stack.addresses.issuer,
        "ORDERS_HOST": "127.0.0.1",
    }


@pytest.fixture
async def replicas(database: Stack) -> AsyncIterator[list[Replica]]:
    """Replicas of orders-api, side by side."""
    log = database.settings.home / "log"
    made = [
        Replica(number, database.settings.port(_FIRST_PORT + number), environment(database), log)
        for number in range(REPLICAS)
    ]
    try:
        await asyncio.gather(*(replica.start() for replica in made))
        yield made
    finally:
        await asyncio.gather(*(replica.ended() for replica in made))


@pytest.fixture
async def buyers(database: Stack) -> AsyncIterator[Buyers]:
    """Buyers with something to buy."""
    owner = await asyncpg.connect(database.addresses.postgres)
    products = await stock_up(owner, products=40, on_hand=1_000_000)
    await owner.close()
    async with httpx.AsyncClient(timeout=10) as client:
        yield Buyers(
            issuer_home=database.settings.home,
            issuer_url=database.addresses.issuer,
            client=client,
            chance=random.Random(SEED),
            products=products,
        )
