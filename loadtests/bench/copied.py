"""How fast a shop's past is loaded: `orders seed` against psql's `\\copy` of the same rows into the same tables."""

import asyncio
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from loadtests.bench.machine import own_cpu, programs_cpu
from loadtests.bench.measure import Comparison, Side, VoidError, Work
from loadtests.bench.stage import Connection, Stage
from services.common import clock
from services.embedded.postgres import program
from services.orders import seed as seeding

_ORDERS, _QUICK_ORDERS = 100_000, 20
_PRODUCTS: Final = 100
_MONTHS, _QUICK_MONTHS = 12, 2
JOBS: Final = 2  # processes of the seed; psql is one, and PostgreSQL's are more than either
_FIRST: Final = "orders.orders"  # lines refer to them
_PATIENCE_SECONDS: Final = 3_600.0

# Tables with rows, and of each the columns that are stored as they are given.
_TABLES: Final = """
SELECT c.oid::regclass::text AS name, string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) AS columns
FROM pg_class c
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''
WHERE c.relnamespace IN ('orders'::regnamespace, 'catalog'::regnamespace, 'payments'::regnamespace)
  AND c.relkind IN ('r', 'p') AND NOT c.relispartition
GROUP BY c.oid ORDER BY 1
"""


@dataclass
class _Shop:
    """What is loaded, and by what: the same seed at the same `now` has the same rows."""

    stage: Stage
    orders: int
    months: int
    now: datetime
    folder: Path
    columns: dict[str, str]  # of each table that the seed fills
    rows: dict[str, int]

    async def seed(self, _seconds: float) -> Work:
        """`orders seed` into an empty database."""
        url = await self.stage.fresh_database("bench_seed")
        seeded = await self._seed(url)
        return await self._loaded(url, seeded.seconds)

    async def copy(self, _seconds: float) -> Work:
        r"""`\copy` into an empty database whose months are there."""
        url = await self.stage.fresh_database("bench_copy")
        connection = await self.stage.connected(url)
        first = clock.add_months(clock.month_of(self.now), 1 - self.months)
        for month in range(self.months + 1):
            day = clock.add_months(first, month).date()
            await connection.execute("SELECT orders.create_month($1), payments.create_month($1)", day)
        started = time.perf_counter()
        await self._psql(
            url, [f"\\copy {name} ({self.columns[name]}) FROM {self._file(name)}" for name in self.columns]
        )
        return await self._loaded(url, time.perf_counter() - started)

    async def prepare(self) -> None:
        """The rows are files, and counted."""
        url = await self.stage.fresh_database("bench_seed")
        connection = await self.stage.connected(url)
        tables = {row["name"]: row["columns"] for row in await connection.fetch(_TABLES)}
        before = await _counts(connection, tables)
        await self._seed(url)
        after = await _counts(connection, tables)
        filled = sorted((name for name in tables if after[name] > before[name]), key=lambda name: name != _FIRST)
        if any(before[name] for name in filled):
            raise VoidError("an empty database has rows where a seed puts some")
        self.columns = {name: tables[name] for name in filled}
        self.rows = {name: after[name] for name in filled}
        await self._psql(url, [f"\\copy (SELECT {self.columns[n]} FROM {n}) TO {self._file(n)}" for n in filled])

    async def _seed(self, url: str) -> seeding.Seeded:
        return await seeding.seed(
            url, products=_PRODUCTS, orders=self.orders, months=self.months, now=self.now, jobs=JOBS
        )

    async def _loaded(self, url: str, seconds: float) -> Work:
        """VoidError when it is not what there was at first."""
        found = await _counts(await self.stage.connected(url), self.columns)
        if found != self.rows:
            raise VoidError(f"other rows than before: {found}, {self.rows}")
        return Work(sum(found.values()), seconds)

    async def _psql(self, url: str, lines: list[str]) -> None:
        """Also statistics, as a seed leaves them."""
        script = "\n".join(
            [*lines, "ANALYZE orders.orders, orders.order_items, orders.order_events, orders.inventory;"]
        )
        process = await asyncio.create_subprocess_exec(
            *(str(program("psql")), "--no-psqlrc", "--quiet", "--set=ON_ERROR_STOP=1", url),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        try:
            output, _ = await asyncio.wait_for(process.communicate(f"{script}\n".encode()), _PATIENCE_SECONDS)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        if process.returncode:
            raise VoidError(f"psql: {output.decode()}")

    def _file(self, table: str) -> str:
        return f"'{self.folder / table}.tsv'"


async def _counts(connection: Connection, tables: dict[str, str]) -> dict[str, int]:
    return {name: await connection.fetchval(f"SELECT count(*) FROM {name}") for name in tables}  # of the catalogue


async def comparisons(stage: Stage) -> list[Comparison]:
    """Rows a second. Events, lines, rollups and all: what a seed leaves in its database."""
    folder = stage.stack.settings.home / "copied"
    folder.mkdir()
    orders, months = (_QUICK_ORDERS, _QUICK_MONTHS) if stage.quick else (_ORDERS, _MONTHS)
    shop = _Shop(stage, orders, months, clock.now(), folder, {}, {})
    await shop.prepare()
    sides = [Side("orders seed", shop.seed, own_cpu), Side(r"psql \copy", shop.copy, programs_cpu)]
    return [Comparison("seed", "rows", sides)]
