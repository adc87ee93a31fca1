"""The reconciler: orders, their payments, and the provider's ledger, held against each other. It changes nothing.

What happened within the grace period is not held against anybody: events and answers may be on their way. What may
never be, not for a moment, has none: a confirmed order that nobody has authorised, an order that is charged twice.
"""

from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from services.common import clock, db, ids
from services.common.db import Database, Row, WriteConnection
from services.common.snapshots import Snapshots
from services.contracts.payments import Payment
from services.payments.domain import standing_of
from services.payments.provider import Provider, ProviderError, ProviderState, Standing, StepRefusedError
from services.payments.repository import payment_from

SHOWN_MAX: Final = 20  # of one rule: enough to see what they have in common
LEDGER_BATCH: Final = 500
PAGE_ORDERS: Final = 5_000  # read in one snapshot
_LAST_ID: Final = UUID(int=2**128 - 1)

_TYPES: Final[Mapping[str, sa.types.TypeEngine[Any]]] = {
    "first": sa.TIMESTAMP(timezone=True),
    "after": sa.TIMESTAMP(timezone=True),
    "over_id": sa.Uuid(),
    "upto_id": sa.Uuid(),
    "page_orders": sa.Integer(),
    "settled_before": sa.TIMESTAMP(timezone=True),
    "since": sa.TIMESTAMP(timezone=True),
    "order_ids": ARRAY(sa.Uuid()),
    "created_ats": ARRAY(sa.TIMESTAMP(timezone=True)),
    "shards": ARRAY(sa.SmallInteger()),
    "shown_max": sa.Integer(),
    "provider": sa.Text(),
}
# An operator's session: no haste, and plans for the month at hand.
_UNHURRIED: Final = """
SET LOCAL statement_timeout = 0; SET LOCAL transaction_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0;
SET LOCAL plan_cache_mode = force_custom_plan; SET LOCAL enable_seqscan = on
"""

_MONTHS: Final = db.statement(
    "reconcile_months",
    r"""
SELECT DISTINCT to_date(substring(c.relname FROM '\d{4}_\d{2}$'), 'YYYY_MM')::timestamptz AS month
FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent IN ('orders.orders'::regclass, 'payments.payments'::regclass) AND c.relkind = 'r'
ORDER BY month
""",
    _TYPES,
)

# The last id of a page of orders, none when the rest is less than a page. Primary key; one partition.
_UPTO: Final = db.statement(
    "reconcile_upto",
    """
SELECT order_id FROM orders.orders WHERE created_at >= :first AND created_at < :after AND order_id > :over_id
ORDER BY order_id LIMIT 1 OFFSET :page_orders
""",
    _TYPES,
)

# Of a page of orders and payments. Primary keys; one partition of each.
_ORDERS: Final = db.statement(
    "reconcile_orders",
    """
SELECT rule, order_id AS id, detail
FROM (
    SELECT rule, order_id, detail, row_number() OVER (PARTITION BY rule ORDER BY order_id) AS number
    FROM (
        SELECT order_id, o.status, o.payment_status, o.total_amount, o.captured_amount, o.refunded_amount, o.created_at,
               o.order_id IS NOT NULL AS ordered, p.status AS paid, p.authorized_amount, p.captured_amount AS captured,
               p.refunded_amount AS refunded, p.updated_at
        FROM (
            SELECT * FROM orders.orders
            WHERE created_at >= :first AND created_at < :after AND order_id > :over_id AND order_id <= :upto_id
              AND payment_method IS NOT NULL
        ) o
        FULL JOIN (
            SELECT * FROM payments.payments
            WHERE created_at >= :first AND created_at < :after AND order_id > :over_id AND order_id <= :upto_id
        ) p USING (order_id)
    ) both_
    CROSS JOIN LATERAL (VALUES
        ('payment_has_its_order', NOT ordered, 'there is no order with a payment method'),
        ('order_has_its_payment', paid IS NULL AND created_at < :settled_before, 'there is no payment'),
        ('confirmed_is_authorized',
            status NOT IN ('pending', 'cancelled')
                AND (paid = 'authorized' AND authorized_amount >= total_amount) IS NOT TRUE,
            format('it is %s, and its payment %s with %s of %s authorised', status, coalesce(paid, 'is not there'),
                coalesce(authorized_amount, 0), total_amount)),
        ('order_knows_its_payment',
            captured_amount > captured OR refunded_amount > refunded OR (updated_at < :settled_before AND (
                captured_amount < captured OR refunded_amount < refunded
                OR (status = 'pending' AND paid IN ('authorized', 'failed')))),
            format('it is %s, %s, with %s captured and %s refunded; its payment is %s, %s and %s', status,
                payment_status, captured_amount, refunded_amount, paid, captured, refunded))
    ) r (rule, broken, detail)
    WHERE broken
) found
WHERE number <= :shown_max
""",
    _TYPES,
)

_STEPS: Final = db.statement(
    "reconcile_steps",
    """
(SELECT 'no_step_is_refused' AS rule, order_id AS id,
        format('step %s, %s %s, was refused: %s', number, kind, amount, error) AS detail
 FROM payments.steps WHERE state = 'refused' ORDER BY asked_at LIMIT :shown_max)
UNION ALL
(SELECT 'no_step_is_overdue', order_id,
        format('step %s, %s %s, was asked for at %s and tried %s times: %s', number, kind, amount,
            to_char(asked_at, 'YYYY-MM-DD"T"HH24:MI:SS"Z"'), attempts, coalesce(error, 'no answer yet'))
 FROM payments.steps WHERE state = 'open' AND asked_at < :settled_before ORDER BY asked_at LIMIT :shown_max)
""",
    _TYPES,
)

_OURS: Final = db.statement(
    "reconcile_ours",
    """
SELECT p.*, EXISTS (
    SELECT FROM payments.steps s WHERE s.order_id = p.order_id AND s.shard = p.shard AND s.state = 'open'
) AS moving
FROM unnest(:order_ids, :created_ats, :shards) AS k (order_id, created_at, shard)
CROSS JOIN LATERAL (
    SELECT * FROM payments.payments p
    WHERE p.order_id = k.order_id AND p.created_at = k.created_at AND p.shard = k.shard
) p
""",
    _TYPES,
)

# By when they were asked for, which every provider lists: not all of them list by change.
_ASKED: Final = db.statement(
    "reconcile_asked",
    """
SELECT p.* FROM payments.payments p
WHERE p.created_at >= :since AND p.updated_at < :settled_before AND p.reference IS NOT NULL AND p.provider = :provider
""",
    _TYPES,
)

LEDGER: Final = "provider_has_the_same"
RULES: Final[Mapping[str, str]] = {
    "payment_has_its_order": "Refund or void it at the provider; the order has to come back from a backup.",
    "order_has_its_payment": "Look whether payments-worker runs and what `orders dead-letters` has.",
    "confirmed_is_authorized": "Hold the shipment, and see at the provider what was authorised.",
    "order_knows_its_payment": "Look whether orders-projector and outbox-relay run and what `orders dead-letters` has.",
    "no_step_is_refused": "Do at the provider by hand what it refused, or settle it with the buyer.",
    "no_step_is_overdue": "Look whether payments-worker runs and the provider answers.",
    LEDGER: "See `orders payments <order id>`, and set right at the provider what is wrong there.",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that does not hold, where, and what is there instead."""

    rule: str
    order_id: str
    detail: str


@dataclass(slots=True)
class Reconciliation:
    """What was found; `unchecked` says why the provider's ledger was not compared, None when it was."""

    findings: list[Finding] = field(default_factory=list)
    unchecked: str | None = None


async def reconcile(
    database: Database,
    provider: Provider | None,
    *,
    now: datetime,
    grace: timedelta,
    since: datetime,
    pages: Snapshots | None = None,
    pages_at: datetime | None = None,
) -> Reconciliation:
    """Every rule has been looked at, pages and ledger one after another; nothing is changed or locked.

    Of the ledger what was asked for `since`. Without a provider, or while it is away, the rest is checked. For a role
    that may read both schemas; REPEATABLE READ, a snapshot a page of orders. `pages` may be those of a replica as of
    `pages_at`; `database` is the primary, as the ledger may know more than a replica does yet: that is read there, by
    its ids.
    """
    made = Reconciliation()
    pages = pages or Snapshots(database)
    settled_before = min(now, pages_at or now) - grace
    for month in await pages.read(_months):
        made.findings += await _of_month(pages, month, settled_before)
    made.findings += await pages.read(partial(_unhurried_found, _STEPS, {"settled_before": settled_before}))
    if provider is None:
        made.unchecked = "no provider is named"
        return made
    try:
        async for finding in _of_ledger(database, provider, now - grace, since, grace):
            made.findings.append(finding)
    except (ProviderError, StepRefusedError) as error:
        made.unchecked = f"{provider.name}: {error}"
    return made


async def _months(connection: WriteConnection) -> list[datetime]:
    return [row["month"] for row in await _MONTHS.rows(connection)]


async def _of_month(pages: Snapshots, month: datetime, settled_before: datetime) -> list[Finding]:
    """Where a month's orders and their payments differ, at most SHOWN_MAX of a rule; a snapshot a page."""
    found: list[Finding] = []
    within: dict[str, object] = {"first": month, "after": clock.add_months(month, 1), "settled_before": settled_before}
    over_id = UUID(int=0)
    while over_id != _LAST_ID:
        over_id, more = await pages.read(partial(_of_page, within, over_id))
        seen = Counter(finding.rule for finding in found)
        for finding in more:
            seen[finding.rule] += 1
            if seen[finding.rule] <= SHOWN_MAX:
                found.append(finding)
    return found


async def _of_page(
    within: Mapping[str, object], over_id: UUID, connection: WriteConnection
) -> tuple[UUID, list[Finding]]:
    """The last id of the page after `over_id`, and where its orders and their payments differ."""
    rows = await _UPTO.rows(connection, over_id=over_id, page_orders=PAGE_ORDERS, **within)
    upto_id = rows[0]["order_id"] if rows else _LAST_ID
    return upto_id, await _unhurried_found(_ORDERS, {**within, "over_id": over_id, "upto_id": upto_id}, connection)


async def _unhurried_found(
    statement: db.Statement, values: Mapping[str, object], connection: WriteConnection
) -> list[Finding]:
    await connection.execute(_UNHURRIED)
    return await _found(connection, statement, **values)


async def _found(connection: WriteConnection, statement: db.Statement, **values: object) -> list[Finding]:
    rows = await statement.rows(connection, shown_max=SHOWN_MAX, **values)
    return [Finding(row["rule"], ids.to_text(row["id"]), row["detail"]) for row in rows]


async def _of_ledger(
    database: Database, provider: Provider, settled_before: datetime, since: datetime, grace: timedelta
) -> AsyncIterator[Finding]:
    """Where the provider's ledger and our payments differ."""
    reference_of: dict[str, str] = {}
    async for batch in _batches(provider.standings(since)):
        ours = await _ours(database, batch)
        for standing in batch:
            known = reference_of.setdefault(standing.order_id, standing.reference)
            if known != standing.reference:
                yield Finding(LEDGER, standing.order_id, f"it has two payments: {known} and {standing.reference}")
            elif (difference := _difference(standing, ours.get(standing.order_id), settled_before)) is not None:
                yield Finding(LEDGER, standing.order_id, difference)
    # Clocks differ: what was asked for just then may be of before `since` there.
    for row in await database.rows(_ASKED, since=since + grace, settled_before=settled_before, provider=provider.name):
        payment = payment_from(row)
        if payment.order_id not in reference_of:
            yield Finding(LEDGER, payment.order_id, f"it has no payment {payment.reference}; ours is {payment.status}")


async def _batches(standings: AsyncIterator[Standing]) -> AsyncIterator[list[Standing]]:
    batch: list[Standing] = []
    async for standing in standings:
        batch.append(standing)
        if len(batch) == LEDGER_BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


async def _ours(database: Database, standings: Sequence[Standing]) -> dict[str, Row]:
    keys = []
    for order_id in {standing.order_id for standing in standings}:
        try:
            keys.append(ids.order_key(ids.from_text(order_id)))
        except ValueError:
            continue  # no order of ours: told as one without a payment
    rows = await database.rows(
        _OURS,
        order_ids=[key.order_id for key in keys],
        created_ats=[key.created_at for key in keys],
        shards=[key.shard for key in keys],
    )
    return {ids.to_text(row["order_id"]): row for row in rows}


def _difference(standing: Standing, row: Row | None, settled_before: datetime) -> str | None:
    """What the provider has otherwise than we; None also for what is still under way."""
    if row is None:
        return f"it has {_told(standing)}; we have no payment"
    if row["moving"] or row["updated_at"] >= settled_before:
        return None
    payment: Payment = payment_from(row)
    ours = standing_of(payment)
    if _told(ours) == _told(standing) and payment.reference == standing.reference:
        return None
    return f"it has {_told(standing)} as {standing.reference}; we have {_told(ours)} as {payment.reference}"


def _told(standing: Standing) -> str:
    # What was held before it was voided not every provider remembers.
    held = standing.authorized_amount if standing.state is ProviderState.AUTHORIZED else 0
    return (
        f"{standing.state}: {held} {standing.currency} held, {standing.captured_amount} captured,"
        f" {standing.refunded_amount} refunded"
    )
