"""The catalogue's outbox, the inbox of orders' consumers, and the roles of catalog-api and orders-projector.

Works with the previous release: it neither reads nor writes the new tables.
"""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

ROLES = ("catalog_api", "orders_projector")

TABLES = r"""
CREATE TABLE catalog.outbox (
    slice SMALLINT NOT NULL,
    position BIGINT GENERATED ALWAYS AS IDENTITY (CACHE 1),
    aggregate_id UUID NOT NULL,
    version BIGINT NOT NULL,
    event_id UUID NOT NULL,
    type TEXT NOT NULL,
    data JSONB NOT NULL,
    actor TEXT NOT NULL,
    traceparent TEXT,
    occurred_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_outbox PRIMARY KEY (slice, position),
    CONSTRAINT ck_outbox_slice CHECK (slice BETWEEN 0 AND 15)
);
COMMENT ON TABLE catalog.outbox IS 'events not yet on Kafka; a published row is deleted';
COMMENT ON COLUMN catalog.outbox.slice IS 'a hash of aggregate_id: what one relay claims';
COMMENT ON COLUMN catalog.outbox.aggregate_id IS 'the product';
-- Short and always changing: vacuumed by count, not by share.
ALTER TABLE catalog.outbox SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_threshold = -1, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE orders.inbox (
    consumer TEXT NOT NULL,
    topic TEXT NOT NULL,
    key TEXT NOT NULL,
    last_version BIGINT NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_inbox PRIMARY KEY (consumer, topic, key),
    CONSTRAINT ck_inbox_last_version CHECK (last_version >= 1)
);
CREATE INDEX ix_inbox_updated_at ON orders.inbox (updated_at);
COMMENT ON TABLE orders.inbox IS
    'the last version of each key that a consumer has applied; rows unchanged for 30 days are removed';
"""

GRANTS = r"""
GRANT USAGE ON SCHEMA catalog TO catalog_api, outbox_relay;
GRANT SELECT, INSERT, UPDATE ON catalog.products TO catalog_api;
GRANT INSERT ON catalog.outbox TO catalog_api;
GRANT SELECT, DELETE ON catalog.outbox TO outbox_relay;

GRANT USAGE ON SCHEMA orders TO orders_projector;
GRANT SELECT, INSERT, UPDATE ON orders.inbox, orders.products TO orders_projector;
GRANT SELECT, DELETE ON orders.inbox TO orders_maintenance;
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
    for script in (TABLES, GRANTS):
        run_script(script)


def downgrade() -> None:
    op.execute("DROP TABLE catalog.outbox")
    op.execute("DROP TABLE orders.inbox")
    for role in ROLES:
        op.execute(f"REVOKE ALL ON ALL TABLES IN SCHEMA orders, catalog FROM {role}")
        op.execute(f"REVOKE USAGE ON SCHEMA orders, catalog FROM {role}")
        op.execute(f"DO $$ BEGIN DROP ROLE {role}; EXCEPTION WHEN dependent_objects_still_exist THEN NULL; END $$")
    op.execute("REVOKE USAGE ON SCHEMA catalog FROM outbox_relay")
