"""The tables of schema `customers` (SQLAlchemy Core). What is personal is in columns that only `personal` can read."""

from typing import Final

import sqlalchemy as sa

from services.common import tables

SCHEMA: Final = "customers"

metadata = sa.MetaData(
    schema=SCHEMA,
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
    },
)

profiles = sa.Table(
    "profiles",
    metadata,
    sa.Column("user_id", sa.Uuid, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False, comment="grows over an erasure, too; without a row it is 1"),
    sa.Column("person", sa.LargeBinary, comment="personal data, sealed; null: erased, and nothing may come back"),
    sa.Column("updated_at", sa.TIMESTAMP(timezone=True), nullable=False),
    sa.PrimaryKeyConstraint("user_id"),
    sa.CheckConstraint("version > 1", name="version"),
    comment="one row for each customer who has ever written or erased a profile; a row is never deleted",
)

addresses = sa.Table(
    "addresses",
    metadata,
    sa.Column("user_id", sa.Uuid, nullable=False),
    sa.Column("address_id", sa.Uuid, nullable=False, comment="what orders carry as shipping_address_id"),
    sa.Column("destination", sa.LargeBinary, nullable=False, comment="personal data, sealed; never changes"),
    sa.Column("created_at", sa.TIMESTAMP(timezone=True), nullable=False),
    sa.Column("retired_at", sa.TIMESTAMP(timezone=True), comment="null: in use"),
    sa.Column("replaced_by", sa.Uuid, comment="the address that took its place"),
    sa.Column("key", sa.Text, comment="the Idempotency-Key it was added with"),
    sa.Column("request_hash", sa.LargeBinary, comment="SHA-256 of what was asked with that key"),
    sa.PrimaryKeyConstraint("user_id", "address_id"),
    sa.UniqueConstraint("user_id", "key"),
    sa.ForeignKeyConstraint(["user_id"], ["customers.profiles.user_id"]),
    sa.CheckConstraint("(key IS NULL) = (request_hash IS NULL)", name="key"),
    comment="addresses, also those that are not used any more: orders may name them; an erasure deletes them",
)

invalidations = tables.invalidations(metadata, slice_is="shard % 16", shard_is="the customer's")
