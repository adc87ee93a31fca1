"""Whether what is always true of the database is: `verify` looks at all `rules` and changes nothing.

Invariants of orders are decided month by month, each month in one snapshot; those of stock, outbox and partitions in a
snapshot each. So orders that are placed meanwhile are seen with all their rows or not at all, and no alarm is false.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from multiprocessing import get_context
from typing import Any, Final
from uuid import UUID

from services.common import clock, ids
from services.common.db import WriteConnection
from services.orders.histories import (
    UNFOLDABLE,
    Progress,
    histories,
    months_of,
    silent,
    unhurried,
)
from services.orders.rules import INVARIANTS, Invariant
from services.orders.tables import PARTITIONED

SHOWN_MAX: Final = 20  # violations of one invariant: enough to see what they have in common


@dataclass(frozen=True, slots=True)
class Violation:
    """`id` is an order, a product or a partition."""

    id: str
    detail: str


@dataclass(slots=True)
class Verdict:
    """What was found about one invariant; at most SHOWN_MAX violations. A fold's time is with the order rows."""

    name: str
    repair: str
    rows: int = 0
    seconds: float = 0.0
    violations: list[Violation] = field(default_factory=list)

    @property
    def messages(self) -> list[str]:
        """Each violation in a sentence that ends with its repair."""
        return [f"{self.name}: {violation.id}: {violation.detail}. {self.repair}" for violation in self.violations]

    def add(self, violations: Iterable[Violation]) -> None:
        """They are shown, as far as there is room."""
        self.violations += islice(violations, SHOWN_MAX - len(self.violations))

    def merge(self, other: "Verdict") -> None:
        """What was found about the same invariant elsewhere is counted in."""
        self.rows += other.rows
        self.seconds += other.seconds
        self.add(other.violations)


@dataclass(frozen=True, slots=True)
class Report:
    """One verdict an invariant, in the order of INVARIANTS."""

    verdicts: tuple[Verdict, ...]

    @property
    def violated(self) -> list[str]:
        """The names of the invariants that do not hold."""
        return [verdict.name for verdict in self.verdicts if verdict.violations]


async def verify(database_url: str, *, jobs: int = 1, progress: Progress = silent) -> Report:
    """Every invariant has been looked at; nothing is changed or locked. For a role that may read the schema.

    REPEATABLE READ READ ONLY, a snapshot a month and one for each other table. `jobs` processes share the months, each
    with a connection of its own; the memory of one does not grow with the number of orders. A snapshot lives as long as
    its month takes, and vacuum waits for it.
    """
    verdicts = _verdicts(INVARIANTS)
    groups: dict[str, list[Invariant]] = defaultdict(list)
    for invariant in INVARIANTS:
        if invariant.rows not in PARTITIONED:
            groups[invariant.rows].append(invariant)
    async with unhurried(database_url, "orders verify") as connection:
        months = await months_of(connection)
        total, done = len(months) + len(groups), 0

        def shown(what: str) -> None:
            progress(what, done, total)

        async for judged in _judge_months(connection, database_url, months, jobs, shown):
            done += 1
            for verdict in judged:
                verdicts[verdict.name].merge(verdict)
        for table, invariants in groups.items():
            progress(table, done, total)
            done += 1
            async with _snapshot(connection):
                count: int = await connection.fetchval(
                    f"SELECT count(*) FROM orders.{table}",  # noqa: S608 # a constant of ours
                )
                for invariant in invariants:
                    verdicts[invariant.name].rows = count
                    await _judge(connection, invariant, verdicts[invariant.name])
    return Report(tuple(verdicts.values()))


async def _judge_months(
    connection: WriteConnection, url: str, months: Sequence[datetime], jobs: int, progress: Callable[[str], None]
) -> AsyncIterator[list[Verdict]]:
    if jobs == 1:
        for month in months:
            yield await _judge_month(connection, month, progress)
        return
    loop = asyncio.get_running_loop()
    progress(f"{len(months)} months in {jobs} processes")
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:  # a forked event loop does not work
        for judged in asyncio.as_completed(
            [loop.run_in_executor(pool, _judge_month_apart, url, month) for month in months]
        ):
            yield await judged
            progress(f"{len(months)} months in {jobs} processes")


def _judge_month_apart(url: str, month: datetime) -> list[Verdict]:
    """In a process of its own, where no loop runs yet."""

    async def judged() -> list[Verdict]:
        async with unhurried(url, "orders verify") as connection:
            return await _judge_month(connection, month, lambda _: None)

    return asyncio.run(judged())


async def _judge_month(connection: WriteConnection, month: datetime, progress: Callable[[str], None]) -> list[Verdict]:
    """What there is to say of the orders of a month, in one snapshot."""
    invariants = [invariant for invariant in INVARIANTS if invariant.rows in PARTITIONED]
    verdicts = _verdicts(invariants)
    async with _snapshot(connection):
        rows = await _judge_folds(connection, month, verdicts, progress)
        for invariant in invariants:
            verdicts[invariant.name].rows = rows[invariant.rows]
            if invariant.sql is not None:
                progress(f"{month:%Y-%m} {invariant.name}")
                await _judge(connection, invariant, verdicts[invariant.name], month, clock.add_months(month, 1))
    return list(verdicts.values())


def _verdicts(invariants: Iterable[Invariant]) -> dict[str, Verdict]:
    return {invariant.name: Verdict(invariant.name, invariant.repair) for invariant in invariants}


def _snapshot(connection: WriteConnection) -> AbstractAsyncContextManager[Any]:
    return connection.transaction(isolation="repeatable_read", readonly=True)


async def _judge(connection: WriteConnection, invariant: Invariant, verdict: Verdict, *month: datetime) -> None:
    started = time.perf_counter()
    sql = f"{invariant.sql} LIMIT {SHOWN_MAX}"
    rows = await connection.fetch(sql, *month)
    verdict.add(
        [Violation(ids.to_text(row["id"]) if isinstance(row["id"], UUID) else row["id"], row["detail"]) for row in rows]
    )
    verdict.seconds += time.perf_counter() - started


async def _judge_folds(
    connection: WriteConnection, month: datetime, verdicts: Mapping[str, Verdict], progress: Callable[[str], None]
) -> dict[str, int]:
    """Both folds of a month are judged; gives how many rows each table has in it."""
    started = time.perf_counter()
    counted = dict.fromkeys(PARTITIONED, 0)
    async for batch in histories(connection, month):
        for history in batch:
            counted["orders"] += history.row is not None
            counted["order_items"] += len(history.items)
            counted["order_events"] += len(history.events)
            try:
                in_row, in_lines = history.differences(history.order())
            except UNFOLDABLE as error:
                in_row, in_lines = [f"its events do not fold ({error!r})"], []
            for name, found in (("order_row_is_fold", in_row), ("items_are_fold", in_lines)):
                if found:
                    verdicts[name].add([Violation(ids.to_text(history.order_id), "; ".join(found))])
        progress(f"{month:%Y-%m}, {counted['orders']:,} orders folded")
    verdicts["order_row_is_fold"].seconds += time.perf_counter() - started
    return counted
