"""`orders up`: the whole backend in the foreground."""

import asyncio
import json
import secrets
import sys
import uuid
from collections.abc import Coroutine
from typing import Annotated, Any

import asyncpg
import typer
from rich.console import Console

from services.cli import migrate
from services.cli.token import minted
from services.common import ids, log
from services.embedded.errors import StackError
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack, stop_on_signals
from services.orders import seed

FIRST_PRODUCTS = 100
FIRST_STOCK = 10_000
FIRST_SEED = 0  # so that `orders seed`, which begins with 1, finds its own not loaded

console = Console(stderr=True)


def up(
    edge: Annotated[bool, typer.Option("--edge", help="with nginx, as the machine has it, before the APIs")] = False,
    replica: Annotated[
        bool, typer.Option("--replica", help="with a streaming replica of PostgreSQL, which reports need")
    ] = False,
) -> None:
    """Start everything, and keep it running until Ctrl-C.

    PostgreSQL, Valkey and Kafka are embedded unless ORDERS_POSTGRES_URL, ORDERS_VALKEY_URL or ORDERS_KAFKA_URL name
    others. State is kept in ORDERS_HOME (.local); ORDERS_PORT_BASE (8000) moves all ports. What dies is restarted.
    """
    log.configure("orders-up", "INFO")
    run(_up(StackSettings(), edge=edge, replica=replica))


def run(main: Coroutine[Any, Any, None]) -> None:
    """`main` has run to its end; a stack that cannot start is told in a line, with its remedy and exit code 1."""
    try:
        asyncio.run(main)
    except StackError as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None


async def _up(settings: StackSettings, *, edge: bool, replica: bool) -> None:
    with stop_on_signals():
        async with Stack(settings, edge=edge, replica=replica, lasting=True, prepare=prepare) as stack:
            await greet(stack)
            await asyncio.Event().wait()


async def prepare(stack: Stack) -> None:
    """The schema is there, and something to sell."""
    url = stack.addresses.postgres
    await asyncio.to_thread(migrate.upgrade, url, role_password=stack.addresses.role_password)
    if await any_product(url) is None:
        await seed.seed(
            url, products=FIRST_PRODUCTS, stock=FIRST_STOCK, orders=0, months=1, seed=FIRST_SEED, currencies=("USD",)
        )


async def any_product(url: str) -> str | None:
    """The ULID of a product that is for sale, None when there is none."""
    connection = await asyncpg.connect(url)
    try:
        found = await connection.fetchval(
            "SELECT product_id FROM orders.products JOIN orders.inventory USING (product_id)"
            " WHERE active AND on_hand > reserved ORDER BY product_id LIMIT 1"
        )
        return None if found is None else ids.to_text(found)
    finally:
        await connection.close()


async def greet(stack: Stack) -> None:
    """Lines to paste, on standard output."""
    orders = str(stack.endpoints["orders"])
    buyer = uuid.uuid4()
    bearer = minted(stack.settings, sub=str(buyer), scope="orders:read orders:write", hours=1)
    product = await any_product(stack.addresses.postgres)
    body = json.dumps({"currency": "USD", "items": [{"product_id": product, "quantity": 1}]})
    edge = f"   Edge: {stack.endpoints['edge']}" if "edge" in stack.endpoints else ""
    auth = f"-H 'Authorization: Bearer {bearer}'"
    sys.stdout.write(
        "\nReady. Place an order, list your orders, look at the stock:\n\n"
        f"curl -s {orders}/v1/orders {auth} -H 'Content-Type: application/json'"
        f" -H 'Idempotency-Key: {secrets.token_hex(8)}' -d '{body}'\n\n"
        f"curl -s {orders}/v1/orders {auth}\n\n"
        f"curl -s {orders}/v1/inventory/{product} {auth}\n\n"
        f"Documentation: {orders}/docs   Events: orders tail{edge}   Stop: Ctrl-C\n"
    )
    sys.stdout.flush()
