"""The outboxes there are. Their rows are read by the primary key (slice, position), in order."""

from collections.abc import Sequence
from typing import Final

from services.contracts import envelope
from services.relay.outbox import Outbox

# Of orders the event is in order_events: by its primary key, one partition a row.
_READ_ORDERS: Final = """
SELECT o.slice, o.position, o.order_id AS aggregate_id, o.version, e.event_id, e.type, e.data::text AS data, e.actor,
       e.traceparent, e.occurred_at
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

# The first row of every slice, and how many rows there are up to a bound: a long backlog is not counted to its end.
_LOOK_ORDERS: Final = """
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

# Of products the row itself is the event.
_READ_CATALOG: Final = """
SELECT o.slice, o.position, o.aggregate_id, o.version, o.event_id, o.type, o.data::text AS data, o.actor,
       o.traceparent, o.occurred_at
FROM unnest(:slices) AS s (slice)
CROSS JOIN LATERAL (
    SELECT * FROM catalog.outbox o
    WHERE o.slice = s.slice AND o.aggregate_id <> ALL (:parked)
    ORDER BY o.position LIMIT :rows
) o
"""

_LOOK_CATALOG: Final = """
SELECT (SELECT count(*) FROM (SELECT 1 FROM catalog.outbox LIMIT 100000) bounded) AS depth, (
    SELECT min(o.occurred_at)
    FROM generate_series(0, 15) AS s (slice)
    CROSS JOIN LATERAL (SELECT * FROM catalog.outbox o WHERE o.slice = s.slice ORDER BY o.position LIMIT 1) o
) AS oldest_at
"""

ORDERS: Final = Outbox(
    name="orders",
    topic=envelope.ORDERS_TOPIC,
    source=envelope.ORDERS_SOURCE,
    id_member="order_id",
    read_sql=_READ_ORDERS,
    look_sql=_LOOK_ORDERS,
)
CATALOG: Final = Outbox(
    name="catalog",
    topic=envelope.CATALOG_TOPIC,
    source=envelope.CATALOG_SOURCE,
    id_member="product_id",
    read_sql=_READ_CATALOG,
    look_sql=_LOOK_CATALOG,
)

OUTBOXES: Final[Sequence[Outbox]] = (ORDERS, CATALOG)
