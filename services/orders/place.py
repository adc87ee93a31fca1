"""The one statement that places an order (decision 0003)."""

from services.orders.repository import statement

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
