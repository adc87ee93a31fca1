"""Payments, what is still to be done about them, their events and their inbox; the role of payments-worker.

Works with the previous release: it neither reads nor writes the new schema.
"""

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

TABLES = r"""
CREATE TABLE payments.payments (
    order_id UUID NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    shard SMALLINT NOT NULL,
    user_id UUID NOT NULL,
    status TEXT NOT NULL,
    provider TEXT NOT NULL,
    reference TEXT,
    payment_method TEXT NOT NULL,
    currency TEXT NOT NULL,
    amount BIGINT NOT NULL,
    authorized_amount BIGINT NOT NULL,
    captured_amount BIGINT NOT NULL,
    refunded_amount BIGINT NOT NULL,
    failure TEXT,
    version INTEGER NOT NULL,
    order_version INTEGER NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_payments PRIMARY KEY (order_id, created_at, shard),
    CONSTRAINT ck_payments_created_at_is_in_order_id
        CHECK ((uuid_extract_version(order_id) = 7 AND created_at = uuid_extract_timestamp(order_id)) IS TRUE),
    CONSTRAINT ck_payments_shard_is_in_order_id
        CHECK (shard = ((get_byte(uuid_send(order_id), 6) & 15) << 8) + get_byte(uuid_send(order_id), 7)),
    CONSTRAINT ck_payments_status CHECK (status IN ('requested', 'authorized', 'failed', 'voided')),
    CONSTRAINT ck_payments_amount CHECK (amount BETWEEN 0 AND 9007199254740991),
    CONSTRAINT ck_payments_authorized_amount CHECK (authorized_amount BETWEEN 0 AND amount),
    CONSTRAINT ck_payments_captured_amount CHECK (captured_amount BETWEEN 0 AND authorized_amount),
    CONSTRAINT ck_payments_refunded_amount CHECK (refunded_amount BETWEEN 0 AND captured_amount),
    CONSTRAINT ck_payments_version CHECK (version >= 0),
    CONSTRAINT ck_payments_order_version CHECK (order_version >= 1)
) PARTITION BY RANGE (created_at);
CREATE INDEX ix_payments_updated_at ON payments.payments (updated_at);
COMMENT ON TABLE payments.payments IS 'the payment of an order, as its provider was last heard to have it';
COMMENT ON COLUMN payments.payments.created_at IS 'the time in order_id';
COMMENT ON COLUMN payments.payments.shard IS 'the 12 bits of order_id after its version';
COMMENT ON COLUMN payments.payments.reference IS 'the provider''s id of it';
COMMENT ON COLUMN payments.payments.currency IS 'ISO 4217';
COMMENT ON COLUMN payments.payments.amount IS 'to be authorised: minor units of the currency (ISO 4217)';
COMMENT ON COLUMN payments.payments.authorized_amount IS 'minor units of the currency (ISO 4217)';
COMMENT ON COLUMN payments.payments.captured_amount IS 'minor units of the currency (ISO 4217)';
COMMENT ON COLUMN payments.payments.refunded_amount IS 'minor units of the currency (ISO 4217)';
COMMENT ON COLUMN payments.payments.version IS 'of its last event, 0 before the first';
COMMENT ON COLUMN payments.payments.order_version IS 'of the last event of the order that was taken into account';

CREATE TABLE payments.steps (
    order_id UUID NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    shard SMALLINT NOT NULL,
    number INTEGER NOT NULL,
    kind TEXT NOT NULL,
    amount BIGINT NOT NULL,
    final BOOLEAN NOT NULL,
    state TEXT NOT NULL,
    due_at TIMESTAMPTZ,
    attempts INTEGER NOT NULL,
    base_amount BIGINT,
    error TEXT,
    traceparent TEXT,
    asked_at TIMESTAMPTZ NOT NULL,
    ended_at TIMESTAMPTZ,
    CONSTRAINT pk_steps PRIMARY KEY (order_id, shard, number),
    CONSTRAINT ck_steps_kind CHECK (kind IN ('authorize', 'capture', 'void', 'refund')),
    CONSTRAINT ck_steps_state CHECK (state IN ('open', 'done', 'dropped', 'refused')),
    CONSTRAINT ck_steps_number CHECK (number >= 1),
    CONSTRAINT ck_steps_amount CHECK (amount >= 0),
    CONSTRAINT ck_steps_attempts CHECK (attempts >= 0),
    CONSTRAINT ck_steps_ended_at CHECK ((state = 'open') = (ended_at IS NULL))
);
CREATE INDEX ix_steps_due_at ON payments.steps (due_at) WHERE state = 'open';
CREATE INDEX ix_steps_ended_at ON payments.steps (ended_at) WHERE state IN ('done', 'dropped');
CREATE INDEX ix_steps_refused ON payments.steps (asked_at) WHERE state = 'refused';
COMMENT ON TABLE payments.steps IS
    'what a provider is to be asked; those that are done are kept 30 days, those it refused for ever';
COMMENT ON COLUMN payments.steps.created_at IS 'the time in order_id';
COMMENT ON COLUMN payments.steps.shard IS 'the 12 bits of order_id after its version';
COMMENT ON COLUMN payments.steps.number IS 'the version of the event of the order that asked for it';
COMMENT ON COLUMN payments.steps.amount IS 'minor units of the payment''s currency';
COMMENT ON COLUMN payments.steps.final IS 'of a capture: what is then left is released';
COMMENT ON COLUMN payments.steps.due_at IS 'when it is tried; while it is, until when; null: after the one before it';
COMMENT ON COLUMN payments.steps.base_amount IS 'what was captured (refunded) before it was first tried';
COMMENT ON COLUMN payments.steps.error IS 'why it was not done the last time, or why it never will be';
-- Every row is changed a few times and then deleted: vacuumed by count, not by share.
ALTER TABLE payments.steps SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000);

CREATE TABLE payments.outbox (
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
COMMENT ON TABLE payments.outbox IS 'events not yet on Kafka; a published row is deleted';
COMMENT ON COLUMN payments.outbox.slice IS 'the order''s shard % 16: what one relay claims';
COMMENT ON COLUMN payments.outbox.aggregate_id IS 'the order';
ALTER TABLE payments.outbox SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_threshold = -1, autovacuum_vacuum_cost_delay = 0);

CREATE TABLE payments.inbox (
    consumer TEXT NOT NULL,
    topic TEXT NOT NULL,
    key TEXT NOT NULL,
    last_version BIGINT NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT pk_inbox PRIMARY KEY (consumer, topic, key),
    CONSTRAINT ck_inbox_last_version CHECK (last_version >= 1)
);
CREATE INDEX ix_inbox_updated_at ON payments.inbox (updated_at);
COMMENT ON TABLE payments.inbox IS
    'the last version of each key that a consumer has applied; rows unchanged for 30 days are removed';

INSERT INTO relay.slices (outbox, slice) SELECT 'payments', slice FROM generate_series(0, 15) AS s (slice);
"""

FUNCTIONS = r"""
CREATE FUNCTION payments.create_month(month DATE) RETURNS BOOLEAN
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' SET TimeZone = 'UTC'
AS $$
DECLARE
    first DATE := date_trunc('month', month);
    after DATE := date_trunc('month', month) + INTERVAL '1 month';
    leaf TEXT := 'payments_' || to_char(first, 'YYYY_MM');
BEGIN
    IF to_regclass('payments.' || leaf) IS NOT NULL THEN
        RETURN FALSE;
    END IF;
    -- Two workers at once: the second waits, and then sees the month.
    PERFORM pg_advisory_xact_lock(hashtext('payments.create_month'));
    IF to_regclass('payments.' || leaf) IS NOT NULL THEN
        RETURN FALSE;
    END IF;
    -- Built beside the parent, with a CHECK that proves its bounds, so that ATTACH neither scans nor waits long.
    EXECUTE format('CREATE TABLE payments.%I (LIKE payments.payments INCLUDING ALL, '
        'CONSTRAINT month CHECK (created_at >= %L AND created_at < %L))', leaf, first, after);
    EXECUTE format('ALTER TABLE payments.payments ATTACH PARTITION payments.%I FOR VALUES FROM (%L) TO (%L)',
        leaf, first, after);
    EXECUTE format('ALTER TABLE payments.%I DROP CONSTRAINT month', leaf);
    RETURN TRUE;
END $$;
COMMENT ON FUNCTION payments.create_month IS 'the partition of a month exists afterwards; true if it made it';
"""

GRANTS = r"""
REVOKE ALL ON FUNCTION payments.create_month FROM PUBLIC;

GRANT USAGE ON SCHEMA payments TO payments_worker, outbox_relay;
GRANT EXECUTE ON FUNCTION payments.create_month TO payments_worker;
GRANT SELECT, INSERT, UPDATE ON payments.payments TO payments_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON payments.steps, payments.inbox TO payments_worker;
GRANT INSERT ON payments.outbox TO payments_worker;

GRANT SELECT, DELETE ON payments.outbox TO outbox_relay;
"""


def run_script(sql: str) -> None:
    """Many statements at once: asyncpg prepares what SQLAlchemy sends, and only one statement can be prepared."""
    op.get_bind().connection.dbapi_connection.run_async(lambda connection: connection.execute(sql))


def upgrade() -> None:
    # Roles belong to the server, not to the database: another database may have made it already.
    op.execute(
        "DO $$ BEGIN CREATE ROLE payments_worker LOGIN;"
        " EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
    )
    op.execute("CREATE SCHEMA payments")
    for script in (TABLES, FUNCTIONS, GRANTS):
        run_script(script)


def downgrade() -> None:
    op.execute("DROP SCHEMA payments CASCADE")
    op.execute("DELETE FROM relay.slices WHERE outbox = 'payments'")
    op.execute("DELETE FROM relay.members WHERE outbox = 'payments'")
    op.execute("DELETE FROM relay.parked WHERE outbox = 'payments'")
    op.execute("DO $$ BEGIN DROP ROLE payments_worker; EXCEPTION WHEN dependent_objects_still_exist THEN NULL; END $$")
