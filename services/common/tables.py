"""The tables that several schemas have alike (SQLAlchemy Core). Their migrations are each schema's own."""

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB

from services.common.ids import SLICES


def inbox(metadata: sa.MetaData) -> sa.Table:
    """What the consumers of this schema have applied: `inbox.Inbox` reads and writes it."""
    return sa.Table(
        "inbox",
        metadata,
        sa.Column("consumer", sa.Text, nullable=False),
        sa.Column("topic", sa.Text, nullable=False),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("last_version", sa.BigInteger, nullable=False),
        sa.Column("updated_at", sa.TIMESTAMP(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("consumer", "topic", "key"),
        sa.Index(None, "updated_at"),
        sa.CheckConstraint("last_version >= 1", name="last_version"),
        comment="the last version of each key that a consumer has applied; rows unchanged for 30 days are removed",
    )


def outbox(metadata: sa.MetaData, *, slice_is: str, aggregate: str) -> sa.Table:
    """An outbox whose rows carry their event; that of orders has only the event's key, and is their own."""
    return sa.Table(
        "outbox",
        metadata,
        *_in_slices(slice_is),
        sa.Column("aggregate_id", sa.Uuid, nullable=False, comment=aggregate),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("event_id", sa.Uuid, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("data", JSONB, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("traceparent", sa.Text),
        sa.Column("occurred_at", sa.TIMESTAMP(timezone=True), nullable=False),
        comment="events not yet on Kafka; a published row is deleted",
    )


def invalidations(metadata: sa.MetaData, *, slice_is: str, shard_is: str | None = None) -> sa.Table:
    """What the relay has yet to tell caches; with a column `shard` where the schema is sharded."""
    return sa.Table(
        "invalidations",
        metadata,
        *_in_slices(slice_is, shard_is),
        sa.Column("keys", JSONB, nullable=False, comment="{prefix of a cache key: {id: the version that replaced it}}"),
        sa.Column("created_at", sa.TIMESTAMP(timezone=True), nullable=False, server_default=sa.func.now()),
        comment="what caches have not been told yet is out of date; a row is deleted once they have",
    )


def _in_slices(slice_is: str, shard_is: str | None = None) -> list[sa.schema.SchemaItem]:
    """The key of rows that relays share by slices, and empty in the order of their positions."""
    columns: list[sa.schema.SchemaItem] = [
        sa.Column("slice", sa.SmallInteger, nullable=False, comment=f"{slice_is}: what one relay claims"),
        sa.Column("position", sa.BigInteger, sa.Identity(always=True, cache=1), nullable=False),
    ]
    if shard_is is None:
        key = sa.PrimaryKeyConstraint("slice", "position")
        return [*columns, key, sa.CheckConstraint(f"slice BETWEEN 0 AND {SLICES - 1}", name="slice")]
    shard = sa.Column("shard", sa.SmallInteger, nullable=False, comment=shard_is)
    key = sa.PrimaryKeyConstraint("slice", "position", "shard")
    return [shard, *columns, key, sa.CheckConstraint(f"slice = shard % {SLICES}", name="slice")]
