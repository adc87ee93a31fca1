"""SQL of orders that commands need. The text is PostgreSQL's own; SQLAlchemy Core gives each parameter its type."""

from collections.abc import Iterable
from typing import Any, Final

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from services.common import clock, db, ids
from services.common.db import Row, Statement
from services.common.inbox import Inbox
from services.contracts.orders import Event, Members, tell
from services.orders.tables import SCHEMA, metadata

# A parameter named like a column has its type; these are the others. What is in neither is text.
_TYPES: Final[dict[str, sa.types.TypeEngine[Any]]] = {
    **db.column_types(metadata),
    "data": sa.Text(),  # JSON as text, cast in the statement
    "adjustments": sa.Text(),  # likewise
    "adjusted_amount": sa.Numeric(),  # many amounts that each fit a bigint may not in sum
    "order_ids": ARRAY(sa.Uuid()),
    "created_ats": ARRAY(sa.TIMESTAMP(timezone=True)),
    "shards": ARRAY(sa.SmallInteger()),
    "counted_versions": ARRAY(sa.Integer()),
    "product_ids": ARRAY(sa.Uuid()),
    "product_texts": ARRAY(sa.Text()),
    "names": ARRAY(sa.Text()),
    "prices": ARRAY(sa.BigInteger()),
    "currencies": ARRAY(sa.Text()),
    "actives": ARRAY(sa.Boolean()),
    "versions": ARRAY(sa.BigInteger()),
    "seen_prices": ARRAY(sa.BigInteger()),
    "quantities": ARRAY(sa.Integer()),
    "line_nos": ARRAY(sa.Integer()),
    "shipped_quantities": ARRAY(sa.Integer()),
    "returned_quantities": ARRAY(sa.Integer()),
    "on_hand_deltas": ARRAY(sa.BigInteger()),
    "reserved_deltas": ARRAY(sa.BigInteger()),
    "agreed": sa.Boolean(),
    "any_owner": sa.Boolean(),
    "amount_max": sa.BigInteger(),
    "after_version": sa.Integer(),
    "limit": sa.Integer(),
    "from_at": sa.TIMESTAMP(timezone=True),
    "before_at": sa.TIMESTAMP(timezone=True),
    "before_id": sa.Uuid(),
    "month": sa.Date(),
    "older_than": sa.TIMESTAMP(timezone=True),
    "now": sa.TIMESTAMP(timezone=True),
    "lease": sa.Interval(),
    "interval": sa.Interval(),
    "times": sa.Integer(),
    "window": sa.Interval(),
    "from_id": sa.Uuid(),
    "walked": sa.Integer(),
    "first_on": sa.Date(),
    "end_on": sa.Date(),
}

# What the projector has applied already, of all its topics.
INBOX_CONSUMER: Final = "orders-projector"
INBOX: Final = Inbox(SCHEMA, INBOX_CONSUMER)


def statement(name: str, sql: str) -> Statement:
    """`sql` with its parameters typed by their names."""
    return db.statement(name, sql, _TYPES)


def events_from(rows: Iterable[Row], order_id: str) -> list[Event]:
    """The events in `rows`, skipping the row of NULLs that stands for none."""
    return [
        Event(
            event_id=ids.to_text(row["event_id"]),
            order_id=order_id,
            version=row["version"],
            type=row["type"],
            occurred_at=clock.to_text(row["occurred_at"]),
            actor=row["actor"],
            data=orjson.loads(row["data"]),
        )
        for row in rows
        if row["version"] is not None
    ]


def told(rows: Iterable[Row]) -> Members:
    """What the events in `rows`, which are all of an order's up to some version, tell of it."""
    return tell((row["version"], row["type"], _time(row), orjson.loads(row["data"])) for row in rows)


def _time(row: Row) -> str:
    # The first event has it in its data: there it is not read, and it costs.
    return "" if row["version"] == 1 else clock.to_text(row["occurred_at"])


# The key's first answer: its events up to the version that answer showed. Two primary keys, one partition.
REPLAY = statement(
    "replay",
    """
SELECT k.request_hash, k.resource, e.version, e.event_id, e.type, e.data::text AS data, e.actor, e.occurred_at
FROM orders.idempotency_keys k
LEFT JOIN LATERAL (
    SELECT * FROM orders.order_events e
    WHERE e.order_id = k.resource AND e.created_at = uuid_extract_timestamp(k.resource) AND e.shard = k.shard
      AND e.version <= k.version
    ORDER BY e.version
) e ON TRUE
WHERE k.shard = :shard AND k.subject = :subject AND k.key = :key
""",
)

ALL_EVENTS: Final = 2**31 - 1  # as a limit

# Primary keys of orders (or its index on created_at, order_id) and order_events; one partition of each. One row an
# event, one row of NULLs when there is none.
GET_EVENTS = statement(
    "get_events",
    """
SELECT o.version AS order_version, e.version, e.event_id, e.type, e.data::text AS data, e.actor, e.occurred_at
FROM orders.orders o
LEFT JOIN LATERAL (
    SELECT * FROM orders.order_events e
    WHERE e.order_id = :order_id AND e.created_at = :created_at AND e.shard = :shard AND e.version > :after_version
    ORDER BY e.version LIMIT :limit
) e ON TRUE
WHERE o.order_id = :order_id AND o.created_at = :created_at AND o.shard = :shard
  AND (o.user_id = :user_id OR :any_owner)
""",
)

# A command's gate and lock. No row: the key is known, or there is no such order for this caller (then no key is stored:
# an order never goes away and never changes its owner, so looking before locking is safe).
LOCK = statement(
    "lock_order",
    """
WITH gate AS (
    INSERT INTO orders.idempotency_keys (shard, subject, key, request_hash, resource, version, created_at)
    SELECT :shard, :subject, :key, :request_hash, :order_id, :version, :occurred_at
    FROM orders.orders o
    WHERE o.order_id = :order_id AND o.created_at = :created_at AND o.shard = :shard
      AND (o.user_id = :user_id OR :any_owner)
    ON CONFLICT DO NOTHING
    RETURNING TRUE AS open
)
SELECT o.version
FROM gate CROSS JOIN orders.orders o
WHERE o.order_id = :order_id AND o.created_at = :created_at AND o.shard = :shard
FOR NO KEY UPDATE OF o
""",
)

# A process's lock: it has no key, what it has done already is seen in the order. No row: there is no such order.
LOCK_ORDER = statement(
    "lock_order_by_id",
    """
SELECT version FROM orders.orders
WHERE order_id = :order_id AND created_at = :created_at AND shard = :shard
FOR NO KEY UPDATE
""",
)

# Index: (expires_at) of the pending ones, of each month; oldest first.
GET_EXPIRED = statement(
    "get_expired",
    """
SELECT order_id, created_at, shard, expires_at FROM orders.orders
WHERE status = 'pending' AND expires_at <= :now ORDER BY expires_at LIMIT :limit
""",
)

# No row: it is pending no more, or somebody changes it just now.
LOCK_EXPIRED = statement(
    "lock_expired",
    """
SELECT version FROM orders.orders
WHERE order_id = :order_id AND created_at = :created_at AND shard = :shard
  AND status = 'pending' AND expires_at <= :now
FOR NO KEY UPDATE SKIP LOCKED
""",
)

CREATE_MONTH = statement("create_month", "SELECT orders.create_month(:month) AS made")

DELETE_KEYS_BATCH: Final = 5_000

# Index: created_at. Oldest first, a batch at a time.
DELETE_KEYS = statement(
    "delete_keys",
    f"""
DELETE FROM orders.idempotency_keys k
USING (
    SELECT shard, subject, key FROM orders.idempotency_keys
    WHERE created_at < :older_than ORDER BY created_at LIMIT {DELETE_KEYS_BATCH}
) old
WHERE k.shard = old.shard AND k.subject = old.subject AND k.key = old.key
RETURNING 1
""",  # noqa: S608 # the only thing put in is a constant
)

# An adjustment of stock by hand. The movement is the gate: a known key inserts none, and nothing is returned. What it
# holds hangs on the stock, so the stock is locked before it; those with the same key wait for their turn before that,
# and never in the queue for the stock. Also no row: the product is not known, or it has no stock row yet and another's
# first adjustment came first. Indexes: primary keys.
ADJUST = statement(
    "adjust_stock",
    """
WITH turn AS MATERIALIZED (
    SELECT p.product_id, orders.take_adjustment_turn(p.product_id, :subject, :key) AS mine
    FROM orders.products p
    WHERE p.product_id = :product_id
), stock AS MATERIALIZED (
    SELECT t.product_id, i.version IS NULL AS unstocked, coalesce(i.on_hand, 0) + :delta AS on_hand,
           coalesce(i.reserved, 0) AS reserved, coalesce(i.version, 0) + 1 AS version
    FROM turn t
    LEFT JOIN LATERAL (
        SELECT on_hand, reserved, version FROM orders.inventory i WHERE i.product_id = t.product_id FOR NO KEY UPDATE
    ) i ON TRUE
), gate AS (
    INSERT INTO orders.inventory_movements (product_id, version, delta, reason, actor, on_hand, reserved, subject, key,
        request_hash, created_at)
    SELECT product_id, version, :delta, :reason, :actor, on_hand, reserved, :subject, :key, :request_hash, :created_at
    FROM stock
    ON CONFLICT DO NOTHING
    RETURNING TRUE AS open
), allowed AS MATERIALIZED (
    SELECT s.product_id, s.unstocked, s.on_hand, s.reserved, s.version,
           CASE
               WHEN s.on_hand < s.reserved THEN orders.refuse('below_reserved', jsonb_build_object(
                   'on_hand', s.on_hand - :delta, 'reserved', s.reserved))
               WHEN s.on_hand > :amount_max THEN orders.refuse('amount_too_large', '{}')
               ELSE FALSE
           END AS refused
    FROM gate CROSS JOIN stock s
), adjusted AS (
    UPDATE orders.inventory i SET on_hand = a.on_hand, version = a.version
    FROM allowed a
    WHERE i.product_id = a.product_id AND NOT a.unstocked AND NOT a.refused
), stocked AS (
    INSERT INTO orders.inventory (product_id, on_hand, reserved, version)
    SELECT product_id, on_hand, reserved, version FROM allowed WHERE unstocked AND NOT refused
), told AS (
    INSERT INTO orders.invalidations (shard, slice, keys)
    SELECT :shard, :slice, jsonb_build_object('orders:inventory', jsonb_build_object(product_id, version))
    FROM allowed
    WHERE NOT refused
)
SELECT on_hand, reserved, version FROM allowed
""",
)

# The movement of a key, as a row of NULLs when there is none; no row: the product is not known. Index: unique key.
GET_MOVEMENT = statement(
    "get_movement",
    """
SELECT m.request_hash, m.on_hand, m.reserved, m.version
FROM orders.products p
LEFT JOIN orders.inventory_movements m ON m.product_id = p.product_id AND m.subject = :subject AND m.key = :key
WHERE p.product_id = :product_id
""",
)

# The catalogue's products as orders need them, one row each; gives those that were older. A version never goes back,
# whatever the inbox has forgotten. Where there is stock its row takes the version too, for a placement that waits for
# it; no answer shows that, so no cache is told. Primary keys, in their order: first products, which nobody else locks,
# then stock as everyone locks it.
COPY_PRODUCTS = statement(
    "copy_products",
    """
WITH copied AS (
    INSERT INTO orders.products AS p (product_id, name, price, currency, active, version)
    SELECT n.product_id, n.name, n.price, n.currency, n.active, n.version
    FROM unnest(:product_ids, :names, :prices, :currencies, :actives, :versions)
        AS n (product_id, name, price, currency, active, version)
    ORDER BY n.product_id
    ON CONFLICT (product_id) DO UPDATE SET name = excluded.name, price = excluded.price, currency = excluded.currency,
        active = excluded.active, version = excluded.version
    WHERE p.version < excluded.version
    RETURNING p.product_id, p.version
), stock AS MATERIALIZED (
    SELECT c.product_id, c.version
    FROM (SELECT product_id, version FROM copied ORDER BY product_id) c
    CROSS JOIN LATERAL (
        SELECT FROM orders.inventory i WHERE i.product_id = c.product_id FOR NO KEY UPDATE
    ) i
), noted AS (
    UPDATE orders.inventory i SET product_version = s.version FROM stock s WHERE i.product_id = s.product_id
)
SELECT product_id FROM copied
""",
)
