"""The shop, with every response held against the OpenAPI document; shops with a clock of their own, and on a socket."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import httpx
import pytest
import uvicorn

from services.cli import migrate, openapi
from services.common import clock
from services.embedded.room import free_port_base
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack
from services.orders import api
from services.orders.settings import OrdersSettings
from tests.conftest import UNUSED_KAFKA
from tests.contracts.description import Description
from tests.serving import listening, serving_as
from tests.shop import Shop, opened_shop

OpenShop = Callable[[clock.Clock], AbstractAsyncContextManager[Shop]]


@pytest.fixture(scope="session")
def description() -> Description:
    """The OpenAPI document."""
    return Description(openapi.ORDERS)


@pytest.fixture
async def shop(shop: Shop, description: Description) -> Shop:
    """The shop; a response that is not as described fails the test."""
    shop.client.event_hooks["response"].append(description.check)
    return shop


@pytest.fixture
def open_shop(
    orders_settings: OrdersSettings,
    issuer: tuple[Path, str],
    owner: "asyncpg.Connection[asyncpg.Record]",
    description: Description,
) -> OpenShop:
    """Call with a clock for a shop that goes by it."""

    @asynccontextmanager
    async def opened(now: clock.Clock) -> AsyncIterator[Shop]:
        async with opened_shop(orders_settings, issuer[0], owner, now) as shop:
            shop.client.event_hooks["response"].append(description.check)
            yield shop

    return opened


@pytest.fixture(scope="package")
async def replicated(tmp_path_factory: pytest.TempPathFactory, valkey_url: str) -> AsyncIterator[Stack]:
    """A PostgreSQL with a replica."""

    async def prepare(started: Stack) -> None:
        await asyncio.to_thread(migrate.upgrade, started.addresses.postgres)

    settings = StackSettings(
        home=tmp_path_factory.mktemp("replicated"),
        port_base=free_port_base(),
        valkey_url=valkey_url,
        kafka_url=UNUSED_KAFKA,
    )
    async with Stack(settings, processes=(), prepare=prepare, durable=False, replica=True) as started:
        yield started


@dataclass
class Served:
    """A shop behind a real HTTP server."""

    shop: Shop
    port: int

    async def raw(self, request: bytes, *, then: Callable[[], Awaitable[object]] | None = None) -> bytes:
        """All that the server says to these bytes, until it closes; with `then`, we close once that is done."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            writer.write(request)
            await writer.drain()
            if then is not None:
                await then()
                return b""
            return await asyncio.wait_for(reader.read(), 10)
        finally:
            writer.close()


@pytest.fixture
async def served(
    orders_settings: OrdersSettings,
    issuer: tuple[Path, str],
    owner: "asyncpg.Connection[asyncpg.Record]",
    description: Description,
) -> AsyncIterator[Served]:
    """orders-api as it is run, on a free port."""
    config = uvicorn.Config(
        api.create_app(orders_settings),
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        timeout_graceful_shutdown=1,
    )
    listener, url = listening()
    hooks = {"response": [description.check]}
    async with (
        serving_as(config, listener) as port,
        httpx.AsyncClient(base_url=url, event_hooks=hooks, timeout=30) as client,
    ):
        yield Served(Shop(client, orders_settings, issuer[0], owner), port)
