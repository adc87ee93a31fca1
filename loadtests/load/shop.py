"""The stack that is loaded, what there is in it to ask for, and who asks: the file of targets that generators read."""

import asyncio
import json
import secrets
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, Self

import asyncpg
import httpx

from loadtests.load.scenario import LoadError
from services.cli.token import minted
from services.cli.up import prepare
from services.common import clock, ids
from services.embedded.addresses import Addresses
from services.embedded.room import free_port_base
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack
from services.orders import seed

SEED: Final = 13  # of its products and orders: once in a database
STOCK: Final = 1_000_000  # of each product, so that only the flash sale runs out
MONTHS: Final = 12
JOBS: Final = 2  # processes that load them
BUYERS: Final = 200  # each run has its own, so that what is theirs is the run's
CUSTOMERS_MAX: Final = 500  # who have ordered before
WORDS: Final = ("teapot", "kettle", "lamp", "chair", "blue mug", "oak", "brass clock", "vasse")  # one is misspelt
REPORT_DAYS: Final = 30
HOST: Final = "127.0.0.1"
COMES_WITHIN_SECONDS: Final = 60.0  # what another process brings about within seconds
LOOK_SECONDS: Final = 0.05

_DURABLE: Final = ("fsync", "full_page_writes", "synchronous_commit")
_TOLD: Final = (*_DURABLE, "server_version", "shared_buffers", "max_wal_size", "max_connections", "checkpoint_timeout")


@dataclass(frozen=True)
class Shop:
    """A running stack: its endpoints as endpoints.json has them."""

    settings: StackSettings
    endpoints: dict[str, Any]

    @classmethod
    def of(cls, settings: StackSettings) -> Self:
        """The stack that runs in `settings.home`. LoadError for one that is not whole, or not on this machine."""
        endpoints = json.loads((settings.home / "endpoints.json").read_text())
        if missing := {"orders", "catalog", "postgres", "kafka"} - endpoints.keys():
            raise LoadError(f"The stack in {settings.home} does not say where it has {', '.join(sorted(missing))}.")
        for name in ("orders", "catalog"):
            if httpx.URL(endpoints[name]).host != HOST:
                raise LoadError(f"{name} is at {endpoints[name]}: load is only ever put on {HOST}.")
        return cls(settings, endpoints)

    @property
    def orders(self) -> str:
        """URL of orders-api."""
        return str(self.endpoints["orders"])

    @property
    def catalog(self) -> str:
        """URL of catalog-api."""
        return str(self.endpoints["catalog"])

    @property
    def owner_url(self) -> str:
        """URL of the database as its owner."""
        return Addresses.of(self.settings).postgres

    @asynccontextmanager
    async def owned(self) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        """A connection of the owner."""
        connection = await asyncpg.connect(self.owner_url)
        try:
            yield connection
        finally:
            await connection.close()

    async def orders_estimated(self) -> int:
        """How many there are, as the last ANALYZE of each month has it."""
        async with self.inspected() as connection:
            found = await connection.fetchval("SELECT sum(rows_estimated) FROM orders.months WHERE parent = 'orders'")
        return int(found)

    @asynccontextmanager
    async def inspected(self) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
        """A connection that may read everything."""
        connection = await asyncpg.connect(self.endpoints["postgres"])
        try:
            yield connection
        finally:
            await connection.close()

    def bearer(self, scope: str, seconds: float, sub: str | None = None) -> str:
        """A token of `sub`, of somebody new when absent, which outlives a run of `seconds`."""
        return minted(self.settings, sub=sub or str(uuid.uuid4()), scope=scope, hours=1 + seconds / 3600)

    async def durable_settings(self) -> dict[str, str]:
        """PostgreSQL's settings. LoadError when one of durability is off: figures of such a run would mean nothing."""
        async with self.inspected() as connection:
            found: dict[str, str] = {name: await connection.fetchval(f"SHOW {name}") for name in _TOLD}
        if off := [name for name in _DURABLE if found[name] == "off"]:
            raise LoadError(f"PostgreSQL runs with {', '.join(off)} off: nothing is measured without durability.")
        return found


@asynccontextmanager
async def opened(settings: StackSettings, *, products: int, orders: int) -> AsyncIterator[Shop]:
    """The stack that runs in `settings.home`, else one of our own below it with a replica, of which nothing is left.

    It has as many products and orders more as asked for, unless they have been loaded before.
    """
    if (settings.home / "endpoints.json").exists():
        shop = Shop.of(settings)
        await _reached(shop)
        await _stocked(Addresses.of(settings).postgres, products, orders)
        await _served(shop)
        yield shop
        return

    async def prepared(stack: Stack) -> None:
        await prepare(stack)
        await _stocked(stack.addresses.postgres, products, orders)

    settings.home.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix="load-", dir=settings.home) as home:
        own = StackSettings(home=Path(home), port_base=free_port_base())
        async with Stack(own, prepare=prepared, replica=True):
            yield Shop.of(own)


async def _reached(shop: Shop) -> None:
    """LoadError when nobody answers: a stack that was killed leaves its endpoints.json."""
    try:
        async with httpx.AsyncClient() as client:
            (await client.get(f"{shop.orders}/readyz")).raise_for_status()
    except httpx.HTTPError as error:
        file = shop.settings.home / "endpoints.json"
        raise LoadError(f"{shop.orders} is not ready ({error!r}). If the stack is gone, remove {file}.") from error


async def _stocked(url: str, products: int, orders: int) -> None:
    try:
        await seed.seed(url, products=products, orders=orders, stock=STOCK, months=MONTHS, seed=SEED, jobs=JOBS)
    except seed.AlreadySeededError:
        return
    except (OSError, asyncpg.PostgresError) as error:
        raise LoadError(f"Products and orders cannot be loaded: {error!r}") from error


async def _served(shop: Shop) -> None:
    """orders-api has noticed the months of the oldest order: it looks every few seconds."""
    async with shop.inspected() as connection:
        oldest = await connection.fetchrow("SELECT order_id FROM orders.orders ORDER BY created_at, order_id LIMIT 1")
    if oldest is None:
        return
    headers = {"Authorization": f"Bearer {shop.bearer('orders:read orders:read:any', 0)}"}
    path = f"{shop.orders}/v1/orders/{ids.to_text(oldest['order_id'])}"
    async with httpx.AsyncClient(headers=headers) as client, patience("orders-api does not know the months there are"):
        while (await client.get(path)).status_code == 404:
            await asyncio.sleep(LOOK_SECONDS)


@dataclass(frozen=True)
class Visit:
    """What one run asks for: `content` is the file of targets; `buyers` are its own; `sale` is what they fight for."""

    content: dict[str, Any]
    buyers: Sequence[str]
    sale: str | None
    units: int

    def write(self, file: Path) -> None:
        """For its owner alone: it has tokens."""
        file.touch(mode=0o600)
        file.write_text(json.dumps(self.content))


async def visited(shop: Shop, *, seconds: float, products: int, units: int) -> Visit:
    """A run of `seconds` can begin: products and orders are known, new buyers have tokens, and a sale its `units`."""
    async with shop.inspected() as connection:
        offered = await connection.fetch(
            "SELECT product_id FROM orders.products JOIN orders.inventory USING (product_id)"
            " WHERE active AND currency = 'USD' AND on_hand - reserved >= $1 ORDER BY product_id LIMIT $2",
            *(STOCK // 2, products),
        )
        ordered = await connection.fetch(
            "SELECT order_id, user_id FROM orders.orders ORDER BY created_at DESC, order_id DESC LIMIT 20000"
        )
    if not offered or not ordered:
        raise LoadError("There is nothing to buy, or nobody has ordered: ask for at least one product and one order.")
    orders_of = defaultdict(list)
    for row in ordered:
        orders_of[str(row["user_id"])].append(ids.to_text(row["order_id"]))
    customers = sorted(orders_of, key=lambda user: -len(orders_of[user]))[:CUSTOMERS_MAX]
    buyers = [str(uuid.uuid4()) for _ in range(BUYERS)]
    staff = shop.bearer("orders:read:any reports:read", seconds)
    sale = await _on_sale(shop, units) if units else None
    content = {
        "addresses": [
            {
                "orders": shop.orders,
                "catalog": shop.catalog,
                "staff": staff,
                "sale": sale,
                "report": await _report(shop, staff),
            }
        ],
        "products": [ids.to_text(row["product_id"]) for row in offered],
        "words": WORDS,
        "buyers": [shop.bearer("orders:read orders:write", seconds, sub) for sub in buyers],
        "customers": [
            {"token": shop.bearer("orders:read", seconds, sub), "orders": orders_of[sub]} for sub in customers
        ],
    }
    return Visit(content, buyers, sale, units)


async def _report(shop: Shop, staff: str) -> str | None:
    """The query of a report of sales; None when the stack has no replica to give it, once it has summaries."""
    now = clock.now()
    first, end = (now - timedelta(days=REPORT_DAYS)).date(), (now + timedelta(days=1)).date()
    query = f"from={first}&to={end}&by=day&currency=USD"
    async with httpx.AsyncClient(base_url=shop.orders, headers={"Authorization": f"Bearer {staff}"}) as client:
        async with patience("orders-maintenance has refreshed no order summaries"):
            while (await client.get("/v1/order-summaries")).status_code == 503:
                await asyncio.sleep(LOOK_SECONDS)  # until orders-maintenance has refreshed them for the first time
        found = await client.get(f"/v1/reports/sales?{query}")
    return query if found.status_code == 200 else None


async def _on_sale(shop: Shop, units: int) -> str:
    """A new product of which there are so many."""
    product = ids.to_text(ids.new_id(clock.now()))
    desk = {"Authorization": f"Bearer {shop.bearer('catalog:write inventory:write', 0)}"}
    body = {"name": f"Flash sale {product}", "price": 999, "currency": "USD", "active": True}
    async with httpx.AsyncClient(headers=desk) as client, patience(f"product {product} has not come to orders"):
        (await client.put(f"{shop.catalog}/v1/products/{product}", json=body)).raise_for_status()
        path, key = f"{shop.orders}/v1/inventory/{product}/adjustments", {"Idempotency-Key": secrets.token_hex(8)}
        delta = {"delta": units, "reason": "flash sale"}
        while (answer := await client.post(path, json=delta, headers=key)).status_code == 404:
            await asyncio.sleep(LOOK_SECONDS)  # until the catalogue's event has come to orders
        answer.raise_for_status()
    return product


@asynccontextmanager
async def patience(otherwise: str) -> AsyncIterator[None]:
    """LoadError `otherwise` when it is not done within COMES_WITHIN_SECONDS."""
    try:
        async with asyncio.timeout(COMES_WITHIN_SECONDS):
            yield
    except TimeoutError:
        raise LoadError(f"After {COMES_WITHIN_SECONDS:g} s {otherwise}.") from None
