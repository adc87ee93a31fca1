"""The stack that rows run on: PostgreSQL with every durability setting on, Valkey, ours and its limits, and a buyer."""

import asyncio
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Final, TypeAlias
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import httpx

from loadtests.bench import numbered, placing
from loadtests.bench.machine import cpu_of
from loadtests.machine import ROOT
from services.cli import migrate
from services.common import clock, ids
from services.common.db import SESSION
from services.common.settings import ProcessSettings
from services.embedded import keys
from services.embedded.postgres import DATABASE
from services.embedded.processes import PROCESSES, Process
from services.embedded.room import free_port_base
from services.embedded.settings import HOST, StackSettings
from services.embedded.supervisor import Stack
from services.orders.place import PLACE

Connection: TypeAlias = "asyncpg.Connection[asyncpg.Record]"

PRODUCTS: Final = 1_000
STOCK: Final = 10**9  # of each: nothing is ever sold out
CANCELLED_EVERY: Final = 5  # of the buyer's orders one in so many, which a list by status shows
BUYER: Final = numbered.thing("user", 1)
ORDERS_STEP_MS: Final = 1_000
ISSUER, OURS, UNCACHED = "token-issuer", "orders-api", "orders-api-uncached"
LIMITS: Final = ("bare", "constant", "idiomatic")  # programs beside this one
POOLS: Final = {f"pool-{size}": size for size in (2, 4, 8)}  # ours with so many connections; else it has 16
# Offsets from the stack's base.
_PORTS: Final = {name: 9 + n for n, name in enumerate(("bare", "constant", UNCACHED, "idiomatic", *POOLS))}
_NOBODY: Final = "127.0.0.1:1"
_EMPTY: Final = "bench_empty"  # a database with the schema and nothing else


@dataclass(frozen=True)
class Stage:
    """What rows are given. The buyer's orders are numbered from 0, `first_at` and ORDERS_STEP_MS apart."""

    stack: Stack
    orders: int
    first_at: datetime
    quick: bool
    sizes: tuple[int, ...]  # of what is compared by its size
    ending: AsyncExitStack

    @property
    def postgres_url(self) -> str:
        """Of the owner."""
        return self.stack.addresses.postgres

    @property
    def role_url(self) -> str:
        """Of the role that the API has."""
        return self.stack.addresses.postgres_as("orders_api")

    async def connected(self, url: str | None = None) -> Connection:
        """A connection for as long as the stage lives or its database; the owner's, if not said."""
        connection = await asyncpg.connect(url or self.postgres_url)
        self.ending.push_async_callback(connection.close)
        return connection

    async def fresh_database(self, name: str) -> str:
        """URL of an empty database with the schema, as its owner; one of that name is replaced."""
        owner = await self.connected()
        await owner.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        await owner.execute(f"CREATE DATABASE {name} TEMPLATE {_EMPTY}")
        await owner.close()
        return urlunsplit(urlsplit(self.postgres_url)._replace(path=f"/{name}"))

    @cached_property
    def postgres_cpu(self) -> Callable[[], float]:
        """CPU seconds of PostgreSQL so far."""
        return self.cpu("postgres")

    def cpu(self, name: str) -> Callable[[], float]:
        """CPU seconds of a part of the stack so far."""
        pid = self.stack.pid(name)
        if pid is None:
            raise RuntimeError(f"{name} does not run")
        return cpu_of(pid)

    def url(self, name: str) -> str:
        """Of a process's HTTP server."""
        if name in _PORTS:
            return f"http://{HOST}:{self.stack.settings.port(_PORTS[name])}"
        return str(self.stack.endpoints["orders"])

    @cached_property
    def token(self) -> str:
        """The buyer's."""
        return keys.mint(
            self.stack.settings.home,
            issuer=self.stack.addresses.issuer,
            audience=ProcessSettings().audience,
            sub=str(BUYER),
            scope="orders:read orders:write",
            lifetime_seconds=24 * 3600,
        )

    def order(self, number: int) -> ids.OrderKey:
        """The buyer's order of that number."""
        return numbered.order(number, numbered.spread(self.first_at, number, ORDERS_STEP_MS), BUYER)


def processes(names: Collection[str]) -> tuple[Process, ...]:
    """Those of `names`, ours in other ways beside ours as it is, and the limits."""
    known = {process.name: process for process in PROCESSES}
    ours = known[OURS]
    ways = {UNCACHED: {"ORDERS_CACHE_URL": ""}, **{name: {"ORDERS_POOL_SIZE": f"{n}"} for name, n in POOLS.items()}}
    others = [
        replace(ours, name=name, port=_PORTS[name], metrics=None, endpoint=None, argv=_script(OURS), env=env)
        for name, env in ways.items()
    ]
    limits = [
        Process(
            name,
            role=ours.role,
            port=_PORTS[name],
            ready_path="/readyz",
            argv=(sys.executable, "-m", f"loadtests.bench.{name}"),
            env={"PYTHONPATH": str(ROOT)},
        )
        for name in LIMITS
    ]
    return tuple(process for process in (known[ISSUER], ours, *others, *limits) if process.name in names)


def _script(name: str) -> tuple[str, ...]:
    """What starts it, under whatever name."""
    return (str(Path(sys.executable).with_name(name)),)


@asynccontextmanager
async def opened(
    names: Collection[str], *, orders: int, quick: bool = False, sizes: tuple[int, ...] = ()
) -> AsyncIterator[Stage]:
    """A stack of its own with the processes of `names`, products, and a buyer with `orders` orders."""
    first_at = clock.now() - timedelta(milliseconds=(orders + 1) * ORDERS_STEP_MS)

    async def prepare(stack: Stack) -> None:
        await asyncio.to_thread(migrate.upgrade, stack.addresses.postgres, role_password=stack.addresses.role_password)
        await _fill(stack.addresses.postgres, orders, first_at)

    with tempfile.TemporaryDirectory(prefix="bench") as home:
        settings = StackSettings(home=Path(home), port_base=free_port_base(), kafka_url=_NOBODY)
        stack = Stack(settings, processes=processes(names), prepare=prepare)
        async with stack, AsyncExitStack() as ending:
            stage = Stage(stack, orders, first_at, quick, sizes, ending)
            if UNCACHED in names:
                await _cancel_some(stage)
            yield stage


async def _fill(url: str, orders: int, first_at: datetime) -> None:
    """Months, products with stock, and the buyer's orders by the statement that the service places them with."""
    server = await asyncpg.connect(url, database="postgres")
    await server.execute(f'CREATE DATABASE {_EMPTY} TEMPLATE "{DATABASE}"')
    await server.close()
    connection = await asyncpg.connect(url, server_settings=dict(SESSION))
    try:
        for month in (first_at, clock.now(), clock.add_months(clock.month_of(clock.now()), 1)):
            await connection.execute("SELECT orders.create_month($1)", month.date())
        await connection.execute(offering(PRODUCTS, STOCK))
        for number in range(orders):
            at = numbered.spread(first_at, number, ORDERS_STEP_MS)
            values = placing.arguments(
                numbered.order(number, at, BUYER),
                user_id=BUYER,
                subject=str(BUYER),
                key=f"stage-{number}",
                currency="USD",
                items=basket(number),
                now=at,
            )
            await connection.execute(PLACE.sql, *values)
        await connection.execute("VACUUM ANALYZE")
    finally:
        await connection.close()


def offering(products: int, stock: int) -> str:
    """SQL that puts numbered products and their stock where orders look for them."""
    product = numbered.thing_sql("product", "n")
    return (
        f"INSERT INTO orders.products (product_id, name, price, currency, active, version)"  # of ours
        f" SELECT {product}, 'Thing ' || n, 999, 'USD', TRUE, 1 FROM generate_series(0, {products - 1}) n;"
        f" INSERT INTO orders.inventory (product_id, on_hand, reserved, version)"
        f" SELECT {product}, {stock}, 0, 1 FROM generate_series(0, {products - 1}) n"
    )


def basket(number: int) -> list[dict[str, object]]:
    """One to three products. Of many baskets each product is in equally many: what is measured is no queue for one."""
    return [
        {"product_id": ids.to_text(numbered.thing("product", (number + line) % PRODUCTS)), "quantity": 1}
        for line in range(1 + number % 3)
    ]


async def _cancel_some(stage: Stage) -> None:
    """One order in CANCELLED_EVERY is, through the API."""
    async with httpx.AsyncClient(base_url=stage.url(UNCACHED)) as client:
        for number in range(0, stage.orders, CANCELLED_EVERY):
            answer = await client.post(
                f"/v1/orders/{ids.to_text(stage.order(number).order_id)}/cancel",
                json={},
                headers={
                    "Authorization": f"Bearer {stage.token}",
                    "Idempotency-Key": f"stage-cancel-{number}",
                    "If-Match": '"1"',
                },
            )
            answer.raise_for_status()
