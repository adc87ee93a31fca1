"""The tables of schema `relay` (SQLAlchemy Core)."""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from services.common.ids import SLICES

SCHEMA: Final = "relay"

metadata = sa.MetaData(
    schema=SCHEMA, naming_convention={"pk": "pk_%(table_name)s", "ck": "ck_%(table_name)s_%(constraint_name)s"}
)

members = sa.Table(
    "members",
    metadata,
    sa.Column("outbox", sa.Text, nullable=False),
    sa.Column("relay", sa.Text, nullable=False, comment="host:pid:random, anew for each process"),
    sa.Column("expires_at", sa.TIMESTAMP(timezone=True), nullable=False),
    sa.PrimaryKeyConstraint("outbox", "relay"),
    comment="relays that can publish an outbox: each renews its row, and is out when it expires",
)

slices = sa.Table(
    "slices",
    metadata,
    sa.Column("outbox", sa.Text, nullable=False),
    sa.Column("slice", sa.SmallInteger, nullable=False),
    sa.Column("relay", sa.Text, comment="free when null, or when this relay is no live member"),
    sa.PrimaryKeyConstraint("outbox", "slice"),
    sa.CheckConstraint(f"slice BETWEEN 0 AND {SLICES - 1}", name="slice"),
    comment="every slice of every outbox, and who publishes it",
)

parked = sa.Table(
    "parked",
    metadata,
    sa.Column("outbox", sa.Text, nullable=False),
    sa.Column("aggregate_id", sa.Uuid, nullable=False),
    sa.Column(
        "position",
        sa.BigInteger,
        nullable=False,
        comment="it had in its outbox, and has there again when it is released",
    ),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("content", JSONB, nullable=False, comment="the row as it stood in its outbox"),
    sa.Column("parked_at", sa.TIMESTAMP(timezone=True), nullable=False),
    sa.PrimaryKeyConstraint("outbox", "aggregate_id", "position"),
    comment="rows taken out of an outbox because they, or an earlier one of their aggregate, cannot be sent",
)
