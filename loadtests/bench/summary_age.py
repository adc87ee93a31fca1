"""How old the order summaries are when a client gets them: `python -m loadtests.bench.summary_age [--orders 20000]`.

Loads orders as `summary.py` does, of the last `--days` (orders older than four days are not shown), then runs
orders-maintenance as it is, with its default window and interval, and orders-api. A client asks GET /v1/order-summaries
five times a second for `--seconds`, while orders are placed, RATE a second. An answer's age is the client's clock,
when it has all of it, less `as_of`. Exit code 1 when its p99 is over 60 s.

It takes the time of the load (about 1 min per 100,000 orders on two cores) and `--seconds`.
"""

import argparse
import asyncio
import re
import sys
import tempfile
import time
import uuid
from datetime import datetime
from pathlib import Path

import httpx

from loadtests.bench.summary import RATE, load, place, say, told
from services.cli import migrate
from services.cli.token import minted
from services.common.db import Database
from services.embedded.processes import PROCESSES
from services.embedded.room import free_port_base
from services.embedded.settings import METRICS, StackSettings
from services.embedded.supervisor import Stack

AGE_MAX_SECONDS = 60.0
EVERY_SECONDS = 0.2
NEEDED = ("token-issuer", "orders-maintenance", "orders-api")


async def ages(stack: Stack, seconds: float) -> list[float]:
    """The age of each answer, in seconds. The first refresh is waited for."""
    bearer = minted(stack.settings, sub=str(uuid.uuid4()), scope="orders:read orders:read:any", hours=8)
    found: list[float] = []
    async with httpx.AsyncClient(
        base_url=str(stack.endpoints["orders"]), headers={"Authorization": f"Bearer {bearer}"}, timeout=30
    ) as client:
        while (await client.get("/v1/order-summaries", params={"limit": 1})).status_code == 503:
            await asyncio.sleep(EVERY_SECONDS)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            response = await client.get("/v1/order-summaries", params={"limit": 20})
            response.raise_for_status()
            found.append(time.time() - datetime.fromisoformat(response.json()["as_of"]).timestamp())
            await asyncio.sleep(EVERY_SECONDS)
    return found


async def refreshes(stack: Stack) -> str:
    """How many there were, how long they took on average, and how many orders they show."""
    port = next(process.metrics for process in PROCESSES if process.name == "orders-maintenance") or METRICS
    async with httpx.AsyncClient() as client:
        text = (await client.get(f"http://127.0.0.1:{stack.settings.port(port)}/metrics")).text

    def sample(name: str) -> float:
        line = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
        return float(line[1]) if line else 0.0

    count, total = (sample(f"order_summaries_refresh_seconds_{kind}") for kind in ("count", "sum"))
    return f"{count:.0f} refreshes of {total / max(count, 1):.2f} s, {sample('order_summaries_rows'):,.0f} orders shown"


async def main(orders: int, days: int, seconds: float) -> int:
    """On servers of its own."""
    products: list[uuid.UUID] = []

    async def prepare(stack: Stack) -> None:
        await asyncio.to_thread(migrate.upgrade, stack.addresses.postgres)
        started = time.perf_counter()
        products.extend(await load(stack.addresses.postgres, orders, days))
        say(f"{orders:,} orders of {days} days loaded in {time.perf_counter() - started:.0f} s")

    with tempfile.TemporaryDirectory() as home:
        settings = StackSettings(home=Path(home), port_base=free_port_base(), kafka_url="127.0.0.1:1")
        processes = [process for process in PROCESSES if process.name in NEEDED]
        async with Stack(settings, processes=processes, prepare=prepare) as stack:
            api = Database(stack.addresses.postgres_as("orders_api"), application_name="bench", size_max=1)
            await api.open()
            placing = asyncio.create_task(place(api, products, seconds, RATE))
            found = await ages(stack, seconds)
            placed = await placing
            await api.close()
            say(await refreshes(stack))
            say(f"{len(placed):,} orders placed meanwhile")
    say(f"age of as_of: {told(found)}")
    return int(sorted(found)[int(len(found) * 0.99)] > AGE_MAX_SECONDS)


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--orders", type=int, default=20_000)
    arguments.add_argument("--days", type=int, default=30)
    arguments.add_argument("--seconds", type=float, default=180)
    given = arguments.parse_args()
    sys.exit(asyncio.run(main(given.orders, given.days, given.seconds)))
