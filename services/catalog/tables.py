"""The tables of schema `catalog` (SQLAlchemy Core)."""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import TSVECTOR

from services.common import tables
from services.common.money import PRICE_MAX

SCHEMA: Final = "catalog"

metadata = sa.MetaData(
    schema=SCHEMA, naming_convention={"pk": "pk_%(table_name)s", "ck": "ck_%(table_name)s_%(constraint_name)s"}
)

products = sa.Table(
    "products",
    metadata,
    sa.Column("product_id", sa.Uuid, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("description", sa.Text, nullable=False),
    sa.Column("price", sa.BigInteger, nullable=False, comment="minor units of the currency (ISO 4217)"),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.TIMESTAMP(timezone=True), nullable=False),
    sa.Column(
        "name_key",
        sa.Text,
        sa.Computed("lower(name)", persisted=True),
        nullable=False,
        comment="the name in small letters: by it products are ordered",
    ),
    # As PostgreSQL tells them, so that a migration sees no difference.
    sa.Column(
        "name_words",
        TSVECTOR,
        sa.Computed("to_tsvector('english'::regconfig, name)", persisted=True),
        nullable=False,
        comment="of the name, without their endings, as English",
    ),
    sa.Column(
        "all_words",
        TSVECTOR,
        sa.Computed(
            """(setweight(to_tsvector('english'::regconfig, name), 'A'::"char")"""
            """ || setweight(to_tsvector('english'::regconfig, description), 'D'::"char"))""",
            persisted=True,
        ),
        nullable=False,
        comment="of name (A) and description (D), in the same way",
    ),
    sa.PrimaryKeyConstraint("product_id"),
    sa.CheckConstraint(f"price BETWEEN 1 AND {PRICE_MAX}", name="price"),
    sa.CheckConstraint("char_length(name) BETWEEN 1 AND 200", name="name"),
    comment="what is for sale",
)
sa.Index(
    "ix_products_newest",
    products.c.active,
    products.c.product_id,
    postgresql_include=["currency", "price"],
)
sa.Index(
    "ix_products_by_name",
    products.c.active,
    products.c.name_key,
    products.c.product_id,
    postgresql_include=["currency", "price"],
)
for words in (products.c.name_words, products.c.all_words):
    sa.Index(f"ix_products_{words.name}", words, postgresql_using="gin", postgresql_with={"gin_pending_list_limit": 64})
sa.Index(
    "ix_products_spelling",
    products.c.name,
    postgresql_using="gin",
    postgresql_ops={"name": "gin_trgm_ops"},
    postgresql_with={"gin_pending_list_limit": 64},
)

outbox = tables.outbox(metadata, slice_is="a hash of aggregate_id", aggregate="the product")

invalidations = tables.invalidations(metadata, slice_is="a hash of the product's id")
