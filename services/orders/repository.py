"""SQL of orders that commands need. The text is PostgreSQL's own; SQLAlchemy Core gives each parameter its type."""

from collections.abc import Iterable
from typing import Any, Final

import orjson
import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from services.common import clock, db, ids
from services.common.db import Row, Statement
from services.common.inbox import Inbox
from services.contracts.orders import Event, Order, fold
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
    return [_event(row, order_id, ids.to_text(row["event_id"])) for row in rows if row["version"] is not None]


def order_from(rows: Iterable[Row], order_id: str) -> Order:
    """The fold of the events in `rows`, which are all of an order's up to some version."""
    return fold(_event(row, order_id, "") for row in rows)  # the fold reads no event ids, and their text costs


def _event(row: Row, order_id: str, event_id: str) -> Event:
    return Event(
        event_id=event_id,
        order_id=order_id,
        version=row["version"],
        type=row["type"],
        occurred_at=clock.to_text(row["occurred_at"]),
        actor=row["actor"],
        data=orjson.loads(row["data"]),
    )


# Everything hangs on the gate's row: when the key is known the statement writes nothing and returns nothing. Refusals
# raise, which undoes the key too. Rows are locked in this order: key, stock by product_id; the CHECK on inventory
# stands behind the explicit look at the stock. Products are read as of the statement's start, without a lock; but a
# product changes together with product_version in its stock row. So under the lock on that row it is seen when what was
# read is no longer true (`product_changed`: start again), and it stays true until the commit. Indexes: all primary
# keys. One partition of each table.
PLACE = statement(
    "place_order",
    """
WITH gate AS (
    INSERT INTO orders.idempotency_keys (shard, subject, key, request_hash, resource, version, created_at)
    VALUES (:shard, :subject, :key, :request_hash, :order_id, 1, :created_at)
    ON CONFLICT DO NOTHING
    RETURNING TRUE AS open
), lines AS MATERIALIZED (
    SELECT l.line_no, l.product_id, l.product_text, l.quantity, l.seen_price, p.name, p.price, p.currency, p.active,
           p.version AS product_version,
           CASE WHEN :agreed THEN coalesce(l.seen_price, p.price) ELSE p.price END AS unit_price
    FROM gate
    CROSS JOIN unnest(:product_ids, :product_texts, :quantities, :seen_prices)
        WITH ORDINALITY AS l (product_id, product_text, quantity, seen_price, line_no)
    LEFT JOIN orders.products p ON p.product_id = l.product_id
), priced AS MATERIALIZED (
    SELECT sum(unit_price::numeric * quantity) + :adjusted_amount AS total_amount,
           count(*) AS item_count,
           jsonb_agg(jsonb_build_object(
               'line_no', line_no, 'product_id', product_text, 'name', name, 'quantity', quantity,
               'unit_price', unit_price, 'line_total', unit_price * quantity, 'shipped_quantity', 0,
               'returned_quantity', 0) ORDER BY line_no) AS items,
           CASE
               WHEN bool_or(price IS NULL) THEN orders.refuse('product_unknown', jsonb_build_object(
                   'lines', jsonb_agg(line_no ORDER BY line_no) FILTER (WHERE price IS NULL)))
               WHEN NOT bool_and(active) THEN orders.refuse('product_inactive', jsonb_build_object(
                   'lines', jsonb_agg(line_no ORDER BY line_no) FILTER (WHERE NOT active)))
               WHEN bool_or(currency <> :currency) THEN orders.refuse('currency_mismatch', jsonb_build_object(
                   'lines', jsonb_agg(line_no ORDER BY line_no) FILTER (WHERE currency <> :currency)))
               WHEN bool_or(seen_price <> unit_price) THEN orders.refuse('price_changed', jsonb_build_object(
                   'lines', jsonb_agg(jsonb_build_object('line_no', line_no, 'unit_price', unit_price) ORDER BY line_no)
                       FILTER (WHERE seen_price <> unit_price)))
               WHEN sum(unit_price::numeric * quantity) + :adjusted_amount > :amount_max
                   THEN orders.refuse('amount_too_large', '{}')
               WHEN sum(unit_price::numeric * quantity) + :adjusted_amount < 0
                   THEN orders.refuse('total_negative', '{}')
               ELSE FALSE
           END AS refused
    FROM lines
    HAVING count(*) > 0
), stock AS MATERIALIZED (
    SELECT d.product_id, d.product_text, d.quantity, i.on_hand - i.reserved - d.quantity AS remaining,
           i.product_version > d.product_version AS product_changed
    FROM (
        SELECT product_id, min(product_text) AS product_text, sum(quantity) AS quantity,
               min(product_version) AS product_version
        FROM lines CROSS JOIN priced
        WHERE NOT refused
        GROUP BY product_id
        ORDER BY product_id
    ) d
    LEFT JOIN LATERAL (
        SELECT on_hand, reserved, product_version
        FROM orders.inventory i WHERE i.product_id = d.product_id FOR NO KEY UPDATE
    ) i ON TRUE
), reservable AS MATERIALIZED (
    SELECT CASE
               WHEN bool_or(product_changed) THEN orders.refuse('product_changed', '{}')
               WHEN bool_or(remaining IS NULL OR remaining < 0) THEN orders.refuse('out_of_stock', jsonb_build_object(
                   'product_ids', jsonb_agg(product_text) FILTER (WHERE remaining IS NULL OR remaining < 0)))
               ELSE FALSE
           END AS refused
    FROM stock
    HAVING count(*) > 0
), reserved AS (
    UPDATE orders.inventory i SET reserved = i.reserved + s.quantity, version = i.version + 1
    FROM stock s CROSS JOIN reservable r
    WHERE i.product_id = s.product_id AND NOT r.refused
    RETURNING i.product_id, i.version
), stale AS MATERIALIZED (
    SELECT jsonb_build_object('orders:inventory', jsonb_object_agg(product_id, version)) AS keys
    FROM reserved
    HAVING count(*) > 0
), told AS (
    INSERT INTO orders.invalidations (shard, slice, keys) SELECT :shard, :slice, keys FROM stale
), document AS MATERIALIZED (
    SELECT p.total_amount::bigint AS total_amount, p.item_count::integer AS item_count,
           jsonb_build_object(
               'change', jsonb_build_object(
                   'order_id', :order_text, 'user_id', :user_text, 'status', :status,
                   'payment_status', :payment_status, 'currency', :currency, 'total_amount', p.total_amount::bigint,
                   'captured_amount', 0, 'refunded_amount', 0, 'item_count', p.item_count, 'version', 1,
                   'created_at', :created_text, 'updated_at', :created_text, 'items', p.items,
                   'adjustments', CAST(:adjustments AS jsonb), 'expires_at', :expires_text,
                   'payment_method', :payment_method, 'shipping_address_id', :shipping_address_id,
                   'tracking', NULL, 'cancel_reason', NULL,
                   'agreed_prices', :agreed),
               'after', jsonb_build_object(
                   'status', :status, 'payment_status', :payment_status, 'currency', :currency,
                   'total_amount', p.total_amount::bigint, 'user_id', :user_text)) AS data
    FROM priced p CROSS JOIN reservable r
    WHERE NOT r.refused
), placed AS (
    INSERT INTO orders.orders (order_id, created_at, shard, user_id, status, payment_status, currency, total_amount,
        captured_amount, refunded_amount, item_count, adjustments, expires_at, payment_method, shipping_address_id,
        version, updated_at)
    SELECT :order_id, :created_at, :shard, :user_id, :status, :payment_status, :currency, d.total_amount,
        0, 0, d.item_count, CAST(:adjustments AS jsonb), :expires_at, :payment_method, :shipping_address_id,
        1, :created_at
    FROM document d
), items AS (
    INSERT INTO orders.order_items (order_id, created_at, shard, line_no, product_id, name, quantity, unit_price,
        line_total, shipped_quantity, returned_quantity)
    SELECT :order_id, :created_at, :shard, l.line_no, l.product_id, l.name, l.quantity, l.unit_price,
        l.unit_price * l.quantity, 0, 0
    FROM lines l CROSS JOIN document
), event AS (
    INSERT INTO orders.order_events (order_id, created_at, shard, version, event_id, type, data, actor, traceparent,
        occurred_at)
    SELECT :order_id, :created_at, :shard, 1, :event_id, 'order.placed', d.data, :actor, :traceparent, :created_at
    FROM document d
), sent AS (
    INSERT INTO orders.outbox (shard, slice, order_id, created_at, version)
    SELECT :shard, :slice, :order_id, :created_at, 1 FROM document
)
SELECT d.data::text AS data, s.keys::text AS keys FROM document d CROSS JOIN stale s
""",
)

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

# The order as its next event leaves it, that event, its outbox row and what it does to the stock; gives what caches may
# have kept of before.
ADVANCE = statement(
    "advance_order",
    """
WITH changed AS (
    UPDATE orders.orders SET status = :status, payment_status = :payment_status, total_amount = :total_amount,
        captured_amount = :captured_amount, refunded_amount = :refunded_amount, tracking = :tracking,
        cancel_reason = :cancel_reason, version = :version, updated_at = :occurred_at,
        expires_at = CASE WHEN :status = 'pending' THEN expires_at END
    WHERE order_id = :order_id AND created_at = :created_at AND shard = :shard
), lines AS (
    UPDATE orders.order_items i
    SET shipped_quantity = l.shipped_quantity, returned_quantity = l.returned_quantity
    FROM unnest(:line_nos, :shipped_quantities, :returned_quantities)
        AS l (line_no, shipped_quantity, returned_quantity)
    WHERE i.order_id = :order_id AND i.created_at = :created_at AND i.shard = :shard AND i.line_no = l.line_no
), stock AS MATERIALIZED (
    SELECT d.product_id, d.on_hand, d.reserved
    FROM (
        SELECT * FROM unnest(:product_ids, :on_hand_deltas, :reserved_deltas) AS d (product_id, on_hand, reserved)
        ORDER BY product_id
    ) d
    CROSS JOIN LATERAL (
        SELECT FROM orders.inventory i WHERE i.product_id = d.product_id FOR NO KEY UPDATE
    ) i
), moved AS (
    UPDATE orders.inventory i
    SET on_hand = i.on_hand + s.on_hand, reserved = i.reserved + s.reserved, version = i.version + 1
    FROM stock s
    WHERE i.product_id = s.product_id
    RETURNING i.product_id, i.version
), event AS (
    INSERT INTO orders.order_events (order_id, created_at, shard, version, event_id, type, data, actor, traceparent,
        occurred_at)
    VALUES (:order_id, :created_at, :shard, :version, :event_id, :type, CAST(:data AS jsonb), :actor, :traceparent,
        :occurred_at)
), sent AS (
    INSERT INTO orders.outbox (shard, slice, order_id, created_at, version)
    VALUES (:shard, :slice, :order_id, :created_at, :version)
), stale AS MATERIALIZED (
    SELECT jsonb_build_object('orders:order', jsonb_build_object(:order_id, :version),
                              'orders:inventory', coalesce(jsonb_object_agg(product_id, version), '{}')) AS keys
    FROM moved
), told AS (
    INSERT INTO orders.invalidations (shard, slice, keys) SELECT :shard, :slice, keys FROM stale
)
SELECT keys::text AS keys FROM stale
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
