"""The tables of schema `catalog` (SQLAlchemy Core)."""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from services.common.ids import SLICES
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
    sa.PrimaryKeyConstraint("product_id"),
    sa.CheckConstraint(f"price BETWEEN 1 AND {PRICE_MAX}", name="price"),
    sa.CheckConstraint("char_length(name) BETWEEN 1 AND 200", name="name"),
    comment="what is for sale",
)

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("slice", sa.SmallInteger, nullable=False, comment="a hash of aggregate_id: what one relay claims"),
    sa.Column("position", sa.BigInteger, sa.Identity(always=True, cache=1), nullable=False),
    sa.Column("aggregate_id", sa.Uuid, nullable=False, comment="the product"),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("event_id", sa.Uuid, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("data", JSONB, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("traceparent", sa.Text),
    sa.Column("occurred_at", sa.TIMESTAMP(timezone=True), nullable=False),
    sa.PrimaryKeyConstraint("slice", "position"),
    sa.CheckConstraint(f"slice BETWEEN 0 AND {SLICES - 1}", name="slice"),
    comment="events not yet on Kafka; a published row is deleted",
)
