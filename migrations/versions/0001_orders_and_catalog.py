"""Orders, their events, stock and products: schemas, roles, tables, partitions, triggers and grants."""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

# One role a process. They can log in and nothing else; passwords are given by whoever deploys.
ROLES = ("orders_api", "orders_maintenance", "outbox_relay", "orders_inspect")

TABLES = r"""
CREATE TABLE orders.idempotency_keys (
    shard SMALLINT NOT NULL,
    subject TEXT NOT NULL,
    key TEXT NOT NULL,
    request_hash BYTEA NOT NULL,
    resource UUID NOT NULL,
    version INTEGER NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_idempotency_keys PRIMARY KEY (shard, subject, key),
    CONSTRAINT ck_idempotency_keys_shard CHECK (shard BETWEEN 0 AND 4095),
    CONSTRAINT ck_idempotency_keys_key CHECK (char_length(key) BETWEEN 1 AND 255)
);
CREATE INDEX ix_idempotency_keys_created_at ON orders.idempotency_keys (created_at);
COMMENT ON TABLE orders.idempotency_keys IS 'one row a request that changed something; kept 30 days';
COMMENT ON COLUMN orders.idempotency_keys.shard IS 'the order''s';
COMMENT ON COLUMN orders.idempotency_keys.request_hash IS 'SHA-256 of method, path and body';
COMMENT ON COLUMN orders.idempotency_keys.resource IS 'the order';
COMMENT ON COLUMN orders.idempotency_keys.version IS 'the version the first answer showed';

CREATE TABLE orders.inventory (
    product_id UUID NOT NULL,
    on_hand BIGINT NOT NULL,
    reserved BIGINT NOT NULL,
    version BIGINT NOT NULL,
    CONSTRAINT pk_inventory PRIMARY KEY (product_id),
    CONSTRAINT ck_inventory_reserved_within_on_hand CHECK (reserved BETWEEN 0 AND on_hand)
);
COMMENT ON TABLE orders.inventory IS 'stock of a product; the CHECK is what makes overselling impossible';
COMMENT ON COLUMN orders.inventory.version IS 'grows by one with every change';

CREATE TABLE orders.inventory_movements (
    product_id UUID NOT NULL,
    version BIGINT NOT NULL,
    delta BIGINT NOT NULL,
    reason TEXT NOT NULL,
    actor TEXT NOT NULL,
    on_hand BIGINT NOT NULL,
    reserved BIGINT NOT NULL,
    subject TEXT NOT NULL,
    key TEXT NOT NULL,
    request_hash BYTEA NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_inventory_movements PRIMARY KEY (product_id, version),
    CONSTRAINT uq_inventory_movements_product_id_subject_key UNIQUE (product_id, subject, key)
);
COMMENT ON TABLE orders.inventory_movements IS 'adjustments of stock by hand; orders'' effects are in their events';
COMMENT ON COLUMN orders.inventory_movements.version IS 'of the inventory row, after it';
COMMENT ON COLUMN orders.inventory_movements.on_hand IS 'after it';
COMMENT ON COLUMN orders.inventory_movements.reserved IS 'after it';

CREATE TABLE orders.order_events (
    order_id UUID NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    shard SMALLINT NOT NULL,
    version INTEGER NOT NULL,
    event_id UUID NOT NULL,
    type TEXT NOT NULL,
    data JSONB NOT NULL,
    actor TEXT NOT NULL,
    traceparent TEXT,
    occurred_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_order_events PRIMARY KEY (order_id, created_at, shard, version),
    CONSTRAINT ck_order_events_created_at_is_in_order_id
        CHECK ((uuid_extract_version(order_id) = 7 AND created_at = uuid_extract_timestamp(order_id)) IS TRUE),
    CONSTRAINT ck_order_events_shard_is_in_order_id
        CHECK (shard = ((get_byte(uuid_send(order_id), 6) & 15) << 8) + get_byte(uuid_send(order_id), 7)),
    CONSTRAINT ck_order_events_version CHECK (version >= 1)
) PARTITION BY RANGE (created_at);
COMMENT ON TABLE orders.order_events IS
    'the truth: versions 1..n of every order, append-only by grants and by triggers';
COMMENT ON COLUMN orders.order_events.created_at IS 'the time in order_id';
COMMENT ON COLUMN orders.order_events.shard IS 'the 12 bits of order_id after its version';
COMMENT ON COLUMN orders.order_events.data IS '{"change": what changed, "after": header}';

CREATE TABLE orders.order_items (
    order_id UUID NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    shard SMALLINT NOT NULL,
    line_no INTEGER NOT NULL,
    product_id UUID NOT NULL,
    name TEXT NOT NULL,
    quantity INTEGER NOT NULL,
    unit_price BIGINT NOT NULL,
    line_total BIGINT NOT NULL,
    shipped_quantity INTEGER NOT NULL,
    returned_quantity INTEGER NOT NULL,
    CONSTRAINT pk_order_items PRIMARY KEY (order_id, created_at, shard, line_no),
    CONSTRAINT ck_order_items_created_at_is_in_order_id
        CHECK ((uuid_extract_version(order_id) = 7 AND created_at = uuid_extract_timestamp(order_id)) IS TRUE),
    CONSTRAINT ck_order_items_shard_is_in_order_id
        CHECK (shard = ((get_byte(uuid_send(order_id), 6) & 15) << 8) + get_byte(uuid_send(order_id), 7)),
    CONSTRAINT ck_order_items_quantity CHECK (quantity >= 1),
    CONSTRAINT ck_order_items_unit_price CHECK (unit_price BETWEEN 1 AND 1000000000000),
    CONSTRAINT ck_order_items_line_total CHECK (line_total = unit_price * quantity),
    CONSTRAINT ck_order_items_shipped_quantity CHECK (shipped_quantity BETWEEN 0 AND quantity),
    CONSTRAINT ck_order_items_returned_quantity CHECK (returned_quantity BETWEEN 0 AND shipped_quantity)
) PARTITION BY RANGE (created_at);
CREATE INDEX ix_order_items_product_id ON orders.order_items (product_id);
COMMENT ON TABLE orders.order_items IS 'the lines of an order';
COMMENT ON COLUMN orders.order_items.created_at IS 'the time in order_id';
COMMENT ON COLUMN orders.order_items.shard IS 'the 12 bits of order_id after its version';
COMMENT ON COLUMN orders.order_items.unit_price IS 'minor units of the currency (ISO 4217)';
COMMENT ON COLUMN orders.order_items.line_total IS 'minor units of the currency (ISO 4217)';

CREATE TABLE orders.orders (
    order_id UUID NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    shard SMALLINT NOT NULL,
    user_id UUID NOT NULL,
    status TEXT NOT NULL,
    payment_status TEXT NOT NULL,
    currency TEXT NOT NULL,
    total_amount BIGINT NOT NULL,
    captured_amount BIGINT NOT NULL,
    refunded_amount BIGINT NOT NULL,
    item_count INTEGER NOT NULL,
    adjustments JSONB NOT NULL,
    expires_at TIMESTAMPTZ,
    payment_method TEXT,
    shipping_address_id TEXT,
    tracking TEXT,
    cancel_reason TEXT,
    version INTEGER NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_orders PRIMARY KEY (order_id, created_at, shard),
    CONSTRAINT ck_orders_created_at_is_in_order_id
        CHECK ((uuid_extract_version(order_id) = 7 AND created_at = uuid_extract_timestamp(order_id)) IS TRUE),
    CONSTRAINT ck_orders_shard_is_in_order_id
        CHECK (shard = ((get_byte(uuid_send(order_id), 6) & 15) << 8) + get_byte(uuid_send(order_id), 7)),
    CONSTRAINT ck_orders_status
        CHECK (status IN ('pending', 'confirmed', 'partially_shipped', 'shipped', 'delivered',
            'partially_returned', 'returned', 'cancelled')),
    CONSTRAINT ck_orders_payment_status
        CHECK (payment_status IN ('on_account', 'unpaid', 'authorized', 'failed', 'voided',
            'partially_captured', 'captured', 'partially_refunded', 'refunded')),
    CONSTRAINT ck_orders_cancel_reason
        CHECK (cancel_reason IN ('customer', 'out_of_stock', 'payment_failed', 'expired', 'staff')),
    CONSTRAINT ck_orders_total_amount CHECK (total_amount BETWEEN 0 AND 9007199254740991),
    CONSTRAINT ck_orders_refunded_amount CHECK (refunded_amount >= 0 AND refunded_amount <= captured_amount),
    CONSTRAINT ck_orders_captured_amount CHECK (captured_amount <= total_amount),
    CONSTRAINT ck_orders_version CHECK (version >= 1)
) PARTITION BY RANGE (created_at);
CREATE INDEX ix_orders_created_at_order_id ON orders.orders (created_at, order_id);
CREATE INDEX ix_orders_user_id_status_created_at_order_id ON orders.orders (user_id, status, created_at DESC,
            order_id DESC);
CREATE INDEX ix_orders_user_id_created_at_order_id ON orders.orders (user_id, created_at DESC, order_id DESC);
CREATE INDEX ix_orders_expires_at ON orders.orders (expires_at) WHERE status = 'pending';
COMMENT ON TABLE orders.orders IS 'one row an order: the fold of its events, for lists and for the lock';
COMMENT ON COLUMN orders.orders.created_at IS 'the time in order_id';
COMMENT ON COLUMN orders.orders.shard IS 'the 12 bits of order_id after its version';
COMMENT ON COLUMN orders.orders.currency IS 'ISO 4217';
COMMENT ON COLUMN orders.orders.total_amount IS 'minor units of the currency (ISO 4217)';
COMMENT ON COLUMN orders.orders.captured_amount IS 'minor units of the currency (ISO 4217)';
COMMENT ON COLUMN orders.orders.refunded_amount IS 'minor units of the currency (ISO 4217)';
COMMENT ON COLUMN orders.orders.item_count IS 'number of lines';
COMMENT ON COLUMN orders.orders.expires_at IS 'when an unpaid order is cancelled; null once it is not pending';
COMMENT ON COLUMN orders.orders.version IS 'of the last event';

CREATE TABLE orders.outbox (
    shard SMALLINT NOT NULL,
    slice SMALLINT NOT NULL,
    position BIGINT GENERATED ALWAYS AS IDENTITY (CACHE 1),
    order_id UUID NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    version INTEGER NOT NULL,
    CONSTRAINT pk_outbox PRIMARY KEY (slice, position, shard),
    CONSTRAINT ck_outbox_slice CHECK (slice = shard % 16)
);
COMMENT ON TABLE orders.outbox IS
    'events not yet on Kafka; the payload is read from order_events, a published row is deleted';
COMMENT ON COLUMN orders.outbox.slice IS 'shard % 16: what one relay claims';

CREATE TABLE orders.products (
    product_id UUID NOT NULL,
    name TEXT NOT NULL,
    price BIGINT NOT NULL,
    currency TEXT NOT NULL,
    active BOOLEAN NOT NULL,
    version BIGINT NOT NULL,
    CONSTRAINT pk_products PRIMARY KEY (product_id),
    CONSTRAINT ck_products_price CHECK (price BETWEEN 1 AND 1000000000000)
);
COMMENT ON TABLE orders.products IS 'what orders need of the catalogue, copied from it';
COMMENT ON COLUMN orders.products.price IS 'minor units of the currency (ISO 4217)';
COMMENT ON COLUMN orders.products.version IS 'the catalogue''s';

CREATE TABLE catalog.products (
    product_id UUID NOT NULL,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    price BIGINT NOT NULL,
    currency TEXT NOT NULL,
    active BOOLEAN NOT NULL,
    version BIGINT NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_products PRIMARY KEY (product_id),
    CONSTRAINT ck_products_price CHECK (price BETWEEN 1 AND 1000000000000),
    CONSTRAINT ck_products_name CHECK (char_length(name) BETWEEN 1 AND 200)
);
COMMENT ON TABLE catalog.products IS 'what is for sale';
COMMENT ON COLUMN catalog.products.price IS 'minor units of the currency (ISO 4217)';
"""

FUNCTIONS = r"""
CREATE FUNCTION orders.refuse(code TEXT, detail JSONB) RETURNS BOOLEAN LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'RF001', MESSAGE = code, DETAIL = detail::text;
END $$;
COMMENT ON FUNCTION orders.refuse IS 'ends the statement, and all it has written, with a refusal the API knows';

CREATE FUNCTION orders.append_only() RETURNS TRIGGER LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'restrict_violation',
        MESSAGE = format('%I is append-only: %s is refused', TG_TABLE_NAME, TG_OP);
END $$;

-- Inherited by every partition. A TRUNCATE trigger is not: create_month makes it on each.
CREATE TRIGGER append_only BEFORE UPDATE OR DELETE ON orders.order_events
    FOR EACH ROW EXECUTE FUNCTION orders.append_only();
CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON orders.order_events
    FOR EACH STATEMENT EXECUTE FUNCTION orders.append_only();

CREATE FUNCTION orders.create_month(month DATE) RETURNS BOOLEAN
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' SET TimeZone = 'UTC'
AS $$
DECLARE
    first DATE := date_trunc('month', month);
    after DATE := date_trunc('month', month) + INTERVAL '1 month';
    suffix TEXT := to_char(first, 'YYYY_MM');
    parent TEXT;
    leaf TEXT;
BEGIN
    -- Two keepers at once: the second waits, and then sees the month.
    PERFORM pg_advisory_xact_lock(hashtext('orders.create_month'));
    IF to_regclass('orders.orders_' || suffix) IS NOT NULL THEN
        RETURN FALSE;
    END IF;
    FOREACH parent IN ARRAY ARRAY['orders', 'order_items', 'order_events'] LOOP
        leaf := parent || '_' || suffix;
        -- Built beside the parent, with a CHECK that proves its bounds, so that ATTACH neither scans nor waits long.
        EXECUTE format('CREATE TABLE orders.%I (LIKE orders.%I INCLUDING ALL, '
            'CONSTRAINT month CHECK (created_at >= %L AND created_at < %L))', leaf, parent, first, after);
        IF parent = 'order_items' THEN
            -- Leaf to leaf: a foreign key to the partitioned parent costs more (docs/decisions).
            EXECUTE format('ALTER TABLE orders.%I ADD CONSTRAINT fk_order_items_orders '
                'FOREIGN KEY (order_id, created_at, shard) REFERENCES orders.%I', leaf, 'orders_' || suffix);
        ELSIF parent = 'order_events' THEN
            EXECUTE format('CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON orders.%I '
                'FOR EACH STATEMENT EXECUTE FUNCTION orders.append_only()', leaf);
        END IF;
        EXECUTE format('ALTER TABLE orders.%I ATTACH PARTITION orders.%I FOR VALUES FROM (%L) TO (%L)',
            parent, leaf, first, after);
        EXECUTE format('ALTER TABLE orders.%I DROP CONSTRAINT month', leaf);
    END LOOP;
    RETURN TRUE;
END $$;
COMMENT ON FUNCTION orders.create_month IS 'the three partitions of a month exist afterwards; true if it made them';

CREATE VIEW orders.months AS
    SELECT substring(c.relname FROM '\d{4}_\d{2}$') AS month,
           to_date(substring(c.relname FROM '\d{4}_\d{2}$'), 'YYYY_MM') AS first_on,
           p.relname AS parent, c.relname AS partition, greatest(c.reltuples, 0)::bigint AS rows_estimated
    FROM pg_inherits i
    JOIN pg_class c ON c.oid = i.inhrelid
    JOIN pg_class p ON p.oid = i.inhparent
    WHERE p.relnamespace = 'orders'::regnamespace AND p.relkind = 'p' AND c.relkind = 'r';
COMMENT ON VIEW orders.months IS 'the partitions there are, and how many rows the last ANALYZE found';
"""

# Privileges are checked on the table a statement names: partitions have no grants, so nobody writes past a parent.
GRANTS = r"""
REVOKE ALL ON FUNCTION orders.create_month FROM PUBLIC;

GRANT USAGE ON SCHEMA orders TO orders_api, orders_maintenance, outbox_relay;
GRANT SELECT ON orders.months TO orders_api, orders_maintenance;

GRANT SELECT, INSERT, UPDATE ON orders.orders, orders.order_items TO orders_api;
GRANT SELECT, INSERT ON orders.order_events, orders.idempotency_keys TO orders_api;
GRANT INSERT ON orders.outbox TO orders_api;
GRANT SELECT, UPDATE ON orders.inventory TO orders_api;
GRANT SELECT ON orders.products TO orders_api;

GRANT EXECUTE ON FUNCTION orders.create_month TO orders_maintenance;
GRANT SELECT, DELETE ON orders.idempotency_keys TO orders_maintenance;

GRANT SELECT, DELETE ON orders.outbox TO outbox_relay;
GRANT SELECT ON orders.order_events TO outbox_relay;

GRANT pg_read_all_data TO orders_inspect;
"""


def run_script(sql: str) -> None:
    """Many statements at once: asyncpg prepares what SQLAlchemy sends, and only one statement can be prepared."""
    op.get_bind().connection.dbapi_connection.run_async(lambda connection: connection.execute(sql))


def upgrade() -> None:
    for role in ROLES:
        # Roles belong to the server, not to the database: another database may have made them already.
        op.execute(
            f"DO $$ BEGIN CREATE ROLE {role} LOGIN;"
            " EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
        )
    op.execute("CREATE SCHEMA orders")
    op.execute("CREATE SCHEMA catalog")
    for script in (TABLES, FUNCTIONS, GRANTS):
        run_script(script)
    # The outbox is short and always changing: vacuum it by count, not by share.
    op.execute(
        "ALTER TABLE orders.outbox SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,"
        " autovacuum_vacuum_insert_threshold = -1, autovacuum_vacuum_cost_delay = 0)"
    )


def downgrade() -> None:
    op.execute("DROP SCHEMA orders CASCADE")
    op.execute("DROP SCHEMA catalog CASCADE")
    for role in ROLES:
        op.execute(f"DO $$ BEGIN DROP ROLE {role}; EXCEPTION WHEN dependent_objects_still_exist THEN NULL; END $$")
