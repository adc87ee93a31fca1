"""From commit to consumer: `python -m loadtests.bench.consumer [--rate 63] [--seconds 60]`, with everything running.

Orders are placed over HTTP at a steady rate, whether or not earlier ones have been answered: 63 a second is the peak of
ten million a year. A consumer as docs/consuming.md has it, in this process, keeps their inbox rows. Told is the time
from the event's, which is shortly before its order's commit, to the handler and to the commit of its effect; and what
each process, and PostgreSQL for it, has used of a processor meanwhile by the order.
"""

import argparse
import asyncio
import os
import random
import secrets
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import httpx

from loadtests.bench.capacity_meter import Meter
from services.cli.token import minted
from services.cli.up import prepare
from services.common import ids
from services.common.consumer import Consumer
from services.common.db import Database
from services.common.inbox import Inbox
from services.common.stream import Received
from services.contracts.envelope import ORDERS_TOPIC
from services.embedded.processes import PROCESSES
from services.embedded.room import free_port_base
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack

NAME = "bench"
WARM_SECONDS = 5  # placed at the same rate, and not told
COMES_WITHIN_SECONDS = 30.0


class Seen:
    """A consumer of the topic, and when it had the event of each order."""

    def __init__(self, stack: Stack) -> None:
        self.handled: dict[str, float] = {}
        self.applied: dict[str, float] = {}
        self._inbox = Inbox(NAME, NAME)
        self._database = Database(stack.addresses.postgres, application_name=NAME, size_min=0, size_max=1)
        self._consumer = Consumer(stack.addresses.kafka, group=NAME, topics=[ORDERS_TOPIC], handle=self._handle)

    async def run(self) -> None:
        """Until cancelled."""
        await self._database.open()
        try:
            await self._consumer.run()
        finally:
            await self._database.close()

    async def _handle(self, topic: str, messages: Sequence[Received]) -> dict[str, int]:
        self._note(self.handled, messages)
        async with self._database.transaction() as connection:
            new = await self._inbox.judge_changes(connection, topic, messages)
        self._note(self.applied, messages)
        return {"applied": sum(new), "stale": len(new) - sum(new)}

    def _note(self, times: dict[str, float], messages: Sequence[Received]) -> None:
        now = time.time()
        for message in messages:
            happened = datetime.fromisoformat(message.headers["ce_time"].decode()).timestamp()
            times.setdefault((message.key or b"").decode(), now - happened)


async def place(stack: Stack, products: Sequence[str], rate: float, seconds: float) -> dict[str, float]:
    """The orders placed at `rate`, with the seconds until each was answered."""
    token = minted(stack.settings, sub=str(uuid.uuid4()), scope="orders:write", hours=1)
    answered: dict[str, float] = {}

    async def one(client: httpx.AsyncClient) -> None:
        started = time.perf_counter()
        response = await client.post(
            "/v1/orders",
            json={"currency": "USD", "items": [{"product_id": random.choice(products), "quantity": 1}]},
            headers={"Authorization": f"Bearer {token}", "Idempotency-Key": secrets.token_hex(8)},
        )
        answered[response.raise_for_status().json()["order_id"]] = time.perf_counter() - started

    async with (
        httpx.AsyncClient(base_url=str(stack.endpoints["orders"]), timeout=30) as client,
        asyncio.TaskGroup() as placing,
    ):
        started = time.perf_counter()
        for number in range(round(rate * seconds)):
            await asyncio.sleep(started + number / rate - time.perf_counter())
            placing.create_task(one(client))
    return answered


def told(seconds: Sequence[float]) -> str:
    """Quantiles."""
    percentiles = statistics.quantiles(seconds, n=100)
    p50, p99, most = (value * 1000 for value in (percentiles[49], percentiles[98], max(seconds)))
    return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, max {most:.1f} ms"


async def main(rate: float, seconds: float) -> None:
    """Run and print."""
    say(f"{os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f}, {datetime.now(UTC):%Y-%m-%d}")
    with tempfile.TemporaryDirectory(prefix="bench") as home:
        settings = StackSettings(home=Path(home), port_base=free_port_base())
        async with Stack(settings, prepare=prepare) as stack:
            connection = await asyncpg.connect(stack.addresses.postgres, server_settings={"application_name": NAME})
            await connection.execute("CREATE EXTENSION IF NOT EXISTS pg_stat_statements")
            await connection.execute(f"CREATE SCHEMA {NAME}")
            await connection.execute(f"CREATE TABLE {NAME}.inbox (LIKE orders.inbox INCLUDING ALL)")
            await connection.execute("UPDATE orders.inventory SET on_hand = 1000000000")
            found = await connection.fetch("SELECT product_id FROM orders.products WHERE active")
            products = [ids.to_text(row["product_id"]) for row in found]
            seen = Seen(stack)
            consuming = asyncio.create_task(seen.run())
            await place(stack, products, rate, WARM_SECONDS)
            meter = Meter(stack, connection, [process.name for process in PROCESSES])
            before = await meter.read()
            answered = await place(stack, products, rate, seconds)
            async with asyncio.timeout(COMES_WITHIN_SECONDS):
                while not answered.keys() <= seen.applied.keys() and not consuming.done():
                    await asyncio.sleep(0.1)
            used = {name: value - before.get(name, 0.0) for name, value in (await meter.read()).items()}
            await connection.close()
            consuming.cancel()
            await asyncio.wait([consuming])
            say(f"{len(answered)} orders at {rate:g} a second, each placed with {told(list(answered.values()))}")
            for what, times in (("the handler", seen.handled), ("its effect's commit", seen.applied)):
                say(f"from an event's time to {what}: {told([times[order_id] for order_id in answered])}")
            for name, value in sorted(used.items()):
                if name.startswith("cpu "):
                    say(f"{name}: {value / len(answered) * 1e6:.0f} us an order")
            say(f"load average {os.getloadavg()[0]:.1f}")


def say(line: str) -> None:
    """At once, also into a pipe."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rate", type=float, default=63.0, help="orders a second")
    parser.add_argument("--seconds", type=float, default=60.0)
    arguments = parser.parse_args()
    asyncio.run(main(arguments.rate, arguments.seconds))
