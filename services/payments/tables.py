"""The tables of schema `payments` (SQLAlchemy Core). Partitions and grants are made by the migrations.

Money is bigint in minor units of the payment's currency.
"""

from enum import StrEnum
from typing import Final

import sqlalchemy as sa

from services.common import tables
from services.common.money import AMOUNT_MAX
from services.contracts.payments import PaymentState
from services.payments.domain import StepKind, StepState

SCHEMA: Final = "payments"

metadata = sa.MetaData(
    schema=SCHEMA,
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    },
)

timestamptz = sa.TIMESTAMP(timezone=True)


def _one_of(column: str, values: type[StrEnum]) -> str:
    return f"{column} IN ({', '.join(repr(value.value) for value in values)})"


def _money(name: str, comment: str = "minor units of the currency (ISO 4217)") -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, comment=comment)


def _order_key() -> tuple[sa.Column[object], ...]:
    """As every table of an order begins; the last two are the id's own bits."""
    return (
        sa.Column("order_id", sa.Uuid, nullable=False),
        sa.Column("created_at", timestamptz, nullable=False, comment="the time in order_id"),
        sa.Column("shard", sa.SmallInteger, nullable=False, comment="the 12 bits of order_id after its version"),
    )


payments = sa.Table(
    "payments",
    metadata,
    *_order_key(),
    sa.Column("user_id", sa.Uuid, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("provider", sa.Text, nullable=False),
    sa.Column("reference", sa.Text, comment="the provider's id of it"),
    sa.Column("payment_method", sa.Text, nullable=False),
    sa.Column("currency", sa.Text, nullable=False, comment="ISO 4217"),
    _money("amount", "to be authorised: minor units of the currency (ISO 4217)"),
    _money("authorized_amount"),
    _money("captured_amount"),
    _money("refunded_amount"),
    sa.Column("failure", sa.Text),
    sa.Column("version", sa.Integer, nullable=False, comment="of its last event, 0 before the first"),
    sa.Column(
        "order_version",
        sa.Integer,
        nullable=False,
        comment="of the last event of the order that was taken into account",
    ),
    sa.Column("updated_at", timestamptz, nullable=False),
    sa.PrimaryKeyConstraint("order_id", "created_at", "shard"),
    sa.Index(None, "updated_at"),
    # IS TRUE: for a UUID of another version the comparison is NULL, and a CHECK that yields NULL passes.
    sa.CheckConstraint(
        "(uuid_extract_version(order_id) = 7 AND created_at = uuid_extract_timestamp(order_id)) IS TRUE",
        name="created_at_is_in_order_id",
    ),
    sa.CheckConstraint(
        "shard = ((get_byte(uuid_send(order_id), 6) & 15) << 8) + get_byte(uuid_send(order_id), 7)",
        name="shard_is_in_order_id",
    ),
    sa.CheckConstraint(_one_of("status", PaymentState), name="status"),
    sa.CheckConstraint(f"amount BETWEEN 0 AND {AMOUNT_MAX}", name="amount"),
    sa.CheckConstraint("authorized_amount BETWEEN 0 AND amount", name="authorized_amount"),
    sa.CheckConstraint("captured_amount BETWEEN 0 AND authorized_amount", name="captured_amount"),
    sa.CheckConstraint("refunded_amount BETWEEN 0 AND captured_amount", name="refunded_amount"),
    sa.CheckConstraint("version >= 0", name="version"),
    sa.CheckConstraint("order_version >= 1", name="order_version"),
    comment="the payment of an order, as its provider was last heard to have it",
    postgresql_partition_by="RANGE (created_at)",
)

steps = sa.Table(
    "steps",
    metadata,
    *_order_key(),
    sa.Column("number", sa.Integer, nullable=False, comment="the version of the event of the order that asked for it"),
    sa.Column("kind", sa.Text, nullable=False),
    _money("amount", "minor units of the payment's currency"),
    sa.Column("final", sa.Boolean, nullable=False, comment="of a capture: what is then left is released"),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column(
        "due_at", timestamptz, comment="when it is tried; while it is, until when; null: after the one before it"
    ),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("base_amount", sa.BigInteger, comment="what was captured (refunded) before it was first tried"),
    sa.Column("error", sa.Text, comment="why it was not done the last time, or why it never will be"),
    sa.Column("traceparent", sa.Text),
    sa.Column("asked_at", timestamptz, nullable=False),
    sa.Column("ended_at", timestamptz),
    sa.PrimaryKeyConstraint("order_id", "shard", "number"),
    sa.Index(None, "due_at", postgresql_where=sa.text("state = 'open'")),
    sa.Index(None, "ended_at", postgresql_where=sa.text("state IN ('done', 'dropped')")),
    sa.Index("ix_steps_refused", "asked_at", postgresql_where=sa.text("state = 'refused'")),
    sa.CheckConstraint(_one_of("kind", StepKind), name="kind"),
    sa.CheckConstraint(_one_of("state", StepState), name="state"),
    sa.CheckConstraint("number >= 1", name="number"),
    sa.CheckConstraint("amount >= 0", name="amount"),
    sa.CheckConstraint("attempts >= 0", name="attempts"),
    sa.CheckConstraint("(state = 'open') = (ended_at IS NULL)", name="ended_at"),
    comment="what a provider is to be asked; those that are done are kept 30 days, those it refused for ever",
)

outbox = tables.outbox(metadata, slice_is="the order's shard % 16", aggregate="the order")

inbox = tables.inbox(metadata)
