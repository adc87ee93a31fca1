"""What caches have to be told, written by every statement that changes an order or its stock: orders.invalidations.

Works with the previous release: it caches nothing, and its relay reads no invalidations; its writes leave none.
"""

from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

STATEMENTS = (
    """
    CREATE TABLE orders.invalidations (
        shard SMALLINT NOT NULL,
        slice SMALLINT NOT NULL,
        position BIGINT GENERATED ALWAYS AS IDENTITY (CACHE 1) NOT NULL,
        keys JSONB NOT NULL,
        created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
        CONSTRAINT pk_invalidations PRIMARY KEY (slice, position, shard),
        CONSTRAINT ck_invalidations_slice CHECK (slice = shard % 16)
    )
    """,
    "COMMENT ON TABLE orders.invalidations IS"
    " 'what caches have not been told yet is out of date; a row is deleted once they have'",
    "COMMENT ON COLUMN orders.invalidations.shard IS 'the order''s; of an adjustment, its product''s'",
    "COMMENT ON COLUMN orders.invalidations.slice IS 'shard % 16: what one relay claims'",
    "COMMENT ON COLUMN orders.invalidations.keys IS '{prefix of a cache key: {id: the version that replaced it}}'",
    # As the outbox: short and always changing, so vacuumed by count and not by share.
    "ALTER TABLE orders.invalidations SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,"
    " autovacuum_vacuum_insert_threshold = -1, autovacuum_vacuum_cost_delay = 0)",
    "GRANT INSERT ON orders.invalidations TO orders_api, orders_projector, orders_maintenance",
    "GRANT SELECT, DELETE ON orders.invalidations TO outbox_relay",
    "INSERT INTO relay.slices (outbox, slice)"
    " SELECT 'orders.invalidations', slice FROM generate_series(0, 15) AS s (slice)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DELETE FROM relay.slices WHERE outbox = 'orders.invalidations'")
    op.execute("DELETE FROM relay.members WHERE outbox = 'orders.invalidations'")
    op.execute("DROP TABLE orders.invalidations")
