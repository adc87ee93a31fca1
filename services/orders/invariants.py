"""What is always true of the database, as a table; `verify` looks at all of it and changes nothing.

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
from services.contracts.orders import EventType
from services.orders import domain
from services.orders.domain import PAYMENT_TRANSITIONS, TRANSITIONS, S, Transition
from services.orders.histories import (
    UNFOLDABLE,
    Progress,
    histories,
    months_of,
    silent,
    unhurried,
)
from services.orders.rebuild import STOCK_ON_HAND, STOCK_RESERVED
from services.orders.tables import PARTITIONED

SHOWN_MAX: Final = 20  # violations of one invariant: enough to see what they have in common


@dataclass(frozen=True, slots=True)
class Invariant:
    """`sql` gives its violations (id, detail); None: the fold decides. `rows` is the table whose rows it judges.

    A statement over a partitioned table is given a month, [$1, $2). `repair` says what to do about a violation.
    """

    name: str
    rows: str
    sql: str | None
    repair: str


_REBUILD: Final = "Run `orders rebuild`: it recreates the order and its lines from the events."
_STOCK_REPAIR: Final = "Run `orders rebuild`: it sets stock right by what orders and movements add up to."


def _moves(rows: Iterable[Transition[S]]) -> str:
    return ", ".join(
        f"('{source}', '{row.event}', '{target}')"
        for row in rows
        for source in sorted(row.sources)
        for target in row.targets
    )


_LEGAL_STARTS: Final = ", ".join(
    "({}, '{}', '{}')".format(str(method is None).upper(), *domain.starts_as(method)) for method in (None, "pm")
)

_PARTITIONS: Final = f"""
WITH leaves AS (
    SELECT m.parent, m.partition, m.first_on, c.oid, c.relowner, c.relacl,
           format('orders.%I', m.parent)::regclass AS parent_oid, pg_get_expr(c.relpartbound, c.oid) AS bounds
    FROM orders.months m
    JOIN pg_class c ON c.relname = m.partition AND c.relnamespace = 'orders'::regnamespace
), wanted AS (
    SELECT parent, first_on::date AS first_on
    FROM unnest(ARRAY{list(PARTITIONED)}) parent
    CROSS JOIN (SELECT min(first_on) AS first, max(first_on) AS last FROM leaves) made
    CROSS JOIN generate_series(coalesce(made.first, date_trunc('month', now())::date),
        greatest(made.last, date_trunc('month', now() + INTERVAL '1 month')), INTERVAL '1 month') first_on
), shapes AS (
    SELECT r.oid, k.kind, k.shape
    FROM (SELECT oid FROM leaves UNION SELECT parent_oid FROM leaves) r
    CROSS JOIN LATERAL (
        SELECT 'indexes' AS kind, array_agg(shape ORDER BY shape) AS shape FROM (
            SELECT format('%s %s %s', indisunique, indisvalid,
                regexp_replace(pg_get_indexdef(indexrelid), '^.* USING ', '')) AS shape
            FROM pg_index WHERE indrelid = r.oid) i
        UNION ALL
        SELECT 'constraints', array_agg(shape ORDER BY shape) FROM (
            SELECT format('%s %s', pg_get_constraintdef(oid), convalidated) AS shape
            FROM pg_constraint WHERE conrelid = r.oid AND contype IN ('c', 'n', 'p', 'u')) c
        UNION ALL
        SELECT 'triggers', coalesce(array_agg(shape ORDER BY shape), '{{}}') FROM (
            SELECT format('%s %s %s %s', tgname, tgtype, tgfoid, tgenabled) AS shape
            FROM pg_trigger WHERE tgrelid = r.oid AND NOT tgisinternal) t
    ) k
)
SELECT parent || to_char(first_on, '_YYYY_MM') AS id, 'the partition is missing' AS detail
FROM wanted LEFT JOIN leaves USING (parent, first_on)
WHERE leaves.oid IS NULL
UNION ALL
SELECT partition, 'its bounds are not the month of its name: ' || bounds
FROM leaves
WHERE bounds IS DISTINCT FROM format('FOR VALUES FROM (%L) TO (%L)',
    first_on::timestamptz, (first_on + INTERVAL '1 month')::timestamptz)
UNION ALL
SELECT partition, format('its %s are not those of orders.%s', ours.kind, parent)
FROM leaves
JOIN shapes ours ON ours.oid = leaves.oid
JOIN shapes theirs ON theirs.oid = leaves.parent_oid AND theirs.kind = ours.kind
WHERE ours.shape IS DISTINCT FROM theirs.shape
UNION ALL
SELECT relation.oid::regclass::text, format('its trigger %s is missing or disabled', wanted_trigger)
FROM (
    SELECT oid FROM leaves WHERE parent = 'order_events' UNION SELECT 'orders.order_events'::regclass
) relation
CROSS JOIN unnest(ARRAY['append_only', 'append_only_truncate']) wanted_trigger
WHERE NOT EXISTS (
    SELECT FROM pg_trigger WHERE tgrelid = relation.oid AND tgname = wanted_trigger AND tgenabled IN ('O', 'A'))
UNION ALL
SELECT partition, 'its foreign key to the orders of its month is missing'
FROM leaves
WHERE parent = 'order_items' AND NOT EXISTS (
    SELECT FROM pg_constraint k JOIN leaves month ON month.oid = k.confrelid
    WHERE k.conrelid = leaves.oid AND k.contype = 'f' AND month.parent = 'orders' AND month.first_on = leaves.first_on)
UNION ALL
SELECT partition, format('%s has %s on it', grantee::regrole, string_agg(privilege_type, ', '))
FROM leaves CROSS JOIN LATERAL aclexplode(relacl)
WHERE grantee <> relowner
GROUP BY partition, grantee
"""  # noqa: S608 # what is put in are constants

INVARIANTS: Final = (
    Invariant("order_row_is_fold", "orders", None, _REBUILD),
    Invariant("items_are_fold", "order_items", None, _REBUILD),
    Invariant(
        "line_total",
        "order_items",
        """
SELECT order_id AS id, format('line %s: %s times %s is not %s', line_no, quantity, unit_price, line_total) AS detail
FROM orders.order_items
WHERE created_at >= $1 AND created_at < $2 AND line_total <> unit_price::numeric * quantity
""",
        _REBUILD,
    ),
    Invariant(
        "total_amount",
        "orders",
        """
SELECT order_id AS id, format('total_amount is %s, its lines and adjustments make %s', total_amount, made) AS detail
FROM (
    SELECT o.order_id, o.total_amount, coalesce(i.amount, 0) + coalesce(
        (SELECT sum((a ->> 'amount')::numeric) FROM jsonb_array_elements(o.adjustments) a), 0) AS made
    FROM orders.orders o
    LEFT JOIN (
        SELECT order_id, sum(line_total) AS amount FROM orders.order_items
        WHERE created_at >= $1 AND created_at < $2 GROUP BY order_id
    ) i USING (order_id)
    WHERE o.created_at >= $1 AND o.created_at < $2
) o
WHERE total_amount <> made
""",
        _REBUILD,
    ),
    Invariant(
        "item_count",
        "orders",
        """
SELECT o.order_id AS id, format('item_count is %s, it has %s lines', o.item_count, coalesce(i.lines, 0)) AS detail
FROM orders.orders o
LEFT JOIN (
    SELECT order_id, count(*) AS lines FROM orders.order_items
    WHERE created_at >= $1 AND created_at < $2 GROUP BY order_id
) i USING (order_id)
WHERE o.created_at >= $1 AND o.created_at < $2 AND o.item_count <> coalesce(i.lines, 0)
""",
        _REBUILD,
    ),
    Invariant(
        "versions_1_to_n",
        "order_events",
        """
SELECT order_id AS id, format('version is %s, its events are %s, from %s to %s',
    o.version, coalesce(e.events, 0), e.first, e.last) AS detail
FROM (SELECT order_id, version FROM orders.orders WHERE created_at >= $1 AND created_at < $2) o
FULL JOIN (
    SELECT order_id, count(*) AS events, min(version) AS first, max(version) AS last FROM orders.order_events
    WHERE created_at >= $1 AND created_at < $2 GROUP BY order_id
) e USING (order_id)
WHERE (e.first = 1 AND e.last = e.events AND o.version = e.last) IS NOT TRUE
""",
        "If all events are there, run `orders rebuild`; a lost event has to come back from a backup or from the topic.",
    ),
    Invariant(
        "legal_transitions",
        "order_events",
        f"""
SELECT order_id AS id, format('version %s: %s takes it from %s, %s to %s, %s', version, type,
    coalesce(before, 'nothing'), coalesce(paid_before, 'nothing'), coalesce(status, 'nothing'),
    coalesce(payment_status, 'nothing')) AS detail
FROM (
    SELECT order_id, version, type, status, method, payment_status,
           lag(status) OVER one_order AS before, lag(payment_status) OVER one_order AS paid_before
    FROM (
        SELECT order_id, created_at, shard, version, type, data -> 'after' ->> 'status' AS status,
               data -> 'after' ->> 'payment_status' AS payment_status, data -> 'change' ->> 'payment_method' AS method
        FROM orders.order_events
        WHERE created_at >= $1 AND created_at < $2
    ) e
    WINDOW one_order AS (PARTITION BY order_id, created_at, shard ORDER BY version)
) e
WHERE CASE
    WHEN before IS NULL
        THEN type = '{EventType.PLACED}' AND (method IS NULL, status, payment_status) IN ({_LEGAL_STARTS})
    WHEN payment_status = paid_before AND (before, type, status) IN ({_moves(TRANSITIONS)}) THEN TRUE
    ELSE status = before AND (paid_before, type, payment_status) IN ({_moves(PAYMENT_TRANSITIONS)})
END IS NOT TRUE
""",  # noqa: S608 # what is put in are constants
        "Events are never edited. Find who wrote it by its actor, and set the order right with a further command.",
    ),
    Invariant("stock_reserved", "inventory", STOCK_RESERVED, _STOCK_REPAIR),
    Invariant("stock_on_hand", "inventory", STOCK_ON_HAND, _STOCK_REPAIR),
    Invariant(
        "product_copy",
        "products",
        """
SELECT product_id AS id, CASE
    WHEN c.product_id IS NULL THEN 'the catalogue has no such product'
    WHEN p.version > c.version THEN format('its copy is of version %s, the catalogue has %s', p.version, c.version)
    ELSE format('its copy of version %s is (%s, %s %s, active %s), the catalogue has (%s, %s %s, active %s)', p.version,
        p.name, p.price, p.currency, p.active, c.name, c.price, c.currency, c.active)
END AS detail
FROM orders.products p
LEFT JOIN catalog.products c USING (product_id)
WHERE c.product_id IS NULL OR p.version > c.version
   OR (p.version = c.version AND (p.name, p.price, p.currency, p.active) <> (c.name, c.price, c.currency, c.active))
""",
        "Set its version to 0, or delete it when there is no such product; then let orders-projector read the topic"
        " anew, as docs/consuming.md says.",
    ),
    Invariant(
        "outbox_row_has_its_event",
        "outbox",
        f"""
SELECT o.order_id AS id, format('position %s, version %s: %s', o.position, o.version,
    CASE WHEN e.order_id IS NULL THEN 'there is no such event' ELSE 'its slice is wrong' END) AS detail
FROM (
    TABLE orders.outbox
    UNION ALL
    SELECT waiting.* FROM relay.parked CROSS JOIN LATERAL jsonb_populate_record(NULL::orders.outbox, content) waiting
    WHERE outbox = 'orders'
) o
LEFT JOIN orders.order_events e USING (order_id, created_at, shard, version)
WHERE e.order_id IS NULL OR o.slice <> o.shard % {ids.SLICES}
""",  # noqa: S608 # what is put in are constants
        "The relay parks the order: see `orders outbox --parked`. Delete the row from relay.parked, or bring its event"
        " back from a backup; then `orders outbox --release` sends what waits for it.",
    ),
    Invariant(
        "partitions_present_and_alike",
        "months",
        _PARTITIONS,
        "A missing month: `orders partitions --create-ahead 3`. Otherwise make the partition what create_month makes.",
    ),
)


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
