"""The outboxes there are. Their rows are read by the primary key (slice, position), from the start of the slice.

From its start each time: positions are given before the commit, so a lower one may appear after a higher one.
"""

from collections.abc import Sequence
from typing import Final, Protocol

from services.common import db
from services.common.db import Statement
from services.contracts import envelope
from services.relay.outbox import TYPES, Outbox

# Of orders the event is in order_events: by its primary key, one partition a row. LIMIT 1 keeps the planner from any
# other join, which it would choose while it believes the tables to be small.
_READ_ORDERS: Final = """
SELECT o.slice, o.position, o.order_id AS aggregate_id, o.version, e.event_id, e.type, e.data::text AS data, e.actor,
       e.traceparent, e.occurred_at, {parked_version}
FROM unnest(:slices) AS s (slice)
CROSS JOIN LATERAL (
    SELECT * FROM orders.outbox o WHERE o.slice = s.slice ORDER BY o.position LIMIT :rows
) o
LEFT JOIN LATERAL (
    SELECT * FROM orders.order_events e
    WHERE e.order_id = o.order_id AND e.created_at = o.created_at AND e.shard = o.shard AND e.version = o.version
    LIMIT 1
) e ON TRUE
"""

_OLDEST_ORDERS: Final = """
SELECT min(e.occurred_at)
FROM generate_series(0, 15) AS s (slice)
CROSS JOIN LATERAL (SELECT * FROM orders.outbox o WHERE o.slice = s.slice ORDER BY o.position LIMIT 1) o
JOIN LATERAL (
    SELECT occurred_at FROM orders.order_events e
    WHERE e.order_id = o.order_id AND e.created_at = o.created_at AND e.shard = o.shard AND e.version = o.version
    LIMIT 1
) e ON TRUE
"""

# Of products and payments the row itself is the event.
_READ_WHOLE: Final = """
SELECT o.slice, o.position, o.aggregate_id, o.version, o.event_id, o.type, o.data::text AS data, o.actor,
       o.traceparent, o.occurred_at, {{parked_version}}
FROM unnest(:slices) AS s (slice)
CROSS JOIN LATERAL (
    SELECT * FROM {name}.outbox o WHERE o.slice = s.slice ORDER BY o.position LIMIT :rows
) o
"""

_OLDEST_WHOLE: Final = """
SELECT min(o.occurred_at)
FROM generate_series(0, 15) AS s (slice)
CROSS JOIN LATERAL (SELECT * FROM {name}.outbox o WHERE o.slice = s.slice ORDER BY o.position LIMIT 1) o
"""

ORDERS: Final = Outbox(
    name="orders",
    topic=envelope.ORDERS_TOPIC,
    source=envelope.ORDERS_SOURCE,
    aggregate="order_id",
    id_member="order_id",
    read_sql=_READ_ORDERS,
    oldest_sql=_OLDEST_ORDERS,
)
CATALOG: Final = Outbox(
    name="catalog",
    topic=envelope.CATALOG_TOPIC,
    source=envelope.CATALOG_SOURCE,
    aggregate="aggregate_id",
    id_member="product_id",
    read_sql=_READ_WHOLE.format(name="catalog"),
    oldest_sql=_OLDEST_WHOLE.format(name="catalog"),
)
PAYMENTS: Final = Outbox(
    name="payments",
    topic=envelope.PAYMENTS_TOPIC,
    source=envelope.PAYMENTS_SOURCE,
    aggregate="aggregate_id",
    id_member="order_id",
    read_sql=_READ_WHOLE.format(name="payments"),
    oldest_sql=_OLDEST_WHOLE.format(name="payments"),
)

OUTBOXES: Final[Sequence[Outbox]] = (ORDERS, CATALOG, PAYMENTS)

# One index read for each slice that this relay has.
_LOOK: Final = """
SELECT '{name}' AS outbox WHERE EXISTS (
    SELECT FROM {held}
    CROSS JOIN LATERAL (SELECT FROM {table} o WHERE o.slice = s.slice ORDER BY o.position LIMIT 1) o
    WHERE s.outbox = '{name}'
)"""

# A long backlog is not counted to its end.
_OBSERVE: Final = """
SELECT '{name}' AS outbox, (SELECT count(*) FROM (SELECT 1 FROM {table} LIMIT 100000) bounded) AS depth,
       ({oldest}) AS oldest_at,
       (SELECT count(DISTINCT aggregate_id) FROM relay.parked WHERE outbox = '{name}') AS parked
"""


class Queue(Protocol):
    """A table that relays empty, shared out by slice: an outbox, or invalidations."""

    @property
    def name(self) -> str:
        """In metrics, and in `relay.slices`."""

    @property
    def table(self) -> str:
        """With its schema."""

    @property
    def oldest_sql(self) -> str:
        """Gives since when the first rows of the slices wait."""


def looking(queues: Sequence[Queue]) -> Statement:
    """Gives the queues that have a row in one of `slices`, the n-th of which is of the n-th of `outboxes`."""
    return db.statement("outboxes_look", look(queues, "unnest(:outboxes, :slices) AS s (outbox, slice)"), TYPES)


def look(queues: Sequence[Queue], held: str) -> str:
    """Gives the queues that have a row in one of the slices of `held`: a relation `s` of outboxes and slices."""
    return "\nUNION ALL".join(_LOOK.format(name=queue.name, table=queue.table, held=held) for queue in queues)


def observing(queues: Sequence[Queue]) -> Statement:
    """Gives of every queue how many rows wait (`depth`), since when (`oldest_at`), and how many aggregates are parked.

    What is parked is in neither.
    """
    parts = (_OBSERVE.format(name=queue.name, table=queue.table, oldest=queue.oldest_sql) for queue in queues)
    return db.statement("outboxes_observe", "UNION ALL".join(parts), TYPES)
