"""Which relay has which slice, and what was parked: schema `relay`.

The schema works with the previous release, whose relay neither reads nor writes it. Two releases of the relay side by
side send duplicates and lose nothing; but the older one does not know what the newer has parked, so stop it first:
events wait in their outboxes meanwhile.
"""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

TABLES = r"""
CREATE TABLE relay.members (
    outbox TEXT NOT NULL,
    relay TEXT NOT NULL,
    expires_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_members PRIMARY KEY (outbox, relay)
);
COMMENT ON TABLE relay.members IS 'relays that can publish an outbox: each renews its row, and is out when it expires';
COMMENT ON COLUMN relay.members.relay IS 'host:pid:random, anew for each process';

CREATE TABLE relay.slices (
    outbox TEXT NOT NULL,
    slice SMALLINT NOT NULL,
    relay TEXT,
    CONSTRAINT pk_slices PRIMARY KEY (outbox, slice),
    CONSTRAINT ck_slices_slice CHECK (slice BETWEEN 0 AND 15)
);
COMMENT ON TABLE relay.slices IS 'every slice of every outbox, and who publishes it';
COMMENT ON COLUMN relay.slices.relay IS 'free when null, or when this relay is no live member';
INSERT INTO relay.slices (outbox, slice)
    SELECT outbox, slice FROM unnest(ARRAY['orders', 'catalog']) AS o (outbox), generate_series(0, 15) AS s (slice);

CREATE TABLE relay.parked (
    outbox TEXT NOT NULL,
    aggregate_id UUID NOT NULL,
    position BIGINT NOT NULL,
    version BIGINT NOT NULL,
    reason TEXT NOT NULL,
    content JSONB NOT NULL,
    parked_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_parked PRIMARY KEY (outbox, aggregate_id, position)
);
COMMENT ON TABLE relay.parked IS
    'rows taken out of an outbox because they, or an earlier one of their aggregate, cannot be sent';
COMMENT ON COLUMN relay.parked.position IS 'it had in its outbox, and has there again when it is released';
COMMENT ON COLUMN relay.parked.content IS 'the row as it stood in its outbox';

GRANT USAGE ON SCHEMA relay TO outbox_relay;
GRANT SELECT, INSERT, UPDATE, DELETE ON relay.members TO outbox_relay;
GRANT SELECT, UPDATE ON relay.slices TO outbox_relay;
GRANT SELECT, INSERT ON relay.parked TO outbox_relay;
"""


def run_script(sql: str) -> None:
    """Many statements at once: asyncpg prepares what SQLAlchemy sends, and only one statement can be prepared."""
    op.get_bind().connection.dbapi_connection.run_async(lambda connection: connection.execute(sql))


def upgrade() -> None:
    op.execute("CREATE SCHEMA relay")
    run_script(TABLES)


def downgrade() -> None:
    op.execute("DROP SCHEMA relay CASCADE")
