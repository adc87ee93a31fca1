"""SQL of payments. The text is PostgreSQL's own; SQLAlchemy Core gives each parameter its type."""

from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from services.common import clock, db, ids
from services.common.db import Row
from services.contracts.payments import Payment
from services.payments.domain import Step, StepKind
from services.payments.tables import metadata, timestamptz

# A parameter named like a column has its type; these are the others. JSON is text, cast in the statement.
_TYPES: Final[dict[str, sa.types.TypeEngine[Any]]] = {
    **db.column_types(metadata),
    "data": sa.Text(),
    "month": sa.Date(),
    "limit": sa.Integer(),
    "lease_seconds": sa.Float(),
    "due_in_seconds": sa.Float(),
    "older_than": timestamptz,
    "order_ids": ARRAY(sa.Uuid()),
    "created_ats": ARRAY(timestamptz),
    "shards": ARRAY(sa.SmallInteger()),
}
DELETE_STEPS_BATCH: Final = 5_000

_PAYMENT: Final = """p.order_id, p.created_at, p.shard, p.user_id, p.status, p.provider, p.reference, p.payment_method,
    p.currency, p.amount, p.authorized_amount, p.captured_amount, p.refunded_amount, p.failure, p.version,
    p.order_version, p.updated_at"""

CREATE_MONTH: Final = db.statement("payments_create_month", "SELECT payments.create_month(:month) AS made", _TYPES)

# Primary key, one partition a row; locked in the order of the ids.
LOCK_PAYMENTS: Final = db.statement(
    "lock_payments",
    f"""
SELECT p.*
FROM (
    SELECT * FROM unnest(:order_ids, :created_ats, :shards) AS k (order_id, created_at, shard) ORDER BY k.order_id
) k
CROSS JOIN LATERAL (
    SELECT {_PAYMENT} FROM payments.payments p
    WHERE p.order_id = k.order_id AND p.created_at = k.created_at AND p.shard = k.shard
    FOR NO KEY UPDATE
) p
""",  # noqa: S608 # what is put in is a constant
    _TYPES,
)

ADD_PAYMENT: Final = db.statement(
    "add_payment",
    """
INSERT INTO payments.payments (order_id, created_at, shard, user_id, status, provider, payment_method, currency, amount,
    authorized_amount, captured_amount, refunded_amount, version, order_version, updated_at)
VALUES (:order_id, :created_at, :shard, :user_id, :status, :provider, :payment_method, :currency, :amount, 0, 0, 0, 0,
    :order_version, :updated_at)
""",
    _TYPES,
)

# Under the lock of the payment. It is due at once, unless one before it is open. Index: primary key.
ADD_STEP: Final = db.statement(
    "add_step",
    """
WITH noted AS (
    UPDATE payments.payments SET order_version = :number
    WHERE order_id = :order_id AND created_at = :created_at AND shard = :shard
)
INSERT INTO payments.steps
    (order_id, created_at, shard, number, kind, amount, final, state, due_at, attempts, traceparent, asked_at)
SELECT :order_id, :created_at, :shard, :number, :kind, :amount, :final, 'open', CASE WHEN NOT EXISTS (
        SELECT FROM payments.steps e WHERE e.order_id = :order_id AND e.shard = :shard AND e.state = 'open'
    ) THEN now() END, 0, :traceparent, :asked_at
""",
    _TYPES,
)

# A claim is a lease: until due_at nobody else takes the step. Steps that another is just claiming are passed over.
# Indexes: due_at, then primary keys.
CLAIM_STEPS: Final = db.statement(
    "claim_steps",
    f"""
WITH due AS MATERIALIZED (
    SELECT order_id, created_at, shard, number FROM payments.steps
    WHERE state = 'open' AND due_at <= now() ORDER BY due_at LIMIT :limit
    FOR NO KEY UPDATE SKIP LOCKED
), claimed AS (
    UPDATE payments.steps s
    SET due_at = now() + make_interval(secs => :lease_seconds), attempts = s.attempts + 1,
        base_amount = coalesce(s.base_amount,
            CASE s.kind WHEN 'capture' THEN p.captured_amount WHEN 'refund' THEN p.refunded_amount ELSE 0 END)
    FROM due d
    CROSS JOIN LATERAL (
        SELECT captured_amount, refunded_amount FROM payments.payments p
        WHERE p.order_id = d.order_id AND p.created_at = d.created_at AND p.shard = d.shard LIMIT 1
    ) p
    WHERE s.order_id = d.order_id AND s.shard = d.shard AND s.number = d.number
    RETURNING s.*
)
SELECT {_PAYMENT}, s.number, s.kind, s.amount AS step_amount, s.final, s.attempts, s.base_amount, s.traceparent,
       EXISTS (
           SELECT FROM payments.steps v
           WHERE v.order_id = s.order_id AND v.shard = s.shard AND v.kind = 'void' AND v.state = 'open'
       ) AS to_be_voided
FROM claimed s
CROSS JOIN LATERAL (
    SELECT * FROM payments.payments p
    WHERE p.order_id = s.order_id AND p.created_at = s.created_at AND p.shard = s.shard LIMIT 1
) p
""",  # noqa: S608 # what is put in is a constant
    _TYPES,
)

# Under the lock of the payment, whose versions so take their places in the outbox in their order.
ADD_EVENT: Final = db.statement(
    "add_payment_event",
    """
WITH moved AS (
    UPDATE payments.payments
    SET status = :status, reference = :reference, authorized_amount = :authorized_amount,
        captured_amount = :captured_amount, refunded_amount = :refunded_amount, failure = :failure, version = :version,
        updated_at = :updated_at
    WHERE order_id = :order_id AND created_at = :created_at AND shard = :shard
)
INSERT INTO payments.outbox (slice, aggregate_id, version, event_id, type, data, actor, traceparent, occurred_at)
VALUES (:slice, :order_id, :version, :event_id, :type, CAST(:data AS jsonb), :actor, :traceparent, :updated_at)
""",
    _TYPES,
)

SET_REFERENCE: Final = db.statement(
    "set_payment_reference",
    """
UPDATE payments.payments SET reference = :reference
WHERE order_id = :order_id AND created_at = :created_at AND shard = :shard AND reference IS NULL
""",
    _TYPES,
)

# Under the lock of the payment. The next step of the order is due. Gives whether it was open. Index: primary key.
END_STEP: Final = db.statement(
    "end_step",
    """
WITH ended AS (
    UPDATE payments.steps SET state = :state, due_at = NULL, error = :error, ended_at = now()
    WHERE order_id = :order_id AND shard = :shard AND number = :number AND state = 'open'
    RETURNING TRUE AS ended
), next AS (
    UPDATE payments.steps SET due_at = now()
    WHERE order_id = :order_id AND shard = :shard AND EXISTS (SELECT FROM ended) AND number = (
        SELECT min(n.number) FROM payments.steps n
        WHERE n.order_id = :order_id AND n.shard = :shard AND n.number > :number AND n.state = 'open'
    )
)
SELECT ended FROM ended
""",
    _TYPES,
)

# Only by who has claimed it last: another's lease is not to be shortened. Index: primary key.
POSTPONE_STEP: Final = db.statement(
    "postpone_step",
    """
UPDATE payments.steps SET due_at = now() + make_interval(secs => :due_in_seconds), error = :error
WHERE order_id = :order_id AND shard = :shard AND number = :number AND state = 'open' AND attempts = :attempts
""",
    _TYPES,
)

# The same, for who has not asked after all: the next one is again the first.
UNCLAIM_STEP: Final = db.statement(
    "unclaim_step",
    """
UPDATE payments.steps
SET due_at = now() + make_interval(secs => :due_in_seconds), error = :error, attempts = attempts - 1
WHERE order_id = :order_id AND shard = :shard AND number = :number AND state = 'open' AND attempts = :attempts
""",
    _TYPES,
)

# The open step that does not wait for another is tried at once. Index: primary key.
HASTEN_STEP: Final = db.statement(
    "hasten_step",
    """
UPDATE payments.steps SET due_at = now()
WHERE order_id = :order_id AND shard = :shard AND state = 'open' AND due_at IS NOT NULL
RETURNING number
""",
    _TYPES,
)

# Index: due_at.
OLDEST_DUE: Final = db.statement(
    "oldest_due_step",
    """
SELECT extract(epoch FROM now() - due_at)::float8 AS seconds FROM payments.steps
WHERE state = 'open' AND due_at <= now() ORDER BY due_at LIMIT 1
""",
    _TYPES,
)

# Index: ended_at. Oldest first, a batch at a time; by their places, as a join may read all of the table.
DELETE_STEPS: Final = db.statement(
    "delete_steps",
    f"""
DELETE FROM payments.steps WHERE ctid = ANY (ARRAY(
    SELECT ctid FROM payments.steps
    WHERE state IN ('done', 'dropped') AND ended_at < :older_than ORDER BY ended_at LIMIT {DELETE_STEPS_BATCH}
))
RETURNING 1
""",  # noqa: S608 # the only thing put in is a constant
    _TYPES,
)

# Index: primary key, one partition.
GET_PAYMENT: Final = db.statement(
    "get_payment",
    f"""
SELECT {_PAYMENT} FROM payments.payments p
WHERE p.order_id = :order_id AND p.created_at = :created_at AND p.shard = :shard
""",  # noqa: S608 # what is put in is a constant
    _TYPES,
)

# Index: primary key.
GET_STEPS: Final = db.statement(
    "get_steps",
    """
SELECT number, kind, amount, final, state, due_at, attempts, error, asked_at, ended_at
FROM payments.steps WHERE order_id = :order_id AND shard = :shard ORDER BY number
""",
    _TYPES,
)


@dataclass(frozen=True, slots=True)
class Claim:
    """A step that is ours until `until` (monotonic seconds), with the payment as it stood when it was claimed.

    `attempt` counts from 1 how often it was claimed to be asked for; `to_be_voided`: the order was cancelled meanwhile.
    """

    payment: Payment
    step: Step
    attempt: int
    base_amount: int
    to_be_voided: bool
    traceparent: str | None
    until: float


def key_of(order_id: str) -> dict[str, object]:
    """What every statement about one order binds. ValueError when it is no id of an order."""
    return ids.order_key(ids.from_text(order_id))._asdict()


def payment_from(row: Row) -> Payment:
    """The payment a row is."""
    return Payment(
        order_id=ids.to_text(row["order_id"]),
        user_id=str(row["user_id"]),
        status=row["status"],
        provider=row["provider"],
        reference=row["reference"],
        payment_method=row["payment_method"],
        currency=row["currency"],
        amount=row["amount"],
        authorized_amount=row["authorized_amount"],
        captured_amount=row["captured_amount"],
        refunded_amount=row["refunded_amount"],
        failure=row["failure"],
        version=row["version"],
        updated_at=clock.to_text(row["updated_at"]),
    )


def claim_from(row: Row, until: float) -> Claim:
    """The claim a row of CLAIM_STEPS is."""
    step = Step(row["number"], StepKind(row["kind"]), row["step_amount"], row["final"])
    return Claim(
        payment_from(row),
        step,
        row["attempts"],
        row["base_amount"],
        row["to_be_voided"],
        row["traceparent"],
        until,
    )
