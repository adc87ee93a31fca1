"""The tables of schema `orders` (SQLAlchemy Core). Partitions, triggers and grants are made by the migrations.

Money is bigint in minor units of the order's or product's currency.
"""

from decimal import Decimal
from typing import Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from services.common import tables
from services.common.ids import SHARDS, SLICES
from services.common.money import AMOUNT_MAX, PRICE_MAX
from services.contracts.orders import OrderStatus, PaymentStatus
from services.orders.domain import OPEN_STATUSES, CancelReason

SCHEMA: Final = "orders"
PARTITIONED: Final = ("orders", "order_items", "order_events")  # by month of created_at, all three alike

# Names follow a convention, so that a violated constraint can be mapped to an error code.
metadata = sa.MetaData(
    schema=SCHEMA,
    naming_convention={
        "pk": "pk_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
    },
)

timestamptz = sa.TIMESTAMP(timezone=True)


def _one_of(column: str, values: type[OrderStatus | PaymentStatus | CancelReason]) -> str:
    return f"{column} IN ({', '.join(repr(v.value) for v in values)})"


def _money(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger, nullable=False, comment="minor units of the currency (ISO 4217)")


def _order_key() -> tuple[sa.Column[object], ...]:
    """The three columns every table of an order begins with; the last two are the id's own bits."""
    return (
        sa.Column("order_id", sa.Uuid, nullable=False),
        sa.Column("created_at", timestamptz, nullable=False, comment="the time in order_id"),
        sa.Column("shard", sa.SmallInteger, nullable=False, comment="the 12 bits of order_id after its version"),
    )


def _order_key_checks() -> tuple[sa.CheckConstraint, ...]:
    # IS TRUE: for a UUID of another version the comparison is NULL, and a CHECK that yields NULL passes.
    return (
        sa.CheckConstraint(
            "(uuid_extract_version(order_id) = 7 AND created_at = uuid_extract_timestamp(order_id)) IS TRUE",
            name="created_at_is_in_order_id",
        ),
        sa.CheckConstraint(
            "shard = ((get_byte(uuid_send(order_id), 6) & 15) << 8) + get_byte(uuid_send(order_id), 7)",
            name="shard_is_in_order_id",
        ),
    )


orders = sa.Table(
    "orders",
    metadata,
    *_order_key(),
    sa.Column("user_id", sa.Uuid, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("payment_status", sa.Text, nullable=False),
    sa.Column("currency", sa.Text, nullable=False, comment="ISO 4217"),
    _money("total_amount"),
    _money("captured_amount"),
    _money("refunded_amount"),
    sa.Column("item_count", sa.Integer, nullable=False, comment="number of lines"),
    sa.Column("adjustments", JSONB, nullable=False),
    sa.Column("expires_at", timestamptz, comment="when an unpaid order is cancelled; null once it is not pending"),
    sa.Column("payment_method", sa.Text),
    sa.Column("shipping_address_id", sa.Text),
    sa.Column("tracking", sa.Text),
    sa.Column("cancel_reason", sa.Text),
    sa.Column("version", sa.Integer, nullable=False, comment="of the last event"),
    sa.Column("updated_at", timestamptz, nullable=False),
    sa.PrimaryKeyConstraint("order_id", "created_at", "shard"),
    *_order_key_checks(),
    sa.CheckConstraint(_one_of("status", OrderStatus), name="status"),
    sa.CheckConstraint(_one_of("payment_status", PaymentStatus), name="payment_status"),
    sa.CheckConstraint(_one_of("cancel_reason", CancelReason), name="cancel_reason"),
    sa.CheckConstraint(f"total_amount BETWEEN 0 AND {AMOUNT_MAX}", name="total_amount"),
    sa.CheckConstraint("refunded_amount >= 0 AND refunded_amount <= captured_amount", name="refunded_amount"),
    sa.CheckConstraint("captured_amount <= total_amount", name="captured_amount"),
    sa.CheckConstraint("version >= 1", name="version"),
    comment="one row an order: the fold of its events, for lists and for the lock",
    postgresql_partition_by="RANGE (created_at)",
)
sa.Index(None, orders.c.user_id, orders.c.created_at.desc(), orders.c.order_id.desc())
sa.Index(None, orders.c.user_id, orders.c.status, orders.c.created_at.desc(), orders.c.order_id.desc())
sa.Index(None, orders.c.created_at, orders.c.order_id)
sa.Index(
    "ix_orders_created_at_open",
    orders.c.created_at,
    postgresql_where=orders.c.status.in_([sa.literal_column(repr(status.value)) for status in OPEN_STATUSES]),
)
sa.Index(None, orders.c.expires_at, postgresql_where=orders.c.status == sa.literal_column("'pending'"))

order_items = sa.Table(
    "order_items",
    metadata,
    *_order_key(),
    sa.Column("line_no", sa.Integer, nullable=False),
    sa.Column("product_id", sa.Uuid, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("quantity", sa.Integer, nullable=False),
    _money("unit_price"),
    _money("line_total"),
    sa.Column("shipped_quantity", sa.Integer, nullable=False),
    sa.Column("returned_quantity", sa.Integer, nullable=False),
    sa.PrimaryKeyConstraint("order_id", "created_at", "shard", "line_no"),
    *_order_key_checks(),
    sa.CheckConstraint("quantity >= 1", name="quantity"),
    sa.CheckConstraint(f"unit_price BETWEEN 1 AND {PRICE_MAX}", name="unit_price"),
    sa.CheckConstraint("line_total = unit_price * quantity", name="line_total"),
    sa.CheckConstraint("shipped_quantity BETWEEN 0 AND quantity", name="shipped_quantity"),
    sa.CheckConstraint("returned_quantity BETWEEN 0 AND shipped_quantity", name="returned_quantity"),
    comment="the lines of an order",
    postgresql_partition_by="RANGE (created_at)",
)

order_events = sa.Table(
    "order_events",
    metadata,
    *_order_key(),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("event_id", sa.Uuid, nullable=False),
    sa.Column("type", sa.Text, nullable=False),
    sa.Column("data", JSONB, nullable=False, comment='{"change": what changed, "after": header}'),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("traceparent", sa.Text),
    sa.Column("occurred_at", timestamptz, nullable=False),
    sa.PrimaryKeyConstraint("order_id", "created_at", "shard", "version"),
    *_order_key_checks(),
    sa.CheckConstraint("version >= 1", name="version"),
    comment="the truth: versions 1..n of every order, append-only by grants and by triggers",
    postgresql_partition_by="RANGE (created_at)",
)

outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("shard", sa.SmallInteger, nullable=False),
    sa.Column("slice", sa.SmallInteger, nullable=False, comment="shard % 16: what one relay claims"),
    sa.Column("position", sa.BigInteger, sa.Identity(always=True, cache=1), nullable=False),
    sa.Column("order_id", sa.Uuid, nullable=False),
    sa.Column("created_at", timestamptz, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.PrimaryKeyConstraint("slice", "position", "shard"),
    sa.CheckConstraint(f"slice = shard % {SLICES}", name="slice"),
    comment="events not yet on Kafka; the payload is read from order_events, a published row is deleted",
)

invalidations = tables.invalidations(
    metadata, slice_is="shard % 16", shard_is="the order's; of an adjustment, its product's"
)

idempotency_keys = sa.Table(
    "idempotency_keys",
    metadata,
    sa.Column("shard", sa.SmallInteger, nullable=False, comment="the order's"),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("request_hash", sa.LargeBinary, nullable=False, comment="SHA-256 of method, path and body"),
    sa.Column("resource", sa.Uuid, nullable=False, comment="the order"),
    sa.Column("version", sa.Integer, nullable=False, comment="the version the first answer showed"),
    sa.Column("created_at", timestamptz, nullable=False),
    sa.PrimaryKeyConstraint("shard", "subject", "key"),
    sa.CheckConstraint(f"shard BETWEEN 0 AND {SHARDS - 1}", name="shard"),
    sa.CheckConstraint("char_length(key) BETWEEN 1 AND 255", name="key"),
    comment="one row a request that changed something; kept 30 days",
)
sa.Index(None, idempotency_keys.c.created_at)

inventory = sa.Table(
    "inventory",
    metadata,
    sa.Column("product_id", sa.Uuid, nullable=False),
    sa.Column("on_hand", sa.BigInteger, nullable=False),
    sa.Column("reserved", sa.BigInteger, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False, comment="grows by one with every change"),
    sa.Column(
        "product_version",
        sa.BigInteger,
        nullable=False,
        server_default="0",
        comment="of the product as last copied: a placement that has read an older one starts again",
    ),
    sa.PrimaryKeyConstraint("product_id"),
    sa.CheckConstraint("reserved BETWEEN 0 AND on_hand", name="reserved_within_on_hand"),
    comment="stock of a product; the CHECK is what makes overselling impossible",
)

inventory_movements = sa.Table(
    "inventory_movements",
    metadata,
    sa.Column("product_id", sa.Uuid, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False, comment="of the inventory row, after it"),
    sa.Column("delta", sa.BigInteger, nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("actor", sa.Text, nullable=False),
    sa.Column("on_hand", sa.BigInteger, nullable=False, comment="after it"),
    sa.Column("reserved", sa.BigInteger, nullable=False, comment="after it"),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("request_hash", sa.LargeBinary, nullable=False),
    sa.Column("created_at", timestamptz, nullable=False),
    sa.PrimaryKeyConstraint("product_id", "version"),
    sa.UniqueConstraint("product_id", "subject", "key"),
    sa.CheckConstraint("version >= 1", name="version"),
    sa.CheckConstraint("char_length(key) BETWEEN 1 AND 255", name="key"),
    sa.CheckConstraint("char_length(reason) BETWEEN 1 AND 200", name="reason"),
    comment="adjustments of stock by hand, and their idempotency keys; orders' effects are in their events",
)

inbox = tables.inbox(metadata)

products = sa.Table(
    "products",
    metadata,
    sa.Column("product_id", sa.Uuid, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    _money("price"),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("active", sa.Boolean, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False, comment="the catalogue's"),
    sa.PrimaryKeyConstraint("product_id"),
    sa.CheckConstraint(f"price BETWEEN 1 AND {PRICE_MAX}", name="price"),
    comment="what orders need of the catalogue, copied from it",
)

summary_refresh = sa.Table(
    "summary_refresh",
    metadata,
    sa.Column("one", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("as_of", timestamptz, comment="all that was committed by then is shown; null before the first refresh"),
    sa.Column("since", timestamptz, comment="orders made then or later are shown, of older ones the open"),
    sa.Column("holder", sa.Text, comment="host:pid:random of the process that refreshes, anew for each"),
    sa.Column("lease_until", timestamptz),
    sa.Column("due_at", timestamptz, comment="from then on somebody has to refresh them"),
    sa.PrimaryKeyConstraint("one"),
    sa.CheckConstraint("one", name="one"),
    comment="one row: what orders.order_summaries shows, and who refreshes it now",
)


def _sum_of_money(name: str) -> sa.Column[Decimal]:
    return sa.Column(name, sa.Numeric, nullable=False, comment="minor units; a sum of many may not fit a bigint")


sales_daily = sa.Table(
    "sales_daily",
    metadata,
    sa.Column("day", sa.Date, nullable=False, comment="UTC, of the event"),
    sa.Column("currency", sa.Text, nullable=False, comment="ISO 4217"),
    sa.Column("orders", sa.BigInteger, nullable=False, comment="placed"),
    sa.Column("units", sa.BigInteger, nullable=False),
    _sum_of_money("gross_amount"),
    _sum_of_money("discount_amount"),
    _sum_of_money("charge_amount"),
    sa.Column("cancelled_orders", sa.BigInteger, nullable=False),
    _sum_of_money("cancelled_amount"),
    _sum_of_money("refunded_amount"),
    sa.PrimaryKeyConstraint("day", "currency"),
    comment="what was sold, cancelled and refunded on each day: sums of events, kept by orders-projector",
)

sales_daily_product = sa.Table(
    "sales_daily_product",
    metadata,
    sa.Column("day", sa.Date, nullable=False, comment="UTC, of the event"),
    sa.Column("currency", sa.Text, nullable=False, comment="ISO 4217"),
    sa.Column("product_id", sa.Uuid, nullable=False),
    sa.Column("quantity", sa.BigInteger, nullable=False, comment="units ordered"),
    _sum_of_money("amount"),
    sa.PrimaryKeyConstraint("day", "currency", "product_id"),
    comment="what was ordered of each product on each day: sums of events, kept by orders-projector",
)

orders_by_status = sa.Table(
    "orders_by_status",
    metadata,
    sa.Column("placed_on", sa.Date, nullable=False, comment="UTC"),
    sa.Column("currency", sa.Text, nullable=False, comment="ISO 4217"),
    sa.Column("status", sa.Text, nullable=False, comment="now"),
    sa.Column("orders", sa.BigInteger, nullable=False),
    _sum_of_money("amount"),
    sa.PrimaryKeyConstraint("placed_on", "currency", "status"),
    comment="of the orders placed on each day how many have which status: sums of events, kept by orders-projector",
)

heartbeat = sa.Table(
    "heartbeat",
    metadata,
    sa.Column("one", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("at", timestamptz, comment="all that was committed by then is on a replica that has this"),
    sa.PrimaryKeyConstraint("one"),
    sa.CheckConstraint("one", name="one"),
    comment="one row, written by orders-maintenance every few seconds",
)

seeds = sa.Table(
    "seeds",
    metadata,
    sa.Column("seed", sa.BigInteger, nullable=False, autoincrement=False),
    sa.Column("upto", timestamptz, nullable=False, comment="nothing of it happened later"),
    sa.Column("month_count", sa.Integer, nullable=False),
    sa.Column("order_count", sa.BigInteger, nullable=False),
    sa.Column("product_count", sa.Integer, nullable=False),
    sa.Column("stock_each", sa.BigInteger, nullable=False),
    sa.Column("currencies", ARRAY(sa.Text), nullable=False),
    sa.Column(
        "loaded", ARRAY(sa.Date), nullable=False, server_default="{}", comment="the months whose orders are there"
    ),
    sa.PrimaryKeyConstraint("seed"),
    comment="what `orders seed` was asked for, and how much of it there is",
)
