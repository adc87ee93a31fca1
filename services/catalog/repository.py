"""SQL of products. The text is PostgreSQL's own; SQLAlchemy Core gives each parameter its type."""

from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from services.catalog.tables import metadata
from services.common import clock, db, ids
from services.common.db import Database, Row
from services.contracts.catalog import Product

# A parameter named like a column has its type; these are the others. JSON is text, cast in the statement.
_TYPES: Final[dict[str, sa.types.TypeEngine[Any]]] = {
    **db.column_types(metadata),
    "data": sa.Text(),
    "from_id": sa.Uuid(),
    "limit": sa.Integer(),
}


# The product becomes `version`, from the one before it: from none, or from the row, whose lock lasts to the commit. So
# its event takes its place in the outbox after that of the version before. No row: somebody else was first, or it is
# not there. Index: primary key.
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

# Index: primary key.
GET_PRODUCT: Final = db.statement(
    "get_product",
    """
SELECT product_id, name, description, price, currency, active, version, updated_at
FROM catalog.products WHERE product_id = :product_id
""",
    _TYPES,
)

# Index: primary key, read in order until the page is full.
LIST_PRODUCTS: Final = db.statement(
    "list_products",
    """
SELECT product_id, name, description, price, currency, active, version, updated_at
FROM catalog.products WHERE product_id >= :from_id ORDER BY product_id LIMIT :limit
""",
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
