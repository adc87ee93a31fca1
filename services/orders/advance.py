"""The one statement that takes an order a step on: every command, settlement and expiry ends with it."""

from services.orders.repository import statement

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
