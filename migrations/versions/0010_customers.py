"""Schema customers: profiles, addresses, what caches have to be told of them, and the role of customers-api.

Works with the previous release: it has no such process, and its relay reads no invalidations of customers.
"""

from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

TABLES = r"""
CREATE SCHEMA customers;

CREATE TABLE customers.profiles (
    user_id UUID NOT NULL,
    version BIGINT NOT NULL,
    person BYTEA,
    updated_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_profiles PRIMARY KEY (user_id),
    CONSTRAINT ck_profiles_version CHECK (version > 1)
);
COMMENT ON TABLE customers.profiles IS
    'one row for each customer who has ever written or erased a profile; a row is never deleted';
COMMENT ON COLUMN customers.profiles.version IS 'grows over an erasure, too; without a row it is 1';
COMMENT ON COLUMN customers.profiles.person IS 'personal data, sealed; null: erased, and nothing may come back';

CREATE TABLE customers.addresses (
    user_id UUID NOT NULL,
    address_id UUID NOT NULL,
    destination BYTEA NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    retired_at TIMESTAMPTZ,
    replaced_by UUID,
    key TEXT,
    request_hash BYTEA,
    CONSTRAINT pk_addresses PRIMARY KEY (user_id, address_id),
    CONSTRAINT uq_addresses_user_id_key UNIQUE (user_id, key),
    CONSTRAINT fk_addresses_profiles FOREIGN KEY (user_id) REFERENCES customers.profiles (user_id),
    CONSTRAINT ck_addresses_key CHECK ((key IS NULL) = (request_hash IS NULL))
);
COMMENT ON TABLE customers.addresses IS
    'addresses, also those that are not used any more: orders may name them; an erasure deletes them';
COMMENT ON COLUMN customers.addresses.address_id IS 'what orders carry as shipping_address_id';
COMMENT ON COLUMN customers.addresses.destination IS 'personal data, sealed; never changes';
COMMENT ON COLUMN customers.addresses.retired_at IS 'null: in use';
COMMENT ON COLUMN customers.addresses.replaced_by IS 'the address that took its place';
COMMENT ON COLUMN customers.addresses.key IS 'the Idempotency-Key it was added with';
COMMENT ON COLUMN customers.addresses.request_hash IS 'SHA-256 of what was asked with that key';

CREATE TABLE customers.invalidations (
    shard SMALLINT NOT NULL,
    slice SMALLINT NOT NULL,
    position BIGINT GENERATED ALWAYS AS IDENTITY (CACHE 1) NOT NULL,
    keys JSONB NOT NULL,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    CONSTRAINT pk_invalidations PRIMARY KEY (slice, position, shard),
    CONSTRAINT ck_invalidations_slice CHECK (slice = shard % 16)
);
COMMENT ON TABLE customers.invalidations IS
    'what caches have not been told yet is out of date; a row is deleted once they have';
COMMENT ON COLUMN customers.invalidations.shard IS 'the customer''s';
COMMENT ON COLUMN customers.invalidations.slice IS 'shard % 16: what one relay claims';
COMMENT ON COLUMN customers.invalidations.keys IS '{prefix of a cache key: {id: the version that replaced it}}';
-- As the outboxes: short and always changing, so vacuumed by count and not by share.
ALTER TABLE customers.invalidations SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_threshold = -1, autovacuum_vacuum_cost_delay = 0);
"""

GRANTS = r"""
GRANT USAGE ON SCHEMA customers TO customers_api, outbox_relay;
GRANT SELECT, INSERT, UPDATE ON customers.profiles TO customers_api;
GRANT SELECT, INSERT, UPDATE, DELETE ON customers.addresses TO customers_api;
GRANT INSERT ON customers.invalidations TO customers_api;
GRANT SELECT, DELETE ON customers.invalidations TO outbox_relay;
INSERT INTO relay.slices (outbox, slice)
SELECT 'customers.invalidations', slice FROM generate_series(0, 15) AS s (slice);
"""


def run_script(sql: str) -> None:
    """Many statements at once: asyncpg prepares what SQLAlchemy sends, and only one statement can be prepared."""
    op.get_bind().connection.dbapi_connection.run_async(lambda connection: connection.execute(sql))


def upgrade() -> None:
    # Roles belong to the server, not to the database: another database may have made it already.
    op.execute(
        "DO $$ BEGIN CREATE ROLE customers_api LOGIN;"
        " EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
    )
    for script in (TABLES, GRANTS):
        run_script(script)


def downgrade() -> None:
    op.execute("DELETE FROM relay.slices WHERE outbox = 'customers.invalidations'")
    op.execute("DELETE FROM relay.members WHERE outbox = 'customers.invalidations'")
    op.execute("DROP SCHEMA customers CASCADE")
    op.execute("DO $$ BEGIN DROP ROLE customers_api; EXCEPTION WHEN dependent_objects_still_exist THEN NULL; END $$")
