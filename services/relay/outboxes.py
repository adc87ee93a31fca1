"""The outboxes there are: how each is claimed, read and emptied, and what its rows are on Kafka."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from services.common import clock, ids
from services.common.db import Row, Statement
from services.common.stream import Message, UnpublishableError, check_size
from services.contracts import envelope

SLICES: Final = range(16)


@dataclass(frozen=True, slots=True)
class Outbox:
    """One table of unpublished events. `read` gives rows in position order per slice, `delete` takes what was read."""

    name: str
    topic: str
    claim: Statement
    read: Statement
    delete: Statement
    look: Statement
    message: Callable[[Row], Message]


def _statement(name: str, sql: str, **types: sa.types.TypeEngine[Any]) -> Statement:
    return Statement(name, sa.text(sql).bindparams(*(sa.bindparam(n, type_=t) for n, t in types.items())))


def order_message(row: Row) -> Message:
    """The event a row of orders.outbox stands for. UnpublishableError when there is none, or it is too large."""
    order_id: UUID = row["order_id"]
    if row["event_id"] is None:
        raise UnpublishableError("there is no such event")
    subject, event_id, time = ids.to_text(order_id), ids.to_text(row["event_id"]), clock.to_text(row["occurred_at"])
    value = orjson.dumps(
        {
            "event_id": event_id,
            "order_id": subject,
            "version": row["version"],
            "type": row["type"],
            "occurred_at": time,
            "actor": row["actor"],
            "data": orjson.Fragment(row["data"]),
        }
    )
    message = Message(
        key=subject.encode(),
        value=value,
        headers=envelope.headers(
            event_id=event_id,
            type_=row["type"],
            source=envelope.ORDERS_SOURCE,
            subject=subject,
            time=time,
            version=row["version"],
            traceparent=row["traceparent"],
        ),
    )
    check_size(message)
    return message


# Session locks: they are gone when the connection is, and another relay takes over.
_CLAIM = """
SELECT s.slice FROM unnest(:slices) AS s (slice)
WHERE pg_try_advisory_lock(hashtext('orders.outbox'), s.slice::integer)
"""

# Index: primary key of the outbox (slice, position), read in order; primary key of order_events, one partition a row.
# `parked` are orders with a row that cannot be published: their later rows must not overtake it.
_READ = """
SELECT o.slice, o.position, o.order_id, o.version, e.event_id, e.type, e.data::text AS data, e.actor, e.traceparent,
       e.occurred_at
FROM unnest(:slices) AS s (slice)
CROSS JOIN LATERAL (
    SELECT * FROM orders.outbox o
    WHERE o.slice = s.slice AND o.order_id <> ALL (:parked)
    ORDER BY o.position LIMIT :rows
) o
LEFT JOIN LATERAL (
    SELECT * FROM orders.order_events e
    WHERE e.order_id = o.order_id AND e.created_at = o.created_at AND e.shard = o.shard AND e.version = o.version
) e ON TRUE
"""

_DELETE = """
DELETE FROM orders.outbox o
USING unnest(:slices, :positions) AS d (slice, position)
WHERE o.slice = d.slice AND o.position = d.position
"""

# The first row of every slice, and how many rows there are up to a bound: a long backlog is not counted to its end.
_LOOK = """
SELECT (SELECT count(*) FROM (SELECT 1 FROM orders.outbox LIMIT 100000) bounded) AS depth, (
    SELECT min(e.occurred_at)
    FROM generate_series(0, 15) AS s (slice)
    CROSS JOIN LATERAL (SELECT * FROM orders.outbox o WHERE o.slice = s.slice ORDER BY o.position LIMIT 1) o
    JOIN LATERAL (
        SELECT occurred_at FROM orders.order_events e
        WHERE e.order_id = o.order_id AND e.created_at = o.created_at AND e.shard = o.shard AND e.version = o.version
    ) e ON TRUE
) AS oldest_at
"""

_SMALLINTS = ARRAY(sa.SmallInteger())

OUTBOXES: Final[Sequence[Outbox]] = (
    Outbox(
        name="orders",
        topic=envelope.ORDERS_TOPIC,
        claim=_statement("outbox_claim", _CLAIM, slices=_SMALLINTS),
        read=_statement("outbox_read", _READ, slices=_SMALLINTS, parked=ARRAY(sa.Uuid()), rows=sa.Integer()),
        delete=_statement("outbox_delete", _DELETE, slices=_SMALLINTS, positions=ARRAY(sa.BigInteger())),
        look=_statement("outbox_look", _LOOK),
        message=order_message,
    ),
)
