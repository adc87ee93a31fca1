"""A month is built beside its parents, indexed, and attached: so that `orders seed` can fill it in between.

Works with the previous release, which calls `create_month` alone.
"""

from alembic import op

revision = "0012"
down_revision: str | None = "0011"
branch_labels = None
depends_on = None

# Functions of the owner alone: whoever else needs a month calls create_month.
BUILD = r"""
CREATE FUNCTION orders.build_month(month DATE) RETURNS VOID
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC'
AS $$
DECLARE
    first DATE := date_trunc('month', month);
    suffix TEXT := to_char(first, 'YYYY_MM');
    parent TEXT;
BEGIN
    FOREACH parent IN ARRAY ARRAY['orders', 'order_items', 'order_events'] LOOP
        -- With a CHECK that proves its bounds, so that ATTACH neither scans nor waits long.
        EXECUTE format('CREATE TABLE orders.%I (LIKE orders.%I INCLUDING ALL EXCLUDING INDEXES, '
            'CONSTRAINT month CHECK (created_at >= %L AND created_at < %L))',
            parent || '_' || suffix, parent, first, first + INTERVAL '1 month');
    END LOOP;
END $$;
COMMENT ON FUNCTION orders.build_month IS
    'three empty tables beside the partitions of a month, without indexes';
REVOKE ALL ON FUNCTION orders.build_month FROM PUBLIC;
"""

INDEX = r"""
CREATE FUNCTION orders.index_month(month DATE) RETURNS VOID
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC'
AS $$
DECLARE
    suffix TEXT := to_char(month, 'YYYY_MM');
    parent TEXT;
    leaf TEXT;
    made TEXT;
BEGIN
    FOREACH parent IN ARRAY ARRAY['orders', 'order_items', 'order_events'] LOOP
        leaf := parent || '_' || suffix;
        FOR made IN
            SELECT CASE
                WHEN k.oid IS NOT NULL THEN format('ALTER TABLE orders.%I ADD %s', leaf, pg_get_constraintdef(k.oid))
                ELSE regexp_replace(pg_get_indexdef(i.indexrelid), '^(CREATE (UNIQUE )?INDEX) .*? USING',
                    format('\1 ON orders.%I USING', leaf))
            END
            FROM pg_index i
            LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid AND k.conrelid = i.indrelid
            WHERE i.indrelid = format('orders.%I', parent)::regclass
            ORDER BY i.indisprimary DESC, i.indexrelid
        LOOP
            EXECUTE made;
        END LOOP;
        IF parent = 'order_items' THEN
            -- Leaf to leaf: a foreign key to the partitioned parent costs more (docs/decisions).
            EXECUTE format('ALTER TABLE orders.%I ADD CONSTRAINT fk_order_items_orders '
                'FOREIGN KEY (order_id, created_at, shard) REFERENCES orders.%I', leaf, 'orders_' || suffix);
        END IF;
    END LOOP;
END $$;
COMMENT ON FUNCTION orders.index_month IS 'what build_month has made has its indexes and keys';
REVOKE ALL ON FUNCTION orders.index_month FROM PUBLIC;
"""

ATTACH = r"""
CREATE FUNCTION orders.attach_month(month DATE) RETURNS VOID
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp SET TimeZone = 'UTC'
AS $$
DECLARE
    first DATE := date_trunc('month', month);
    parent TEXT;
    leaf TEXT;
BEGIN
    -- Until the end of the transaction no other month is attached; rows come and go.
    FOREACH parent IN ARRAY ARRAY['orders', 'order_items', 'order_events'] LOOP
        leaf := parent || to_char(first, '_YYYY_MM');
        IF parent = 'order_events' THEN
            EXECUTE format('CREATE TRIGGER append_only_truncate BEFORE TRUNCATE ON orders.%I '
                'FOR EACH STATEMENT EXECUTE FUNCTION orders.append_only()', leaf);
        END IF;
        EXECUTE format('ALTER TABLE orders.%I ATTACH PARTITION orders.%I FOR VALUES FROM (%L) TO (%L)',
            parent, leaf, first, first + INTERVAL '1 month');
        EXECUTE format('ALTER TABLE orders.%I DROP CONSTRAINT month', leaf);
    END LOOP;
END $$;
COMMENT ON FUNCTION orders.attach_month IS 'what build_month and index_month have made is a month like the others';
REVOKE ALL ON FUNCTION orders.attach_month FROM PUBLIC;
"""

CREATE = r"""
CREATE OR REPLACE FUNCTION orders.create_month(month DATE) RETURNS BOOLEAN
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' SET TimeZone = 'UTC'
AS $$
BEGIN
    -- Two keepers at once: the second waits, and then sees the month.
    PERFORM pg_advisory_xact_lock(hashtext('orders.create_month'));
    IF to_regclass('orders.orders_' || to_char(month, 'YYYY_MM')) IS NOT NULL THEN
        RETURN FALSE;
    END IF;
    PERFORM orders.build_month(month);
    PERFORM orders.index_month(month);
    PERFORM orders.attach_month(month);
    RETURN TRUE;
END $$;
"""

SEEDS = r"""
CREATE TABLE orders.seeds (
    seed BIGINT NOT NULL,
    upto TIMESTAMPTZ NOT NULL,
    month_count INTEGER NOT NULL,
    order_count BIGINT NOT NULL,
    product_count INTEGER NOT NULL,
    stock_each BIGINT NOT NULL,
    currencies TEXT[] NOT NULL,
    loaded DATE[] NOT NULL DEFAULT '{}',
    CONSTRAINT pk_seeds PRIMARY KEY (seed)
);
COMMENT ON TABLE orders.seeds IS 'what `orders seed` was asked for, and how much of it there is';
COMMENT ON COLUMN orders.seeds.upto IS 'nothing of it happened later';
COMMENT ON COLUMN orders.seeds.loaded IS 'the months whose orders are there';
"""


# As 0001 has it.
CREATE_AT_ONCE = r"""
CREATE OR REPLACE FUNCTION orders.create_month(month DATE) RETURNS BOOLEAN
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' SET TimeZone = 'UTC'
AS $$
DECLARE
    first DATE := date_trunc('month', month);
    after DATE := date_trunc('month', month) + INTERVAL '1 month';
    suffix TEXT := to_char(first, 'YYYY_MM');
    parent TEXT;
    leaf TEXT;
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('orders.create_month'));
    IF to_regclass('orders.orders_' || suffix) IS NOT NULL THEN
        RETURN FALSE;
    END IF;
    FOREACH parent IN ARRAY ARRAY['orders', 'order_items', 'order_events'] LOOP
        leaf := parent || '_' || suffix;
        EXECUTE format('CREATE TABLE orders.%I (LIKE orders.%I INCLUDING ALL, '
            'CONSTRAINT month CHECK (created_at >= %L AND created_at < %L))', leaf, parent, first, after);
        IF parent = 'order_items' THEN
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
"""


def run_script(sql: str) -> None:
    """Many statements at once: asyncpg prepares what SQLAlchemy sends, and only one statement can be prepared."""
    op.get_bind().connection.dbapi_connection.run_async(lambda connection: connection.execute(sql))


def upgrade() -> None:
    for script in (BUILD, INDEX, ATTACH, CREATE, SEEDS):
        run_script(script)


def downgrade() -> None:
    op.execute("DROP TABLE orders.seeds")
    run_script(CREATE_AT_ONCE)
    op.execute("DROP FUNCTION orders.build_month, orders.index_month, orders.attach_month")
