"""Whether what is always true of the database is: `verify` looks at all `rules` and changes nothing.

No snapshot is held longer than it takes to read some thousands of rows. An order is judged in one in which it is seen
with all its rows or not at all; stock and the sums of sales, which many orders make, where `tally` says: so that no
alarm is false while orders are placed.
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Final, TypeVar
from uuid import UUID

from services.common import ids
from services.common.crew import Tell, shared
from services.common.db import Row, WriteConnection
from services.common.snapshots import UNHURRIED, Snapshots, unhurried_database
from services.orders.histories import UNFOLDABLE, Page, Pages, Progress, months_of, orders_expected, silent
from services.orders.recount import DRIFT_OF_DAY, ROLLUPS
from services.orders.rules import INVARIANTS, Invariant, Scope
from services.orders.tables import PARTITIONED
from services.orders.tally import Settling, in_turns
from services.orders.verdicts import SHOWN_MAX, Found, Report, Verdict, Violation, none_yet

T = TypeVar("T")
Done = Callable[[int, int], None]  # so much of how much is done
NAME: Final = "orders verify"
# A page has fewer orders than a step of the histogram of a large month's ids, so the planner expects one; a nested loop
# would then group its lines anew for each of 2,000 orders.
OF_PAGES: Final = {**UNHURRIED, "enable_nestloop": "off"}
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
            months, expected = await months_of(connection), await orders_expected(connection)
        crew = [Snapshots(database, share=share / jobs) for _ in range(jobs)]
        settling = await crew[0].read(Settling.begin)
        await _judge_months(database_url, months, jobs, share, found, _rated(progress, expected))
        products = await crew[0].read(partial(settling.products, found.tally))
        turns = [(turn,) for turn in in_turns(products, TURN_LINES)]
        await _judge_others(crew, Scope.PRODUCTS, turns, found.verdicts, partial(progress, "stock"))
        days = await crew[0].read(partial(settling.days, found.tally))
        await _judge_days(crew, days, found.verdicts, partial(progress, "sums of days"))
        await _judge_others(crew, Scope.TABLE, [()], found.verdicts, partial(progress, "tables"))
        await crew[0].read(partial(_count_tables, found.verdicts))
        found.repeated += sum(snapshots.repeated for snapshots in crew)
    return Report(tuple(found.verdicts.values()), settling.replica_at, found.repeated)


def _rated(progress: Progress, expected: int) -> Tell:
    """Shows how many orders have been looked at, of about so many, and how many that is a second."""
    started = time.perf_counter()

    def shown(orders: int) -> None:
        rate = orders / (time.perf_counter() - started)
        progress(f"{rate:,.0f} orders/s", orders, max(expected, orders))

    return shown


async def _judge_days(
    crew: Sequence[Snapshots], days: Sequence[tuple[object, ...]], verdicts: Mapping[str, Verdict], done: Done
) -> None:
    """The sums of each day, in a snapshot each; the time is with the first of them."""

    async def judge(snapshots: Snapshots, day: tuple[object, ...]) -> None:
        started = time.perf_counter()
        for row in await snapshots.read(lambda connection: connection.fetch(DRIFT_OF_DAY, *day)):
            verdicts[f"{row['rollup']}_is_sum"].add([Violation(row["id"], row["detail"])])
        verdicts[f"{ROLLUPS[0]}_is_sum"].seconds += time.perf_counter() - started

    await _shared(crew, days, judge, done)


async def _judge_others(
    crew: Sequence[Snapshots],
    scope: Scope,
    givens: Sequence[tuple[object, ...]],
    verdicts: Mapping[str, Verdict],
    done: Done,
) -> None:
    """The invariants of this scope for each set of parameters; each statement in a snapshot of its own."""

    async def judge(snapshots: Snapshots, work: tuple[Invariant, tuple[object, ...]]) -> None:
        invariant, given = work
        started = time.perf_counter()
        verdicts[invariant.name].add(await snapshots.read(partial(_violations, invariant, given)))
        verdicts[invariant.name].seconds += time.perf_counter() - started

    judged = [invariant for invariant in INVARIANTS if invariant.scope is scope]
    await _shared(crew, [(invariant, given) for given in givens for invariant in judged], judge, done)


async def _shared(
    crew: Sequence[Snapshots], works: Sequence[T], do: Callable[[Snapshots, T], Awaitable[None]], done: Done
) -> None:
    """All is done, by whoever of the crew is free."""
    left = iter(enumerate(works))

    async def take(snapshots: Snapshots) -> None:
        for number, work in left:
            done(number, len(works))
            await do(snapshots, work)

    await asyncio.gather(*(take(snapshots) for snapshots in crew))


async def _judge_months(
    url: str, months: Sequence[datetime], jobs: int, share: float, found: Found, shown: Tell
) -> None:
    """All orders have been judged, a month at a time."""
    work = [(url, month, share / jobs) for month in months]
    async for judged in shared(NAME, _judge_month, work, jobs=jobs, sums=1, progress=shown):
        found.merge(judged)


async def _judge_month(url: str, month: datetime, share: float, tell: Tell) -> Found:
    """What there is to say of the orders of a month, each page of them in one snapshot; each is told to be done."""
    found = Found(none_yet(invariant for invariant in INVARIANTS if invariant.scope is Scope.PAGE))
    rows: dict[str, int] = defaultdict(int)
    pages = Pages(month)
    async with unhurried_database(url, NAME, settings=OF_PAGES) as database:
        snapshots = Snapshots(database, share=share)
        while not pages.over:
            page, violations = await snapshots.read(partial(_read_page, pages))
            for name, (told, seconds) in violations.items():
                found.verdicts[name].add(told)
                found.verdicts[name].seconds += seconds
            _judge_folds(page, found, rows)
            pages.turn(page)
            tell(len(page.histories))
        found.repeated = snapshots.repeated
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
