"""SQL of products. The text is PostgreSQL's own; SQLAlchemy Core gives each parameter its type."""

from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY

from services.catalog.tables import metadata
from services.common import clock, db, ids
from services.common.db import Database, Row
from services.contracts.catalog import Product

# A parameter named like a column has its type; these are the others. JSON is text, cast in the statement.
_TYPES: Final[dict[str, sa.types.TypeEngine[Any]]] = {
    **db.column_types(metadata),
    "data": sa.Text(),
    "after_id": sa.Uuid(),
    "from_id": sa.Uuid(),
    "product_ids": ARRAY(sa.Uuid()),
    "from_name": sa.Text(),
    "price_from": sa.BigInteger(),
    "price_to": sa.BigInteger(),
    "limit": sa.Integer(),
    "walk": sa.Integer(),
    "candidates": sa.Integer(),
    "spelled_characters": sa.Integer(),
}


# The product becomes `version`, from the one before it: from none, or from the row, whose lock lasts to the commit. So
# its event takes its place in the outbox after that of the version before. Caches may have kept that version; nobody
# caches that a product is missing. No row: somebody else was first, or it is not there. Index: primary key.
PUT_PRODUCT: Final = db.statement(
    "put_product",
    """
WITH created AS (
    INSERT INTO catalog.products (product_id, name, description, price, currency, active, version, updated_at)
    SELECT :product_id, :name, :description, :price, :currency, :active, :version, :updated_at
    WHERE :version = 1
    ON CONFLICT (product_id) DO NOTHING
    RETURNING version
), changed AS (
    UPDATE catalog.products
    SET name = :name, description = :description, price = :price, currency = :currency, active = :active,
        version = :version, updated_at = :updated_at
    WHERE product_id = :product_id AND version = :version - 1
    RETURNING version
), told AS (
    INSERT INTO catalog.invalidations (slice, keys)
    SELECT :slice, jsonb_build_object('catalog:product', jsonb_build_object(:product_id, version)) FROM changed
), written AS (
    SELECT version FROM created UNION ALL SELECT version FROM changed
)
INSERT INTO catalog.outbox
    (slice, aggregate_id, version, event_id, type, data, actor, traceparent, occurred_at)
SELECT :slice, :product_id, version, :event_id, :type, CAST(:data AS jsonb), :actor, :traceparent, :updated_at
FROM written
RETURNING TRUE AS written
""",
    _TYPES,
)

# In the order of their ids, so that two that lock some of the same do not wait for each other. Index: primary key.
LOCK_PRODUCTS: Final = db.statement(
    "lock_products",
    """
SELECT product_id, name, description, price, currency, active, version, updated_at
FROM catalog.products WHERE product_id = ANY (:product_ids) ORDER BY product_id FOR NO KEY UPDATE
""",
    _TYPES,
)

# Index: primary key.
GET_PRODUCT: Final = db.statement(
    "get_product",
    """
SELECT product_id, name, description, price, currency, active, version, updated_at
FROM catalog.products WHERE product_id = :product_id
""",
    _TYPES,
)

_COLUMNS: Final = "p.product_id, p.name, p.description, p.price, p.currency, p.active, p.version, p.updated_at"

_FILTERS: Final = """(:currency IS NULL OR currency = :currency)
      AND (:price_from IS NULL OR price >= :price_from) AND (:price_to IS NULL OR price < :price_to)"""

# At most `walk` entries of the index from a place on, without that of the product that was shown last; what filters let
# through of them, `limit` at most. `walked_to` is the last entry, when there may be more behind it. A page without a
# product is a row of NULLs. The products themselves by primary key; LIMIT 1 keeps the planner from any other join.
_LIST: Final = """
WITH walked AS MATERIALIZED (
    SELECT *, row_number() OVER (ORDER BY {order}) AS place
    FROM (
        SELECT active, product_id, {name_key} AS name_key, currency, price FROM catalog.products
        WHERE {at_or_after} AND product_id IS DISTINCT FROM :after_id
        ORDER BY {order} LIMIT :walk
    ) entries
), found AS MATERIALIZED (
    SELECT product_id, place FROM walked WHERE {filters} ORDER BY place LIMIT :limit
)
SELECT {columns}, p.name_key, e.product_id AS walked_to_id, e.name_key AS walked_to_name
FROM (VALUES (1)) AS one
LEFT JOIN walked e ON e.place = :walk
LEFT JOIN found f ON TRUE
LEFT JOIN LATERAL (SELECT * FROM catalog.products p WHERE p.product_id = f.product_id LIMIT 1) p ON TRUE
ORDER BY f.place
"""

# Index: ix_products_newest.
LIST_NEWEST: Final = db.statement(
    "list_products_newest",
    _LIST.format(
        order="active DESC, product_id DESC",
        name_key="CAST(NULL AS text)",
        # Compared as rows, so that the planner cannot take the primary key and throw away what is not for sale.
        at_or_after="(active, product_id) <= (:active, :from_id)"
        " AND (active, product_id) >= (:active, CAST('00000000-0000-0000-0000-000000000000' AS uuid))",
        filters=_FILTERS,
        columns=_COLUMNS,
    ),
    _TYPES,
)

# Index: ix_products_by_name.
LIST_BY_NAME: Final = db.statement(
    "list_products_by_name",
    _LIST.format(
        order="name_key, product_id",
        name_key="name_key",
        at_or_after="active = :active AND (name_key, product_id) >= (:from_name, :from_id)",
        filters=_FILTERS,
        columns=_COLUMNS,
    ),
    _TYPES,
)

# Four ways to be found, each asked for what those before have left of the answer: the name is the question; it has all
# of the words; name and description together have; the name has words that are spelled alike (for a question that is
# nothing but words, and no name as it is). Each looks at `candidates` at most (fewer, the more words there are), the
# first it finds, so that a word that is everywhere costs no more. What would have an index read from end to end is not
# asked of it: a question of no word, of nothing but what is not wanted, or without a letter. The question is parsed
# once, not for each row. IS NOT DISTINCT FROM keeps the planner from the other indexes, by `active`.
# Indexes: ix_products_by_name, _name_words, _all_words, _spelling; the products by primary key.
_BY_WORDS: Final = """
    SELECT product_id, name_key, ts_rank_cd({column}, (SELECT wanted FROM asked), 1) AS score
    FROM (
        SELECT product_id, name_key, {column} FROM catalog.products
        WHERE (SELECT by_words FROM asked) AND {left} AND {column} @@ (SELECT wanted FROM asked)
          AND active IS NOT DISTINCT FROM :active AND {filters}
        LIMIT (SELECT most FROM asked)
    ) candidates
    ORDER BY score DESC, name_key, product_id DESC LIMIT :limit
"""

SEARCH: Final = db.statement(
    "search_products",
    f"""
WITH parsed AS MATERIALIZED (
    SELECT websearch_to_tsquery('english', :q) AS wanted, plainto_tsquery('english', :q) AS plain
), asked AS MATERIALIZED (
    SELECT wanted, querytree(wanted) NOT IN ('', 'T') AS by_words,
           greatest(:candidates / greatest(numnode(wanted), 1), :limit) AS most,
           wanted = plain AND char_length(:q) <= :spelled_characters AND cardinality(show_trgm(:q)) > 0 AS by_spelling
    FROM parsed
), exact AS MATERIALIZED (
    SELECT product_id, name_key, 0 AS score FROM catalog.products
    WHERE active = :active AND name_key = lower(:q) AND {_FILTERS}
    ORDER BY product_id DESC LIMIT :limit
), named AS MATERIALIZED ({
        _BY_WORDS.format(column="name_words", left="(SELECT count(*) FROM exact) < :limit", filters=_FILTERS)
    }), described AS MATERIALIZED ({
        _BY_WORDS.format(column="all_words", left="(SELECT count(*) FROM named) < :limit", filters=_FILTERS)
    }), spelled AS MATERIALIZED (
    SELECT product_id, name_key, word_similarity(:q, name_key) + similarity(:q, name_key) AS score
    FROM (
        SELECT product_id, name_key FROM catalog.products
        WHERE (SELECT by_spelling FROM asked) AND (SELECT count(*) FROM described) < :limit
          AND NOT EXISTS (SELECT FROM exact) AND name %> :q
          AND active IS NOT DISTINCT FROM :active AND {_FILTERS}
        LIMIT :candidates
    ) candidates
    ORDER BY score DESC, name_key, product_id DESC LIMIT :limit
), found AS MATERIALIZED (
    SELECT DISTINCT ON (product_id) product_id, way, score, name_key
    FROM (
        SELECT 1 AS way, * FROM exact UNION ALL SELECT 2, * FROM named
        UNION ALL SELECT 3, * FROM described UNION ALL SELECT 4, * FROM spelled
    ) ways
    ORDER BY product_id, way
)
SELECT {_COLUMNS}
FROM found f
CROSS JOIN LATERAL (SELECT * FROM catalog.products p WHERE p.product_id = f.product_id LIMIT 1) p
ORDER BY f.way, f.score DESC, f.name_key, f.product_id DESC
LIMIT :limit
""",  # noqa: S608 # constants
    _TYPES,
)


def product_from(row: Row) -> Product:
    """The product a row is."""
    return Product(
        product_id=ids.to_text(row["product_id"]),
        name=row["name"],
        description=row["description"],
        price=row["price"],
        currency=row["currency"],
        active=row["active"],
        version=row["version"],
        updated_at=clock.to_text(row["updated_at"]),
    )


async def find_product(database: Database, product_id: UUID) -> Product | None:
    """The product as it stands, None when there is none. One index read. Raises TransientError."""
    rows = await database.rows(GET_PRODUCT, product_id=product_id)
    return product_from(rows[0]) if rows else None
