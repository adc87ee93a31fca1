"""Whether what is always true of the database is: `verify` looks at all `rules` and changes nothing.

No snapshot is held longer than it takes to read some thousands of rows. An order is judged in one in which it is seen
with all its rows or not at all; stock and the sums of sales, which many orders make, where `tally` says: so that no
alarm is false while orders are placed.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime
from functools import partial
from multiprocessing import get_context
from typing import Final, TypeVar
from uuid import UUID

from services.common import ids, log
from services.common.db import Row, WriteConnection
from services.common.snapshots import Snapshots, unhurried_database
from services.orders.histories import UNFOLDABLE, Page, Pages, Progress, months_of, silent
from services.orders.recount import DRIFT_OF_DAY, ROLLUPS
from services.orders.rules import INVARIANTS, Invariant, Scope
from services.orders.tables import PARTITIONED
from services.orders.tally import Settling, in_turns
from services.orders.verdicts import SHOWN_MAX, Found, Report, Verdict, Violation, none_yet

T = TypeVar("T")
NAME: Final = "orders verify"
TURN_LINES: Final = 10_000  # of the products that are judged in one snapshot


async def verify(database_url: str, *, jobs: int = 1, share: float = 1.0, progress: Progress = silent) -> Report:
    """Every invariant has been looked at; nothing is changed or locked. For a role that may read the schema.

    Short snapshots, REPEATABLE READ READ ONLY, which vacuum may wait for: a page of orders, products of TURN_LINES
    lines (or one that has more), a day's events, a small table. On a replica they are those of its replay. All of them
    together take at most `share` of the time of one connection; `jobs` processes share the months, each with a
    connection of its own, and the memory of one does not grow with the number of orders.

    True while orders are placed, shipped, cancelled, returned and counted. While `orders seed` loads the past, the sums
    of its days may be told to be wrong. TransientError when the database is lost, or a replica cancels a page for good.
    """
    found = Found(none_yet(INVARIANTS))
    async with unhurried_database(database_url, NAME, connections=jobs) as database:
        async with database.session() as connection:
            months = await months_of(connection)
        crew = [Snapshots(database, share=share / jobs) for _ in range(jobs)]
        settling = await crew[0].read(Settling.begin)
        total, done = len(months) + 3, 0

        def shown(what: str) -> None:
            progress(what, done, total)

        async for judged in _judge_months(crew[0], database_url, months, jobs, share, shown):
            done += 1
            found.merge(judged)
        products = await crew[0].read(partial(settling.products, found.tally))
        shown("stock")
        turns = [(turn,) for turn in in_turns(products, TURN_LINES)]
        await _judge_others(crew, Scope.PRODUCTS, turns, found.verdicts)
        days = await crew[0].read(partial(settling.days, found.tally))
        done += 1
        shown("sums of days")
        await _judge_days(crew, days, found.verdicts)
        done += 1
        shown("tables")
        await _judge_others(crew, Scope.TABLE, [()], found.verdicts)
        await crew[0].read(partial(_count_tables, found.verdicts))
        found.repeated += sum(snapshots.repeated for snapshots in crew)
    return Report(tuple(found.verdicts.values()), settling.replica_at, found.repeated)


async def _judge_days(
    crew: Sequence[Snapshots], days: Sequence[tuple[object, ...]], verdicts: Mapping[str, Verdict]
) -> None:
    """The sums of each day, in a snapshot each; the time is with the first of them."""

    async def judge(snapshots: Snapshots, day: tuple[object, ...]) -> None:
        started = time.perf_counter()
        for row in await snapshots.read(lambda connection: connection.fetch(DRIFT_OF_DAY, *day)):
            verdicts[f"{row['rollup']}_is_sum"].add([Violation(row["id"], row["detail"])])
        verdicts[f"{ROLLUPS[0]}_is_sum"].seconds += time.perf_counter() - started

    await _shared(crew, days, judge)


async def _judge_others(
    crew: Sequence[Snapshots], scope: Scope, givens: Sequence[tuple[object, ...]], verdicts: Mapping[str, Verdict]
) -> None:
    """The invariants of this scope for each set of parameters; each statement in a snapshot of its own."""

    async def judge(snapshots: Snapshots, work: tuple[Invariant, tuple[object, ...]]) -> None:
        invariant, given = work
        started = time.perf_counter()
        verdicts[invariant.name].add(await snapshots.read(partial(_violations, invariant, given)))
        verdicts[invariant.name].seconds += time.perf_counter() - started

    judged = [invariant for invariant in INVARIANTS if invariant.scope is scope]
    await _shared(crew, [(invariant, given) for given in givens for invariant in judged], judge)


async def _shared(crew: Sequence[Snapshots], works: Iterable[T], do: Callable[[Snapshots, T], Awaitable[None]]) -> None:
    """All is done, by whoever of the crew is free."""
    left = iter(works)

    async def take(snapshots: Snapshots) -> None:
        for work in left:
            await do(snapshots, work)

    await asyncio.gather(*(take(snapshots) for snapshots in crew))


async def _judge_months(
    snapshots: Snapshots,
    url: str,
    months: Sequence[datetime],
    jobs: int,
    share: float,
    progress: Callable[[str], None],
) -> AsyncIterator[Found]:
    if jobs == 1:
        for month in months:
            yield await _judge_month(snapshots, month, progress)
        return
    loop = asyncio.get_running_loop()
    progress(f"{len(months)} months in {jobs} processes")
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:  # a forked event loop does not work
        for judged in asyncio.as_completed(
            [loop.run_in_executor(pool, _judge_month_apart, url, month, share / jobs) for month in months]
        ):
            yield await judged
            progress(f"{len(months)} months in {jobs} processes")


def _judge_month_apart(url: str, month: datetime, share: float) -> Found:
    """In a process of its own, where no loop runs yet."""

    async def judged() -> Found:
        async with unhurried_database(url, NAME) as database:
            snapshots = Snapshots(database, share=share)
            found = await _judge_month(snapshots, month, lambda _: None)
            found.repeated = snapshots.repeated
            return found

    log.configure(NAME)
    return asyncio.run(judged())


async def _judge_month(snapshots: Snapshots, month: datetime, progress: Callable[[str], None]) -> Found:
    """What there is to say of the orders of a month, each page of them in one snapshot."""
    found = Found(none_yet(invariant for invariant in INVARIANTS if invariant.scope is Scope.PAGE))
    rows: dict[str, int] = defaultdict(int)
    pages = Pages(month)
    while not pages.over:
        page, violations = await snapshots.read(partial(_read_page, pages))
        for name, (told, seconds) in violations.items():
            found.verdicts[name].add(told)
            found.verdicts[name].seconds += seconds
        _judge_folds(page, found, rows)
        pages.turn(page)
        progress(f"{month:%Y-%m}, {rows['orders']:,} orders")
    for invariant in INVARIANTS:
        if invariant.scope is Scope.PAGE:
            found.verdicts[invariant.name].rows = rows[invariant.rows]
    return found


async def _read_page(
    pages: Pages, connection: WriteConnection
) -> tuple[Page, dict[str, tuple[list[Violation], float]]]:
    """A page of orders, and what SQL finds wrong with them, in how long."""
    page = await pages.read(connection)
    found = {}
    for invariant in INVARIANTS:
        if invariant.scope is Scope.PAGE and invariant.sql is not None:
            started = time.perf_counter()
            violations = await _violations(invariant, page.bounds, connection)
            found[invariant.name] = violations, time.perf_counter() - started
    return page, found


def _judge_folds(page: Page, found: Found, rows: dict[str, int]) -> None:
    """Both folds of a page's orders are judged, its orders added up, and its rows counted."""
    started = time.perf_counter()
    for history in page.histories:
        found.tally.add(history)
        rows["orders"] += history.row is not None
        rows["order_items"] += len(history.items)
        rows["order_events"] += len(history.events)
        try:
            in_row, in_lines = history.differences(history.order())
        except UNFOLDABLE as error:
            in_row, in_lines = [f"its events do not fold ({error!r})"], []
        for name, differences in (("order_row_is_fold", in_row), ("items_are_fold", in_lines)):
            if differences:
                found.verdicts[name].add([Violation(ids.to_text(history.order_id), "; ".join(differences))])
    found.verdicts["order_row_is_fold"].seconds += time.perf_counter() - started


async def _violations(invariant: Invariant, given: Sequence[object], connection: WriteConnection) -> list[Violation]:
    rows = await connection.fetch(f"{invariant.sql} LIMIT {SHOWN_MAX}", *given)
    return [Violation(_id(row), row["detail"]) for row in rows]


def _id(row: Row) -> str:
    return ids.to_text(row["id"]) if isinstance(row["id"], UUID) else row["id"]


async def _count_tables(verdicts: Mapping[str, Verdict], connection: WriteConnection) -> None:
    """How many rows were judged, of tables that are no pages'."""
    for invariant in INVARIANTS:
        if invariant.rows not in PARTITIONED:
            count = f"SELECT count(*) FROM orders.{invariant.rows}"  # noqa: S608 # a constant of ours
            verdicts[invariant.name].rows = await connection.fetchval(count)
