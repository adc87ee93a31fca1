"""Finding products: full-text and trigram indexes, an index for each order of the list, and catalog.invalidations.

Works with the previous release: what it writes fills the generated columns, and it caches no product. The columns
rewrite the table under its lock, at about 30,000 products a second; orders are taken meanwhile, from their copy.
"""

from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

STATEMENTS = (
    # A trusted extension: whoever may create schemas in the database may create it.
    "CREATE EXTENSION IF NOT EXISTS pg_trgm WITH SCHEMA public",
    """
    ALTER TABLE catalog.products
        ADD COLUMN name_key TEXT GENERATED ALWAYS AS (lower(name)) STORED NOT NULL,
        ADD COLUMN name_words TSVECTOR GENERATED ALWAYS AS (to_tsvector('english', name)) STORED NOT NULL,
        ADD COLUMN all_words TSVECTOR GENERATED ALWAYS AS (
            setweight(to_tsvector('english', name), 'A') || setweight(to_tsvector('english', description), 'D')
        ) STORED NOT NULL
    """,
    "COMMENT ON COLUMN catalog.products.name_key IS 'the name in small letters: by it products are ordered'",
    "COMMENT ON COLUMN catalog.products.name_words IS 'of the name, without their endings, as English'",
    "COMMENT ON COLUMN catalog.products.all_words IS 'of name (A) and description (D), in the same way'",
    "CREATE INDEX ix_products_newest ON catalog.products (active, product_id) INCLUDE (currency, price)",
    "CREATE INDEX ix_products_by_name ON catalog.products (active, name_key, product_id) INCLUDE (currency, price)",
    # Pending entries are read by every search from end to end, so they are as few as PostgreSQL allows (in kB). Without
    # any, a product costs six times as much to write (decision 0020).
    "CREATE INDEX ix_products_name_words ON catalog.products USING gin (name_words) WITH (gin_pending_list_limit = 64)",
    "CREATE INDEX ix_products_all_words ON catalog.products USING gin (all_words) WITH (gin_pending_list_limit = 64)",
    "CREATE INDEX ix_products_spelling ON catalog.products USING gin (name gin_trgm_ops)"
    " WITH (gin_pending_list_limit = 64)",
    """
    CREATE TABLE catalog.invalidations (
        slice SMALLINT NOT NULL,
        position BIGINT GENERATED ALWAYS AS IDENTITY (CACHE 1) NOT NULL,
        keys JSONB NOT NULL,
        created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
        CONSTRAINT pk_invalidations PRIMARY KEY (slice, position),
        CONSTRAINT ck_invalidations_slice CHECK (slice BETWEEN 0 AND 15)
    )
    """,
    "COMMENT ON TABLE catalog.invalidations IS"
    " 'what caches have not been told yet is out of date; a row is deleted once they have'",
    "COMMENT ON COLUMN catalog.invalidations.slice IS 'a hash of the product''s id: what one relay claims'",
    "COMMENT ON COLUMN catalog.invalidations.keys IS '{prefix of a cache key: {id: the version that replaced it}}'",
    # As the outbox: short and always changing, so vacuumed by count and not by share.
    "ALTER TABLE catalog.invalidations SET (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,"
    " autovacuum_vacuum_insert_threshold = -1, autovacuum_vacuum_cost_delay = 0)",
    "GRANT INSERT ON catalog.invalidations TO catalog_api",
    "GRANT SELECT, DELETE ON catalog.invalidations TO outbox_relay",
    "INSERT INTO relay.slices (outbox, slice)"
    " SELECT 'catalog.invalidations', slice FROM generate_series(0, 15) AS s (slice)",
)


def upgrade() -> None:
    for statement in STATEMENTS:
        op.execute(statement)


def downgrade() -> None:
    op.execute("DELETE FROM relay.slices WHERE outbox = 'catalog.invalidations'")
    op.execute("DELETE FROM relay.members WHERE outbox = 'catalog.invalidations'")
    op.execute("DROP TABLE catalog.invalidations")
    op.execute("DROP INDEX catalog.ix_products_spelling, catalog.ix_products_all_words, catalog.ix_products_name_words")
    op.execute("DROP INDEX catalog.ix_products_by_name, catalog.ix_products_newest")
    op.execute("ALTER TABLE catalog.products DROP COLUMN all_words, DROP COLUMN name_words, DROP COLUMN name_key")
    op.execute("DROP EXTENSION pg_trgm")
