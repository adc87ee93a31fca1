"""Rollups of sales, added up from the events that come.

The topic says that there is something new of an order; what it is stands in the log, so that nothing is missing, and
no message is believed. The inbox says which versions are counted. It forgets a row unchanged for longer than a message
can wait, so of an order without one all that happened more than COUNTED_AFTER ago counts as counted.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC
from itertools import groupby
from typing import Any, Final
from uuid import UUID

import orjson

from services.common import ids
from services.common.db import Row, WriteConnection
from services.contracts.envelope import ORDERS_TOPIC
from services.orders.repository import INBOX, INBOX_CONSUMER, statement
from services.orders.sales import PRODUCT_SALES, SALES, STATUS_COUNTS, Deltas, Sums, add

# Longer than the topic keeps a message (7 days), shorter than the inbox keeps a row (8 days at least).
COUNTED_AFTER: Final = "INTERVAL '180 hours'"
REMEMBERED_DAYS: Final = 8  # an event younger than that is counted only if the inbox says so

# Primary keys; one partition an order. From the last version that is counted, for its status, up to the new one.
READ_NEW = statement(
    "read_new_events",
    f"""
SELECT e.order_id, e.version, e.type, e.occurred_at, e.occurred_at < now() - {COUNTED_AFTER} AS old,
       (CASE WHEN e.version > n.counted THEN e.data ELSE jsonb_build_object('after', e.data -> 'after') END)::text
           AS data
FROM unnest(:order_ids, :created_ats, :shards, :counted_versions, :versions)
    AS n (order_id, created_at, shard, counted, version)
CROSS JOIN LATERAL (
    SELECT * FROM orders.order_events e
    WHERE e.order_id = n.order_id AND e.created_at = n.created_at AND e.shard = n.shard
      AND e.version >= n.counted AND e.version <= n.version
) e
ORDER BY e.order_id, e.version
""",  # noqa: S608 # what is put in is a constant
)


# Sums of many events, added to what there is. Primary keys, each table in the order of its own, so that two processes
# never wait for each other in a circle. A sum of amounts may not fit a bigint: they come as text.
ADD = statement(
    "add_to_rollups",
    """
WITH sales AS (
    INSERT INTO orders.sales_daily AS s (day, currency, orders, units, gross_amount, discount_amount, charge_amount,
        cancelled_orders, cancelled_amount, refunded_amount)
    SELECT * FROM jsonb_to_recordset(CAST(:sales AS jsonb)) AS n (day date, currency text, orders bigint, units bigint,
        gross_amount numeric, discount_amount numeric, charge_amount numeric, cancelled_orders bigint,
        cancelled_amount numeric, refunded_amount numeric)
    ORDER BY day, currency
    ON CONFLICT (day, currency) DO UPDATE SET orders = s.orders + excluded.orders, units = s.units + excluded.units,
        gross_amount = s.gross_amount + excluded.gross_amount,
        discount_amount = s.discount_amount + excluded.discount_amount,
        charge_amount = s.charge_amount + excluded.charge_amount,
        cancelled_orders = s.cancelled_orders + excluded.cancelled_orders,
        cancelled_amount = s.cancelled_amount + excluded.cancelled_amount,
        refunded_amount = s.refunded_amount + excluded.refunded_amount
), products AS (
    INSERT INTO orders.sales_daily_product AS s (day, currency, product_id, quantity, amount)
    SELECT * FROM jsonb_to_recordset(CAST(:products AS jsonb))
        AS n (day date, currency text, product_id uuid, quantity bigint, amount numeric)
    ORDER BY day, currency, product_id
    ON CONFLICT (day, currency, product_id) DO UPDATE SET quantity = s.quantity + excluded.quantity,
        amount = s.amount + excluded.amount
)
INSERT INTO orders.orders_by_status AS s (placed_on, currency, status, orders, amount)
SELECT * FROM jsonb_to_recordset(CAST(:statuses AS jsonb))
    AS n (placed_on date, currency text, status text, orders bigint, amount numeric)
ORDER BY placed_on, currency, status
ON CONFLICT (placed_on, currency, status) DO UPDATE SET orders = s.orders + excluded.orders,
    amount = s.amount + excluded.amount
""",
)


class UncountableError(Exception):
    """The log does not have what is said to be new of this order, or it is no event. Nothing is to be committed."""

    def __init__(self, order_id: UUID, reason: str) -> None:
        super().__init__(f"{ids.to_text(order_id)}: {reason}")
        self.order_id = order_id


async def count(connection: WriteConnection, newest: Mapping[UUID, int]) -> dict[UUID, int]:
    """Every event of these orders up to their newest version is counted, once; gives up to which it was before.

    Orders of which nothing was new are not among them. In the caller's transaction (READ COMMITTED): inbox rows in the
    order of their keys, then rollups in that of theirs; three round trips for any number of events. UncountableError.
    """
    counted = await _advance(connection, newest)
    if not counted:
        return counted
    keys = [ids.order_key(order_id) for order_id in counted]
    found = await READ_NEW.rows(
        connection,
        order_ids=list(counted),
        created_ats=[key.created_at for key in keys],
        shards=[key.shard for key in keys],
        counted_versions=list(counted.values()),
        versions=[newest[order_id] for order_id in counted],
    )
    events = {order_id: list(group) for order_id, group in groupby(found, key=lambda row: row["order_id"])}
    deltas = Deltas()
    for order_id, after in counted.items():
        of_order = events.get(order_id, [])
        if [row["version"] for row in of_order] != list(range(max(after, 1), newest[order_id] + 1)):
            raise UncountableError(order_id, f"the log does not have it up to version {newest[order_id]}")
        try:
            _add(deltas, of_order, after)
        except (KeyError, TypeError, ValueError) as error:
            raise UncountableError(order_id, f"its events cannot be counted: {error!r}") from error
    await ADD.rows(connection, **records(deltas))
    return counted


async def add_loaded(connection: WriteConnection, deltas: Deltas, newest: Mapping[UUID, int]) -> None:
    """What was loaded is counted: `deltas` is all of it, `newest` the versions of its orders of REMEMBERED_DAYS.

    In the transaction that loads it. For rows that nobody else knows of yet.
    """
    await _advance(connection, newest)
    await ADD.rows(connection, **records(deltas))


async def _advance(connection: WriteConnection, newest: Mapping[UUID, int]) -> dict[UUID, int]:
    rows = await INBOX.advance.rows(
        connection,
        consumer=INBOX_CONSUMER,
        topic=ORDERS_TOPIC,
        keys=[str(order_id) for order_id in newest],
        versions=list(newest.values()),
    )
    return {UUID(row["key"]): row["last_version"] for row in rows}


def _add(deltas: Deltas, events: Sequence[Row], counted: int) -> None:
    """The events after version `counted` are added; those that are old and of which nothing is known are not."""
    status = None
    placed_on = ids.order_key(events[0]["order_id"]).created_at.astimezone(UTC).date()
    for row in events:
        data: dict[str, Any] = orjson.loads(row["data"])
        if row["version"] > counted and not (counted == 0 and row["old"]):
            on = row["occurred_at"].astimezone(UTC).date()
            add(deltas, row["type"], data, on=on, placed_on=placed_on, status_before=status)
        status = data["after"]["status"]


_NAMES: Final = {
    "sales": ("day", "currency", *SALES),
    "products": ("day", "currency", "product_id", *PRODUCT_SALES),
    "statuses": ("placed_on", "currency", "status", *STATUS_COUNTS),
}


def records(deltas: Deltas) -> dict[str, str]:
    """The parameters of ADD."""
    sums: dict[str, Sums] = {"sales": deltas.sales, "products": deltas.products, "statuses": deltas.statuses}
    return {
        name: orjson.dumps(
            [
                dict(zip(_NAMES[name], (str(value) for value in (*key, *amounts)), strict=True))
                for key, amounts in found.items()
                if any(amounts)
            ]
        ).decode()
        for name, found in sums.items()
    }
