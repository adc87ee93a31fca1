"""What servers did in the measured window: each statement of each process, and the upkeep beside it."""

import asyncio
import os
import sys
import time
from collections.abc import Awaitable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import asyncpg

from loadtests.load import database, scrape
from loadtests.load.database import Work
from loadtests.load.scenario import Objectives
from loadtests.load.scrape import Histogram, Quantile
from loadtests.load.shop import Shop
from loadtests.occasions import Occasion, occasions
from services.common import clock
from services.orders.maintenance import RETRY_SECONDS

CALLS_MIN: Final = 100  # of fewer the p99 is only their most
MONTHS_AHEAD_MAX: Final = 24  # which `orders partitions` makes at most
MONTH_ATTEMPTS: Final = 4
_REFRESH: Final = ("orders-maintenance", "refresh_summaries")


@dataclass(frozen=True)
class Reading:
    """Everything as it stood at `at` (monotonic seconds). It takes some milliseconds, in which others go on."""

    at: float
    statements: scrape.Statements
    counts: database.Counts

    @classmethod
    async def now(cls, shop: Shop, *, work: bool) -> Self:
        """LoadError when a process does not show what it has counted."""
        at = time.monotonic()
        return cls(at, await scrape.statements(shop), await database.counts(shop, work=work))


@dataclass(frozen=True)
class Figures:
    """Of one statement of one process: as the process saw it, and as PostgreSQL did (None where it does not count)."""

    process: str
    statement: str
    histogram: Histogram
    work: Work | None

    @property
    def p50(self) -> Quantile:
        """Of all calls."""
        return self.histogram.quantile(0.5)

    @property
    def p99(self) -> Quantile:
        """Of all calls."""
        return self.histogram.quantile(0.99)

    def missed(self, objectives: Objectives) -> str | None:
        """What is wrong with it, if that is judged; None when all is well."""
        calls, limit = self.histogram.calls, objectives.statement_ms_p99_below
        if self.process not in objectives.serving or calls < CALLS_MIN or self.p99.ms < limit:
            return None
        return f"{self.process} {self.statement}: p99 of {calls:,} calls {self.p99.ms:.1f} ms, not below {limit:g}"

    def content(self) -> dict[str, Any]:
        """For JSON; milliseconds."""
        found: dict[str, Any] = {
            "process": self.process,
            "statement": self.statement,
            "calls": self.histogram.calls,
            "mean_ms": round(self.histogram.mean_ms, 3),
            "p50_ms": round(self.p50.ms, 3),
            "p50_between_ms": [self.p50.above_ms, self.p50.at_most_ms],
            "p99_ms": round(self.p99.ms, 3),
            "p99_between_ms": [self.p99.above_ms, self.p99.at_most_ms],
        }
        if self.work is not None and self.work.calls > 0:  # PostgreSQL forgets what is seldom called
            calls = self.work.calls
            found["postgresql"] = {
                "calls": calls,
                "mean_exec_ms": round(self.work.exec_ms / calls, 3),
                "blocks_hit": round(self.work.blocks_hit / calls, 1),
                "blocks_read": round(self.work.blocks_read / calls, 2),
                "wal_bytes": round(self.work.wal_bytes / calls),
            }
        return found


@dataclass(frozen=True)
class Evidence:
    """Of the `seconds` between two readings. `upkeep` is how often; `months` are those that were made.

    `troubles` are what should not have happened meanwhile.
    """

    seconds: float
    statements: Sequence[Figures]
    upkeep: Mapping[str, int]
    months: Sequence[str]
    troubles: Sequence[str] = ()

    @classmethod
    def between(cls, before: Reading, after: Reading, trouble: str | None = None) -> Self:
        """By process and name; of a process that has started anew only what it has counted since."""
        done = after.counts.work_since(before.counts)
        called = scrape.since(before.statements, after.statements)
        refreshes = called[_REFRESH].calls if _REFRESH in called else 0
        return cls(
            seconds=after.at - before.at,
            statements=[Figures(*key, called[key], None if done is None else done.get(key)) for key in sorted(called)],
            upkeep={**after.counts.upkeep_since(before.counts), "summary_refreshes": refreshes},
            months=sorted(after.counts.months - before.counts.months),
            troubles=[
                *(f"{process} has started anew" for process in scrape.restarted(before.statements, after.statements)),
                *([trouble] if trouble else []),
            ],
        )

    def missed(self, objectives: Objectives) -> list[str]:
        """What should not have happened, and each statement that does not meet its objective."""
        return [*self.troubles, *(found for each in self.statements if (found := each.missed(objectives)))]

    def content(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "window_seconds": round(self.seconds, 1),
            "troubles": list(self.troubles),
            "statements": [each.content() for each in self.statements],
            "upkeep": {**self.upkeep, "months_made": list(self.months)},
        }


async def watch(
    shop: Shop, begun: Awaitable[None], seconds: float, *, work: bool, roll_over: bool
) -> tuple[Reading, str | None]:
    """What is counted when the window begins; with `roll_over` a month is made in its middle, or why it is not."""
    await begun
    before = await Reading.now(shop, work=work)
    if not roll_over:
        return before, None
    await asyncio.sleep(before.at + seconds / 2 - time.monotonic())
    return before, await make_month(shop)


async def plans(shop: Shop, statements: Collection[str]) -> dict[str, Any]:
    """Of those of the statements that have an occasion: partitions touched, scans pruned at start, blocks looked at.

    Each runs once more, and is rolled back. Without those that only a replica answers.
    """
    found = {}
    async with shop.owned() as connection:
        for name, occasion in sorted((await occasions(connection)).items()):
            if name in statements:
                found[name] = await _plan(occasion, connection)
    return found


async def _plan(occasion: Occasion, connection: "asyncpg.Connection[asyncpg.Record]") -> dict[str, Any]:
    try:
        plan = await occasion.explained(connection)
    except asyncpg.PostgresError as error:  # such as a lock that is not granted in time: the others are still told
        return {"partitions": {}, "error": repr(error)}
    return {"partitions": plan.touched(), "pruned": plan.pruned(), "blocks": plan.buffers()}


async def make_month(shop: Shop) -> str | None:
    """The first month that is missing has its partitions, as `orders partitions` makes them; else why it has none.

    It is tried again as orders-maintenance does when a lock is not granted in time.
    """
    this = clock.month_of(clock.now())
    async with shop.inspected() as connection:
        there = {row["month"] for row in await connection.fetch("SELECT DISTINCT month FROM orders.months")}
    ahead = next((n for n in range(MONTHS_AHEAD_MAX + 1) if f"{clock.add_months(this, n):%Y_%m}" not in there), None)
    if ahead is None:
        return f"there are months for {MONTHS_AHEAD_MAX} months already: none was made"
    for attempt in range(MONTH_ATTEMPTS):
        await asyncio.sleep(RETRY_SECONDS if attempt else 0)
        if (trouble := await _made(shop, ahead)) is None:
            return None
    return f"no month could be made: {trouble}"


async def _made(shop: Shop, ahead: int) -> str | None:
    """There are partitions up to so many months ahead; else what `orders partitions` says."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from services.cli.main import app; app()", "partitions", "--create-ahead", f"{ahead}"),
        env=os.environ | {"ORDERS_POSTGRES_URL": shop.owner_url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return output.decode() if process.returncode else None
