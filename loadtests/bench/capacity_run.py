"""Measures what things cost on a whole stack: each operation a number of times, and what all parts used for it."""

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import asyncpg
import httpx

from loadtests.bench import capacity_sizes, capacity_sockets, machine
from loadtests.bench.capacity_buyers import Buyers, Placed
from loadtests.bench.capacity_drained import Drain, draining
from loadtests.bench.capacity_meter import OWN, POSTGRES, Meter, Used
from loadtests.bench.measure import VoidError
from loadtests.bench.said import say
from loadtests.bench.stage import Connection
from loadtests.bench.summary import refresh
from services.cli import migrate
from services.common import clock, ids
from services.common.db import Database
from services.embedded.processes import PROCESSES
from services.embedded.room import free_port_base
from services.embedded.settings import StackSettings
from services.embedded.supervisor import Stack
from services.orders import seed, summaries

T = TypeVar("T")

PRODUCTS: Final = 1_000
STOCK: Final = 1_000_000  # of each: nothing is sold out
BUYERS: Final = 500
MONTHS: Final = 12  # of partitions before this month, as statements meet them
HITS_OF_EACH: Final = 20  # reads of an order that is cached, within the 30 s that it is
HITS_MIN: Final = 0.95
REFRESHES: Final = 3
NAMES: Final = tuple(process.name for process in PROCESSES)
EXTENSIONS: Final = ("pg_stat_statements", "pg_walinspect", "pg_freespacemap")
_REFRESHER: Final = "refresher"
_CONFIRMED: Final = "SELECT NOT EXISTS (SELECT FROM orders.orders WHERE status = 'pending')"
# What has been shipped has been captured.
_SETTLED: Final = """
SELECT NOT EXISTS (SELECT FROM orders.orders WHERE created_at > now() - INTERVAL '50 minutes' AND status = 'shipped'
                   AND payment_method = 'pm_card' AND payment_status <> 'captured')
"""


@dataclass(frozen=True, slots=True)
class Plan:
    """How often. `past`: orders there are; `idle_seconds`: how long it is watched what all of it uses by itself."""

    past: int
    warm: int
    orders: int
    idle_seconds: float
    sockets: int


FULL: Final = Plan(past=100_000, warm=200, orders=2_000, idle_seconds=20, sockets=200)
QUICK: Final = Plan(past=200, warm=2, orders=8, idle_seconds=0.2, sockets=2)


@dataclass
class Run:
    """A stack that is measured, and what has been found so far."""

    stack: Stack
    connection: Connection
    meter: Meter
    drain: Drain
    buyers: Buyers
    plan: Plan
    idle: Used = field(default_factory=dict)  # a second
    operations: dict[str, dict[str, float]] = field(default_factory=dict)

    async def watch_idle(self) -> None:
        """What all of it uses a second by itself, which is taken off the cost of everything."""
        await self.drain.done()
        start, before = await self.meter.position(), await self.meter.read()
        await asyncio.sleep(self.plan.idle_seconds)  # the measurement itself: so long nothing is asked
        used = difference(before, await self.meter.read()) | await self.meter.wal(start)
        self.idle.update({name: value / used["seconds"] for name, value in used.items() if value})

    async def measure(
        self,
        name: str,
        things: Sequence[T],
        doing: Callable[[Sequence[T]], Awaitable[object]],
        also: str = "SELECT TRUE",
    ) -> None:
        """The cost of each of `things` that `doing` does, with all that follows from them, until `also` holds.

        It begins with a checkpoint and a tenth of them, of which the full-page images are told by themselves: in a
        table as large as a year's, each order meets pages that no other has since the last checkpoint.
        """
        await self.connection.execute("CHECKPOINT")
        tenth = max(1, len(things) // 10)
        start, before, moved = await self.meter.position(), await self._read(), self.buyers.bytes_moved
        await doing(things[:tenth])
        await self.drain.done(also)
        first = await self.meter.wal(start)
        if things[tenth:]:
            await doing(things[tenth:])
            await self.drain.done(also)
        used = difference(before, await self._read()) | await self.meter.wal(start)
        seconds, count = used.pop("seconds"), len(things)
        used = {key: max(0.0, value - self.idle.get(key, 0.0) * seconds) for key, value in used.items()}
        used["network_bytes"] = self.buyers.bytes_moved - moved
        self.operations[name] = {
            "count": count,
            "first_full_page_bytes": first["full_page_bytes"] / tenth,
            **{key: value / count for key, value in used.items() if value},
        }
        say(f"{name}: {count}, {self.operations[name].get('cpu orders-api', 0) * 1e6:.0f} us of orders-api each")

    async def _read(self) -> Used:
        return await self.meter.read() | await self.drain.published()


def difference(before: Used, after: Used) -> Used:
    """What was used between two readings."""
    return {name: value - before.get(name, 0.0) for name, value in after.items()}


async def measured(plan: Plan) -> dict[str, Any]:
    """Idle use, the cost of each operation, sizes and memory. VoidError when it was not done as it should."""
    async with opened(plan) as run:
        facts = await machine.facts(run.stack.addresses.postgres, run.stack.settings.home, sync_rate=plan is FULL)
        found: dict[str, Any] = {"machine": facts, "quick": plan is not FULL, "plan": asdict(plan)}
        found["memory_idle"] = capacity_sizes.processes(run.stack, NAMES)
        await warm(run)
        await run.watch_idle()
        await orders(run, found)
        await others(run, found)
        found["backends"] = await capacity_sizes.backends(run.connection)
        found["memory"] = capacity_sizes.processes(run.stack, NAMES)
        found["sockets"] = await capacity_sockets.measured(run)
        found["summaries"] = await refreshed(run)
        return {**found, "idle": run.idle, "operations": run.operations}


async def warm(run: Run) -> None:
    """Every connection has planned its statements, every process has done everything once: that is paid once."""
    placed = await run.buyers.place(run.plan.warm)
    await run.buyers.get(placed)
    await run.buyers.get(placed, "/v1/orders")
    await run.buyers.command(placed, "ship")
    await run.buyers.command(placed, "deliver")
    await run.buyers.command(await run.buyers.place(run.plan.warm), "cancel")
    await run.drain.done(_CONFIRMED)


async def orders(run: Run, found: dict[str, Any]) -> None:
    """Orders from placing to delivery, and what is read of them."""
    count, buyers, connection = run.plan.orders, run.buyers, run.connection
    before = await capacity_sizes.tables(connection)
    placed: list[Placed] = []

    async def place(numbers: Sequence[int]) -> None:
        placed.extend(await buyers.place(len(numbers)))

    await run.measure("place", range(count), place)
    await read(run, placed)
    found["valkey"] = await capacity_sizes.valkey(run.stack.addresses.valkey)
    await run.measure("ship", placed, lambda some: buyers.command(some, "ship"))
    await run.measure("deliver", placed, lambda some: buyers.command(some, "deliver"))
    found["tables"] = capacity_sizes.grown(before, await capacity_sizes.tables(connection), count)
    found["valkey"] |= await capacity_sizes.valkey(run.stack.addresses.valkey)  # there are fences now
    found["lines"] = sum(len(buyers.basket(number)) for number in range(count)) / count


async def read(run: Run, placed: list[Placed]) -> None:
    """Reads that the cache has not, has, and lists. VoidError when the cache has said otherwise."""
    hits = placed[-max(1, len(placed) // HITS_OF_EACH) :]
    await _read(run, "get, not cached", placed, "miss")
    await _read(run, "get, cached", hits * HITS_OF_EACH, "hit")
    some = placed[: max(1, len(placed) // 2)]
    await run.measure("list", some, lambda them: run.buyers.get(them, "/v1/orders"))


async def _read(run: Run, name: str, wanted: list[Placed], outcome: str) -> None:
    run.buyers.outcomes.clear()
    await run.measure(name, wanted, run.buyers.get)
    if run.buyers.outcomes[outcome] < HITS_MIN * len(wanted):
        raise VoidError(f"{name}: the cache has said {dict(run.buyers.outcomes)}")


async def others(run: Run, found: dict[str, Any]) -> None:
    """Orders that are cancelled, and orders that are paid and delivered."""
    count, buyers = max(1, run.plan.orders // 2), run.buyers
    to_cancel = await buyers.place(count)
    await run.drain.done()
    await run.measure("cancel", to_cancel, lambda some: buyers.command(some, "cancel"))
    before = await capacity_sizes.tables(run.connection)
    paid: list[Placed] = []

    async def place(numbers: Sequence[int]) -> None:
        paid.extend(await buyers.place(len(numbers), payment_method="pm_card"))

    await run.measure("place, paid", range(count), place, _CONFIRMED)
    await buyers.renew(paid)
    await run.measure("ship, paid", paid, lambda some: buyers.command(some, "ship"), _SETTLED)
    await buyers.renew(paid)
    await buyers.command(paid, "deliver")
    await run.drain.done()
    found["tables_paid"] = capacity_sizes.grown(before, await capacity_sizes.tables(run.connection), count)


async def refreshed(run: Run) -> dict[str, float]:
    """CPU microseconds of PostgreSQL for each order that the summaries show, when they are refreshed."""
    database = Database(
        run.stack.addresses.postgres_as("orders_maintenance"), application_name=_REFRESHER, size_min=1, size_max=1
    )
    await database.open()
    try:
        await refresh(database)  # that of orders-maintenance may be from before the first order
        (row,) = await database.rows(summaries.COUNT)
        before = await run.meter.read()
        for _ in range(REFRESHES):
            await refresh(database)
        after = await run.meter.read()
    finally:
        await database.close()
    cpu = f"cpu {POSTGRES} of {_REFRESHER}"
    return {"rows": row["rows"], "us": (after[cpu] - before[cpu]) * 1e6 / REFRESHES / row["rows"]}


@asynccontextmanager
async def opened(plan: Plan) -> AsyncIterator[Run]:
    """All of `orders up`, with a year of months, products, and orders of this month."""
    with tempfile.TemporaryDirectory(prefix="bench") as home:
        settings = StackSettings(home=Path(home), port_base=free_port_base())
        async with AsyncExitStack() as ending:
            stack = await ending.enter_async_context(Stack(settings, prepare=lambda stack: _prepare(stack, plan.past)))
            connection = await asyncpg.connect(stack.addresses.postgres, server_settings={"application_name": OWN})
            ending.push_async_callback(connection.close)
            drain = await ending.enter_async_context(draining(stack.addresses.kafka, connection))
            client = await ending.enter_async_context(
                httpx.AsyncClient(base_url=str(stack.endpoints["orders"]), timeout=60)
            )
            buyers = Buyers(client, settings, *(await _known(connection)))
            yield Run(stack, connection, Meter(stack, connection, NAMES), drain, buyers, plan)


async def _prepare(stack: Stack, past: int) -> None:
    url = stack.addresses.postgres
    await asyncio.to_thread(migrate.upgrade, url, role_password=stack.addresses.role_password)
    connection = await asyncpg.connect(url)
    for extension in EXTENSIONS:
        await connection.execute(f"CREATE EXTENSION IF NOT EXISTS {extension}")
    await connection.execute("ALTER SYSTEM SET wal_keep_size = '4GB'")  # what was written is counted afterwards
    await connection.execute("SELECT pg_reload_conf()")
    months = f"generate_series(-{MONTHS}, 3) month"
    await connection.execute(
        f"SELECT orders.create_month((now() + make_interval(months => month))::date) FROM {months}"
    )
    await connection.close()
    # So old that what is still to be paid expires at once, and not while something is measured.
    until = clock.now() - timedelta(hours=1)
    await seed.seed(url, products=PRODUCTS, stock=STOCK, orders=past, months=1, currencies=("USD",), now=until)


async def _known(connection: Connection) -> tuple[list[str], list[str]]:
    """Some who have ordered before, and everything that is sold."""
    users = await connection.fetch("SELECT user_id FROM orders.orders GROUP BY user_id ORDER BY user_id")
    products = await connection.fetch("SELECT product_id FROM orders.products WHERE active ORDER BY product_id")
    step = max(1, len(users) // BUYERS)
    return [str(row[0]) for row in users[::step]], [ids.to_text(row[0]) for row in products]
