"""Order summaries, a materialised view, and who refreshes it; rollups of sales; a role and a heartbeat for reports.

Works with the previous release, which reads and writes none of it. Rollups begin with what is on the topic; what was
before is added by `orders rebuild`.
"""

from alembic import op
from sqlalchemy import text

revision = "0011"
down_revision: str | None = "0010"
branch_labels = None
depends_on = None

OPEN = "status IN ('pending', 'confirmed', 'partially_shipped', 'shipped')"

STATEMENTS = (
    """
    CREATE TABLE orders.summary_refresh (
        one BOOLEAN NOT NULL DEFAULT TRUE,
        as_of TIMESTAMPTZ,
        since TIMESTAMPTZ,
        holder TEXT,
        lease_until TIMESTAMPTZ,
        CONSTRAINT pk_summary_refresh PRIMARY KEY (one),
        CONSTRAINT ck_summary_refresh_one CHECK (one)
    )
    """,
    "COMMENT ON TABLE orders.summary_refresh IS 'one row: what orders.order_summaries shows, and who refreshes it now'",
    "COMMENT ON COLUMN orders.summary_refresh.as_of IS"
    " 'all that was committed by then is shown; null before the first refresh'",
    "COMMENT ON COLUMN orders.summary_refresh.since IS 'orders made then or later are shown, of older ones the open'",
    "COMMENT ON COLUMN orders.summary_refresh.holder IS 'host:pid:random of the process that refreshes, anew for each'",
    "INSERT INTO orders.summary_refresh DEFAULT VALUES",
    # An order is either young or (of those that are not) open, so that each branch reads its own index. Its lines and
    # its last event are read by primary keys: LATERAL and LIMIT keep the planner, who cannot know `since`, from reading
    # all months. Nothing is in it but what orders say: a row that has not changed is not written again by a refresh.
    f"""
    CREATE MATERIALIZED VIEW orders.order_summaries AS
    WITH shown AS MATERIALIZED (
        SELECT o.* FROM orders.orders o WHERE o.created_at >= (SELECT since FROM orders.summary_refresh)
        UNION ALL
        SELECT o.* FROM orders.orders o
        WHERE o.{OPEN} AND o.created_at < (SELECT since FROM orders.summary_refresh)
    )
    SELECT o.order_id, o.user_id, o.status, o.payment_status, o.currency, o.total_amount, o.captured_amount,
           o.refunded_amount, o.item_count, o.version, o.created_at, o.updated_at, o.expires_at,
           i.units, i.open_units, i.withdrawn_lines, e.type AS last_event, e.actor AS last_actor
    FROM shown o
    CROSS JOIN LATERAL (
        SELECT coalesce(sum(i.quantity), 0) AS units,
               CASE WHEN o.status = 'cancelled' THEN 0 ELSE coalesce(sum(i.quantity - i.shipped_quantity), 0) END
                   AS open_units,
               count(*) FILTER (WHERE p.active IS NOT TRUE) AS withdrawn_lines
        FROM orders.order_items i LEFT JOIN orders.products p USING (product_id)
        WHERE i.order_id = o.order_id AND i.created_at = o.created_at AND i.shard = o.shard
    ) i
    LEFT JOIN LATERAL (
        SELECT e.type, e.actor FROM orders.order_events e
        WHERE e.order_id = o.order_id AND e.created_at = o.created_at AND e.shard = o.shard AND e.version = o.version
        LIMIT 1
    ) e ON TRUE
    """,  # noqa: S608 # a constant
    "COMMENT ON MATERIALIZED VIEW orders.order_summaries IS"
    " 'open orders and those made since orders.summary_refresh.since, as of its as_of'",
    # An id begins with its time: its order is that of created_at. A refresh needs a unique index.
    "CREATE UNIQUE INDEX ix_order_summaries_order_id ON orders.order_summaries (order_id)",
    "CREATE INDEX ix_order_summaries_status_order_id ON orders.order_summaries (status, order_id)",
    # To refresh it is to maintain it (PostgreSQL 17), not to own it, nor to read what it is made of.
    "GRANT SELECT, MAINTAIN ON orders.order_summaries TO orders_maintenance",
    "GRANT SELECT, UPDATE ON orders.summary_refresh TO orders_maintenance",
    "GRANT SELECT ON orders.order_summaries, orders.summary_refresh TO orders_api",
    """
    CREATE TABLE orders.sales_daily (
        day DATE NOT NULL,
        currency TEXT NOT NULL,
        orders BIGINT NOT NULL,
        units BIGINT NOT NULL,
        gross_amount NUMERIC NOT NULL,
        discount_amount NUMERIC NOT NULL,
        charge_amount NUMERIC NOT NULL,
        cancelled_orders BIGINT NOT NULL,
        cancelled_amount NUMERIC NOT NULL,
        refunded_amount NUMERIC NOT NULL,
        CONSTRAINT pk_sales_daily PRIMARY KEY (day, currency)
    )
    """,
    "COMMENT ON TABLE orders.sales_daily IS"
    " 'what was sold, cancelled and refunded on each day: sums of events, kept by orders-projector'",
    "COMMENT ON COLUMN orders.sales_daily.orders IS 'placed'",
    """
    CREATE TABLE orders.sales_daily_product (
        day DATE NOT NULL,
        currency TEXT NOT NULL,
        product_id UUID NOT NULL,
        quantity BIGINT NOT NULL,
        amount NUMERIC NOT NULL,
        CONSTRAINT pk_sales_daily_product PRIMARY KEY (day, currency, product_id)
    )
    """,
    "COMMENT ON TABLE orders.sales_daily_product IS"
    " 'what was ordered of each product on each day: sums of events, kept by orders-projector'",
    "COMMENT ON COLUMN orders.sales_daily_product.quantity IS 'units ordered'",
    """
    CREATE TABLE orders.orders_by_status (
        placed_on DATE NOT NULL,
        currency TEXT NOT NULL,
        status TEXT NOT NULL,
        orders BIGINT NOT NULL,
        amount NUMERIC NOT NULL,
        CONSTRAINT pk_orders_by_status PRIMARY KEY (placed_on, currency, status)
    )
    """,
    "COMMENT ON TABLE orders.orders_by_status IS"
    " 'of the orders placed on each day how many have which status: sums of events, kept by orders-projector'",
    "COMMENT ON COLUMN orders.orders_by_status.placed_on IS 'UTC'",
    "COMMENT ON COLUMN orders.orders_by_status.status IS 'now'",
    *(
        f"COMMENT ON COLUMN orders.{table}.{column} IS '{said}'"
        for columns, said in (
            (
                "sales_daily.gross_amount sales_daily.discount_amount sales_daily.charge_amount"
                " sales_daily.cancelled_amount sales_daily.refunded_amount sales_daily_product.amount"
                " orders_by_status.amount",
                "minor units; a sum of many may not fit a bigint",
            ),
            ("sales_daily.currency sales_daily_product.currency orders_by_status.currency", "ISO 4217"),
            ("sales_daily.day sales_daily_product.day", "UTC, of the event"),
        )
        for table, column in (name.split(".") for name in columns.split())
    ),
    """
    CREATE TABLE orders.heartbeat (
        one BOOLEAN NOT NULL DEFAULT TRUE,
        at TIMESTAMPTZ,
        CONSTRAINT pk_heartbeat PRIMARY KEY (one),
        CONSTRAINT ck_heartbeat_one CHECK (one)
    )
    """,
    "COMMENT ON TABLE orders.heartbeat IS 'one row, written by orders-maintenance every few seconds'",
    "COMMENT ON COLUMN orders.heartbeat.at IS 'all that was committed by then is on a replica that has this'",
    "INSERT INTO orders.heartbeat DEFAULT VALUES",
    # Roles belong to the server, not to the database: another database may have made it already.
    "DO $$ BEGIN CREATE ROLE orders_reports LOGIN;"
    " EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$",
    "GRANT USAGE ON SCHEMA orders TO orders_reports",
    "GRANT SELECT ON orders.heartbeat, orders.sales_daily, orders.sales_daily_product, orders.orders_by_status"
    " TO orders_reports",
    "GRANT UPDATE (at) ON orders.heartbeat TO orders_maintenance",
    "GRANT SELECT, INSERT, UPDATE ON orders.sales_daily, orders.sales_daily_product, orders.orders_by_status"
    " TO orders_projector",
)


def upgrade() -> None:
    _index_open_orders()
    for statement in STATEMENTS:
        op.execute(statement)


def _index_open_orders() -> None:
    """On the parent alone, then on each month, which is a transaction of its own: writes to it wait for less than a
    second. Not CONCURRENTLY: that would wait for whoever waits for this migration's lock."""
    parent = "ix_orders_created_at_open"
    op.execute(f"CREATE INDEX IF NOT EXISTS {parent} ON ONLY orders.orders (created_at) WHERE {OPEN}")
    months = op.get_bind().execute(text("SELECT partition FROM orders.months WHERE parent = 'orders'")).scalars().all()
    with op.get_context().autocommit_block():
        for month in months:
            op.execute(f"CREATE INDEX IF NOT EXISTS {month}_created_at_idx ON orders.{month} (created_at) WHERE {OPEN}")
    for month in months:
        op.execute(f"ALTER INDEX orders.{parent} ATTACH PARTITION orders.{month}_created_at_idx")


def downgrade() -> None:
    op.execute("DROP TABLE orders.heartbeat, orders.sales_daily, orders.sales_daily_product, orders.orders_by_status")
    op.execute("DROP MATERIALIZED VIEW orders.order_summaries")
    op.execute("DROP TABLE orders.summary_refresh")
    op.execute("DROP INDEX orders.ix_orders_created_at_open")
    op.execute("REVOKE USAGE ON SCHEMA orders FROM orders_reports")
